-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- The simulator's half of tests/bench/truth.py.
--
--     lua5.4 tests/bench/truth.lua WORKLOAD [READS]
--
-- prints what the client does, as lines of "size N", "data OFFSET COUNT" and "read
-- OFFSET COUNT THINK_US AFTER".  Of a workload of tests/bench/grid.lua, or one of the
-- below, these are the first READS reads.
--
--     lua5.4 tests/bench/truth.lua WORKLOAD READS POLICY LATENCY_MS MBIT THREADS SEED...
--
-- prints how many seconds they take in the simulator, for each of the seeds of what is
-- chance.  READS may be 0, for all, and POLICY none.  Run from the top of the source.

local grid = dofile ("tests/bench/grid.lua")
local simulator = require "scan.simulator"

local name, most, policy, latency, mbit, threads = table.unpack (arg)

-- A thread that sleeps is woken up to a millisecond late where others want the
-- processors, which in slow motion is a fifth (truth.py).
local JITTER_SECONDS = 0.0002

-- As many requests at once as nbdcopy has.
grid.workloads["64 in flight"] = {
  reads = grid.workloads["sequential 256K"].reads, size = 64 << 20, depth = 64,
}

local workload = grid.workloads[name]
if not workload then
  io.stderr:write (("truth: there is no workload '%s'\n"):format (name))
  os.exit (1)
end

-- One kind of client on both sides: a read begins its think time after the end of the
-- one that it depends on, in whole microseconds.
local reads, trace = {}, {}
most = math.tointeger (tonumber (most)) or 0
for i, read in ipairs (workload.reads) do
  if i > most and most > 0 then break end
  reads[i] = {
    offset = read.offset, count = read.count,
    think = math.floor ((read.think or read.idle or 0) * 1e6 + 0.5) / 1e6,
    after = read.after or math.max (0, i - (workload.depth or 1)),
  }
  trace[i] = ("%d %d\n"):format (read.offset, read.count)
end

if policy then
  -- As nbdkit's rate filter with burstiness=0.05.
  local bandwidth = tonumber (mbit) * 125000
  for i = 7, #arg do
    local result = simulator.run {
      policy = policy ~= "none" and policy or nil, traces = { reads },
      files = { trace = table.concat (trace) }, closed_loop = true,
      size = workload.size, holes = workload.holes, layer = "clone",
      threads = tonumber (threads),
      source = { latency_seconds = tonumber (latency) / 1000, bandwidth = bandwidth,
                 burst_bytes = bandwidth * 0.05, slots = 64,
                 jitter_seconds = JITTER_SECONDS, seed = math.tointeger (arg[i]) },
    }
    if result.error then error (result.error, 0) end
    print (("%.3f"):format (result.seconds))
  end
  return
end

print (("size %d"):format (workload.size))
local at = 0
for _, hole in ipairs (workload.holes or {}) do
  if hole[1] > at then print (("data %d %d"):format (at, hole[1] - at)) end
  at = hole[1] + hole[2]
end
if at < workload.size then print (("data %d %d"):format (at, workload.size - at)) end
for _, read in ipairs (reads) do
  print (("read %d %d %.0f %d"):format (read.offset, read.count, read.think * 1e6,
                                        read.after))
end
