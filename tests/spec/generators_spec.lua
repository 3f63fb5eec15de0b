-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/generators.lua: what is taken of a range, over a disk that comes back
-- from a hole every 1000 bytes.

local generators = require "scan.generators"

local SIZE, STEP = 100000, 1000

-- A disk with data from one place to another, of which all from `present` on is there.
local function new (options)
  local asked = 0
  local disk = { size = SIZE, block = SIZE }

  function disk.next_data (_, offset, briefly)
    assert.is_true (offset >= 0 and offset < SIZE)
    asked = asked + 1
    local data = options.data
    if offset >= data[1] and offset < data[2] then return offset end
    local stop = offset < data[1] and data[1] or SIZE
    if briefly and stop - offset > STEP then return offset + STEP, true end
    return stop < SIZE and stop or nil
  end

  function disk.missing (_, from, to)
    local stop = math.min (to, options.present or SIZE)
    if from < stop then return from, stop - from end
  end

  return disk, function () return asked end
end

local function new_range (at, stop) return { at = at, stop = stop } end

describe ("generators.take", function ()
  it ("gives what is missing and data, and moves on", function ()
    local disk = new { data = { 5000, 90000 }, present = 8000 }
    local range = new_range (5000, 6000)
    assert.same ({ 5000, 700 }, { generators.take (disk, range, 700) })
    assert.same ({ 5700, 300 }, { generators.take (disk, range, 700) })
    assert.same ({}, { generators.take (disk, range, 700) })
    assert.same ({}, { generators.take (disk, new_range (8000, SIZE), 700) })
    assert.same ({}, { generators.take (disk, new_range (4500, 5000), 700) })
    assert.same ({ 5000, 3000 }, { generators.take (disk, new_range (4500, SIZE), SIZE) })
  end)

  it ("stops at a multiple where it is told to", function ()
    local disk = new { data = { 0, SIZE } }
    local range = new_range (2000, 10000)
    assert.same ({ 2000, 1000 }, { generators.take (disk, range, SIZE, 3000) })
    assert.same ({ 3000, 3000 }, { generators.take (disk, range, SIZE, 3000) })
    assert.same ({ 6000, 100 }, { generators.take (disk, range, 100, 3000) })
    assert.same ({ 6100, 3900 }, { generators.take (disk, range, SIZE) })
  end)

  it ("counts holes where it is told to", function ()
    local disk, asked = new { data = { 5000, 6000 } }
    local range = { at = 1000, stop = 2000, holes = true }
    assert.same ({ 1000, 1000 }, { generators.take (disk, range, SIZE) })
    assert.equal (0, asked ())
  end)

  it ("looks no further than it has to, and comes back from a vast hole", function ()
    local disk, asked = new { data = { 90000, 95000 } }
    local range = new_range (0, 2500)
    for _ = 1, 3 do assert.same ({ nil, 0 }, { generators.take (disk, range, SIZE) }) end
    assert.same ({}, { generators.take (disk, range, SIZE) })
    assert.equal (3, asked ())
  end)

  it ("leaves out a hole between what is there and what is missing", function ()
    -- 0 to 1000 is there, 1000 to 1500 a hole, 2000 to 2500 is there.
    local disk = { size = SIZE, block = SIZE }
    function disk.missing (_, from, to)
      if from < 1000 then from = 1000 end
      if from >= 2000 and from < 2500 then from = 2500 end
      local stop = from < 2000 and math.min (2000, to) or to
      if from < stop then return from, stop - from end
    end
    function disk.next_data (_, offset)
      return offset >= 1000 and offset < 2200 and 2200 or offset
    end
    assert.same ({ 2500, 500 }, { generators.take (disk, new_range (0, 3000), SIZE) })
  end)
end)

describe ("generators.widen", function ()
  it ("widens to multiples, and not beyond the disk", function ()
    local disk = { size = 100000 }
    assert.same (new_range (0, 4096), generators.widen (disk, 1, 4095, 4096))
    assert.same (new_range (0, 8192), generators.widen (disk, 1, 4096, 4096))
    assert.same (new_range (98304, 100000), generators.widen (disk, 99999, 1, 4096))
    local far = math.maxinteger
    assert.same (new_range (far - 4095, far),
                 generators.widen ({ size = far }, far - 1, 4096, 4096))
  end)
end)

