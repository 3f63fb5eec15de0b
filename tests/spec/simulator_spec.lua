-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/simulator.lua (with events.lua): times worked out by hand.

local simulator = require "scan.simulator"
local testing = require "scan.testing"

local HIT, REQUEST = simulator.HIT_SECONDS, simulator.REQUEST_SECONDS

-- A source where a request of 100 bytes takes 1 s and then 1 s for its bytes.
local function simulate (policy, trace, more)
  local reads = {}
  for i, read in ipairs (trace) do
    reads[i] = { offset = read[1], count = read[2], idle = read[3] }
  end
  local options = {
    policy = policy, traces = { reads }, size = 1000, block = 100,
    source = { latency_seconds = 1, bandwidth = 100, slots = 2 },
  }
  for name, value in pairs (more or {}) do options[name] = value end
  return simulator.run (options)
end

local function near (expected, actual)
  assert.is_true (math.abs (expected - actual) < 1e-9,
                  ("expected %s, got %s"):format (expected, actual))
end

local function prefetch (...)
  local offsets = { ... }
  return function (disk)
    for _, offset in ipairs (offsets) do disk:prefetch (offset) end
  end
end

describe ("scan.simulator", function ()
  it ("takes latency and bandwidth for a read that misses", function ()
    local result = simulate (nil, { { 0, 100 }, { 100, 50 } })
    near (2 + 1.5, result.seconds)
    assert.same ({ 0, 0, 2 }, { result.hits, result.late, result.misses })
    assert.equal (150, result.demand_bytes)
  end)

  it ("waits the think times of the trace, or those it is told", function ()
    near (2 + 10 + 2, simulate (nil, { { 0, 100 }, { 100, 100, 10 } }).seconds)
    near (3 + 2 + 3 + 2, simulate (nil, { { 0, 100 }, { 100, 100, 10 } },
                                   { think_seconds = 3 }).seconds)
  end)

  it ("has a hit on what was prefetched, whole", function ()
    local result = simulate (prefetch (0), { { 10, 90, 5 } })
    assert.same ({ 1, 0, 0 }, { result.hits, result.late, result.misses })
    near (5 + HIT, result.seconds)
    assert.equal (0, result.demand_bytes)
  end)

  it ("is late where a prefetch is under way", function ()
    local result = simulate (prefetch (0), { { 10, 90, 0.5 } })
    assert.same ({ 0, 1, 0 }, { result.hits, result.late, result.misses })
    near (2, result.seconds)
  end)

  it ("misses if some bytes are nowhere, and asks for those only", function ()
    local result = simulate (prefetch (0), { { 50, 100, 5 } })
    assert.same ({ 0, 0, 1 }, { result.hits, result.late, result.misses })
    assert.equal (50, result.demand_bytes)
    near (5 + 1.5, result.seconds)
  end)

  it ("asks for what lies on both sides of a prefetch under way", function ()
    local result = simulate (prefetch (100), { { 0, 300, 0.5 } })
    assert.equal (200, result.demand_bytes)
    assert.same ({ 0, 0, 1 }, { result.hits, result.late, result.misses })
  end)

  it ("counts what was prefetched and never read", function ()
    local result = simulate (prefetch (0, 100, 200), { { 50, 100, 20 } })
    assert.equal (300, result.prefetched_bytes)
    assert.equal (200, result.wasted_bytes)
    assert.equal (100, result.wanted_bytes)
  end)

  it ("asks the source once for what is prefetched twice", function ()
    local result = simulate (prefetch (0, 0, 50), { { 0, 100, 20 } })
    assert.equal (150, result.prefetched_bytes)
    assert.equal (3, #result.prefetches)
  end)

  it ("keeps what is read only if told", function ()
    local trace = { { 0, 100 }, { 0, 100 } }
    assert.equal (2, simulate (nil, trace).misses)
    local result = simulate (nil, trace, { keep_reads = true })
    assert.same ({ 1, 1 }, { result.misses, result.hits })
    near (2 + HIT, result.seconds)
  end)

  it ("queues for the slots and for the link", function ()
    -- Three reads at once, two slots: 1 s, the link for 1 s each, and the third
    -- starts when the first is done.
    local trace = { { 0, 100 }, { 100, 100 }, { 200, 100 } }
    near (4, simulate (nil, trace, { depth = 3 }).seconds)
    near (4, simulate (nil, trace, { depth = 3, source = {
      latency_seconds = 1, bandwidth = 100, slots = 3 } }).seconds)
    near (6, simulate (nil, trace, { depth = 3, source = {
      latency_seconds = 1, bandwidth = 100, slots = 1 } }).seconds)
  end)

  it ("makes a client wait behind prefetches on the link", function ()
    -- The prefetch has the link from 1 to 2; the read asked for at 0.
    near (3, simulate (prefetch (0), { { 500, 100 } }).seconds)
  end)

  it ("shows the policy the reads, and ends it with the client", function ()
    local seen, closed = {}, nil
    simulate (function (disk)
      repeat
        disk:wait ()
        for offset, count in disk:reads () do seen[#seen + 1] = { offset, count } end
        closed = disk:closed ()
      until closed
    end, { { 0, 10 }, { 500, 10 } })
    assert.same ({ { 0, 10 }, { 500, 10 } }, seen)
    assert.is_true (closed)
  end)

  it ("lets preads take the source's time", function ()
    local at, bytes
    simulate (function (disk)
      bytes = disk:pread (0, 100)
      at = disk:now ()
    end, { { 900, 10, 50 } }, { contents = ("x"):rep (100) })
    near (2, at)
    assert.equal (("x"):rep (100), bytes)
  end)

  it ("runs several prefetches at once with threads", function ()
    local function last_done (threads)
      local result = simulate (prefetch (0, 100), { { 900, 10, 50 } },
                               { threads = threads, record = true })
      return result.timeline[2].done
    end
    near (4, last_done (1))
    near (3, last_done (2))
  end)

  it ("gives each client its scan, or all of them one", function ()
    local reads = { { offset = 0, count = 10, idle = 30 } }
    local function prefetches (background)
      return #simulate (prefetch (0, 100), {}, { traces = { reads, reads },
                                                 background = background }).prefetches
    end
    assert.equal (4, prefetches (false))
    assert.equal (2, prefetches (true))
  end)

  it ("ends the shared scan with the last client", function ()
    local short = { { offset = 0, count = 10 } }
    local long = { { offset = 0, count = 10 }, { offset = 10, count = 10, idle = 100 } }
    local at
    simulate (function (disk)
      repeat disk:wait () until disk:closed ()
      at = disk:now ()
    end, {}, { traces = { short, long }, background = true })
    assert.is_true (at > 100)
  end)

  it ("knows what no policy can beat", function ()
    near (1 + 1.5, simulate (nil, { { 0, 100 }, { 50, 100 } }).ideal_seconds)
    near (7, simulate (nil, { { 0, 100 }, { 0, 100, 7 } }).ideal_seconds)
    -- So many reads may think at a time.
    near (3.5, simulate (nil, { { 0, 100, 3 }, { 0, 100, 4 } },
                         { depth = 2 }).ideal_seconds)
    local fetched = simulate (prefetch (0), { { 0, 100, 7 } })
    assert.is_true (fetched.seconds >= 7 and fetched.seconds < 7.001)
  end)

  it ("paces a built-in by both of its names as the filter does", function ()
    local function fetched (policy)
      return simulator.run { policy = policy, size = 1 << 26, threads = 8, source = {
        latency_seconds = 0.02, bandwidth = 1e7, slots = 64 }, traces = {
        { { offset = 0, count = 65536, idle = 0 }, { offset = 1 << 25, count = 512,
                                                     idle = 1 } } } }.prefetched_bytes
    end
    assert.equal (fetched "ahead", fetched "ahead.lua")
    assert.not_equal (fetched "ahead", fetched "data.lua")
  end)

  it ("is never better than the ideal, and the same every time", function ()
    local trace = require "scan.trace"
    for _, name in ipairs { "nbdcopy", "blkid", "fsck", "debugfs-rdump" } do
      local handle = assert (io.open ("tests/traces/" .. name .. ".log"))
      local reads = trace.read (handle)
      handle:close ()
      for _, policy in ipairs { "default", "clock" } do
        local function once ()
          return simulator.run { policy = policy, traces = { reads }, threads = 3,
                                 size = 2^26 | 0, record = true }
        end
        local first = once ()
        assert.is_true (first.seconds >= first.ideal_seconds)
        assert.equal (#reads, first.hits + first.late + first.misses)
        assert.same (first, once ())
      end
    end
  end)

  it ("gives the prefetches that the test kit gives for the same schedule", function ()
    -- A read begins 1.5 s in, while the first prefetch (2 s) is in flight.
    local simulated = simulate ("ahead", { { 300, 100, 1.5 }, { 0, 1, 40 } })
    local tested = testing.run { policy = "ahead", size = 1000, block = 100,
                                 events = { { after = 1, read = { 300, 100 } } } }
    assert.same (tested.prefetches, simulated.prefetches)
    assert.same ({ 0, 4 }, { tested.prefetches[1][1] // 100,
                             tested.prefetches[2][1] // 100 })
  end)

  it ("leaves out of a range what was read while its pieces waited for room", function ()
    local reads, bytes = {}, 0
    for i = 1, 16 do reads[i] = { offset = (48 + i - 1) * 65536, count = 65536 } end
    reads[17] = { offset = 0, count = 512, idle = 5 }
    local result = simulator.run {
      policy = function (disk) disk:prefetch (0, 1 << 22) end, pace = true,
      traces = { reads }, size = 1 << 22, block = 1 << 22, layer = "clone",
      source = { latency_seconds = 0.01, bandwidth = 50e6, slots = 16 },
    }
    for _, range in ipairs (result.prefetches) do bytes = bytes + range[2] end
    assert.is_true (bytes > 0 and bytes < 1 << 22)
  end)

  it ("says how much goes out in one piece", function ()
    local function rooms (pace)
      local seen = {}
      simulator.run {
        policy = function (disk)
          for i = 1, 4 do
            seen[i] = disk:room ()
            disk:prefetch ((i - 1) << 18, 1 << 18)
            assert (disk:room () <= disk.block)
          end
        end,
        pace = pace, traces = { { { offset = 0, count = 512, idle = 5 } } },
        size = 1 << 22, block = 1 << 18, layer = "clone",
        source = { latency_seconds = 0.01, bandwidth = 50e6, slots = 16 },
      }
      return seen
    end
    assert.same ({ 1 << 18, 1 << 18, 1 << 18, 1 << 18 }, rooms (false))
    -- The pace begins with the least piece.
    assert.equal (4096, rooms (true)[1])
  end)

  -- Over the clone layer, from a source of 1 s a request and 1 s for each MiB.
  local KiB, MiB = 1024, 1024 * 1024

  local function over_clone (policy, trace, more)
    local options = {
      layer = "clone", pace = false, size = 64 * MiB, block = 2 * MiB,
      source = { latency_seconds = 1, bandwidth = MiB, slots = 4 },
    }
    for name, value in pairs (more or {}) do options[name] = value end
    return simulate (policy, trace, options)
  end

  local function copy (bytes) return bytes * simulator.COPY_SECONDS end

  it ("keeps whole blocks in the clone layer, of what was read, too", function ()
    local result = over_clone (nil, { { 100, 10 }, { 4000, 90 }, { 4000, 100 } })
    assert.same ({ 1, 0, 2 }, { result.hits, result.late, result.misses })
    assert.equal (2 * 4096, result.demand_bytes)
  end)

  it ("takes time for the clone layer's copies", function ()
    near (1.25 + copy (256 * KiB) + REQUEST + copy (256 * KiB) -- and once more
          + REQUEST + copy (256 * KiB),
          over_clone (nil, { { 0, 256 * KiB }, { 0, 256 * KiB } }).seconds)
  end)

  it ("lets no read of the clone layer wait for a prefetch that is much larger",
      function ()
    local small = over_clone (prefetch (0), { { 0, 4 * KiB, 0.5 } },
                              { block = 256 * KiB })
    assert.same ({ 1, 0 }, { small.late, small.demand_bytes })
    local large = over_clone (prefetch (0), { { 0, 4 * KiB, 0.5 } })
    assert.same ({ 1, 4 * KiB }, { large.misses, large.demand_bytes })
    local as_large = over_clone (prefetch (0), { { 0, 2 * MiB, 0.5 } })
    assert.same ({ 1, 0 }, { as_large.late, as_large.demand_bytes })
  end)

  it ("lets one wait that has seen how long both take", function ()
    -- The second prefetch holds up the first read, which takes 2.5 s.  The third
    -- prefetch begins as that ends, and takes 3 s.
    local function after (seconds)
      return over_clone (prefetch (0, 2 * MiB, 4 * MiB),
                         { { 32 * MiB, 4 * KiB, 3.5 }, { 5 * MiB, 4 * KiB, seconds } })
    end
    assert.same ({ 0, 2 }, { after (0.4).late, after (0.4).misses })
    assert.same ({ 1, 1 }, { after (0.6).late, after (0.6).misses })
  end)

  it ("has the clone layer ask for one part after the other", function ()
    -- Behind what was read, and before it.
    local trace = { { MiB, MiB // 2 }, { 0, 2 * MiB } }
    near (1.5 + copy (MiB // 2) + REQUEST + copy (MiB // 2)
          + 2 + copy (MiB) + 1.5 + copy (MiB // 2) + REQUEST + copy (2 * MiB),
          over_clone (nil, trace).seconds)
    assert.equal (2 * MiB, over_clone (nil, trace).demand_bytes)
  end)

  it ("has the clone layer learn of holes when it prefetches", function ()
    local holes = { { MiB, MiB } }
    local result = over_clone (prefetch (0), { { MiB, 4 * KiB, 10 } },
                               { holes = holes, block = 4 * KiB })
    assert.equal (1, result.hits)
    assert.equal (1, over_clone (nil, { { MiB, 4 * KiB, 10 } },
                                 { holes = holes }).misses)
    -- So it does when a policy asks where data is, of all that the answer tells.
    assert.equal (2, over_clone (function (disk) disk:next_data (0) end,
                                 { { MiB, 4 * KiB, 10 }, { 2 * MiB - 4 * KiB, 4 * KiB } },
                                 { holes = holes, block = 4 * KiB }).hits)
    -- What is a hole is not fetched.
    assert.equal (0, over_clone (prefetch (MiB), { { 0, 4 * KiB, 10 } },
                                 { holes = holes, block = MiB }).prefetched_bytes)
  end)

  it ("has a token bucket, from which small requests are served first", function ()
    local bucket = { latency_seconds = 1, bandwidth = 100, slots = 2,
                     burst_bytes = 100 }
    local function seconds (trace)
      return simulate (nil, trace, { source = bucket }).seconds
    end
    near (1, seconds { { 0, 100 } })
    near (1 + 1, seconds { { 0, 100 }, { 100, 100 } })
    -- It never holds more than that, so who sleeps for more loses the rest.
    near (4 + 3 + 2 + 1 + 1, seconds { { 0, 500 } })
    -- The prefetch takes the 100 that are there and sleeps for the other 50; of what
    -- has come after 0.25 s a read takes 10, which the prefetch then lacks.
    local result = simulate (prefetch (0), { { 500, 10, 0.25 } },
                             { block = 150, source = bucket, record = true })
    near (0.25 + 1, result.seconds)
    near (0.5 + 0.1 + 1, result.timeline[1].done)
  end)

  it ("has answers that come together, before anything follows from one", function ()
    -- Each 1 s and 0.01 s; the policy waits for both, and then sees none in flight.
    local function in_flight (together)
      local seen = {}
      simulate (function (disk)
        repeat
          disk:wait ()
          seen[#seen + 1] = disk:reads_in_flight ()
        until disk:closed ()
      end, { { 0, 1 }, { 500, 1 } }, { depth = 2, source = {
        latency_seconds = 1, bandwidth = 100, slots = 2, together_seconds = together } })
      return seen[#seen - 1], seen[#seen]
    end
    assert.same ({ 1, 0 }, { in_flight (0) })
    assert.same ({ 2, 0 }, { in_flight (0.5) })
  end)

  it ("has answers that come later by chance, which a seed decides", function ()
    local function seconds (seed)
      return simulate (nil, { { 0, 100 }, { 100, 100 } }, { source = {
        latency_seconds = 1, bandwidth = 100, slots = 1, jitter_seconds = 0.5,
        seed = seed } }).seconds
    end
    local seen, distinct = {}, 0
    for seed = 1, 20 do
      local found = seconds (seed)
      assert.equal (found, seconds (seed))
      assert.is_true (found > 4 and found < 5)
      distinct = distinct + (seen[found] and 0 or 1)
      seen[found] = true
    end
    assert.equal (20, distinct)
    assert.has_error (function () seconds (1.5) end,
                      "source.seed: an integer expected, got 1.5")
  end)

  it ("has clients that wait for their answers, as they were recorded", function ()
    local closed_loop = dofile ("tests/bench/closed_loop.lua")
    local list = closed_loop.link {
      { offset = 0, count = 100, began = 0, ended = 1 },
      { offset = 100, count = 100, began = 0.5, ended = 2 },
      { offset = 200, count = 100, began = 1.25, ended = 3 },
    }
    assert.same ({ 0, 0, 1 }, { list[1].after, list[2].after, list[3].after })
    assert.equal (0.25, list[3].think)
    local result = simulator.run { traces = { list }, size = 1000, closed_loop = true,
      source = { latency_seconds = 1, bandwidth = 1e9, slots = 4 } }
    near (2.25 + 2 * 1e-7, result.seconds)
  end)

  it ("has them wait no longer where a month ends", function ()
    local closed_loop = dofile ("tests/bench/closed_loop.lua")
    local path = os.tmpname ()
    finally (function () os.remove (path) end)
    local handle = assert (io.open (path, "w"))
    handle:write [[
2026-10-31 23:59:59.500000 connection=1 Read id=1 offset=0x0 count=0x200 ...
2026-10-31 23:59:59.750000 connection=1 ...Read id=1 return=0
2026-11-01 00:00:00.250000 connection=1 Read id=2 offset=0x200 count=0x200 ...
2026-11-01 00:00:00.500000 connection=1 ...Read id=2 return=0
]]
    handle:close ()
    local file = assert (io.open (path))
    local reads = closed_loop.read (file)
    file:close ()
    assert.same ({ 0, 0.5 }, { reads[1].think, reads[2].think })
    assert.same ({ 0.25, 1 }, { reads[1].ended, reads[2].ended })
  end)

  it ("reports a policy's error, and the client goes on", function ()
    local result = simulate (function () error ("oops") end, { { 0, 100 } })
    assert.matches ("oops", result.error)
    near (2, result.seconds)
  end)

  it ("gives up on a policy that never lets time pass", function ()
    local ok, message = pcall (simulate, function (disk)
      while true do disk:next_data (0) end
    end, { { 0, 100 } }, { steps = 1000 })
    assert.is_false (ok)
    assert.matches ("gave up after 1000 requests", message)
  end)

  it ("tells of its progress", function ()
    local reads, told = {}, {}
    for i = 1, 25000 do reads[i] = { 0, 1 } end
    simulate (prefetch (0), reads, { progress = function (done, all)
      told[#told + 1] = { done < all, all }
    end })
    assert.is_true (#told >= 1)
    assert.same ({ true, 25000 }, told[1])
  end)

  it ("refuses what can't be", function ()
    local function refused (trace, more)
      local ok, message = pcall (simulate, nil, trace, more)
      assert.is_false (ok)
      return message
    end
    assert.matches ("read 2 %(offset 950, count 100%) is outside the disk",
                    refused { { 0, 1 }, { 950, 100 } })
    assert.matches ("traces: at least one", refused ({}, { traces = {} }))
    for name, value in pairs { latency_seconds = -1, bandwidth = 0, slots = 0 } do
      assert.matches ("source." .. name, refused ({ { 0, 1 } },
                                                  { source = { [name] = value } }))
    end
  end)

  it ("does nothing for a client that reads nothing", function ()
    assert.equal (0, simulate (nil, {}).seconds)
  end)
end)

describe ("scan.events", function ()
  it ("come out in order of time, then of putting in", function ()
    local list = require "scan.events".new ()
    local place, times = 3, {}
    for i = 1, 200 do
      place = (place * 1103515245 + 12345) % 2147483648
      times[i] = { place // 65536 % 20, i }
      list:add (times[i][1], times[i])
    end
    table.sort (times, function (a, b)
      return a[1] < b[1] or a[1] == b[1] and a[2] < b[2]
    end)
    for i = 1, 200 do
      assert.equal (times[i][1], list:next_seconds ())
      assert.equal (times[i], (list:take ()))
    end
    assert.is_nil (list:take ())
    assert.is_nil (list:next_seconds ())
  end)
end)
