-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/sequential.lua: the stock scan, for all eight settings.

local sequential = require "scan.sequential"
local testing = require "scan.testing"

local MiB = 1024 * 1024
local BLOCK = 2 * MiB

local function offsets (options, more)
  local all = { policy = sequential.scan (options), size = 5 * BLOCK, block = BLOCK }
  for name, value in pairs (more or {}) do all[name] = value end
  local result = testing.run (all)
  assert.is_nil (result.error)
  return testing.offsets (result, BLOCK), result
end

describe ("scan.sequential", function ()
  it ("goes upwards, the last block cut short", function ()
    local _, result = offsets ({}, { size = 2 * BLOCK + 7 })
    assert.same ({ { 0, BLOCK }, { BLOCK, BLOCK }, { 2 * BLOCK, 7 } }, result.prefetches)
    assert.is_true (result.finished)
  end)

  it ("looks at reads only with ahead", function ()
    local more = { events = { { after = 1, read = { 2 * BLOCK, BLOCK } } } }
    assert.same ({ 0, 3, 4 }, offsets ({ ahead = true }, more))
    assert.same ({ 0, 1, 2, 3, 4 }, offsets ({}, more))
  end)

  it ("moves up only, and without aligning", function ()
    local more = { events = {
      { after = 2, read = { 0, 512 } },
      { after = 3, read = { 3 * BLOCK, 100 } },
    } }
    local _, result = offsets ({ ahead = true }, more)
    assert.same ({ { 0, BLOCK }, { BLOCK, BLOCK }, { 2 * BLOCK, BLOCK },
                   { 3 * BLOCK + 100, BLOCK }, { 4 * BLOCK + 100, BLOCK - 100 } },
                 result.prefetches)
  end)

  it ("takes reads from before it started", function ()
    assert.same ({ 1, 2, 3, 4 }, offsets ({ ahead = true }, {
      events = { { after = 0, read = { 0, BLOCK } } },
    }))
  end)

  it ("is done when a read ends at the end of the disk", function ()
    local seen, result = offsets ({ ahead = true }, {
      events = { { after = 1, read = { 5 * BLOCK - 512, 512 } } },
    })
    assert.same ({ 0 }, seen)
    assert.is_true (result.finished)
  end)

  it ("stops when the client goes, at once", function ()
    local seen, result = offsets ({}, { events = { { after = 2, close = true } } })
    assert.same ({ 0, 1 }, seen)
    assert.is_nil (result.dropped)
  end)

  it ("starts at the clock, which ends where the last prefetch began", function ()
    local clock = sequential.clock ()
    assert.same ({ 0, 1, 2 }, offsets ({ clock = clock }, {
      events = { { after = 3, close = true } },
    }))
    assert.equal (2 * BLOCK, clock.offset)
    assert.same ({ 2, 3, 4 }, offsets { clock = clock })
    -- The last block is fetched again: the clock is where it began.
    assert.same ({ 4 }, offsets { clock = clock })
  end)

  it ("raises the clock to the end of a read that ends the scan", function ()
    local clock = sequential.clock ()
    offsets ({ clock = clock, ahead = true }, {
      events = { { after = 1, read = { 4 * BLOCK, BLOCK } } },
    })
    assert.equal (5 * BLOCK, clock.offset)
    assert.same ({}, offsets { clock = clock })
  end)

  it ("never lowers the clock for a slower scan", function ()
    local clock = sequential.clock ()
    local world = testing.world { policy = sequential.scan { clock = clock } }
    local options = { world = world, size = 5 * BLOCK, block = BLOCK }
    local slow, fast = testing.scan (options), testing.scan (options)
    slow:step ()
    repeat until not fast:step ()
    slow:step ()
    assert.same ({ 0, 1 }, testing.offsets (slow, BLOCK))
    assert.equal (4 * BLOCK, clock.offset)
  end)

  it ("goes round with forever, and reads apply to the new lap", function ()
    local options = { forever = true, ahead = true }
    assert.same ({ 0, 1, 2, 3, 4, 2, 3, 4, 0 }, offsets (options, {
      events = { { after = 5, read = { BLOCK, BLOCK } }, { after = 9, close = true } },
    }))
  end)

  it ("leaves the clock at 0 when the client goes in a lap's last block", function ()
    local clock = sequential.clock ()
    local options = { clock = clock, forever = true }
    offsets (options, { events = { { after = 5, close = true } } })
    assert.equal (0, clock.offset)
    offsets (options, { events = { { after = 4, close = true } } })
    assert.equal (3 * BLOCK, clock.offset)
  end)

  it ("does not go round an empty disk", function ()
    sequential.scan { forever = true } { size = 0, block = BLOCK }
  end)

  it ("does not overflow on the largest disk", function ()
    local size = math.maxinteger
    local clock = { offset = size - 5 }
    local seen = testing.run { policy = sequential.scan { clock = clock },
                               size = size, block = 32 * MiB }
    assert.same ({ { size - 5, 5 } }, seen.prefetches)
  end)

  -- The filter relies on it: it runs this without a limit of time.
  it ("decides in a bounded number of instructions", function ()
    local READS = 64
    local setups = { { ahead = true, clock = sequential.clock () }, { forever = true },
                     { ahead = true, forever = true } }
    for _, options in ipairs (setups) do
      local reads_left, most = 0, 0
      local disk = { size = 5 * BLOCK, block = BLOCK, prefetch = coroutine.yield }
      function disk.closed () return false end
      local function next_read ()
        if reads_left == 0 then return nil end
        reads_left = reads_left - 1
        -- Some of them in the last block, so that the lap is over.
        return reads_left % 3 * 2 * BLOCK, BLOCK
      end
      function disk.reads () return next_read end

      local scan = coroutine.create (sequential.scan (options))
      for decision = 1, 100 do
        reads_left = decision % 2 * READS
        local count = 0
        debug.sethook (scan, function () count = count + 1 end, "", 1)
        assert (coroutine.resume (scan, disk))
        most = math.max (most, count)
        if coroutine.status (scan) == "dead" then break end
      end
      assert.is_true (most > 0 and most < 100 + 30 * READS, most)
    end
  end)
end)
