-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- ahead: from the start of the disk upwards, skipping over what the client has read.
--
-- Each connection scans on its own.  It loses when a client reads near the end
-- of the disk first: the scan then skips all that lies before.
-- The algorithm is in lua/library/scan/sequential.lua.

local sequential = require "scan.sequential"
require "scan.args".check_known (..., {})

return sequential.scan { ahead = true }
