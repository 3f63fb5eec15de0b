-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Sequential streams among a client's reads, and how far to read ahead of them.
--
-- A read that begins where a stream has come to continues that stream, the
-- nearest one if there are several; so does one that skips at most four times
-- its own length, or nothing but what has been prefetched for the stream;
-- one that lies just behind it changes nothing; any other starts a new stream
-- in the place of the one that has not been read for longest.
--
-- A stream is followed from its fourth read on; a skip doesn't count.  The
-- window, how far ahead of the reader it is prefetched, is the least of
--
-- - what has been read of the stream (a skip halves that), so that it grows with
--   use and about half of what is fetched is waste at most;
-- - four times what its reader reads, at its present pace, in the time that a
--   prefetch takes, but at least two reads: no more is needed to be there first;
-- - the `window` given.
--
-- It is fetched in pieces of half a window, at most a block; of a quarter if there
-- are threads, as a reader that comes to a piece on its way may have to read it as
-- well.  A stream not read for the last 16 reads is left alone until it is.
--
-- Reading ahead must pay.  Before a stream is followed its pace is measured,
-- thinking time and all, and while it is followed the time it takes is set
-- against the time that the bytes read and those ready would have taken at that
-- pace.  When it has lost more than two reads' time, or a prefetch of four
-- reads' bytes or more takes more than 0.8 of the time of those, it is let go
-- for the next 32 MB of it, twice as long each time.  (This happens where a
-- prefetch is many small requests, or holds a lock that the reader needs, or
-- where it is the bandwidth and not the latency that the reader waits for.)
-- The first two pieces are waited for, so that many threads can't do much harm
-- before it shows.  Readers whose reads are more than half a block are not
-- followed: there is no latency to save by larger requests.  Nor are those whose
-- reads take less than 0.8 ms each, one with another: the source is near.  Three of the
-- first few, or eight of more, must have taken that long by themselves: one that
-- takes long among others that don't is the processor's fault.
--
-- A client with many reads in flight has no latency to wait for; what it waits for is
-- the line, or the processor.  With more than two, in the mean over the last looks,
-- they must take 3 ms each, one with another; with eight nobody is followed.
--
-- A stream let go, and one that ends with more than half as much ready as was read
-- while it was followed, doubles the reads that new ones need before they are
-- followed, up to 64; 8 MB read of a stream while it is followed resets that.
--
-- Memory: 8 streams, or as many as is said.
--
-- @module scan.streams

local M = {}

local Streams = {}
local META = { __index = Streams }

local STREAMS = 8
local FOLLOW_READS = 4
local FOLLOW_READS_MOST = 64
local SKIP_READS = 4
local LIVE_READS = 16
local LOSS_READS = 2
local HOLD_BYTES = 32 << 20
local TRUST_BYTES = 8 << 20
local TRIAL_PIECES = 2
-- Reads that take less gain nothing; up to the next, it takes so many to tell, and
-- with more than a few in flight they must take that long.
local FAST_SECONDS, UNSURE_SECONDS, SURE_READS = 0.0008, 0.003, 16
local SLOW_FEW, SLOW_SURE = 3, 8 -- of these, so many slow by themselves
-- Of the mean of reads in flight, how much is from before the last look, while there
-- are more of them and less: quick to see, slow to forget.
local FEW_READS, DEEP_READS, MEMORY_UP, MEMORY_DOWN = 2, 8, 0.5, 0.9
local UNIT_BYTES = 65536
local ROUND_TRIPS = 4
-- A prefetch of so many reads' bytes should take less than this of their time.
local WORTH_READS = 4
local WORTH = 0.8
-- Of the present pace, how much of it is from before the last read.
local PACE_MEMORY = 0.5

--- What is known of streams in general, for lists that share it: those of several
-- connections of one client, say.
-- @treturn table trust
function M.trust ()
  return { needed = FOLLOW_READS } -- reads before a stream is followed
end

--- Make an empty list of streams.
-- @tparam table disk whose reads they are
-- @tparam table options `window` (most bytes ahead), `streams` (how many are
-- kept, 8), `trust` (from `M.trust`, its own)
-- @treturn table streams
function M.new (disk, options)
  local now = disk:now ()
  return setmetatable ({
    disk = disk, list = {},
    window = options.window, most = options.streams or STREAMS,
    unit = math.min (UNIT_BYTES, disk.block),
    turn = 0,               -- reads seen
    trust = options.trust or M.trust (),
    looked = now,           -- when the policy last looked
    read_time = now,        -- when it last saw reads
    busy = 0,               -- seconds since then that were not the client's pause
    was_busy = false,
    depth = 0,              -- reads in flight, in the mean
  }, META)
end

