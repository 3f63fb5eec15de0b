-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/ranges.lua

local ranges = require "scan.ranges"

local function numbers ()
  local place = 7
  return function (most)
    place = (place * 1103515245 + 12345) % 2147483648
    return place // 2048 % most
  end
end

-- All ranges, in order, none touching the next.
local function check_order (set)
  local last
  for _, chunk in ipairs (set.chunks) do
    for _, range in ipairs (chunk) do
      assert.is_true (range.first < range.after)
      assert.is_true (not last or last < range.first)
      last = range.after
    end
  end
end

describe ("scan.ranges", function ()
  -- Few long ranges that grow together, and so many short ones that they are in
  -- several chunks.
  for _, case in ipairs { { 300, 200, 12 }, { 4000, 20000, 4 }, { 6000, 9000, 3 } } do
    local number, space, longest = table.unpack (case)

    it (("agrees with a plain list of %d bytes"):format (space), function ()
      local random = numbers ()
      local set, bytes = ranges.new (), {}
      for n = 1, number do
        local first = random (space)
        local after = first + random (longest)
        set:add (first, after)
        for i = first, after - 1 do bytes[i] = true end
        local from, to = random (space // 2), space // 2 + random (space // 2)
        if n % 100 == 0 or number < 1000 then
          local missing, expected = {}, {}
          for _, gap in ipairs (set:missing (from, to)) do
            assert.is_true (gap.first < gap.after)
            for i = gap.first, gap.after - 1 do missing[#missing + 1] = i end
          end
          for i = from, to - 1 do
            if not bytes[i] then expected[#expected + 1] = i end
          end
          assert.same (expected, missing)
        end
      end
      check_order (set)
      local count = 0
      for _ in pairs (bytes) do count = count + 1 end
      assert.equal (count, set:bytes ())
      local half = ranges.new ()
      half:add (0, space // 2)
      local outside = 0
      for i in pairs (bytes) do outside = outside + (i >= space // 2 and 1 or 0) end
      assert.equal (outside, set:bytes_without (half))
      set:add (0, space + longest)
      assert.equal (space + longest, set:bytes ())
    end)
  end

  it ("does no more for each of many ranges than for each of few", function ()
    local function instructions (number)
      local set, random, count = ranges.new (), numbers (), 0
      for _ = 1, number do set:add (2 * random (1 << 20), 2 * random (1) + 1) end
      local function tick () count = count + 1 end
      debug.sethook (tick, "", 1)
      for _ = 1, 100 do
        local first = 2 * random (1 << 20)
        set:add (first, first + 1)
      end
      debug.sethook ()
      return count
    end
    -- Twice the searches by halves, at most.
    assert.is_true (instructions (64000) < 2 * instructions (1000))
  end)
end)
