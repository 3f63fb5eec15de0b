-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/metadata.lua, lua/library/scan/{partitions,ext4,xfs}.lua: on real images, and
-- on garbage.

local ext4 = require "scan.ext4"
local images = dofile ("tests/spec/images.lua")
local partitions = require "scan.partitions"
local testing = require "scan.testing"
local xfs = require "scan.xfs"

local KiB, MiB = 1024, 1024 * 1024

-- The disk that the parsers see.
local function new_disk (contents, size)
  local disk = { size = size or #contents, preads = 0 }
  local read = testing.pread (contents)
  function disk.pread (_, offset, count)
    disk.preads = disk.preads + 1
    assert (math.type (offset) == "integer" and offset >= 0 and offset < disk.size)
    assert (math.type (count) == "integer" and count >= 1 and count <= MiB)
    return read (offset, math.min (count, disk.size - offset))
  end
  function disk.closed () return false end
  return disk
end

local function run (path, args)
  local handle = assert (io.open (path))
  local size = handle:seek ("end")
  handle:close ()
  local result = testing.run {
    policy = "metadata", size = size, contents = { path = path },
    args = args or { ["then"] = "none" },
  }
  assert.is_nil (result.error)
  assert.is_true (result.finished)
  return result, size
end

local function bytes (result)
  local sum = 0
  for _, prefetch in ipairs (result.prefetches) do sum = sum + prefetch[2] end
  return sum
end

local function covers (result, offset, count)
  local at = offset
  while at < offset + count do
    local found = false
    for _, prefetch in ipairs (result.prefetches) do
      if at >= prefetch[1] and at < prefetch[1] + prefetch[2] then
        at, found = prefetch[1] + prefetch[2], true
        break
      end
    end
    if not found then return false end
  end
  return true
end

local function needs (...)
  for _, command in ipairs { ... } do
    if not images.have (command) then
      pending (command .. " is missing")
      return false
    end
  end
  return true
end

-- Where dumpe2fs says that the metadata of the groups in use is.
local function ext_places (path, block, offset)
  local places = {}
  local text = images.output (("dumpe2fs %s"):format (path .. (offset or "")))
  local inodes_per_group = tonumber (text:match ("Inodes per group:%s+(%d+)"))
  local inode = tonumber (text:match ("Inode size:%s+(%d+)"))
  for group in (text .. "\nGroup end"):gmatch ("Group %d+: .-\n%f[G]") do
    local bitmap = tonumber (group:match ("Block bitmap at (%d+)"))
    local inode_bitmap = tonumber (group:match ("Inode bitmap at (%d+)"))
    local inodes = tonumber (group:match ("Inode table at (%d+)"))
    local unused = tonumber (group:match ("(%d+) unused inodes") or 0)
    places[#places + 1] = { bitmap * block, block }
    places[#places + 1] = { inode_bitmap * block, block }
    if unused < inodes_per_group then
      places[#places + 1] = { inodes * block, (inodes_per_group - unused) * inode }
    end
  end
  return places
end

local FILES = '(cd "$2" && seq 2000 | xargs touch); '

local function check_ext (script, block)
  local path = images.make (FILES .. script)
  local result, size = run (path)
  local places = ext_places (path, block)
  local visited = {}
  ext4.walk (new_disk ({ path = path }, size), 0, size, function (offset, count)
    visited[offset] = count
  end)
  os.remove (path)
  assert.is_true (#places > 6, "dumpe2fs says something else")
  for _, place in ipairs (places) do
    -- An inode table's last block may be used in part.
    assert.equal ((place[2] + block - 1) // block * block, visited[place[1]])
  end
  for _, place in ipairs (places) do
    assert.is_true (covers (result, place[1], place[2]),
                    ("%d+%d is missing"):format (place[1], place[2]))
  end
  assert.is_true (covers (result, 0, 64 * KiB))
  assert.is_true (bytes (result) < size / 4, bytes (result))
end

describe ("metadata", function ()
  it ("finds what dumpe2fs finds in ext4", function ()
    if not needs ("mke2fs", "dumpe2fs") then return end
    check_ext ('truncate -s 96M "$1"; mke2fs -q -F -t ext4 -b 1024 -d "$2" "$1"', KiB)
  end)

  it ("finds it with 64 bit descriptors and 4K blocks", function ()
    if not needs ("mke2fs", "dumpe2fs") then return end
    check_ext ('truncate -s 512M "$1"; mke2fs -q -F -t ext4 -b 4096 -O 64bit -g 4096 '
               .. '-d "$2" "$1"', 4 * KiB)
  end)

  it ("finds it in ext2, which has no checksums and no groups of groups", function ()
    if not needs ("mke2fs", "dumpe2fs") then return end
    check_ext ('truncate -s 96M "$1"; mke2fs -q -F -t ext2 -b 1024 -N 4000 '
               .. '-d "$2" "$1"', KiB)
  end)

  it ("takes no data for descriptors where groups have their own (meta_bg)", function ()
    if not needs ("mke2fs") then return end
    local path = images.make ('truncate -s 96M "$1"; mke2fs -q -F -t ext4 -b 1024 '
                              .. '-O meta_bg,^resize_inode "$1"')
    local visits = {}
    assert.is_true (ext4.walk (new_disk ({ path = path }, 96 * MiB), 0, 96 * MiB,
                               function (...) visits[#visits + 1] = { ... } end))
    os.remove (path)
    assert.same ({ { 0, 2 * KiB } }, visits)
  end)

  for block, cluster in pairs { [1024] = 8192, [4096] = 16384 } do
    it (("finds it with clusters of %d bytes"):format (cluster), function ()
      if not needs ("mke2fs", "dumpe2fs") then return end
      check_ext (('truncate -s 2G "$1"; mke2fs -q -F -t ext4 -O bigalloc -b %d -C %d '
                  .. '-N 30000 -d "$2" "$1" 2>/dev/null'):format (block, cluster), block)
    end)
  end

  local MANY_INODES = [[
      { echo /; echo 0 0; echo 'd--755 0 0'
        seq 5000 | sed 's:.*:f& ---644 0 0 /dev/null:'; echo '$'; } > "$2/proto"
      truncate -s 320M "$1"; mkfs.xfs -q -f -b size=1024 -p "$2/proto" "$1"]]

  for _, records in ipairs { "as many as it has", "none" } do
  it (("goes through no leaf of XFS twice (records: %s)"):format (records), function ()
    if not needs ("mkfs.xfs") then return end
    local path = images.make (MANY_INODES)
    local text, file = images.contents (path), assert (io.open (path, "r+b"))
    local group_bytes = (">I4"):unpack (text, 85) * KiB
    local looped = 0
    for at = 0, group_bytes - 1, KiB do
      if text:sub (at + 1, at + 6) == "IAB3\0\0" then
        file:seek ("set", at + 12)
        file:write ((">I4"):pack (at // KiB))   -- its neighbour is itself
        if records == "none" then
          file:seek ("set", at + 6)
          file:write ("\0\0")
        end
        looped = looped + 1
      end
    end
    -- The group's inodes, as it says.
    assert.equal ("XAGI", text:sub (2 * 512 + 1, 2 * 512 + 4))
    file:seek ("set", 2 * 512 + 16)
    file:write ("\255\255\255\255")
    file:close ()
    assert.is_true (looped > 0)
    local result = run (path)
    os.remove (path)
    assert.is_true (result.requests < 10000, result.requests)
  end)
  end

  it ("looks at no place twice for partitions that overlap", function ()
    local entry = ("<c16c16i8i8I8c72"):pack (("x"):rep (16), "", 100, 199, 0, "")
    local sectors = { [0] = ("\0"):rep (450) .. "\xee" .. ("\0"):rep (59) .. "\x55\xaa",
      "EFI PART" .. ("\0"):rep (64) .. ("<I8I4I4"):pack (2, 1000, 128)
        .. ("\0"):rep (424),
      entry:rep (1000) }
    local text = table.concat (sectors, "", 0, 2)
    assert.same ({ { offset = 51200, count = 51200 } }, partitions.find {
      size = MiB, pread = function (_, offset, count)
        return (text .. ("\0"):rep (MiB - #text)):sub (offset + 1, offset + count)
      end })
  end)

  it ("finds a GPT of sectors of 4K", function ()
    local function entry (first, last)
      return ("<c16c16i8i8I8c72"):pack (("x"):rep (16), "", first, last, 0, "")
    end
    local text = ("\0"):rep (450) .. "\xee" .. ("\0"):rep (59) .. "\x55\xaa"
      .. ("\0"):rep (4096 - 512) .. "EFI PART" .. ("\0"):rep (64)
      .. ("<I8I4I4"):pack (2, 2, 128) .. ("\0"):rep (4096 - 88)
      .. entry (10, 19) .. entry (20, 29)
    assert.same ({ { offset = 40960, count = 40960 }, { offset = 81920, count = 40960 } },
                 partitions.find (new_disk (text, MiB)))
  end)

  for _, kind in ipairs { 0x05, 0x0f, 0x85 } do
    it (("finds logical partitions in one of kind %02x"):format (kind), function ()
      local function record (...)
        return ("\0"):rep (446) .. ("<BxxxBxxxI4I4BxxxBxxxI4I4"):pack (...)
          .. ("\0"):rep (32) .. "\x55\xaa"
      end
      local none = ("\0"):rep (512)
      local disk = new_disk (record (0, kind, 1, 99, 0, 0, 0, 0)
                             .. record (0, 0x83, 10, 5, 0, kind, 2, 20) .. none
                             .. record (0, 0x83, 20, 5, 0, 0, 0, 0), MiB)
      assert.same ({ { offset = 11 * 512, count = 5 * 512 },
                     { offset = 23 * 512, count = 5 * 512 } },
                   partitions.find (disk))
    end)
  end

  it ("goes on when somebody else fetches a part of what it waits for", function ()
    local generator = require "scan.metadata".new ({
      size = MiB, block = MiB, closed = function () end,
      missing = function (_, from, to) return from, to - from end,
      next_data = function (_, offset) return offset end,
      pread = function () return ("\0"):rep (512) end,
    }, 0)
    local n = 0
    repeat
      local offset = generator:next (MiB)
      if offset then generator:ended (offset, 4096) end
      n = n + 1
    until not offset or n == 10
    assert.is_nil (generator.walk)
    assert.is_true (n > 2)
  end)

  it ("waits for what it will read, and for nothing else to end", function ()
    local generator = require "scan.metadata".new ({
      size = MiB, block = MiB, closed = function () end,
      missing = function (_, from, to) return from, to - from end,
      next_data = function (_, offset) return offset end,
      pread = function () error "not yet" end,
    }, 0)
    repeat
      local offset = generator:next (MiB)
      generator:ended (512 * KiB, 4096)
    until not offset
    assert.is_true (generator.reads ~= nil)
    assert.is_nil (generator:next (MiB))
  end)

  for version, more in pairs { [4] = "-m crc=0 -i size=512", [5] = "-m crc=1" } do
  it (("finds every inode in XFS, version %d"):format (version), function ()
    if not needs ("mkfs.xfs") then return end
    local made, path = pcall (images.make, (MANY_INODES:gsub ("%-q %-f", "%0 " .. more)))
    if not made and version == 4 then
      pending ("this mkfs.xfs makes no version 4 any more")
      return
    end
    assert (made, path)
    local result, size = run (path)
    local text = images.contents (path)
    os.remove (path)
    -- An inode begins with "IN", whoever made it.
    local inodes, at = 0, text:find ("IN", 1, true)
    while at do
      if (at - 1) % 512 == 0 then
        inodes = inodes + 1
        assert.is_true (covers (result, at - 1, 512), "inode at " .. at - 1)
      end
      at = text:find ("IN", at + 1, true)
    end
    -- More than there is room for in one leaf.
    assert.is_true (inodes > 5000)
    assert.is_true (bytes (result) < size / 10, bytes (result))
  end)
  end

  for label, script in pairs {
    gpt = "label: gpt\\n,40M\\n,40M\\n",
    -- The third is the extended one; the file system is in a logical one.
    dos = "label: dos\\n,8M\\n,8M\\n,,E\\n,40M\\n,40M\\n",
  } do
    it (("finds file systems in partitions (%s)"):format (label), function ()
      if not needs ("sfdisk", "mke2fs") then return end
      local path = images.make (('truncate -s 120M "$1"; printf "%s" | sfdisk -q "$1"')
                                  :format (script))
      local starts = {}
      for start in images.output ("sfdisk -d " .. path):gmatch ("start=%s*(%d+)") do
        starts[#starts + 1] = tonumber (start) * 512
      end
      local found = {}
      for i, place in ipairs (partitions.find (new_disk ({ path = path }, 120 * MiB))) do
        found[i] = place.offset
      end
      -- All but the extended one itself.
      if label == "dos" then table.remove (starts, 3) end
      assert.same (starts, found)

      local last = starts[#starts]
      assert.is_true (os.execute (
        ("PATH=$PATH:/usr/sbin mke2fs -q -F -t ext4 -b 1024 -E offset=%d %s 30M "
         .. ">/dev/null 2>&1"):format (last, path)))
      local result = run (path)
      local places = ext_places (path, KiB, "?offset=" .. last)
      os.remove (path)
      for _, place in ipairs (places) do
        assert.is_true (covers (result, last + place[1], place[2]))
      end
      assert.is_true (covers (result, last + 1024, 1024))
      assert.is_true (#result.prefetches >= 3)
    end)
  end

  it ("goes on with the data, and fetches nothing twice", function ()
    local result = testing.run { policy = "metadata", size = 8 * MiB, block = MiB,
                                 holes = { { 2 * MiB, 4 * MiB } } }
    assert.is_nil (result.error)
    local sum = 0
    for _, prefetch in ipairs (result.prefetches) do sum = sum + prefetch[2] end
    assert.equal (4 * MiB, sum)
    assert.same ({ 0, 64 * KiB }, result.prefetches[1])
    assert.same ({ 8 * MiB - 64 * KiB, 64 * KiB }, result.prefetches[2])
  end)

  it ("goes on with what it is told", function ()
    local result = testing.run { policy = "metadata", size = 4 * MiB, block = MiB,
                                 args = { ["then"] = "reverse" } }
    assert.same ({ 3 * MiB, MiB - 64 * KiB }, result.prefetches[3])
    assert.error_matches (function ()
      testing.run { policy = "metadata", size = 1, args = { ["then"] = "nope" } }
    end, "scan%-arg%-then: there is no file 'nope' and no built%-in")
  end)

  it ("reads what is there already without waiting", function ()
    if not needs ("mke2fs") then return end
    local path = images.make ('truncate -s 96M "$1"; mke2fs -q -F -t ext4 -b 1024 "$1"')
    -- The client has read where the superblock is, and what is to be looked for first
    -- is in flight when it is to be read.
    local result = testing.run {
      policy = "metadata", size = 96 * MiB, contents = { path = path }, threads = 4,
      args = { ["then"] = "none" }, events = { { at = 0, read = { 0, 64 * KiB } } },
    }
    os.remove (path)
    assert.is_nil (result.error)
    assert.is_true (result.finished)
    assert.is_true (#result.prefetches > 2)
  end)

  it ("goes on where what it looks for is part hole", function ()
    local function entry (first)
      return string.pack ("<BxxxBxxxI4I4", 0, 0x83, first, 2048)
    end
    local result = testing.run {
      policy = "metadata", size = 4 * MiB, args = { ["then"] = "none" }, threads = 4,
      holes = { { MiB + 32 * KiB, 32 * KiB } }, prefetch_seconds = 0.01,
      contents = ("\0"):rep (446) .. entry (2048) .. entry (4096) .. ("\0"):rep (32)
        .. "\x55\xaa" .. ("\0"):rep (4 * MiB - 512),
    }
    assert.is_nil (result.error)
    assert.is_true (covers (result, MiB, 32 * KiB))
    assert.is_true (covers (result, 2 * MiB, 64 * KiB))
  end)

  it ("passes over what can't be read", function ()
    local result = testing.run { policy = "metadata", size = 4 * MiB,
                                 fail = function () return "EIO" end,
                                 args = { ["then"] = "none" } }
    assert.is_nil (result.error)
    assert.is_true (result.finished)
  end)
end)

-- Garbage: whatever is on the disk, nothing raises, loops or leaves the disk.
describe ("metadata's parsers survive", function ()
  local state = 1
  local function random (below)
    state = state * 6364136223846793005 + 1442695040888963407
    return (state >> 33) % below
  end

  local function parse (contents, size)
    local disk = new_disk (contents, size)
    local visits = 0
    local function visit (offset, count)
      visits = visits + 1
      assert (math.type (offset) == "integer" and math.type (count) == "integer"
              and offset >= 0 and count >= 1 and count <= disk.size
              and offset <= disk.size - count,
              ("visited %s+%s of %d"):format (offset, count, disk.size))
    end
    for _, place in ipairs (partitions.find (disk)) do
      assert (place.offset > 0 and place.count > 0
              and place.offset + place.count <= disk.size)
      ext4.walk (disk, place.offset, place.count, visit)
      xfs.walk (disk, place.offset, place.count, visit)
    end
    ext4.walk (disk, 0, disk.size, visit)
    xfs.walk (disk, 0, disk.size, visit)
    assert.is_true (disk.preads < 1000, disk.preads)
    assert.is_true (visits < 100000, visits)
    return visits
  end

  local function noise (count)
    local parts = {}
    for i = 1, count do parts[i] = string.char (random (256)) end
    return table.concat (parts)
  end

  local function poke (text, at, part)
    return text:sub (1, at) .. part .. text:sub (at + #part + 1)
  end

  it ("noise, with and without the magic numbers", function ()
    for _ = 1, 60 do
      local text = noise (8192)
      parse (text)
      text = poke (text, 510, "\x55\xaa")
      parse (text)
      parse (poke (poke (text, 450, "\xee"), 512, "EFI PART"))
      parse (poke (text, 1024 + 0x38, "\x53\xef"))
      parse (poke (text, 0, "XFSB"))
    end
  end)

  it ("a GPT without entries", function ()
    local text = poke (("\0"):rep (4096), 450, "\xee")
    text = poke (poke (text, 510, "\x55\xaa"), 512, "EFI PART")
    parse (poke (text, 512 + 72, ("<I8I4I4"):pack (2, 0, 128)))
  end)

  it ("disks of any size", function ()
    for _, size in ipairs { 1, 511, 512, 513, 1023, 1024, 2047, 2048, 4097 } do
      parse (("\x55\xaa"):rep (size):sub (1, size))
      parse (("XFSB"):rep (size):sub (1, size))
    end
    parse ("", math.maxinteger)
  end)

  -- Real metadata, with bytes of the first 64K and of the places it names
  -- changed, or cut off.
  local function garble (script, magic_at, length)
    local path = images.make (script)
    local handle = assert (io.open (path, "rb"))
    os.remove (path)
    local size = handle:seek ("end")
    local function original (offset, count)
      handle:seek ("set", offset)
      return handle:read (count) or ""
    end
    assert.is_true (parse (original, size) > 3)
    local head = original (0, length)
    for round = 1, 250 do
      local changed = head
      for _ = 1, 1 + random (4) do
        local at = round % 2 == 0 and magic_at + random (256) or random (#head)
        changed = poke (changed, at, random (3) == 0 and "\xff\xff\xff\xff"
                        or string.char (random (256)))
      end
      local function contents (offset, count)
        if offset >= length then return original (offset, count) end
        return changed:sub (offset + 1, offset + count)
      end
      -- With the rest as it was, or nothing; and in too large a place.
      parse (random (2) == 0 and contents or changed,
             random (3) == 0 and 2 * size or size)
    end
    for _ = 1, 50 do
      local cut = head:sub (1, 1 + random (length))
      parse (cut, #cut)
      parse (cut, size)
    end
    handle:close ()
  end

  it ("changed and truncated ext4", function ()
    if not needs ("mke2fs") then return end
    garble ('truncate -s 24M "$1"; mke2fs -q -F -t ext4 -b 1024 "$1"', 1024, 4096)
  end)

  it ("changed and truncated XFS", function ()
    if not needs ("mkfs.xfs") then return end
    garble ('truncate -s 320M "$1"; mkfs.xfs -q -f "$1"', 0, 65536)
  end)

  it ("changed and truncated partition tables", function ()
    if not needs ("sfdisk") then return end
    for _, label in ipairs { "gpt", "dos" } do
      local path = images.make (
        ('truncate -s 8M "$1"; printf "label: %s\\n,1M\\n,1M\\n%s" | sfdisk -q "$1"')
          :format (label, label == "dos" and ",,E\\n,1M\\n" or ""))
      local handle = assert (io.open (path, "rb"))
      local head = handle:read (4096)
      handle:close ()
      os.remove (path)
      for round = 1, 400 do
        local at = round % 2 == 0 and 440 + random (72) or 512 + random (1024)
        parse (poke (head, at, random (3) == 0 and "\xff\xff\xff\xff"
                     or string.char (random (256))), 8 * MiB)
      end
    end
  end)

  it ("a chain of partitions, and a tree of inodes, that go in circles", function ()
    -- A logical partition whose next is itself, and one whose next is before it.
    local entry = string.pack ("<BxxxBxxxI4I4", 0, 5, 8, 100)
    local boot = ("\0"):rep (446) .. entry .. ("\0"):rep (48) .. "\x55\xaa"
    for _, step in ipairs { 0, 1 } do
      local link = string.pack ("<BxxxBxxxI4I4", 0, 0x83, 1, 1)
        .. string.pack ("<BxxxBxxxI4I4", 0, 5, step, 1)
      local chain = ("\0"):rep (446) .. link .. ("\0"):rep (32) .. "\x55\xaa"
      local disk = new_disk (boot .. ("\0"):rep (7 * 512) .. chain:rep (300))
      assert.is_true (#partitions.find (disk) <= 128)
      assert.is_true (disk.preads <= 4, disk.preads)
    end

    if not needs ("mkfs.xfs") then return end
    local path = images.make ('truncate -s 320M "$1"; mkfs.xfs -q -f "$1"')
    local handle = assert (io.open (path, "rb"))
    local text = handle:read (262144)
    handle:close ()
    os.remove (path)
    -- The leaf's right sibling becomes itself.
    local leaf = text:find ("IAB3", 1, true) - 1
    local root = string.unpack (">I4", text, 2 * 512 + 20 + 1)
    parse (poke (text, leaf + 12, string.pack (">I4", root)), 320 * MiB)
    -- Its first inodes are outside the group, and outside the disk.
    parse (poke (text, leaf + 56, "\xff\xff\xff\xff"), 320 * MiB)
  end)
end)
