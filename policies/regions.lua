-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- regions: the ranges that a file lists, the highest priority first.
--
-- The file is named with scan-file-regions=FILE.  Each line is
--
--     OFFSET COUNT [PRIORITY]
--
-- in bytes, decimal or 0x…, with an optional K, M, G or T; a priority is any
-- number, 0 if left out; what follows a # is a comment.  Ranges of the same
-- priority go in the order of the file.  Each is fetched a block at a time.
-- What is outside the disk is cut off, with a message; what has been fetched, or
-- read by a client, is left out.
--
-- A bad line is an error at start-up.  Memory: 32 bytes a line, for a million lines
-- 33 MB.  It loses when the file no longer fits the disk; that regions lie outside, or
-- that there are none, is warned of.
--
-- scan-arg-then=NAME        a policy to go on with (none: the scan ends)
-- scan-arg-then.NAME=VALUE  an argument of that policy

local arguments = require "scan.args"
local combine = require "scan.combinators"
local extents = require "scan.extents"
local args = ...
arguments.check_known (args, { "then", "then.*" })
local go_on = combine.named (args, "then", scan.policy)

local list = extents.read (scan.open ("regions"), "scan-file-regions")
if #list == 0 then scan.warn ("scan-file-regions: there are no regions in it") end

local function regions (disk)
  local message = extents.stale (extents.each (list), disk)
  if message then scan.warn ("scan-file-regions: " .. message) end
  for offset, count in extents.each (list, disk.size) do
    if disk:closed () then return end
    disk:prefetch (offset, count)
  end
end

return combine.once (go_on and combine.chain (regions, go_on) or regions)
