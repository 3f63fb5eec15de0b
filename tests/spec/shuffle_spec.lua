-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/shuffle.lua

local testing = require "scan.testing"

local function order (blocks, seed)
  local result = testing.run {
    policy = "shuffle", size = blocks * 512, block = 512, args = { seed = seed },
  }
  assert.is_true (result.finished)
  return testing.offsets (result, 512)
end

describe ("shuffle", function ()
  for _, blocks in ipairs { 1, 2, 3, 4, 5, 17, 64, 65, 1000 } do
    it (("visits each of %d blocks once"):format (blocks), function ()
      local seen, list = {}, order (blocks)
      for _, block in ipairs (list) do
        assert.is_nil (seen[block])
        seen[block] = true
      end
      assert.equal (blocks, #list)
    end)
  end

  it ("gives the same order for the same seed, and others for others", function ()
    assert.same (order (100, "7"), order (100, "7"))
    assert.not_same (order (100, "7"), order (100, "8"))
    assert.same (order (100), order (100, "0"))
  end)

  it ("goes on only rarely with the next block", function ()
    local list, neighbours = order (1000), 0
    for i = 2, #list do
      if math.abs (list[i] - list[i - 1]) == 1 then neighbours = neighbours + 1 end
    end
    assert.is_true (neighbours < 20, neighbours)
  end)

  it ("begins at once on the largest disk", function ()
    local result = testing.run {
      policy = "shuffle", size = math.maxinteger, block = 512,
      events = { { after = 1000, close = true } },
    }
    assert.equal (1000, #result.prefetches)
  end)

  it ("wants a whole number as seed", function ()
    assert.error_matches (function () order (1, "x") end,
                          "scan%-arg%-seed: a whole number expected, got 'x'")
  end)
end)
