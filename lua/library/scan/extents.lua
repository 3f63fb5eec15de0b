-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Lists of ranges of a disk, as a file gives them.
--
--     local extents = require "scan.extents"
--     local list = extents.read (scan.open ("boot"), "scan-file-boot")
--     return function (disk)
--       local message = extents.stale (extents.each (list), disk)
--       if message then scan.warn ("scan-file-boot: " .. message) end
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
-- follows a # is a comment.  For traces, which have no priorities and may be logs,
-- there is `scan.trace`.
--
-- @module scan.extents

local host = require "scan.host"
local scan_file = require "scan.file"
local sizes = require "scan.sizes"

-- A policy's strings have no patterns, and their methods are the policy's.
local gmatch, match, sub = string.gmatch, string.match, string.sub
local parse_size = sizes.parse

local M = {}

-- Most of a malformed line that an error shows.
local SHOWN_BYTES = 60

local function parser (name)
  local function malformed (number, line, expected)
    if #line > SHOWN_BYTES then line = sub (line, 1, SHOWN_BYTES) .. "..." end
    error (("%s: line %d: %s expected, got '%s'"):format (name, number, expected, line),
           0)
  end
  return function (number, line)
    local words = {}
    for word in gmatch (match (line, "^[^#]*"), "%S+") do words[#words + 1] = word end
    if #words == 0 then return nil end
    if #words == 1 or #words > 3 then
      malformed (number, line, "OFFSET COUNT [PRIORITY]")
    end
    local offset, count = parse_size (words[1]), parse_size (words[2])
    local priority = tonumber (words[3] or 0)
    if not offset then malformed (number, line, "an offset like 4096 or 2M") end
    if not count or count == 0 or count > math.maxinteger - offset then
      malformed (number, line, "a count like 4096 or 2M, at least 1")
    end
    if not priority or priority ~= priority then
      malformed (number, line, "a number as priority")
    end
    return offset, count, priority
  end
end

--- Read a list.  A bad line is an error that names it.  Lines that go on where the one
-- before them ends are one range.  A million others take 33 MB.
-- @tparam table file with `lines`, from `scan.open` or `io.open`
-- @tparam string name of the file for messages, like "scan-file-regions"
-- @treturn table list for `each`
function M.read (file, name)
  if type (file) ~= "table" and type (file) ~= "userdata" then
    error ("extents.read: a file expected, as scan.open gives it, got "
           .. host.shown (file), 2)
  end
  -- The ranges of a priority are lists of their offsets and counts.
  local list, by_priority = {}, {}
  for offset, count, priority in scan_file.rows (file, 3, false, parser (name)) do
    priority = priority or 0
    local group = by_priority[priority]
    if not group then
      group = { priority = priority, offsets = {}, counts = {} }
      by_priority[priority], list[#list + 1] = group, group
    end
    local n = #group.offsets
    if n > 0 and offset == group.offsets[n] + group.counts[n] then
      group.counts[n] = group.counts[n] + count
    else
      group.offsets[n + 1], group.counts[n + 1] = offset, count
    end
  end
  table.sort (list, function (a, b) return a.priority > b.priority end)
  return list
end

-- As much of a range as is on a disk; nil if nothing is.
local function inside (offset, count, size)
  if offset >= size then return nil end
  return math.min (count, size - offset)
end

--- Go through what of a list is on a disk, the highest priority first, and of the same
-- one in the order of the file.
-- @tparam table list from `read`
-- @tparam[opt] integer size of the disk in bytes; all of the list if left out
-- @treturn function iterator over offset, count (bytes)
function M.each (list, size)
  local group, i = 1, 0
  size = size or math.maxinteger
  return function ()
    while list[group] do
      i = i + 1
      local offset = list[group].offsets[i]
      if offset then
        local count = inside (offset, list[group].counts[i], size)
        if count then return offset, count end
      else
        group, i = group + 1, 0
      end
    end
  end
end

-- So many are looked at in some hundredths of a second.
local REST_RANGES = 1 << 16

--- Do ranges reach beyond a disk?  Then they may be those of another image.
-- @tparam function ranges iterator over offset, count, as `each` gives it
-- @tparam table disk of a scan: it takes a rest now and then, as a decision has its time
-- @treturn string|nil a message, nil if all is on the disk
function M.stale (ranges, disk)
  local size, all, outside, cut = disk.size, 0, 0, 0
  for offset, count in ranges do
    local there = inside (offset, count, size)
    all = all + 1
    if all % REST_RANGES == 0 then disk:wait (0) end
    if not there then
      outside = outside + 1
    elseif there < count then
      cut = cut + 1
    end
  end
  if outside + cut == 0 then return nil end
  return ("of %d ranges, %d lie beyond the end of the disk (%d bytes)%s; is this the "
          .. "list of another image?")
    :format (all, outside, size, cut > 0 and ", and " .. cut .. " in part" or "")
end

return M
