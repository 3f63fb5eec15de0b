-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/adaptive.lua

local simulator = require "scan.simulator"
local testing = require "scan.testing"
local trace = require "scan.trace"

local KiB, MiB = 1024, 1024 * 1024
local BLOCK = 2 * MiB

local function run (options)
  local all = { policy = "adaptive", size = 64 * MiB, block = BLOCK }
  for name, value in pairs (options) do all[name] = value end
  local result = testing.run (all)
  assert.is_nil (result.error)
  return result
end

-- How often each 64K of the disk was prefetched.
local function coverage (result)
  local times = {}
  for _, prefetch in ipairs (result.prefetches) do
    for unit = prefetch[1] // 65536, (prefetch[1] + prefetch[2] - 1) // 65536 do
      times[unit] = (times[unit] or 0) + 1
    end
  end
  return times
end

local function read_trace (name)
  local handle = assert (io.open ("tests/traces/" .. name))
  local list = trace.read (handle)
  handle:close ()
  return list
end

describe ("adaptive", function ()
  it ("fetches a disk that nobody reads, once, upwards", function ()
    local result = run {}
    assert.equal (32, #result.prefetches)
    for i, prefetch in ipairs (result.prefetches) do
      assert.same ({ (i - 1) * BLOCK, BLOCK }, prefetch)
    end
    assert.is_true (result.finished)
  end)

  it ("fetches the same with many threads", function ()
    local result = run { threads = 16, size = 64 * MiB + 5 }
    assert.equal (33, #result.prefetches)
    assert.same ({ 64 * MiB, 5 }, result.prefetches[33])
  end)

  it ("gives the client the silence period first", function ()
    assert.is_true (run {}.issued[1] >= 0.1)
    assert.is_true (run { args = { silence = "2" } }.issued[1] >= 2)
  end)

  -- A client that reads 4K here and there, without a pause.
  local function scattered_reads (count, seconds)
    local events, place = {}, 1
    for i = 1, count do
      place = (place * 1103515245 + 12345) % 2147483648
      events[i] = { at = i * 0.05, seconds = seconds,
                    read = { place % (60 * MiB), 4 * KiB } }
    end
    return events
  end

  it ("fetches a little while the client reads here and there", function ()
    local result = run { events = scattered_reads (300, 0.04), prefetch_seconds = 0.04 }
    local during, most = 0, 0
    for i, seconds in ipairs (result.issued) do
      if seconds < 300 * 0.05 then
        during = during + 1
        most = math.max (most, result.prefetches[i][2])
        -- Right after a read began, so that it comes behind it.
        local since_read = seconds % 0.05
        assert.is_true (since_read < 1e-6 or since_read > 0.05 - 1e-6)
      end
    end
    assert.is_true (during > 20)
    assert.is_true (most >= BLOCK - 64 * KiB)
    assert.is_true (result.finished)
  end)

  it ("fetches what nobody has read, in one go, beside such a client", function ()
    -- In each block, one read of 4K in the middle.
    local events, read_at = {}, {}
    for i = 1, 60 do
      local block = i * 7 % 32
      events[i] = { at = i * 0.05, seconds = 0.04,
                    read = { block * BLOCK + MiB, 4 * KiB } }
      read_at[block] = read_at[block] or i * 0.05
    end
    local result = run { events = events, prefetch_seconds = 0.04, threads = 8 }
    local together = 0
    for i, prefetch in ipairs (result.prefetches) do
      local seconds = result.issued[i]
      local from = prefetch[1] % BLOCK
      local around_read = from <= MiB and from + prefetch[2] > MiB
      if seconds < 60 * 0.05 then
        assert.is_true (not around_read or seconds < read_at[prefetch[1] // BLOCK])
        if seconds == result.issued[i - 1] then together = together + 1 end
      end
    end
    assert.is_true (together > 10)
    -- The rest when it has gone quiet: all of it once.
    assert.is_true (result.finished)
    local times = coverage (result)
    for unit = 0, 64 * MiB // (64 * KiB) - 1 do assert.equal (1, times[unit]) end
  end)

  -- Lone reads in blocks of their own, those in `holes` and others in turn.
  local function reads_around (holes_of_each_4)
    local hole = 32 * MiB
    local events = {}
    for i = 1, 60 do
      local at = i * 7 % 60
      local in_hole = i % 4 < holes_of_each_4
      events[i] = { at = i * 0.05, seconds = 0.04,
                    read = { (in_hole and hole or 0) + at * 512 * KiB, 4 * KiB } }
    end
    local result = run { events = events, prefetch_seconds = 0.04, threads = 8,
                         holes = { { hole, 32 * MiB } } }
    local inside = 0
    for _, prefetch in ipairs (result.prefetches) do
      if prefetch[1] >= hole then inside = inside + prefetch[2] end
    end
    return inside
  end

  it ("fetches the blocks around lone reads in holes, if there are many", function ()
    assert.equal (0, reads_around (0))
    assert.equal (0, reads_around (1))
    assert.is_true (reads_around (4) >= 24 * MiB)
  end)

  it ("leaves such a client alone where a prefetch is no faster than it", function ()
    local result = run { events = scattered_reads (300, 0.04), prefetch_seconds = 0.08 }
    local during = 0
    for _, seconds in ipairs (result.issued) do
      if seconds < 300 * 0.05 then during = during + 1 end
    end
    assert.equal (2, during)      -- one to find out, and one more after 256 reads
    assert.is_true (result.finished)
  end)

  it ("leaves such a client alone with fill=false", function ()
    local result = run { events = scattered_reads (300, 0.04),
                         prefetch_seconds = 0.04, args = { fill = "false" } }
    assert.equal (0, #result.issued)
  end)

  it ("waits for longer than the client usually pauses", function ()
    local events = {}
    for i = 1, 40 do
      events[i] = { at = i * 0.2, read = { i * MiB, 512 }, seconds = 0.01 }
    end
    local result = run { events = events }
    -- The first pause can't be known: a prefetch or two then.  Later there may be
    -- one beside a read, but none in a pause.
    local early = 0
    for _, seconds in ipairs (result.issued) do
      local since_read = seconds % 0.2
      if seconds > 0.6 and seconds < 8
         and since_read > 1e-6 and since_read < 0.2 - 1e-6 then
        early = early + 1
      end
    end
    assert.equal (0, early)
    assert.is_true (result.finished)
  end)

  it ("does not wait busily for a long read", function ()
    local result = run { events = { { at = 0, read = { 0, 512 }, seconds = 300 } } }
    assert.is_true (result.issued[1] > 300)
    assert.is_true (result.waits < 4000)
  end)

  it ("fetches all 32 blocks after what blkid reads", function ()
    local events = {}
    local reads = read_trace ("blkid.log")
    assert.is_true (#reads > 20)
    for i, read in ipairs (reads) do
      events[i] = { at = i * 0.01, read = { read.offset, read.count }, seconds = 0.009 }
    end
    local result = run { events = events }
    local blocks, number = {}, 0
    for _, prefetch in ipairs (result.prefetches) do
      local block = prefetch[1] // BLOCK
      if not blocks[block] then number = number + 1 end
      blocks[block] = true
    end
    assert.equal (32, number)
    assert.is_true (result.finished)
  end)

  it ("takes a lone read as a hint, and comes back", function ()
    local result = run { events = {
      { at = 0.01, read = { 40 * MiB + 5, 512 } }, { at = 0.02, read = { 9 * MiB, 512 } },
    } }
    assert.same ({ 20, 4, 0, 1, 2, 3, 5 },
                 { table.unpack (testing.offsets (result, BLOCK), 1, 7) })
    assert.equal (32, #result.prefetches)
  end)

  it ("goes on from a sequential reader, then comes back for the rest", function ()
    local result = run { events = {
      { at = 0.01, read = { 40 * MiB, MiB } }, { at = 0.02, read = { 41 * MiB, MiB } },
    }, args = { silence = "0.05" } }
    assert.same ({ 21, 22, 23 }, { table.unpack (testing.offsets (result, BLOCK), 1, 3) })
    local units = coverage (result)
    assert.is_nil (units[40 * 16])
    assert.equal (1, units[0])
  end)

  for _, threads in ipairs { 1, 8 } do
    it (("fetches nothing twice, nor what was read, with %d threads"):format (threads),
        function ()
      local events = {}
      for i = 0, 99 do
        events[#events + 1] = { at = 0.01 + i * 0.01, read = { i * 128 * KiB, 128 * KiB },
                                seconds = 0.008 }
        events[#events + 1] = { at = 0.015 + i * 0.01, seconds = 0.003,
                                read = { 32 * MiB + i * 4 * KiB, 4 * KiB } }
      end
      local result = run { events = events, threads = threads }
      assert.is_true (result.finished)
      local units = coverage (result)
      local read_first = 4 -- the reads before a stream is followed
      for unit = 0, 1023 do
        assert.is_true ((units[unit] or 0) <= 1, "unit " .. unit)
        if unit < read_first * 2 then
          assert.is_nil (units[unit])
        elseif unit > 200 and (unit < 512 or unit > 520) then
          assert.equal (1, units[unit], "unit " .. unit)
        end
      end
    end)
  end

  it ("does not fetch what was read downwards", function ()
    local events = {}
    for i = 1, 16 do
      events[i] = { at = i * 0.01, read = { 8 * MiB - i * 64 * KiB, 64 * KiB } }
    end
    local units = coverage (run { events = events })
    for unit = 112, 127 do assert.is_nil (units[unit]) end
    assert.equal (1, units[111])
    assert.equal (1, units[128])
  end)

  it ("stays ahead of a reader that never pauses", function ()
    local events = {}
    for i = 0, 199 do
      events[#events + 1] = { at = 1 + i * 0.02, read = { i * 256 * KiB, 256 * KiB },
                              seconds = 0.02 }
    end
    events[#events + 1] = { at = 5, close = true }
    local result = run { events = events, args = { silence = "3" } }
    assert.is_true (#result.prefetches > 0)
    assert.is_true (result.issued[1] < 1.1)
    for i, prefetch in ipairs (result.prefetches) do
      local reader = math.floor ((result.issued[i] - 1) / 0.02) * 256 * KiB
      assert.is_true (prefetch[1] + prefetch[2] > reader)
    end
  end)

  it ("skips holes, with a handful of questions", function ()
    local size = 1 << 40
    local result = run { size = size, holes = {
      { 0, 10 * MiB }, { 12 * MiB, size - 13 * MiB },
    } }
    assert.same ({ { 10 * MiB, BLOCK }, { size - MiB, MiB } }, result.prefetches)
    assert.is_true (result.requests < 12, result.requests)
    assert.is_true (result.finished)
  end)

  it ("skips holes ahead of a reader, unless it reads them", function ()
    local hole = 16 * MiB
    local events = {}
    for i = 0, 99 do
      events[i + 1] = { at = 1 + i * 0.02, read = { i * 256 * KiB, 256 * KiB },
                        seconds = 0.02 }
    end
    events[101] = { at = 3, close = true }
    local result = run { size = 1 << 30, holes = { { hole, 1 << 29 } }, events = events,
                         args = { silence = "10" } }
    local inside = 0
    for i, prefetch in ipairs (result.prefetches) do
      if prefetch[1] >= hole then
        local reader = math.floor ((result.issued[i] - 1) / 0.02 + 1.001) * 256 * KiB
        assert.is_true (reader > hole)
        inside = inside + 1
      end
    end
    assert.is_true (inside > 0)
  end)

  it ("skips the part of a block that is a hole, around a lone read too", function ()
    local result = run {
      size = 8 * MiB + 5, holes = { { 2 * MiB, MiB }, { 8 * MiB, 5 } },
      events = { { at = 0.01, read = { 3 * MiB + 4 * KiB, 4 * KiB } } },
    }
    assert.same ({ { 3 * MiB, MiB }, { 0, BLOCK }, { 4 * MiB, BLOCK },
                   { 6 * MiB, BLOCK } }, result.prefetches)
  end)

  it ("goes back for a hole that it left out, when the reader reads it", function ()
    local hole, hole_stop = 10 * MiB, 11 * MiB
    local events, issued = {}, {}
    for i = 0, 99 do
      events[i + 1] = { at = 1 + i * 0.02, read = { i * 256 * KiB, 256 * KiB },
                        seconds = 0.02 }
    end
    local result = run { holes = { { hole, hole_stop - hole } }, events = events,
                         args = { silence = "10" },
                         threads = 8, prefetch_seconds = 0.06 }
    for i, prefetch in ipairs (result.prefetches) do
      if prefetch[1] >= hole_stop then issued.behind = issued.behind or i end
      if prefetch[1] >= hole and prefetch[1] < hole_stop then
        issued.inside = issued.inside or i
      end
    end
    assert.is_true (issued.behind < issued.inside)
    local reader = 10 * 4 -- which read is the first in the hole
    assert.is_true (result.issued[issued.inside] < 1 + (reader + 2) * 0.02)
  end)

  it ("fetches nothing twice for several connections", function ()
    local options = { policy = "adaptive", size = 64 * MiB, block = BLOCK }
    options.world = testing.world (options)
    local first, second = testing.scan (options), testing.scan (options)
    local a, b
    repeat a, b = first:step (), second:step () until not a and not b
    assert.is_true (#first.prefetches > 10 and #second.prefetches > 10)
    assert.equal (32, #first.prefetches + #second.prefetches)

    -- Once they have gone, what a cache kept of it is not known.
    local third = testing.scan (options)
    repeat until not third:step ()
    assert.equal (32, #third.prefetches)
  end)

  it ("takes no pause of one connection for a pause of all", function ()
    local options = { policy = "adaptive", size = 64 * MiB, block = BLOCK }
    options.world = testing.world (options)
    local idle = testing.scan (options)
    options.events = { { at = 0.01, read = { 0, 4 * KiB }, seconds = 1 } }
    local reader = testing.scan (options)
    reader:pass (0.05)
    idle:pass (0.9)
    assert.equal (0, #idle.prefetches)
    reader:pass (1.1)
    idle:pass (1)
    assert.is_true (#idle.prefetches > 0)
  end)

  it ("tries again what failed, later each time, and gives up", function ()
    local result = run { size = 8 * MiB, fail = function (offset)
      return offset == 4 * MiB and "EIO" or nil
    end }
    assert.same ({ 0, 1, 2, 3, 2, 2, 2 }, testing.offsets (result, BLOCK))
    local at = result.issued
    assert.is_true (at[5] - at[3] >= 1 and at[6] - at[5] >= 2 and at[7] - at[6] >= 4)
    assert.is_true (result.finished)
  end)

  it ("does not try again what has been put right", function ()
    local times = 0
    local result = run { size = 8 * MiB, threads = 4, fail = function (offset)
      if offset ~= 6 * MiB then return nil end
      times = times + 1
      return times == 1 and "EBUSY" or nil
    end }
    assert.same ({ 0, 1, 2, 3, 3 }, testing.offsets (result, BLOCK))
  end)

  it ("survives a source that is gone", function ()
    local result = run { size = 1 << 31, fail = function () return "EIO" end }
    assert.is_true (result.finished)
    assert.is_true (#result.prefetches >= 1024 + 3 * 256)
    assert.is_true (#result.prefetches <= 4 * 1024)
  end)

  it ("leaves the rest alone with fill=false", function ()
    local result = run { args = { fill = "false" }, events = {
      { at = 1, read = { 0, 512 } }, { at = 5, read = { 9 * MiB, 512 } },
    } }
    assert.same ({}, result.prefetches)
    assert.is_true (result.closed)
  end)

  it ("needs little for the largest disk", function ()
    local events, place = {}, 1
    for i = 1, 3000 do
      place = (place * 6364136223846793005 + 1442695040888963407) & math.maxinteger
      events[i] = { at = i * 0.001, read = { place & ~4095, 4096 } }
    end
    events[#events + 1] = { at = 5, close = true }
    local result = run { size = math.maxinteger, block = 512, events = events }
    assert.is_true (#result.prefetches > 10)
  end)

  it ("refuses what it doesn't know", function ()
    assert.error_matches (function () run { args = { silnce = "1" } } end,
                          "scan%-arg%-silnce: .* it knows: silence, window, fill")
    assert.error_matches (function () run { args = { silence = "-1" } } end,
                          "scan%-arg%-silence: a number from 0 up to 3600 expected")
  end)
end)

-- The promise: no slower than without it.  A model, not a clock: exact every time.
-- A source that does one thing at a time can't be told before one prefetch has been
-- in a read's way; `cost` allows for that one.
describe ("adaptive, against no prefetch,", function ()
  local function list (reads, next_read)
    local reads_list = {}
    for i = 1, reads do
      local offset, count = next_read (i - 1)
      reads_list[i] = { offset = offset, count = count }
    end
    return reads_list
  end

  local place = 1
  local function scattered ()
    place = (place * 1103515245 + 12345) % 2147483648
    return place // 8 % 16384 * 4096, 4096
  end

  local traces = {
    { "sequential", list (256, function (i) return i * 256 * KiB, 256 * KiB end), 0 },
    { "sequential with pauses",
      list (256, function (i) return i * 256 * KiB, 256 * KiB end), 0.01 },
    { "random", list (200, scattered), 0, cost = 0.009 },
    { "random with pauses", list (100, scattered), 0.01, cost = 0.009 },
    { "mixed", list (120, function (i)
        if i % 6 == 5 then return scattered () end
        if i % 6 < 3 then return (i // 6 * 3 + i % 6) * 128 * KiB, 128 * KiB end
        return 32 * MiB + (i // 6 * 2 + i % 6 - 3) * 64 * KiB, 64 * KiB
      end), 0 },
    { "blkid", read_trace ("blkid.log"), cost = 0.022 },
  }

  for _, case in ipairs (traces) do
    local name, reads, think = table.unpack (case)
    local most = 1.001 + (case.cost or 0)
    it (("is never slower: %s"):format (name), function ()
      for _, latency in ipairs { 0.001, 0.005, 0.02, 0.05 } do
        for _, slots in ipairs { 1, 4, 16 } do
          for _, threads in ipairs { 1, 8 } do
            local options = {
              traces = { reads }, size = 64 * MiB, think_seconds = think,
              threads = threads, keep_reads = true,
              source = { latency_seconds = latency, bandwidth = 100e6, slots = slots },
            }
            local without = simulator.run (options).seconds
            options.policy = "adaptive"
            local with = simulator.run (options)
            assert.is_nil (with.error)
            assert.is_true (with.seconds <= most * without,
                            ("%g s instead of %g s at latency %g, %d slots, %d threads")
                              :format (with.seconds, without, latency, slots, threads))
          end
        end
      end
    end)
  end

  it ("keeps no random read waiting, but for one in a hundred", function ()
    local reads = {}
    for i = 1, 1000 do
      place = (place * 1103515245 + 12345) % 2147483648
      reads[i] = { offset = place // 8 % 131072 * 4096, count = 4096 }
    end
    local function slowest (options, policy)
      options.policy = policy
      local result = simulator.run (options)
      assert.is_nil (result.error)
      local seconds = {}
      for i, read in ipairs (result.reads) do seconds[i] = read.done - read.seconds end
      table.sort (seconds)
      return seconds[#seconds * 99 // 100], result.seconds
    end
    for _, latency in ipairs { 0.005, 0.02, 0.05 } do
      for _, megabytes in ipairs { 10, 30, 125, 1000 } do
        for _, slots in ipairs { 4, 16 } do
          local options = {
            traces = { reads }, size = 512 * MiB, threads = 8, keep_reads = true,
            think_seconds = 0, record = true,
            source = { latency_seconds = latency, bandwidth = megabytes * 1e6,
                       slots = slots },
          }
          local without, without_seconds = slowest (options)
          local with, with_seconds = slowest (options, "adaptive")
          assert.is_true (with <= 1.001 * without)
          assert.is_true (with_seconds <= 1.005 * without_seconds)
        end
      end
    end
  end)

  it ("is faster for random reads, given time", function ()
    for _, latency in ipairs { 0.005, 0.02, 0.05 } do
      local options = {
        traces = { list (2000, scattered) }, size = 64 * MiB, threads = 8,
        keep_reads = true,
        source = { latency_seconds = latency, bandwidth = 100e6, slots = 16 },
      }
      local without = simulator.run (options).seconds
      options.policy = "adaptive"
      assert.is_true (simulator.run (options).seconds < 0.5 * without)
    end
  end)

  it ("is much faster where it can be", function ()
    local options = {
      traces = { traces[1][2] }, size = 64 * MiB, threads = 8, keep_reads = true,
      source = { latency_seconds = 0.02, bandwidth = 100e6, slots = 16 },
    }
    local without = simulator.run (options).seconds
    options.policy = "adaptive"
    assert.is_true (simulator.run (options).seconds < 0.2 * without)
  end)
end)
