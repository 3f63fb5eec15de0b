-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- adaptive: for when nothing is known about the client.
--
-- What has been read or prefetched is kept in mind, see lua/library/scan/coverage.lua, so
-- that nothing is fetched twice, nor what the client has read.
-- At each turn, the first of these that there is to do is done:
--
-- 1. Sequential readers are kept ahead of, at once, reading or not.  See
--    lua/library/scan/streams.lua: several streams, windows that grow with use, given
--    up where the reader is no faster for it.
-- 2. While the client pauses, the rest of the disk, a block at a time.  A pause
--    is no read in flight for the silence period, or for twice the longest gap
--    between the last 16 reads, if that is more; up to five times the silence
--    period.  In this order:
--    a. failed ranges again, three times each, after 1, 2 and 4 seconds (no more
--       than 256 wait for that, others are given up);
--    b. the blocks in which the last 32 lone reads were, oldest first;
--    c. upwards from where a sequential reader last was, to the end of the disk,
--       then what was left out before.
--    Holes are skipped in c; in b, unless lone reads often are in holes; and ahead
--    of a reader that hasn't read in one.
--    All connections of an export count as one client here, and what one has read
--    or fetched is done for all, until the last has gone.
-- 3. While the client reads here and there without a pause: some of that rest,
--    just after a read began that takes its time, as much as costs the reads
--    nothing.  See lua/library/scan/trickle.lua.  It may be several ranges at once, for
--    threads, and none has a read in it: a layer below would fetch what is before
--    and what is behind one after the other.
-- 4. It waits.  It ends when the whole disk is read, fetched or hole.
--
-- So a read far away, like those of blkid at the end of a disk, is a hint and
-- not a new start.  Memory is bounded: 5 MB at most for what is done, far less on all
-- but scattered reads over a huge disk, where it may forget and fetch twice.
--
-- scan-arg-silence=SECONDS   silence period (0.1)
-- scan-arg-window=SIZE       most bytes ahead of a sequential reader (32M)
-- scan-arg-fill=BOOL         do 2b, 2c and 3 (true)

local arguments = require "scan.args"
local coverage = require "scan.coverage"
local streams = require "scan.streams"
local trickle = require "scan.trickle"
local args = ...
arguments.check_known (args, { "silence", "window", "fill" })
local SILENCE = arguments.number (args, "silence", 0.1, 0, 3600)
local WINDOW = arguments.size (args, "window", 32 << 20, 65536)
local FILL = arguments.boolean (args, "fill", true)

local HINTS = 32
local HOLE_READS, HOLE_READS_MOST = 4, 8
local BESIDE_BLOCKS, BLOCKED_SECONDS = 4, 0.001
local GAPS = 16
local BUSY_SECONDS = 10 -- a read that takes longer is taken for a pause
-- A shorter wait may be no time at all, by rounding.
local WAIT_SECONDS = 0.001
local RETRIES, RETRY_SECONDS, RETRY_RANGES = 3, 1, 256

-- Ranges that failed, and when to try them again.
local function retry_list (disk)
  local list = {}
  local trying -- the one taken last
  local retry = {}

  -- Note what has failed since this was last called.
  function retry.note ()
    for offset, count in disk:failures () do
      local tries = 0
      if trying and offset >= trying.offset
         and offset - trying.offset < trying.count then
        tries = trying.tries
      end
      if tries < RETRIES and #list < RETRY_RANGES then
        list[#list + 1] = {
          offset = offset, count = count, tries = tries + 1,
          due = disk:now () + RETRY_SECONDS * 2 ^ tries,
        }
      end
    end
    trying = nil
  end

  -- Seconds until the first is due, or nil if there is none.
  function retry.seconds ()
    local due
    for _, range in ipairs (list) do
      if not due or range.due < due then due = range.due end
    end
    return due and math.max (0, due - disk:now ())
  end

  -- Take one that is due, or nil.  Settle after it, then `note`.
  function retry.take ()
    for i, range in ipairs (list) do
      if range.due <= disk:now () then
        trying = table.remove (list, i)
        return trying
      end
    end
    return nil
  end

  return retry
end

