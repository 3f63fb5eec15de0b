--- Sequential streams among a client's reads, and how far to read ahead of them.
--
-- A read that begins where a stream has come to (or skips at most four times
-- its own length) continues that stream, the nearest one if there are several;
-- one that lies just behind it changes nothing; any other starts a new stream
-- in the place of the one that has not been read for longest.
--
-- A stream is followed from its third read on.  The window, how far ahead of
-- the reader it is prefetched, is twice what has been read of the stream, so
-- that it grows with use and at most two thirds of what is fetched is waste;
-- `window` bounds it.  It is fetched in pieces of half a window, at most a
-- block.  A skip halves what counts as read.  A stream not read for the last 16
-- reads is left alone until it is.
--
-- Reading ahead must pay.  Before a stream is followed its pace is measured,
-- thinking time and all, and while it is followed the time it takes is set
-- against the time that the bytes now ready would have taken at that pace.
-- When it has lost more than four reads' time, it is let go for the next 32 MB
-- of it, twice as long each time.  (This happens where a prefetch is many small
-- requests, or holds a lock that the reader needs.)  The first two pieces are
-- waited for, so that many threads can't do much harm before it shows.
--
-- Streams let go, and streams that end with more ready than was ever used, make
-- new ones wait for more reads before they are followed: each doubles what is
-- needed, up to 64 reads; a stream that uses 8 MB of what was fetched resets it.
--
-- Memory: 8 streams, or as many as is said.
--
-- @module scan.streams

local M = {}

local Streams = {}
local META = { __index = Streams }

local STREAMS = 8
local FOLLOW_READS = 3
local FOLLOW_READS_MOST = 64
local SKIP_READS = 4
local LIVE_READS = 16
local LOSS_READS = 4
local HOLD_BYTES = 32 << 20
local TRUST_BYTES = 8 << 20
local TRIAL_PIECES = 2
local UNIT_BYTES = 65536

--- Make an empty list of streams.
-- @tparam table disk whose reads they are
-- @tparam table options `window` (most bytes ahead), `streams` (how many are
-- kept, 8)
-- @treturn table streams
function M.new (disk, options)
  local now = disk:now ()
  return setmetatable ({
    disk = disk, list = {},
    window = options.window, most = options.streams or STREAMS,
    unit = math.min (UNIT_BYTES, disk.block),
    turn = 0,               -- reads seen
    needed = FOLLOW_READS,  -- reads before a stream is followed
    looked = now,           -- when the policy last looked
    read_time = now,        -- when it last saw reads
    busy = 0,               -- seconds since then that were not the client's pause
    was_busy = false,
  }, META)
end

local function distrust (streams)
  streams.needed = math.min (streams.needed * 2, FOLLOW_READS_MOST)
end

-- Measure the pace of a stream from here on.
local function let_go (stream)
  stream.following = false
  stream.reads, stream.seconds, stream.bytes = 1, 0, 0
end

local function follow (stream)
  stream.following = true
  stream.pace = stream.seconds / stream.bytes
  stream.interval = stream.seconds / (stream.reads - 1)
  stream.ready = stream.position
  stream.seconds, stream.bytes, stream.pieces = 0, 0, 0
end

-- The stream that a read continues, or nil.
local function find (streams, offset, count)
  local best, best_distance
  for _, stream in ipairs (streams.list) do
    local distance = math.abs (offset - stream.position)
    if distance <= SKIP_READS * count and (not best or distance < best_distance) then
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
    local old = list[at]
    if old.following and old.ready - old.position > old.bytes then
      distrust (streams)
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
    stream.seen = stop -- where it was at the end of the last look
    stream.run = count
    stream.hold, stream.hold_bytes = stop, HOLD_BYTES
    stream.touched = false
    let_go (stream)
  elseif stop > stream.position then
    if offset > stream.position then
      stream.from = offset
      stream.run = stream.run // 2
    end
    stream.run = math.min (stream.run + count, streams.window)
    stream.reads = stream.reads + 1
    stream.position = stop
    stream.ready = math.max (stream.ready, stop)
    stream.touched = true
  end
  stream.turn = streams.turn
  return stream
end

-- Set what a stream's reads took against what they would have taken.
local function weigh (streams, stream)
  local gained = (stream.bytes + stream.ready - stream.position) * stream.pace
  if stream.seconds - gained > LOSS_READS * stream.interval then
    let_go (stream)
    stream.hold = stream.position + stream.hold_bytes
    stream.hold_bytes = stream.hold_bytes * 2
    distrust (streams)
  elseif stream.bytes > TRUST_BYTES then
    streams.needed = FOLLOW_READS
  end
end

--- Take the client's reads.  Call it at the start of each of the policy's turns.
-- @tparam[opt] function each called as `each (stream, offset, count)` for each
-- read, oldest first; the stream has `from` and `position`, the range that has
-- been read without a gap, and `reads`, 1 for a new one
-- @treturn boolean true if there were reads
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

  if any then
    local passed = now - self.read_time
    for _, stream in ipairs (self.list) do
      if stream.touched then
        local seconds = passed
        -- A pause of the client is not the prefetches' doing.
        if stream.following then
          seconds = math.min (passed, self.busy + 2 * stream.interval)
        end
        stream.seconds = stream.seconds + seconds
        stream.bytes = stream.bytes + stream.position - stream.seen
        if stream.following then weigh (self, stream) end
        stream.touched = false
      end
      stream.seen = stream.position
    end
    self.read_time, self.busy = now, 0
  end
  self.was_busy = disk:idle () == 0
  return any
end

--- What to prefetch next.
-- @treturn table|nil stream, nil if there is nothing to prefetch now
-- @treturn integer offset in bytes
-- @treturn integer count in bytes
function Streams:next ()
  local size, block, unit = self.disk.size, self.disk.block, self.unit
  local best, best_count
  for _, stream in ipairs (self.list) do
    if self.turn - stream.turn < LIVE_READS and stream.ready < size then
      if not stream.following and stream.reads >= self.needed and stream.bytes > 0
         and stream.seconds > 0 and stream.position >= stream.hold then
        follow (stream)
      end
      if stream.following and (not best or stream.turn > best.turn) then
        local window = math.min (2 * stream.run, self.window)
        local count = math.min (math.max (window // 2, unit), block)
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

--- Say that what `next` gave, or the first part of it, is there already.
-- @tparam table stream from `next`
-- @tparam integer count in bytes
function Streams:skip (stream, count) -- luacheck: no self
  stream.ready = stream.ready + count
end

--- Say that what `next` gave, or the first part of it, is being prefetched.
-- @tparam table stream from `next`
-- @tparam integer count in bytes
-- @treturn boolean true if the policy should `disk:settle` before it looks again
function Streams:prefetched (stream, count)
  stream.ready = stream.ready + count
  stream.pieces = stream.pieces + 1
  self.was_busy = true
  return stream.pieces <= TRIAL_PIECES
end

return M
