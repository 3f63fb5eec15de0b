-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/stride.lua

local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024

-- Reads of 4K at these offsets, a second apart.
local function run (offsets, more)
  local events = {}
  for i, offset in ipairs (offsets) do
    events[i] = { at = i, read = { offset, 4 * KiB } }
  end
  local options = {
    policy = "stride", size = 64 * MiB, block = 64 * KiB, events = events,
  }
  for name, value in pairs (more or {}) do options[name] = value end
  local result = testing.run (options)
  assert.is_nil (result.error)
  return result
end

local function steps (first, delta, number)
  local offsets = {}
  for i = 0, number - 1 do offsets[#offsets + 1] = first + i * delta end
  return offsets
end

describe ("stride", function ()
  it ("goes on with the step, deeper with each hit", function ()
    local result = run (steps (0, MiB, 8))
    -- The fourth read shows the step.  Four ahead of it are fetched, five ahead of the
    -- next, and eight ahead of the last.
    assert.same (steps (4, 1, 12), testing.offsets (result, MiB))
    for _, prefetch in ipairs (result.prefetches) do
      assert.equal (4 * KiB, prefetch[2])
    end
  end)

  it ("goes downwards too, and stops at the end of the disk", function ()
    assert.same ({ 3, 2, 1, 0 }, testing.offsets (run (steps (7 * MiB, -MiB, 8)), MiB))
    assert.same ({ 60, 61, 62, 63 },
                 testing.offsets (run (steps (56 * MiB, MiB, 8)), MiB))
  end)

  it ("joins steps that touch", function ()
    -- Reads of 4K that overlap: each goes on by 3K.  What they share is fetched once.
    local result = run (steps (0, 3 * KiB, 8))
    assert.same ({ { 13 * KiB, 12 * KiB }, { 25 * KiB, 6 * KiB }, { 31 * KiB, 6 * KiB },
                   { 37 * KiB, 6 * KiB }, { 43 * KiB, 6 * KiB } },
                 result.prefetches)
  end)

  it ("sees the step through a few other reads", function ()
    local offsets = steps (0, MiB, 12)
    offsets[6] = 50 * MiB + 12 * KiB
    local result = run (offsets)
    local fetched = {}
    for _, prefetch in ipairs (result.prefetches) do
      fetched[prefetch[1] // MiB] = true
    end
    for block = 10, 12 do assert.is_true (fetched[block]) end
  end)

  it ("fetches nothing without a step, or for the same place again", function ()
    assert.same ({}, run ({ 0, 9 * MiB, 3 * MiB, 40 * MiB, 5 * MiB, 11 * MiB, 0, MiB })
                   .prefetches)
    assert.same ({}, run ({ MiB, MiB, MiB, MiB, MiB, MiB }).prefetches)
  end)

  it ("is no deeper than told", function ()
    local result = run (steps (0, MiB, 20), { args = { depth = "1" } })
    assert.same (steps (4, 1, 17), testing.offsets (result, MiB))
  end)

  it ("does not overflow on the largest disk", function ()
    local far = math.maxinteger - 4 * KiB
    local delta = far // 5
    run (steps (far - 4 * delta, delta, 5), { size = math.maxinteger })
    run (steps (far, -delta, 6), { size = math.maxinteger })
  end)

  it ("wants a depth from 1 to 1024", function ()
    assert.error_matches (function () run ({}, { args = { depth = "0" } }) end,
                          "scan%-arg%-depth: a whole number from 1 up to 1024 expected")
  end)
end)
