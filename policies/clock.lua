-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- clock: upwards from the furthest place that any earlier scan has reached.
--
-- Client reads do not move it.  A connection after the first full scan fetches
-- nothing, which loses if the layer below has dropped the data meanwhile.
-- The algorithm is in lua/library/scan/sequential.lua.

local sequential = require "scan.sequential"
require "scan.args".check_known (..., {})

return sequential.scan { clock = sequential.clock () }
