-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A set of bytes, kept as ranges that do not touch.
--
-- Ranges are half open: [first, after).  What the simulator's cache holds.
--
-- @module scan.ranges

local M = {}

local Ranges = {}
Ranges.__index = Ranges

-- The first range that ends at or behind a place; one past the last if none.
local function search (list, place)
  local low, high = 1, #list + 1
  while low < high do
    local middle = (low + high) // 2
    if list[middle].after < place then low = middle + 1 else high = middle end
  end
  return low
end

--- Put in [first, after).
function Ranges:add (first, after)
  if first >= after then return end
  local list = self.list
  local at = search (list, first)
  local last = at
  while list[last] and list[last].first <= after do
    first = math.min (first, list[last].first)
    after = math.max (after, list[last].after)
    last = last + 1
  end
  -- What is new takes the place of the ranges from at up to last.
  if last == at then
    table.insert (list, at, { first = first, after = after })
    return
  end
  list[at] = { first = first, after = after }
  if last - at > 1 then
    table.move (list, last, #list + last - at - 1, at + 1)
  end
end

--- What of [first, after) is not in the set.
-- @treturn table list of { first =, after = }, in order
function Ranges:missing (first, after)
  local gaps, list = {}, self.list
  local i = search (list, first)
  while first < after do
    local range = list[i]
    local until_ = range and math.min (range.first, after) or after
    if first < until_ then gaps[#gaps + 1] = { first = first, after = until_ } end
    if not range then break end
    first, i = math.max (first, range.after), i + 1
  end
  return gaps
end

--- How many bytes of this set are not in another.
-- @tparam table other a set
function Ranges:bytes_without (other)
  local bytes = 0
  for _, range in ipairs (self.list) do
    for _, gap in ipairs (other:missing (range.first, range.after)) do
      bytes = bytes + gap.after - gap.first
    end
  end
  return bytes
end

--- How many bytes are in the set.
function Ranges:bytes ()
  local bytes = 0
  for _, range in ipairs (self.list) do bytes = bytes + range.after - range.first end
  return bytes
end

--- An empty set.
function M.new ()
  return setmetatable ({ list = {} }, Ranges)
end

return M
