-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- What each part of adaptive is worth: a part of the grid (grid.lua) and the boot of a
-- guest on two lines, with all of it, and without one part or with another constant.
--
--     lua5.4 tests/bench/parts.lua [PART OF PARTS [NAME...]]    the page's table
--
-- A change is a text that stands for another one in a file.  Run from the top of the
-- source.

local grid = dofile ("tests/bench/grid.lua")

local LIBRARY = "lua/library/scan/"

local CHANGES = {
  { "no walks", LIBRARY .. "walks.lua", "local list = self.list\n",
    "local list = self.list\n  if met then return false end\n" },
  { "walks: streams alone", LIBRARY .. "walks.lua",
    "not walk and find_step (list, offset)", "false" },
  { "walks: 32", LIBRARY .. "walks.lua", "WALKS = 128", "WALKS = 32" },
  { "walks: step among 64 lone reads", LIBRARY .. "walks.lua", "LONE = 16", "LONE = 64" },
  { "walks: 8M and 128 steps ahead", LIBRARY .. "walks.lua", "32 << 20", "8 << 20" },
  { "walks: to multiples of 64K", LIBRARY .. "walks.lua", "steps >= most", "false" },
  { "walks: never in holes", LIBRARY .. "walks.lua",
    'met == "miss" and walk.ahead > 0', "false" },
  { "no metadata", LIBRARY .. "metadata.lua", "while self.walk", "while false" },
  { "metadata: at once", LIBRARY .. "metadata.lua", "LONE_READS = 8", "LONE_READS = 0" },
  { "no neighbours", LIBRARY .. "neighbours.lua", "self.trust <= 0", "true" },
  { "neighbours: whatever they pay", LIBRARY .. "neighbours.lua", "self.trust <= 0",
    "false" },
  { "neighbours: 256K", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 18" },
  { "neighbours: 4M", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 22" },
  { "neighbours: of 1 read", LIBRARY .. "neighbours.lua", "[2 * READS + 1]", "[3]" },
  { "neighbours: from the unit of the read up", LIBRARY .. "neighbours.lua",
    "{ at = offset,", "{ at = offset - offset % generators.UNIT_BYTES," },
  { "no rest", LIBRARY .. "rest.lua", "local disk, position",
    "if most then return nil end\n  local disk, position" },
  { "rest: from the start", LIBRARY .. "rest.lua", "position ~= self.position", "false" },
  { "a block at a time", LIBRARY .. "generators.lua", "= next_of (generators, most)",
    "= next_of (generators, disk.block)" },
  { "4 pieces at a time", LIBRARY .. "generators.lua", "AT_ONCE = 2", "AT_ONCE = 4" },
  { "however little at a time", LIBRARY .. "generators.lua",
    "math.max (count, M.UNIT_BYTES)", "count" },
}

-- -- a module as if it were another ----------------------------------------------

local function changed (change)
  local handle = assert (io.open (change[2]))
  local text = handle:read ("a")
  handle:close ()
  local from, to = text:find (change[3], 1, true)
  assert (from, change[2] .. " has no " .. change[3])
  return text:sub (1, from - 1) .. change[4] .. text:sub (to + 1)
end

-- A module is loaded once, by the first policy that runs.
local function with (change, run)
  local module = change[2]:match ("^lua/library/(.*)%.lua$"):gsub ("/", ".")
  local whole = require (module)
  package.loaded[module] = assert (load (changed (change), "@" .. change[2])) ()
  run ()
  package.loaded[module] = whole
end

-- -- the sample --------------------------------------------------------------------

local function sample (part, parts)
  local cells = {}
  for i, cell in ipairs (grid.cells ()) do
    if i % parts == part % parts then cells[#cells + 1] = cell end
  end
  for latency, bandwidth in pairs { [0.02] = 400, [0.08] = 100 } do
    cells[#cells + 1] = { workload = grid.workloads["boot-debian12"], slots = 64,
                          latency = latency, bandwidth = bandwidth, threads = 16,
                          block = 2 << 20 }
  end
  return cells
end

local function run_all (cells)
  local seconds = {}
  for i, cell in ipairs (cells) do seconds[i] = grid.run (cell, "adaptive") end
  return seconds
end

-- A row: the mean, what is slower and faster, and the most of each.
local function print_row (cells, name, seconds, whole)
  local slower, faster, sum, boot, boots = 0, 0, 0, 0, 0
  local most, least = 1, 1
  for i, cell in ipairs (cells) do
    local ratio = seconds[i] / whole[i]
    sum = sum + math.log (ratio)
    if ratio >= 1.03 then slower = slower + 1 end
    if ratio <= 0.97 then faster = faster + 1 end
    most, least = math.max (most, ratio), math.min (least, ratio)
    if cell.workload.large then boot, boots = boot + math.log (ratio), boots + 1 end
  end
  print (("| %s | %.3f | %.3f | %d | %.2f | %d | %.2f |"):format (
    name, math.exp (sum / #cells), math.exp (boot / boots), slower, most, faster, least))
  io.stdout:flush ()
end

local cells = sample (tonumber (arg[1] or 1), tonumber (arg[2] or 120))
local only = #arg > 2 and {} or nil
for i = 3, #arg do only[arg[i]] = true end
local whole = run_all (cells)
print (("| of %d cells | mean | boot | slower by 3 %% | most | faster by 3 %% | least |")
       :format (#cells))
print ("|---|---|---|---|---|---|---|")
for _, change in ipairs (CHANGES) do
  if not only or only[change[1]] then
    with (change, function () print_row (cells, change[1], run_all (cells), whole) end)
  end
end
