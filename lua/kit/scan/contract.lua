-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What every policy should do, as a busted spec.
--
--     require "scan.contract" ("my-policy.lua")
--     require "scan.contract" ("my-policy.lua", { args = { from = "4M" } })
--
-- Called in a spec, at the top or inside a `describe`.
--
-- @module scan.contract

-- A spec gets these as globals, a module that it requires does not.
local busted = require "busted"
local assert = require "luassert"
local testing = require "scan.testing"

local describe, it = busted.describe, busted.it

local KiB, MiB = 1024, 1024 * 1024
local BLOCK_BYTES = 64 * KiB

-- Reads for the test of memory, and how much memory may be left over.
local DEFAULT_READS = 100000
local SLACK_KIBIBYTES = 512

local READ_BYTES = 4 * KiB

-- A client's way over the disk, the same every time: a linear congruence.  No read
-- goes beyond the end, as no client's can.
local function scattered_reads (number, size)
  local reads, place = {}, 1
  local count = math.min (READ_BYTES, size)
  for i = 1, number do
    place = (place * 1103515245 + 12345) % 2147483648
    reads[i] = { place % (size - count + 1), count }
  end
  return reads
end

local function ignore () end

local function options_for (policy, options, more)
  local all = {
    policy = policy, args = options.args, files = options.files,
    block = BLOCK_BYTES, contents = options.contents, print = ignore, warn = ignore,
  }
  for name, value in pairs (more) do all[name] = value end
  return all
end

local function check_inside (prefetches, size)
  for i, prefetch in ipairs (prefetches) do
    local offset, count = prefetch[1], prefetch[2]
    assert (math.type (offset) == "integer" and math.type (count) == "integer"
            and offset >= 0 and count >= 1 and offset + count <= size
            and count <= BLOCK_BYTES,
            ("prefetch %d (offset %s, count %s) is not inside the disk of %d bytes")
              :format (i, offset, count, size))
  end
end

local function check_no_error (result)
  if result.error then error (result.error, 0) end
end

-- A client that reads here and there, then stays for a while and goes.
local function busy_client (size)
  local events = {}
  for i, read in ipairs (scattered_reads (40, size)) do
    events[i] = { at = i * 0.004, read = read, seconds = 0.003 }
  end
  events[#events + 1] = { at = 60, close = true }
  return events
end

--- Put a policy through the contract.
-- @tparam string policy a file or a built-in's name
-- @tparam[opt] table options
--
-- - `args`, `files`, `contents`: as for `testing.run`
-- - `shared_state`: true if scans of one export share state on purpose (like
--   `clock`); then two scans are not compared
-- - `endless`: true if the policy goes on for as long as the client stays (like
--   `forever`)
-- - `reads`: over which memory has to stay bounded (100000)
return function (policy, options)
  options = options or {}
  local number_of_reads = options.reads or DEFAULT_READS

  local function run (more)
    local result = testing.run (options_for (policy, options, more))
    check_no_error (result)
    return result
  end

  describe ("contract of " .. policy .. ":", function ()
    for _, blocks in ipairs { 0.01, 1, 2.5, 33 } do
      local size = math.floor (blocks * BLOCK_BYTES)

      it (("stays inside a disk of %g blocks"):format (blocks), function ()
        local result = run { size = size, events = busy_client (size) }
        check_inside (result.prefetches, size)

        result = run { size = size, threads = 4, events = { { at = 6, close = true } } }
        check_inside (result.prefetches, size)
      end)
    end

    it ("leaves an empty disk alone", function ()
      assert.same ({}, run { size = 0 }.prefetches)
    end)

    if not options.endless then
      it ("ends, or waits without asking for more", function ()
        local size = 33 * BLOCK_BYTES
        local result = run { size = size, events = { { at = 600, close = true } } }
        -- Each block may be asked for again after a failure, but here none fails.
        assert.is_true (#result.prefetches <= 2 * 33 + 2,
                        "prefetched " .. #result.prefetches .. " times on 33 blocks")
      end)
    end

    for _, after in ipairs { 0, 1, 7 } do
      it (("ends when the client goes after %d prefetches"):format (after), function ()
        local result = run {
          size = 33 * BLOCK_BYTES,
          -- A policy that prefetches less is waiting, or has ended, by then.
          events = { { after = after, close = true }, { at = 60, close = true } },
        }
        assert.is_true (result.finished or result.closed)
      end)
    end

    it ("carries on when prefetches fail", function ()
      run {
        size = 33 * BLOCK_BYTES, events = { { at = 600, close = true } },
        fail = function (offset)
          return offset % (3 * BLOCK_BYTES) == 0 and "EIO" or nil
        end,
      }
    end)

    it (("keeps its memory bounded over %d reads"):format (number_of_reads), function ()
      local size = 256 * MiB
      local scan = testing.scan (options_for (policy, options, {
        size = size, steps = math.huge,
      }))
      local reads = scattered_reads (number_of_reads, size)
      local function go_on (first, last)
        for i = first, last do
          scan:read (reads[i][1], reads[i][2])
          if i % 16 == 0 then
            scan:pass (0.05)
            -- What the test itself keeps does not count.
            scan.prefetches, scan.issued = {}, {}
          end
        end
        if scan.error then error (scan.error, 0) end
        collectgarbage ()
        collectgarbage ()
        return collectgarbage ("count")
      end
      -- The first half may fill tables whose size depends on the disk.
      local before = go_on (1, number_of_reads // 2)
      local after = go_on (number_of_reads // 2 + 1, number_of_reads)
      assert.is_true (after - before < SLACK_KIBIBYTES,
                      ("grew by %.0f KiB"):format (after - before))
    end)

    -- What a scan is given that shares a loaded policy with others.
    local function sharing (world)
      local events = { { at = 60, close = true } }
      if options.endless then events[1] = { after = 80, close = true } end
      -- What is there is known to all of them, on purpose; here each is to find a disk
      -- of which nothing is.
      world.known = nil
      return { size = 33 * BLOCK_BYTES, world = world, events = events }
    end
    local function loaded ()
      return testing.world (options_for (policy, options, {}))
    end

    it ("serves a client after another one", function ()
      local world = loaded ()
      local first, second = run (sharing (world)), run (sharing (world))
      if not options.shared_state then
        assert.same (first.prefetches, second.prefetches)
      end
    end)

    if not options.shared_state then
      it ("two scans of one export are independent", function ()
        local alone = run (sharing (loaded ()))

        -- Step by step in turn, so that state they share would show.
        local world = loaded ()
        local function scan ()
          return testing.scan (options_for (policy, options, sharing (world)))
        end
        local first, second = scan (), scan ()
        local a, b
        repeat a, b = first:step (), second:step () until not a and not b
        assert.same (alone.prefetches, first.prefetches)
        assert.same (alone.prefetches, second.prefetches)
      end)
    end

    it ("makes no globals", function ()
      local size = 33 * BLOCK_BYTES
      local world = loaded ()
      run { world = world, size = size, events = busy_client (size) }
      assert.same ({}, world:new_globals ())
    end)
  end)
end
