-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- Run by the filter in every new Lua state, with full libraries, before any
-- code of a policy.  Gets the functions that C offers (see sandbox.lua for
-- `native`); gives C what it calls later.

local native = ...
local host = require "scan.host"
local sandbox = require "scan.sandbox"

local env = sandbox.new (native)
sandbox.seal_strings (env)

local function load_policy (text, chunk_name, args)
  return sandbox.load (env, text, chunk_name, args)
end

return load_policy, host.main, host.prefetch_range
