-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- The simulator's half of tests/bench/truth.py.
--
--     lua5.4 tests/bench/truth.lua POLICY LATENCY_MS MBIT THREADS WORKLOAD
--
-- Prints how long it takes in the simulator, and what the client reads, as lines of
-- "seconds N", "size N", "data OFFSET COUNT" and "read OFFSET COUNT THINK AFTER".
-- POLICY may be none.  Run from the top of the source.

local grid = dofile ("tests/bench/grid.lua")
local simulator = require "scan.simulator"

local policy, latency, mbit, threads, name = table.unpack (arg)
local workload = grid.workloads[name]
if not workload then
  local names = {}
  for i, each in ipairs (grid.workloads) do names[i] = each.name end
  io.stderr:write (("truth: workload '%s' is none of: %s\n")
                     :format (name, table.concat (names, ", ")))
  os.exit (1)
end

-- As nbdkit's rate filter with burstiness=0.05.
local bandwidth = tonumber (mbit) * 125000
local result = simulator.run {
  policy = policy ~= "none" and policy or nil, traces = { workload.reads },
  closed_loop = workload.closed_loop, size = workload.size, holes = workload.holes,
  depth = workload.depth, layer = "clone", threads = tonumber (threads),
  source = { latency_seconds = tonumber (latency) / 1000, bandwidth = bandwidth,
             burst_bytes = bandwidth * 0.05, slots = 64 },
}
if result.error then error (result.error, 0) end

print (("seconds %.3f"):format (result.seconds))
print (("size %d"):format (workload.size))
local at = 0
for _, hole in ipairs (workload.holes or {}) do
  if hole[1] > at then print (("data %d %d"):format (at, hole[1] - at)) end
  at = hole[1] + hole[2]
end
if at < workload.size then print (("data %d %d"):format (at, workload.size - at)) end
for i, read in ipairs (workload.reads) do
  local after = read.after or math.max (0, i - (workload.depth or 1))
  print (("read %d %d %.6f %d"):format (read.offset, read.count,
                                        read.think or read.idle or 0, after))
end