local function distrust (streams)
  local trust = streams.trust
  trust.needed = math.min (trust.needed * 2, FOLLOW_READS_MOST)
end

-- Measure the pace of a stream from here on.
local function let_go (streams, stream)
  stream.following = false
  stream.first_turn = streams.turn
  stream.reads, stream.seconds, stream.bytes = 1, 0, 0
  stream.slow, stream.accounted = 0, streams.turn
end

local function follow (stream)
  stream.following = true
  stream.pace = stream.seconds / stream.bytes -- seconds per byte, undisturbed
  stream.interval = stream.seconds / (stream.reads - 1)
  stream.ready = stream.position
  stream.run = math.min (stream.run, stream.bytes + stream.pending)
  stream.judged = false
  stream.recent_seconds, stream.recent_bytes = stream.seconds, stream.bytes
  stream.seconds, stream.bytes, stream.pieces = 0, 0, 0
  stream.fetch_seconds = nil
end

-- The stream that a read continues, or nil.
local function find (streams, offset, count)
  local best, best_distance
  for _, stream in ipairs (streams.list) do
    local ahead = offset - stream.position
    local distance = math.abs (ahead)
    if (distance <= SKIP_READS * count
        or ahead > 0 and offset < stream.ready and stream.following)
       and (not best or distance < best_distance) then
      best, best_distance = stream, distance
    end
  end
  return best
end

-- A new stream, in the place of the oldest if the list is full.
local function add (streams)
  local list = streams.list
  local at = #list + 1
  if at > streams.most then
    at = 1
    for i, stream in ipairs (list) do
      if stream.turn < list[at].turn then at = i end
    end
  end
  list[at] = {}
  return list[at]
end

-- Note a read; returns its stream.
local function note (streams, offset, count)
  streams.turn = streams.turn + 1
  local stop = offset + count
  local stream = find (streams, offset, count)
  if not stream then
    stream = add (streams)
    stream.from, stream.position, stream.ready = offset, stop, stop
    stream.run = count
    stream.pending, stream.new_bytes = 0, count
    stream.hold, stream.hold_bytes = stop, HOLD_BYTES
    stream.touched = false
    let_go (streams, stream)
  elseif stop > stream.position then
    if offset > stream.position then
      stream.from = offset
      stream.run = stream.run // 2
    else
      stream.reads = stream.reads + 1
    end
    stream.run = math.min (stream.run + count, streams.window)
    stream.new_bytes = stream.new_bytes + stop - stream.position
    stream.position = stop
    stream.ready = math.max (stream.ready, stop)
    stream.touched = true
  end
  stream.turn = streams.turn
  return stream
end

-- A stream that is no longer read: was following it worth it?
local function judge (streams, stream)
  if stream.judged then return end
  stream.judged = true
  if stream.ready - stream.position > stream.bytes // 2 then distrust (streams) end
end

-- Leave a stream alone for a while.
local function give_up (streams, stream)
  let_go (streams, stream)
  stream.hold = stream.position + stream.hold_bytes
  stream.hold_bytes = stream.hold_bytes * 2
  distrust (streams)
end

-- The reads of a stream seen at the last look have taken this long, until these.
local function account (streams, stream, seconds)
  stream.seconds = stream.seconds + seconds
  stream.bytes = stream.bytes + stream.pending
  if not stream.following then
    if seconds > FAST_SECONDS * (streams.turn - stream.accounted) then
      stream.slow = stream.slow + 1
    end
    stream.accounted = streams.turn
    return
  end

  stream.recent_seconds = stream.recent_seconds * PACE_MEMORY + seconds
  stream.recent_bytes = stream.recent_bytes * PACE_MEMORY + stream.pending

  local ready = math.max (0, stream.ready - stream.position)
  local undisturbed = (stream.bytes + ready) * stream.pace
  if stream.seconds - undisturbed > LOSS_READS * stream.interval then
    give_up (streams, stream)
  elseif stream.bytes > TRUST_BYTES then
    streams.trust.needed = FOLLOW_READS
  end
end

