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

  it ("does what it does at the end of the largest disk", function ()
    local size = math.maxinteger
    local first = size - size % MiB - 64 * MiB
    local events = {}
    local function read (offset, count)
      count = math.min (count, size - offset)
      events[#events + 1] = { at = #events * 0.01, seconds = 0.005,
                              read = { offset, count } }
    end
    read (size - 4096, 4096)                            -- alone
    for i = 0, 8 do read (first + i * 7 * MiB, 32 * MiB) end            -- in steps
    for i = 0, 63 do read (first + i * MiB, MiB) end    -- as a stream
    events[#events + 1] = { at = 10, close = true }
    local result = run { size = size, events = events, threads = 8,
                         prefetch_seconds = 0.001, holes = { { 0, first } } }
    local last = 0
    for _, prefetch in ipairs (result.prefetches) do
      last = math.max (last, prefetch[1] + prefetch[2])
    end
    assert.is_true (size - last <= 4096)        -- what was read alone
  end)

  -- Lone reads in blocks of their own, those in `holes` and others in turn.
  local function reads_around (holes_of_each_4)
    local hole = 32 * MiB
    local events, at = {}, 1
    for i = 1, 60 do
      at = at * 26 % 61         -- each from 1 to 60 once, without a step
      local in_hole = i % 4 < holes_of_each_4
      events[i] = { at = i * 0.05, seconds = 0.04,
                    read = { (in_hole and hole or 0) + (at - 1) * 512 * KiB, 4 * KiB } }
    end
    local result = run { events = events, prefetch_seconds = 1, threads = 2,
                         holes = { { hole, 32 * MiB } } }
    local inside = 0
    for _, prefetch in ipairs (result.prefetches) do
      if prefetch[1] >= hole then inside = inside + prefetch[2] end
    end
    return inside
  end

  it ("fetches no holes around lone reads", function ()
    assert.equal (0, reads_around (1))
    assert.equal (0, reads_around (4))
  end)

  it ("does not wait busily for a long read", function ()
    local result = run { args = { fill = "false" }, events = {
      { at = 0, read = { 0, 512 }, seconds = 300 },
    } }
    assert.is_true (result.waits < 10)
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

  it ("takes a lone read as a hint, the newest first, and comes back", function ()
    local result = run { prefetch_seconds = 0.05, events = {
      { after = 1, read = { 40 * MiB, 512 } }, { after = 1, read = { 9 * MiB, 512 } },
    } }
    assert.same ({ { 0, BLOCK }, { 9 * MiB + 512, MiB - 512 },
                   { 40 * MiB + 512, MiB - 512 }, { BLOCK, BLOCK } },
                 { table.unpack (result.prefetches, 1, 4) })
    local times = coverage (result)
    for unit = 0, 1023 do assert.equal (1, times[unit]) end
  end)

  it ("fetches what is below a lone read after what is above", function ()
    local result = run { events = {
      { after = 1, read = { 40 * MiB + 600 * KiB, 512 } },
    } }
    assert.same ({ { 40 * MiB + 600 * KiB + 512, 424 * KiB - 512 },
                   { 40 * MiB, 600 * KiB } },
                 { result.prefetches[2], result.prefetches[3] })
  end)

  it ("goes on from a sequential reader, then comes back for the rest", function ()
    local events = {}
    for i = 0, 3 do events[i + 1] = { after = 1, read = { (36 + i) * MiB, MiB } } end
    local result = run { events = events }
    local list = testing.offsets (result, MiB)
    assert.same ({ 0, 40, 42, 44 }, { table.unpack (list, 1, 4) })
    assert.equal (34, list[#list])
    local units = coverage (result)
    assert.is_nil (units[36 * 16])
    assert.equal (1, units[16])
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
      for unit = 0, 1023 do
        assert.is_true ((units[unit] or 0) <= 1, "unit " .. unit)
        if unit > 200 and (unit < 512 or unit > 520) then
          assert.equal (1, units[unit], "unit " .. unit)
        end
      end
    end)
  end

  it ("does not fetch what was read downwards", function ()
    local events = {}
    for i = 1, 16 do
      events[i] = { after = 0, read = { 8 * MiB - i * 64 * KiB, 64 * KiB } }
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
    local result = run { events = events, args = { fill = "false" } }
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
                         args = { fill = "false" } }
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
      events = { { after = 0, read = { 3 * MiB + 4 * KiB, 4 * KiB } } },
    }
    assert.same ({ { 3 * MiB + 8 * KiB, MiB - 8 * KiB }, { 3 * MiB, 4 * KiB },
                   { 0, BLOCK }, { 4 * MiB, BLOCK }, { 6 * MiB, BLOCK } },
                 result.prefetches)
  end)

  it ("goes back for a hole that it left out, when the reader reads it", function ()
    local hole, hole_stop = 10 * MiB, 14 * MiB
    local events, issued = {}, {}
    for i = 0, 99 do
      events[i + 1] = { at = 1 + i * 0.02, read = { i * 256 * KiB, 256 * KiB },
                        seconds = 0.02 }
    end
    local result = run { holes = { { hole, hole_stop - hole } }, events = events,
                         args = { fill = "false" },
                         threads = 8, prefetch_seconds = 0.06 }
    -- A range that begins before the hole may go on into it.
    local covered = hole
    for i, prefetch in ipairs (result.prefetches) do
      if prefetch[1] >= hole_stop then issued.behind = issued.behind or i end
      if prefetch[1] >= hole and prefetch[1] < hole_stop then
        issued.inside = issued.inside or i
      elseif prefetch[1] < hole then
        covered = math.max (covered, prefetch[1] + prefetch[2])
      end
    end
    assert.is_true (issued.behind < issued.inside)
    local reader = covered // (256 * KiB) -- which read is the first that misses
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

    -- Nor for a later one.
    local third = testing.scan (options)
    repeat until not third:step ()
    assert.equal (0, #third.prefetches)
  end)

  it ("tries again what failed, later each time", function ()
    local result = run { size = 8 * MiB, fail = function (offset)
      return offset == 4 * MiB and "EIO" or nil
    end, events = { { at = 100, close = true } } }
    assert.same ({ 0, 1, 2, 3, 2, 2, 2, 2, 2, 2 }, testing.offsets (result, BLOCK))
    local at = result.issued
    for i = 6, 10 do assert.is_true (at[i] - at[i - 1] >= 1 << (i - 5), i) end
    assert.is_true (result.closed)
  end)

  it ("ends when all is there, however long the source was away", function ()
    local times = 0
    local result = run { size = 8 * MiB, fail = function ()
      times = times + 1
      return times < 40 and "EIO" or nil
    end }
    assert.is_true (result.finished)
    assert.equal (43, #result.prefetches)
    assert.is_true (result.issued[40] >= 500)
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
    local result = run { size = 1 << 31, fail = function () return "EIO" end,
                         events = { { at = 100, close = true } } }
    assert.is_true (result.closed)
    assert.is_true (#result.prefetches >= 1024 + 3 * 256)
    assert.is_true (#result.prefetches <= 7 * 1024)
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
                          "scan%-arg%-silnce: .* it knows: window, fill")
    assert.error_matches (function () run { args = { window = "1K" } } end,
                          "scan%-arg%-window: a size like 64K or 2M of at least 65536")
  end)
end)

-- A model, not a clock: exact every time.  That it is never slower, and as good as
-- others where those are good, is in grid_spec.lua.
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
      traces = { list (256, function (i) return i * 256 * KiB, 256 * KiB end) },
      size = 64 * MiB, threads = 8, keep_reads = true,
      source = { latency_seconds = 0.02, bandwidth = 100e6, slots = 16 },
    }
    local without = simulator.run (options).seconds
    options.policy = "adaptive"
    assert.is_true (simulator.run (options).seconds < 0.2 * without)
  end)
end)
