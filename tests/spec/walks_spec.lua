-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/walks.lua: what is a stream, or a walk in steps, and how far ahead is
-- offered.

local known = require "scan.known"
local walks = require "scan.walks"

local KiB, MiB = 1024, 1024 * 1024

-- The disk as a generator sees it.
local function new_disk (size, next_data)
  local map = known.new (size)
  return {
    size = size, block = 2 * MiB, map = map,
    missing = function (_, from, to) return map:missing (from, math.min (to, size)) end,
    next_data = next_data or function (_, offset) return offset end,
  }
end

-- A client read, as the loop shows it.
local function read (readers, offset, count)
  return readers:note (offset, count, readers.disk.map:begin_read (offset, count))
end

-- All that is offered now, taken.
local function offers (readers)
  local list = {}
  for offset, count in function () return readers:next (2 * MiB) end do
    readers.disk.map:begin_prefetch (offset, count)
    readers.disk.map:end_prefetch (offset, count, true)
    list[#list + 1] = { offset, count }
  end
  return list
end

local function bytes (list)
  local sum = 0
  for _, range in ipairs (list) do sum = sum + range[2] end
  return sum
end

local function new (options)
  options = options or {}
  return walks.new (new_disk (options.size or 1 << 30, options.next_data),
                    options.window)
end

local function new_strides (size, next_data)
  return walks.new (new_disk (size or 1 << 30, next_data))
end

describe ("streams", function ()
  it ("follow from the second read that touches on, no further than was read", function ()
    local readers = new ()
    assert.is_false (read (readers, 0, 256 * KiB))
    assert.same ({}, offers (readers))
    assert.is_true (read (readers, 256 * KiB, 256 * KiB))
    assert.same ({ { 512 * KiB, 512 * KiB } }, offers (readers))
    assert.equal (512 * KiB, readers.position)
  end)

  it ("grow the window with what is read, up to what is allowed", function ()
    local readers = new { window = 4 * MiB }
    local ahead = 0
    for i = 0, 63 do
      read (readers, i * 256 * KiB, 256 * KiB)
      for _, range in ipairs (offers (readers)) do
        ahead = math.max (ahead, range[1] + range[2])
      end
      local position = (i + 1) * 256 * KiB
      if i >= 1 then
        assert.is_true (ahead - position <= math.min (position, 4 * MiB))
        assert.is_true (ahead - position >= math.min (position, 4 * MiB) // 2)
      end
    end
  end)

  it ("stop at the end of the disk", function ()
    local readers = new { size = 8 * MiB + 100 }
    for i = 0, 15 do read (readers, 4 * MiB + i * 256 * KiB, 256 * KiB) end
    assert.same ({ { 8 * MiB, 100 } }, offers (readers))
  end)

  it ("are many, the one read last first", function ()
    local readers = new ()
    -- Of squares no four are equally far apart.
    local function place (stream) return (stream + 2) * (stream + 2) end
    for i = 0, 3 do
      for stream = 0, 59 do
        read (readers, place (stream) * 256 * KiB + i * 64 * KiB, 64 * KiB)
      end
    end
    local list = offers (readers)
    assert.equal (place (59) * 256 * KiB + 256 * KiB, list[1][1])
    assert.equal (60 * 256 * KiB, bytes (list))
  end)

  it ("are seen where they are equally far apart, too", function ()
    local readers = new ()
    for i = 0, 3 do
      for stream = 0, 31 do
        read (readers, stream * 32 * MiB + i * 64 * KiB, 64 * KiB)
      end
    end
    local is_offered = {}
    for _, range in ipairs (offers (readers)) do is_offered[range[1]] = true end
    for stream = 0, 31 do
      assert.is_true (is_offered[stream * 32 * MiB + 256 * KiB])
    end
  end)

  it ("leave out holes, until the reader reads in one", function ()
    local readers = new { next_data = function (_, offset)
      return offset >= 2 * MiB and offset < 4 * MiB and 4 * MiB or offset
    end }
    for i = 0, 7 do
      read (readers, i * 256 * KiB, 256 * KiB)
      for _, range in ipairs (offers (readers)) do
        assert.is_false (range[1] >= 2 * MiB and range[1] < 4 * MiB)
      end
    end
    read (readers, 2 * MiB, 256 * KiB)
    assert.equal (2 * MiB + 256 * KiB, offers (readers)[1][1])
  end)

  it ("offer nothing for reads here and there", function ()
    local readers, place = new { size = 1 << 36 }, 1
    for _ = 1, 1000 do
      place = (place * 1103515245 + 12345) % 2147483648
      read (readers, place * 32, 4 * KiB)
      assert.same ({}, offers (readers))
    end
    assert.is_nil (readers.position)
  end)

  it ("are taken for what they are where a walk in steps is due, too", function ()
    local readers = new ()
    read (readers, 4 * MiB - 64 * KiB, 64 * KiB)
    for i = 0, 3 do read (readers, i * MiB, 4 * KiB) end
    assert.is_true (read (readers, 4 * MiB, 64 * KiB))
    assert.equal (4 * MiB + 64 * KiB, readers.position)
  end)

  it ("do not overflow on the largest disk", function ()
    local readers = new { size = math.maxinteger }
    for i = 0, 3 do read (readers, math.maxinteger - (6 - i) * 4096, 4096) end
    assert.same ({ { math.maxinteger - 2 * 4096, 2 * 4096 } }, offers (readers))
  end)
end)

describe ("strides", function ()
  it ("are as far ahead as was read, from the fourth read on", function ()
    local readers = new_strides ()
    for i = 0, 2 do
      assert.is_false (read (readers, i * 384 * KiB, 16 * KiB))
      assert.same ({}, offers (readers))
    end
    for at = 3, 8 do
      -- What was fetched is not shown to the generators behind.
      assert.equal (at > 3, read (readers, at * 384 * KiB, 16 * KiB))
      local list = offers (readers)
      assert.same ({ (2 * at + 1) * 384 * KiB, 16 * KiB }, list[#list])
    end
  end)

  it ("go downwards too, what touches as one range, to the start of the disk", function ()
    local readers = new_strides ()
    for i = 1, 4 do read (readers, 64 * MiB - i * 256 * KiB, 256 * KiB) end
    assert.same ({ { 62 * MiB, MiB } }, offers (readers))
    readers = new_strides ()
    for i = 1, 7 do read (readers, 2 * MiB - i * 256 * KiB, 256 * KiB) end
    assert.same ({ { 0, 256 * KiB } }, offers (readers))
  end)

  it ("see the step, upwards or downwards, through other reads", function ()
    for _, step in ipairs { 3 * MiB, -3 * MiB } do
      local readers = new_strides ()
      local at = 512 * MiB
      for i = 1, 12 do
        read (readers, at, 4 * KiB)
        if i == 6 or i == 9 then read (readers, 7 * i * MiB, 4 * KiB) end
        at = at + step
      end
      local list = offers (readers)
      assert.same ({ at, 4 * KiB }, list[1])
    end
  end)

  it ("are several at once", function ()
    local readers = new_strides ()
    for i = 0, 5 do
      read (readers, i * 384 * KiB, 16 * KiB)
      read (readers, 512 * MiB + i * 640 * KiB, 16 * KiB)
    end
    local seen = {}
    for i = 6, 7 do
      read (readers, i * 384 * KiB, 16 * KiB)
      for _, range in ipairs (offers (readers)) do seen[range[1]] = true end
      read (readers, 512 * MiB + i * 640 * KiB, 16 * KiB)
      for _, range in ipairs (offers (readers)) do seen[range[1]] = true end
    end
    assert.is_true (seen[8 * 384 * KiB])
    assert.is_true (seen[512 * MiB + 8 * 640 * KiB])
  end)

  it ("leave out holes", function ()
    local readers = new_strides (nil, function (_, offset)
      return offset >= 8 * MiB and offset < 16 * MiB and 16 * MiB or offset
    end)
    local last = 0
    for i = 0, 9 do
      read (readers, i * MiB, 4 * KiB)
      for _, range in ipairs (offers (readers)) do
        assert.is_false (range[1] >= 8 * MiB and range[1] < 16 * MiB)
        last = range[1]
      end
    end
    assert.equal (19 * MiB, last)
  end)

  it ("offer nothing for reads here and there", function ()
    local readers, place = new_strides (1 << 36), 1
    for _ = 1, 1000 do
      place = (place * 1103515245 + 12345) % 2147483648
      read (readers, place * 32, 4 * KiB)
      assert.same ({}, offers (readers))
    end
  end)

  it ("do not overflow on the largest disk", function ()
    local readers = new_strides (math.maxinteger)
    local step = math.maxinteger // 6
    for i = 0, 4 do read (readers, i * step, 4096) end
    assert.same ({ { 5 * step, 4096 }, { 6 * step, 1 } }, offers (readers))
  end)
end)
