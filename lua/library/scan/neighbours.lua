-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what lies around lone reads.
--
-- A program that reads a little here will read more near by: the MiB in which a read
-- was is offered, from the read up and then what is before it.  The newest read comes
-- first.  Holes are left out.
--
-- @module scan.neighbours

local generators = require "scan.generators"

local M = {}

local Neighbours = {}

-- Of 256K to 64M the best, by a little, for guests that boot.
local NEAR_BYTES = 1 << 20
-- So many reads are looked back at.  What is around those before them is for scan.rest.
local READS = 32

--- Make one.
-- @tparam table disk
-- @treturn table generator
function M.new (disk)
  return setmetatable ({ disk = disk, ranges = {} }, { __index = Neighbours })
end

--- A client read.
function Neighbours:note (offset)
  local near = generators.widen (self.disk, offset, 1, NEAR_BYTES)
  table.move (self.ranges, 1, 2 * READS - 2, 3)
  self.ranges[1] = { at = offset, stop = near.stop }
  self.ranges[2] = { at = near.at, stop = offset }
end

--- The next range near a read.
function Neighbours:next (most)
  return generators.take_first (self.disk, self.ranges, most)
end

return M
