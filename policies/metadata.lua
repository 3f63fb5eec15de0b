-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- metadata: partition tables and file systems' metadata first, then the rest.
--
-- 1. The first and the last 64K of the disk, where partition tables are.
-- 2. For the whole disk, if there is a file system on it, and for each partition
--    of an MBR or GPT table in turn: of ext2, ext3 and ext4 the superblock and
--    the group descriptors, then of each group the bitmaps and the used part of
--    the inode table; of XFS of each allocation group the headers, the leaves
--    of the inode tree and the inodes.  Other file systems are passed over.
-- 3. The policy named by scan-arg-then.
--
-- What is found is widened to units of 64K (or a block, if that is less), and
-- joined with what follows it; nothing is fetched twice.  The disk is read with
-- small reads to find it (a few for each partition, one for each 64K of
-- descriptors, one for each leaf), one at a time: on a slow source with a huge
-- XFS that takes a while.  All numbers on the disk are checked; garbage ends the
-- walk of that file system and no more.
--
-- Memory: constant, and what is done (3 MB at most).  It wins when the first thing
-- the client does is to mount, to check or to list files.  It loses a little
-- when that is over before it begins.
--
-- scan-arg-then=NAME        a policy to go on with, or none (data)
-- scan-arg-then.NAME=VALUE  an argument of that policy

local arguments = require "scan.args"
local combine = require "scan.combinators"
local ext4 = require "scan.ext4"
local partitions = require "scan.partitions"
local xfs = require "scan.xfs"
local args = ...
arguments.check_known (args, { "then", "then.*" })
args["then"] = args["then"] or "data"
local go_on = args["then"] ~= "none" and combine.named (args, "then", scan.policy)

local UNIT_BYTES = 65536

-- Prefetch ranges, those that touch as one.
local function joiner (disk)
  local unit = math.min (UNIT_BYTES, disk.block)
  local from, stop
  local join = {}

  function join.flush ()
    while from and from < stop do
      if disk:closed () then return end
      local count = math.min (disk.block, stop - from)
      disk:prefetch (from, count)
      from = from + count
    end
    from = nil
  end

  function join.visit (offset, count)
    local first = offset - offset % unit
    local last = offset + count - 1
    local after = disk.size - last <= unit and disk.size or last - last % unit + unit
    if from and first >= from and first <= stop then
      stop = math.max (stop, after)
    else
      join.flush ()
      from, stop = first, after
    end
  end

  return join
end

local function walk (disk)
  local join = joiner (disk)
  local ends = math.min (UNIT_BYTES, disk.size)
  join.visit (0, ends)
  join.visit (disk.size - ends, ends)
  join.flush ()

  local places = partitions.find (disk)
  table.insert (places, 1, { offset = 0, count = disk.size })
  for _, place in ipairs (places) do
    if disk:closed () then return end
    local _ = ext4.walk (disk, place.offset, place.count, join.visit)
      or xfs.walk (disk, place.offset, place.count, join.visit)
    join.flush ()
  end
end

return combine.once (go_on and combine.chain (walk, go_on) or walk)
