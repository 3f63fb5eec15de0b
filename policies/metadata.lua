-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- metadata: partition tables and file systems' metadata first, then the rest.
--
-- 1. What lua/library/scan/metadata.lua finds, in the order in which it finds it: both
--    ends of the disk, then partition by partition what is there of ext2, ext3, ext4
--    and XFS.
-- 2. The policy named by scan-arg-then.
--
-- Nothing is fetched twice, nor what a client has read.  The disk is read with small
-- reads to find it (a few for each partition, one for each 64K of descriptors, one for
-- each leaf), one at a time: on a slow source with a huge XFS that takes a while.
--
-- Memory: constant.  It wins when the first thing the client does is to mount, to
-- check or to list files.  It loses a little when that is over before it begins.
--
-- scan-arg-then=NAME        a policy to go on with, or none (data)
-- scan-arg-then.NAME=VALUE  an argument of that policy

local arguments = require "scan.args"
local combine = require "scan.combinators"
local generators = require "scan.generators"
local metadata = require "scan.metadata"
local args = ...
arguments.check_known (args, { "then", "then.*" })
args["then"] = args["then"] or "data"
local go_on = combine.named (args, "then", scan.policy)

local function walk (disk)
  generators.run (disk, { metadata.new (disk, 0) }, true)
end

return go_on and combine.chain (walk, combine.once (go_on)) or walk
