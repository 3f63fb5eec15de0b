-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Lists of ranges of a disk, as a file gives them.
--
--     local extents = require "scan.extents"
--     local list = extents.read (scan.open ("boot"), "scan-file-boot")
--     return function (disk)
--       local message = extents.stale (list, disk.size)
--       if message then print (message) end
--       for offset, count in extents.each (list, disk.size) do
--         disk:prefetch (offset, count)
--       end
--     end
--
-- Each line of the file is
--
--     OFFSET COUNT [PRIORITY]
--
-- in bytes, as `scan.sizes` reads them; a priority is any number, 0 if left out; what
-- follows a # is a comment.
--
-- @module scan.extents

local sizes = require "scan.sizes"

-- A policy's strings have no patterns, and their methods are the policy's.
local gmatch, match = string.gmatch, string.match

local M = {}

-- Most of a malformed line that an error shows.
local SHOWN_BYTES = 60

local function malformed (name, number, line, expected)
  if #line > SHOWN_BYTES then line = line:sub (1, SHOWN_BYTES) .. "..." end
  error (("%s: line %d: %s expected, got '%s'"):format (name, number, expected, line), 0)
end

local function parse (name, number, line)
  local words = {}
  for word in gmatch (match (line, "^[^#]*"), "%S+") do words[#words + 1] = word end
  if #words == 0 then return nil end
  if #words == 1 or #words > 3 then
    malformed (name, number, line, "OFFSET COUNT [PRIORITY]")
  end
  local offset, count = sizes.parse (words[1]), sizes.parse (words[2])
  local priority = tonumber (words[3] or 0)
  if not offset then malformed (name, number, line, "an offset like 4096 or 2M") end
  if not count or count == 0 or count > math.maxinteger - offset then
    malformed (name, number, line, "a count like 4096 or 2M, at least 1")
  end
  if not priority or priority ~= priority then
    malformed (name, number, line, "a number as priority")
  end
  return { offset = offset, count = count, priority = priority, number = number }
end

--- Read a list.  A bad line is an error that names it.
-- @tparam table file with `lines`, from `scan.open` or `io.open`
-- @tparam string name of the file for messages, like "scan-file-regions"
-- @treturn table list of { offset =, count =, priority =, number = } (number of the
-- line), the highest priority first, lines of the same one in their order
function M.read (file, name)
  local list, number = {}, 0
  for line in file:lines () do
    number = number + 1
    list[#list + 1] = parse (name, number, line)
  end
  table.sort (list, function (a, b)
    if a.priority ~= b.priority then return a.priority > b.priority end
    return a.number < b.number
  end)
  return list
end

--- As much of a range as is on a disk.
-- @tparam integer offset in bytes, 0 or more
-- @tparam integer count in bytes
-- @tparam integer size of the disk in bytes
-- @treturn integer|nil count in bytes; nil if nothing is
function M.inside (offset, count, size)
  if offset >= size then return nil end
  return math.min (count, size - offset)
end

--- Go through what of a list is on a disk.
-- @tparam table list of { offset =, count = }
-- @tparam[opt] integer size of the disk in bytes; all of the list if left out
-- @treturn function iterator over offset, count (bytes)
function M.each (list, size)
  local i = 0
  size = size or math.maxinteger
  return function ()
    while i < #list do
      i = i + 1
      local offset = list[i].offset
      local count = M.inside (offset, list[i].count, size)
      if count then return offset, count end
    end
  end
end

--- Does a list reach beyond a disk?  Then it may be that of another image.
-- @tparam table|function list of { offset =, count = }, or an iterator over offset,
-- count
-- @tparam integer size of the disk in bytes
-- @treturn string|nil a message, nil if all is on the disk
function M.stale (list, size)
  local ranges, outside, cut = 0, 0, 0
  for offset, count in type (list) == "table" and M.each (list) or list do
    local inside = M.inside (offset, count, size)
    ranges = ranges + 1
    if not inside then
      outside = outside + 1
    elseif inside < count then
      cut = cut + 1
    end
  end
  if outside + cut == 0 then return nil end
  return ("of %d ranges %d begin behind the end of the disk (%d bytes) and are left "
          .. "out, %d reach beyond it and are cut; is the list that of another image?")
    :format (ranges, outside, size, cut)
end

return M
