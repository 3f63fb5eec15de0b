-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- The grid that adaptive is held against, in the simulator: what clients do, by
-- sources, by threads.  Of each cell two ratios: its time to the time without any
-- prefetch, and to the best of the policies that do one thing.
--
--     lua5.4 tests/bench/grid.lua [PART OF PARTS [POLICY]]   every cell, two lines each
--     lua5.4 tests/bench/grid.lua --table FILE...   the page's tables, from such lines
--
-- The specs take a part of it (tests/spec/grid_spec.lua).  Run from the top of the
-- source.

if not pcall (require, "scan.simulator") then
  package.path = "lua/library/?.lua;lua/runtime/?.lua;lua/kit/?.lua;" .. package.path
end
local closed_loop = dofile ("tests/bench/closed_loop.lua")
local simulator = require "scan.simulator"

local M = {}

local KiB, MiB = 1024, 1024 * 1024

-- What adaptive has to be as good as.
M.OTHERS = { "default", "data", "readahead", "stride" }

-- -- what clients do --------------------------------------------------------------

local place
local function random (below)
  place = (place * 6364136223846793005 + 1442695040888963407) & math.maxinteger
  return (place >> 20) % below
end

local function list (number, read_of)
  local reads = {}
  place = 1
  for i = 0, number - 1 do
    local offset, count, idle = read_of (i)
    reads[i + 1] = { offset = offset, count = count, idle = idle }
  end
  return reads
end

local workloads = {}

