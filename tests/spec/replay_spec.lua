-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/replay.lua

local testing = require "scan.testing"

local BLOCK = 65536

local function run (text, more)
  local options = {
    policy = "replay", size = 10 * BLOCK, block = BLOCK, files = { trace = text },
    warn = function () end,
  }
  for name, value in pairs (more or {}) do options[name] = value end
  local result = testing.run (options)
  assert.is_nil (result.error)
  assert.is_true (result.finished)
  return result.prefetches
end

local function blocks (...)
  local list = {}
  for i, prefetch in ipairs (run (...)) do
    assert.equal (BLOCK, prefetch[2])
    list[i] = prefetch[1] / BLOCK
  end
  return list
end

local LIST = "200K 4K\n0 512\n204K 4K\n130K 80K\n0 1M\n"

describe ("replay", function ()
  it ("goes by first touch, whole blocks, each once", function ()
    assert.same ({ 3, 0, 2, 1, 4, 5, 6, 7, 8, 9 }, blocks (LIST))
    assert.same ({ 3, 0, 2 }, blocks ("200K 4K\n0 512\n204K 4K\n130K 80K\n"))
  end)

  it ("goes upwards with order=offset", function ()
    assert.same ({ 0, 2, 3 }, blocks ("200K 4K\n0 512\n204K 4K\n130K 80K\n",
                                      { args = { order = "offset" } }))
  end)

  it ("reads a log of the log filter", function ()
    local log = {}
    for i, offset in ipairs { 0x50000, 0x10000 } do
      log[#log + 1] = ("2024-01-01 10:00:00.00000%d connection=1 Read id=%d "
                       .. "offset=0x%x count=0x1000 ...\n"):format (i, i, offset)
      log[#log + 1] = ("2024-01-01 10:00:00.00000%d connection=1 ...Read id=%d "
                       .. "return=0\n"):format (i, i)
    end
    assert.same ({ 5, 1 }, blocks (table.concat (log)))
  end)

  it ("leaves out what is outside the disk", function ()
    assert.same ({ 9 }, blocks ("576K 1T\n640K 1\n8000000T 64K\n"))
    assert.same ({ { 0, 100 } }, run ("0 1M\n", { size = 100 }))
  end)

  it ("keeps reads apart where blocks are small", function ()
    assert.same ({ { 512, 512 }, { 4096, 512 } },
                 run ("600 8\n4096 1\n", { block = 512 }))
  end)

  it ("goes on with another policy, without what was replayed", function ()
    assert.same ({ 3, 0, 9, 8, 7, 6, 5, 4, 2, 1 },
                 blocks ("200K 4K\n0 512\n", { args = { ["then"] = "reverse" } }))
  end)

  it ("keeps little of a trace that repeats itself", function ()
    local line = "0 4K\n640K 4K\n"
    local world = testing.world {
      policy = "replay", files = { trace = line:rep (50000) },
    }
    collectgarbage ()
    local with = collectgarbage ("count")
    local other = testing.world { policy = "replay", files = { trace = line } }
    collectgarbage ()
    assert.is_true (world ~= other and with > 0)
    local scan = testing.run { world = world, size = 20 * BLOCK, block = BLOCK }
    assert.equal (2, #scan.prefetches)
    -- Not a turn for each of the 100000 reads.
    assert.is_true (scan.requests <= 3)
  end)

  it ("says what is wrong", function ()
    assert.error_matches (function () run ("0 4K\nnonsense\n") end, "trace: line 2: ")
    assert.error_matches (function () run ("", { args = { order = "size" } }) end,
                          "scan%-arg%-order: one of time, offset expected, got 'size'")
    assert.error_matches (function () run ("", { args = { ["then"] = "nope" } }) end,
                          "scan%-arg%-then: nope: neither a file nor a built%-in policy")
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
