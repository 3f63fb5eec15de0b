-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what readers that go in steps will read next,
-- upwards or downwards.
--
-- A walk begins with four reads that are equally far apart, among the last lone ones,
-- and goes on with each that is a step further.  So many steps ahead are offered as it
-- has had, those that touch as one range.  Holes are left out.
--
-- @module scan.strides

local holes = require "scan.holes"

local M = {}

local Strides = {}
local META = { __index = Strides }

-- Walks, and lone reads that one may begin with.
local PLACES = 16
-- Three are equally far apart by chance, now and then.
local BEGIN_READS = 4
-- Most steps ahead, if nothing is said.
local DEPTH = 512

--- Make one.
-- @tparam table disk whose reads they are
-- @tparam[opt] integer depth most steps ahead, 512 if left out
-- @treturn table generator
function M.new (disk, depth)
  return setmetatable ({ disk = disk, depth = depth or DEPTH, walks = {}, lone = {} },
                       META)
end

-- Put something in front of a list of a few.
local function push (list, what)
  table.insert (list, 1, what)
  list[PLACES + 1] = nil
end

-- The step that led here over enough lone reads, or nil.
local function find_step (lone, offset)
  local is_lone = {}
  for _, other in ipairs (lone) do is_lone[other] = true end
  for _, other in ipairs (lone) do
    local step, reads = offset - other, 2
    while reads < BEGIN_READS and is_lone[offset - reads * step] do reads = reads + 1 end
    if step ~= 0 and reads == BEGIN_READS then return step end
  end
  return nil
end

--- A client read.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam string met "hit", "late" or "miss"
-- @treturn boolean whether it is a step that was fetched
function Strides:note (offset, count, met)
  local walk
  for i, other in ipairs (self.walks) do
    if other.offset + other.step == offset then
      walk = table.remove (self.walks, i)
      break
    end
  end
  if not walk then
    local step = find_step (self.lone, offset)
    push (self.lone, offset)
    if not step then return false end
    walk = { step = step, steps = BEGIN_READS - 1, ahead = 0 }
  end
  walk.offset, walk.count = offset, count
  walk.steps = math.min (walk.steps + 1, self.depth)
  walk.ahead = math.max (0, walk.ahead - 1)
  push (self.walks, walk)
  return met ~= "miss"
end

-- The next steps of a walk that touch.
local function next_steps (disk, walk, most)
  local step, from, stop = walk.step, nil, nil
  -- So many are left on the disk; counted in a way that can't overflow.
  local left = step > 0 and (disk.size - 1 - walk.offset) // step or walk.offset // -step
  while walk.ahead < math.min (walk.steps, left) do
    local offset = walk.offset + (walk.ahead + 1) * step
    local after = offset + math.min (walk.count, disk.size - offset)
    if holes.missing_data (disk, offset, after) then
      if from and (offset > stop or after < from or stop - from >= most) then break end
      from, stop = math.min (from or offset, offset), math.max (stop or after, after)
    end
    walk.ahead = walk.ahead + 1
  end
  if from then return from, stop - from end
  return nil
end

--- The next steps, of the walk that was read last first.
function Strides:next (most)
  for _, walk in ipairs (self.walks) do
    local offset, count = next_steps (self.disk, walk, most)
    if offset then return offset, count end
  end
  return nil
end

return M
