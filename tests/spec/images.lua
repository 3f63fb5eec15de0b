-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- Disk images for the specs, made by the real tools.

local M = {}

--- Is there such a command?
function M.have (command)
  return os.execute ("PATH=$PATH:/usr/sbin:/sbin; command -v " .. command
                     .. " >/dev/null 2>&1") == true
end

--- Run a command and give what it prints.
function M.output (command)
  local handle = assert (io.popen ("PATH=$PATH:/usr/sbin:/sbin; " .. command
                                   .. " 2>/dev/null"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

-- In memory if that can be had: mke2fs and mkfs.xfs wait for the disk.
local function temporary_name ()
  local name = M.output ("mktemp -p /dev/shm || mktemp"):gsub ("%s", "")
  assert (name ~= "", "mktemp gives no name")
  return name
end

--- Make an image.  The caller removes it.
-- @tparam string script of the shell, which gets the file's name as $1 and an
-- empty directory as $2
-- @treturn string the file's name
function M.make (script)
  local name = temporary_name ()
  local command = ([[
    set -e; PATH=$PATH:/usr/sbin:/sbin; d=$(mktemp -d -p "$(dirname '%s')")
    trap 'rm -rf "$d"' EXIT; set -- '%s' "$d"; { %s; } >/dev/null 2>&1]])
    :format (name, name, script)
  if not os.execute (command) then
    os.remove (name)
    error ("can't make an image: " .. script, 2)
  end
  return name
end

--- The contents and size of a file.
function M.contents (name)
  local handle = assert (io.open (name, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text, #text
end

return M
