-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- tests/bench/parts.lua runs for long: its changes are of the code as it is.

local parts = dofile ("tests/bench/parts.lua")

describe ("the parts", function ()
  for of, changes in pairs (parts.changes) do
    for _, change in ipairs (changes) do
      it ("of " .. of .. " have " .. change[1], function ()
        assert.is_truthy (load (parts.changed (change), "@" .. change[2]))
      end)
    end
  end
end)
