-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what lies around lone reads.
--
-- A program that reads a little here will read more near by: the MiB in which a read
-- was is offered, from the read up and then what is before it.  The newest read comes
-- first; the newest 256 are kept.  Holes are left out, unless most of the last lone
-- reads were in holes.  While hardly any lone read finds that it is there already,
-- nothing is offered.
--
-- @module scan.neighbours

local holes = require "scan.holes"

local M = {}

local Neighbours = {}
local META = { __index = Neighbours }

local NEAR_BYTES = 1 << 20
local HINTS = 256
local UNIT_BYTES = 65536
-- Lone reads in holes, more than others, after which holes are fetched.
local HOLE_READS = 4
-- The share of lone reads that have to find that they are there, a guess to begin with,
-- and of how many reads that is.
local LEAST_SHARE, FIRST_SHARE, READS = 0.1, 0.3, 64

--- Make one.
-- @tparam table disk
-- @treturn table generator
function M.new (disk)
  return setmetatable ({ disk = disk, hints = {}, hole_reads = 0, share = FIRST_SHARE },
                       META)
end

--- A client read.
function Neighbours:note (offset, _, met)
  self.share = self.share + ((met == "miss" and 0 or 1) - self.share) / READS
  local disk, hints = self.disk, self.hints
  local is_hole = met == "miss" and offset < disk.size
    and holes.is_hole (disk, offset)
  local reads = self.hole_reads + (is_hole and 1 or -1)
  self.hole_reads = math.max (0, math.min (reads, 2 * HOLE_READS))

  local last = hints[#hints]
  if last and last.offset // NEAR_BYTES == offset // NEAR_BYTES then return end
  if #hints == HINTS then table.remove (hints, 1) end
  hints[#hints + 1] = { offset = offset }
end

--- What was offered is being fetched.
function Neighbours:took (offset, count)
  self.hints[#self.hints].at = offset + count
end

-- What is missing of a hint's range from its place on, as far as it is wanted.
local function missing_from (self, hint, stop)
  if self.hole_reads >= HOLE_READS then return self.disk:missing (hint.at, stop) end
  return holes.missing_data (self.disk, hint.at, stop)
end

--- The next range near a read.
-- @treturn integer|nil offset in bytes, nil if there is none
-- @treturn integer count in bytes
function Neighbours:next ()
  local hints, block = self.hints, self.disk.block
  if self.share < LEAST_SHARE then return nil end
  while #hints > 0 do
    local hint = hints[#hints]
    local first = hint.offset - hint.offset % NEAR_BYTES
    local unit = math.min (UNIT_BYTES, block)
    local here = hint.offset - hint.offset % unit
    hint.at = hint.at or here
    local offset, count
    if not hint.is_below then
      -- In this way it can't overflow on the largest disks.
      local near = math.min (NEAR_BYTES, self.disk.size - first)
      offset, count = missing_from (self, hint, first + near)
      if not offset then hint.at, hint.is_below = first, true end
    end
    if hint.is_below then offset, count = missing_from (self, hint, here) end
    if offset then return offset, math.min (count, block) end
    table.remove (hints)
  end
  return nil
end

return M
