-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/runtime/scan/host.lua: the disk that a policy sees, and the requests it yields.

local host = require "scan.host"

local driver

before_each (function ()
  driver = {
    size = 1000, block = 300, export = "e",
    reads = function () return "reads" end,
    failures = function () return "failures" end,
    room = function () return 200 end,
    reads_in_flight = function () return 3 end,
    idle = function () return 0.5 end,
    closed = function () return true end,
    now = function () return 12 end,
  }
end)

-- What the policy asks for first, as the runner sees it.
local function request (policy)
  local co = coroutine.create (host.main)
  local results = table.pack (coroutine.resume (co, policy, driver))
  assert (results[1], results[2])
  return table.unpack (results, 2, results.n)
end

-- The message with which a policy fails.
local function failure (policy)
  local co = coroutine.create (host.main)
  local ok, message = coroutine.resume (co, policy, driver)
  assert.is_false (ok)
  return message
end

describe ("scan.host", function ()
  it ("describes the disk, the last block counted", function ()
    local disk = host.disk (driver)
    assert.same ({ 1000, 300, 4, "e" },
                 { disk.size, disk.block, disk.blocks, disk.export })
    driver.size = 900
    assert.equal (3, host.disk (driver).blocks)
    driver.size = 0
    assert.equal (0, host.disk (driver).blocks)
  end)

  it ("yields a prefetch of one block, cut at the end of the disk", function ()
    assert.same ({ "prefetch", 0, 300 },
                 { request (function (disk) disk:prefetch (0) end) })
    assert.same ({ "prefetch", 900, 100 },
                 { request (function (disk) disk:prefetch (900) end) })
  end)

  it ("yields a count as it is given, even if larger than a block", function ()
    assert.same ({ "prefetch", 100, 900 },
                 { request (function (disk) disk:prefetch (100, 5000) end) })
    assert.same ({ "prefetch", 100, 1 },
                 { request (function (disk) disk:prefetch (100, 1) end) })
  end)

  it ("takes whole floats, and hands on integers", function ()
    local _, offset, count = request (function (disk) disk:prefetch (2^6, 2^3) end)
    assert.same ({ "integer", "integer" }, { math.type (offset), math.type (count) })
    assert.same ({ 64, 8 }, { offset, count })
  end)

  it ("refuses offsets that are none or outside the disk", function ()
    local outside = "disk:prefetch: offset %-?%d+ is outside the disk %(size 1000%)"
    for _, offset in ipairs { -1, 1000, 1e6, math.mininteger } do
      assert.matches (outside, failure (function (disk) disk:prefetch (offset) end))
    end
    for _, offset in ipairs { 1.5, "100", 0/0, math.huge, true } do
      assert.matches ("disk:prefetch: offset should be a whole number of bytes, got ",
                      failure (function (disk) disk:prefetch (offset) end))
    end
    assert.matches ("got nil", failure (function (disk) disk:prefetch () end))
    assert.matches ("got '100', a string$",
                    failure (function (disk) disk:prefetch ("100") end))
    assert.matches ("got a table$", failure (function (disk) disk:prefetch ({}) end))
    assert.matches ("got 'x+%.%.%.', a string$",
                    failure (function (disk) disk:prefetch (("x"):rep (1e6)) end))
  end)

  it ("refuses counts that are none", function ()
    for _, count in ipairs { 0, -5 } do
      assert.matches ("disk:prefetch: count should be at least 1, got ",
                      failure (function (disk) disk:prefetch (0, count) end))
    end
    assert.matches ("count should be a whole number",
                    failure (function (disk) disk:prefetch (0, "x") end))
  end)

  it ("blames the policy's line", function ()
    local chunk = assert (load ("local disk = ...\ndisk:prefetch (-1)", "@mine.lua"))
    assert.matches ("^mine.lua:2: ", failure (chunk))
    chunk = assert (load ("local disk = ...\ndisk:wait (-1)", "@mine.lua"))
    assert.matches ("^mine.lua:2: ", failure (chunk))
  end)

  it ("says that a colon is missing", function ()
    driver.missing = function () error "not asked" end
    for _, name in ipairs { "prefetch", "wait", "next_data", "pread", "missing" } do
      assert.matches (("^tests/spec/host_spec.lua:%%d+: disk:%s: called without the "
                       .. "disk, got 0; call it with a colon$"):format (name),
                      failure (function (disk) disk[name] (0, 512) end))
      assert.matches ("got nil; call", failure (function (disk) disk[name] () end))
    end
  end)

  it ("takes the size and the block of the scan, not of its table", function ()
    assert.same ({ "prefetch", 900, 100 }, { request (function (disk)
      disk.size, disk.block = nil, 50
      disk:prefetch (900)
    end) })
    assert.same ({ "prefetch", 0, 300 },
                 { request (function (disk) disk.prefetch ({}, 0) end) })
  end)

  it ("yields waits, with and without a time", function ()
    assert.same ({ "wait", n = 2 },
                 table.pack (request (function (disk) disk:wait () end)))
    assert.same ({ "wait", 1.5 }, { request (function (disk) disk:wait (1.5) end) })
    for _, seconds in ipairs { -1, math.huge, 0/0, "1" } do
      assert.matches ("disk:wait: seconds should be a number from 0 up",
                      failure (function (disk) disk:wait (seconds) end))
    end
  end)

  it ("yields settle", function ()
    assert.equal ("settle", (request (function (disk) disk:settle () end)))
  end)

  it ("hands answers back to the policy", function ()
    local co = coroutine.create (host.main)
    local got
    coroutine.resume (co, function (disk)
      got = { disk:next_data (10), disk:pread (990, 100) }
    end, driver)
    coroutine.resume (co, 20)
    coroutine.resume (co, nil, "EIO")
    assert.same ({ 20, nil, "EIO" }, got)
  end)

  it ("asks on through a vast hole, unless briefly", function ()
    local co = coroutine.create (host.main)
    local got
    coroutine.resume (co, function (disk)
      got = { disk:next_data (10, true) }
      got[#got + 1] = disk:next_data (10)
    end, driver)
    coroutine.resume (co, 300, true)
    assert.same ({ 300, true }, got)
    assert.same ({ true, "next_data", 300 }, { coroutine.resume (co, 300, true) })
    coroutine.resume (co, 700)
    assert.same ({ 300, true, 700 }, got)
  end)

  it ("yields next_data and pread within the disk", function ()
    assert.same ({ "next_data", 10 },
                 { request (function (disk) disk:next_data (10) end) })
    assert.same ({ "pread", 990, 10 },
                 { request (function (disk) disk:pread (990, 100) end) })
    assert.matches ("disk:next_data: offset 1000 is outside",
                    failure (function (disk) disk:next_data (1000) end))
    assert.matches ("disk:pread: offset 1000 is outside",
                    failure (function (disk) disk:pread (1000, 1) end))
    driver.size = 2^40 // 1 | 0
    assert.matches ("disk:pread: count should be at most 1048576, got 1048577",
                    failure (function (disk) disk:pread (0, 1048577) end))
  end)

  it ("answers questions through the driver, without a yield", function ()
    local got
    host.main (function (disk)
      got = { disk:reads (), disk:failures (), disk:reads_in_flight (), disk:idle (),
              disk:closed (), disk:now (), disk:room () }
    end, driver)
    assert.same ({ "reads", "failures", 3, 0.5, true, 12, 200 }, got)
  end)

  it ("lets a policy spoil only its own disk", function ()
    local disk = host.disk (driver)
    function disk.prefetch () end
    assert.is_nil (getmetatable (disk))
    assert.equal ("prefetch", (request (function (fresh) fresh:prefetch (0) end)))
  end)

  describe ("with a table for a policy", function ()
    -- Run to the end; prefetches as they come out.
    local function run (policy)
      local co = coroutine.create (host.main)
      local seen = {}
      local run_it = assert (host.to_function (policy))
      local results = table.pack (coroutine.resume (co, run_it, driver))
      while coroutine.status (co) ~= "dead" do
        seen[#seen + 1] = { table.unpack (results, 2, results.n) }
        results = table.pack (coroutine.resume (co))
      end
      assert (results[1], results[2])
      return seen
    end

    before_each (function () driver.closed = function () return false end end)

    it ("asks next for one range after the other", function ()
      local at = 0
      local seen = run { next = function ()
        at = at + 100
        if at <= 300 then return at, 50 end
      end }
      assert.same ({ { "prefetch", 100, 50 }, { "prefetch", 200, 50 },
                     { "prefetch", 300, 50 } }, seen)
    end)

    it ("opens a scan, gives it to next and to close", function ()
      local closed
      local seen = run {
        open = function (disk) return { at = disk.size, disk = disk } end,
        next = function (scan)
          scan.at = scan.at - 500
          if scan.at >= 0 then return scan.at end
        end,
        close = function (scan) closed = scan.at end,
      }
      assert.same ({ { "prefetch", 500, 300 }, { "prefetch", 0, 300 } }, seen)
      assert.equal (-500, closed)
    end)

    it ("asks no more, but closes, once the client has gone", function ()
      local asked, closed = 0, false
      driver.closed = function () return asked == 2 end
      run { next = function () asked = asked + 1 return 0 end,
            close = function () closed = true end }
      assert.equal (2, asked)
      assert.is_true (closed)
    end)
  end)

  it ("says what a policy should have been", function ()
    local function expected (policy)
      local run, message = host.to_function (policy)
      assert.is_nil (run)
      return message
    end
    assert.matches ("but it returned nothing", expected (nil))
    assert.matches ("but it returned a number", expected (5))
    assert.matches ("its 'next' is missing", expected {})
    assert.matches ("its 'next' is a number", expected { next = 1 })
    assert.matches ("'open' should be a function, but it is a string",
                    expected { next = print, open = "x" })
    assert.matches ("'close' should be a function",
                    expected { next = print, close = true })
    assert.equal (print, (host.to_function (print)))
  end)
end)

describe ("disk:missing", function ()
  local asked

  before_each (function ()
    asked = nil
    driver.missing = function (_, from, to)
      asked = { from, to }
      return from, to - from
    end
  end)

  it ("asks about a range of the disk, to its end if nothing is said", function ()
    local disk = host.disk (driver)
    assert.same ({ 100, 900 }, { disk:missing (100) })
    disk:missing (0, 2^20)
    assert.same ({ 0, 1000 }, asked)
    assert.equal ("integer", math.type (asked[2]))
  end)

  it ("has nothing to ask of an empty range", function ()
    local disk = host.disk (driver)
    assert.is_nil (disk:missing (1000))
    assert.is_nil (disk:missing (50, 50))
    assert.is_nil (asked)
  end)

  it ("refuses what is no number of bytes", function ()
    local disk = host.disk (driver)
    for _, bad in ipairs { 1.5, "1", true } do
      assert.error_matches (function () disk:missing (bad) end,
                            "disk:missing: from should be a whole number of bytes, got")
      assert.error_matches (function () disk:missing (0, bad) end,
                            "disk:missing: to should be a whole number of bytes, got")
    end
  end)

  it ("refuses what is before the disk, as disk:prefetch does", function ()
    local disk = host.disk (driver)
    for _, ask in ipairs {
      function () disk:missing (-1) end,
      function () disk:missing (-1, 0) end,
      function () disk:missing (0, -1) end,
      function () disk:missing (2000, -1.0) end,
    } do
      assert.error_matches (ask, "^disk:missing: %a+ %-1 is outside the disk "
                                 .. "%(size 1000%)$")
    end
    assert.is_nil (asked)
  end)
end)
