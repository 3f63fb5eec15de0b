-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/data.lua

local testing = require "scan.testing"

local KiB, TiB = 1024, 1 << 40

local function run (size, holes)
  local result = testing.run {
    policy = "data", size = size, block = 64 * KiB, holes = holes,
  }
  assert.is_nil (result.error)
  assert.is_true (result.finished)
  return result
end

describe ("data", function ()
  it ("fetches what is not a hole, on the grid of blocks", function ()
    assert.same ({ { 100, 65436 }, { 65536, 65536 }, { 3 * 65536, 64 } },
                 run (3 * 65536 + 64, { { 0, 100 }, { 2 * 65536, 65536 } }).prefetches)
  end)

  it ("fetches everything where holes can't be told", function ()
    assert.same ({ { 0, 65536 }, { 65536, 1 } }, run (65537).prefetches)
  end)

  it ("fetches nothing of an empty disk", function ()
    local result = run (TiB, { { 0, TiB } })
    assert.same ({}, result.prefetches)
    assert.equal (1, result.requests)
  end)

  it ("jumps over the holes of a huge disk", function ()
    local size = math.maxinteger
    local result = run (size, { { 0, size - 65536 } })
    assert.is_true (#result.prefetches <= 2)
    assert.is_true (result.requests <= 5)
  end)
end)