-- The scans that run, one a connection: since when its client has paused, whether
-- it had a read in flight when the scan last looked, and when that was.  A scan
-- that is cut off without its last turn drops out when Lua notices.
local scans = setmetatable ({}, { __mode = "k" })
local shared_done, shared_size, shared_trust

-- A scan begins; returns its entry, what is done, and what is known of streams.
local function join (disk)
  if next (scans) == nil or shared_size ~= disk.size then
    shared_done, shared_size = coverage.new (disk), disk.size
    shared_trust = streams.trust ()
  end
  local now = disk:now ()
  local scan = { idle_since = now, busy = false, looked = now }
  scans[scan] = true
  return scan, shared_done, shared_trust
end

-- How long the client must pause before the rest of the disk is looked at.
local function pause_meter (disk, scan)
  local gaps, at = {}, 0
  local started = disk:now ()
  local meter = {}

  -- Call at each turn; `any` if there were reads.
  function meter.look (any)
    local now, idle = disk:now (), disk:idle ()
    if any then
      gaps[at] = now - scan.idle_since
      at = (at + 1) % GAPS
    end
    scan.idle_since = now - math.min (idle, now - started)
    scan.busy, scan.looked = idle == 0, now
  end

  -- Seconds to wait still; 0 if the pause is long enough.
  function meter.seconds ()
    local longest = 0
    for i = 0, GAPS - 1 do longest = math.max (longest, gaps[i] or 0) end
    local needed = math.max (SILENCE, math.min (2 * longest, 5 * SILENCE))
    local now, since = disk:now (), scan.idle_since
    for other in pairs (scans) do
      local busy = other.busy and now - other.looked < BUSY_SECONDS
      since = math.max (since, busy and now or other.idle_since)
    end
    return math.max (0, needed - (now - since))
  end

  return meter
end

