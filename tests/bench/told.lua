-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- What finding out costs: a part of the grid (grid.lua) with a pace that is told from
-- the start what the line is, and looks for nothing.  Only a simulation can have that.
--
--     lua5.4 tests/bench/told.lua [PART OF PARTS]   lines as of grid.lua, for --table
--
-- The others of each cell have the usual pace.  Run from the top of the source.

local grid = dofile ("tests/bench/grid.lua")
local pace = require "scan.pace"

-- As in lua/kit/scan/pace.lua.
local FULL, GAIN, PIECE_TIMES, CREDIT_TRIPS = 0.8, 1.1, 2, 5

-- Nothing that has ended so far.
local function no_sum ()
  return { in_flight = 0, ours = 0, trip = 0, least = math.huge, nr = 0 }
end

-- The window and the pieces that a search should end with.
local function tell (p, cell)
  local rate = cell.bandwidth > 0 and cell.bandwidth * 125000 or math.huge
  local smallest = math.min (p.largest, pace.SMALLEST)
  local slots = math.min (cell.slots, cell.threads)
  p.least, p.serial = cell.latency, smallest / rate
  local function alone (piece) return p.least + p.serial * piece / smallest end
  local function carried (piece) return math.min (rate, slots * piece / alone (piece)) end
  local piece = smallest
  while p.serial <= p.least and carried (piece) < FULL * rate and 2 * piece <= p.largest
        and alone (2 * piece) <= PIECE_TIMES * alone (smallest) do
    piece = 2 * piece
  end
  p.bandwidth, p.piece = carried (piece), piece
  p.is_by_requests = p.serial <= p.least
    and (piece > smallest or p.bandwidth < FULL * rate)
  p.window = p.serial > p.least and piece or GAIN * p.bandwidth * alone (piece)
  if p.is_by_requests then
    p.window = math.max (piece, math.min (p.window, slots * piece))
  elseif p.serial <= p.least then
    local eighth = math.floor (math.min (p.window / pace.DEPTH, p.largest))
    p.piece = math.max (smallest, eighth - eighth % smallest)
  end
  p.phase, p.level, p.level_id, p.anew = "hold", p.window, 1, math.huge
  p.nr_older, p.nr_ended, p.owed = 0, 0, { nr = 0 }
  p.full, p.missed, p.low = no_sum (), no_sum (), no_sum ()
  p.brought = { count = 0, nr = 0 }
  p.credit = CREDIT_TRIPS * p.least
  return p
end

local new = pace.new

local part, parts = tonumber (arg[1] or 1), tonumber (arg[2] or 1)
for i, cell in ipairs (grid.cells ()) do
  for _, together in ipairs (i % parts == part % parts and grid.TOGETHER or {}) do
    cell.together = together
    pace.new = function (largest) return tell (new (largest), cell) end
    local told = grid.run (cell, "adaptive")
    pace.new = new
    local _, _, name, gain = grid.measure (cell)
    local none = grid.run (cell)
    local best = none / gain
    print (("%.3f\t%.3f\t%s\t%.2f\t%.1f\t%s"):format (
      told / none, told / best, name, gain, (told - best) / cell.latency,
      grid.describe (cell)))
    io.stdout:flush ()
  end
end
