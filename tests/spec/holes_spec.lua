-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/holes.lua, over a disk that comes back from a hole every 1000 bytes.

local holes = require "scan.holes"

local SIZE, STEP = 100000, 1000

-- A disk with data from one place to another, of which all from `present` on is there.
local function new (options)
  local asked = 0
  local disk = { size = SIZE }

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

describe ("holes", function ()
  it ("says whether there is one, with one question", function ()
    local disk, asked = new { data = { 5000, 6000 } }
    assert.is_true (holes.is_hole (disk, 0))
    assert.is_false (holes.is_hole (disk, 5000))
    assert.is_true (holes.is_hole (disk, 6000))
    assert.is_true (holes.is_hole (disk, SIZE - 1))
    assert.equal (4, asked ())
  end)

  it ("gives what is missing and data", function ()
    local disk = new { data = { 5000, 90000 }, present = 8000 }
    assert.same ({ 5000, 1000 }, { holes.missing_data (disk, 5000, 6000) })
    assert.same ({ 5000, 3000 }, { holes.missing_data (disk, 0, SIZE) })
    assert.same ({ 7000, 1000 }, { holes.missing_data (disk, 7000, SIZE) })
    assert.same ({}, { holes.missing_data (disk, 8000, SIZE) })
    assert.same ({}, { holes.missing_data (disk, 0, 5000) })
  end)

  it ("looks no further than it has to", function ()
    local disk, asked = new { data = { 90000, 95000 } }
    assert.same ({}, { holes.missing_data (disk, 0, 2500) })
    assert.equal (3, asked ())
    assert.same ({}, { holes.missing_data (disk, 95000, SIZE) })
    assert.equal (8, asked ())
  end)
end)
