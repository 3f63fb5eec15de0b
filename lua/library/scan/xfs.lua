-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Where the metadata of an XFS file system is.
--
-- Every number is checked, trees are walked a bounded number of steps, and
-- nothing here raises an error because of what is on the disk.
--
-- @module scan.xfs

local unpack = string.unpack

local M = {}

local SECTORS_OF_HEADERS = 4   -- superblock, AGF, AGI, AGFL
local LEVELS_MOST = 8
local GROUP_LEAST_BYTES = 16 << 20
local INODES_PER_CHUNK = 64
-- Header lengths of a block of an inode tree, without and with checksums.
local TREE = { IABT = 16, IAB3 = 56 }
local LAST = 0xffffffff

local function power_of_2 (n, least, most)
  return n >= least and n <= most and n & n - 1 == 0
end

-- The numbers of the superblock that count, or nil if one can't be right.
local function superblock (disk, base, size)
  if size < 512 then return nil end
  local sb = disk:pread (base, 512)
  if not sb or #sb < 512 or sb:sub (1, 4) ~= "XFSB" then return nil end
  local fs = {}
  fs.block, fs.blocks = unpack (">I4i8", sb, 5)
  fs.group_blocks, fs.groups = unpack (">I4I4", sb, 85)
  fs.sector, fs.inode, fs.inodes_per_block = unpack (">I2I2I2", sb, 103)
  if not power_of_2 (fs.block, 512, 65536)
     or not power_of_2 (fs.sector, 512, math.min (fs.block, 32768))
     or not power_of_2 (fs.inode, 256, math.min (fs.block, 2048))
     or fs.inodes_per_block ~= fs.block // fs.inode
     or fs.blocks < 1 or fs.blocks > size // fs.block
     or fs.groups < 1 or fs.group_blocks < 64
     or fs.groups > 1 and fs.group_blocks * fs.block < GROUP_LEAST_BYTES
     or fs.groups ~= (fs.blocks - 1) // fs.group_blocks + 1 then
    return nil
  end
  return fs
end

-- One allocation group: its headers, its inode tree, its inodes.
local function walk_group (disk, fs, base, blocks, visit)
  local headers = SECTORS_OF_HEADERS * fs.sector
  visit (base, math.min (math.max (headers, fs.block), blocks * fs.block))
  if headers > blocks * fs.block then return end
  local agi = disk:pread (base + 2 * fs.sector, 512)
  if not agi or agi:sub (1, 4) ~= "XAGI" then return end
  local inodes, at, levels = unpack (">I4I4I4", agi, 17)
  if levels < 1 or levels > LEVELS_MOST then return end

  -- A block of the tree: bytes, header length, level, records, right sibling.
  local function tree_block (number)
    if number < 1 or number >= blocks then return nil end
    local bytes = disk:pread (base + number * fs.block, fs.block)
    local header = bytes and #bytes == fs.block and TREE[bytes:sub (1, 4)]
    if not header then return nil end
    local level, records, _, right = unpack (">I2I2I4I4", bytes, 5)
    return bytes, header, level, records, right
  end

  -- Down the left side to the leaves.
  for level = levels - 1, 1, -1 do
    local bytes, header, found, records = tree_block (at)
    if not bytes or found ~= level or records < 1 then return end
    -- As many keys and pointers of 4 bytes as fit; the pointers follow the keys.
    local most = (fs.block - header) // 8
    at = unpack (">I4", bytes, header + 4 * most + 1)
  end

  -- Along them.  Each has one chunk at least, so there can't be more of them
  -- than this, whatever they say; and each is behind the one before it, so none
  -- comes twice.
  local last = -1
  for _ = 1, math.min (blocks, inodes // INODES_PER_CHUNK + 1) do
    if disk:closed () then return end
    local bytes, header, level, records, right = tree_block (at)
    if not bytes or level ~= 0 then return end
    visit (base + at * fs.block, fs.block)
    if records < 1 or unpack (">I4", bytes, header + 1) <= last then return end
    records = math.min (records, (fs.block - header) // 16)
    for i = 0, records - 1 do
      local first = unpack (">I4", bytes, header + 16 * i + 1)
      last = math.max (last, first)
      local block = first // fs.inodes_per_block
      local count = math.max (1, INODES_PER_CHUNK // fs.inodes_per_block)
      if block < blocks then
        visit (base + block * fs.block, math.min (count, blocks - block) * fs.block)
      end
    end
    if right == LAST then return end
    at = right
  end
end

--- Walk over the metadata, one allocation group after the other: its headers,
-- the leaves of its inode tree, and its inodes.
-- @tparam table disk with `pread` and `closed`
-- @tparam integer base where the file system begins, in bytes
-- @tparam integer size of the partition in bytes
-- @tparam function visit called as `visit (offset, count)`, in bytes of the
-- disk, inside the partition
-- @treturn boolean false if this is no such file system
function M.walk (disk, base, size, visit)
  local fs = superblock (disk, base, size)
  if not fs then return false end
  local group_bytes = fs.group_blocks * fs.block
  for group = 0, fs.groups - 1 do
    if disk:closed () then return true end
    local blocks = math.min (fs.group_blocks, fs.blocks - group * fs.group_blocks)
    walk_group (disk, fs, base + group * group_bytes, blocks, visit)
  end
  return true
end

return M
