-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- readahead: stays ahead of sequential readers, and fetches nothing else.
--
-- lua/library/scan/walks.lua says what such a reader is, upwards, downwards or in steps,
-- and how far ahead of it is fetched.  Nothing is fetched before one shows; between
-- reads it waits.
--
-- Memory: 128 readers.  About half of what it fetches is never read at most (a reader
-- that ends).  It wins over a source with much latency, more so with several threads.
-- It loses (fetches nothing) on random reads, and most of a boot; see `adaptive` and
-- `replay` for these.
--
-- scan-arg-window=SIZE   most bytes ahead of a reader (32M)

local arguments = require "scan.args"
local generators = require "scan.generators"
local walks = require "scan.walks"
local args = ...
arguments.check_known (args, { "window" })
local WINDOW = arguments.size (args, "window", 32 << 20, 65536)

return function (disk)
  generators.run (disk, { walks.new (disk, WINDOW) })
end
