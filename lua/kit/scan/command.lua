-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- The command scan-policy: what it can do is in scan.command.NAME, a module for each
-- of its commands.
--
-- Results go to standard output, progress and errors to standard error.  Exit
-- status: 0 all well, 1 a policy or a file is at fault, 2 bad usage.
--
-- @module scan.command

local escape = require "scan.escape"
local output = require "scan.command.output"
local world = require "scan.world"

-- Not all who install by hand have it.
local has_argparse, argparse = pcall (require, "argparse")

local M = {}

-- In the order in which they are shown.  Each module has `about`, a sentence; `run`, a
-- function of the options that returns the exit status; and, but for one without
-- options, `epilog`, its examples, and `add_options`, a function of argparse's command.
local NAMES = { "check", "run", "simulate", "plot", "new", "translate", "watch", "map",
                "list" }

local COMMANDS = {}
for _, name in ipairs (NAMES) do COMMANDS[name] = require ("scan.command." .. name) end

local function print_and_exit (text)
  output.write (text, "\n")
  os.exit (output.finish (0))
end

local function add_help (parser)
  parser:add_help { action = function () print_and_exit (parser:get_help ()) end }
end

local function make_parser ()
  local parser = argparse ("scan-policy",
    "Check, run, simulate and draw policies of nbdkit's scan filter, without a server.")
  add_help (parser)
  parser:epilog [[
Begin here:
  scan-policy new mine            write mine.lua and its test, mine_spec.lua
  scan-policy check mine.lua      does it load, and does it behave?
  busted --lua=/usr/bin/lua5.4 mine_spec.lua
  scan-policy simulate default mine.lua --trace boot.log
  scan-policy plot mine.lua --trace boot.log -o mine.svg

A trace is made with nbdkit --filter=log PLUGIN ... logfile=boot.log
'scan-policy COMMAND --help' has more examples.]]
  parser:flag ("--version", "Show the version and exit."):action (function ()
    print_and_exit ("scan-policy " .. world.version ())
  end)
  parser:command_target ("command")
  parser:require_command (true)
  for _, name in ipairs (NAMES) do
    local module = COMMANDS[name]
    local command = parser:command (name, module.about)
    add_help (command)
    if module.epilog then command:epilog (module.epilog) end
    if module.add_options then module.add_options (command) end
  end
  return parser
end

-- A number below zero is what an option was given, and no option itself.
local function with_numbers (arguments)
  local words = {}
  for _, word in ipairs (arguments) do
    local last = words[#words]
    if last and last:find ("^%-%-[%w-]+$") and word:find ("^%-%.?%d") then
      words[#words] = last .. "=" .. word
    else
      words[#words + 1] = word
    end
  end
  return words
end

--- Do what the arguments say.
-- @tparam table arguments as in `arg`
-- @treturn integer exit status
function M.main (arguments)
  if not has_argparse then
    io.stderr:write ("scan-policy: Lua's module argparse is missing; install ",
                     "lua-argparse\n")
    return 1
  end
  local ok, options = make_parser ():pparse (with_numbers (arguments))
  if not ok then
    io.stderr:write ("scan-policy: ", escape.text (tostring (options)),
                     "; see scan-policy --help\n")
    return 2
  end
  local done, status = xpcall (COMMANDS[options.command].run, function (message)
    if type (message) == "table" and message.message then return message end
    return debug.traceback (message)
  end, options)
  if done then return output.finish (status) end
  if type (status) == "table" then
    io.stderr:write ("scan-policy: ", escape.text (status.message), "\n")
  else
    io.stderr:write ("scan-policy: a fault of its own: ", status, "\n")
  end
  return 1
end

return M
