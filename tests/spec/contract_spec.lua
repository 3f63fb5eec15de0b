-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/contract.lua: policies with one fault each do not pass it.

-- These do for what is not about memory.
local FEW_READS = "{ reads = 1000 }"

local LUA_PATH = require "scan.world".LUA_PATH

local directory

setup (function ()
  directory = os.tmpname ()
  os.remove (directory)
  assert (os.execute ("mkdir " .. directory))
end)

teardown (function () os.execute ("rm -r " .. directory) end)

local function write (path, text)
  local handle = assert (io.open (path, "w"))
  handle:write (text)
  handle:close ()
end

-- The names of the tests that a policy fails, in a busted of its own.
local function failures (code, options)
  local policy, spec = directory .. "/policy.lua", directory .. "/policy_spec.lua"
  write (policy, code)
  write (spec, ("require 'scan.contract' (%q, %s)"):format (policy, options or FEW_READS))
  local handle = io.popen ("LUA_PATH='" .. LUA_PATH .. ";;' busted --lua=lua5.4 -o TAP "
                           .. spec .. " 2>&1")
  local names, number = {}, 0
  for line in handle:lines () do
    if line:match ("^n?o?t? ?ok ") then number = number + 1 end
    names[#names + 1] = line:match ("^not ok %d+ %- contract of %S+ (.*)")
  end
  handle:close ()
  assert.is_true (number >= 10, "the contract has not run")
  table.sort (names)
  return names
end

local function upwards (before, each)
  return ([[
    %s
    return function (disk)
      for offset = 0, disk.size - 1, disk.block do
        %s
        disk:prefetch (offset)
      end
    end]]):format (before or "", each or "")
end

describe ("scan.contract", function ()
  it ("lets a good policy pass", function ()
    assert.same ({}, failures (upwards ()))
  end)

  it ("finds one that leaves the disk", function ()
    local names = failures [[
      return function (disk)
        for i = 0, disk.blocks do disk:prefetch (i * disk.block) end
      end]]
    assert.matches ("stays inside a disk of 2.5 blocks", table.concat (names, "\n"))
  end)

  it ("finds one that prefetches for ever, unless it is meant to", function ()
    local code = "return function (disk) while true do disk:prefetch (0) end end"
    assert.matches ("ends, or waits", table.concat (failures (code), "\n"))
    assert.same ({}, failures (code, "{ endless = true, reads = 1000 }"))
  end)

  it ("finds one that keeps all reads", function ()
    assert.same ({ "keeps its memory bounded over 100000 reads" }, failures ([[
      return function (disk)
        local all = {}
        repeat
          for offset in disk:reads () do all[#all + 1] = { offset } end
          disk:wait ()
        until disk:closed ()
      end]], "{}"))
  end)

  it ("finds scans that share state, unless they are meant to", function ()
    local code = upwards ("local done = {}", "if done[offset] then return end "
                          .. "done[offset] = true")
    assert.same ({ "serves a client after another one",
                   "two scans of one export are independent" }, failures (code))
    assert.same ({}, failures (code, "{ shared_state = true, reads = 1000 }"))
  end)

  it ("finds one that keeps the disk of the first client", function ()
    assert.same ({ "serves a client after another one",
                   "two scans of one export are independent" },
                 failures (upwards ("local first", "first = first or disk "
                                    .. "for _ in first:reads () do end")))
    -- Of a scan that has ended, this is all that may be asked.
    assert.same ({ "serves a client after another one" },
                 failures (upwards ("local first", "first = first or disk "
                                    .. "if first:closed () then return end")))
  end)

  it ("finds globals", function ()
    assert.same ({ "makes no globals" }, failures (upwards (nil, "last = offset")))
  end)

  it ("finds one that can't bear failures", function ()
    assert.same ({ "carries on when prefetches fail" }, failures (upwards (nil, [[
      for _, _, errno in disk:failures () do error (errno) end]])))
  end)

  it ("finds one that errs once the client has gone", function ()
    local names = failures (upwards (nil, "assert (not disk:closed ())"))
    local list = table.concat (names, "\n")
    assert.matches ("ends when the client goes after 0", list)
    assert.matches ("ends when the client goes after 7", list)
  end)
end)
