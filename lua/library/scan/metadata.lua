-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): partition tables and file systems' metadata.
--
-- First the first and the last 64K of the disk, where partition tables are.  Then, for
-- the whole disk if there is a file system on it and for each partition of an MBR or
-- GPT table in turn: of ext2, ext3 and ext4 the superblock and the group descriptors,
-- then of each group the bitmaps and the used part of the inode table; of XFS of each
-- allocation group the headers, the leaves of the inode tree and the inodes.  Other
-- file systems are passed over.  What is found is widened to units of 64K.
--
-- To find it the disk is read.  What is read is fetched before, like all else, so that
-- nobody waits for it: the walk goes on when that has ended.  All numbers on the disk
-- are checked; garbage ends the walk of that file system and no more.
--
-- @module scan.metadata

local ext4 = require "scan.ext4"
local generators = require "scan.generators"
local partitions = require "scan.partitions"
local xfs = require "scan.xfs"

local M = {}

local Metadata = {}

-- Lone reads before it begins: a program that copies or streams has no use for it.
local LONE_READS = 8

-- The walk through a disk: wants ranges, one after the other, by yielding them.
local function walk (disk)
  local function visit (offset, count) coroutine.yield (offset, count) end
  local function read (_, offset, count) return coroutine.yield (offset, count, true) end
  local view = { size = disk.size, pread = read, closed = disk.closed }
  local ends = math.min (generators.UNIT_BYTES, disk.size)
  visit (0, ends)
  visit (disk.size - ends, ends)
  local places = partitions.find (view)
  table.insert (places, 1, { offset = 0, count = disk.size })
  for _, place in ipairs (places) do
    local _ = ext4.walk (view, place.offset, place.count, visit)
      or xfs.walk (view, place.offset, place.count, visit)
  end
end

--- Make one.
-- @tparam table disk
-- @tparam[opt] integer lone_reads before it begins, 8 if left out
-- @treturn table generator
function M.new (disk, lone_reads)
  return setmetatable ({ disk = disk, left = lone_reads or LONE_READS,
                         walk = coroutine.wrap (function () walk (disk) end),
                         range = { at = 0, stop = 0 } }, { __index = Metadata })
end

--- A client read.
function Metadata:note ()
  self.left = math.max (0, self.left - 1)
end

--- A prefetch has ended.
function Metadata:ended (offset, count)
  -- Any part of it: a piece that somebody else has fetched meanwhile has no end of its
  -- own.  What may still be on its way is waited for by the read.
  local r = self.in_flight
  if r and offset < r.stop and r.at < offset + count then self.in_flight = nil end
end

-- Go on to the next range that the walk wants; bytes if it wanted to read some.
local function go_on (metadata, bytes)
  local offset, count, reads = metadata.walk (bytes)
  if offset then
    local unit = generators.UNIT_BYTES
    metadata.range = generators.widen (metadata.disk, offset, count, unit)
    metadata.reads, metadata.in_flight = reads and { offset, count }, nil
  else
    metadata.walk = nil
  end
end

--- The next range of metadata.
function Metadata:next (most)
  local disk = self.disk
  while self.walk and self.left <= 0 do
    local offset, count = generators.take (disk, self.range, most)
    if offset then self.in_flight = { at = offset, stop = offset + count } end
    if offset or count then return offset, count end
    if self.reads and self.in_flight then return nil end
    go_on (self, self.reads and disk:pread (table.unpack (self.reads)) or nil)
  end
  return nil
end

return M
