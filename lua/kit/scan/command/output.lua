-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What commands show: on standard output, on a terminal, in a file.
--
-- @module scan.command.output

local inputs = require "scan.command.inputs"
local shell = require "scan.shell"

local M = {}

-- Seconds of real time between two lines of progress where there is no terminal.
local PROGRESS_SECONDS = 10

-- Why something that was printed has not arrived.
local failure

local function note (ok, message)
  failure = failure or not ok and message
end

--- Print to standard output.  That it could not is kept for `finish`; print would flush
-- each line, and forget.
function M.write (...)
  note (io.stdout:write (...))
end

--- What is printed is to be seen now.
function M.flush ()
  note (io.stdout:flush ())
end

--- What is printed has to arrive: a trace that ends where a disk is full looks like one.
-- @tparam integer status with which to exit
-- @treturn integer status, 1 if something did not arrive
function M.finish (status)
  M.flush ()
  if not failure or status ~= 0 then return status end
  io.stderr:write ("scan-policy: standard output: ", failure, "\n")
  return 1
end

--- Is this descriptor a terminal?
function M.is_terminal (descriptor)
  return os.execute ("test -t " .. descriptor) or false
end

--- The width and the height of the terminal, if there is one.
function M.terminal_size ()
  local rows, columns = (shell.output ("stty size 2>/dev/null </dev/tty") or "")
    :match ("^(%d+) (%d+)")
  -- A terminal that nobody has told its size, such as a serial line, says 0.
  local function number (text, default)
    local n = tonumber (text) or 0
    return n > 0 and n or default
  end
  return number (columns, 80), number (rows, 24)
end

--- Progress on standard error: rewritten in place on a terminal.
function M.progress_meter (label, describe)
  local terminal, last = nil, os.time ()
  local meter = { shown = false }
  function meter.show (done, all)
    local now = os.time ()
    if terminal == nil then terminal = M.is_terminal (2) end
    if now - last < (terminal and 1 or PROGRESS_SECONDS) then return end
    last, meter.shown = now, terminal
    io.stderr:write (terminal and "\r" or "",
                     ("%s: %s of %s (%d %%)"):format (label, describe (done),
                                                      describe (all),
                                                      done * 100 // all),
                     terminal and "" or "\n")
    io.stderr:flush ()
  end
  function meter.clear ()
    if meter.shown then io.stderr:write ("\r\27[K") end
  end
  return meter
end

--- Print columns as wide as they need to be.
-- @tparam table rows lists of cells, which are strings
-- @tparam integer left so many columns to the left, the rest to the right
function M.print_table (rows, left)
  local widths = {}
  for _, row in ipairs (rows) do
    for i, cell in ipairs (row) do widths[i] = math.max (widths[i] or 0, #cell) end
  end
  for _, row in ipairs (rows) do
    local cells = {}
    for i, cell in ipairs (row) do
      local padding = (" "):rep (widths[i] - #cell)
      cells[i] = i <= left and cell .. padding or padding .. cell
    end
    M.write ((table.concat (cells, "  "):gsub ("%s+$", "")), "\n")
  end
end

--- Write the file that --output names.
function M.write_file (path, text)
  local handle, message = io.open (path, "wb")
  local ok = handle and handle:write (text)
  if handle then ok = handle:close () and ok end
  if not ok then inputs.refuse ("--output: " .. (message or "can't write " .. path)) end
end

return M
