-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy new.
--
-- @module scan.command.new

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local template = require "scan.template"
local world = require "scan.world"

local M = {}

M.about = "Write NAME.lua, a policy to start from, and NAME_spec.lua, its test."

M.epilog = [[
Example:
  scan-policy new nightly && busted --lua=/usr/bin/lua5.4 nightly_spec.lua]]

function M.add_options (command)
  command:argument ("name", "Its name; letters, digits, _ and -, perhaps after a"
                    .. " directory.")
    :argname ("NAME")
end

function M.run (options)
  local directory, name = options.name:match ("^(.*/)([^/]*)$")
  directory, name = directory or "", (name or options.name):gsub ("%.lua$", "")
  if not name:match ("^[%w_-]+$") then
    inputs.refuse (("NAME: letters, digits, _ and - expected, got '%s'")
                     :format (options.name))
  end
  if directory == "" and world.is_built_in (name) then
    inputs.refuse (("NAME: '%s' is a built-in policy, which is what this name would "
                    .. "mean; choose another, or put a directory before it")
                     :format (name))
  end
  local policy_path = directory .. name .. ".lua"
  local spec_path = directory .. name .. "_spec.lua"
  local fill = { ["@NAME@"] = name, ["@PATH@"] = policy_path }
  for _, path in ipairs { policy_path, spec_path } do
    local handle = io.open (path, "rb")
    if handle then
      handle:close ()
      inputs.refuse (path .. " exists already; choose another name or move it away")
    end
  end
  for path, text in pairs { [policy_path] = template.POLICY,
                            [spec_path] = template.SPEC } do
    local handle, message = io.open (path, "wb")
    if not handle then inputs.refuse (message) end
    local ok, why = handle:write ((text:gsub ("@%u+@", fill)))
    if ok then ok, why = handle:close () end
    if not ok then
      os.remove (path)
      inputs.refuse (("%s: %s"):format (path, why))
    end
  end
  output.write (("wrote %s and %s; next:\n"):format (policy_path, spec_path))
  output.write ("  scan-policy check ", policy_path, "\n")
  -- Where Lua would not find the kit by itself, busted must be told.
  local path = os.getenv ("LUA_PATH") or
    "/usr/share/lua/5.4/?.lua;/usr/local/share/lua/5.4/?.lua"
  local found = package.searchpath ("scan.testing", path)
  local where = found and "" or ("LUA_PATH='%s;;' "):format (world.LUA_PATH)
  output.write (("  %sbusted --lua=/usr/bin/lua5.4 %s\n"):format (where, spec_path))
  return 0
end

return M
