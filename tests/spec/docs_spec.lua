-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- What the pages say holds.

local runner = require "scan.runner"
local world = require "scan.world"

local function read (path)
  local handle = assert (io.open (path, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

local function output_of (command)
  local handle = assert (io.popen (("LUA_PATH='%s;;' %s 2>&1")
                                     :format (world.LUA_PATH, command)))
  local text = handle:read ("a")
  handle:close ()
  return text
end

describe ("the README", function ()
  it ("shows a policy that gains something for the trace that it names", function ()
    local text = read ("README.md")
    local policy = text:match ("    (%-%- edges.lua.-\n)\n")
    local command = text:match ("    lua/bin/(scan%-policy simulate [^\n]*)")
    local path = os.tmpname ()
    local handle = assert (io.open (path, "w"))
    handle:write ((policy:gsub ("\n    ", "\n")))
    handle:close ()
    local printed = output_of ("lua5.4 lua/bin/" .. command:gsub ("edges.lua", path))
    os.remove (path)
    local stock = tonumber (printed:match (" default .- ([%d.]+) x"))
    local own = tonumber (printed:match (path .. " .- ([%d.]+) x"))
    assert (stock and own and own > 1.5 and own > stock, printed)
  end)
end)

describe ("docs/fleet.md", function ()
  it ("simulates what it deploys", function ()
    local text = read ("docs/fleet.md")
    local simulated = text:match ("scan%-policy simulate .-```")
    local deployed = text:match ("scan%-policy=replay scan%-file%-trace=tuesday.-```")
    assert.equal (deployed:match ("scan%-size=(%w+)"),
                  simulated:match ("%-%-block (%w+)"))
    assert.equal (deployed:match ("scan%-threads=(%w+)"),
                  simulated:match ("%-%-threads (%w+)"))
  end)
end)

describe ("the manual pages", function ()
  for _, page in ipairs { "nbdkit-scan-filter", "nbdkit-scan-policy", "scan-policy" } do
    it (page .. " has no mark-up where it would be shown as it is", function ()
      for line in read ("docs/" .. page .. ".pod"):gmatch ("[^\n]+") do
        if line:match ("^%s") then assert.is_nil (line:match ("%f[%a][A-Z]<+[^<>]*>")) end
      end
    end)
  end

  it ("say how often a wait comes back", function ()
    assert.equal (0.001, runner.WAIT_MIN_SECONDS)
    assert.truthy (read ("docs/nbdkit-scan-policy.pod")
                     :find ("It comes back every millisecond at most", 1, true))
  end)
end)
