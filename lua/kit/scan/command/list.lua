-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy list.
--
-- @module scan.command.list

local output = require "scan.command.output"
local world = require "scan.world"

local M = {}

M.about = "List the built-in policies."

function M.run ()
  local rows = {}
  for i, policy in ipairs (world.list ()) do rows[i] = { policy.name, policy.about } end
  output.print_table (rows, 2)
  return 0
end

return M
