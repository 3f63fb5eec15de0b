-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A read-only file handle over "give me these bytes".
--
-- This is what `scan.open "NAME"` returns to a policy.  The bytes come from the
-- runner: the filter has read the file at start-up, the kit reads it from disk.
--
-- @module scan.file

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

--- Iterate over the rows of numbers in the lines that are left: "offset count", or
-- what is a read in a log of nbdkit's log filter.
-- @tparam integer columns how many numbers a line may have, 2 or 3
-- @tparam boolean log true if there may be lines of a log
-- @tparam function parse `parse (number, line)` gets the lines that the runner can't
-- read by itself; returns offset, count and perhaps a third number, or nil if the
-- line has none
-- @treturn function iterator over offset, count (bytes), third number or nil
function File:rows (columns, log, parse)
  local read_rows = self.read_rows
  return function ()
    while true do
      local offset, count, third
      if read_rows then
        local after, passed
        after, passed, offset, count, third = read_rows (position (self), columns, log)
        self.offset, self.buffer, self.at = after, "", 1
        self.number = self.number + passed
      end
      if not offset then
        local line = next_line (self)
        if not line then return nil end
        offset, count, third = parse (self.number, line)
      end
      if offset then return offset, count, third end
    end
  end
end

--- Make a handle.
-- @tparam function read_at `read_at (offset, count)` returns up to `count`
-- bytes, "" at the end
-- @tparam[opt] function read_rows `read_rows (offset, columns, log)` goes on from the
-- line at this offset over lines that have no row, and returns the offset of the next
-- line, how many it has passed, and the row in the last of these; or no row, if the
-- next line is not plainly one
-- @treturn table file with `read`, `lines` and `rows`
function M.new (read_at, read_rows)
  return setmetatable ({ read_at = read_at, read_rows = read_rows, offset = 0,
                         buffer = "", at = 1, number = 0 }, META)
end

return M
