-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- stride: goes on with the step that the last reads took.
--
-- lua/library/scan/strides.lua says what a step is and how far ahead is fetched: as
-- many steps as were read, up to scan-arg-depth.  Between reads it waits.
--
-- Memory: 16 walks and 16 other reads.  It wins on regular steps through a table or a
-- matrix, upwards or downwards, several at once and with other reads mixed in.  It
-- loses on reads that have no step; see `readahead` and `adaptive`.
--
-- scan-arg-depth=N   most steps ahead (512)

local arguments = require "scan.args"
local generators = require "scan.generators"
local strides = require "scan.strides"
local args = ...
arguments.check_known (args, { "depth" })
local DEPTH = arguments.integer (args, "depth", 512, 1, 1024)

return function (disk)
  generators.run (disk, { strides.new (disk, DEPTH) })
end
