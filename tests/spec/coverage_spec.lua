-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/coverage.lua: what of a disk is done.

local coverage = require "scan.coverage"

local KiB, MiB = 1024, 1024 * 1024

local function new (size)
  return coverage.new { size = size or 16 * MiB, block = 2 * MiB }
end

-- All ranges that are missing, as "offset-stop" in KiB.
local function missing (done, untouched, from)
  local list, at = {}, from or 0
  while at < done.size do
    local offset, stop = done:missing (at, done.size, untouched)
    if not offset then break end
    list[#list + 1] = ("%g-%g"):format (offset / KiB, stop / KiB)
    at = stop
  end
  return table.concat (list, " ")
end

describe ("coverage", function ()
  it ("gives what is missing, within a block", function ()
    local done = new (5 * MiB)
    assert.equal ("0-2048 2048-4096 4096-5120", missing (done))
    assert.equal ("3072-4096 4096-5120", missing (done, false, 3 * MiB))
    assert.is_nil (done:missing (5 * MiB, 5 * MiB))
  end)

  it ("takes units that were fetched whole", function ()
    local done = new (2 * MiB)
    done:add (64 * KiB, 256 * KiB)
    done:add (300 * KiB, 500 * KiB)
    assert.equal ("0-64 256-320 448-2048", missing (done))
    assert.is_true (done:is_done (64 * KiB))
    assert.is_false (done:is_done (256 * KiB))
  end)

  it ("takes the disk's last unit, which may be short", function ()
    local done = new (MiB + 5)
    done:add (MiB, MiB + 5)
    assert.equal ("0-1024", missing (done))
  end)

  it ("has small units for small blocks", function ()
    local done = coverage.new { size = 16 * KiB, block = 4 * KiB }
    assert.equal (4 * KiB, done.unit)
    done:add (4 * KiB, 8 * KiB)
    assert.equal ("0-4 8-12 12-16", missing (done))
  end)

  it ("knows what was read in part", function ()
    local done = new (2 * MiB)
    done:add_read (100 * KiB, 104 * KiB)      -- in one unit
    done:add_read (600 * KiB, 700 * KiB)      -- in parts of two
    done:add_read (1024 * KiB, 1152 * KiB)    -- two whole ones
    assert.equal ("0-1024 1152-2048", missing (done))
    assert.equal ("0-64 128-576 704-1024 1152-2048", missing (done, true))
    assert.is_true (done:is_near (64 * KiB))
    assert.is_true (done:is_near (1024 * KiB))
    assert.is_false (done:is_near (128 * KiB))
  end)

  it ("gives nothing untouched where all that is missing was read in part", function ()
    local done = new (4 * MiB)
    for offset = 0, 4 * MiB - 1, 128 * KiB do
      done:add_read (offset, offset + 4 * KiB)
      done:add (offset + 64 * KiB, offset + 128 * KiB)
    end
    assert.is_nil (done:missing (0, done.size, true))
    assert.same ({ 0, 64 * KiB }, { done:missing (0, done.size) })
    assert.is_nil (done:missing (0, 2 * MiB, true))
  end)

  it ("keeps to the end that it is given", function ()
    local done = new ()
    done:add (0, 2 * MiB)
    assert.is_nil (done:missing (0, 2 * MiB))
    assert.is_nil (done:missing (0, 2 * MiB, true))
    assert.same ({ 2 * MiB, 3 * MiB }, { done:missing (0, 3 * MiB, true) })
  end)

  it ("takes a hole for done, until it is wanted", function ()
    local done = new (4 * MiB)
    done:add (0, MiB)
    done:add_hole (MiB, 3 * MiB)
    assert.equal ("3072-4096", missing (done))
    assert.is_true (done:is_hole (2 * MiB))
    assert.is_true (done:is_done (2 * MiB))
    assert.is_false (done:is_hole (0))
    assert.is_false (done:is_near (2 * MiB))
    done:want_holes (0, 2 * MiB)
    assert.is_false (done:is_hole (MiB))
    assert.is_true (done:is_done (0))         -- no hole
    assert.equal ("1024-2048 3072-4096", missing (done))
  end)

  it ("says when it forgets", function ()
    local done = coverage.new { size = 1 << 50, block = 2 * MiB }
    assert.is_false (done.forgetful)
    for i = 0, 70000 do done:add (i * 64 * MiB, i * 64 * MiB + 64 * KiB) end
    assert.is_true (done.forgetful)
  end)
end)
