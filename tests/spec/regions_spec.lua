-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- policies/regions.lua

local testing = require "scan.testing"

local KiB, MiB = 1024, 1024 * 1024

local function run (text, more)
  local options = {
    policy = "regions", size = 4 * MiB, block = 64 * KiB,
    files = { regions = text }, warn = function () end,
  }
  for name, value in pairs (more or {}) do options[name] = value end
  local result = testing.run (options)
  assert.is_nil (result.error)
  assert.is_true (result.finished)
  return result.prefetches
end

describe ("regions", function ()
  it ("goes by priority, and by place in the file", function ()
    assert.same ({ { 5 * 65536, 512 }, { 2 * 65536, 65536 }, { 65536, 10 }, { 0, 1024 },
                   { 3 * 65536, 1 } },
                 run (("%d 64K\n%d 10 0\n0 1K\n\n# none\n%d 1 -1.5\n"
                       .. "0x50000 512 7 # first\n")
                        :format (2 * 65536, 65536, 3 * 65536)))
  end)

  it ("takes sizes with a suffix, in either case", function ()
    assert.same ({ { MiB, 2 * KiB }, { 2 * MiB, 4 * KiB } }, run ("1M 2k\n2m 4K"))
  end)

  it ("fetches a block at a time, and cuts at the end of the disk", function ()
    local prefetches = run ("3968K 1T\n5M 4K\n8191T 1T\n")
    assert.same ({ { 3968 * KiB, 65536 }, { 4032 * KiB, 65536 } }, prefetches)
  end)

  it ("joins lines that go on where the one before ends", function ()
    assert.same ({ { 0, 12 * KiB }, { MiB, 4 * KiB }, { 12 * KiB, 4 * KiB } },
                 run ("0 4K\n4K 8K\n1M 4K\n12K 4K\n"))
  end)

  it ("asks once for what is named twice", function ()
    assert.same ({ { 65536, 65536 }, { 0, 65536 } }, run ("64K 64K 1\n0 128K"))
  end)

  it ("goes on with another policy, without what is done", function ()
    local more = { size = 192 * KiB, args = { ["then"] = "reverse" } }
    assert.same ({ { 65536, 65536 }, { 131072, 65536 }, { 0, 65536 } },
                 run ("64K 64K", more))
  end)

  it ("hands arguments on", function ()
    local more = { args = { ["then"] = "shuffle", ["then.seed"] = "x" } }
    assert.error_matches (function () run ("0 1", more) end,
                          "scan%-arg%-seed: a whole number expected")
    assert.error_matches (function () run ("0 1", { args = { ["then.seed"] = "1" } }) end,
                          "scan%-arg%-then.seed: scan%-arg%-then names no policy")
  end)

  it ("says once if the list is of another image", function ()
    local lines = {}
    run ("0 4K\n3M 2M\n6M 1\n7M 1\n", { warn = function (line)
      lines[#lines + 1] = line
    end })
    assert.same ({ "scan-file-regions: of 4 ranges, 2 lie beyond the end of the disk "
                   .. "(4194304 bytes), and 1 in part; is this the list of another "
                   .. "image?" }, lines)
    run ("0 4M\n", { warn = error })
  end)

  it ("looks through a long list in more than one decision", function ()
    local list, line = {}, nil
    for i = 1, 200000 do list[i] = ("%d 1\n"):format (i * 8 * MiB) end
    local result = testing.run {
      policy = "regions", size = 4 * MiB, files = { regions = table.concat (list) },
      warn = function (text) line = text end,
    }
    assert.equal (3, result.requests)
    assert.matches ("of 200000 ranges, 200000 lie beyond", line)
  end)

  it ("is content with an empty file", function ()
    assert.same ({}, run (""))
  end)

  for line, expected in pairs {
    ["0"] = "OFFSET COUNT %[PRIORITY%]",
    ["0 1 2 3"] = "OFFSET COUNT %[PRIORITY%]",
    ["x 1"] = "an offset like 4096 or 2M",
    ["-1 1"] = "an offset like 4096 or 2M",
    ["1.5 1"] = "an offset like 4096 or 2M",
    ["9999999T 1"] = "an offset like 4096 or 2M",
    ["7E 2E"] = "a count like 4096 or 2M, at least 1",
    ["1e400 1"] = "an offset like 4096 or 2M",
    ["0 0"] = "a count like 4096 or 2M, at least 1",
    ["0 -4K"] = "a count like 4096 or 2M, at least 1",
    ["0 M"] = "a count like 4096 or 2M, at least 1",
    ["0 1 high"] = "a number as priority",
  } do
    it (("refuses '%s'"):format (line), function ()
      assert.error_matches (function () run ("# a list\n0 1\n" .. line .. "\n") end,
                            "scan%-file%-regions: line 3: " .. expected
                              .. " expected, got '" .. line:gsub ("%p", "%%%0") .. "'")
    end)
  end

  it ("needs its file, and a policy that exists", function ()
    assert.error_matches (function ()
      testing.run { policy = "regions", size = 1 }
    end, "scan%-file%-regions")
    assert.error_matches (function () run ("", { args = { ["then"] = "nope" } }) end,
                          "scan%-arg%-then: there is no file 'nope' and no built%-in")
  end)
end)
