-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Where the metadata of an ext2, ext3 or ext4 file system is.
--
-- Every number is checked, and nothing here raises an error because of what is
-- on the disk.  With the meta_bg feature only the groups described before its
-- first group are found.
--
-- @module scan.ext4

local unpack = string.unpack

local M = {}

local INCOMPAT_META_BG, INCOMPAT_64BIT = 0x10, 0x80
-- gdt_csum or metadata_csum: the unused part of an inode table is known.
local RO_COMPAT_CHECKSUMS = 0x10 | 0x400
-- A bit of a bitmap stands for a cluster of blocks.
local RO_COMPAT_BIGALLOC = 0x200
local INODES_UNUSED = 0x1
local DESCRIPTORS_AT_ONCE_BYTES = 65536

-- The numbers of the superblock that count, or nil if one can't be right.
local function superblock (disk, base, size)
  if size < 2048 then return nil end
  local sb = disk:pread (base + 1024, 1024)
  if not sb or #sb < 1024 or unpack ("<I2", sb, 0x38 + 1) ~= 0xef53 then return nil end
  local function u16 (at) return (unpack ("<I2", sb, at + 1)) end
  local function u32 (at) return (unpack ("<I4", sb, at + 1)) end

  local incompat, ro_compat = u32 (0x60), u32 (0x64)
  local log_block = u32 (0x18)
  local log_ratio = ro_compat & RO_COMPAT_BIGALLOC ~= 0 and u32 (0x1c) - log_block or 0
  if log_block > 6 or log_ratio < 0 or log_ratio > 16 then return nil end
  local fs = {
    block = 1024 << log_block,
    blocks = u32 (0x04),
    first_block = u32 (0x14),
    blocks_per_group = u32 (0x20),
    inodes_per_group = u32 (0x28),
    inode = u32 (0x4c) == 0 and 128 or u16 (0x58),
    descriptor = 32,
    checksums = ro_compat & RO_COMPAT_CHECKSUMS ~= 0,
  }
  if incompat & INCOMPAT_64BIT ~= 0 then
    fs.blocks = fs.blocks | u32 (0x150) << 32
    fs.descriptor = u16 (0xfe)
  end
  local bits = 8 * fs.block
  if fs.blocks <= fs.first_block or fs.blocks > size // fs.block
     or fs.first_block > 1
     or fs.blocks_per_group < 256 or fs.blocks_per_group > bits << log_ratio
     or fs.inodes_per_group < 1 or fs.inodes_per_group > bits
     or fs.inode < 128 or fs.inode > fs.block or fs.inode & fs.inode - 1 ~= 0
     or fs.descriptor < 32 or fs.descriptor > 1024
     or fs.descriptor & fs.descriptor - 1 ~= 0 then
    return nil
  end
  fs.groups = (fs.blocks - fs.first_block - 1) // fs.blocks_per_group + 1
  if incompat & INCOMPAT_META_BG ~= 0 then
    fs.groups = math.min (fs.groups, u32 (0x104) * (fs.block // fs.descriptor))
  end
  return fs
end

-- The places that one descriptor names: both bitmaps, and the inode table with
-- as many inodes of it as are in use.
local function describe (fs, descriptor)
  local bitmap, inode_bitmap, inodes, flags = unpack ("<I4I4I4xxxxxxI2", descriptor)
  local unused = unpack ("<I2", descriptor, 0x1c + 1)
  if fs.descriptor >= 64 then
    local high_bitmap, high_inode_bitmap, high_inodes = unpack ("<I4I4I4", descriptor, 33)
    bitmap = bitmap | high_bitmap << 32
    inode_bitmap = inode_bitmap | high_inode_bitmap << 32
    inodes = inodes | high_inodes << 32
    unused = unused | unpack ("<I2", descriptor, 0x32 + 1) << 16
  end
  local used = fs.inodes_per_group
  if fs.checksums then
    used = flags & INODES_UNUSED ~= 0 and 0 or math.max (0, used - unused)
  end
  return bitmap, inode_bitmap, inodes, used
end

--- Walk over the metadata: superblock and group descriptors first, then for
-- each group the bitmaps and the used part of the inode table.
-- @tparam table disk with `pread` and `closed`
-- @tparam integer base where the file system begins, in bytes
-- @tparam integer size of the partition in bytes
-- @tparam function visit called as `visit (offset, count)`, in bytes of the
-- disk, inside the partition
-- @treturn boolean false if this is no such file system
function M.walk (disk, base, size, visit)
  local fs = superblock (disk, base, size)
  if not fs then return false end

  local function visit_blocks (first, count)
    if first >= 1 and first < fs.blocks then
      visit (base + first * fs.block, math.min (count, fs.blocks - first) * fs.block)
    end
  end

  -- In the block after the superblock's, which is the second one if they are small.
  local descriptors = (1024 // fs.block + 1) * fs.block
  local length = fs.groups * fs.descriptor
  if descriptors >= size then return true end
  length = math.min (length, size - descriptors)
  visit (base, descriptors + length)

  for at = 0, length - fs.descriptor, DESCRIPTORS_AT_ONCE_BYTES do
    if disk:closed () then return true end
    local bytes = disk:pread (base + descriptors + at,
                              math.min (DESCRIPTORS_AT_ONCE_BYTES, length - at))
    for from = 1, #(bytes or "") - fs.descriptor + 1, fs.descriptor do
      local bitmap, inode_bitmap, inodes, used =
        describe (fs, bytes:sub (from, from + fs.descriptor - 1))
      visit_blocks (bitmap, 1)
      visit_blocks (inode_bitmap, 1)
      if used > 0 then
        visit_blocks (inodes, (used * fs.inode - 1) // fs.block + 1)
      end
    end
  end
  return true
end

return M
