-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/trace.lua: logs of the log filter and plain lists.

local file = require "scan.file"
local trace = require "scan.trace"

local function open (text)
  return file.new (function (offset, count)
    return text:sub (offset + 1, offset + count)
  end)
end

local function log_of (name)
  return assert (io.open ("tests/traces/" .. name .. ".log"))
end

-- { { offset, count }, ... }
local function pairs_of (text)
  local list = {}
  for offset, count in trace.each (open (text)) do list[#list + 1] = { offset, count } end
  return list
end

local function failure (text)
  local ok, message = pcall (pairs_of, text)
  assert.is_false (ok)
  return message
end

local LOG = [[
2026-01-31 23:59:59.900000 Ready thread_model=3
2026-01-31 23:59:59.950000 connection=1 Connect export="" tls=0 size=0x800000 write=1
2026-01-31 23:59:59.999000 connection=1 Read id=1 offset=0x0 count=0x200 ...
2026-02-01 00:00:00.001000 connection=1 ...Read id=1 return=0
2026-02-01 00:00:00.001500 connection=1 Write id=2 offset=0x1000 count=0x200 fua=0 ...
2026-02-01 00:00:00.001600 connection=1 ...Write id=2 return=0
2026-02-01 00:00:00.101000 connection=1 Read id=3 offset=0x100000 count=0x10000 ...
2026-02-01 00:00:00.102000 connection=2 Read id=1 offset=0x3ffffff count=0x1 ...
2026-02-01 00:00:00.103000 connection=1 ...Read id=3 return=-1 error=EIO
2026-02-01 00:00:00.104000 connection=1 Read id=4 offset=0x0 count=0x200 ...
2026-02-01 00:00:00.104000 connection=1 Disconnect transactions=4
]]

describe ("scan.trace", function ()
  it ("reads plain lists in any notation, with comments", function ()
    assert.same ({ { 0, 512 }, { 4096, 16 }, { 2^20 | 0, 2048 }, { 3 * 2^30 | 0, 1 } },
                 pairs_of ("# boot\n0 512\n\n4K\t0x10  # the header\n 1m 2k \n3G 1"))
  end)

  it ("leaves out reads of nothing", function ()
    assert.same ({ { 5, 1 } }, pairs_of ("0 0\n5 1\n"))
  end)

  it ("takes the reads of a log, and their times", function ()
    local list = trace.read (open (LOG))
    assert.equal (4, #list)
    local offsets, counts, seconds, idle = {}, {}, {}, {}
    for i, read in ipairs (list) do
      offsets[i], counts[i] = read.offset, read.count
      seconds[i], idle[i] = read.seconds, read.idle
    end
    assert.same ({ 0, 0x100000, 0x3ffffff, 0 }, offsets)
    assert.same ({ 512, 65536, 1, 512 }, counts)
    -- Over midnight and the end of the month.
    assert.same ({ 0, 0.102, 0.103, 0.105 }, seconds)
    -- Only while nothing at all is in flight.
    assert.same ({ 0, 0.1, 0, 0 }, idle)
  end)

  it ("takes lines of a log that have no time", function ()
    local list = trace.read (open (
      "! Ready thread_model=3\n! Fork\n" .. LOG
      .. "! connection=1 Read id=5 offset=0x400 count=0x200 ...\n"
      .. "! connection=1 ...Read id=5 return=0\n"))
    assert.equal (5, #list)
    assert.equal (0x400, list[5].offset)
    assert.equal (0.105, list[5].seconds)
    assert.same ({ { 1024, 512 } },
                 pairs_of ("! connection=1 Read id=5 offset=0x400 count=0x200 ...\n"))
  end)

  it ("does not mistake other lines of a log for reads", function ()
    local start = "2026-01-01 00:00:00.000000 connection=1 "
    assert.same ({}, pairs_of (start .. "Extents id=1 offset=0x0 count=0x1 ...\n"
                               .. start .. "Cache id=5 offset=0x0 count=0x10 ...\n"))
  end)

  it ("names the line that is malformed, and what is expected", function ()
    assert.matches ("line 3: 'offset count' or a line of nbdkit's log filter expected, "
                    .. "got 'hello'", failure ("0 1\n\nhello\n"))
    assert.matches ("line 1: 'offset count'", failure ("1 2 3"))
    for _, line in ipairs { "x 1", "1 x", "-1 1", "1.5 1", "99999999999999999999 1",
                            "0x10000000000000000 1", "0xffffffffffffffff 1",
                            "9223372036854775807 1", "9000000P 1", "1KB 2" } do
      assert.matches ("line 1: an offset and a count in bytes expected, got '",
                      failure (line), line)
    end
    assert.matches ("line 1: an offset and a count", failure
                      ("2026-01-01 00:00:00.000000 connection=1 Read id=1 offset=0x ..."))
  end)

  it ("does not show all of a long line", function ()
    assert.is_true (#failure (("x"):rep (10000)) < 200)
  end)

  it ("reads files of Lua as well as those of a policy", function ()
    local list = trace.read (log_of ("blkid"))
    assert.equal (51, #list)
    assert.same ({ 0x3ff0000, 0x1000 }, { list[1].offset, list[1].count })
  end)

  it ("has six traces to read, all of them of some reads", function ()
    for _, name in ipairs { "nbdcopy", "qemu-img-convert", "blkid", "fsck",
                            "debugfs-rdump", "fio-random" } do
      local handle = log_of (name)
      assert.is_true (#trace.read (handle) > 20, name)
      handle:close ()
    end
  end)

  describe ("blocks", function ()
    it ("come in the order of the first touch, none twice", function ()
      assert.same ({ 200, 0, 100, 500 },
                   trace.blocks (open ("250 10\n0 1\n50 100\n0 250\n599 1\n"), 100, 1000))
    end)

    it ("outside the disk are left out", function ()
      local text = "250 100\n300 1\n1000 1\n"
      assert.same ({ 200 }, trace.blocks (open (text), 100, 251))
      assert.same ({ 0 }, trace.blocks (open ("255 1\n0 1\n"), 100, 251))
    end)

    it ("keep no reads: memory does not grow with the trace", function ()
      local lines, memory = 100000, {}
      local source = { lines = function ()
        local i = 0
        return function ()
          i = i + 1
          if i % 50000 == 1000 then
            collectgarbage ()
            collectgarbage ()
            memory[#memory + 1] = collectgarbage ("count")
          end
          return i <= lines and (i % 8 * 512) .. " 512" or nil
        end
      end }
      assert.same ({ 0 }, trace.blocks (source, 4096, 2^20 | 0))
      assert.equal (2, #memory)
      assert.is_true (memory[2] - memory[1] < 64)
    end)
  end)

  it ("works while strings are sealed, as in the filter", function ()
    local testing = require "scan.testing"
    local path = os.tmpname ()
    finally (function () os.remove (path) end)
    local handle = assert (io.open (path, "w"))
    handle:write [[
      local trace = require "scan.trace"
      return function (disk)
        for _, block in ipairs (trace.blocks (scan.open "t", disk.block, disk.size)) do
          disk:prefetch (block)
        end
      end]]
    handle:close ()
    local result = testing.run { policy = path, size = 2^23 | 0, block = 2^20 | 0,
                                 files = { t = LOG .. "4M 1K\n" } }
    assert.is_nil (result.error)
    assert.same ({ 0, 1, 4 }, testing.offsets (result, 2^20 | 0))
  end)
end)
