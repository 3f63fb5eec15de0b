-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A read-only file handle over "give me these bytes".
--
-- This is what `scan.open "NAME"` returns to a policy.  The bytes come from the
-- runner: the filter has read the file at start-up, the kit reads it from disk.
--
-- @module scan.file

local sizes = require "scan.sizes"

-- A policy's strings have no patterns, and their methods are the policy's.
local find, gmatch, match, sub = string.find, string.gmatch, string.match, string.sub
local parse_size = sizes.parse

local M = {}

local CHUNK_BYTES = 64 * 1024

-- No text that anybody wants the lines of has longer ones, and a disk's image has: to
-- look for their end would take time with the square of their length.
local LINE_MAX_BYTES = 1024 * 1024

local File = {}
local META = { __index = File, __metatable = "file" }

-- Make sure that at least `count` bytes are buffered, if the file has them.
local function fill (file, count)
  while #file.buffer < count do
    local missing = count - #file.buffer
    local chunk = file.read_at (file.offset,
                                missing > CHUNK_BYTES and missing or CHUNK_BYTES)
    if chunk == "" then return end
    file.offset = file.offset + #chunk
    file.buffer = file.buffer .. chunk
  end
end

--- Read up to `count` bytes, or all that is left.
-- @tparam[opt] integer count in bytes
-- @treturn string|nil nil at the end of the file
function File:read (count)
  -- What `lines` has given is gone.
  self.buffer, self.at = self.buffer:sub (self.at), 1
  if count == nil then
    local parts = { self.buffer }
    self.buffer = ""
    repeat
      local chunk = self.read_at (self.offset, CHUNK_BYTES)
      self.offset = self.offset + #chunk
      parts[#parts + 1] = chunk
    until chunk == ""
    return table.concat (parts)
  end
  if math.type (count) ~= "integer" or count < 0 then
    error ("read: count should be a whole number of bytes, got "
           .. tostring (count), 2)
  end
  fill (self, count)
  if self.buffer == "" and count > 0 then return nil end
  local part = self.buffer:sub (1, count)
  self.buffer = self.buffer:sub (count + 1)
  return part
end

-- The next line without its newline, or nil.  The buffer is cut once a chunk,
-- not once a line.
local function next_line (file)
  local searched = file.at
  while true do
    local newline = file.buffer:find ("\n", searched, true)
    if newline then
      local line = file.buffer:sub (file.at, newline - 1)
      file.at, file.number = newline + 1, file.number + 1
      return line
    end
    file.buffer = file.buffer:sub (file.at)
    file.at, searched = 1, #file.buffer + 1
    if #file.buffer > LINE_MAX_BYTES then
      error (("line %d is longer than %d bytes; is this a text?")
               :format (file.number + 1, LINE_MAX_BYTES), 0)
    end
    local chunk = file.read_at (file.offset, CHUNK_BYTES)
    if chunk == "" then
      local rest = file.buffer
      file.buffer, file.at = "", 1
      return rest ~= "" and rest or nil
    end
    file.offset = file.offset + #chunk
    file.buffer = file.buffer .. chunk
  end
end

--- Iterate over the lines that are left, without their newlines.  One of more than
-- 1 MiB is an error.
-- @treturn function iterator over strings
function File:lines ()
  return next_line, self
end

-- Where the next line begins.
local function position (file)
  return file.offset - #file.buffer + file.at - 1
end

local LOG_TIME = "^%d%d%d%d%-%d%d%-%d%d %d%d:%d%d:%d%d%.%d%d%d%d%d%d "

--- Is this a line of a log?  It begins with its time, or with "!" where the log filter
-- had none: from nbdkit 1.48 on that is so before the first client comes.
-- @tparam string line
-- @treturn boolean
function M.is_log_line (line)
  return sub (line, 1, 2) == "! " or find (line, LOG_TIME) ~= nil
end

--- A number field of such a line; the log writes them in hexadecimal.
-- @tparam string line
-- @tparam string name of the field
-- @treturn integer|nil
function M.log_field (line, name)
  local _, last = find (line, " " .. name .. "=", 1, true)
  local digits = last and match (line, "^0x%x+", last + 1)
  return digits and parse_size (digits)
end

local function plain_size (word)
  return word and (find (word, "^%d+%a?$") or find (word, "^0[xX]%x+$"))
    and parse_size (word)
end

local function plain_integer (word)
  local sign, digits = match (word, "^(%-?)(%d+)$")
  local n = digits and math.tointeger (tonumber (digits))
  return n and (sign == "-" and -n or n)
end

-- What rows.c of the filter makes of a line: a row; false if it has none; nil if that is
-- for the policy to say.
local function plain_row (line, columns, log)
  local offset, count, third
  if log and M.is_log_line (line) then
    if not find (line, " Read ", 1, true) or find (line, " ...Read ", 1, true) then
      return false
    end
    offset, count = M.log_field (line, "offset"), M.log_field (line, "count")
  else
    local words = {}
    for word in gmatch (match (line, "^[^#]*"), "%S+") do words[#words + 1] = word end
    if #words == 0 then return false end
    offset, count = plain_size (words[1]), plain_size (words[2])
    third = words[3] and plain_integer (words[3])
    if #words > (columns < 3 and 2 or 3) or words[3] and not third then return nil end
  end
  if offset and count and count > 0 and offset <= math.maxinteger - count then
    return offset, count, third
  end
end

local function each_row (file, next_of, columns, log, parse)
  local read_rows = file.read_rows
  return function ()
    while true do
      local offset, count, third
      if read_rows then
        local after, passed
        after, passed, offset, count, third = read_rows (position (file), columns, log)
        file.offset, file.buffer, file.at = after, "", 1
        file.number = file.number + passed
      end
      if not offset then
        local line = next_of (file)
        if not line then return nil end
        if not read_rows then offset, count, third = plain_row (line, columns, log) end
        if offset == nil then offset, count, third = parse (file.number, line) end
      end
      if offset then return offset, count, third end
    end
  end
end

--- Iterate over the rows of numbers in the lines that are left: "offset count", or
-- what is a read in a log of nbdkit's log filter.
-- @tparam integer columns how many numbers a line may have, 2 or 3
-- @tparam boolean log true if there may be lines of a log
-- @tparam function parse `parse (number, line)` gets the lines that are not plainly
-- one of these; returns offset, count and perhaps a third number, or nil if the line has
-- none
-- @treturn function iterator over offset, count (bytes), third number or nil
function File:rows (columns, log, parse)
  return each_row (self, next_line, columns, log, parse)
end

--- The same of any file that has `lines`.
function M.rows (file, columns, log, parse)
  if file.rows then return file:rows (columns, log, parse) end
  local next_of, state = file:lines ()
  return each_row ({ number = 0 }, function (counted)
    counted.number = counted.number + 1
    return next_of (state)
  end, columns, log, parse)
end

--- Make a handle.
-- @tparam function read_at `read_at (offset, count)` returns up to `count`
-- bytes, "" at the end
-- @tparam[opt] function read_rows `read_rows (offset, columns, log)` goes on from the
-- line at this offset over lines that have no row, and returns the offset of the next
-- line, how many it has passed, and the row in the last of these; or no row, if the
-- next line is not plainly one; without it the lines are looked at here
-- @treturn table file with `read`, `lines` and `rows`
function M.new (read_at, read_rows)
  return setmetatable ({ read_at = read_at, read_rows = read_rows, offset = 0,
                         buffer = "", at = 1, number = 0 }, META)
end

return M
