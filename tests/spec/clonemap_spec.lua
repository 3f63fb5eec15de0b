-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/clonemap.lua with maps made by hand, and mapview.lua, what is shown of
-- them.  tests/e2e/test_map.py has maps that the filter made.

local clonemap = require "scan.clonemap"
local mapview = require "scan.mapview"

local PAGE = 4096
local PAGE_BLOCKS = 508 * 64

-- -- maps made by hand -------------------------------------------------------------

-- CRC-32C, bit by bit.
local function crc32c (text)
  local c = 0xffffffff
  for i = 1, #text do
    c = c ~ text:byte (i)
    for _ = 1, 8 do c = c & 1 == 1 and c >> 1 ~ 0x82f63b78 or c >> 1 end
  end
  return c ~ 0xffffffff
end

local function page (magic, options, body)
  local head = ("<I4i8i8"):pack (options.version or 1, options.generation or 0,
                                 options.number or 0)
  local rest = head .. body .. ("\0"):rep (PAGE - 12 - #head - #body)
  return magic .. ("<I4"):pack (crc32c (magic .. "\0\0\0\0" .. rest)) .. rest
end

local function identity (options)
  local id, export = options.id or "", options.export or ""
  return page ("nbdclone", options, ("<i8I4I4"):pack (options.size, options.block, 0)
               .. id .. ("\0"):rep (256 - #id) .. export)
end

local function record (options, magic)
  local list = options.list or {}
  return page (magic or "clonerec", options,
               ("<i8I4I4"):pack (options.digest or 0, options.written and 1 or 0, #list)
               .. ("<I4"):rep (#list):pack (table.unpack (list)))
end

local function settled (options) return record (options, "cloneset") end

-- A page of bits with these runs of blocks, counted from its own first.
local function bits (number, generation, runs)
  local words = {}
  for i = 1, 508 do words[i] = 0 end
  for _, run in ipairs (runs) do
    for block = run[1], run[2] - 1 do
      local i = block // 64 + 1
      words[i] = words[i] | 1 << block % 64
    end
  end
  return page ("clonemap", { generation = generation, number = number },
               ("<i8"):rep (508):pack (table.unpack (words)))
end

local path

-- Pages by their number in the file, of so many pages.
local function load (pages, count)
  local handle = assert (io.open (path, "wb"))
  for i = 0, count - 1 do handle:write (pages[i] or ("\0"):rep (PAGE)) end
  handle:close ()
  return clonemap.load (path)
end

local function runs (map)
  local list = {}
  for first, last in map:runs () do list[#list + 1] = { first, last } end
  return list
end

-- The map of a disk of 100 blocks after its first commit, with changes.
local function first_commit (changes)
  local pages = {
    [0] = identity { size = 100 * 4096, block = 4096, id = "v1", export = "e" },
    [1] = identity { size = 100 * 4096, block = 4096, id = "v1", export = "e" },
    [2] = record {}, [3] = record { generation = 1, list = { 0 } },
    [4] = settled { generation = 1 },
    [9] = bits (0, 1, { { 3, 70 } }),
  }
  for i, text in pairs (changes or {}) do pages[i] = text or nil end
  return load (pages, 10)
end

local function damaged (text)
  return text:sub (1, 2000) .. "x" .. text:sub (2002)
end

describe ("scan.clonemap", function ()
  before_each (function () path = os.tmpname () end)
  after_each (function () os.remove (path) end)

  it ("reads what a map is of, and what is present", function ()
    local map = first_commit ()
    assert.equal (409600, map.size)
    assert.same ({ 4096, 100, "v1", "e" },
                 { map.block, map.blocks, map.id, map.export })
    assert.same ({ { 3, 70 } }, runs (map))
    assert.same ({ false, false }, { map.written, map.lost })
  end)

  it ("takes the other copy of what it is a map of", function ()
    local map = first_commit { [0] = damaged (identity { size = 409600, block = 4096 }) }
    assert.same ({ { 3, 70 } }, runs (map))
  end)

  it ("takes the newest version of a page that is whole", function ()
    local second = { [2] = record { generation = 2, list = { 0 } },
                     [4] = settled { generation = 1 },
                     [8] = bits (0, 2, { { 3, 80 } }) }
    assert.same ({ { 3, 80 } }, runs (first_commit (second)))
    -- A crash has torn the page of the second commit.
    second[8] = damaged (second[8])
    local map = first_commit (second)
    assert.same ({ { 3, 70 } }, runs (map))
    assert.is_false (map.lost)
  end)

  it ("takes a page that has come before its record, as of a client's write", function ()
    local map = first_commit { [8] = bits (0, 2, { { 3, 80 } }) }
    assert.same ({ { 3, 80 } }, runs (map))
    assert.is_true (map.written)
  end)

  it ("says what has lost bits, and refuses it where a client has written", function ()
    for name, changes in pairs {
      ["a page that was settled"] = { [9] = damaged (bits (0, 1, { { 3, 70 } })) },
      ["a page that is gone"] = { [9] = false },
      ["the last record"] = { [3] = damaged (record { generation = 1 }) },
      ["a page that is not listed"] = {
        [3] = record { generation = 1, digest = 77, list = {} }, [9] = false },
    } do
      local map = first_commit (changes)
      assert.is_true (map and map.lost, name)
      assert.same ({}, changes[9] == nil and {} or runs (map))
      changes[4] = settled { generation = 1, written = true }
      local refused, why = first_commit (changes)
      assert.is_nil (refused, name)
      assert.matches ("^is damaged, and the clone holds what clients have", why)
    end
  end)

  it ("refuses what is no map, each with its reason", function ()
    local function why (pages, count) return (select (2, load (pages, count))) end
    assert.equal ("unborn", why ({}, 0))
    assert.equal ("unborn", why ({}, 10))
    assert.equal ("unborn", why ({ [2] = record {} }, 10))
    assert.matches ("^is not a map", why ({ [2] = ("x"):rep (PAGE) }, 10))
    assert.matches ("^is not a map", why ({ ("x"):rep (PAGE) }, 10))
    assert.matches ("^is not a map", why ({ [9] = ("\0"):rep (PAGE - 1) .. "x" }, 10))
    assert.matches ("^is not a map", why ({ [10] = "x" }, 11))
    assert.matches ("^is too short", why ({}, 3))
    assert.matches ("^is not a map", why ({ [0] = ("x"):rep (PAGE) }, 10))
    local newer = identity { version = 2, size = 409600, block = 4096 }
    assert.matches ("^is a map of version 2", why ({ [0] = newer, newer }, 10))
    for _, block in ipairs { 4095, 256, 1 << 21, 1 << 31 } do
      local odd = identity { size = 409600, block = block }
      assert.matches ("^is damaged, and can't tell",
                      why ({ [0] = odd, odd, record {} }, 10))
    end
    local good = identity { size = 409600, block = 4096 }
    assert.matches ("^is damaged, and can't tell", why ({ [0] = good, good }, 10))
    assert.matches ("^is 49152 bytes and should be 40960",
                    why ({ [0] = good, good, record {} }, 12))
    assert.matches ("^cannot be opened: No such file",
                    select (2, clonemap.load (path .. "-")))
    assert.matches ("^cannot be read", select (2, clonemap.load ("/")))
  end)

  it ("joins runs across words and pages, and ends with the disk", function ()
    local blocks = PAGE_BLOCKS + 10
    local map = load ({
      [0] = identity { size = blocks * 512 - 1, block = 512 },
      [3] = record { generation = 1, list = { 0, 1 } },
      [8] = bits (0, 1, { { 0, 1 }, { 63, 129 }, { PAGE_BLOCKS - 3, PAGE_BLOCKS } }),
      [10] = bits (1, 1, { { 0, 64 } }),
    }, 12)
    assert.equal (blocks, map.blocks)
    assert.same ({ { 0, 1 }, { 63, 129 }, { PAGE_BLOCKS - 3, blocks } }, runs (map))
    local _, _, total, count = map:shares (1)
    assert.same ({ (1 + 66 + 13) * 512 - 1, 3 }, { total, count })
  end)

  it ("shares a disk in equal parts", function ()
    local present, sizes = first_commit ():shares (10)
    assert.same ({ 40960, 40960 }, { sizes[1], sizes[10] })
    assert.same ({ 7 * 4096, 40960, 40960, 40960, 40960, 40960, 40960, 0, 0, 0 },
                 present)
    -- Where a part ends within a block, and where parts are less than a byte.
    present, sizes = first_commit ():shares (7)
    local all, whole = 0, 0
    for i = 1, 7 do all, whole = all + present[i], whole + sizes[i] end
    assert.same ({ 67 * 4096, 409600 }, { all, whole })
  end)

  it ("reads the map of a disk of no size", function ()
    local none = identity { size = 0, block = 4096 }
    local map = load ({ [0] = none, none, record {} }, 8)
    assert.same ({}, runs (map))
    assert.truthy (mapview.lines (map, 20))
    assert.truthy (mapview.svg (map, "none"))
  end)
end)

describe ("scan.mapview", function ()
  before_each (function () path = os.tmpname () end)
  after_each (function () os.remove (path) end)

  it ("draws a strip", function ()
    local lines = mapview.lines (first_commit (), 12)
    assert.same ({ "268 KiB of 400 KiB present, 67.0 %, in one run",
                   "blocks of 4 KiB, export \"e\", clone-id=v1",
                   "no client has written",
                   "[+######...]",
                   "# all   + half or more   : less than half   . nothing" }, lines)
  end)

  it ("says nothing of what it is not told, and no control characters", function ()
    local lines = mapview.lines (first_commit {
      [0] = identity { size = 409600, block = 4096, export = "a\27[31m\n\u{9b}",
                       id = "\27\u{202e}" } }, 12)
    assert.is_nil (lines[2]:find ("[%c\x9b\xe2]"))
    lines = mapview.lines (first_commit { [4] = false, [9] = false }, 12)
    assert.is_nil (lines[1]:find ("lost"))
    assert.equal ("[..........]", lines[4])
    lines = mapview.lines (first_commit { [9] = false }, 12)
    assert.matches ("some of the map is lost", lines[4])
  end)

  it ("rounds nothing to all, and nothing to none", function ()
    for _, case in ipairs { { 1, "0.1 %" }, { PAGE_BLOCKS - 1, "99.9 %" },
                            { PAGE_BLOCKS, "100 %" } } do
      local whole = identity { size = PAGE_BLOCKS * 512, block = 512 }
      local map = load ({ [0] = whole, [2] = record { generation = 1, list = { 0 } },
                          [8] = bits (0, 1, { { 0, case[1] } }) }, 10)
      assert.truthy (mapview.lines (map, 20)[1]:find (", " .. case[2] .. ",", 1, true))
    end
  end)

  it ("is well-formed XML, with a box for each run of a shade", function ()
    local text = mapview.svg (first_commit (), "a < b")
    local stack = {}
    for slash, name, rest in text:gmatch ("<(/?)(%a+)([^>]*)>") do
      if slash == "/" then
        assert.equal (name, table.remove (stack))
      elseif not rest:match ("/$") then
        stack[#stack + 1] = name
      end
    end
    assert.same ({}, stack)
    assert.matches ("a &lt; b", text)
    assert.matches (">268 KiB of 400 KiB present, 67.0 %%, in one run<", text)
    -- One in the legend; one of what is present, and two of what is not.
    assert.equal (2, select (2, text:gsub ('fill="#0072b2"', "")))
    assert.equal (3, select (2, text:gsub ('fill="#e6e6e6"', "")))
  end)
end)
