-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A set of bytes, kept as ranges that do not touch.
--
-- Ranges are half open: [first, after).  What the simulator's cache holds.
--
-- They are in order, in chunks of a bounded length; so finding a place takes two
-- searches by halves, and putting a range there moves a chunk at most, however many
-- ranges there are.
--
-- @module scan.ranges

local M = {}

local Ranges = {}
Ranges.__index = Ranges

local CHUNK_MOST = 256

-- The first place in a list, in order, for which `is_before` is false.
local function search (list, is_before, place)
  local low, high = 1, #list + 1
  while low < high do
    local middle = (low + high) // 2
    if is_before (list[middle], place) then low = middle + 1 else high = middle end
  end
  return low
end

local function range_is_before (range, place)
  return range.after < place
end

-- Only the chunk of an empty set is empty.
local function chunk_is_before (chunk, place)
  local last = chunk[#chunk]
  return last and last.after < place
end

-- The first range that ends at or behind a place: its chunk's number, and its place
-- there.  Behind the last range, a place in the last chunk.
local function find (set, place)
  local at = math.min (search (set.chunks, chunk_is_before, place), #set.chunks)
  return at, search (set.chunks[at], range_is_before, place)
end

-- The next range after a place of `find`, and its place.
local function next_of (set, at, i)
  if set.chunks[at][i + 1] then return set.chunks[at][i + 1], at, i + 1 end
  local chunk = set.chunks[at + 1]
  if chunk then return chunk[1], at + 1, 1 end
end

local function remove (set, at, i)
  local chunk = set.chunks[at]
  set.total = set.total - (chunk[i].after - chunk[i].first)
  table.remove (chunk, i)
  if #chunk == 0 and #set.chunks > 1 then table.remove (set.chunks, at) end
end

local function insert (set, at, i, range)
  local chunk = set.chunks[at]
  table.insert (chunk, i, range)
  set.total = set.total + range.after - range.first
  if #chunk > CHUNK_MOST then
    local half = #chunk // 2
    table.insert (set.chunks, at + 1, table.move (chunk, half + 1, #chunk, 1, {}))
    for k = #chunk, half + 1, -1 do chunk[k] = nil end
  end
end

--- Put in [first, after).
function Ranges:add (first, after)
  if first >= after then return end
  local at, i = find (self, first)
  local range = self.chunks[at][i]
  -- What it touches becomes a part of it.
  while range and range.first <= after do
    first, after = math.min (first, range.first), math.max (after, range.after)
    remove (self, at, i)
    at, i = find (self, first)
    range = self.chunks[at][i]
  end
  insert (self, at, i, { first = first, after = after })
end

--- What of [first, after) is not in the set.
-- @treturn table list of { first =, after = }, in order
function Ranges:missing (first, after)
  local gaps = {}
  local at, i = find (self, first)
  local range = self.chunks[at][i]
  while first < after do
    local until_ = range and math.min (range.first, after) or after
    if first < until_ then gaps[#gaps + 1] = { first = first, after = until_ } end
    if not range then break end
    first = math.max (first, range.after)
    range, at, i = next_of (self, at, i)
  end
  return gaps
end

--- How many bytes of this set are not in another.
-- @tparam table other a set
function Ranges:bytes_without (other)
  local bytes = 0
  for _, chunk in ipairs (self.chunks) do
    for _, range in ipairs (chunk) do
      for _, gap in ipairs (other:missing (range.first, range.after)) do
        bytes = bytes + gap.after - gap.first
      end
    end
  end
  return bytes
end

--- How many bytes are in the set.
function Ranges:bytes ()
  return self.total
end

--- An empty set.
function M.new ()
  return setmetatable ({ chunks = { {} }, total = 0 }, Ranges)
end

return M
