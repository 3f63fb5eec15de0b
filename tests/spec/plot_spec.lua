-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/plot.lua and units.lua: the picture, and numbers as people read them.

local plot = require "scan.plot"
local simulator = require "scan.simulator"
local units = require "scan.units"

local MiB = 1024 * 1024

local function picture (policy, options)
  local reads = {}
  for i = 1, 20 do
    reads[i] = { offset = i * 7 % 32 * MiB, count = 65536, idle = 0.005 }
  end
  local result = simulator.run { policy = policy, traces = { reads }, size = 32 * MiB,
                                 record = true }
  return plot.svg (result, options), result
end

local function count (text, pattern)
  return select (2, text:gsub (pattern, ""))
end

describe ("scan.plot", function ()
  it ("is well-formed XML", function ()
    local svg = picture ("clock", { title = "a < b & \"c\"" })
    local stack = {}
    for slash, name, rest in svg:gmatch ("<(/?)(%a+)([^>]*)>") do
      if slash == "/" then
        assert.equal (name, table.remove (stack))
      elseif not rest:match ("/$") then
        stack[#stack + 1] = name
      end
    end
    assert.same ({}, stack)
    assert.equal (0, count (svg, "&[^alqg]"))
    assert.matches ("a &lt; b &amp; &quot;c&quot;", svg)
  end)

  it ("says what is on the axes, with units", function ()
    local svg = picture ("clock")
    assert.matches (">time %(ms%)<", svg)
    assert.matches (">offset on the disk %(MiB%)<", svg)
    for _, tick in ipairs { "0", "8", "16", "32" } do
      assert.matches (">" .. tick .. "<", svg)
    end
  end)

  it ("draws each prefetch and explains each kind of read with its number", function ()
    local svg, result = picture ("clock", { without_seconds = 1.5 })
    assert.matches ("prefetch %(" .. #result.timeline .. "%)", svg)
    assert.matches ("hit: was in the cache %(" .. result.hits .. "%)", svg)
    assert.matches ("late: waited for a prefetch %(" .. result.late .. "%)", svg)
    assert.matches ("miss: went to the source %(" .. result.misses .. "%)", svg)
    assert.matches ("without prefetch 1.5 s", svg)
    local drawn = svg:match ("<g fill=\"#c3c9d1\">(.-)</g>")
    assert.equal (#result.timeline, count (drawn, "<rect"))
  end)

  it ("colours a read by what became of it", function ()
    local result = { seconds = 1, ideal_seconds = 1, size = 100, prefetched_bytes = 0,
                     wasted_bytes = 0, hits = 1, late = 1, misses = 1, timeline = {},
                     reads = {
                       { offset = 0, count = 1, seconds = 0, done = 0, kind = "hit" },
                       { offset = 5, count = 1, seconds = 0, done = 0, kind = "late" },
                       { offset = 9, count = 1, seconds = 0, done = 0, kind = "miss" },
                     } }
    local svg = plot.svg (result)
    -- Once in the legend, once in the picture.
    for _, color in ipairs { "#0072b2", "#e69f00", "#d43a2a" } do
      assert.equal (2, count (svg, color))
    end
    result.reads[3].kind = "hit"
    svg = plot.svg (result)
    assert.equal (3, count (svg, "#0072b2"))
    assert.equal (1, count (svg, "#d43a2a"))
  end)

  it ("does not grow with reads that fall on the same spot", function ()
    local reads = {}
    for i = 1, 5000 do
      reads[i] = { offset = 0, count = 1, seconds = 0.5, done = 0.5, kind = "hit" }
    end
    local svg = plot.svg { seconds = 1, ideal_seconds = 1, size = 100, hits = 5000,
                           late = 0, misses = 0, prefetched_bytes = 0, wasted_bytes = 0,
                           timeline = {}, reads = reads }
    assert.is_true (#svg < 10000)
  end)

  it ("draws a run of no time and no disk", function ()
    assert.is_string (plot.svg { seconds = 0, ideal_seconds = 0, size = 0, hits = 0,
                                 late = 0, misses = 0, prefetched_bytes = 0,
                                 wasted_bytes = 0, timeline = {}, reads = {} })
  end)
end)

describe ("scan.units", function ()
  it ("writes bytes and seconds", function ()
    local texts = { [0] = "0 bytes", [1023] = "1023 bytes", [1536] = "1.5 KiB",
                    [2 * MiB] = "2 MiB", [2^40] = "1 TiB" }
    for bytes, text in pairs (texts) do assert.equal (text, units.bytes (bytes)) end
    texts = { [0] = "0 s", [1.25] = "1.25 s", [0.02] = "20 ms", [20e-6] = "20 us",
              [12345] = "12345 s" }
    for seconds, text in pairs (texts) do
      assert.equal (text, units.seconds (seconds))
    end
  end)

  it ("reads times", function ()
    local times = { ["2"] = 2, ["0.5"] = 0.5, ["20ms"] = 0.02, ["1.5s"] = 1.5 }
    for text, seconds in pairs (times) do
      assert.equal (seconds, units.parse_seconds (text))
    end
    for _, text in ipairs { "", "s", "1h", "-1", "." } do
      assert.is_nil (units.parse_seconds (text), text)
    end
  end)
end)
