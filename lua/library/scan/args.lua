-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Reading the `scan-arg-NAME=VALUE` strings of a policy.
--
-- Each function raises an error that names the parameter, the value and what
-- is allowed, at the place in the policy that asked; at start-up the filter
-- shows it and stops.  `check_known` catches a misspelt name.
--
-- @module scan.args

local size = require "scan.size"

local M = {}

local TRUE = { ["1"] = true, ["true"] = true, t = true, yes = true, y = true,
               on = true }
local FALSE = { ["0"] = true, ["false"] = true, f = true, no = true, n = true,
                off = true }

local function fail (name, value, expected)
  error (("scan-arg-%s: %s expected, got '%s'"):format (name, expected, value), 3)
end

--- A boolean, spelt as nbdkit's own.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam boolean default if it is not given
function M.boolean (args, name, default)
  local value = args[name]
  if value == nil then return default end
  local low = value:lower ()
  if TRUE[low] then return true end
  if FALSE[low] then return false end
  return fail (name, value, "true or false")
end

--- A number.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam number default if it is not given
-- @tparam[opt] number least allowed
-- @tparam[opt] number most allowed
function M.number (args, name, default, least, most)
  local value = args[name]
  if value == nil then return default end
  local n = tonumber (value)
  least, most = least or -math.huge, most or math.huge
  if n and n >= least and n <= most then return n end
  local range = ""
  if least > -math.huge then range = " from " .. least end
  if most < math.huge then range = range .. " up to " .. most end
  return fail (name, value, "a number" .. range)
end

--- A whole number; takes the same arguments as `number`.
function M.integer (args, name, default, least, most)
  local n = math.tointeger (M.number (args, name, default, least, most))
  if n == nil and args[name] ~= nil then
    return fail (name, args[name], "a whole number")
  end
  return n
end

--- A size in bytes; takes nbdkit's suffixes (K, M, G, T, P, E; s for sectors).
-- @tparam table args of the policy
-- @tparam string name
-- @tparam integer default in bytes, if it is not given
-- @tparam[opt] integer least bytes allowed
function M.size (args, name, default, least)
  local value = args[name]
  if value == nil then return default end
  local n = size.parse (value)
  if n and n >= (least or 0) then return n end
  return fail (name, value, "a size like 64K or 2M"
               .. (least and " of at least " .. least .. " bytes" or ""))
end

--- One of several words.
-- @tparam table args of the policy
-- @tparam string name
-- @tparam string default if it is not given
-- @tparam table words the list allowed
function M.choice (args, name, default, words)
  local value = args[name]
  if value == nil then return default end
  for _, word in ipairs (words) do
    if value == word then return value end
  end
  return fail (name, value, "one of " .. table.concat (words, ", "))
end

--- Raise an error if an argument was given that the policy does not know.
-- @tparam table args of the policy
-- @tparam table names the list of those it knows
function M.check_known (args, names)
  local unknown
  for name in pairs (args) do
    local known = false
    for _, n in ipairs (names) do known = known or n == name end
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
