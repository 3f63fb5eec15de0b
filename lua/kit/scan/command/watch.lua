-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy watch.
--
-- @module scan.command.watch

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local words = require "scan.command.words"
local shell = require "scan.shell"
local watch = require "scan.watch"
local world = require "scan.world"

local M = {}

M.about = "Show what a server is doing, from the file that scan-stats=FILE writes."

M.epilog = [[
Examples:
  scan-policy watch /run/nbdkit/scan.prom
  scan-policy watch scan.prom clone.prom      with what the clone filter counts
  scan-policy watch scan.prom --count 1       once, as for a script

On a terminal the view is drawn anew in place, until Ctrl-C; elsewhere it is a line for
each export. The strip shows which share of the disk is in which state, not where.]]

function M.add_options (command)
  command:argument ("file", "What scan-stats, or clone-stats, names."):argname ("FILE")
    :args ("+")
  command:option ("--interval", "Between two views. Default: 2s, or 10s with no"
                  .. " terminal.")
    :argname ("TIME"):convert (words.seconds ("--interval", 0.1))
  command:option ("--count", "End after so many. Default: go on.")
    :argname ("N"):convert (words.count ("--count", 1))
end

function M.run (options)
  local quoted = {}
  for i, path in ipairs (options.file) do
    quoted[i] = shell.quote (path)
  end
  local terminal = output.is_terminal (1)
  local view = { terminal = terminal }
  -- When each was written, as one text; a file is replaced as a whole.
  local function stamps ()
    return shell.output ("stat -L -c %.6Y -- " .. table.concat (quoted, " ")
                         .. " 2>/dev/null | sort -n | tr '\\n' ' '") or ""
  end
  function view.read ()
    local texts, written
    repeat
      texts, written = {}, stamps ()
      for i, path in ipairs (options.file) do
        local text, message = world.read_file (path)
        if not text then return nil, message end
        if not text:find ("nbdkit_%l+_") then
          return nil, path .. ": no counters of the scan or the clone filter are in it"
        end
        texts[i] = text
      end
    until written == stamps ()
    return table.concat (texts, "\n"), tonumber (written:match ("(%S+) $")) or 0
  end
  function view.clock () return os.time () end
  function view.sleep (time)
    return (os.execute (("sleep %.2f"):format (time)))
  end
  view.size = output.terminal_size
  function view.write (text)
    output.write (text)
    output.flush ()
  end
  function view.date () return (os.date ("%H:%M:%S")) end

  local called, ok, message = pcall (watch.run, view, {
    interval = options.interval or (terminal and 2 or 10), count = options.count,
  })
  -- Ctrl-C while something was drawn; while it sleeps, that is told otherwise.
  if not called and tostring (ok):find ("interrupted!", 1, true) then return 0 end
  if not called then error (ok, 0) end
  if not ok then inputs.refuse (message) end
  return 0
end

return M
