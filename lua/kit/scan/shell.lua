-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What Lua has the shell do: it knows no directories, no terminals and no servers.
--
-- @module scan.shell

local M = {}

--- A word that a command gets as it is.
-- @tparam string word
-- @treturn string quoted
function M.quote (word)
  return "'" .. word:gsub ("'", "'\\''") .. "'"
end

--- Is there a command of this name?
function M.have (name)
  return os.execute ("command -v " .. name .. " >/dev/null 2>&1") == true
end

--- What a command prints.
-- @tparam string command
-- @treturn string|nil nil if it fails
function M.output (command)
  local handle = assert (io.popen (command))
  local text = handle:read ("a")
  return handle:close () and text or nil
end

return M
