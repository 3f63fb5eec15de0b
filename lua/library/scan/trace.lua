-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Traces: what a client read, and when.
--
-- Two formats are understood, and may be mixed:
--
-- - the log of nbdkit's own log filter (`nbdkit --filter=log ...
--   logfile=boot.log`); of its lines only reads matter;
-- - a plain list, one "offset count" a line, each decimal, 0x and hexadecimal,
--   or with a suffix (see scan.sizes).
--
-- Empty lines and what follows a `#` are ignored.  The filter embeds this
-- module, so it runs within the limits of a policy: `each` keeps nothing but
-- the reads in flight, `ranges` has the filter read what is plainly right, and
-- `blocks` keeps no more than a number for each block.
--
-- @module scan.trace

local scan_file = require "scan.file"
local sizes = require "scan.sizes"

local find, match, sub = string.find, string.match, string.sub
local tonumber = tonumber
local is_log_line, log_field = scan_file.is_log_line, scan_file.log_field
local parse_size = sizes.parse

local M = {}

-- Most of a malformed line that an error shows.
local SHOWN_BYTES = 60

local DAY_SECONDS = 24 * 60 * 60
local MICROSECONDS = 1000000

local function malformed (number, line, expected)
  if #line > SHOWN_BYTES then line = sub (line, 1, SHOWN_BYTES) .. "..." end
  error (("trace: line %d: %s expected, got '%s'"):format (number, expected, line), 0)
end

-- Days since some day, by the proleptic Gregorian calendar: only differences
-- are used, so that a boot that goes past midnight is no longer than it was.
local function day_number (year, month, day)
  if month < 3 then year, month = year - 1, month + 12 end
  return 365 * year + year // 4 - year // 100 + year // 400
    + (153 * (month - 3) + 2) // 5 + day
end

--- When a line of a log was written.
-- @tparam string line
-- @treturn integer|nil microseconds, of which only differences mean anything; nil if
-- the line does not begin with a time
function M.time (line)
  -- In an integer, as a float of seconds would lose them.
  local year, month, day, hour, minute, second, fraction =
    match (line, "^(%d%d%d%d)%-(%d%d)%-(%d%d) (%d%d):(%d%d):(%d%d)%.(%d%d%d%d%d%d) ")
  if not year then return nil end
  local days = day_number (tonumber (year), tonumber (month), tonumber (day))
  local seconds = tonumber (hour) * 3600 + tonumber (minute) * 60 + tonumber (second)
  return (days * DAY_SECONDS + seconds) * MICROSECONDS + tonumber (fraction)
end

local function check_range (number, line, offset, count)
  if not offset or not count or offset < 0 or count < 0
  or offset > math.maxinteger - count then
    malformed (number, line, "an offset and a count in bytes")
  end
end

-- The next read of a log, as M.each returns it; nil if the line holds none.
local function log_line (state, number, line)
  local connection = match (line, "connection=(%d+) ") or ""
  local id = match (line, " id=(%d+)") or ""
  local key = connection .. " " .. id
  if find (line, " ...Read ", 1, true) then
    state.reading[key] = nil
    if next (state.reading) == nil then
      state.idle_since = M.time (line) or state.last
    end
    return nil
  end
  if not find (line, " Read ", 1, true) then return nil end
  local offset, count = log_field (line, "offset"), log_field (line, "count")
  check_range (number, line, offset, count)
  local now = M.time (line) or state.last or 0
  state.first, state.last = state.first or now, now
  local idle = 0
  if next (state.reading) == nil and state.idle_since then
    idle = now - state.idle_since
  end
  state.reading[key] = true
  return offset, count, (now - state.first) / MICROSECONDS, idle / MICROSECONDS
end

-- The read in a line of either kind, or nil.
local function parse_line (state, number, line)
  local offset, count, seconds, idle
  if is_log_line (line) then
    offset, count, seconds, idle = log_line (state, number, line)
  else
    local first, after = match (match (line, "^[^#]*"), "^%s*(%S+)%s*(.*)$")
    if not first then return nil end
    local second = match (after, "^(%S+)%s*$")
    if not second then
      malformed (number, line, "'offset count' or a line of nbdkit's log filter")
    end
    offset, count = parse_size (first), parse_size (second)
    check_range (number, line, offset, count)
  end
  if offset and count > 0 then return offset, count, seconds, idle end
end

--- Iterate over the reads of a trace, in order, keeping none of them.
-- @tparam table file with `lines`, from `scan.open` or `io.open`
-- @treturn function iterator over offset, count (bytes); and for a log the
-- seconds since the first read, and the seconds for which no read had been in
-- flight when this one began (the client's think time)
function M.each (file)
  local next_line, lines_state = file:lines ()
  local state, number = { reading = {} }, 0
  return function ()
    while true do
      local line = next_line (lines_state)
      if not line then return nil end
      number = number + 1
      local offset, count, seconds, idle = parse_line (state, number, line)
      if offset then return offset, count, seconds, idle end
    end
  end
end

--- Iterate over the reads of a trace as `each` does, but not over their times: the
-- filter then does a million in a fraction of a second.
-- @tparam table file as for `each`
-- @treturn function iterator over offset, count (bytes)
function M.ranges (file)
  local state = { reading = {} }
  return scan_file.rows (file, 2, true, function (number, line)
    local offset, count = parse_line (state, number, line)
    return offset, count
  end)
end

--- Read a whole trace.  Needs about 100 bytes of memory a read; see `each`.
-- @tparam table file with `lines`, from `scan.open` or `io.open`
-- @treturn table list of { offset =, count =, seconds =, idle = }; the last two
-- only for a log, see `each`
function M.read (file)
  local list = {}
  for offset, count, seconds, idle in M.each (file) do
    list[#list + 1] = { offset = offset, count = count, seconds = seconds, idle = idle }
  end
  return list
end

--- The blocks that a trace touches, in the order of the first touch.
-- @tparam table file as for `each`
-- @tparam integer block bytes
-- @tparam integer size of the disk in bytes; what is outside is left out
-- @treturn table list of the blocks' offsets in bytes, none twice
function M.blocks (file, block, size)
  local blocks, seen = {}, {}
  for offset, count in M.ranges (file) do
    local last = math.min (offset + count, size) - 1
    for index = offset // block, last // block do
      if offset < size and not seen[index] then
        seen[index] = true
        blocks[#blocks + 1] = index * block
      end
    end
  end
  return blocks
end

return M
