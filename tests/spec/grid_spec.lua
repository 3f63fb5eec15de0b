-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- adaptive against no prefetch, and against policies that do one thing: a part of the
-- grid in tests/bench/grid.lua, on two lines that take many requests at once.  The
-- whole grid, and where adaptive is not what it should be, is in docs/performance.md.

local grid = dofile ("tests/bench/grid.lua")

local MiB = 1024 * 1024

local LINES = { { 0.02, 1000 }, { 0.08, 100 } }

-- A client that reads here and there on a disk too large to be fetched gains nothing,
-- and its reads come behind whole pieces.
local MOST = { ["random 4K of 4G"] = 1.3 }
local MOST_ELSE = 1.05

-- Of these cells, how many come within 10 % of the best, at least.
local SHARE = 0.5

describe ("the grid", function ()
  -- The share is counted over those before it.
  randomize (false)

  local cells, near = 0, 0

  for _, line in ipairs (LINES) do
    for _, workload in ipairs (grid.workloads) do
      local cell = { workload = workload, latency = line[1], bandwidth = line[2],
                     slots = 64, threads = 16, block = 2 * MiB }
      -- Of pauses of three lengths, the middle one is enough here.
      local is_extra = workload.name:find (", 0.05 s ", 1, true)
        or workload.name:find (", 1 s ", 1, true)
      if not is_extra and not (workload.large and line[2] >= 1000) then
        it ("is never slower: " .. grid.describe (cell), function ()
          local to_none, to_best, name = grid.measure (cell)
          assert.is_true (to_none <= (MOST[workload.name] or MOST_ELSE),
                          ("%.3f of no prefetch"):format (to_none))
          cells = cells + 1
          near = near + (to_best <= 1.1 and 1 or 0)
          assert.is_true (to_best < 4, ("%.2f of %s"):format (to_best, name))
        end)
      end
    end
  end

  it ("is as good as the best that does one thing in half of them", function ()
    assert.is_true (near >= SHARE * cells, ("%d of %d cells"):format (near, cells))
  end)

  -- Over nbdkit's rate filter, whose bucket hides at first what bytes cost.
  it ("finds the window where answers come together", function ()
    local simulator = require "scan.simulator"
    local workload = grid.workloads["random 4K"]
    local result = simulator.run {
      policy = "adaptive", traces = { workload.reads }, size = workload.size,
      layer = "clone", threads = 16,
      source = { latency_seconds = 0.08, bandwidth = 12.5e6, burst_bytes = 625e3,
                 slots = 64, together_seconds = 0.0005 },
    }
    assert.is_true (result.seconds <= 8, ("%.1f s"):format (result.seconds))
  end)

  -- What a policy asked for before it had seen a read would go out first, for all of the
  -- client's credit.
  it ("is of use on lines where all is in a client's way", function ()
    for _, case in ipairs {
      { "32 streams", 0.1, 10, 64, 32, 0.55 },
      { "4K at every 1M down", 0.001, 1000, 4, 8, 0.5 },
    } do
      local cell = { workload = grid.workloads[case[1]], latency = case[2],
                     bandwidth = case[3], slots = case[4], threads = case[5],
                     block = 2 * MiB }
      local to_none = grid.run (cell, "adaptive") / grid.run (cell)
      assert.is_true (to_none <= case[6], ("%s: %.2f"):format (case[1], to_none))
    end
  end)

  -- What is read again is kept in any case: it pays for nothing.
  it ("is little slower for a client that reads the same again", function ()
    local reads = {}
    for i = 0, 599 do
      local target, bits = i // 12 * 40503 % 65536, 16 - i % 12
      reads[i + 1] = { offset = (target >> bits << bits) * 4096, count = 4096 }
    end
    local cell = { workload = { reads = reads, size = 256 * MiB }, latency = 0.005,
                   bandwidth = 100, slots = 4, threads = 8, block = 2 * MiB }
    local to_none = grid.run (cell, "adaptive") / grid.run (cell)
    assert.is_true (to_none <= 1.25, ("%.3f of no prefetch"):format (to_none))
  end)

  it ("boots a guest over a source that does a few things at a time", function ()
    local boot = grid.workloads["boot-debian12"]
    local ended = 0
    for _, read in ipairs (boot.reads) do ended = math.max (ended, read.ended) end
    for _, threads in ipairs { 8, 32 } do
      local seconds = grid.run ({
        workload = boot, latency = 0.08, bandwidth = 100, slots = 4, threads = threads,
        block = 2 * MiB,
      }, "adaptive")
      assert.is_true (seconds <= 1.75 * ended, ("%.3f with %d threads"):format (
        seconds / ended, threads))
    end
  end)

  it ("boots a guest in not much more than a local disk's time", function ()
    local boot = grid.workloads["boot-debian12"]
    local ended = 0
    for _, read in ipairs (boot.reads) do ended = math.max (ended, read.ended) end
    for latency, most in pairs { [0.02] = 1.05, [0.08] = 1.5 } do
      local seconds = grid.run ({
        workload = boot, latency = latency, bandwidth = latency == 0.02 and 400 or 100,
        slots = 64, threads = 16, block = 2 * MiB,
      }, "adaptive")
      assert.is_true (seconds <= most * ended,
                      ("%.3f at %g s"):format (seconds / ended, latency))
    end
  end)
end)
