-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Numbers as people read them, with their units.  `scan.sizes` reads sizes.
--
-- @module scan.units

local M = {}

local BINARY = { "bytes", "KiB", "MiB", "GiB", "TiB", "PiB" }

--- The unit for numbers up to a size.
-- @tparam number bytes the largest of them
-- @treturn integer how many bytes one of it is
-- @treturn string its name
function M.byte_unit (bytes)
  local unit, i = 1, 1
  while bytes >= 1024 * unit and i < #BINARY do unit, i = unit * 1024, i + 1 end
  return unit, BINARY[i]
end

-- Three digits, and no zeroes at the end.
local function short (number)
  if number >= 1000 then return ("%.0f"):format (number) end
  return ("%.3g"):format (number)
end

--- Bytes, like "1.5 MiB".
function M.bytes (bytes)
  local unit, name = M.byte_unit (bytes)
  return short (bytes / unit) .. " " .. name
end

--- The unit for times up to so many seconds.
-- @treturn number how many seconds one of it is
-- @treturn string its name
function M.second_unit (seconds)
  if seconds >= 1 or seconds == 0 then return 1, "s" end
  if seconds >= 1e-3 then return 1e-3, "ms" end
  return 1e-6, "us"
end

--- Seconds, like "1.25 s" or "20 ms".
function M.seconds (seconds)
  local unit, name = M.second_unit (seconds)
  return short (seconds / unit) .. " " .. name
end

local TIMES = { us = 1e-6, ms = 1e-3, s = 1 }

--- Seconds from what a person writes: 0.02, 20ms, 1.5s.
-- @tparam string word
-- @treturn number|nil nil if it is not a time
function M.parse_seconds (word)
  local digits, suffix = word:match ("^(%d*%.?%d*)(%a*)$")
  local unit = suffix == "" and 1 or TIMES[suffix]
  local n = digits and tonumber (digits)
  return n and unit and n * unit
end

return M
