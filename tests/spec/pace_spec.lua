-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/pace.lua says what filter/scan/pace.c says: tests/unit/test-pace-events.c
-- goes through the same events.

local pace = require "scan.pace"

describe ("scan.pace", function ()
  it ("is the filter's", function ()
    local p, live, next_id
    local number, transfers = 0, 0
    for line in io.lines ("tests/unit/pace.events") do
      number = number + 1
      local what, rest = line:match ("^(%a+) (.*)$")
      local values = {}
      for word in (rest or ""):gmatch ("%S+") do values[#values + 1] = tonumber (word) end
      if what == "init" then
        p, live, next_id = pace.new (values[1]), {}, 1
      elseif what == "take" then
        local begun, ended, reads, hits, now, count = table.unpack (values)
        local transfer = p:take ({ begun = begun, ended = ended, reads = reads,
                                   hits = hits, hit_bytes = hits * 4096 }, now / 1e9)
        assert.equal (count, transfer and transfer.count or 0, number)
        if transfer then
          live[next_id], next_id = transfer, next_id + 1
          transfers = transfers + 1
        end
      elseif what == "begin" then
        local id, begun, ended, reads, now = table.unpack (values)
        p:begin (live[id], { begun = begun, ended = ended, reads = reads }, now / 1e9)
      elseif what == "end" then
        local id, count, now, piece, level = table.unpack (values)
        p:done (live[id], count, now / 1e9)
        live[id] = nil
        assert.equal (piece, p.piece, number)
        assert.is_true (math.abs (level - p.level) <= 1e-6 * level + 1, number)
      end
    end
    assert.is_true (transfers > 1000)
  end)
end)
