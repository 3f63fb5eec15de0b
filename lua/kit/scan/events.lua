-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Things that will happen, taken out in order of time.
--
-- A binary heap.  Of two events at the same time the one put in first comes out
-- first, so that a run is the same every time.
--
-- @module scan.events

local M = {}

local Events = {}
Events.__index = Events

local function before (a, b)
  return a.seconds < b.seconds or a.seconds == b.seconds and a.turn < b.turn
end

--- Put in an event.
-- @tparam number seconds when it happens
-- @tparam function action what happens; not called by this module
function Events:add (seconds, action)
  self.turn = self.turn + 1
  local heap, event = self.heap, { seconds = seconds, action = action, turn = self.turn }
  local i = #heap + 1
  while i > 1 and before (event, heap[i // 2]) do
    heap[i], i = heap[i // 2], i // 2
  end
  heap[i] = event
end

--- When the next event happens.
-- @treturn number|nil seconds, nil if nothing is left
function Events:next_seconds ()
  local first = self.heap[1]
  return first and first.seconds
end

--- Take out the next event.
-- @treturn function|nil its action, nil if nothing is left
-- @treturn number its time in seconds
function Events:take ()
  local heap = self.heap
  local first, last = heap[1], heap[#heap]
  if not first then return nil end
  heap[#heap] = nil
  local count, i = #heap, 1
  while count > 0 do
    local child = 2 * i
    if child < count and before (heap[child + 1], heap[child]) then child = child + 1 end
    if child > count or not before (heap[child], last) then
      heap[i] = last
      break
    end
    heap[i], i = heap[child], child
  end
  return first.action, first.seconds
end

--- An empty list of events.
function M.new ()
  return setmetatable ({ heap = {}, turn = 0 }, Events)
end

return M
