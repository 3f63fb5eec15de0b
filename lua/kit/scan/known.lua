-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What of an export is there: the map behind `disk:missing`, and what a read met.
--
-- The filter has one for each export; here each world has one, for all its scans.
-- It is kept in units of 512 bytes, in a set that is bounded (scan.blockmap): parts
-- of a unit are left out, and over the bound things are forgotten.  What is in flight is
-- kept apart, so that a prefetch that fails takes nothing away from what was there.
--
-- @module scan.known

local blockmap = require "scan.blockmap"

local M = {}

local Known = {}
Known.__index = Known

local UNIT_BYTES = 512

-- How far `missing` looks for the end of what is missing.
local LOOK_BYTES = 4 * 1024 * 1024

--- A map of a disk of which nothing is known.
-- @tparam integer size of the disk in bytes
-- @treturn table known
function M.new (size)
  local units = math.max (1, (size - 1) // UNIT_BYTES + 1)
  return setmetatable ({
    size = size, units = units, set = blockmap.new (units), in_flight = {},
  }, Known)
end

-- The units that lie in a range as a whole; the disk's last may be short.
local function inside (known, offset, count)
  local stop = offset + count
  return (offset + UNIT_BYTES - 1) // UNIT_BYTES,
    stop >= known.size and known.units or stop // UNIT_BYTES
end

--- A client read begins.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @treturn string "hit", "late" or "miss", as `disk:reads` tells it
function Known:begin_read (offset, count)
  local unit = self.set:next_missing (offset // UNIT_BYTES)
  local met = (not unit or unit * UNIT_BYTES >= offset + count) and "hit"
    or not self:missing (offset, offset + count) and "late" or "miss"
  self.set:add (inside (self, offset, count))
  return met
end

--- A prefetch begins.
function Known:begin_prefetch (offset, count)
  local first, stop = inside (self, offset, count)
  table.insert (self.in_flight, { offset, count, first = first, stop = stop })
end

--- A prefetch has ended, well or not.
function Known:end_prefetch (offset, count, ok)
  for i, range in ipairs (self.in_flight) do
    if range[1] == offset and range[2] == count then
      table.remove (self.in_flight, i)
      break
    end
  end
  if ok then self.set:add (inside (self, offset, count)) end
end

-- The first unit at or after this one that is neither in the set nor in flight.
local function next_missing (known, unit)
  local from
  repeat
    from = unit
    unit = known.set:next_missing (unit)
    for _, range in ipairs (known.in_flight) do
      if unit and range.first <= unit and unit < range.stop then unit = range.stop end
    end
  until not unit or unit == from
  return unit
end

--- The first range that is not there, see `disk:missing`.
-- @tparam integer from in bytes
-- @tparam integer to in bytes, past the last
-- @treturn integer|nil offset, nil if all is there
-- @treturn integer count
function Known:missing (from, to)
  local unit = next_missing (self, from // UNIT_BYTES)
  if not unit or unit * UNIT_BYTES >= to then return nil end
  local offset = math.max (from, unit * UNIT_BYTES)
  if to - offset > LOOK_BYTES then to = offset + LOOK_BYTES end
  local last = (to - 1) // UNIT_BYTES + 1
  local added = self.set:next_added (unit, last)
  for _, range in ipairs (self.in_flight) do
    -- One of less than a unit is nowhere.
    if range.first < range.stop and unit < range.first then
      added = math.min (added, range.first)
    end
  end
  local stop = added < last and added * UNIT_BYTES or to
  return offset, stop - offset
end

return M
