-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What the words behind an option mean: converters for argparse.
--
-- Each of these makes one for an option of this name: a function of the word, that
-- returns its value, or nil and what is wrong with it.
--
-- @module scan.command.words

local sizes = require "scan.sizes"
local units = require "scan.units"

local M = {}

--- A size in bytes, of at least so many.
function M.bytes (flag, least)
  return function (word)
    local n = sizes.parse (word)
    if n and n >= (least or 0) then return n end
    return nil, ("%s: a size like 64K, 2M or 1048576%s expected, got '%s'")
      :format (flag, least and " of at least " .. least .. " bytes" or "", word)
  end
end

--- What the server takes as scan-size.
function M.block (flag)
  return function (word)
    local n = sizes.parse (word)
    if n and n >= 512 and n <= 32 << 20 and n & n - 1 == 0 then return n end
    return nil, ("%s: a power of two from 512 to 32M expected, got '%s'")
      :format (flag, word)
  end
end

--- A time in seconds, of at least so many.
function M.seconds (flag, least)
  return function (word)
    local n = units.parse_seconds (word)
    if n and n >= (least or 0) then return n end
    return nil, ("%s: a time like 20ms, 0.02 or 1.5s%s expected, got '%s'")
      :format (flag, least and (" of at least %gs"):format (least) or "", word)
  end
end

--- A whole number within these bounds; `most` may be left out.
function M.count (flag, least, most)
  return function (word)
    local n = math.tointeger (tonumber (word:match ("^%d+$")))
    if n and n >= least and n <= (most or n) then return n end
    return nil, ("%s: a whole number from %d%s expected, got '%s'")
      :format (flag, least, most and " up to " .. most or " up", word)
  end
end

--- NAME=VALUE, as { NAME, VALUE }.
function M.pair (flag)
  return function (word)
    local name, value = word:match ("^([^=]+)=(.*)$")
    if name then return { name, value } end
    return nil, ("%s: NAME=VALUE expected, got '%s'"):format (flag, word)
  end
end

return M
