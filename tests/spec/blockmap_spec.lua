-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- The set of blocks: against a plain table, and its bounds.

local blockmap = require "scan.blockmap"

-- A generator of our own, so that every run is the same.
local function numbers (seed)
  local state = seed
  return function (below)
    state = (state * 6364136223846793005 + 1442695040888963407)
    return (state >> 33) % below
  end
end

local function words_in (map)
  local n = 0
  for _, words in ipairs (map.levels) do
    for _ in pairs (words) do n = n + 1 end
  end
  return n
end

local function has (map, unit) return map:next_missing (unit) ~= unit end

describe ("blockmap", function ()
  it ("is the same as a table of booleans", function ()
    local random = numbers (1)
    for _ = 1, 60 do
      local units = 1 + random (6000)
      local map, plain = blockmap.new (units), {}
      for _ = 1, 80 do
        local first = random (units)
        local what = random (4)
        if what < 2 then
          local stop = math.min (units, first + random (what == 0 and units or 70))
          map:add (first, stop)
          for unit = first, stop - 1 do plain[unit] = true end
        elseif what == 2 then
          map:add (first)
          plain[first] = true
        else
          local missing = first
          while missing < units and plain[missing] do missing = missing + 1 end
          assert.equal (missing < units and missing or nil, map:next_missing (first))
          local stop = math.min (units, first + 500)
          local added = first
          while added < stop and not plain[added] do added = added + 1 end
          assert.equal (added, map:next_added (first, stop))
          assert.equal (plain[first] == true, has (map, first))
        end
      end
      assert.equal (words_in (map), map.used)
    end
  end)

  it ("keeps a run of any length in a few words", function ()
    local map = blockmap.new (1 << 54)
    map:add (3, 1 << 53)
    map:add (0, 3)
    assert.equal (1 << 53, map:next_missing (0))
    assert.is_true (map.used < 10)
    for unit = 1 << 53, (1 << 53) + 100000 do map:add (unit) end
    assert.is_true (map.used < 10)
  end)

  it ("forgets over its bound, and says so", function ()
    local map = blockmap.new (1 << 40, 100)
    local kept = 0
    for i = 0, 999 do kept = kept + (map:add (i * 1000) and 1 or 0) end
    assert.equal (100, kept)
    assert.equal (100, words_in (map))
    assert.is_true (has (map, 0))
    assert.is_false (has (map, 999000))
    assert.is_true (map:add (0, 64 * 5000), "what makes room is kept")
  end)

  it ("cuts a range at its end", function ()
    local map = blockmap.new (10)
    map:add (8, 20)
    assert.is_nil (map:next_missing (8))
    assert.equal (0, map:next_missing (0))
  end)
end)
