-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A set of units of a disk, small whatever the disk's size.
--
-- One bit a unit, 64 to an integer, in a tree: once all 64 bits of a word are
-- set the word is dropped and one bit in the level above stands for it.  So a
-- run costs next to nothing however long it is, and what costs memory is the
-- number of words that are neither empty nor full.  That number is bounded:
-- over the bound the set forgets what it is told, so a unit may be missing
-- from it but never be in it wrongly.
--
-- Units are numbered from 0.  Ranges are half open.
--
-- @module scan.blockmap

local M = {}

local Map = {}
local META = { __index = Map }

--- Most words kept, if `new` isn't told: about 3 MB when they are all in use.
M.WORDS = 65536

--- Make an empty set.
-- @tparam integer units there are
-- @tparam[opt] integer words most words to keep
-- @treturn table map
function M.new (units, words)
  local levels = { {} }
  local top = units
  while top > 64 do
    levels[#levels + 1] = {}
    top = (top + 63) // 64
  end
  return setmetatable ({ units = units, levels = levels, used = 0,
                         most = words or M.WORDS }, META)
end

-- Set bits of a word of a level, and above for as long as words fill up.
local function set_bits (map, level, index, count)
  local levels = map.levels
  while true do
    local words = levels[level]
    local at = index >> 6
    local word = words[at]
    if word == nil then
      if map.used >= map.most then return false end
      map.used = map.used + 1
      word = 0
    end
    local bits = count == 64 and -1 or (1 << count) - 1
    word = word | bits << (index & 63)
    if word ~= -1 or level == #levels then
      words[at] = word
      return true
    end
    words[at] = nil
    map.used = map.used - 1
    level, index, count = level + 1, at, 1
  end
end

-- The level at which a unit is in the set, and its index there; or nil.
local function find (map, unit)
  local index = unit
  for level, words in ipairs (map.levels) do
    local word = words[index >> 6]
    if word and word >> (index & 63) & 1 == 1 then return level, index end
    index = index >> 6
  end
  return nil
end

-- Drop the words below one bit of a level, which is about to stand for them.
local function drop_below (map, level, index)
  local first, last = index, index
  for below = level - 1, 1, -1 do
    local words = map.levels[below]
    if last - first < map.used then
      for at = first, last do
        if words[at] then
          words[at] = nil
          map.used = map.used - 1
        end
      end
    else
      for at in pairs (words) do
        if at >= first and at <= last then
          words[at] = nil
          map.used = map.used - 1
        end
      end
    end
    first, last = first << 6, last << 6 | 63
  end
end

--- Put the units of a range into the set.
-- @tparam integer first
-- @tparam[opt] integer stop one past the last; `first` alone if left out
-- @treturn boolean false if some of them had to be forgotten
function Map:add (first, stop)
  stop = math.min (stop or first + 1, self.units)
  local kept = true
  while first < stop do
    -- The largest aligned piece that begins here and is inside the range: a bit of
    -- one of the levels above, or several of the lowest.
    local level, index, length = 1, first, 1
    while level < #self.levels and index & 63 == 0
          and stop - first >= length << 6 do
      level, index, length = level + 1, index >> 6, length << 6
    end
    local found = find (self, first) or 0
    if level == 1 then
      length = math.min (stop - first, 64 - (first & 63))
      if found <= 1 then kept = set_bits (self, 1, first, length) and kept end
    elseif found < level then
      drop_below (self, level, index)
      kept = set_bits (self, level, index, 1) and kept
    end
    first = first + length
  end
  return kept
end

-- How many of the lowest bits are zero; `word` is not 0.
local function zeroes (word)
  local n = 0
  for _, bits in ipairs { 32, 16, 8, 4, 2, 1 } do
    if word & (1 << bits) - 1 == 0 then
      word, n = word >> bits, n + bits
    end
  end
  return n
end

--- The first unit at or after this one that is not in the set.
-- @tparam integer unit
-- @treturn integer|nil nil if there is none
function Map:next_missing (unit)
  while unit < self.units do
    local level, index = find (self, unit)
    if not level then return unit end
    local shift = 6 * (level - 1)
    local rest = ~self.levels[level][index >> 6] >> (index & 63)
    index = rest == 0 and (index | 63) + 1 or index + zeroes (rest)
    unit = index << shift
  end
  return nil
end

--- The first unit at or after this one that is in the set, looking no further
-- than `stop`.
-- @tparam integer unit
-- @tparam integer stop one past the last to look at
-- @treturn integer `stop` if there is none before it
function Map:next_added (unit, stop)
  while unit < stop do
    if find (self, unit) then return unit end
    local word = self.levels[1][unit >> 6]
    local rest = word and word >> (unit & 63) or 0
    unit = rest == 0 and (unit | 63) + 1 or unit + zeroes (rest)
  end
  return stop
end

return M
