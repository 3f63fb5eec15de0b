-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Reads a map of the clone filter: which blocks of a disk are present.
--
-- The format, and what a commit writes in which order, is told in
-- filter/clone/map-file.c.  What is found here is what the filter finds when it starts
-- with this file: of each page the newest version that is whole, and whether
-- anything has been lost.  The file is only read, so it may be that of a server that
-- runs.
--
-- @module scan.clonemap

local M = {}

local VERSION = 1
local PAGE = 4096
local HEAD = 32                           -- bytes before what a page is for
local PAGE_BLOCKS = (PAGE - HEAD) * 8
local BLOCK_MIN, BLOCK_MAX = 512, 1 << 20 -- bytes
local LISTED_MAX = 64
-- Of the file, in pages.
local IDENTITY, RECORD, SETTLED, BITS = 0, 2, 4, 8
local MAGIC = { identity = "nbdclone", record = "clonerec", settled = "cloneset",
                bits = "clonemap" }
local ID_BYTES, EXPORT_BYTES = 256, 3073  -- each with a NUL

local ZERO_PAIR = ("\0"):rep (2 * PAGE)
local ZERO_PAGE = ("\0"):rep (PAGE)

-- How often a map that changes while it is read is read again.
local ATTEMPTS = 5

local AGAIN = "put back a copy of both files, or move both away to begin anew"
local DAMAGED = "is damaged, and the clone holds what clients have written, which "
                .. "could be lost; " .. AGAIN
local UNKNOWN = "is damaged, and can't tell what is in the clone any more, which may "
                .. "be what clients have written; " .. AGAIN

-- -- checksums --------------------------------------------------------------------

-- Four tables, for four bytes at a time: the sum of a byte, and of one that zeroes
-- follow.
local CRC = { {}, {}, {}, {} }
for i = 0, 255 do
  local c = i
  for _ = 1, 8 do c = c & 1 == 1 and c >> 1 ~ 0x82f63b78 or c >> 1 end
  CRC[1][i] = c
end
for n = 2, 4 do
  for i = 0, 255 do
    local c = CRC[n - 1][i]
    CRC[n][i] = CRC[1][c & 255] ~ c >> 8
  end
end

-- CRC-32C of a text whose length is a multiple of 32.
local function crc32c (text)
  local t1, t2, t3, t4 = CRC[1], CRC[2], CRC[3], CRC[4]
  local unpack = string.unpack
  local c = 0xffffffff
  local function add (word)
    c = c ~ word
    c = t4[c & 255] ~ t3[c >> 8 & 255] ~ t2[c >> 16 & 255] ~ t1[c >> 24]
  end
  for position = 1, #text, 32 do
    local a, b, d, e, f, g, h, i = unpack ("<I4I4I4I4I4I4I4I4", text, position)
    add (a) add (b) add (d) add (e) add (f) add (g) add (h) add (i)
  end
  return ~c & 0xffffffff
end

-- The checksum that a page should have: of itself, with none in it.
local function sum_of (page)
  return crc32c (page:sub (1, 8) .. "\0\0\0\0" .. page:sub (13))
end

local function generation_of (page)
  return (string.unpack ("<i8", page, 17))
end

local function is_sealed (page, magic, number)
  local sum, version, _, its_number = string.unpack ("<I4I4i8i8", page, 9)
  return page:sub (1, 8) == magic and version == VERSION and its_number == number
         and sum == sum_of (page)
end

-- What a page adds to the digest of all.
local function digest_of (number, generation)
  if generation == 0 then return 0 end
  local x = number * 0x9e3779b97f4a7c15 ~ generation
  x = (x ~ x >> 30) * 0xbf58476d1ce4e5b9
  x = (x ~ x >> 27) * 0x94d049bb133111eb
  return x ~ x >> 31
end

-- -- pages ------------------------------------------------------------------------

-- A map that can't be used: raised, and caught by M.load.
local function refuse (text) error ({ refused = text }, 0) end

local function read_at (handle, page, count)
  local _, message = handle:seek ("set", page * PAGE)
  local text
  if not message then text, message = handle:read (count * PAGE) end
  if not text or #text < count * PAGE then
    refuse ("cannot be read: " .. (message or "it ends too early"))
  end
  return text
end

-- The text before the first NUL; nil if there is none.
local function text_at (page, offset, count)
  return page:sub (offset + 1, offset + count):match ("^(.-)\0")
end

