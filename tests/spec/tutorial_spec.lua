-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- docs/tutorial.md: following it to the letter gives what it shows.

local world = require "scan.world"

local directory, here

local function read (path)
  local handle = assert (io.open (path, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

local function write (name, text)
  local handle = assert (io.open (directory .. "/" .. name, "w"))
  handle:write (text)
  handle:close ()
end

-- What a command prints, in the directory of the tutorial.
local function output_of (command)
  local lua_path = world.LUA_PATH:gsub ("%f[%w]lua/", here .. "/lua/")
  local handle = assert (io.popen (("cd %s && LUA_PATH='%s;;' %s 2>&1")
                                     :format (directory, lua_path, command)))
  local text = handle:read ("a")
  handle:close ()
  return text
end

-- The document in parts: { command =, output = } and { code = }, in order.
local function parts_of (text)
  local parts, code, command = {}, nil, nil
  for line in text:gmatch ("([^\n]*)\n") do
    if line == "```lua" then
      code = { code = "" }
    elseif line == "```" then
      parts[#parts + 1], code = code, nil
    elseif code then
      code.code = code.code .. line .. "\n"
    elseif line:match ("^    %$ ") then
      command = { command = line:match ("^    %$ (.*)"), output = "" }
      parts[#parts + 1] = command
    elseif command and line:match ("^    ") then
      command.output = command.output .. line:sub (5) .. "\n"
    else
      command = nil
    end
  end
  return parts
end

setup (function ()
  directory = os.tmpname ()
  os.remove (directory)
  assert (os.execute ("mkdir " .. directory))
  local handle = io.popen ("pwd")
  here = handle:read ("l")
  handle:close ()
  for _, name in ipairs { "blkid", "fio-random" } do
    write (name .. ".log", read ("tests/traces/" .. name .. ".log"))
  end
end)

teardown (function () os.execute ("rm -r " .. directory) end)

describe ("the tutorial", function ()
  it ("shows what is printed", function ()
    local commands, codes = 0, 0
    for _, part in ipairs (parts_of (read ("docs/tutorial.md"))) do
      if part.code then
        codes = codes + 1
        if codes == 1 then
          write ("window.lua", part.code)
        else
          assert.truthy (read ("docs/tutorial.md")
                           :find ("what is before it, and replace all that follows by", 1,
                                  true))
          local start = read (directory .. "/window_spec.lua"):match
            ('^.-require "scan.contract" [^\n]*\n')
          write ("window_spec.lua", start .. "\n" .. part.code)
        end
      elseif part.command:match ("^busted ") then
        local shown, printed = part.output, output_of (part.command)
        assert.equal (shown:match ("%d+ successes / 0 failures / 0 errors"),
                      printed:match ("%d+ successes / %d+ failures / %d+ errors"),
                      printed)
        commands = commands + 1
      else
        local program = ("lua5.4 %s/lua/bin/"):format (here)
        local printed = output_of (program .. part.command)
        assert.equal (part.output, (printed:gsub (" %-m '[^\n']*'", "")))
        commands = commands + 1
      end
    end
    assert.same ({ 10, 2 }, { commands, codes })
    for _, name in ipairs { "default", "window" } do
      assert.equal (read (("docs/tutorial-%s.svg"):format (name)),
                    read (("%s/%s.svg"):format (directory, name)))
    end
  end)
end)
