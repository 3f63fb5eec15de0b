-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- adaptive: for when nothing is known about the client.
--
-- Made of generators, each in a file of its own in lua/library/scan; the first of them
-- that has something to fetch is served (generators.lua):
--
-- - walks.lua: what lies ahead of readers that go on, without gaps or in steps;
-- - metadata.lua: the file systems' metadata, once there were a few lone reads;
-- - neighbours.lua: the MiB around each lone read, the newest first;
-- - rest.lua: all other data, upwards from where a stream was read last, then what was
--   left out before; then what failed, again and again, later each time.
--
-- How much is in flight is not its business: scan-pace keeps the line full and no
-- more than that.  What a client has read or somebody has fetched is left out, and
-- holes are.  All connections of an export share that.  It ends when all is there.
--
-- Memory: 128 readers, 32 places of lone reads.  It loses a little to `data`
-- and to `default` where a client reads all of the disk upwards, and much to `replay`
-- where there is a trace.
--
-- scan-arg-window=SIZE       most bytes ahead of a sequential reader (32M)
-- scan-arg-fill=BOOL         false: what lies ahead of readers alone (true)

local arguments = require "scan.args"
local generators = require "scan.generators"
local metadata = require "scan.metadata"
local neighbours = require "scan.neighbours"
local rest = require "scan.rest"
local walks = require "scan.walks"
local args = ...
arguments.check_known (args, { "window", "fill" })
local WINDOW = arguments.size (args, "window", 32 << 20, 65536)
local FILL = arguments.boolean (args, "fill", true)

return function (disk)
  local readers = walks.new (disk, WINDOW)
  generators.run (disk, not FILL and { readers } or {
    readers, metadata.new (disk), neighbours.new (disk), rest.new (disk, readers),
  }, FILL)
end