-- The rest of the disk: where to go next.
local function rest_of (disk, done)
  local hints = {}
  local hole_reads = 0 -- up with each lone read in a hole, down with others
  local from, laps = 0, 0
  local rest = {
    none_untouched = false, -- all that is left was read in part, so far as is known
  }

  -- A lone read was in a hole or not; returns whether to fetch what is around it.
  function rest.judge (is_hole)
    hole_reads = hole_reads + (is_hole and 1 or -1)
    hole_reads = math.max (0, math.min (hole_reads, HOLE_READS_MOST))
    return not is_hole or hole_reads >= HOLE_READS
  end

  -- A read on its own: its block comes first.
  function rest.hint (offset)
    if #hints == HINTS then table.remove (hints, 1) end
    local block = offset - offset % disk.block
    hints[#hints + 1] = block
    local is_hole = done:is_hole (offset)
    if (is_hole or done:is_done (offset)) and rest.judge (is_hole) and is_hole then
      done:want_holes (block, math.min (block + disk.block, disk.size))
      rest.none_untouched = false
    end
  end

  -- A sequential reader is here.
  function rest.move (offset)
    from = offset - offset % done.unit
  end

  -- The next range not done, of so many bytes at most, or nil when all is; and
  -- whether a lone read was in its block.  If `untouched`, nothing of the range
  -- was read.
  function rest.next (most, untouched)
    while hints[1] do
      local block_stop = math.min (hints[1] + disk.block, disk.size)
      local offset, stop = done:missing (hints[1], block_stop, untouched)
      if offset then return offset, math.min (stop, offset + most), true end
      table.remove (hints, 1)
    end
    local offset, stop
    if from < disk.size then offset, stop = done:missing (from, disk.size, untouched) end
    if not offset then
      -- Where the map forgets, going round would not end.
      if not (done.forgetful and laps > 0) then
        offset, stop = done:missing (0, disk.size, untouched)
      end
      if not offset then
        rest.none_untouched = true
        return nil
      end
      laps = laps + 1
    end
    from = math.min (stop, offset + most)
    return offset, from, false
  end

  return rest
end

return function (disk)
  if disk.size == 0 then return end
  local little = trickle.new (BESIDE_BLOCKS * disk.block)
  local scan, done, trust = join (disk)
  local readers = streams.new (disk, { window = WINDOW, trust = trust })
  local retry = retry_list (disk)
  local pause = pause_meter (disk, scan)
  local rest = rest_of (disk, done)

  local missed                  -- a read that takes its time has begun
  local function note (stream, offset, count)
    missed = missed or not done:is_near (offset)
    done:add_read (offset, offset + count)
    -- Small reads in a row cover units that none of them covers alone.
    done:add (math.max (stream.from, stream.noted or 0), stream.position)
    stream.noted = stream.position - stream.position % done.unit
    little:read (stream.reads == 1)
    if not stream.reads_holes and done:is_hole (offset) then
      -- What was left out ahead of it is wanted after all.
      stream.reads_holes = true
      readers:rewind (stream)
    end
    if stream.reads == 1 then
      rest.hint (offset)
    else
      rest.move (stream.position)
    end
  end

  -- Where the next data is, in whole units.
  local function data_from (offset)
    local data = disk:next_data (offset)
    return data and math.max (offset, data - data % done.unit) or disk.size
  end

  -- A reader that reads holes has them read ahead too: to read nothing from a
  -- source takes its time as well.
  local function reads_holes (stream)
    if not stream.reads_holes then
      local last = math.min (stream.position, disk.size) - 1
      stream.reads_holes = disk:next_data (last) ~= last
    end
    return stream.reads_holes
  end

  -- The next piece ahead of a reader.
  local function read_ahead (stream, offset, count)
    if stream.reads_holes then done:want_holes (offset, offset + count) end
    local from, stop = done:missing (offset, offset + count)
    if not from then return readers:skip (stream, count) end
    local data = data_from (from)
    if data > from and reads_holes (stream) then data = from end
    done:add_hole (from, data)
    data = math.min (data, stop)
    readers:skip (stream, data - offset)
    if data < stop then readers:prefetch (stream, stop - data) end
    done:add (stream.from, stream.ready)
  end

  -- A range of the rest, or one in which a lone read was; returns the bytes that are
  -- prefetched.
  local function fill (from, stop, is_hint)
    local data = data_from (from)
    local is_hole = data >= stop
    if is_hint and rest.judge (is_hole) and is_hole then data = from end
    done:add_hole (from, data)
    done:add (from, stop)
    if data >= stop then return 0 end
    disk:prefetch (data, stop - data)
    return stop - data
  end

  -- Some of the rest beside the client's reads.
  local function fill_beside (bytes, most_ranges)
    local began, count, ranges = disk:now (), 0, 0
    for _ = 1, most_ranges do
      local most = bytes - count
      most = most - most % done.unit
      if most <= 0 then break end
      local from, stop, is_hint = rest.next (most, true)
      if not from then break end
      local fetched = fill (from, stop, is_hint)
      count, ranges = count + fetched, ranges + (fetched > 0 and 1 or 0)
      -- If no thread is free for the next one, that's enough.
      if disk:now () - began > BLOCKED_SECONDS then break end
    end
    if count == 0 then return end
    disk:settle ()
    little:fetched (disk:now () - began, count, ranges)
  end

  local waited = false          -- in the last turn
  while not disk:closed () do
    missed = false
    local any, busy_seconds = readers:look (note)
    pause.look (any)
    if any then little:took (busy_seconds) end
    retry.note ()
    local read_began = missed and waited
    waited = false

    local stream, offset, count = readers:next ()
    local retry_seconds, pause_seconds = retry.seconds (), pause.seconds ()
    if stream then
      read_ahead (stream, offset, count)
    elseif pause_seconds == 0 and retry_seconds == 0 then
      local range = retry.take ()
      disk:prefetch (range.offset, range.count)
      disk:settle ()
    else
      local from, stop, is_hint
      local bytes, ranges
      if read_began and pause_seconds > 0 and FILL and not rest.none_untouched then
        bytes, ranges = little:bytes ()
      end
      if pause_seconds == 0 and FILL then
        from, stop, is_hint = rest.next (disk.block)
        if not from and not retry_seconds then
          -- Whether the last ones failed is not known yet.
          disk:settle ()
          retry.note ()
          if not retry.seconds () then break end
        end
      end
      if from then
        fill (from, stop, is_hint)
      elseif bytes then
        fill_beside (bytes, ranges)
      else
        local seconds = pause_seconds > 0 and pause_seconds or retry_seconds
        disk:wait (seconds and math.max (seconds, WAIT_SECONDS))
        waited = true
      end
    end
  end
  scans[scan] = nil
end
