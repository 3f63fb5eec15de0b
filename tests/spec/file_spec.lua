-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/runtime/scan/file.lua: what scan.open gives to a policy.

local file = require "scan.file"

-- Hands out at most so many bytes at once, as a runner may.
local function open (text, most)
  return file.new (function (offset, count)
    return text:sub (offset + 1, offset + math.min (count, most or count))
  end)
end

local function lines_of (handle)
  local lines = {}
  for line in handle:lines () do lines[#lines + 1] = line end
  return lines
end

describe ("scan.file", function ()
  it ("reads all there is, and then an empty string", function ()
    local text = ("0123456789"):rep (20000)
    local handle = open (text, 4096)
    assert.equal (text, handle:read ())
    assert.equal ("", handle:read ())
  end)

  it ("reads as many bytes as asked for, then nil", function ()
    local handle = open ("abcdefg", 2)
    assert.equal ("abc", handle:read (3))
    assert.equal ("defg", handle:read (100))
    assert.is_nil (handle:read (1))
    assert.equal ("", handle:read (0))
  end)

  it ("refuses a count that is none", function ()
    for _, count in ipairs { -1, 1.5, "x", {} } do
      assert.has_error (function () open ("abc"):read (count) end)
    end
  end)

  it ("gives lines without their newlines, however they are cut up", function ()
    for _, most in ipairs { 1, 2, 3, 100 } do
      assert.same ({ "one", "", "three" }, lines_of (open ("one\n\nthree\n", most)))
      assert.same ({ "one", "two" }, lines_of (open ("one\ntwo", most)))
      assert.same ({}, lines_of (open ("", most)))
    end
  end)

  it ("has lines longer than what is read at once", function ()
    local long = ("x"):rep (200000)
    assert.same ({ long, long }, lines_of (open (long .. "\n" .. long .. "\n")))
  end)

  it ("looks for the end of a line in so many bytes and no more", function ()
    local asked = 0
    local function read_at ()
      asked = asked + 1
      return ("\0"):rep (65536)
    end
    local ok, message = pcall (lines_of, file.new (read_at))
    assert.same ({ false, "line 1 is longer than 1048576 bytes; is this a text?" },
                 { ok, message })
    assert.equal (17, asked)

    local handle, rows = open ("1 2\n3 4\n" .. ("x"):rep (2000000)), 0
    ok, message = pcall (function ()
      for _ in handle:rows (2, false, function () return 0, 1 end) do rows = rows + 1 end
    end)
    assert.same ({ false, 2 }, { ok, rows })
    assert.matches ("^line 3 is longer", message)
  end)

  it ("goes on with lines after a read", function ()
    local handle = open ("head\none\ntwo\n", 3)
    assert.equal ("head\n", handle:read (5))
    assert.same ({ "one", "two" }, lines_of (handle))
  end)

  it ("goes on where a loop over lines was broken off", function ()
    for _, most in ipairs { 3, 100 } do
      local handle = open ("one\ntwo\nthree\nfour\n", most)
      for line in handle:lines () do -- luacheck: ignore 512
        assert.equal ("one", line)
        break
      end
      for line in handle:lines () do -- luacheck: ignore 512
        assert.equal ("two", line)
        break
      end
      assert.equal ("thr", handle:read (3))
      assert.same ({ "ee", "four" }, lines_of (handle))
      assert.same ({}, lines_of (handle))
      assert.equal ("", handle:read ())
    end
  end)

  it ("asks once for what is missing of a long read", function ()
    local text, asked = ("0123456789"):rep (100000), 0
    local handle = file.new (function (offset, count)
      asked = asked + 1
      return text:sub (offset + 1, offset + count)
    end)
    assert.equal (text:sub (1, 900000), handle:read (900000))
    assert.equal (1, asked)
  end)

  it ("keeps its metatable to itself", function ()
    assert.equal ("file", getmetatable (open ("")))
  end)

  describe ("rows", function ()
    local TEXT = "1 2\n\nfirst\n3 4\n# none\nsecond\n"

    local function parse (number, line)
      if line == "" or line:sub (1, 1) == "#" then return nil end
      local a, b = line:match ("^(%d+) (%d+)$")
      if a then return tonumber (a), tonumber (b) end
      return number, 100, line
    end

    local function rows_of (handle)
      local list = {}
      for offset, count, third in handle:rows (3, false, parse) do
        list[#list + 1] = { offset, count, third }
      end
      return list
    end

    local function read_at (offset, count)
      return TEXT:sub (offset + 1, offset + count)
    end

    it ("come from the lines where the runner can't read any", function ()
      assert.same ({ { 1, 2 }, { 3, 100, "first" }, { 3, 4 }, { 6, 100, "second" } },
                   rows_of (file.new (read_at)))
    end)

    it ("are handed over only if they are not plain", function ()
      local handed = {}
      local handle = open ("1 2 -3\n\n4K 0x10 # four\n1.5K 1\n5 6 x\n7 0\n")
      local rows = {}
      for offset, count, third in handle:rows (3, false, function (number)
        handed[#handed + 1] = number
      end) do
        rows[#rows + 1] = { offset, count, third }
      end
      assert.same ({ { 1, 2, -3 }, { 4096, 16 } }, rows)
      assert.same ({ 4, 5, 6 }, handed)
    end)

    it ("come from what only has lines, too", function ()
      local rows = {}
      local source = { lines = function () return ("1 2\n3 x\n"):gmatch ("[^\n]+") end }
      for offset, count in file.rows (source, 2, false, function (number, line)
        return number, #line
      end) do
        rows[#rows + 1] = { offset, count }
      end
      assert.same ({ { 1, 2 }, { 2, 3 } }, rows)
    end)

    it ("come from the runner but for what that leaves", function ()
      local asked = {}
      local function read_rows (offset, columns, log)
        asked[#asked + 1] = offset
        assert.same ({ 3, false }, { columns, log })
        -- Next line, how many were passed, and a row.
        if offset == 0 then return 4, 1, 10, 20 end
        if offset == 4 then return 5, 1 end
        if offset == 11 then return 15, 1, 30, 40, 50 end
        if offset == 15 then return 22, 1 end
        return #TEXT, 0
      end
      assert.same ({ { 10, 20 }, { 3, 100, "first" }, { 30, 40, 50 },
                     { 6, 100, "second" } }, rows_of (file.new (read_at, read_rows)))
      assert.same ({ 0, 4, 11, 15, #TEXT }, asked)
    end)
  end)
end)