local function read_identity (handle)
  local page
  for copy = 0, 1 do
    page = read_at (handle, IDENTITY + copy, 1)
    if is_sealed (page, MAGIC.identity, 0) then break end
    if copy == 1 then
      local version = string.unpack ("<I4", page, 13)
      if page:sub (1, 8) ~= MAGIC.identity then
        refuse ("is not a map of a clone, or its beginning is damaged; " .. AGAIN)
      elseif version ~= VERSION then
        refuse (("is a map of version %d, and this program knows version %d only; use "
                 .. "the one that came with the filter that made it")
                  :format (version, VERSION))
      end
      refuse (UNKNOWN)
    end
  end
  local size, block = string.unpack ("<i8I4", page, HEAD + 1)
  local id = text_at (page, 48, ID_BYTES)
  local export = text_at (page, 48 + ID_BYTES, EXPORT_BYTES)
  if size < 0 or block < BLOCK_MIN or block > BLOCK_MAX or block & (block - 1) ~= 0
     or not id or not export then
    refuse (UNKNOWN)
  end
  return { size = size, block = block, id = id, export = export }
end

local function record_of (page)
  local record = { generation = generation_of (page), listed = {} }
  local written, listed
  record.digest, written, listed = string.unpack ("<i8I4I4", page, HEAD + 1)
  record.written = written ~= 0
  if listed > LISTED_MAX then return nil end
  for i = 1, listed do
    record.listed[string.unpack ("<I4", page, HEAD + 16 + 4 * i - 3)] = true
  end
  return record
end

-- The newest record, with what the page "settled" says of it.
local function read_records (handle)
  local last
  for slot = 0, 1 do
    local page = read_at (handle, RECORD + slot, 1)
    local record = is_sealed (page, MAGIC.record, 0) and record_of (page)
    if record and (not last or record.generation > last.generation) then
      last = record
    end
  end
  if not last then refuse (UNKNOWN) end
  last.known, last.whole, last.settled = last.generation, true, false
  local page = read_at (handle, SETTLED, 1)
  if is_sealed (page, MAGIC.settled, 0) then
    local generation = generation_of (page)
    last.settled = generation >= last.generation
    last.whole = generation <= last.generation
    last.known = math.max (generation, last.known)
    last.written = last.written or string.unpack ("<I4", page, HEAD + 9) ~= 0
  end
  return last
end

-- The newest whole version of a page of bits, its generation, and that of the newest
-- that the last record knows of.
local function choose (pair, number, last)
  local slots = { pair:sub (1, PAGE), pair:sub (PAGE + 1) }
  if generation_of (slots[1]) < generation_of (slots[2]) then
    slots[1], slots[2] = slots[2], slots[1]
  end
  local best, newest, recorded = nil, 0, 0
  for _, slot in ipairs (slots) do
    local generation = generation_of (slot)
    if generation > 0 and is_sealed (slot, MAGIC.bits, number) then
      if not best then best, newest = slot, generation end
      if generation <= last.generation then
        recorded = generation
        break
      end
    end
  end
  return best, newest, recorded
end

-- The bits of all pages, and what was found out about them.
local function read_bits (handle, map, last)
  local digest, missing, newer = 0, false, false
  map.pages = {}
  for number = 0, map.nr_pages - 1 do
    local pair = read_at (handle, BITS + 2 * number, 2)
    local best, newest, recorded
    if pair == ZERO_PAIR then
      newest, recorded = 0, 0
    else
      best, newest, recorded = choose (pair, number, last)
    end
    newer = newer or newest > last.known
    if not last.listed[number] then
      digest = digest + digest_of (number, recorded)
    elseif last.settled and recorded ~= last.generation then
      missing = true
    end
    map.pages[number] = best and best:sub (HEAD + 1)
  end
  for number in pairs (last.listed) do
    missing = missing or last.settled and number >= map.nr_pages
  end
  map.written = last.written or newer
  map.lost = not last.whole or missing or digest ~= last.digest
  if map.lost and map.written then refuse (DAMAGED) end
end

-- -- the map ----------------------------------------------------------------------

local Map = {}
Map.__index = Map

--- The runs of present blocks, in order.
-- @treturn function iterator over first and end, in blocks; the end is not in it
function Map:runs ()
  return coroutine.wrap (function ()
    local blocks, first = self.blocks, nil
    -- The block where what is known of begins to be present, or absent.
    local function turn (block, present)
      if present and not first then
        first = block
      elseif not present and first then
        coroutine.yield (first, block)
        first = nil
      end
    end
    for number = 0, self.nr_pages - 1 do
      local page, base = self.pages[number], number * PAGE_BLOCKS
      if not page then turn (base, false) end
      for position = 1, page and #page or 0, 8 do
        local word = string.unpack ("<i8", page, position)
        local block = base + (position - 1) * 8
        if block >= blocks then break end
        if word == 0 or word == -1 then
          turn (block, word == -1)
        else
          for bit = 0, math.min (63, blocks - block - 1) do
            turn (block + bit, word >> bit & 1 == 1)
          end
        end
      end
    end
    turn (blocks, false)
  end)
