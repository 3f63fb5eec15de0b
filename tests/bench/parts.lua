-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- What each part of adaptive is worth, or of pace: a part of the grid (grid.lua) and the
-- boot of a guest, with all of it, and without one part or with another constant.
--
--     lua5.4 tests/bench/parts.lua [adaptive|pace [PART OF PARTS [NAME...]]]
--
-- writes the page's table.
--
-- A change is a text that stands for another one in a file.  Run from the top of the
-- source.

local grid = dofile ("tests/bench/grid.lua")

local LIBRARY = "lua/library/scan/"

local CHANGES = {}

CHANGES.adaptive = {
  { "no walks", LIBRARY .. "walks.lua", "local list = self.list\n",
    "local list = self.list\n  if met then return false end\n" },
  { "walks: streams alone", LIBRARY .. "walks.lua",
    "not walk and find_step (list, offset)", "false" },
  { "walks: 32", LIBRARY .. "walks.lua", "WALKS = 128", "WALKS = 32" },
  { "walks: step among 64 lone reads", LIBRARY .. "walks.lua", "LONE = 16", "LONE = 64" },
  { "walks: 8M and 128 steps ahead", LIBRARY .. "walks.lua", "32 << 20", "8 << 20" },
  { "walks: to multiples of a piece", LIBRARY .. "walks.lua", "% generators.UNIT_BYTES",
    "% math.max (most, generators.UNIT_BYTES)" },
  { "walks: never in holes", LIBRARY .. "walks.lua",
    'met == "miss" and walk.ahead > 0', "false" },
  { "no metadata", LIBRARY .. "metadata.lua", "while self.walk", "while false" },
  { "metadata: at once", LIBRARY .. "metadata.lua", "LONE_READS = 8", "LONE_READS = 0" },
  { "no neighbours", LIBRARY .. "neighbours.lua", "local near =",
    "if offset then return end\n  local near =" },
  { "neighbours: 256K", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 18" },
  { "neighbours: 4M", LIBRARY .. "neighbours.lua", "1 << 20", "1 << 22" },
  { "neighbours: of 1 read", LIBRARY .. "neighbours.lua", "2 * READS - 2, 3", "0, 3" },
  { "neighbours: from the unit of the read up", LIBRARY .. "neighbours.lua",
    "{ at = offset,", "{ at = offset - offset % generators.UNIT_BYTES," },
  { "no rest", LIBRARY .. "rest.lua", "local disk, position",
    "if most then return nil end\n  local disk, position" },
  { "rest: from the start", LIBRARY .. "rest.lua", "position ~= self.position", "false" },
  { "a block at a time", LIBRARY .. "generators.lua", "disk:room ()", "disk.block" },
  { "2 pieces at a time", LIBRARY .. "generators.lua", "disk:room ()",
    "2 * disk:room ()" },
  { "128K at a time or a piece", LIBRARY .. "generators.lua", "disk:room ()",
    "math.max (1 << 17, disk:room ())" },
}

CHANGES.pace = {
  { "first: 64K at once", "p.piece = math.min (p.largest, M.LEAST)",
    "p.piece = smallest_piece (p)" },
  { "first: beside a read as if alone", "trip > BESIDE * p.least", "false" },
  { "first: once beside a read", "FIRST_TIMES = 4, 3", "FIRST_TIMES = 4, 1" },
  { "first: bytes by one size", "(not is_known or is_doubtful)", "false" },
  { "first: thin at once", "local is_doubtful = theirs == 0 and is_thin",
    "local is_doubtful = false" },
  { "first: bytes of 64K alone", "(not is_known or is_doubtful)", "is_doubtful" },
  { "first: then pieces of 64K", "p.piece = first_piece (p, count)", "" },
  { "first: of a quarter of the latency", "p.least / M.DEPTH / p.serial",
    "p.least / 4 / p.serial" },
  { "first: 4 times what was measured", "FIRST_TIMES = 4, 3, 8",
    "FIRST_TIMES = 4, 3, 4" },
  { "first: 32 times that", "FIRST_TIMES = 4, 3, 8", "FIRST_TIMES = 4, 3, 32" },
  { "first: up to the largest", "math.min (p.largest / 2, FIRST",
    "math.min (p.largest, FIRST" },
  { "first: a thin line is like others", "if p.serial > p.least then",
    "if false then" },
  { "more: from two pieces each time",
    "math.min (p.window / 2, M.DEPTH * p.piece)", "0" },
  { "more: never fourfold", "CLEARLY * p.low.trip and 4 or 2", "0 and 4 or 2" },
  { "more: not by a burst", 'self.phase == "more" and transfer.is_full',
    "false and transfer.is_full" },
  { "more: by a burst of the smallest", "transfer.in_flight == transfer.ours)",
    "false)" },
  { "more: by any burst", "transfer.in_flight == transfer.ours)", "true)" },
  { "more: by the mean trip", 'if p.phase == "more" then m.trip',
    "if false then m.trip" },
  { "more: 0.5 of what is added", "LARGER_BEATS = 0.6", "LARGER_BEATS = 0.5" },
  { "more: 0.75 of it", "LARGER_BEATS = 0.6", "LARGER_BEATS = 0.75" },
  { "more: given up after three",
    "math.max (2, transfer.in_flight / self.piece)", "2" },
  { "more: none, though no more was in flight",
    "local is_more = reached.in_flight > CLEARLY * p.low.in_flight",
    "local is_more = true" },
  { "larger: never", "if is_free and may_be (p, 2 * p.piece) then", "if false then" },
  { "larger: most of what they should, or not", "MORE_BRINGS * should", "0" },
  { "larger: by one that is held up", "if p.full.nr < 2 then return end", "" },
  { "larger: fewer than two, though two went", "window = math.max (window, 2 * piece)",
    "" },
  { "larger: one, if two have no room", "p.piece = whole_pieces (p, window / 2)",
    "" },
  { "larger: a guess counts as found", "piece > p.guessed",
    "piece > smallest_piece (p)" },
  { "larger: never fourfold", "and not is_full (p, 4) and 4 or 2", "and 2 or 2" },
  { "larger: of a full line, too", "not is_reached or not is_full (p, 1)", "true" },
  { "larger: full by 0.5", "FULL = 0.8", "FULL = 0.5" },
  { "larger: however long they take", "<= PIECE_TIMES *", "< math.huge *" },
  { "larger: has to bring 0.3", "0.6, 1.15", "0.6, 1.3" },
  { "larger: nearly full, alone", "m.in_flight > m.ours and 1 or FULL", "1" },
  { "hold: no probes", "if p.window >= 2 * p.piece then\n    return set_level",
    "if false then\n    return set_level" },
  { "hold: one that takes long is one", "p.full.least > reads", "false and reads" },
  { "hold: 64 transfers", "HOLD_TRANSFERS = 28", "HOLD_TRANSFERS = 64" },
  { "hold: none counts that has room", "if rate_of (reached) > p.bandwidth then",
    "if false then" },
  { "narrow: never", "m.trip <= long or sum.least > long", "true" },
  { "narrow: also if all take long", " or sum.least > long", "" },
  { "narrow: whatever is carried then",
    "not has_grown (carried, wider.carried)\n     "
    .. "and rate_of (carried) >= FULL * rate_of (wider.carried)", "true" },
  { "narrow: what is short counts whole",
    "p.brought.count / p.brought.nr / p.piece", "1" },
  { "narrow: the next search does not know", "p.shown_serial = smallest_piece (p)",
    "p.serial = smallest_piece (p)" },
  { "narrow: tried each time", "p.cannot_narrow or math.min", "math.min" },
  { "pieces: a quarter of the window", "p.window / M.DEPTH", "2 * p.window / M.DEPTH" },
  { "window: just the product", "GAIN = 1.1", "GAIN = 1" },
  { "window: a quarter more", "GAIN = 1.1", "GAIN = 1.25" },
  { "window: only whole pieces", "ROUNDING = 0.75", "ROUNDING = 1" },
  { "together: each counts", "TOGETHER = 1 / 32", "TOGETHER = -1" },
  { "anew: never", "HUNG_SECONDS = 15, 10", "HUNG_SECONDS = 1e9, 10" },
  { "client: all of its reads are charged", "bytes - bytes / math.max (client.reads, 1)",
    "bytes" },
  { "client: no credit, no limit", "p.credit <= 0", "false" },
  { "client: only pauses where it is tight", "p.credit <= 0", "true" },
  { "client: 3 %", "HARM, CREDIT_TRIPS = 0.02", "HARM, CREDIT_TRIPS = 0.03" },
  { "client: a credit of 4 trips", "CREDIT_TRIPS = 0.02, 5", "CREDIT_TRIPS = 0.02, 4" },
  { "client: hits earn nothing", "hits * p.least + bytes_seconds (p, bytes)", "0" },
  { "client: tight below two pieces",
    "math.max (2 * p.piece, M.DEPTH * smallest_piece (p))", "2 * p.piece" },
  { "client: a cost by pieces only",
    '(p.phase == "hold" or p.phase == "probe") and p.level', "false and p.level" },
}
for _, change in ipairs (CHANGES.pace) do
  table.insert (change, 2, "lua/kit/scan/pace.lua")
end

-- -- a module as if it were another ----------------------------------------------

local function changed (change)
  local handle = assert (io.open (change[2]))
  local text = handle:read ("a")
  handle:close ()
  local from, to = text:find (change[3], 1, true)
  assert (from, change[2] .. " has no " .. change[3])
  return text:sub (1, from - 1) .. change[4] .. text:sub (to + 1)
end

local function fill (module, fields)
  for key in pairs (module) do module[key] = nil end
  for key, value in pairs (fields) do module[key] = value end
end

-- A module is loaded once, and others have it already.
local function with (change, run)
  local name = change[2]:match ("^lua/%a+/(.*)%.lua$"):gsub ("/", ".")
  local module, whole = require (name), {}
  fill (whole, module)
  fill (module, assert (load (changed (change), "@" .. change[2])) ())
  run ()
  fill (module, whole)
end

-- -- the sample --------------------------------------------------------------------

-- Boots of the guest: ms, Mbit/s, requests at once, threads; and seconds of a bucket,
-- where that is what limits.
local BOOTS = {
  adaptive = { { 20, 400, 64, 16 }, { 80, 100, 64, 16 } },
  pace = { { 20, 400, 64, 16 }, { 80, 100, 64, 16 }, { 70, 100, 64, 8 },
           { 90, 100, 64, 8 }, { 70, 100, 4, 8 }, { 90, 100, 4, 16 },
           { 80, 100, 64, 8, 0.05 }, { 80, 100, 64, 32, 0.05 } },
}

-- Of pace every second cell is one where answers come together.
local function sample (of, part, parts)
  local cells = {}
  local function add (cell)
    cell.together = of == "pace" and grid.TOGETHER[#cells % 2 + 1] or 0
    cells[#cells + 1] = cell
  end
  for i, cell in ipairs (grid.cells ()) do
    if i % parts == part % parts then add (cell) end
  end
  for _, boot in ipairs (BOOTS[of]) do
    add { workload = grid.workloads["boot-debian12"], latency = boot[1] / 1000,
          bandwidth = boot[2], slots = boot[3], threads = boot[4],
          burst_seconds = boot[5], block = 2 << 20 }
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

local function print_table (of, part, parts, ...)
  local cells = sample (of, part, parts)
  local only = select ("#", ...) > 0 and {} or nil
  for _, name in ipairs { ... } do only[name] = true end
  local whole = run_all (cells)
  print ("| of " .. #cells .. " cells | mean | boot "
         .. "| slower by 3 % | most | faster by 3 % | least |")
  print ("|---|---|---|---|---|---|---|")
  for _, change in ipairs (CHANGES[of]) do
    if not only or only[change[1]] then
      with (change, function () print_row (cells, change[1], run_all (cells), whole) end)
    end
  end
end

if arg and arg[0] and arg[0]:find ("parts.lua", 1, true) then
  print_table (arg[1] or "adaptive", tonumber (arg[2] or 1), tonumber (arg[3] or 120),
               table.unpack (arg, 4))
end

return { changes = CHANGES, changed = changed }
