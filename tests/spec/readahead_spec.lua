-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/readahead.lua; what a stream is, is in walks_spec.lua.

local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024

local function sequential (first, number, count, options)
  local events = {}
  for i = 0, number - 1 do
    events[i + 1] = { at = 1 + i * 0.02, read = { first + i * count, count },
                      seconds = 0.015 }
  end
  events[#events + 1] = { at = 600, close = true }
  local all = { policy = "readahead", size = 1 << 30, block = 2 * MiB, events = events }
  for name, value in pairs (options or {}) do all[name] = value end
  local result = testing.run (all)
  assert.is_nil (result.error)
  return result
end

describe ("readahead", function ()
  it ("waits until a stream shows, then stays ahead of it", function ()
    local result = sequential (100 * MiB, 100, 256 * KiB)
    assert.is_true (result.issued[1] >= 1.02)
    local stop = 100 * MiB + 512 * KiB
    for _, prefetch in ipairs (result.prefetches) do
      assert.equal (stop, prefetch[1])
      stop = prefetch[1] + prefetch[2]
    end
    assert.is_true (stop > 125 * MiB and stop <= 150 * MiB)
  end)

  it ("fetches nothing for random reads, and nothing when nobody reads", function ()
    local events, place = {}, 1
    for i = 1, 500 do
      place = (place * 1103515245 + 12345) % 2147483648
      events[i] = { at = i * 0.01, read = { place, 4 * KiB } }
    end
    local result = testing.run { policy = "readahead", size = 1 << 32, events = events }
    assert.same ({}, result.prefetches)
    assert.is_true (result.waits <= 502)
    assert.same ({}, testing.run { policy = "readahead", size = 1 << 30 }.prefetches)
  end)

  it ("keeps to its window", function ()
    local result = sequential (0, 400, 256 * KiB, { args = { window = "128K" } })
    for i, prefetch in ipairs (result.prefetches) do
      local reads = math.floor ((result.issued[i] - 1) / 0.02 + 0.001) + 1
      assert.is_true (prefetch[1] + prefetch[2] <= reads * 256 * KiB + 192 * KiB)
    end
    assert.error_matches (function ()
      sequential (0, 1, 1, { args = { window = "1K" } })
    end, "scan%-arg%-window: a size like 64K or 2M of at least 65536 bytes expected")
  end)

  it ("is 32M ahead at most if nothing is said", function ()
    local events = {}
    for i = 0, 255 do
      events[i + 1] = { after = 0, read = { i * 256 * KiB, 256 * KiB } }
    end
    events[257] = { at = 600, close = true }
    local last = 0
    for _, prefetch in ipairs (sequential (0, 0, 1, { events = events }).prefetches) do
      last = math.max (last, prefetch[1] + prefetch[2])
    end
    assert.equal ((64 + 32) * MiB, last)
  end)

  it ("stops at the end of the disk", function ()
    local result = sequential ((1 << 30) - 2 * MiB, 8, 256 * KiB)
    local last = result.prefetches[#result.prefetches]
    assert.equal (1 << 30, last[1] + last[2])
  end)
end)