--- Take the client's reads.  Call it at the start of each of the policy's turns.
-- @tparam[opt] function each called as `each (stream, offset, count)` for each
-- read, oldest first; the stream has `from` and `position`, the range that has
-- been read without a gap, and `reads`, 1 for a new one
-- @treturn boolean true if there were reads
-- @treturn number|nil how many seconds they were in flight, about, since those
-- seen before began: time without the client's pauses
function Streams:look (each)
  local disk, now = self.disk, self.disk:now ()
  if self.was_busy then self.busy = self.busy + now - self.looked end
  self.looked = now

  local any = false
  for offset, count in disk:reads () do
    local stream = note (self, offset, count)
    if each then each (stream, offset, count) end
    any = true
  end

  local busy
  if any then
    busy = self.busy
    local passed = now - self.read_time
    for _, stream in ipairs (self.list) do
      if stream.touched then
        local seconds = passed
        -- A pause of the client is not the prefetches' doing.
        if stream.following then
          seconds = math.min (passed, self.busy + stream.interval)
        end
        account (self, stream, seconds)
        stream.touched = false
      end
      if stream.new_bytes > 0 then
        stream.pending, stream.new_bytes = stream.new_bytes, 0
      end
    end
    self.read_time, self.busy = now, 0
  end
  local in_flight = disk:reads_in_flight ()
  self.was_busy = in_flight > 0
  if self.was_busy then
    local memory = in_flight > self.depth and MEMORY_UP or MEMORY_DOWN
    self.depth = memory * self.depth + (1 - memory) * in_flight
  end
  return any, busy
end

local function window_of (streams, stream)
  local window = math.min (stream.run, streams.window)
  if stream.fetch_seconds then
    local pace = stream.recent_bytes / stream.recent_seconds
    local needed = ROUND_TRIPS * pace * stream.fetch_seconds
    -- Two of its reads at least, or it would only fetch parts of them.
    window = math.min (window, math.max (needed, 2 * stream.interval / stream.pace))
  end
  return math.max (streams.unit, math.floor (window))
end

-- Do the client's reads take so long that there is something to gain?
local function is_slow (streams, stream)
  local reads = streams.turn - stream.first_turn
  local each = stream.seconds / reads
  local sure = reads >= SURE_READS and stream.slow >= SLOW_SURE
  if streams.depth > FEW_READS then return sure and each > UNSURE_SECONDS end
  return sure and each > FAST_SECONDS
         or stream.slow >= SLOW_FEW and each > UNSURE_SECONDS
end

--- What to prefetch next.
-- @treturn table|nil stream, nil if there is nothing to prefetch now
-- @treturn integer offset in bytes
-- @treturn integer count in bytes
function Streams:next ()
  local size, block, unit = self.disk.size, self.disk.block, self.unit
  local best, best_count
  local deep = self.depth >= DEEP_READS
  for _, stream in ipairs (self.list) do
    if self.turn - stream.turn >= LIVE_READS then
      if stream.following then judge (self, stream) end
    elseif deep then
      if stream.following then give_up (self, stream) end
    elseif stream.ready < size then
      if not stream.following and stream.reads >= self.trust.needed and stream.bytes > 0
         and is_slow (self, stream)
         and stream.position >= stream.hold
         and stream.bytes <= stream.reads * (block // 2) then
        follow (stream)
      end
      if stream.following and (not best or stream.turn > best.turn) then
        local window = window_of (self, stream)
        local share = self.threads and stream.pieces >= TRIAL_PIECES and 4 or 2
        local count = math.min (math.max (window // share, unit), block)
        -- End on a multiple, so that what caches in units is asked for whole ones.
        local stop = stream.ready + count
        stop = math.max (stop - stop % unit, stream.ready - stream.ready % unit + unit)
        if stop - stream.position <= window or stream.ready == stream.position then
          best, best_count = stream, math.min (stop, size) - stream.ready
        end
      end
    end
  end
  if best then return best, best.ready, best_count end
  return nil
end

--- What `next` gave, or the first part of it, is there already.
-- @tparam table stream from `next`
-- @tparam integer count in bytes
function Streams:skip (stream, count) -- luacheck: no self
  stream.ready = stream.ready + count
end

--- What was skipped ahead of a stream is to be fetched after all.
-- @tparam table stream
function Streams:rewind (stream) -- luacheck: no self
  stream.ready = math.min (stream.ready, stream.position)
end

--- Prefetch what `next` gave, or the first part of it.
-- @tparam table stream from `next`
-- @tparam integer count in bytes
function Streams:prefetch (stream, count)
  local disk = self.disk
  local began = disk:now ()
  disk:prefetch (stream.ready, count)
  stream.ready = stream.ready + count
  stream.pieces = stream.pieces + 1
  self.was_busy = true

  local returned = disk:now ()
  if stream.pieces <= TRIAL_PIECES then
    disk:settle ()
    -- With threads it came back early, and the time passed now.
    if disk:now () - returned > returned - began then self.threads = true end
  elseif self.threads then
    return
  end
  stream.fetch_seconds = disk:now () - began
  -- The first one may have had to wait for the reader's own read; a small one
  -- is mostly latency and shows nothing.
  if stream.pieces > 1 and stream.pace * count >= WORTH_READS * stream.interval
     and stream.fetch_seconds > WORTH * stream.pace * count then
    give_up (self, stream)
  end
end

return M