local function add (name, reads, more)
  local workload = { name = name, reads = reads, size = 64 * MiB }
  for key, value in pairs (more or {}) do workload[key] = value end
  workloads[#workloads + 1] = workload
  workloads[name] = workload
end

local function recorded (name, more)
  local file = assert (io.open ("tests/traces/" .. name .. ".log"))
  local reads = closed_loop.read (file)
  file:close ()
  add (name, reads, more)
  workloads[name].closed_loop = true
end

for _, name in ipairs { "blkid", "debugfs-rdump", "fio-random", "fsck", "nbdcopy",
                        "qemu-img-convert" } do
  recorded (name)
end

local function holes_of (path, size)
  local holes, at = {}, 0
  for line in io.lines (path) do
    local offset, count = line:match ("^(%d+) (%d+)")
    offset, count = math.tointeger (tonumber (offset)), math.tointeger (tonumber (count))
    if offset then
      if offset > at then holes[#holes + 1] = { at, offset - at } end
      at = offset + count
    end
  end
  if at < size then holes[#holes + 1] = { at, size - at } end
  return holes
end

recorded ("boot-debian12", {
  size = 2048 * MiB, holes = holes_of ("tests/traces/boot-debian12.data", 2048 * MiB),
  large = true,
})

local function sequential (name, count, bytes, pause, more)
  add (name, list (bytes // count, function (i)
    return i * count, count, pause and pause (i, count) or 0
  end), more)
end

for _, size in ipairs { 4, 16, 64, 128, 256, 1024, 2048, 4096 } do
  local count = size * KiB
  sequential (("sequential %dK"):format (size), count,
              math.min (64 * MiB, 1024 * count))
end
for _, seconds in ipairs { 0.05, 0.2, 1 } do
  sequential (("sequential 256K, %g s before"):format (seconds), 256 * KiB, 64 * MiB,
              function (i) return i == 0 and seconds or 0 end)
  sequential (("sequential 256K, %g s every 64M"):format (seconds), 256 * KiB, 256 * MiB,
              function (i, count) return i * count % (64 * MiB) == 0 and seconds or 0 end,
              { size = 256 * MiB })
end
sequential ("sequential 256K, 10 ms each", 256 * KiB, 64 * MiB,
            function () return 0.01 end)
add ("every second 256K", list (128, function (i) return i * 512 * KiB, 256 * KiB end))
add ("from the middle", list (128, function (i)
  return 32 * MiB + i * 256 * KiB, 256 * KiB end))
for _, streams in ipairs { 2, 4, 12, 32, 64 } do
  add (("%d streams"):format (streams), list (512, function (i)
    return i % streams * (256 * MiB // streams) + i // streams * 64 * KiB, 64 * KiB
  end), { size = 256 * MiB })
end
add ("backward 64K", list (512, function (i)
  return 64 * MiB - (i + 1) * 64 * KiB, 64 * KiB end))
add ("16K at every 384K", list (160, function (i) return i * 384 * KiB, 16 * KiB end))
add ("4K at every 1M down", list (250, function (i)
  return (255 - i) * MiB, 4 * KiB end), { size = 256 * MiB })
add ("random 4K", list (500, function ()
  return random (16384) * 4 * KiB, 4 * KiB end))
add ("random 4K, pauses", list (200, function ()
  return random (16384) * 4 * KiB, 4 * KiB, 0.01 end))
add ("random 4K of 4G", list (500, function ()
  return random (1 << 20) * 4 * KiB, 4 * KiB end), { size = 4096 * MiB })
add ("random 64K", list (300, function ()
  return random (1024) * 64 * KiB, 64 * KiB end))
add ("random 4K near by", list (800, function (i)
  local region = i // 20 * 7919 % 256
  return region * 16 * MiB + random (256) * 4 * KiB, 4 * KiB
end), { size = 4096 * MiB })
add ("mixed", list (360, function (i)
  if i % 6 == 5 then return random (65536) * 4 * KiB, 4 * KiB end
  if i % 6 < 3 then return (i // 6 * 3 + i % 6) * 128 * KiB, 128 * KiB end
  return 128 * MiB + (i // 6 * 2 + i % 6 - 3) * 64 * KiB, 64 * KiB
end), { size = 256 * MiB })
add ("deep 256K", workloads["sequential 256K"].reads, { depth = 16 })

M.workloads = workloads

-- -- sources and threads ------------------------------------------------------------

M.LATENCIES = { 0.001, 0.005, 0.02, 0.05, 0.1 }
M.BANDWIDTHS = { 10, 100, 1000, 0 } -- Mbit/s; 0: no limit
M.SLOTS = { 1, 4, 64 }
M.THREADS = { 1, 8, 32 }
M.BLOCKS = { 256 * KiB, 2 * MiB }
-- Seconds within which answers come together, as threads that sleep are woken; 0: each
-- by itself.  Every cell is measured with both.
M.TOGETHER = { 0, 0.0005 }
local NO_LIMIT = 4e9 -- bytes a second: a memory's

--- All cells, in an order without a period.
function M.cells ()
  local cells = {}
  for _, workload in ipairs (workloads) do
    for _, latency in ipairs (M.LATENCIES) do
      for _, bandwidth in ipairs (M.BANDWIDTHS) do
        for _, slots in ipairs (M.SLOTS) do
          for _, threads in ipairs (M.THREADS) do
            for _, block in ipairs (M.BLOCKS) do
              if not workload.large or (threads > 1 and slots > 1
                 and block == 2 * MiB and latency >= 0.02
                 and bandwidth > 10) then
                cells[#cells + 1] = { workload = workload, latency = latency,
                  bandwidth = bandwidth, slots = slots, threads = threads,
                  block = block }
              end
            end
          end
        end
      end
    end
  end
  place = 7
  for i = #cells, 2, -1 do
    local j = random (i) + 1
    cells[i], cells[j] = cells[j], cells[i]
  end
  return cells
end

--- Run one cell with a policy, or none.
-- @treturn number seconds
function M.run (cell, policy)
  local workload = cell.workload
  local result = simulator.run {
    policy = policy, traces = { workload.reads }, closed_loop = workload.closed_loop,
    size = workload.size, holes = workload.holes, depth = workload.depth,
    layer = "clone", threads = cell.threads, block = cell.block,
    source = { latency_seconds = cell.latency, slots = cell.slots,
               together_seconds = cell.together,
               burst_bytes = (cell.burst_seconds or 0) * cell.bandwidth * 125000,
               bandwidth = cell.bandwidth > 0 and cell.bandwidth * 125000 or NO_LIMIT },
  }
  if result.error then error (result.error, 0) end
  return result.seconds
end

--- Measure one cell.
-- @treturn number adaptive's time as a share of that without prefetch
-- @treturn number and of the best of the others
-- @treturn string which that is
-- @treturn number how many times faster than without prefetch that is
-- @treturn number how many round trips adaptive takes longer than the best
function M.measure (cell, policy)
  local none = M.run (cell)
  local adaptive = M.run (cell, policy or "adaptive")
  local best, best_name = none, "none"
  for _, other in ipairs (M.OTHERS) do
    local seconds = M.run (cell, other)
    if seconds < best then best, best_name = seconds, other end
  end
  return adaptive / none, adaptive / best, best_name, none / best,
    (adaptive - best) / cell.latency
end

--- A cell in words.
function M.describe (cell)
  return ("%s | %g ms, %s, %d at once%s | %d threads, %dK"):format (
    cell.workload.name, cell.latency * 1000,
    cell.bandwidth > 0 and cell.bandwidth .. " Mbit/s" or "any bandwidth",
    cell.slots, (cell.together or 0) > 0 and ", together" or "", cell.threads,
    cell.block // KiB)
end

-- -- the command ----------------------------------------------------------------------

local function read_lines (paths)
  local lines = {}
  for _, path in ipairs (paths) do
    for line in io.lines (path) do
      local to_none, to_best, name, gain, trips, cell =
        line:match ("^(%S+)\t(%S+)\t(%S+)\t(%S+)\t(%S+)\t(.*)$")
      lines[#lines + 1] = { to_none = tonumber (to_none), to_best = tonumber (to_best),
                            name = name, gain = tonumber (gain),
                            trips = tonumber (trips), cell = cell }
    end
  end
  return lines
end

local function print_share (lines, what, is_in)
  local all, none, best = 0, 0, 0
  for _, line in ipairs (lines) do
    if is_in (line.cell) then
      all = all + 1
      none = none + (line.to_none <= 1.05 and 1 or 0)
      best = best + (line.to_best <= 1.1 and 1 or 0)
    end
  end
  if all == 0 then return end
  print (("| %s | %d | %.0f %% | %.0f %% |"):format (what, all, 100 * none / all,
                                                     100 * best / all))
end

local function print_worst (lines, key, what)
  table.sort (lines, function (a, b) return a[key] > b[key] end)
  print (("\n| cell | %s |\n|---|---|"):format (what))
  for i = 1, math.min (10, #lines) do
    local line = lines[i]
    print (("| %s | %.2f%s |"):format ((line.cell:gsub (" | ", "; ")), line[key],
      key == "to_best" and (" of %s, which has %.1f x"):format (line.name, line.gain)
        or ""))
  end
end

-- What the cells have lost that are not within a tenth of the best.
local function print_lost (lines)
  local most = { 4, 8, 16, 64, math.huge }
  local counts = {}
  for _, line in ipairs (lines) do
    if line.to_best > 1.1 then
      local i = 1
      while line.trips > most[i] do i = i + 1 end
      counts[i] = (counts[i] or 0) + 1
    end
  end
  print "\n| slower than a tenth over the best, by round trips | cells |\n|---|---|"
  for i, trips in ipairs (most) do
    print (("| %s | %d |"):format (i < #most and "at most " .. trips or "more",
                                   counts[i] or 0))
  end
end

local function print_tables (paths)
  local lines = read_lines (paths)
  print ("| cells | number | at most 1.05 of no prefetch | "
         .. "within 10 % of the best |\n|---|---|---|---|")
  print_share (lines, "all", function () return true end)
  print_share (lines, "answers come one by one", function (cell)
    return not cell:find (", together", 1, true)
  end)
  print_share (lines, "answers come together", function (cell)
    return cell:find (", together", 1, true) ~= nil
  end)
  for _, part in ipairs { " 1 at once", " 4 at once", " 64 at once", " 10 Mbit/s",
                          " 100 Mbit/s", " 1000 Mbit/s", "any bandwidth",
                          " 1 threads", " 8 threads", " 32 threads" } do
    print_share (lines, (part:gsub ("^ ", "")), function (cell)
      return cell:find (part, 1, true) ~= nil
    end)
  end
  print_share (lines, "at least 4 at once, 8 threads and 100 Mbit/s", function (cell)
    return not (cell:find (" 1 at once", 1, true) or cell:find (" 1 threads", 1, true)
                or cell:find (" 10 Mbit/s", 1, true))
  end)
  print_lost (lines)
  print_worst (lines, "to_none", "time, to no prefetch")
  print_worst (lines, "to_best", "time, to the best of the others")
end

local function print_cells (part, parts, policy)
  for i, cell in ipairs (M.cells ()) do
    for _, together in ipairs (i % parts == part % parts and M.TOGETHER or {}) do
      cell.together = together
      local to_none, to_best, name, gain, trips = M.measure (cell, policy)
      print (("%.3f\t%.3f\t%s\t%.2f\t%.1f\t%s"):format (to_none, to_best, name, gain,
                                                        trips, M.describe (cell)))
      io.stdout:flush ()
    end
  end
end

if arg and arg[0] and arg[0]:find ("grid.lua", 1, true) then
  if arg[1] == "--table" then
    print_tables { table.unpack (arg, 2) }
  else
    print_cells (tonumber (arg[1] or 1), tonumber (arg[2] or 1), arg[3])
  end
end

return M
