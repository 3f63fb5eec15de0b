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

local ADAPTIVE, LIBRARY = "policies/adaptive.lua", "lua/library/scan/"
local NOTHING = "{ next = function () end }"

local CHANGES = {
  { "no streams", ADAPTIVE, "streams.new (disk, WINDOW)", NOTHING },
  { "no strides", ADAPTIVE, "strides.new (disk)", NOTHING },
  { "no metadata", ADAPTIVE, "metadata.new (disk)", NOTHING },
  { "no neighbours", ADAPTIVE, "neighbours.new (disk)", NOTHING },
  { "no rest", ADAPTIVE, "rest.new (disk, readers)", NOTHING },
  { "neighbours: whatever they pay", LIBRARY .. "neighbours.lua",
    "self.share < LEAST_SHARE", "false" },
  { "neighbours: 256K", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 18" },
  { "neighbours: 4M", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 22" },
  { "neighbours: of 1 read", LIBRARY .. "neighbours.lua", "RANGES = 32", "RANGES = 2" },
  { "rest: from the start", LIBRARY .. "rest.lua", "position ~= self.position", "false" },
  { "a block at a time", LIBRARY .. "generators.lua", "= take_first (generators, most)",
    "= take_first (generators, disk.block)" },
  { "at least 64K at a time", LIBRARY .. "generators.lua", "128 << 10", "64 << 10" },
  { "streams: not to multiples of 64K", LIBRARY .. "streams.lua",
    "limit - limit % UNIT_BYTES", "limit" },
  { "streams: 16", LIBRARY .. "streams.lua", "STREAMS = 64", "STREAMS = 16" },
  { "streams: never in holes", LIBRARY .. "streams.lua",
    'is_ahead and met == "miss"', "false" },
  { "strides: from the third read", LIBRARY .. "strides.lua", "BEGIN_READS = 4",
    "BEGIN_READS = 3" },
  { "strides: 32 steps", LIBRARY .. "strides.lua", "DEPTH = 512", "DEPTH = 32" },
  { "metadata: at once", LIBRARY .. "metadata.lua", "LONE_READS = 8", "LONE_READS = 0" },
}

-- -- reading files as if they were others ------------------------------------------

local open = io.open

local function changed (change)
  local handle = assert (open (change[2]))
  local text = handle:read ("a")
  handle:close ()
  local from, to = text:find (change[3], 1, true)
  assert (from, change[2] .. " has no " .. change[3])
  return text:sub (1, from - 1) .. change[4] .. text:sub (to + 1)
end

-- The policy is read for each run, a module once.
local function with (change, run)
  local module = change[2]:match ("^lua/library/(.*)%.lua$")
  if module then
    module = module:gsub ("/", ".")
    local whole = require (module)
    package.loaded[module] = assert (load (changed (change), "@" .. change[2])) ()
    run ()
    package.loaded[module] = whole
  else
    local text = changed (change)
    io.open = function (path, mode) -- luacheck: ignore 122
      if path ~= change[2] then return open (path, mode) end
      local handle = assert (io.tmpfile ())
      handle:write (text)
      handle:seek ("set")
      return handle
    end
    run ()
    io.open = open -- luacheck: ignore 122
  end
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