describe ("generators.run", function ()
  local testing = require "scan.testing"

  -- One that has these to give, each once: ranges, or seconds until there is one.
  local function giver (list, more)
    local generator = more or {}
    function generator.next ()
      local item = table.remove (list, 1)
      if type (item) == "table" then return table.unpack (item) end
      return nil, item
    end
    return generator
  end

  local function run (list, options)
    local all = { size = SIZE, block = SIZE, policy = function (disk)
      require "scan.generators".run (disk, list, true)
    end }
    for name, value in pairs (options or {}) do all[name] = value end
    local result = testing.run (all)
    assert.is_nil (result.error)
    return result
  end

  it ("waits for the first that knows when", function ()
    local result = run { giver { 1, { 0, 1 } }, giver { 50 } }
    assert.same ({ 1 }, result.issued)
  end)

  it ("is over when nothing is to be had once all has ended", function ()
    local list = { { 0, 1 } }
    local generator = giver (list)
    function generator.failed (_, offset, count)
      if offset < 2 then list[1] = { offset + 1, count } end
    end
    local result = run ({ generator }, { threads = 4,
                                         fail = function () return "EIO" end })
    assert.same ({ { 0, 1 }, { 1, 1 }, { 2, 1 } }, result.prefetches)
    assert.is_true (result.finished)
  end)

  it ("shows a read to those behind only if nobody before took it", function ()
    local seen = {}
    local function looker (name, takes)
      return giver ({}, { note = function (_, offset)
        seen[#seen + 1] = name .. offset
        return takes == offset
      end })
    end
    run ({ looker ("a", 7), looker "b" },
         { events = { { after = 0, read = { 5, 1 } }, { after = 0, read = { 7, 1 } } } })
    assert.same ({ "a5", "b5", "a7" }, seen)
  end)
end)

describe ("scan.neighbours", function ()
  it ("offers the MiB around the last 32 reads, the newest first", function ()
    local MiB = 1 << 20
    local disk = { size = 100 * MiB }
    function disk.missing (_, from, to) return from, to - from end
    function disk.next_data (_, offset) return offset end
    local generator = require "scan.neighbours".new (disk)
    for i = 0, 39 do generator:note (i * MiB + 4096) end
    local offered = {}
    for offset, count in function () return generator:next (MiB) end do
      offered[#offered + 1] = { offset, count }
    end
    assert.equal (64, #offered)
    assert.same ({ { 39 * MiB + 4096, MiB - 4096 }, { 39 * MiB, 4096 } },
                 { offered[1], offered[2] })
    assert.same ({ 8 * MiB, 4096 }, offered[64])
  end)
end)

describe ("scan.rest", function ()
  it ("goes through all between what failed, and at once where a stream went on",
      function ()
    local disk, now = new { data = { 0, SIZE }, present = 0 }, 0
    disk.now = function () return now end
    local walks = {}
    local generator = require "scan.rest".new (disk, walks)
    assert.is_nil (generator:next (SIZE))
    generator:failed (50000, 1000)
    generator:failed (20000, 1000)
    generator:failed (70000, 1000)
    disk.missing = function (_, from, to) return from, to - from end
    assert.same ({ nil, 1 }, { generator:next (SIZE) })
    now = 1
    assert.same ({ 20000, 51000 }, { generator:next (SIZE) })
    assert.same ({}, { generator:next (SIZE) })
    generator:failed (20000, 1000)
    assert.same ({ nil, 2 }, { generator:next (SIZE) })
    walks.position = 90000
    assert.same ({ 90000, 10000 }, { generator:next (SIZE) })
  end)

  it ("waits for longer each time, and for a second again once the source is back",
      function ()
    local disk, now = new { data = { 0, SIZE }, present = 0 }, 0
    disk.now = function () return now end
    local generator = require "scan.rest".new (disk, {})
    local function pause ()
      generator:failed (0, 1000)
      local offset, seconds = generator:next (SIZE)
      assert.is_nil (offset)
      now = now + seconds
      return seconds
    end
    assert.same ({ 1, 2, 4 }, { pause (), pause (), pause () })
    generator:ended (0, 1000, "EIO")
    assert.equal (8, pause ())
    generator:ended (0, 1000)
    assert.equal (1, pause ())
  end)

  it ("never waits for less than nothing, however the clock moves", function ()
    local disk, now = new { data = { 0, SIZE }, present = 0 }, 0
    local generator = require "scan.rest".new (disk, {})
    for step = 0.1, 3, 0.1 do
      disk.now = function ()
        now = now + step
        return now
      end
      generator:failed (0, 1000)
      local offset, seconds = generator:next (SIZE)
      assert (offset or seconds > 0, ("%s at steps of %s"):format (seconds, step))
      generator:ended (0, 1000)
    end
  end)
end)
