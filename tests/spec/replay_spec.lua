-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/replay.lua

local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024
local BLOCK = 65536

local function run (text, more)
  local options = {
    policy = "replay", size = 10 * MiB, block = BLOCK, files = { trace = text },
    warn = function () end,
  }
  for name, value in pairs (more or {}) do options[name] = value end
  local result = testing.run (options)
  assert.is_nil (result.error)
  assert.is_true (result.finished)
  return result.prefetches
end

-- Ranges in KiB.
local function ranges (...)
  local list = {}
  for i, prefetch in ipairs (run (...)) do
    list[i] = { prefetch[1] / KiB, prefetch[2] / KiB }
  end
  return list
end

describe ("replay", function ()
  it ("fetches what the trace reads, once, by first touch", function ()
    -- What touches is one piece without a gap, too.
    assert.same ({ { 2000, 8 }, { 0, 4 }, { 1000, 12 } },
                 ranges ("2000K 4K\n0 512\n1000K 12K\n0 4K\n2002K 6K\n1004K 512\n",
                         { args = { gap = "0" } }))
  end)

  it ("joins reads that are as far apart as a gap may be", function ()
    assert.same ({ { 0, 40 } }, ranges "0 4K\n36K 4K\n")
    assert.same ({ { 0, 4 }, { 40, 4 } }, ranges "0 4K\n40K 4K\n")
    assert.same ({ { 0, 40 } }, ranges "36K 4K\n0 4K\n")
  end)

  it ("makes no piece of more than 1M, but of one read", function ()
    local lines = {}
    for i = 0, 511 do lines[i + 1] = 4 * i .. "K 4K" end
    assert.same ({ { 0, 1024 }, { 1024, 1024 } },
                 ranges (table.concat (lines, "\n"), { block = 4 * MiB }))
    assert.same ({ { 0, 2048 } }, ranges ("0 2M\n", { block = 4 * MiB }))
  end)

  it ("fetches no more than that of reads far apart", function ()
    local lines, state = {}, 7
    for i = 1, 200 do
      state = (state * 1103515245 + 12345) % 2147483648
      lines[i] = ("%d 4096"):format (state // 65536 * 65536)
    end
    local bytes = 0
    for _, prefetch in ipairs (run (table.concat (lines, "\n"), { size = 2^31 | 0 })) do
      bytes = bytes + prefetch[2]
    end
    assert.is_true (bytes <= 200 * 4 * KiB)
  end)

  it ("joins reads that are close in the trace and on the disk", function ()
    local text = "1000K 4K\n100K 4K\n1020K 4K\n92K 4K\n1200K 4K\n"
    assert.same ({ { 1000, 24 }, { 92, 12 }, { 1200, 4 } }, ranges (text))
    assert.same ({ { 1000, 4 }, { 92, 12 }, { 1020, 4 }, { 1200, 4 } },
                 ranges (text, { args = { gap = "8K" } }))
    -- Not with one that went long before.
    local lines = { "1000K 4K" }
    for i = 1, 70 do lines[#lines + 1] = 2000 + 100 * i .. "K 4K" end
    lines[#lines + 1] = "1004K 4K"
    local list = ranges (table.concat (lines, "\n"))
    assert.same ({ { 1000, 4 }, { 1004, 4 } }, { list[1], list[#list] })
  end)

  it ("goes upwards with order=offset", function ()
    assert.same ({ { 0, 4 }, { 128, 80 }, { 1000, 4 } },
                 ranges ("1000K 4K\n0 512\n128K 80K\n",
                         { args = { order = "offset" }, block = MiB }))
  end)

  it ("reads a log of the log filter", function ()
    local log = {}
    for i, offset in ipairs { 0x50000, 0x10000 } do
      log[#log + 1] = ("2024-01-01 10:00:00.00000%d connection=1 Read id=%d "
                       .. "offset=0x%x count=0x1000 ...\n"):format (i, i, offset)
      log[#log + 1] = ("2024-01-01 10:00:00.00000%d connection=1 ...Read id=%d "
                       .. "return=0\n"):format (i, i)
    end
    assert.same ({ { 320, 4 }, { 64, 4 } }, ranges (table.concat (log)))
  end)

  it ("leaves out what is outside the disk, and says so", function ()
    local lines = {}
    local function warn (line) lines[#lines + 1] = line end
    assert.same ({ { 9 * 1024, 64 }, { 9 * 1024 + 64, 64 } },
                 ranges ("9M 1G\n20G 1\n8000000T 64K\n9M 4K\n",
                         { size = 9 * MiB + 2 * BLOCK, warn = warn }))
    assert.equal (1, #lines)
    assert.matches ("^scan%-file%-trace: of 2 ranges, 1 lie beyond the end", lines[1])
    -- A read of the end of a disk of odd size is no stale one.
    assert.same ({ { 0, 100 } }, run ("0 100\n", { size = 100, warn = warn }))
    assert.equal (1, #lines)
    assert.same ({ { 0, 4096 } }, run ("0 8K\n", { size = 4096, warn = warn }))
    assert.equal (2, #lines)
  end)

  it ("fetches a block at a time", function ()
    assert.same ({ { 0, 512 }, { 512, 512 }, { 1024, 512 } },
                 { table.unpack (run ("600 8\n", { block = 512 }), 1, 3) })
  end)

  it ("leaves out what the client has read by then", function ()
    local events = { { after = 1, read = { 1000 * KiB, 8 * KiB } },
                     { after = 1, read = { 2004 * KiB, 4 * KiB } } }
    assert.same ({ { 0, 4 }, { 2000, 4 }, { 2008, 4 } },
                 ranges ("0 4K\n1000K 8K\n2000K 12K\n", { events = events }))
  end)

  -- A trace of each fourth 64K; the client reads these, or others.
  local function followed (read_in, read_out)
    local trace, events, lines = {}, {}, {}
    for i = 1, 300 do trace[i] = 256 * i .. "K 4K" end
    for i = 1, 120 do
      for n = 1, read_in + read_out do
        local place = 256 * (300 - i) + (n > read_in and 128 or 0)
        events[#events + 1] = { after = i, read = { place * KiB, 4 * KiB } }
      end
    end
    local prefetches = run (table.concat (trace, "\n"), {
      size = 128 * MiB, events = events,
      warn = function (line) lines[#lines + 1] = line end,
    })
    return #prefetches, lines
  end

  it ("leaves the trace once the client does something else for long", function ()
    local fetched, lines = followed (0, 1)
    assert.equal (64, fetched)
    assert.same ({ "replay: the client reads what is not in the trace, which is left "
                   .. "after 64 of 300 pieces" }, lines)
  end)

  it ("leaves it as soon after many reads that were in it", function ()
    local trace, events, lines = {}, {}, {}
    for i = 1, 300 do trace[i] = 256 * i .. "K 4K" end
    for i = 1, 100 do events[i] = { after = 0, read = { 256 * i * KiB, 4 * KiB } } end
    for i = 1, 64 do
      events[#events + 1] = { after = 1, read = { (256 * i + 128) * KiB, 4 * KiB } }
    end
    assert.equal (1, #run (table.concat (trace, "\n"), {
      size = 128 * MiB, events = events,
      warn = function (line) lines[#lines + 1] = line end,
    }))
    assert.equal (1, #lines)
  end)

  it ("stays with the trace while most reads are in it", function ()
    local fetched, lines = followed (3, 2)
    assert.is_true (fetched > 150)
    assert.same ({}, lines)
  end)

  it ("goes on with another policy, without what was replayed", function ()
    local more = { args = { ["then"] = "reverse" }, size = 3 * BLOCK }
    assert.same ({ { 64, 4 }, { 128, 64 }, { 68, 60 }, { 0, 64 } },
                 ranges ("64K 4K\n", more))
    more.args = { ["then"] = "replay", ["then.order"] = "offset", gap = "0" }
    assert.same ({ { 64, 4 }, { 0, 4 } }, ranges ("64K 4K\n0 4K\n", more))
    more.args["then.order"] = "size"
    assert.error_matches (function () ranges ("", more) end, "one of time, offset")
  end)

  it ("keeps little of a trace that repeats itself", function ()
    local line = "0 4K\n640K 4K\n"
    local world = testing.world {
      policy = "replay", files = { trace = line:rep (50000) },
    }
    local scan = testing.run { world = world, size = MiB, block = BLOCK }
    assert.equal (2, #scan.prefetches)
    -- Not a turn for each of the 100000 reads.
    assert.is_true (scan.requests <= 3)
  end)

  it ("says what is wrong", function ()
    assert.error_matches (function () run ("0 4K\nnonsense\n") end, "trace: line 2: ")
    assert.error_matches (function () run ("0 2G\n") end, "a read of 2147483648 bytes is")
    assert.error_matches (function () run ("", { args = { order = "size" } }) end,
                          "scan%-arg%-order: one of time, offset expected, got 'size'")
    assert.error_matches (function () run ("", { args = { ["then"] = "nope" } }) end,
                          "scan%-arg%-then: there is no file 'nope' and no built%-in")
    assert.error_matches (function () testing.run { policy = "replay", size = 1 } end,
                          "scan%-file%-trace")
  end)

  it ("loads hundreds of thousands of reads within the limits", function ()
    local function trace ()
      local lines, place = {}, 1
      for i = 1, 400000 do
        place = (place * 1103515245 + 12345) % 2147483648
        lines[i] = place * 4096 .. " 4096"
      end
      return table.concat (lines, "\n")
    end
    local text = trace ()
    collectgarbage ()
    local before = collectgarbage ("count")
    local world = testing.world { policy = "replay", files = { trace = text } }
    collectgarbage ()
    -- A million in the default of scan-policy-memory, without the text.
    assert.is_true (collectgarbage ("count") - before < 64 * 1024 * 0.4)
    assert.is_function (world.run)
  end)
end)
