-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Text from elsewhere in what is printed: filter/common/escape.c once more.
--
-- @module scan.escape

local M = {}

-- Not what moves the cursor, or changes the order in which a terminal shows text.
local function is_printable (code)
  return code >= 0x20 and not (code >= 0x7f and code < 0xa0)
    and not (code >= 0x200e and code <= 0x200f)
    and not (code >= 0x2028 and code <= 0x202e)
    and not (code >= 0x2066 and code <= 0x2069)
    or code == 10 or code == 9
end

--- A message of several lines of which only bytes are from elsewhere: line ends, tabs
-- and backslashes stay as they are, as do all characters that can be shown; other bytes
-- become \x and two hexadecimal digits.
-- @tparam string text
-- @treturn string
function M.text (text)
  if not text:find ("[^ -~\n\t]") then return text end
  local parts, at = {}, 1
  while at <= #text do
    local after = utf8.len (text, at, at) and utf8.offset (text, 2, at) or at + 1
    local part = text:sub (at, after - 1)
    if not utf8.len (part) or not is_printable (utf8.codepoint (part)) then
      part = part:gsub (".", function (byte) return ("\\x%02x"):format (byte:byte ()) end)
    end
    parts[#parts + 1], at = part, after
  end
  return table.concat (parts)
end

--- The same in one line: line ends and tabs become spaces.
-- @tparam string text
-- @treturn string
function M.line (text)
  return (M.text (text):gsub ("%c", " "))
end

return M
