-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- The combinators, with both policy forms, alone and nested.

local combine = require "scan.combinators"
local testing = require "scan.testing"

local BLOCK = 65536

local function blocks (...)
  local list = { ... }
  return function (disk)
    for _, block in ipairs (list) do disk:prefetch (block * BLOCK) end
  end
end

local function ranges (...)
  local list = { ... }
  return function (disk)
    for _, range in ipairs (list) do disk:prefetch (range[1], range[2]) end
  end
end

local function run (policy, more)
  local options = { policy = policy, size = 20 * BLOCK, block = BLOCK }
  for name, value in pairs (more or {}) do options[name] = value end
  local result = testing.run (options)
  assert.is_nil (result.error)
  return result
end

local function offsets (policy, more)
  return testing.offsets (run (policy, more), BLOCK)
end

local table_form = {
  open = function (disk) return { disk = disk, block = 0 } end,
  next = function (scan)
    scan.block = scan.block + 1
    if scan.block <= 3 then return scan.block * scan.disk.block end
  end,
}

describe ("every combinator", function ()
  local makers = {
    chain = combine.chain, skip_holes = combine.skip_holes, once = combine.once,
    align = combine.align, client_first = combine.client_first,
    interleave = combine.interleave,
    throttle = function (policy) return combine.throttle (policy, 1e6) end,
  }

  for name, make in pairs (makers) do
    it (name .. " takes both forms of a policy, and itself", function ()
      assert.same ({ 1, 2, 3 }, offsets (make (table_form)))
      assert.same ({ 4, 2 }, offsets (make (make (blocks (4, 2)))))
    end)

    it (name .. " says what it expected instead", function ()
      assert.error_matches (function () make (5) end,
                            name .. ": argument 1: a policy expected")
    end)

    it (name .. " leaves bad arguments to the disk", function ()
      local result = testing.run {
        policy = make (function (disk) disk:prefetch (-1) end),
        size = 20 * BLOCK, block = BLOCK,
      }
      assert.matches ("offset %-1 is outside the disk", result.error)
    end)

    it (name .. " ends when the client goes", function ()
      local result = run (make (function (disk)
        for block = 0, 19 do
          if disk:closed () then return end
          disk:prefetch (block * BLOCK)
        end
      end), { events = { { after = 2, close = true } } })
      assert.equal (2, #result.prefetches)
      assert.is_nil (result.dropped)
    end)

    it (name .. " hands on reads, failures and the rest", function ()
      local seen = {}
      run (make (function (disk)
        assert.equal (20, disk.blocks)
        for offset, count, met in disk:reads () do
          seen[#seen + 1] = { offset, count, met }
        end
        disk:prefetch (BLOCK)
        for offset, _, errno in disk:failures () do
          seen[#seen + 1] = { offset, errno }
        end
        for offset, count, seconds, errno in disk:results () do
          assert.is_number (seconds)
          seen[#seen + 1] = { offset, count, errno }
        end
        seen[#seen + 1] = disk:pread (2, 3)
        seen[#seen + 1] = disk:next_data (0)
        disk:settle ()
      end), {
        events = { { after = 0, read = { 7, 9 } } }, contents = "abcdefg",
        fail = function (_, count) return count == BLOCK and "EIO" or nil end,
        holes = { { 0, 5 } },
      })
      assert.same ({ { 7, 9, "miss" }, { BLOCK, "EIO" }, { BLOCK, BLOCK, "EIO" },
                     "cde", 5 }, seen)
    end)
  end

  it ("that takes several wants at least one", function ()
    assert.error_matches (function () combine.chain () end,
                          "chain: at least one policy expected")
    assert.error_matches (function () combine.interleave () end,
                          "interleave: at least one policy expected")
  end)
end)

describe ("chain", function ()
  it ("runs one after the other", function ()
    assert.same ({ 3, 1, 9, 1 }, offsets (combine.chain (blocks (3, 1), blocks (9, 1))))
  end)
end)

describe ("skip_holes", function ()
  it ("leaves holes out, down to the byte", function ()
    local result = run (combine.skip_holes (ranges ({ 0, 6 * BLOCK })), {
      holes = { { 100, 2 * BLOCK }, { 5 * BLOCK, BLOCK } },
    })
    assert.same ({ { 0, BLOCK }, { 2 * BLOCK + 100, BLOCK }, { 3 * BLOCK + 100, BLOCK },
                   { 4 * BLOCK + 100, BLOCK } }, result.prefetches)
  end)

  it ("asks once for a hole, however many blocks it has", function ()
    local result = run (combine.skip_holes (function (disk)
      for block = 0, disk.blocks - 1 do disk:prefetch (block * disk.block) end
    end), { size = 3000 * BLOCK, holes = { { 0, 2999 * BLOCK } } })
    assert.equal (1, #result.prefetches)
    assert.equal (3, result.requests)
  end)

  it ("does not look for the end of a huge hole", function ()
    local asked = {}
    local disk = { size = 1 << 40, block = BLOCK }
    function disk.next_data (_, offset, briefly)
      assert.is_true (briefly)
      asked[#asked + 1] = offset / BLOCK
      return offset + 2 * BLOCK, true
    end
    function disk.prefetch () error "this is a hole" end
    combine.skip_holes (ranges ({ 0, 5 * BLOCK }, { 5 * BLOCK, BLOCK },
                                { 900 * BLOCK, BLOCK })) (disk)
    assert.same ({ 0, 2, 4, 900 }, asked)
  end)

  it ("comes back now and then while it crosses a huge hole", function ()
    local result = run (combine.skip_holes (function (disk)
      for block = 0, disk.blocks - 1 do
        if disk:closed () then return end
        disk:prefetch (block * disk.block)
      end
    end), { size = 20000 * BLOCK, holes = { { 0, 20000 * BLOCK } },
            events = { { at = 0, close = true } } })
    assert.is_true (result.closed)
    assert.is_true (result.requests <= 3)
  end)
end)

describe ("once", function ()
  it ("drops what was asked for", function ()
    assert.same ({ 3, 4, 5, 2 }, offsets (combine.once (
      ranges ({ 3 * BLOCK, 2 * BLOCK }, { 3 * BLOCK, 3 * BLOCK }, { 2 * BLOCK, BLOCK }))))
  end)

  it ("cuts out of a range what was asked for", function ()
    assert.same ({ 5, 3, 4, 6, 7 }, offsets (combine.once (
      ranges ({ 5 * BLOCK, BLOCK }, { 3 * BLOCK, 5 * BLOCK }))))
  end)

  it ("lets parts of a unit through", function ()
    local result = run (combine.once (ranges ({ 10, 20 }, { 0, BLOCK }, { 10, 20 })))
    assert.same ({ { 10, 20 }, { 0, BLOCK } }, result.prefetches)
  end)

  it ("takes whole floats as the disk does", function ()
    assert.same ({ 3 }, offsets (combine.once (ranges ({ 3.0 * BLOCK, 1.0 * BLOCK },
                                                       { 3 * BLOCK, BLOCK }))))
    assert.error_matches (function ()
      error (testing.run { policy = combine.once (ranges { 0.5, 1 }), size = 10 }.error)
    end, "whole number of bytes, got 0.5")
  end)

  it ("knows the short block at the end of the disk", function ()
    local policy = combine.once (ranges ({ BLOCK, BLOCK }, { BLOCK, BLOCK }))
    assert.same ({ { BLOCK, 7 } }, run (policy, { size = BLOCK + 7 }).prefetches)
  end)

  it ("comes back now and then where all is there", function ()
    local result = run (combine.once (function (disk)
      for _ = 1, 20000 do disk:prefetch (0) end
    end), { events = { { after = 0, read = { 0, BLOCK } } } })
    assert.same ({}, result.prefetches)
    assert.equal (4, result.waits)
  end)

  it ("lets a range that failed be asked for again", function ()
    local failing = true
    local policy = combine.once (function (disk)
      disk:prefetch (3 * BLOCK)
      for _ in disk:failures () do failing = false end
      disk:prefetch (3 * BLOCK)
      disk:prefetch (3 * BLOCK)
    end)
    assert.same ({ 3, 3 }, offsets (policy, {
      fail = function () return failing and "EIO" or nil end,
    }))
  end)
end)

describe ("align", function ()
  it ("widens to whole blocks", function ()
    assert.same ({ { 0, BLOCK }, { 2 * BLOCK, BLOCK }, { 3 * BLOCK, BLOCK } },
                 run (combine.align (ranges ({ 5, 6 }, { 3 * BLOCK - 1, 2 }))).prefetches)
  end)

  it ("widens at the end of the largest disk there can be", function ()
    for _, size in ipairs { math.maxinteger, math.maxinteger - 2 * BLOCK } do
      local from, count
      combine.align (function (disk) disk:prefetch (5, size - 5) end) {
        size = size, block = BLOCK,
        prefetch = function (_, ...) from, count = ... end,
      }
      assert.same ({ 0, size }, { from, count })
    end
  end)

  it ("fetches nothing twice inside once", function ()
    assert.same ({ 0, 1, 2 }, offsets (combine.once (combine.align (
      ranges ({ 5, BLOCK }, { BLOCK + 5, BLOCK })))))
  end)
end)

describe ("throttle", function ()
  it ("keeps the rate, from the first byte on", function ()
    local result = run (combine.throttle (ranges ({ 0, 4 * BLOCK }, { 9 * BLOCK, BLOCK }),
                                          BLOCK / 2))
    assert.same ({ 0, 2, 4, 6, 8 }, result.issued)
  end)

  it ("does not save up", function ()
    local result = run (combine.throttle (function (disk)
      disk:prefetch (0)
      disk:wait (100)
      disk:prefetch (BLOCK, 2 * BLOCK)
    end, BLOCK / 2))
    assert.is_true (result.issued[3] - result.issued[2] >= 2)
  end)

  it ("keeps it under a client that reads all the time", function ()
    local events = {}
    for i = 1, 300 do events[i] = { at = i * 0.01, read = { 0, 512 } } end
    local result = run (combine.throttle (blocks (0, 1, 2), BLOCK), { events = events })
    assert.is_true (result.issued[3] >= 2)
  end)

  it ("wants a rate above 0", function ()
    for _, rate in ipairs { 0, -1, 0 / 0, 1e-320, "x", false } do
      assert.error_matches (function () combine.throttle (blocks (1), rate) end,
                            "throttle: a number of bytes per second from 1e%-9 up")
    end
  end)
end)

describe ("client_first", function ()
  it ("holds back until the client pauses", function ()
    local events = {}
    for i = 0, 49 do
      events[#events + 1] = { at = i * 0.1, read = { 0, 512 }, seconds = 0.05 }
    end
    local result = run (combine.client_first (blocks (1, 2)), { events = events })
    assert.same ({ 1, 2 }, testing.offsets (result, BLOCK))
    assert.is_true (result.issued[1] >= 5.05)
  end)

  it ("does not wait busily for a long read", function ()
    local result = run (combine.client_first (blocks (1), 0.5), {
      events = { { at = 0, read = { 0, 512 }, seconds = 60 } },
    })
    assert.is_true (result.issued[1] >= 60.5)
    assert.is_true (result.waits < 150)
  end)
end)

describe ("interleave", function ()
  it ("takes turns, and goes on with the ones left", function ()
    assert.same ({ 1, 11, 2, 12, 3, 13, 14, 15 },
                 offsets (combine.interleave (blocks (1, 2, 3),
                                              blocks (11, 12, 13, 14, 15))))
  end)

  it ("nests", function ()
    assert.same ({ 1, 5, 2, 9, 3, 6, 4 }, offsets (combine.interleave (
      blocks (1, 2, 3, 4), combine.interleave (blocks (5, 6), blocks (9)))))
  end)

  it ("shows every policy every read, result and failure", function ()
    local seen, ended = { {}, {} }, { {}, {} }
    local function watcher (i, first)
      return function (disk)
        for step = 0, 2 do
          disk:prefetch ((first + step) * BLOCK)
          for offset in disk:reads () do table.insert (seen[i], offset) end
          for offset in disk:failures () do table.insert (seen[i], -offset) end
          for offset in disk:results () do table.insert (ended[i], offset // BLOCK) end
        end
      end
    end
    run (combine.interleave (watcher (1, 1), watcher (2, 10)), {
      events = { { after = 1, read = { 11, 5 } }, { after = 3, read = { 22, 5 } } },
      fail = function (offset) return offset == BLOCK and "EIO" or nil end,
    })
    assert.same ({ 11, -BLOCK, 22 }, seen[1])
    assert.same ({ 11, 22, -BLOCK }, seen[2])
    assert.same ({ 1, 10, 2, 11, 3, 12 }, ended[1])
    assert.same (ended[1], ended[2])
  end)

  it ("goes on while one waits, and wakes it in time", function ()
    local woken
    local result = run (combine.interleave (function (disk)
      while disk:now () < 0.035 do disk:wait (0.035 - disk:now ()) end
      woken = disk:now ()
      disk:prefetch (19 * BLOCK)
    end, blocks (0, 1, 2, 3, 4, 5)))
    assert.same ({ 0, 1, 2, 3, 19, 4, 5 }, testing.offsets (result, BLOCK))
    assert.is_true (woken >= 0.035 and woken <= 0.05)
  end)

  it ("wakes one that waits without end when the client reads", function ()
    assert.same ({ 0, 19, 1 }, offsets (combine.interleave (function (disk)
      disk:wait ()
      disk:prefetch (19 * BLOCK)
    end, blocks (0, 1)), { events = { { after = 1, read = { 0, 1 } } } }))
  end)

  it ("wakes all for their last turn", function ()
    local ended = 0
    local function waiter (disk)
      repeat disk:wait () until disk:closed ()
      ended = ended + 1
    end
    local result = run (combine.interleave (waiter, function (disk)
      for block = 0, 19 do
        if disk:closed () then return end
        disk:prefetch (block * BLOCK)
      end
    -- While all of them are still in flight.
    end, waiter), { threads = 8, events = { { after = 2, close = true } } })
    assert.equal (2, ended)
    assert.is_nil (result.dropped)
  end)

  it ("keeps a bounded number of reads for one that doesn't look", function ()
    local count = 0
    local events = {}
    for i = 1, 30 do
      for _ = 1, 100 do events[#events + 1] = { at = i, read = { i, 1 } } end
    end
    run (combine.interleave (function (disk)
      disk:wait (50)
      while disk:now () < 50 do disk:wait (50) end
      for _ in disk:reads () do count = count + 1 end
    end, function (disk)
      while disk:now () < 50 do
        for _ in disk:reads () do end
        disk:wait (60 - disk:now ())
      end
    end), { events = events })
    assert.is_true (count > 500 and count <= 1024, count)
  end)

  it ("passes an error on", function ()
    local result = testing.run {
      policy = combine.interleave (blocks (1, 2, 3), function (disk)
        disk:prefetch (0)
        error ("spoilt", 0)
      end), size = 20 * BLOCK, block = BLOCK,
    }
    assert.matches ("spoilt", result.error)
  end)
end)
