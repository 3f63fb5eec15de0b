-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): partition tables and file systems' metadata.
--
-- First the first and the last 64K of the disk, where partition tables are.  Then, for
-- the whole disk if there is a file system on it and for each partition of an MBR or
-- GPT table in turn: of ext2, ext3 and ext4 the superblock and the group descriptors,
-- then of each group the bitmaps and the used part of the inode table; of XFS of each
-- allocation group the headers, the leaves of the inode tree and the inodes.  Other
-- file systems are passed over.  What is found is widened to units of 64K (or a block,
-- if that is less), and joined with what follows it.
--
-- To find it the disk is read.  What is read is fetched before, like all else, so that
-- nobody waits for it: the walk goes on when that has ended.  All numbers on the disk
-- are checked; garbage ends the walk of that file system and no more.
--
-- @module scan.metadata

local ext4 = require "scan.ext4"
local holes = require "scan.holes"
local partitions = require "scan.partitions"
local xfs = require "scan.xfs"

local M = {}

local Metadata = {}
local META = { __index = Metadata }

local UNIT_BYTES = 65536

-- A range widened to units: where it begins, and where it ends.
local function widen (disk, offset, count)
  local unit = math.min (UNIT_BYTES, disk.block)
  local last = offset + count - 1
  return offset - offset % unit,
    disk.size - last <= unit and disk.size or last - last % unit + unit
end

-- Lone reads before it begins: a program that copies or streams has no use for it.
local LONE_READS = 8

-- Calls `visit` with ranges, those that touch as one.
local function joiner (disk, visit)
  local from, stop
  local join = {}

  function join.flush ()
    if from then visit (from, stop - from) end
    from = nil
  end

  function join.visit (offset, count)
    local first, after = widen (disk, offset, count)
    if from and first >= from and first <= stop then
      stop = math.max (stop, after)
    else
      join.flush ()
      from, stop = first, after
    end
  end

  return join
end

local function walk (disk, visit)
  local join = joiner (disk, visit)
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

-- The disk as the walk sees it: what it reads, it asks for first.
local function looking_ahead (disk)
  local ahead = { size = disk.size, block = disk.block }
  function ahead.closed () return disk:closed () end
  function ahead.pread (_, offset, count)
    count = math.min (count, disk.size - offset)
    local from, stop = widen (disk, offset, count)
    if disk:missing (from, stop) then
      coroutine.yield ("offer", from, stop - from)
      coroutine.yield ("await")
    end
    return coroutine.yield ("pread", offset, count)
  end
  return ahead
end

--- Make one.
-- @tparam table disk
-- @tparam[opt] integer lone_reads before it begins, 8 if left out
-- @treturn table generator
function M.new (disk, lone_reads)
  return setmetatable ({
    disk = disk, left = lone_reads or LONE_READS,
    body = coroutine.create (function ()
      walk (looking_ahead (disk), function (offset, count)
        coroutine.yield ("offer", offset, count)
      end)
    end),
  }, META)
end

--- A client read.
function Metadata:note ()
  if self.left > 0 then self.left = self.left - 1 end
end

--- A prefetch has ended.
function Metadata:ended (offset, count)
  local stop = offset + count
  if self.offered and offset < self.offered and self.offered <= stop then
    self.offered = nil
  end
end

--- What was offered is being fetched.
function Metadata:took (offset, count)
  self.offer = offset + count
  self.offered = self.offer     -- until that has ended
end

--- The next range of metadata.
-- @treturn integer|nil offset in bytes, nil if there is none now
-- @treturn integer count in bytes
function Metadata:next ()
  local disk = self.disk
  if self.left > 0 then return nil end
  while true do
    if self.offer then
      local offset, count = holes.missing_data (disk, self.offer, self.stop)
      if offset then return offset, count end
      self.offer = nil
    end
    if self.awaits and self.offered or coroutine.status (self.body) == "dead" then
      return nil
    end
    self.awaits = false
    local ok, what, a, b = coroutine.resume (self.body, self.bytes, self.errno)
    if not ok then error (what, 0) end
    if what == "offer" then
      self.offer, self.stop = a, a + b
    elseif what == "await" then
      self.awaits = true
    elseif what == "pread" then
      self.bytes, self.errno = disk:pread (a, b)
    end
  end
end

return M
