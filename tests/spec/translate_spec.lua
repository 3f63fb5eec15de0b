-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- `scan-policy translate`, on images of the same files laid out anew.

local LUA_PATH = require "scan.world".LUA_PATH
local image = require "scan.image"
local images = dofile "tests/spec/images.lua"
local translate = require "scan.translate"

local BLOCK = 4096
local MARK_AT = 1100

-- A generator of our own: the same files on every machine.
local function numbers (seed)
  local state = seed
  return function (most)
    state = (state * 1103515245 + 12345) % 2147483648
    return state // 65536 % most + 1
  end
end

-- A block that tells whose it is, not at its beginning: one in four begins with
-- zeroes, as tables and directories do.
local function block_text (name, index, version)
  local random = numbers (#name * 7919 + index * 104729 + version * 15485863
                          + name:byte (-1) * 31 + name:byte (-2))
  local word = ("%05d%05d%06d"):format (random (32768), random (32768), random (32768))
  local text = index % 4 == 3 and ("\0"):rep (MARK_AT) or word:rep (MARK_AT // 16 + 1)
  local mark = ("<<FILE %s %d %d>"):format (name, index, version)
  text = text:sub (1, MARK_AT) .. mark
  return text .. word:rep ((BLOCK - #text) // 16) .. ("\0"):rep ((BLOCK - #text) % 16)
end

local function write_file (path, name, blocks, version, cut)
  local handle = assert (io.open (path, "wb"))
  for index = 0, blocks - 1 do
    local text = block_text (name, index, version)
    if index == blocks - 1 then text = text:sub (1, BLOCK - cut) end
    handle:write (text)
  end
  handle:close ()
end

-- The files of a build; the second has new ones among them, lacks some, and has
-- changed one in twenty.  One is there many times over.
local function write_tree (top, build)
  local random = numbers (7)
  for d = 1, 8 do
    local dir = ("%s/dir%d"):format (top, d)
    assert (os.execute ("mkdir " .. dir))
    local function write_new (first, last)
      for i = first, build == 2 and last or 0 do
        local name = ("a%dnew%02d"):format (d, i)
        write_file (dir .. "/" .. name, name, 3 * i + d, 1, 0)
      end
    end
    -- Some tools lay out what came first first, others what came last.
    write_new (1, 3)
    for i = 1, 24 do
      local name = ("f%d.%03d"):format (d, i)
      local blocks, cut = random (24), random (2000)
      if build == 1 or i % 9 ~= 0 then
        write_file (dir .. "/" .. name, name, blocks,
                    build == 2 and (d * 24 + i) % 20 == 0 and 2 or 1, cut)
      end
    end
    write_file (dir .. "/licence", "licence", 5, 1, 100)
    write_new (4, 6)
  end
end

-- Where each file's blocks are in an image: name -> index -> offset.  A mark lies in
-- one sector, so no piece cuts it.
local function find_files (path)
  local files, handle = {}, image.open (path)
  for offset, text in handle:data () do
    local at = text:find ("<<FILE ", 1, true)
    while at do
      local name, index = text:match ("([%w.]+) (%d+) %d>", at + 7)
      files[name] = files[name] or {}
      files[name][tonumber (index)] = offset + at - 1 - MARK_AT
      at = text:find ("<<FILE ", at + BLOCK // 2, true)
    end
  end
  handle:close ()
  return files
end

-- Every second file, in an order that is not the disk's.
local function is_read (name)
  return name:match ("^f%d%.(%d+)$") and tonumber (name:match ("(%d+)$")) % 2 == 0
end

local function working_set (files)
  local names, offsets = {}, {}
  for name in pairs (files) do
    if is_read (name) then names[#names + 1] = name end
  end
  table.sort (names, function (a, b) return a:reverse () < b:reverse () end)
  for _, name in ipairs (names) do
    for _, offset in pairs (files[name]) do offsets[#offsets + 1] = offset end
  end
  return offsets
end

local function as_trace (offsets)
  local lines = {}
  for i, offset in ipairs (offsets) do lines[i] = offset .. " " .. BLOCK end
  return table.concat (lines, "\n")
end

local function covered (ranges, offsets)
  local sectors, found = {}, 0
  for _, range in ipairs (ranges) do
    for at = range[1] // 512, (range[1] + range[2]) // 512 - 1 do sectors[at] = true end
  end
  for _, offset in ipairs (offsets) do
    for i = 0, BLOCK // 512 - 1 do
      found = found + (sectors[offset // 512 + i] and 1 or 0)
    end
  end
  return found / (#offsets * BLOCK // 512)
end

-- Run the command as a user does; what it printed, and what it said.
local function run (arguments, text)
  local trace, err = os.tmpname (), os.tmpname ()
  local handle = assert (io.open (trace, "w"))
  handle:write (text)
  handle:close ()
  local out = images.output (("sh -c 'LUA_PATH=\"%s;;\" lua5.4 lua/bin/scan-policy "
    .. "translate %s %s 2>%s'"):format (LUA_PATH, arguments, trace, err))
  local said = images.contents (err)
  os.remove (trace)
  os.remove (err)
  local ranges = {}
  for offset, count in out:gmatch ("(%d+) (%d+)\n") do
    ranges[#ranges + 1] = { math.tointeger (offset), math.tointeger (count) }
  end
  return ranges, said
end

local trees = {}

-- Two images of a script, which gets the image's name as $1, a directory for itself
-- as $2, and the tree of the build as $3.
local function make_both (script)
  local paths = {}
  for build = 1, 2 do
    paths[build] = images.make (("set -- \"$@\" '%s' %d; %s")
                                  :format (trees[build], build, script))
  end
  return paths[1], paths[2]
end

local function check (script, commands)
  for _, command in ipairs (commands) do
    if not images.have (command) then return pending (command .. " is not here") end
  end
  local old, new = make_both (script)
  local before = working_set (find_files (old))
  local wanted = working_set (find_files (new))
  assert.is_true (#before > 500 and #wanted > 500)
  local stale = covered (run (("--from %s --to %s"):format (old, old),
                              as_trace (before)), wanted)
  local ranges, said = run (("--from %s --to %s"):format (old, new), as_trace (before))
  os.remove (old)
  os.remove (new)
  local share = covered (ranges, wanted)
  assert.is_true (stale < 0.5, ("the files have not moved: %.2f"):format (stale))
  assert.is_true (share > 0.8, ("%.2f of the working set; %s"):format (share, said))
  -- It does not find them by fetching everything.
  local bytes = 0
  for _, range in ipairs (ranges) do bytes = bytes + range[2] end
  assert.is_true (bytes <= 1.2 * #before * BLOCK)
  assert.matches (": %d+ blocks of 4K: %d+%.%d %% found by content, ", said)
end

describe ("translate", function ()
  setup (function ()
    for build = 1, 2 do
      trees[build] = images.output ("mktemp -d -p /dev/shm || mktemp -d"):gsub ("%s", "")
      write_tree (trees[build], build)
    end
  end)

  teardown (function ()
    for _, tree in ipairs (trees) do os.execute ("rm -r " .. tree) end
  end)

  it ("finds the working set of an ext4", function ()
    check ('truncate -s 64M "$1"; mke2fs -q -F -t ext4 -b 4096 -d "$3" "$1"',
           { "mke2fs" })
  end)

  it ("finds that of one with blocks of 1K", function ()
    check ('truncate -s 64M "$1"; mke2fs -q -F -t ext4 -b 1024 -d "$3" "$1"',
           { "mke2fs" })
  end)

  it ("finds that of an XFS", function ()
    check ([[truncate -s 320M "$1"
      { echo /dev/null; echo 1 1; echo d--755 0 0
        for d in "$3"/*; do
          echo "${d##*/} d--755 0 0"
          for f in "$d"/*; do echo "${f##*/} ---644 0 0 $f"; done
          echo '$'
        done
        echo '$'; } > "$2/proto"
      mkfs.xfs -q -f -p "$2/proto" "$1"]], { "mkfs.xfs" })
  end)

  it ("finds that of a btrfs", function ()
    check ('truncate -s 160M "$1"; mkfs.btrfs -q --rootdir "$3" "$1"', { "mkfs.btrfs" })
  end)

  it ("finds that of partitions that have moved", function ()
    check ([[truncate -s 96M "$1"
      case $4 in 1) start=63;; *) start=10240;; esac
      echo "$start,16M
$((start + 40960)),60M" | sfdisk -q "$1"
      mke2fs -q -F -t ext4 -b 4096 -d "$3" -E offset=$(((start + 40960) * 512)) \
        "$1" 60M]], { "mke2fs", "sfdisk" })
  end)
end)

-- -- small ones, made by hand -------------------------------------------------------

local function letters (word)
  local blocks = {}
  for i = 1, #word do
    local letter = word:sub (i, i)
    blocks[i] = letter == "0" and ("\0"):rep (BLOCK) or letter:rep (BLOCK)
  end
  return table.concat (blocks)
end

local function image_of (text)
  local path = os.tmpname ()
  local handle = assert (io.open (path, "wb"))
  handle:write (text)
  handle:close ()
  return path
end

-- Each letter is a block; the trace gives the blocks in their order.
local function by_hand (from, to, order)
  local old, new = image_of (letters (from)), image_of (letters (to))
  local offsets = {}
  for i, block in ipairs (order) do offsets[i] = block * BLOCK end
  local list, counts = translate.translate (old, new, function () return offsets end)
  os.remove (old)
  os.remove (new)
  local blocks = {}
  for _, range in ipairs (list) do
    for at = range[1], range[1] + range[2] - 1, BLOCK do
      blocks[#blocks + 1] = at // BLOCK
    end
  end
  return blocks, counts
end

describe ("translate places a block", function ()
  it ("where its contents are", function ()
    local blocks, counts = by_hand ("abcd", "xdxcba", { 2, 0, 3, 1 })
    assert.same ({ 3, 5, 1, 4 }, blocks)
    assert.same ({ blocks = 4, content = 4, shift = 0, place = 0, lost = 0 }, counts)
  end)

  it ("beside its neighbours if it is there several times", function ()
    assert.same ({ 8, 9, 10 }, (by_hand ("axb", "xx0000xxaxb", { 0, 1, 2 })))
    -- The one before tells first; the one behind if that is none.
    assert.same ({ 3, 4 }, (by_hand ("xa", "x0xxa", { 0, 1 })))
  end)

  it ("beside its neighbours if it is there again and again", function ()
    local blocks = by_hand ("axb", ("xy"):rep (40) .. "axb", { 0, 1, 2 })
    assert.same ({ 80, 81, 82 }, blocks)
  end)

  it ("beside its neighbours if it was changed, or is zeroes", function ()
    local blocks, counts = by_hand ("aXb0c", "00000aYb0c", { 0, 1, 2, 3, 4 })
    assert.same ({ 5, 6, 7, 8, 9 }, blocks)
    assert.equal (2, counts.shift)
  end)

  it ("where it was if nothing tells", function ()
    local blocks, counts = by_hand ("XYZ", "abc", { 2, 0 })
    assert.same ({ 2, 0 }, blocks)
    assert.equal (2, counts.place)
  end)

  it ("where it was in its partition if nothing tells", function ()
    local function disk (start, word)
      local boot = ("\0"):rep (446) .. string.pack ("<I4I4I4I4", 0, 0x83, start, 64)
        .. ("\0"):rep (48) .. "\x55\xaa"
      return image_of (boot .. ("\0"):rep (start * 512 - 512) .. letters (word))
    end
    local old, new = disk (63, "XYZ"), disk (128, "abc")
    local list = translate.translate (old, new, function ()
      return { 0, 63 * 512 + BLOCK }
    end)
    os.remove (old)
    os.remove (new)
    assert.same ({ { 0, BLOCK }, { 128 * 512 + BLOCK, BLOCK } }, list)
  end)

  it ("nowhere if the new image has no such place, and none twice", function ()
    local blocks, counts = by_hand ("aabX", "ab", { 0, 1, 3, 2 })
    assert.same ({ 0, 1 }, blocks)
    assert.equal (1, counts.lost)
  end)

  it ("across pieces that the image is read in, at any sector", function ()
    local piece = 1024 * 1024
    local old = image_of (letters "abc")
    local new = image_of (("x"):rep (piece - 1024) .. letters "cab" .. ("\0"):rep (piece))
    local list = translate.translate (old, new, function () return { 0, BLOCK } end)
    os.remove (old)
    os.remove (new)
    assert.same ({ { piece - 1024 + BLOCK, 2 * BLOCK } }, list)
  end)
end)

describe ("scan-policy translate", function ()
  local function fails (expected, arguments, text)
    local ranges, said = run (arguments, text or "0 4096\n")
    assert.same ({}, ranges)
    assert.matches (expected, said)
    assert.is_nil (said:find ("traceback"))
  end

  it ("says what is wrong", function ()
    local path = image_of (letters "abc")
    fails ("/nowhere: No such file", "--from /nowhere --to " .. path)
    fails ("/nowhere: No such file", "--to /nowhere --from " .. path)
    fails ("raw file or an NBD URI expected", "--from / --to " .. path)
    fails ("raw file or an NBD URI expected", "--from /dev/zero --to " .. path)
    fails ("raw file or an NBD URI expected", "--from /proc --to " .. path)
    fails ("trace: line 1: ", ("--from %s --to %s"):format (path, path), "nonsense\n")
    fails ("no reads of this image in it", ("--from %s --to %s"):format (path, path),
           "1G 4096\n")
    fails ("option '%-%-to'", "--from " .. path)
    os.remove (path)
  end)

  it ("reads from a server", function ()
    if not images.have ("nbdkit") or not images.have ("nbdcopy") then
      return pending ("nbdkit or nbdcopy is not here")
    end
    local dir = images.output ("mktemp -d"):gsub ("%s", "")
    local old, new = image_of (letters "abcd"), image_of (letters "00dXba")
    for name, path in pairs { old = old, new = new } do
      assert (os.execute (("nbdkit -r -U %s/%s.sock -P %s/%s.pid file %s")
                            :format (dir, name, dir, name, path)))
    end
    local ranges = run (("--from nbd+unix:///?socket=%s/old.sock "
                         .. "--to nbd+unix:///?socket=%s/new.sock"):format (dir, dir),
                        "0 8192\n12288 4096\n")
    os.execute (("kill $(cat %s/*.pid); rm -r %s"):format (dir, dir))
    os.remove (old)
    os.remove (new)
    assert.same ({ { 5 * BLOCK, BLOCK }, { 4 * BLOCK, BLOCK }, { 2 * BLOCK, BLOCK } },
                 ranges)
  end)
end)
