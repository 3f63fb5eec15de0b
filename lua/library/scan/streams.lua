-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what sequential readers will read next.
--
-- A read that begins where one of the last 64 streams ended goes on with it; any other
-- begins a stream.  Readers that go downwards, or leave something out each time, are
-- for scan.strides.
--
-- What lies ahead is offered for as far as the stream's window: as much as has been
-- read of it, so that it doubles with each window that is used, and about half of what
-- is fetched for a stream that ends is waste at most.  The stream that was read last
-- comes first.  Holes are left out, until the reader reads in one.
--
-- @module scan.streams

local holes = require "scan.holes"

local M = {}

local Streams = {}
local META = { __index = Streams }

-- More than the readers of a busy disk.
local STREAMS = 64
-- What layers that keep data keep it in, often; a smaller piece is hardly cheaper.
local UNIT_BYTES = 65536

--- Make one.
-- @tparam table disk whose reads they are
-- @tparam integer window most bytes ahead of a reader
-- @treturn table generator
function M.new (disk, window)
  return setmetatable ({ disk = disk, window = window, list = {} }, META)
end

-- Take the stream that ends at a place out of the list, or make one.
local function take (list, offset)
  for i, stream in ipairs (list) do
    if stream.stop == offset then return table.remove (list, i) end
  end
  list[STREAMS] = nil
  return { window = 0 }
end

--- A client read.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam string met "hit", "late" or "miss"
-- @treturn boolean whether it goes on with a stream
function Streams:note (offset, count, met)
  local stream = take (self.list, offset)
  table.insert (self.list, 1, stream)
  local goes_on = stream.stop ~= nil
  stream.stop = offset + count
  stream.window = math.min (stream.window + count, self.window)
  if goes_on then
    local is_ahead = stream.ahead and stream.ahead > stream.stop
    -- What was left out ahead of it is wanted after all.
    if is_ahead and met == "miss" then stream.reads_holes, is_ahead = true, false end
    if not is_ahead then stream.ahead = stream.stop end
    self.position = stream.stop
  end
  return goes_on
end

-- The next range ahead of a stream, at most so many bytes.
local function next_ahead (disk, stream, most)
  local window = math.max (UNIT_BYTES, stream.window)
  local limit = stream.stop + math.min (window, disk.size - stream.stop)
  -- End on a multiple, so that what caches in units is asked for whole ones.
  if limit < disk.size then limit = limit - limit % UNIT_BYTES end
  limit = math.max (limit, stream.ahead)
  local find = stream.reads_holes and disk.missing or holes.missing_data
  local offset, count = find (disk, stream.ahead, limit)
  if offset then count = math.min (count, most) end
  stream.ahead = offset and offset + count or limit
  return offset, count
end

--- The next range that a stream will read.
function Streams:next (most)
  for _, stream in ipairs (self.list) do
    local offset, count
    if stream.ahead then offset, count = next_ahead (self.disk, stream, most) end
    if offset then return offset, count end
  end
  return nil
end

return M
