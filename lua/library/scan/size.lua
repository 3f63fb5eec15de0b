-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Sizes in bytes, as people and logs write them.
--
-- @module scan.size

local lower, match = string.lower, string.match
local tointeger, tonumber = math.tointeger, tonumber
local maxinteger = math.maxinteger

local M = {}

-- nbdkit's: a sector is 512 bytes, the others are powers of 1024.
local SHIFTS = { b = 0, s = 9, k = 10, m = 20, g = 30, t = 40, p = 50, e = 60 }

-- "0x" and the digits of 64 bits: Lua would quietly drop the rest.
local HEX_MAX_BYTES = 18

--- A size: 4096, 4K (nbdkit's suffixes), or 0x1000, which has none.
-- @tparam string word
-- @treturn integer|nil bytes, nil if it is no size or 2^63 or more
function M.parse (word)
  local digits, suffix = match (word, "^(%d+)(%a?)$")
  local n, shift
  if digits then
    n, shift = tointeger (tonumber (digits)), 0
    if suffix ~= "" then shift = SHIFTS[lower (suffix)] end
  elseif #word <= HEX_MAX_BYTES and match (word, "^0[xX]%x+$") then
    n, shift = tointeger (tonumber (word)), 0
  end
  if n and shift and n >= 0 and n <= maxinteger >> shift then return n << shift end
  return nil
end

return M
