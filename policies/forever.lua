-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- forever: round and round the disk while the client stays.
--
-- Client reads do not move it.  It never ends by itself: use it over a layer that
-- drops data, and expect the source to be read without pause.
-- The algorithm is in lua/library/scan/sequential.lua.

local sequential = require "scan.sequential"
require "scan.args".check_known (..., {})

return sequential.scan { forever = true }
