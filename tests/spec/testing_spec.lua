-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/testing.lua and runner.lua: a policy is treated as the filter treats it.

local runner = require "scan.runner"
local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024

-- Run a function of the disk over ten blocks of 1 MiB.
local function run (policy, more)
  local options = { policy = policy, size = 10 * MiB, block = MiB }
  for name, value in pairs (more or {}) do options[name] = value end
  return testing.run (options)
end

-- A file that is there for one test.
local function temporary (text)
  local path = os.tmpname ()
  finally (function () os.remove (path) end)
  local handle = assert (io.open (path, "w"))
  handle:write (text)
  handle:close ()
  return path
end

local function upwards (disk)
  for offset = 0, disk.size - 1, disk.block do disk:prefetch (offset) end
end

local function reads_of (disk)
  local list = {}
  for offset, count in disk:reads () do list[#list + 1] = { offset, count } end
  return list
end

describe ("scan.testing", function ()
  it ("gives the prefetches in the order of issue", function ()
    local result = run (function (disk)
      disk:prefetch (3 * MiB)
      disk:prefetch (MiB, 512)
    end)
    assert.same ({ { 3 * MiB, MiB }, { MiB, 512 } }, result.prefetches)
    assert.same ({ 3, 1 }, testing.offsets (result, MiB))
    assert.same ({ 3 * MiB, MiB }, testing.offsets (result))
    assert.is_true (result.finished)
    assert.is_false (result.closed)
    assert.equal (2, result.requests)
  end)

  it ("shows offsets that are not a multiple of the unit as they are", function ()
    local result = run (function (disk) disk:prefetch (512 * KiB) end)
    assert.same ({ 0.5 }, testing.offsets (result, MiB))
  end)

  it ("cuts a range larger than a block into blocks", function ()
    local result = run (function (disk) disk:prefetch (512, 2 * MiB + 1) end)
    assert.same ({ { 512, MiB }, { 512 + MiB, MiB }, { 512 + 2 * MiB, 1 } },
                 result.prefetches)
    assert.equal (1, result.requests)
  end)

  it ("starts no scan of an empty disk", function ()
    local started = false
    local result = run (function () started = true end, { size = 0 })
    assert.is_false (started)
    assert.is_true (result.finished)
    assert.equal (0, result.requests)
  end)

  it ("has 2 MiB blocks if nothing is said", function ()
    local result = testing.run { policy = upwards, size = 3 * MiB }
    assert.same ({ { 0, 2 * MiB }, { 2 * MiB, MiB } }, result.prefetches)
  end)

  it ("tells the policy about the export", function ()
    local seen
    run (function (disk) seen = { disk.size, disk.block, disk.blocks, disk.export } end,
         { export = "e", size = 5 * MiB })
    assert.same ({ 5 * MiB, MiB, 5, "e" }, seen)
  end)

  it ("has no client that reads outside of the disk", function ()
    run (upwards, { events = { { after = 1, read = { 10 * MiB - 1, 1 } } } })
    local events = { { after = 1, close = true }, { at = 1 } }
    for _, read in ipairs { { 10 * MiB - 1, 2 }, { 10 * MiB, 1 },
                            { math.maxinteger, 1 } } do
      events[2].read = read
      local ok, message = pcall (run, upwards, { events = events })
      assert.is_false (ok)
      assert.equal (("events[2].read: offset %d, count %d is outside the disk "
                     .. "(size 10485760)"):format (read[1], read[2]), message)
    end
  end)

  describe ("the disk of another scan", function ()
    -- What the second scan of a world meets that asks the first one's disk.  The
    -- questions, as the filter answers them: tests/e2e/test_bad_policies.py.
    local function ask (question, has_ended)
      local kept
      local options = { size = 10 * MiB, block = MiB }
      options.world = testing.world { policy = function (disk)
        if kept then return question (kept) end
        kept = disk
        disk:wait ()
      end }
      local first = testing.scan (options)
      first:step ()
      if has_ended then
        first:close ()
        first:step ()
      end
      return testing.run (options).error or ""
    end

    for name, question in pairs {
      reads = function (disk) disk:reads () end,
      failures = function (disk) disk:failures () end,
      results = function (disk) disk:results () end,
      missing = function (disk) disk:missing (0) end,
      room = function (disk) disk:room () end,
      idle = function (disk) disk:idle () end,
      reads_in_flight = function (disk) disk:reads_in_flight () end,
      prefetch = function (disk) disk:prefetch (0) end,
    } do
      it ("can't be asked for " .. name, function ()
        assert.matches ("^tests/spec/testing_spec.lua:%d+: this disk belongs to another "
                        .. "scan\n", ask (question))
        assert.matches ("^tests/spec/testing_spec.lua:%d+: this disk belongs to a scan "
                        .. "that has ended\n", ask (question, true))
      end)
    end

    it ("says whether that one's client has gone", function ()
      local closed
      local function question (disk) closed = disk:closed () end
      assert.equal ("", ask (question))
      assert.is_false (closed)
      assert.equal ("", ask (question, true))
      assert.is_true (closed)
    end)

    it ("has no iterator left that shows anything", function ()
      local iterator
      local options = { size = 10 * MiB, block = MiB, events = { { after = 0,
                                                                   read = { 0, 1 } } } }
      options.world = testing.world { policy = function (disk)
        if iterator then iterator () end
        iterator = disk:reads ()
      end }
      assert.is_nil (testing.run (options).error)
      assert.matches ("a scan that has ended", testing.run (options).error)
    end)
  end)

  it ("ends a loop over reads inside of which they are asked for again", function ()
    local seen = {}
    run (function (disk)
      for outer in disk:reads () do
        seen[#seen + 1] = outer
        for inner in disk:reads () do seen[#seen + 1] = inner end
      end
    end, { events = { { after = 0, read = { 1, 1 } }, { after = 0, read = { 2, 1 } },
                      { after = 0, read = { 3, 1 } } } })
    assert.same ({ 1 }, seen)
  end)

  describe ("events", function ()
    it ("happen while the N-th prefetch is in flight", function ()
      local seen = {}
      run (function (disk)
        seen[#seen + 1] = reads_of (disk)
        for i = 0, 2 do
          disk:prefetch (i * MiB)
          seen[#seen + 1] = reads_of (disk)
        end
      end, { events = {
        { after = 2, read = { 2, 20 } }, { after = 0, read = { 1, 10 } },
        { after = 2, read = { 3, 30 } },
      } })
      assert.same ({ { { 1, 10 } }, {}, { { 2, 20 }, { 3, 30 } }, {} }, seen)
    end)

    it ("happen at a time of the made-up clock", function ()
      local seen = {}
      run (function (disk)
        disk:wait ()
        seen[1] = disk:now ()
        disk:wait ()
        seen[2] = disk:now ()
      end, { events = { { at = 7, close = true }, { at = 2.5, read = { 0, 1 } } } })
      assert.same ({ 2.5, 7 }, seen)
    end)

    it ("come before a prefetch that is done at the same time", function ()
      local seen
      run (function (disk)
        disk:prefetch (0)
        seen = reads_of (disk)
      end, { prefetch_seconds = 1, events = { { at = 1, read = { 5, 6 } } } })
      assert.same ({ { 5, 6 } }, seen)
    end)

    it ("let a read be in flight for a while", function ()
      local seen = {}
      local result = run (function (disk)
        disk:wait ()
        seen[1] = disk:idle ()
        disk:wait ()
        seen[2] = disk:idle ()
        disk:wait (4)
        seen[3] = disk:idle ()
      end, { events = { { at = 1, read = { 0, 1 }, seconds = 2 } } })
      assert.equal (0, seen[1])
      -- Just over is not 0.
      assert.is_true (seen[2] > 0 and seen[2] < 1e-6)
      assert.equal (4, seen[3])
      assert.equal (7, result.seconds)
      assert.equal (3, result.waits)
    end)

    it ("count the reads in flight", function ()
      local seen = {}
      run (function (disk)
        for i = 1, 5 do
          seen[i] = disk:reads_in_flight ()
          disk:wait (1)
        end
      end, { events = { { at = 0.5, read = { 0, 1 }, seconds = 2 },
                        { at = 0.5, read = { 1, 1 }, seconds = 1 } } })
      assert.same ({ 0, 1, 2, 1, 0 }, seen)
    end)

    it ("make the client busy while a read lasts, however long", function ()
      local seen = {}
      run (function (disk)
        for i = 1, 4 do
          seen[i] = disk:idle ()
          disk:prefetch (0)
        end
      end, { prefetch_seconds = 1,
             events = { { at = 1.5, read = { 0, 1 }, seconds = 1 } } })
      assert.is_true (seen[1] > 0 and seen[1] < 1e-6)
      assert.same ({ 1, 0, 0.5 }, { table.unpack (seen, 2) })
    end)

    it ("that are misspelt or incomplete are refused", function ()
      local function refused (event)
        local ok, message = pcall (run, upwards, { events = { event } })
        assert.is_false (ok)
        return message
      end
      assert.matches ("events%[1%]: no such field 'raed'",
                      refused { after = 1, raed = { 0, 1 } })
      assert.matches ("either after = N", refused { read = { 0, 1 } })
      assert.matches ("either after = N", refused { at = 1, after = 1, close = true })
      assert.matches ("or close = true expected", refused { after = 1 })
      assert.matches ("events%[1%].read: count", refused { after = 1, read = { 0 } })
      assert.matches ("events%[1%].after", refused { after = "x", close = true })
    end)
  end)

  it ("refuses options that are misspelt or wrong", function ()
    assert.has_error (function () run (upwards, { tread = 1 }) end)
    for name, value in pairs { size = -1, block = 0, threads = 0, policy = 5,
                               contents = 5, holes = { { 1 } } } do
      local ok, message = pcall (run, upwards, { [name] = value })
      assert.is_false (ok, name)
      assert.matches (name, message)
    end
  end)

  describe ("the client's going", function ()
    it ("leaves the policy one last turn", function ()
      local turns, closed = 0, {}
      local result = run (function (disk)
        while true do
          turns = turns + 1
          closed[turns] = disk:closed ()
          disk:prefetch (0)
        end
      end, { events = { { after = 2, close = true } } })
      assert.same ({ false, false, true }, closed)
      assert.equal (2, #result.prefetches)
      assert.equal ("prefetch", result.dropped)
      assert.is_true (result.closed)
      assert.is_false (result.finished)
    end)

    it ("before the policy starts leaves it that one turn", function ()
      local result = run (upwards, { events = { { after = 0, close = true } } })
      assert.same ({}, result.prefetches)
      assert.equal ("prefetch", result.dropped)
    end)

    it ("is not finishing, though the policy returns then", function ()
      local result = run (function (disk)
        repeat disk:prefetch (0) until disk:closed ()
      end, { events = { { after = 1, close = true } } })
      assert.is_false (result.finished)
      assert.is_nil (result.dropped)
    end)

    it ("drops what is left of a large range", function ()
      local result = run (function (disk) disk:prefetch (0, 5 * MiB) end,
                          { events = { { after = 2, close = true } } })
      assert.equal (2, #result.prefetches)
    end)

    it ("ends a wait", function ()
      local result = run (function (disk) disk:wait (1000) end,
                          { events = { { at = 3, close = true } } })
      assert.equal (3, result.seconds)
    end)

    it ("happens by itself when nothing else will", function ()
      local closed
      local result = run (function (disk)
        disk:wait ()
        closed = disk:closed ()
      end)
      assert.is_true (closed)
      assert.is_true (result.closed)
    end)
  end)

  describe ("wait", function ()
    it ("comes back when its time is up, and no sooner", function ()
      local at
      run (function (disk)
        disk:wait (2.5)
        at = disk:now ()
      end, { events = { { at = 5, read = { 0, 1 } } } })
      assert.equal (2.5, at)
    end)

    it ("lasts a millisecond at least, so that nobody can spin", function ()
      local result = run (function (disk) disk:wait (0) end)
      assert.equal (runner.WAIT_MIN_SECONDS, result.seconds)
    end)

    it ("comes back at once for what happened since the last wait", function ()
      local at
      run (function (disk)
        disk:prefetch (0)
        disk:wait (5)
        at = disk:now ()
      end, { prefetch_seconds = 1, events = { { after = 1, read = { 0, 1 } } } })
      assert.equal (1, at)
    end)

    it ("comes back after a prefetch has failed", function ()
      local failed = {}
      run (function (disk)
        disk:prefetch (0)
        disk:prefetch (MiB)
        disk:wait ()
        for offset, count, errno in disk:failures () do
          failed[#failed + 1] = { offset, count, errno }
        end
      end, { threads = 3,
             fail = function (offset) return offset > 0 and "EIO" or nil end })
      assert.same ({ { MiB, MiB, "EIO" } }, failed)
    end)
  end)

  describe ("reads", function ()
    it ("are shown once, and not again after a loop that is broken off", function ()
      local seen = {}
      run (function (disk)
        for offset in disk:reads () do -- luacheck: ignore 512
          seen[#seen + 1] = offset
          break
        end
        for offset in disk:reads () do seen[#seen + 1] = offset end
      end, { events = { { after = 0, read = { 1, 1 } },
                        { after = 0, read = { 2, 1 } } } })
      assert.same ({ 1 }, seen)
    end)

    it ("are bounded; the last place keeps the read that ends further", function ()
      local events = {}
      for i = 1, 256 do events[i] = { after = 0, read = { i, 1 } } end
      events[257] = { after = 0, read = { 900, 100 } }
      events[258] = { after = 0, read = { 950, 1 } }
      local seen
      run (function (disk) seen = reads_of (disk) end, { events = events })
      assert.equal (256, #seen)
      assert.same ({ 1, 1 }, seen[1])
      assert.same ({ 255, 1 }, seen[255])
      assert.same ({ 900, 100 }, seen[256])
    end)
  end)

  describe ("failures", function ()
    it ("are shown once and are known when the prefetch returns", function ()
      local failed = {}
      run (function (disk)
        disk:prefetch (0)
        for _ = 1, 2 do
          for offset, count, errno in disk:failures () do
            failed[#failed + 1] = { offset, count, errno }
          end
        end
      end, { fail = function () return "ENOSPC" end })
      assert.same ({ { 0, MiB, "ENOSPC" } }, failed)
    end)

    it ("are bounded; the last place covers what came after it, too", function ()
      local list = {}
      run (function (disk)
        for i = 100, 399 do disk:prefetch (i * 512, 512) end
        disk:prefetch (110 * 512, 512)
        for offset, count in disk:failures () do list[#list + 1] = { offset, count } end
      end, { fail = function () return "EIO" end })
      assert.equal (256, #list)
      assert.same ({ 354 * 512, 512 }, list[255])
      assert.same ({ 110 * 512, 290 * 512 }, list[256])
    end)

    it ("do not end the scan", function ()
      local result = run (upwards, { fail = function () return "EIO" end })
      assert.equal (10, #result.prefetches)
    end)
  end)

  describe ("with several threads", function ()
    it ("issues as many at once, and the next when one is done", function ()
      local result = run (upwards, { threads = 3, prefetch_seconds = 1 })
      assert.same ({ 0, 0, 0, 1, 1, 1, 2, 2, 2, 3 }, result.issued)
    end)

    it ("shares a large range between them", function ()
      local result = run (function (disk) disk:prefetch (0, 5 * MiB) end,
                          { threads = 2, prefetch_seconds = 1 })
      assert.same ({ 0, 0, 1, 1, 2 }, result.issued)
    end)

    it ("keeps the policy's next turn for a free thread", function ()
      local turns = {}
      run (function (disk)
        for i = 0, 3 do
          disk:prefetch (i * MiB)
          turns[i + 1] = disk:now ()
        end
      end, { threads = 2, prefetch_seconds = 1 })
      assert.same ({ 0, 1, 1, 2 }, turns)
    end)

    it ("settles once all are done", function ()
      local at
      run (function (disk)
        disk:prefetch (0)
        disk:prefetch (MiB)
        disk:settle ()
        at = disk:now ()
      end, { threads = 4, prefetch_seconds = 1 })
      assert.equal (1, at)
    end)

    it ("rests where nothing was asked for since it settled", function ()
      local turns = {}
      run (function (disk)
        local function settle ()
          disk:settle ()
          turns[#turns + 1] = ("%.6f"):format (disk:now ())
        end
        disk:prefetch (0)
        for _ = 1, 3 do settle () end
        disk:prefetch (MiB)
        settle ()
      end, { threads = 4, prefetch_seconds = 1 })
      assert.same ({ "1.000000", "1.001000", "1.002000", "2.002000" }, turns)
    end)

    it ("comes back from that rest when the client goes", function ()
      local at
      run (function (disk)
        disk:settle ()
        disk:settle ()
        at = disk:now ()
      end, { events = { { at = 0.0005, close = true } } })
      assert.equal (0.0005, at)
    end)

    it ("does not wait to settle when the client goes", function ()
      local at
      run (function (disk)
        disk:prefetch (0)
        disk:settle ()
        at = disk:now ()
      end, { threads = 4, prefetch_seconds = 5, events = { { at = 2, close = true } } })
      assert.equal (2, at)
    end)
  end)

  it ("is done with a prefetch before the policy goes on, with one thread", function ()
    local result = run (upwards, { prefetch_seconds = 1 })
    assert.same ({ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 }, result.issued)
    assert.equal (10, result.seconds)
  end)

  it ("answers next_data from the holes", function ()
    local seen = {}
    run (function (disk)
      for i, offset in ipairs { 0, MiB, 2 * MiB, 5 * MiB, 9 * MiB } do
        seen[i] = disk:next_data (offset) or "none"
      end
    end, { holes = { { 8 * MiB, 2 * MiB }, { 2 * MiB, MiB }, { MiB, MiB },
                     { 5 * MiB, 512 } } })
    assert.same ({ 0, 3 * MiB, 3 * MiB, 5 * MiB + 512, "none" }, seen)
  end)

  it ("answers next_data in few steps, however many holes there are", function ()
    local holes = {}
    for i = 0, 9999 do holes[i + 1] = { i * 2 * MiB, MiB } end
    local next_data = testing.next_data (holes, 20000 * MiB)
    local instructions = 0
    debug.sethook (function () instructions = instructions + 1 end, "", 1)
    local first, last = next_data (0), next_data (19998 * MiB + 5)
    debug.sethook ()
    assert.same ({ MiB, 19999 * MiB }, { first, last })
    assert.is_true (instructions < 1000, instructions)
  end)

  it ("gives next_data its offset back on a disk that can't tell holes", function ()
    local seen
    run (function (disk) seen = disk:next_data (77) end)
    assert.equal (77, seen)
  end)

  it ("answers pread from a string, a function or an image, zeroes behind", function ()
    local image = temporary ("0123456789")
    for _, contents in ipairs {
      "0123456789", { path = image },
      function (offset, count) return ("0123456789"):sub (offset + 1, offset + count) end,
    } do
      local seen
      run (function (disk)
        seen = { disk:pread (2, 3), disk:pread (8, 4), disk:pread (10 * MiB - 1, 100) }
      end, { contents = contents })
      assert.same ({ "234", "89\0\0", "\0" }, seen)
    end
  end)

  it ("lets preads fail", function ()
    local seen
    run (function (disk) seen = table.pack (disk:pread (0, 1)) end,
         { fail = function () return "EIO" end })
    assert.same ({ nil, "EIO", n = 2 }, seen)
  end)

  it ("reports a policy's error with its place, whatever the error is", function ()
    local path = temporary ("return function (disk)\n  error ('oops')\nend\n")
    local result = testing.run { policy = path, size = MiB }
    assert.matches (path:gsub ("%p", "%%%0") .. ":2: oops", result.error)
    assert.matches ("stack traceback", result.error)
    assert.is_false (result.finished)
    assert.matches ("error object is a nil value", run (function () error () end).error)
    assert.matches ("error object is a table", run (function () error {} end).error)
  end)

  it ("takes what a policy hands on of a coroutine of its own", function ()
    local result = run (function (disk)
      local co = coroutine.create (function ()
        disk:prefetch (0)
        assert (disk:pread (0, 1) == "\0")
        disk:prefetch (MiB)
      end)
      local answer = { n = 0 }
      while true do
        local request = table.pack (
          coroutine.resume (co, table.unpack (answer, 1, answer.n)))
        assert (request[1], request[2])
        if coroutine.status (co) == "dead" then return end
        answer = table.pack (coroutine.yield (table.unpack (request, 2, request.n)))
      end
    end)
    assert.is_nil (result.error)
    assert.same ({ 0, 1 }, testing.offsets (result, MiB))
  end)

  it ("reports what is yielded but is no request", function ()
    for _, values in ipairs { {}, { "prefetch" }, { "prefetch", 0, 0 },
                              { "prefetch", 10 * MiB, 1 }, { "pread", 0, 2 * MiB },
                              { "wait", -1 }, { "hello" }, { 5 }, { "wait" },
                              { "settle", 1 }, { "next_data", 0, 1 }, { "pread", 0 },
                              { "prefetch", 9 * MiB, MiB + 1 },
                              { "prefetch", 0, 1, 1 } } do
      local result = run (function () coroutine.yield (table.unpack (values)) end)
      assert.matches ("yielded something that is not a request", result.error)
      -- In the last turn, too.
      result = run (function (disk)
        repeat disk:wait () until disk:closed ()
        coroutine.yield (table.unpack (values))
      end)
      assert.matches ("yielded something that is not a request", result.error)
      assert.is_nil (result.dropped)
    end
  end)

  it ("raises what goes wrong while a policy is loaded", function ()
    assert.has_error (function () run (temporary ("x = = 1")) end)
    assert.has_error (function () run ("no-such-policy") end)
    local ok, message = pcall (run, "default", { args = { aheda = "1" } })
    assert.is_false (ok)
    assert.matches ("scan%-arg%-aheda", message)
  end)

  it ("gives up on a policy that does not end", function ()
    local ok, message = pcall (run, "forever", { steps = 50 })
    assert.is_false (ok)
    assert.matches ("gave up after 50 requests and 50 prefetches", message)
  end)

  it ("hands arguments and files to a policy", function ()
    local path = temporary [[
      local args = ...
      local at = tonumber (scan.open ("where"):read ())
      return function (disk) disk:prefetch (at, tonumber (args.count)) end]]
    local result = run (path, { args = { count = "512" }, files = { where = "1024" } })
    assert.same ({ { 1024, 512 } }, result.prefetches)
  end)

  describe ("several scans of one policy", function ()
    it ("share its state, and go on step by step", function ()
      local world = testing.world { policy = temporary [[
        local at = 0
        return function (disk)
          while at < disk.size do
            local here = at
            at = at + disk.block
            disk:prefetch (here)
          end
        end]] }
      local options = { world = world, size = 4 * MiB, block = MiB }
      local a, b = testing.scan (options), testing.scan (options)
      assert.same ({ 0, MiB }, { a:step () })
      assert.same ({ MiB, MiB }, { b:step () })
      assert.same ({ 2 * MiB, MiB }, { b:step () })
      assert.same ({ 3 * MiB, MiB }, { a:step () })
      assert.same ({ nil, "finished" }, { a:step () })
      assert.same ({ nil, "finished" }, { b:step () })
      assert.same ({ 0, 3 }, testing.offsets (a, MiB))
    end)

    it ("end together when it fails", function ()
      local world = testing.world { policy = temporary [[
        local count = 0
        return function (disk)
          while true do
            count = count + 1
            if count == 3 then error ("third") end
            disk:prefetch (0)
          end
        end]] }
      local options = { world = world, size = MiB }
      local a, b = testing.scan (options), testing.scan (options)
      a:step ()
      b:step ()
      assert.same ({ nil, "failed" }, { a:step () })
      assert.same ({ nil, "failed" }, { b:step () })
      assert.matches ("third", b.error)
    end)

    it ("can be read to and closed between steps", function ()
      local seen
      local scan = testing.scan { size = 4 * MiB, block = MiB, policy = function (disk)
        disk:prefetch (0)
        seen = reads_of (disk)
        disk:wait ()
        disk:prefetch (MiB)
        disk:wait ()
        disk:prefetch (2 * MiB)
      end }
      scan:step ()
      scan:read (5, 6)
      assert.same ({ MiB, MiB }, { scan:step () })
      assert.same ({ { 5, 6 } }, seen)
      assert.same ({ nil, "waiting" }, { scan:step () })
      scan:close ()
      assert.same ({ nil, "finished" }, { scan:step () })
      assert.equal (2, #scan.prefetches)
    end)

    it ("let time pass", function ()
      local scan = testing.scan { size = 4 * MiB, block = MiB, prefetch_seconds = 1,
                                  policy = upwards }
      scan:pass (2.5)
      assert.equal (3, #scan.prefetches)
      scan:pass (100)
      assert.equal (4, #scan.prefetches)
      assert.equal (102.5, scan.now)
    end)
  end)
end)
