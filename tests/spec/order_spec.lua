-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- filter/policy/vm-internal.h: the units of the Lua state have an order.

local DIRECTORY = "filter/policy/"

local function read (name)
  local handle = assert (io.open (DIRECTORY .. name, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

describe ("the units of the Lua state", function ()
  it ("call only those that come before them", function ()
    -- Each section of the header declares what one unit has for the others.
    local units, owner, unit = {}, {}, nil
    for line in read ("vm-internal.h"):gmatch ("[^\n]+") do
      unit = line:match ("^/%* %-%- (vm[%w-]*%.c) ") or unit
      if line:find ("^/%* %-%- vm") then units[#units + 1] = unit end
      local name = unit and line:match ("^extern .-([%w_]+) ?[%(%[]")
      if name then owner[name] = #units end
    end
    assert.same ({ "vm-limits.c", "vm-errors.c", "vm-native.c", "vm-driver.c" }, units)
    units[#units + 1] = "vm.c"

    local calls = 0
    for i, name in ipairs (units) do
      local text = read (name):gsub ("/%*.-%*/", ""):gsub ('"[^"\n]*"', "")
      for word in text:gmatch ("[%w_]+") do
        if owner[word] then
          calls = calls + 1
          assert.is_true (owner[word] <= i, name .. " uses " .. word)
        end
      end
    end
    assert.is_true (calls > 30)
  end)
end)
