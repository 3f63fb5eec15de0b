-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- default: what the stock scan filter does, with its three switches.
--
-- scan-ahead (true), scan-clock (true) and scan-forever (false) are handed to
-- this policy as arguments.  The algorithm is in lua/library/scan/sequential.lua.
-- It costs a few words of memory and fetches the whole disk, holes too.  It
-- loses when a client reads near the end of the disk first: the scan then
-- skips all that lies before.

local arguments = require "scan.args"
local sequential = require "scan.sequential"

local args = ...
arguments.check_known (args, { "ahead", "clock", "forever" })

return sequential.scan {
  ahead = arguments.boolean (args, "ahead", true),
  clock = arguments.boolean (args, "clock", true) and sequential.clock () or nil,
  forever = arguments.boolean (args, "forever", false),
}