end

--- How many bytes of each of so many equal parts of the disk are present.
-- @tparam integer parts
-- @treturn table present bytes of each part, from 1 on
-- @treturn table the bytes that each part has
-- @treturn integer present bytes in all
-- @treturn integer how many runs they are in
function Map:shares (parts)
  local size, block = self.size, self.block
  local present, bounds, total, runs = {}, {}, 0, 0
  -- In two steps, as parts times the size of a large disk is too much.
  local each, rest = size // parts, size % parts
  for i = 0, parts do bounds[i] = i * each + i * rest // parts end
  local sizes = {}
  for i = 1, parts do present[i], sizes[i] = 0, bounds[i] - bounds[i - 1] end
  local part = 1
  for first, last in self:runs () do
    local from, to = first * block, math.min (last * block, size)
    total, runs = total + to - from, runs + 1
    while from < to do
      while bounds[part] <= from do part = part + 1 end
      local till = math.min (to, bounds[part])
      present[part], from = present[part] + till - from, till
    end
  end
  return present, sizes, total, runs
end

-- Is there nothing but zeroes from this page on?
local function is_blank_from (handle, where, bytes)
  for page = where, bytes // PAGE - 1 do
    if read_at (handle, page, 1) ~= ZERO_PAGE then return false end
  end
  handle:seek ("set", bytes // PAGE * PAGE)
  return not (handle:read ("a") or ""):find ("[^\0]")
end

local function is_unborn (handle, bytes)
  if bytes == 0 then return true end
  if bytes < BITS * PAGE then return false end
  local copy, record = read_at (handle, IDENTITY + 1, 1), read_at (handle, RECORD, 1)
  return read_at (handle, IDENTITY, 1) == ZERO_PAGE
         and not is_sealed (copy, MAGIC.identity, 0)
         and (is_sealed (record, MAGIC.record, 0)
              or record == ZERO_PAGE and copy == ZERO_PAGE)
         and is_blank_from (handle, RECORD + 1, bytes)
end

local function load_once (handle, image_size)
  local bytes, message = handle:seek ("end")
  if not bytes then refuse ("cannot be read: " .. message) end
  if is_unborn (handle, bytes) then return nil end
  if bytes < BITS * PAGE then
    refuse ("is too short for a map of a clone; " .. AGAIN)
  end
  local map = setmetatable (read_identity (handle), Map)
  if image_size and image_size ~= map.size then
    refuse (("is of %d bytes, and its image has %d; %s")
              :format (map.size, image_size, AGAIN))
  end
  local last = read_records (handle)
  map.generation = last.known
  map.blocks = map.size // map.block + (map.size % map.block > 0 and 1 or 0)
  map.nr_pages = (map.blocks + PAGE_BLOCKS - 1) // PAGE_BLOCKS
  local wanted = (BITS + 2 * map.nr_pages) * PAGE
  if bytes ~= wanted then
    refuse (("is %d bytes and should be %d; %s"):format (bytes, wanted, AGAIN))
  end
  read_bits (handle, map, last)
  return map
end

-- What changes with each commit.
local function moment_of (handle)
  local ok, text = pcall (read_at, handle, RECORD, SETTLED - RECORD + 1)
  return ok and text
end

--- Read a map.
-- @tparam string path of the map, not of the image
-- @tparam[opt] integer image_size bytes of the image, if it is there
-- @treturn table|nil a map with `size` and `block` in bytes, `blocks`, `id` and
-- `export`, the names that it was made with, `written`, whether a client may have
-- written, and `lost`, whether the filter would fetch some of it again; nil if it is
-- not a map
-- @treturn string if it is not: why, to follow the file's name; "unborn" for a map
-- that is still being made
function M.load (path, image_size)
  local handle, message = io.open (path, "rb")
  -- The message begins with the path, as that of the caller does.
  if not handle then return nil, "cannot be opened:" .. message:sub (#path + 2) end
  handle:setvbuf ("full", 2 * PAGE)
  local ok, map
  for _ = 1, ATTEMPTS do
    local before = moment_of (handle)
    ok, map = pcall (load_once, handle, image_size)
    -- Commits of a server may have taken away what was still to be read.
    if ok and not (map and map.lost) or moment_of (handle) == before then break end
  end
  handle:close ()
  if ok then
    if map then return map end
    return nil, "unborn"
  end
  if type (map) ~= "table" then error (map, 0) end
  return nil, map.refused
end

return M
