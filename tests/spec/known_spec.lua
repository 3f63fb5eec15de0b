-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/known.lua, and what the disk tells of it in the kit: missing, results,
-- and what a read met.

local known = require "scan.known"
local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024

describe ("scan.known", function ()
  it ("tells hits, late reads and misses", function ()
    local map = known.new (MiB)
    assert.equal ("miss", map:begin_read (0, 4 * KiB))
    assert.equal ("hit", map:begin_read (0, 4 * KiB))
    map:begin_prefetch (64 * KiB, 64 * KiB)
    assert.equal ("late", map:begin_read (100 * KiB, 4 * KiB))
    map:end_prefetch (64 * KiB, 64 * KiB, true)
    assert.equal ("hit", map:begin_read (100 * KiB, 28 * KiB))
    assert.equal ("miss", map:begin_read (100 * KiB, 29 * KiB))
  end)

  it ("finds what is missing, and forgets what failed", function ()
    local map = known.new (MiB + 100)
    map:begin_prefetch (0, 64 * KiB)
    map:begin_read (128 * KiB, MiB + 100 - 128 * KiB)
    assert.same ({ 64 * KiB, 64 * KiB }, { map:missing (0, MiB + 100) })
    assert.same ({ 100 * KiB, 8 * KiB }, { map:missing (100 * KiB, 108 * KiB) })
    map:end_prefetch (0, 64 * KiB, false)
    assert.same ({ 0, 128 * KiB }, { map:missing (0, MiB + 100) })
    assert.is_nil (map:missing (128 * KiB, MiB + 100))
  end)

  it ("keeps what was there when a prefetch of it fails", function ()
    local map = known.new (MiB)
    map:begin_read (0, 4 * KiB)
    map:begin_prefetch (8 * KiB, 4 * KiB)
    map:end_prefetch (8 * KiB, 4 * KiB, true)
    map:begin_prefetch (0, 64 * KiB)
    map:begin_prefetch (16 * KiB, 64 * KiB)
    map:begin_read (20 * KiB, 4 * KiB)
    assert.same ({ 80 * KiB, 944 * KiB }, { map:missing (0, MiB) })
    map:end_prefetch (0, 64 * KiB, false)
    assert.same ({ 4 * KiB, 4 * KiB }, { map:missing (0, MiB) })
    assert.same ({ 12 * KiB, 4 * KiB }, { map:missing (8 * KiB, MiB) })
    assert.equal ("hit", map:begin_read (8 * KiB, 4 * KiB))
    assert.equal ("late", map:begin_read (24 * KiB, 4 * KiB))
    map:end_prefetch (16 * KiB, 64 * KiB, false)
    assert.same ({ 12 * KiB, 8 * KiB }, { map:missing (8 * KiB, MiB) })
    assert.same ({ 28 * KiB, MiB - 28 * KiB }, { map:missing (24 * KiB, MiB) })
  end)

  it ("leaves out parts of 512 bytes", function ()
    local map = known.new (MiB)
    map:begin_read (100, 1000)
    assert.same ({ 0, 512 }, { map:missing (0, 2048) })
    assert.same ({ 1024, 1024 }, { map:missing (600, 2048) })
  end)
end)

describe ("the kit", function ()
  local function run (policy, options)
    local all = { policy = policy, size = 8 * MiB, block = MiB }
    for name, value in pairs (options or {}) do all[name] = value end
    local result = testing.run (all)
    assert.is_nil (result.error)
    return result
  end

  it ("tells what became of prefetches", function ()
    local seen = {}
    run (function (disk)
      disk:prefetch (0, 2 * MiB)
      disk:prefetch (4 * MiB, MiB)
      for offset, count, seconds, errno in disk:results () do
        seen[#seen + 1] = { offset, count, seconds, errno }
      end
      for _ in disk:results () do seen[#seen + 1] = "again" end
    end, { fail = function (offset) return offset == 4 * MiB and "EIO" or nil end })
    assert.same ({ { 0, MiB, 0.01 }, { MiB, MiB, 0.01 }, { 4 * MiB, MiB, 0.01, "EIO" } },
                 seen)
  end)

  it ("tells what reads met", function ()
    local met = {}
    run (function (disk)
      disk:prefetch (0, MiB)
      while disk:now () < 1 do disk:wait (1) end
      for _, _, what in disk:reads () do met[#met + 1] = what end
    end, { events = { { after = 1, read = { 0, 512 } }, { at = 0.5, read = { 512, 512 } },
                      { at = 0.5, read = { 4 * MiB, 512 } } } })
    assert.same ({ "late", "hit", "miss" }, met)
  end)

  it ("shares what is known among the scans of an export", function ()
    local at
    local options = { policy = function (disk)
      at = disk:missing (0)
      if at then disk:prefetch (at) end
    end, size = 8 * MiB, block = MiB }
    options.world = testing.world (options)
    options.policy = nil
    testing.run (options)
    testing.run (options)
    assert.equal (MiB, at)
  end)
end)
