-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- stride: goes on with the step that the last reads took.
--
-- lua/library/scan/walks.lua says what a step is and how far ahead is fetched: as many
-- steps as were read, up to scan-arg-depth.  Reads without gaps are steps of a byte, of
-- which no more than 32M are fetched ahead.  Between reads it waits.
--
-- Memory: 128 readers.  It wins on regular steps through a table or a matrix, upwards or
-- downwards, several at once and with other reads mixed in.  It loses on reads that have
-- no step; see `readahead`, which is the same but for its argument, and `adaptive`.
--
-- scan-arg-depth=N   most steps ahead (512)

local arguments = require "scan.args"
local generators = require "scan.generators"
local walks = require "scan.walks"
local args = ...
arguments.check_known (args, { "depth" })
local DEPTH = arguments.integer (args, "depth", 512, 1, 1024)

return function (disk)
  generators.run (disk, { walks.new (disk, nil, DEPTH) })
end
