-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what lies around lone reads.
--
-- A program that reads a little here will read more near by: the MiB in which a read
-- was is offered, from the read up and then what is before it.  The newest read comes
-- first.  Holes are left out.  While hardly any lone read finds that it is there
-- already, nothing is offered.
--
-- @module scan.neighbours

local holes = require "scan.holes"

local M = {}

local Neighbours = {}
local META = { __index = Neighbours }

local NEAR_BYTES = 1 << 20
-- Two for each read.  What is further back is for scan.rest.
local RANGES = 32
-- The share of lone reads that have to find that they are there, a guess to begin with,
-- and of how many reads that is.
local LEAST_SHARE, FIRST_SHARE, READS = 0.1, 0.3, 64

--- Make one.
-- @tparam table disk
-- @treturn table generator
function M.new (disk)
  return setmetatable ({ disk = disk, ranges = {}, share = FIRST_SHARE }, META)
end

--- A client read.
function Neighbours:note (offset, _, met)
  self.share = self.share + ((met == "miss" and 0 or 1) - self.share) / READS
  local ranges, size = self.ranges, self.disk.size
  local near, here = offset - offset % NEAR_BYTES, offset - offset % 65536
  table.insert (ranges, { at = near, stop = here })
  -- In this way it can't overflow on the largest disks.
  table.insert (ranges, { at = here, stop = near + math.min (NEAR_BYTES, size - near) })
  while #ranges > RANGES do table.remove (ranges, 1) end
end

--- The next range near a read.
function Neighbours:next (most)
  local ranges = self.ranges
  if self.share < LEAST_SHARE then return nil end
  while #ranges > 0 do
    local range = ranges[#ranges]
    local offset, count = holes.missing_data (self.disk, range.at, range.stop)
    if offset then
      count = math.min (count, most)
      range.at = offset + count
      return offset, count
    end
    table.remove (ranges)
  end
  return nil
end

return M
