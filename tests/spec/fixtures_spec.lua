-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- tests/fixtures: what is wrong with a policy is said by the kit as by the filter.

local images = dofile ("tests/spec/images.lua")
local testing = require "scan.testing"

-- What the kit counts in another way, and says in other words (instructions, a limit
-- that is its own, names), or what would take long; and what needs an argument.
local OTHERWISE = { "loop", "slow", "memory", "depth", "thousands", "argument",
                    "open%-missing", "bad%-load/yield" }

local function is_otherwise (path)
  for _, word in ipairs (OTHERWISE) do
    if path:find (word) then return true end
  end
end

local function expectation (path)
  for line in io.lines (path) do
    local expected = line:match ("^%-%- Expect: (.*)$")
    if expected then
      return expected:match ("^%d+: ") and path .. ":" .. expected or expected
    end
  end
end

describe ("the kit says of", function ()
  for path in images.output ("ls tests/fixtures/bad-*/*.lua"):gmatch ("%S+") do
    local expected = expectation (path)
    if expected ~= "either" and not is_otherwise (path) then
      it (path .. " what the filter does", function ()
        local ok, result = pcall (testing.run, {
          policy = path, size = 65536, block = 4096, print = function () end,
        })
        local message = not ok and result or result.error
        if expected == "nothing" then
          assert.is_nil (message)
        else
          assert.is_truthy (message and message:find (expected, 1, true),
                            ("%s\nexpected: %s"):format (message, expected))
        end
      end)
    end
  end
end)
