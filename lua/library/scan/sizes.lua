-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Sizes and offsets as people write them.
--
-- @module scan.sizes

local format, match = string.format, string.match
local tonumber, tointeger = tonumber, math.tointeger

local M = {}

local UNITS = { B = 1, S = 1 << 9, K = 1 << 10, M = 1 << 20, G = 1 << 30, T = 1 << 40,
                P = 1 << 50, E = 1 << 60 }

-- The digits of 64 bits: Lua would quietly drop the rest.
local HEX_MAX_DIGITS = 16

--- Bytes from a word: 4096, 0x1000, 64K, 2M, 1.5G.  The suffixes are nbdkit's, in
-- either case: B, S (sectors of 512), K, M, G, T, P, E.
-- @tparam string word
-- @treturn integer|nil from 0 up; nil if it is no size, or no whole number of bytes
function M.parse (word)
  if type (word) ~= "string" then
    error ("sizes.parse: a string expected, got " .. type (word), 2)
  end
  local digits, fraction, suffix = match (word, "^(%d+)(%.?%d*)(%a?)$")
  if not digits then
    local hex = match (word, "^0[xX](%x+)$")
    local n = hex and #match (hex, "^0*(.*)$") <= HEX_MAX_DIGITS and tonumber (hex, 16)
    return n and n >= 0 and n or nil
  end
  local unit = suffix == "" and 1 or UNITS[suffix:upper ()]
  if not unit or fraction == "." then return nil end
  -- More digits than an integer has make a float.
  local n = tointeger (tonumber (digits))
  if not n or n > math.maxinteger // unit then return nil end
  if fraction == "" then return n * unit end
  local part = tonumber ("0" .. fraction)
  local bytes = tointeger (part * unit)
  -- A float may be whole where what it stands for is not.  What is whole bytes has no
  -- more digits than there are bits below its unit, 60.
  if not bytes or match (format ("%.60f", part), "^(.-)0*$")
                  ~= match ("0" .. fraction, "^(.-)0*$") then
    return nil
  end
  return n * unit + bytes
end

return M
