-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Reading the `scan-arg-NAME=VALUE` strings of a policy.
--
-- Each function raises an error that names the parameter, the value and what
-- is allowed, at the place in the policy that asked; at start-up the filter
-- shows it and stops.  A default is held to what is allowed as well, unless it is
-- nil.  `check_known` catches a misspelt name.
--
-- @module scan.args

local host = require "scan.host"
local sizes = require "scan.sizes"

local M = {}

local TRUE = { ["1"] = true, ["true"] = true, t = true, yes = true, y = true,
               on = true }
local FALSE = { ["0"] = true, ["false"] = true, f = true, no = true, n = true,
                off = true }

-- An error at this level, counted from here, if something is no table.
local function check_table (value, what, level)
  if type (value) ~= "table" then
    error (("%s expected, got %s"):format (what, host.shown (value)), level)
  end
end

local ARGS = "scan.args: the table of the policy's arguments, its '...',"

-- What `read` makes of the value that was given, or of the default.  An error, at the
-- caller's caller, if that is nil.
local function argument (args, name, default, expected, read)
  check_table (args, ARGS, 4)
  local value, what = args[name], "scan-arg-" .. name
  if value == nil then
    if default == nil then return nil end
    value, what = default, what .. ": the policy's default"
  end
  local result = read (value)
  if result ~= nil then return result end
  error (("%s: %s expected, got '%s'"):format (what, expected, tostring (value)), 3)
end

-- In brackets, calls of `argument` are no tail calls, and the levels of errors hold.

--- A boolean, spelt as nbdkit's own.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam boolean default if it is not given
-- @treturn boolean
function M.boolean (args, name, default)
  return (argument (args, name, default, "true or false", function (value)
    local low = tostring (value):lower ()
    if TRUE[low] then return true end
    if FALSE[low] then return false end
  end))
end

-- As `tonumber`, which drops what of a hexadecimal number is more than 64 bits.
local function to_number (value)
  local sign, hex
  if type (value) == "string" then
    sign, hex = string.match (value, "^%s*([-+]?)(0[xX]%x+)%s*$")
  end
  if not hex then return tonumber (value) end
  local n = sizes.parse (hex)
  return n and (sign == "-" and -n or n)
end

local function range_text (least, most)
  return (least and " from " .. least or "") .. (most and " up to " .. most or "")
end

-- NaN is in no range.
local function in_range (n, least, most)
  return n and n >= (least or -math.huge) and n <= (most or math.huge)
end

--- A number.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam number default if it is not given
-- @tparam[opt] number least allowed
-- @tparam[opt] number most allowed
-- @treturn number
function M.number (args, name, default, least, most)
  local expected = "a number" .. range_text (least, most)
  return (argument (args, name, default, expected, function (value)
    local n = to_number (value)
    return in_range (n, least, most) and n or nil
  end))
end

--- A whole number.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam integer default if it is not given
-- @tparam[opt] integer least allowed
-- @tparam[opt] integer most allowed
-- @treturn integer
function M.integer (args, name, default, least, most)
  local expected = "a whole number" .. range_text (least, most)
  return (argument (args, name, default, expected, function (value)
    local n = math.tointeger (to_number (value))
    return in_range (n, least, most) and n or nil
  end))
end

--- A size in bytes, as `scan.sizes` reads it.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam integer|string default if it is not given, in bytes or like "64K"
-- @tparam[opt] integer least bytes allowed
-- @tparam[opt] integer most bytes allowed
-- @treturn integer bytes
function M.size (args, name, default, least, most)
  local bounds = least and " of at least " .. least .. " bytes" or ""
  if most then bounds = bounds .. " up to " .. most .. " bytes" end
  return (argument (args, name, default, "a size like 64K or 2M" .. bounds,
                    function (value)
    local n = type (value) == "number" and math.tointeger (value)
      or type (value) == "string" and sizes.parse (value)
    return in_range (n, least or 0, most) and n or nil
  end))
end

--- One of several words.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam string default if it is not given
-- @tparam table words the list allowed
-- @treturn string
function M.choice (args, name, default, words)
  check_table (words, "args.choice: a list of words", 3)
  local expected = "one of " .. table.concat (words, ", ")
  return (argument (args, name, default, expected, function (value)
    for _, word in ipairs (words) do
      if value == word then return value end
    end
  end))
end

-- Is a name in a list, in which "then.*" stands for all that begin with "then."?
local function is_known (name, names)
  for _, known in ipairs (names) do
    if name == known then return true end
    local stem = known:sub (-2) == ".*" and known:sub (1, -2)
    if stem and #name > #stem and name:sub (1, #stem) == stem then return true end
  end
  return false
end

--- Raise an error if an argument was given that the policy does not know.
-- @tparam table args of the policy
-- @tparam table names the list of those it knows; "then.*" stands for all that
-- begin with "then."
function M.check_known (args, names)
  check_table (args, ARGS, 3)
  check_table (names, "args.check_known: a list of names", 3)
  local unknown
  for name in pairs (args) do
    if type (name) ~= "string" then
      error (("%s should have strings as names, as in { order = 'time' }, got %s")
               :format (ARGS, host.shown (name)), 2)
    end
    local known = is_known (name, names)
    -- The least, so that the message does not depend on the table's order.
    if not known and (unknown == nil or name < unknown) then unknown = name end
  end
  if unknown then
    error (("scan-arg-%s: this policy has no such argument; it knows: %s")
           :format (unknown, #names > 0 and table.concat (names, ", ")
                    or "none"), 2)
  end
end

return M
