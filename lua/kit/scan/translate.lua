-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- The trace of an image that has been built anew.
--
-- Files keep their contents and lose their places.  So each 4K block that the trace
-- reads is looked for in the new image by what is in it, at every sector, whatever
-- the file system.  A block that is there once fixes how far its surroundings have
-- moved; one that is there several times (or was only changed) is placed by how far
-- its neighbours have moved; the rest stays where it was, counted from the start of
-- its partition.
--
-- Contents are compared in full, so nothing is taken for what it is not.  Two sums of
-- a few words keep that rare.  Memory is for the trace's blocks only (4K each, up to
-- `BLOCKS_MOST`); the new image streams by.
--
-- @module scan.translate

local image = require "scan.image"
local partitions = require "scan.partitions"

local unpack = string.unpack

local M = {}

local BLOCK_BYTES = 4096
local SECTOR_BYTES = 512

--- Most blocks whose contents are kept, 1 GiB; those behind are placed by neighbours.
M.BLOCKS_MOST = 262144

-- Places that are remembered of a block that is there again and again.
local PLACES_MOST = 16

-- How far off a neighbour may be that tells where a block has moved: about the size
-- of the files that a boot reads.
local NEAR_BYTES = 1024 * 1024

local ZERO_BLOCK = ("\0"):rep (BLOCK_BYTES)

-- Of the block's first sector, and of some later ones.
local function first_sum (text, at)
  local a, b, c = unpack ("<i8i8i8", text, at)
  return a ~ b * 0x9e3779b97f4a7c15 ~ c * 0x2545f4914f6cdd1d
end

local function second_sum (text, at)
  local a, b = unpack ("<i8i8", text, at + 1016)
  local c, d = unpack ("<i8i8", text, at + 2552)
  return a ~ b * 0x9e3779b97f4a7c15 ~ c * 0x2545f4914f6cdd1d ~ d
end

-- The blocks in the order of the disk, with `contents` where they are to be looked
-- for: a table for each different one, in which `find` gathers its places.
local function read_old (old, offsets)
  local blocks = {}
  for i, offset in ipairs (offsets) do blocks[i] = { old = offset } end
  table.sort (blocks, function (a, b) return a.old < b.old end)
  local sought = { first = {}, second = {}, contents = {} }
  for i = 1, math.min (#blocks, M.BLOCKS_MOST) do
    local text = old:read (blocks[i].old, BLOCK_BYTES)
    if text and #text == BLOCK_BYTES and text ~= ZERO_BLOCK then
      sought.first[first_sum (text, 1)] = true
      sought.second[second_sum (text, 1)] = true
      sought.contents[text] = sought.contents[text] or {}
      blocks[i].places = sought.contents[text]
    end
  end
  return blocks, sought
end

-- A block of one letter is found at each sector of two such blocks, but is there
-- twice only.
local function add_place (places, place)
  local last = places[#places]
  if #places < PLACES_MOST and not (last and place - last < BLOCK_BYTES) then
    places[#places + 1] = place
  end
end

local function find (new, sought, progress)
  local first, second, contents = sought.first, sought.second, sought.contents
  -- What a block that goes on in the next piece begins with.
  local rest, rest_end = "", 0
  for offset, piece in new:data (progress) do
    if offset == rest_end then piece, offset = rest .. piece, offset - #rest end
    local at = 1
    while at <= #piece - BLOCK_BYTES + 1 do
      if first[first_sum (piece, at)] and second[second_sum (piece, at)] then
        local places = contents[piece:sub (at, at + BLOCK_BYTES - 1)]
        if places then add_place (places, offset + at - 1) end
      end
      at = at + SECTOR_BYTES
    end
    rest, rest_end = piece:sub (at), offset + #piece
  end
end

-- -- placing ----------------------------------------------------------------------

local function place_unique (blocks)
  for _, block in ipairs (blocks) do
    if block.places and #block.places == 1 then
      block.new, block.how = block.places[1], "content"
    end
  end
end

local function nearest (places, wanted)
  local best
  for _, place in ipairs (places) do
    if not best or math.abs (place - wanted) < math.abs (best - wanted) then
      best = place
    end
  end
  return best
end

-- What was not found, or is there several times, goes with the nearer of its neighbours
-- that were found: as far as they did, or to the place nearest to that.
local function place_by_shift (blocks, size)
  local shifts = {}
  for _, step in ipairs { 1, -1 } do
    local last
    for i = step > 0 and 1 or #blocks, step > 0 and #blocks or 1, step do
      local block = blocks[i]
      if block.new then
        last = block
      elseif last then
        local distance = math.abs (block.old - last.old)
        local known = shifts[block]
        if distance <= NEAR_BYTES and (not known or distance < known.distance) then
          shifts[block] = { distance = distance, bytes = last.new - last.old }
        end
      end
    end
  end
  for block, shift in pairs (shifts) do
    local place = block.old + shift.bytes
    -- Of one that is there again and again not all places are known.
    if block.places and #block.places > 0 and #block.places < PLACES_MOST then
      block.new, block.how = nearest (block.places, place), "content"
    elseif place >= 0 and place < size then
      block.new, block.how = place, "shift"
    end
  end
end

-- Where a byte is if nothing has moved but the partitions.
local function in_place (old, new)
  local function table_of (disk)
    return partitions.find {
      size = disk.size,
      pread = function (_, offset, count) return disk:read (offset, count) end,
    }
  end
  local from, to = table_of (old), table_of (new)
  return function (offset)
    for i, partition in ipairs (from) do
      if offset >= partition.offset and offset < partition.offset + partition.count
         and to[i] then
        return offset - partition.offset + to[i].offset
      end
    end
    return offset
  end
end

--- Translate.
-- @tparam string from the name of the image that the trace is of, see scan.image
-- @tparam string to the name of the new one
-- @tparam function load called with the size of the old image; gives a list of the
-- offsets of the blocks that the trace reads, in its order (as `trace.blocks` does)
-- @tparam[opt] function progress called with the bytes of the new image done and all
-- @treturn table list of { offset, count } in bytes, in the order of the trace, none
-- twice, all inside the new image
-- @treturn table how many blocks were placed by `content`, by `shift` and in `place`;
-- how many are `lost` because the new image is smaller
function M.translate (from, to, load, progress)
  local old, new = image.open (from), image.open (to)
  local stays = in_place (old, new)
  local offsets = load (old.size, BLOCK_BYTES)
  local blocks, sought = read_old (old, offsets)
  old:close ()
  find (new, sought, progress)
  new:close ()
  place_unique (blocks)
  place_by_shift (blocks, new.size)

  local counts = { blocks = #blocks, content = 0, shift = 0, place = 0, lost = 0 }
  local by_offset = {}
  for _, block in ipairs (blocks) do
    if not block.new and block.places and #block.places > 0 then
      block.new, block.how = nearest (block.places, stays (block.old)), "content"
    elseif not block.new then
      block.new, block.how = stays (block.old), "place"
    end
    if block.new >= new.size then block.how = "lost" end
    counts[block.how] = counts[block.how] + 1
    by_offset[block.old] = block
  end

  local list, seen = {}, {}
  for _, offset in ipairs (offsets) do
    local block = by_offset[offset]
    local place, last = block.new, list[#list]
    if block.how ~= "lost" and not seen[place] then
      seen[place] = true
      local count = math.min (BLOCK_BYTES, new.size - place)
      if last and last[1] + last[2] == place then
        last[2] = last[2] + count
      else
        list[#list + 1] = { place, count }
      end
    end
  end
  return list, counts
end

return M
