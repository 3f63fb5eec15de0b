-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- Every built-in policy keeps the contract.

local contract = require "scan.contract"
local testing = require "scan.testing"
local world = require "scan.world"

local MiB = 1024 * 1024

-- What the contract has to know of some.  Those that fetch nothing twice share what is
-- known of the export.
local OPTIONS = {
  adaptive = { shared_state = true },
  clock = { shared_state = true },
  default = { shared_state = true },
  forever = { endless = true },
  learn = { shared_state = true },
  metadata = { shared_state = true },
  regions = { shared_state = true,
              files = { regions = "128K 64K 2\n0 64K\n1M 64K 1\n" } },
  replay = { shared_state = true, files = { trace = "128K 64K\n0 512\n1M 4K\n" } },
}

for _, policy in ipairs (world.list ()) do
  contract (policy.name, OPTIONS[policy.name])
end

for _, policy in ipairs { "learn", "metadata", "regions", "replay" } do
  it (policy .. " goes on with none", function ()
    local result = testing.run {
      policy = policy, args = { ["then"] = "none" }, size = 20 * MiB, block = MiB,
      files = { trace = "0 4K\n", regions = "0 4K\n" },
    }
    assert.is_nil (result.error)
    assert.is_true (result.finished)
    assert.is_true (#result.prefetches < 20)
  end)
end
