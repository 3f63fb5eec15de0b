-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What of an export is there: the map behind `disk:missing`, and what a read met.
--
-- The filter has one for each export; here each world has one, for all its scans.
-- It is kept in units of 512 bytes, in a set that is bounded (scan.blockmap): parts
-- of a unit are left out, and over the bound things are forgotten.
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

-- Is all of a range in the set?
local function has_all (known, offset, count)
  local unit = known.set:next_missing (offset // UNIT_BYTES)
  return not unit or unit * UNIT_BYTES >= offset + count
end

--- A client read begins.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @treturn string "hit", "late" or "miss", as `disk:reads` tells it
function Known:begin_read (offset, count)
  local met = "miss"
  if has_all (self, offset, count) then
    met = "hit"
    for _, range in pairs (self.in_flight) do
      if offset < range[1] + range[2] and range[1] < offset + count then met = "late" end
    end
  end
  self.set:add (inside (self, offset, count))
  return met
end

--- A prefetch begins.
function Known:begin_prefetch (offset, count)
  self.set:add (inside (self, offset, count))
  table.insert (self.in_flight, { offset, count })
end

--- A prefetch has ended, well or not.
function Known:end_prefetch (offset, count, ok)
  for i, range in ipairs (self.in_flight) do
    if range[1] == offset and range[2] == count then
      table.remove (self.in_flight, i)
      break
    end
  end
  if not ok then self.set:remove_range (inside (self, offset, count)) end
end

--- The first range that is not there, see `disk:missing`.
-- @tparam integer from in bytes
-- @tparam integer to in bytes, past the last
-- @treturn integer|nil offset, nil if all is there
-- @treturn integer count
function Known:missing (from, to)
  local unit = self.set:next_missing (from // UNIT_BYTES)
  if not unit or unit * UNIT_BYTES >= to then return nil end
  local offset = math.max (from, unit * UNIT_BYTES)
  if to - offset > LOOK_BYTES then to = offset + LOOK_BYTES end
  local last = (to - 1) // UNIT_BYTES + 1
  local added = self.set:next_added (unit, last)
  local stop = added < last and added * UNIT_BYTES or to
  return offset, stop - offset
end

return M
