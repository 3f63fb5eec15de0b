-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Where the partitions of a disk are: MBR with logical partitions, and GPT.
--
-- Robust against garbage: every number is checked, chains are bounded, nothing
-- here raises an error because of what is on the disk.
--
-- @module scan.partitions

local unpack = string.unpack

local M = {}

local MBR_SECTOR_BYTES = 512
local ENTRIES_MOST = 1024
local LOGICAL_MOST = 128
local EXTENDED = { [0x05] = true, [0x0f] = true, [0x85] = true }
local PROTECTIVE = 0xee

-- The four entries of a boot record: { kind, first, sectors }; nil if it is none.
local function boot_record (sector)
  if not sector or #sector < MBR_SECTOR_BYTES
     or unpack ("<I2", sector, 511) ~= 0xaa55 then
    return nil
  end
  local entries = {}
  for i = 0, 3 do
    local kind, first, sectors = unpack ("<xxxxBxxxI4I4", sector, 447 + 16 * i)
    entries[i + 1] = { kind = kind, first = first, sectors = sectors }
  end
  return entries
end

-- Two can't be in one place: what is behind another one that has it is left out, or a
-- bad table would have one file system looked at again and again.
local function add (list, size, offset, count)
  if offset <= 0 or offset >= size or count <= 0 then return end
  count = math.min (count, size - offset)
  for _, other in ipairs (list) do
    if offset < other.offset + other.count and other.offset < offset + count then
      return
    end
  end
  list[#list + 1] = { offset = offset, count = count }
end

-- The chain of logical partitions in an extended one.
local function logical (disk, list, extended)
  local at = extended
  for _ = 1, LOGICAL_MOST do
    local offset = at * MBR_SECTOR_BYTES
    if offset >= disk.size then return end
    local entries = boot_record (disk:pread (offset, MBR_SECTOR_BYTES))
    if not entries then return end
    if not EXTENDED[entries[1].kind] then
      add (list, disk.size, offset + entries[1].first * MBR_SECTOR_BYTES,
           entries[1].sectors * MBR_SECTOR_BYTES)
    end
    -- The next one is further up, or the chain is broken.
    local next_at = extended + entries[2].first
    if not EXTENDED[entries[2].kind] or next_at <= at then return end
    at = next_at
  end
end

-- GPT with sectors of this size; false if there is none.
local function gpt (disk, list, sector)
  if disk.size < 3 * sector then return false end
  local header = disk:pread (sector, MBR_SECTOR_BYTES)
  if not header or #header < 92 or header:sub (1, 8) ~= "EFI PART" then return false end
  local table_at, number, length = unpack ("<I8I4I4", header, 73)
  -- As numbers below 2^63: anything else is garbage.
  if table_at < 2 or table_at > (disk.size - 1) // sector
     or number < 1 or number > ENTRIES_MOST or length < 128 or length > 4096 then
    return true
  end
  local entries = disk:pread (table_at * sector, math.min (number * length, 1 << 20))
  if not entries then return true end
  local last_sector = (disk.size - 1) // sector
  for i = 0, number - 1 do
    if (i + 1) * length > #entries then break end
    local kind, first, last = unpack ("<c16xxxxxxxxxxxxxxxxi8i8", entries, i * length + 1)
    if kind ~= ("\0"):rep (16) and first > 0 and last >= first
       and first <= last_sector then
      last = math.min (last, last_sector)
      add (list, disk.size, first * sector, (last - first + 1) * sector)
    end
  end
  return true
end

--- Find the partitions.
-- @tparam table disk with `size` and `pread`
-- @treturn table list of { offset =, count = } in bytes, inside the disk, in the
-- order of the table; empty if there is no table
function M.find (disk)
  local list = {}
  if disk.size < MBR_SECTOR_BYTES then return list end
  local entries = boot_record (disk:pread (0, MBR_SECTOR_BYTES))
  if not entries then return list end
  for _, entry in ipairs (entries) do
    if entry.kind == PROTECTIVE
       and (gpt (disk, list, 512) or gpt (disk, list, 4096)) then
      return list
    end
  end
  for _, entry in ipairs (entries) do
    if EXTENDED[entry.kind] then
      logical (disk, list, entry.first)
    elseif entry.kind ~= 0 then
      add (list, disk.size, entry.first * MBR_SECTOR_BYTES,
           entry.sectors * MBR_SECTOR_BYTES)
    end
  end
  return list
end

return M
