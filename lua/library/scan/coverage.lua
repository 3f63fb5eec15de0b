-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What of a disk has been read or fetched, and where its holes are.
--
-- Kept in units of 64K (or a block, if that is less), in a few sets of units, see
-- lua/library/scan/blockmap.lua.  A unit is *done* if it was read or fetched whole, or is
-- known to be a hole; a unit of which a part was read is not done, but it is
-- *touched*: a layer that keeps what is read in units may have it.
--
-- Memory is bounded, by 5 MB: where the disk is huge and reads are scattered over
-- it, things may be forgotten, and be fetched twice.
--
-- Offsets and counts are bytes; ranges go from `offset` to before `stop`.
--
-- @module scan.coverage

local blockmap = require "scan.blockmap"

local M = {}

local Coverage = {}
local META = { __index = Coverage }

local UNIT_BYTES = 65536
-- The smaller sets' share of memory.
local WORDS = blockmap.WORDS // 4

--- Make one, of a disk of which nothing is done.
-- @tparam table disk `size` and `block` are used
-- @treturn table coverage; `unit` is bytes of a unit
function M.new (disk)
  local unit = math.min (UNIT_BYTES, disk.block)
  local units = (disk.size - 1) // unit + 1
  return setmetatable ({
    unit = unit, units = units, size = disk.size, block = disk.block,
    done = blockmap.new (units),
    touched = blockmap.new (units, WORDS),
    holes = blockmap.new (units, WORDS),
    forgetful = false,      -- something done was forgotten
  }, META)
end

-- The units that a range covers whole; the disk's last may be short.
local function whole_units (coverage, offset, stop)
  local unit = coverage.unit
  return (offset + unit - 1) // unit,
         stop >= coverage.size and coverage.units or stop // unit
end

--- A range was read or fetched.
-- @tparam integer offset
-- @tparam integer stop
function Coverage:add (offset, stop)
  local first, last = whole_units (self, offset, stop)
  if not self.done:add (first, last) then self.forgetful = true end
end

--- A range was read by a client.
-- @tparam integer offset
-- @tparam integer stop
function Coverage:add_read (offset, stop)
  self:add (offset, stop)
  local unit = self.unit
  if offset % unit ~= 0 or stop - offset < unit then self.touched:add (offset // unit) end
  if stop % unit ~= 0 then self.touched:add (stop // unit) end
end

--- A range is a hole, and need not be fetched.
-- @tparam integer offset
-- @tparam integer stop
function Coverage:add_hole (offset, stop)
  self:add (offset, stop)
  self.holes:add (whole_units (self, offset, stop))
end

--- Holes in a range are to be fetched after all.  Takes time in proportion to it.
-- @tparam integer offset
-- @tparam integer stop
function Coverage:want_holes (offset, stop)
  for unit = offset // self.unit, (stop - 1) // self.unit do
    if self.holes:has (unit) then
      self.holes:remove (unit)
      self.done:remove (unit)
    end
  end
end

--- Is this known to be in a hole that need not be fetched?
-- @tparam integer offset
-- @treturn boolean
function Coverage:is_hole (offset)
  return self.holes:has (offset // self.unit)
end

--- Is the unit done in which this is?
-- @tparam integer offset
-- @treturn boolean
function Coverage:is_done (offset)
  return self.done:has (offset // self.unit)
end

--- Is a read of this likely to be quick: is it in a unit that is touched, or done and
-- no hole?
-- @tparam integer offset
-- @treturn boolean
function Coverage:is_near (offset)
  local unit = offset // self.unit
  return self.touched:has (unit)
         or self.done:has (unit) and not self.holes:has (unit)
end

-- The first unit from this one on that is neither done nor touched, or nil; any
-- unit from `stop` on will do.
local function next_untouched (coverage, unit, stop)
  local was
  repeat
    was = unit
    unit = coverage.done:next_missing (unit)
    if unit and unit < stop then unit = coverage.touched:next_missing (unit) end
  until unit == was or not unit or unit >= stop
  return unit
end

--- The first range that is not done, as far as it goes within its block.
-- @tparam integer offset where to begin to look
-- @tparam integer stop and where to end
-- @tparam[opt] boolean untouched nor touched
-- @treturn integer|nil offset, nil if there is none
-- @treturn integer stop
function Coverage:missing (offset, stop, untouched)
  local unit, last = self.unit, (stop - 1) // self.unit + 1
  local at
  if untouched then
    at = next_untouched (self, offset // unit, last)
  else
    at = self.done:next_missing (offset // unit)
  end
  if not at or at * unit >= stop then return nil end
  local from = math.max (offset, at * unit)
  local in_block = self.block - from % self.block
  if stop - from > in_block then
    stop = from + in_block
    last = (stop - 1) // unit + 1
  end
  local added = self.done:next_added (at, last)
  if untouched then added = self.touched:next_added (at, added) end
  return from, added < last and added * unit or stop
end

return M
