-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/learn.lua

local testing = require "scan.testing"

local BLOCK = 65536

local function run (files, args)
  local result = testing.run {
    policy = "learn", size = 4 * BLOCK, block = BLOCK, files = files, args = args,
    events = { { at = 600, close = true } },
  }
  assert.is_nil (result.error)
  return result.prefetches
end

describe ("learn", function ()
  local trace = { trace = "# nbdkit scan trace: 1 run\n131072 4096 # 1\n0 4096 # 1\n" }

  it ("replays the trace if there is one", function ()
    local prefetches = run (trace)
    assert.same ({ { 2 * BLOCK, 4096 }, { 0, 4096 } },
                 { prefetches[1], prefetches[2] })
    assert.is_true (#prefetches > 2, "it goes on with adaptive")
    prefetches = run (trace, { order = "offset", gap = "0" })
    assert.same ({ 0, 4096 }, prefetches[1])
  end)

  it ("is the other policy if there is none yet", function ()
    local without = testing.run {
      policy = "adaptive", size = 4 * BLOCK, block = BLOCK,
      events = { { at = 600, close = true } },
    }
    assert.same (without.prefetches, run ({}))
    assert.same ({ { 3 * BLOCK, BLOCK }, { 2 * BLOCK, BLOCK }, { BLOCK, BLOCK },
                   { 0, BLOCK } }, run ({}, { ["then"] = "reverse" }))
  end)

  it ("goes on with none", function ()
    assert.same ({ { 0, 4096 } }, run ({ trace = "0 4K\n" }, { ["then"] = "none" }))
    assert.same ({}, run ({}, { ["then"] = "none" }))
  end)

  it ("hands arguments on", function ()
    for _, files in ipairs { trace, {} } do
      assert.error_matches (function ()
        run (files, { ["then"] = "shuffle", ["then.seed"] = "x" })
      end, "scan%-arg%-seed: a whole number")
    end
    assert.error_matches (function () run ({}, { x = "1" }) end,
                          "scan%-arg%-x: this policy has no such argument")
  end)

  it ("takes the same arguments with a trace and without", function ()
    for _, files in ipairs { trace, {} } do
      assert.error_matches (function () run (files, { order = "x" }) end,
                            "scan%-arg%-order: one of time, offset expected, got 'x'")
      assert.error_matches (function () run (files, { gap = "32KB" }) end,
                            "scan%-arg%-gap: a size like .* expected, got '32KB'")
      run (files, { order = "time", gap = "64K", ["then"] = "none" })
    end
  end)
end)
