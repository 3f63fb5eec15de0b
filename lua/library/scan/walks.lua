-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what readers that go on will read next.
--
-- A *walk* goes in steps, upwards or downwards: it begins with a read that is the last
-- of four equally far apart, the others being among the last lone ones, and goes on with
-- each read that is a step further.  A *stream* has no gaps: it begins with any read, and
-- goes on with each that begins where it ends.  It is a walk in steps of one byte.
--
-- So many steps ahead are offered as have been read, those that touch as one range:
-- about half of what is fetched for a walk that ends is waste at most.  The walk that
-- was read last comes first.  Holes are left out, until a stream is read in one.
--
-- @module scan.walks

local generators = require "scan.generators"

local M = {}

local Walks = {}

-- Those that were read last: 64 readers, and the lone reads between theirs.
local WALKS = 128
-- Among so many of them a step is looked for; of many, some are equally far apart by
-- chance, as of three they are.
local LONE = 16
-- Most bytes ahead, if nothing is said: what a fast and far line carries in a second or
-- so.  As many units are most steps ahead.
local WINDOW_BYTES = 32 << 20

--- Make one.
-- @tparam table disk whose reads they are
-- @tparam[opt] integer window most bytes ahead of a stream, 32M if left out
-- @tparam[opt] integer depth most steps ahead of another walk, 512 if left out
-- @treturn table generator; its `position` is where a stream was read last
function M.new (disk, window, depth)
  depth = depth or WINDOW_BYTES // generators.UNIT_BYTES
  return setmetatable ({ disk = disk, list = {}, window = window or WINDOW_BYTES,
                         depth = depth }, { __index = Walks })
end

-- The smallest step that led here over three lone reads, or nil.
local function find_step (list, offset)
  local is_lone, found = {}, nil
  for i = 1, math.min (#list, LONE) do
    local walk = list[i]
    if not walk.goes_on then is_lone[walk.offset + 1 - walk.steps] = true end
  end
  for other in pairs (is_lone) do
    local step = offset - other
    if step ~= 0 and is_lone[other - step] and is_lone[other - 2 * step]
       and (not found or math.abs (step) < math.abs (found)) then
      found = step
    end
  end
  return found
end

-- Take the walk that is due at a place out of the list, a stream rather than another.
local function take_walk (list, offset)
  local at
  for i, walk in ipairs (list) do
    local is_due = walk.offset + walk.step == offset
    if is_due and (not at or walk.step == 1) then at = i end
  end
  return at and table.remove (list, at)
end

local function new_walk (step, width, steps)
  return { step = step, width = width, steps = steps, ahead = 0, at = 0, stop = 0 }
end

-- A read has gone on with a walk, by some steps; or begins one, of no step so far.
local function go_on (list, walk, offset, steps, most)
  walk.goes_on = walk.steps > 0
  walk.offset = offset + steps - 1
  walk.steps = math.min (walk.steps + steps, most)
  walk.ahead = math.max (0, walk.ahead - steps)
  table.insert (list, 1, walk)
  list[WALKS + 1] = nil
end

--- A client read.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam string met "hit", "late" or "miss"
-- @treturn boolean whether it goes on with a stream, or was fetched for another walk
function Walks:note (offset, count, met)
  local list = self.list
  local walk = take_walk (list, offset)
  if walk and walk.step == 1 then
    go_on (list, walk, offset, count, self.window)
    -- What was left out ahead of it is wanted after all.
    if met == "miss" and walk.ahead > 0 then walk.holes, walk.ahead = true, 0 end
    self.position = offset + count
    return true
  end
  local step = not walk and find_step (list, offset)
  if step then walk = new_walk (step, count, 3) end
  if walk then go_on (list, walk, offset, 1, self.depth) end
  -- A stream may begin here, too.
  go_on (list, new_walk (1, 1, 0), offset, count, self.window)
  return walk ~= nil and met ~= "miss"
end

-- Make the next steps ahead that touch the walk's range; false if there are none.
local function look_ahead (walk, disk, most)
  local step, here, steps = walk.step, walk.offset, walk.steps
  if step == 1 then steps = math.max (steps, generators.UNIT_BYTES) end
  -- So many are left on the disk; counted in a way that can't overflow.
  local left = step > 0 and (disk.size - 1 - here) // step or here // -step
  if step == 1 and steps < left then
    -- It ends on a multiple, so that whole units are asked for.
    steps = steps - (here + 1 + steps) % generators.UNIT_BYTES
  end
  steps = math.min (steps, left) - walk.ahead
  if steps <= 0 then return false end
  local touch = math.abs (step) <= walk.width and most // math.abs (step) or 1
  steps = math.min (steps, math.max (1, touch))
  local first = here + (walk.ahead + 1) * step
  local last = first + (steps - 1) * step
  walk.ahead = walk.ahead + steps
  walk.at = math.min (first, last)
  walk.stop = math.max (first, last)
  walk.stop = walk.stop + math.min (walk.width, disk.size - walk.stop)
  return true
end

--- The next range that will be read.
function Walks:next (most)
  for _, walk in ipairs (self.list) do
    while walk.goes_on do
      local offset, count = generators.take (self.disk, walk, most)
      if offset or count then return offset, count end
      if not look_ahead (walk, self.disk, most) then break end
    end
  end
  return nil
end

return M
