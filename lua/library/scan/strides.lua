-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): what readers that go in steps will read next.
--
-- A read that is one step of a walk further, or up to four, continues it.  Any other
-- goes to the nearest walk that has no step yet, within 64 MiB, or begins one, in the
-- place of the one that was read least lately.  A step is what more than half of the
-- last four went by.
--
-- One step ahead is offered at first, as many bytes as the last read had, and twice as
-- many steps at each read that is where it was expected; those that run into one
-- another as one range.  Holes are left out, until the reader reads in one.
--
-- @module scan.strides

local holes = require "scan.holes"

local M = {}

local Strides = {}
local META = { __index = Strides }

-- Each is looked at for each lone read.
local WALKS = 16
local DELTAS = 4
local SKIP_STEPS = 4
local REACH_BYTES = 64 << 20

--- Make one.
-- @tparam table disk whose reads they are
-- @tparam[opt] integer depth most steps ahead, 32 if left out
-- @treturn table generator
function M.new (disk, depth)
  return setmetatable ({
    disk = disk, depth = depth or 32, list = {}, turn = 0,
  }, META)
end

-- The walk that a read continues, or may belong to.
local function find (strides, offset)
  local nearest, nearest_bytes = nil, REACH_BYTES
  for _, walk in ipairs (strides.list) do
    local ahead = offset - walk.offset
    if walk.step then
      if ahead % walk.step == 0 and ahead // walk.step > 0
         and ahead // walk.step <= SKIP_STEPS then
        return walk
      end
    elseif math.abs (ahead) < nearest_bytes then
      nearest, nearest_bytes = walk, math.abs (ahead)
    end
  end
  return nearest
end

local function replace_oldest (strides)
  local list, oldest = strides.list, 1
  if #list < WALKS then
    oldest = #list + 1
  else
    for i, walk in ipairs (list) do
      if walk.turn < list[oldest].turn then oldest = i end
    end
  end
  list[oldest] = { deltas = {} }
  return list[oldest]
end

-- What more than half of the deltas are, or nil.
local function majority (deltas)
  for i = 1, #deltas // 2 do
    local times = 0
    for _, delta in ipairs (deltas) do
      if delta == deltas[i] then times = times + 1 end
    end
    if times > DELTAS // 2 and deltas[i] ~= 0 then return deltas[i] end
  end
  return nil
end

--- A client read.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam string met "hit", "late" or "miss"
-- @treturn boolean whether it is a step that was expected
function Strides:note (offset, count, met)
  self.turn = self.turn + 1
  local walk = find (self, offset)
  local continues = walk ~= nil and walk.step ~= nil
  if continues then
    if met == "miss" and walk.asked and (walk.asked - offset) * walk.step >= 0 then
      walk.reads_holes = true
    end
    walk.steps = math.min (2 * walk.steps, self.depth)
  elseif walk then
    local deltas = walk.deltas
    if #deltas == DELTAS then table.remove (deltas, 1) end
    deltas[#deltas + 1] = offset - walk.offset
    walk.step = #deltas == DELTAS and majority (deltas) or nil
    walk.steps = 1
  else
    walk = replace_oldest (self)
  end
  walk.offset, walk.count, walk.turn = offset, count, self.turn
  self.newest = walk
  return continues
end

local function is_wanted (strides, walk, offset, after)
  local disk = strides.disk
  local missing = disk:missing (offset, after)
  return missing and (walk.reads_holes or not holes.is_hole (disk, missing))
end

--- What was offered is being fetched; a walk's `asked` says so.
function Strides:took () end -- luacheck: no self

--- The next steps of the walk that was read last.
-- @treturn integer|nil offset in bytes, nil if there is none now
-- @treturn integer count in bytes
function Strides:next ()
  local disk, walk = self.disk, self.newest
  if not walk or not walk.step then return nil end
  local step, offset = walk.step, walk.offset
  local from, stop
  for _ = 1, walk.steps do
    -- Compared before it is added, so that nothing can overflow.
    if step >= disk.size - offset or -step > offset then break end
    offset = offset + step
    if not walk.asked or (offset - walk.asked) * step > 0 then
      local after = offset + math.min (walk.count, disk.size - offset)
      if is_wanted (self, walk, offset, after) then
        if from and (offset > stop or after < from) then break end
        from, stop = math.min (from or offset, offset), math.max (stop or after, after)
        if stop - from >= disk.block then
          walk.asked = offset
          break
        end
      end
      walk.asked = offset
    end
  end
  if from then return from, stop - from end
  return nil
end

return M
