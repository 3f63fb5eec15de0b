-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what sequential readers will read next.
--
-- A read that begins where a stream ended, or ends where it began, continues it; so
-- does one that skips a little, as a reader that leaves out holes does.  Any other
-- begins a stream, in the place of the one that was read least lately.  A stream is
-- followed, upwards or downwards, from its fourth read on.
--
-- What lies ahead is offered for as far as the stream's window: as much as has been
-- read of it, so that it doubles with each window that is used, and about half of what
-- is fetched for a stream that ends is waste at most; a skip halves it.  It is offered
-- a quarter of the window at a time; the stream that was read last comes first.  Holes
-- are left out, until the reader reads in one.
--
-- @module scan.streams

local holes = require "scan.holes"

local M = {}

local Streams = {}
local META = { __index = Streams }

-- More than the readers of a busy disk.
local STREAMS = 64
-- Two reads that touch may be a chance; a window begins with what was read.
local FOLLOW_READS = 4
-- A skip, in lengths of the read behind it.
local SKIP_READS = 4
-- What layers that keep data keep it in, often; a smaller piece is hardly cheaper.
local UNIT_BYTES = 65536

--- Make one.
-- @tparam table disk whose reads they are
-- @tparam integer window most bytes ahead of a reader
-- @treturn table generator
function M.new (disk, window)
  return setmetatable ({
    disk = disk, window = window, list = {}, at = {}, turn = 0,
    unit = math.min (UNIT_BYTES, disk.block),
  }, META)
end

-- Where a stream's next read begins (or ends, as a number below 0) is where it is
-- looked for.
local function set_place (streams, stream, value, old)
  local at = streams.at
  for _, key in ipairs { stream.offset + stream.count, -stream.offset } do
    if at[key] == old then at[key] = value end
  end
end

-- A stream in which this is a skip upwards, or nil.
local function find_skipped (streams, offset, count)
  for _, stream in ipairs (streams.list) do
    if stream.is_up and stream.ready then
      local skip = offset - stream.offset - stream.count
      if skip > 0 and (skip <= SKIP_READS * count or offset < stream.ready) then
        return stream
      end
    end
  end
  return nil
end

local function replace_oldest (streams)
  local list, oldest = streams.list, 1
  if #list < STREAMS then
    oldest = #list + 1
  else
    for i, stream in ipairs (list) do
      -- One that is followed stays for longer than one that is not.
      local other = list[oldest]
      if (stream.ready and 1 or 0) < (other.ready and 1 or 0)
         or (not stream.ready) == (not other.ready) and stream.turn < other.turn then
        oldest = i
      end
    end
    set_place (streams, list[oldest], nil, list[oldest])
  end
  list[oldest] = { reads = 0, run = 0 }
  return list[oldest]
end

--- A client read.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam string met "hit", "late" or "miss"
-- @treturn boolean whether it continues a stream
function Streams:note (offset, count, met)
  self.turn = self.turn + 1
  local up, down = self.at[offset], self.at[-(offset + count)]
  local stream = up or down
  local is_up = up ~= nil
  if not stream then
    stream = find_skipped (self, offset, count)
    is_up = true
    if stream then stream.run = stream.run // 2 end
  end
  local continues = stream ~= nil
  if stream then
    set_place (self, stream, nil, stream)
    if stream.is_up ~= is_up then stream.reads, stream.ready = 1, nil end
  else
    stream = replace_oldest (self)
  end

  stream.is_up, stream.offset, stream.count = is_up, offset, count
  stream.reads, stream.turn = stream.reads + 1, self.turn
  stream.run = math.min (stream.run + count, self.window)
  set_place (self, stream, stream, nil)
  if stream.reads >= FOLLOW_READS then
    local position = is_up and offset + count or offset
    local ahead = stream.ready and (stream.ready - position) * (is_up and 1 or -1)
    if ahead and ahead > 0 and met == "miss" then
      -- What was left out ahead of it is wanted after all.
      stream.reads_holes, ahead = true, 0
    end
    if not ahead or ahead <= 0 then stream.ready, stream.low = position, nil end
    self.position = position
  end
  return continues
end

-- What there is to fetch between two places, the first part of it.
local function data_in (streams, stream, from, to)
  if stream.reads_holes then return streams.disk:missing (from, to) end
  return holes.missing_data (streams.disk, from, to)
end

-- Ahead of a stream that goes up.
local function next_up (streams, stream, window, piece)
  local size = streams.disk.size
  local stop = stream.offset + stream.count
  local limit = stop + math.min (window, size - stop)
  local left = limit - stream.ready
  if left <= 0 or left < window // 4 and stream.ready > stop and limit < size then
    return nil
  end
  -- End on a multiple, so that what caches in units is asked for whole ones.
  local aligned = limit - limit % streams.unit
  if limit < size and aligned > stream.ready then limit = aligned end
  local offset, count = data_in (streams, stream, stream.ready, limit)
  if offset then return offset, math.min (count, piece) end
  stream.ready = limit
  return nil
end

-- Ahead of a stream that goes down, each piece from its low end up.
local function next_down (streams, stream, window, piece)
  local limit = math.max (0, stream.offset - window)
  while stream.ready > limit do
    if not stream.low then
      if stream.ready < stream.offset and stream.ready - limit < window // 4 then
        return nil
      end
      stream.bottom = math.max (limit, stream.ready - piece)
      stream.low = stream.bottom
    end
    local offset, count = data_in (streams, stream, stream.low, stream.ready)
    if offset then return offset, count end
    stream.ready, stream.low = stream.bottom, nil
  end
  return nil
end

--- What was offered is being fetched.
function Streams:took (offset, count)
  local stream = self.offers
  if stream.is_up then
    stream.ready = offset + count
  else
    stream.low = offset + count
  end
end

--- The next range that a stream will read.
-- @treturn integer|nil offset in bytes, nil if there is none now
-- @treturn integer count in bytes
function Streams:next ()
  local live = {}
  for _, stream in ipairs (self.list) do
    if stream.ready then live[#live + 1] = stream end
  end
  table.sort (live, function (a, b) return a.turn > b.turn end)
  for _, stream in ipairs (live) do
    local window = math.max (self.unit, stream.run)
    local piece = math.min (math.max (self.unit, window // 4), self.disk.block)
    local go_on = stream.is_up and next_up or next_down
    local offset, count = go_on (self, stream, window, piece)
    if offset then
      self.offers = stream
      return offset, count
    end
  end
  return nil
end

return M
