-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/reverse.lua

local testing = require "scan.testing"

describe ("reverse", function ()
  it ("goes from the end to the beginning, the short block first", function ()
    local result = testing.run { policy = "reverse", size = 300, block = 128 }
    assert.same ({ { 256, 44 }, { 128, 128 }, { 0, 128 } }, result.prefetches)
    assert.is_true (result.finished)
  end)

  it ("takes no arguments", function ()
    assert.error_matches (function ()
      testing.run { policy = "reverse", size = 1, args = { speed = "1" } }
    end, "scan%-arg%-speed: this policy has no such argument")
  end)
end)
