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

describe ("scan.rest", function ()
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
