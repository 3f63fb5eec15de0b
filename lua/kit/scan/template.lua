-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What `scan-policy new` writes: a policy to start from, and its spec.
--
-- @module scan.template

local M = {}

--- The policy.  @NAME@ is replaced.
M.POLICY = [[
-- @NAME@: (say here in one sentence what it prefetches, and for whom).
--
-- (Say what the exact order is, what it costs, and when it loses.)

local arguments = require "scan.args"

-- The scan-arg-NAME=VALUE strings.  A misspelt or bad one is an error at start-up.
local args = ...
arguments.check_known (args, { "from" })
local from = arguments.size (args, "from", 0)

-- Called once for every scan.  Returning ends the scan.
return function (disk)
  local block = disk.block

  -- Where to go next.  A local here belongs to one scan; one above the function
  -- is shared by all connections of an export.
  local offset = from

  while offset < disk.size do
    -- After the client has gone there is this one last turn.
    if disk:closed () then return end

    -- What the client has read since we last looked: skip over it, but don't
    -- let a read far ahead carry us away.
    for read, count in disk:reads () do
      if read <= offset and offset < read + count then offset = read + count end
    end
    if offset >= disk.size then return end

    -- Returns when there is room for another one.
    disk:prefetch (offset)
    offset = offset + block
  end
end
]]

--- The spec.  @NAME@ and @PATH@ (the policy's file) are replaced.
M.SPEC = [[
-- Run with: busted --lua=/usr/bin/lua5.4 @NAME@_spec.lua

local testing = require "scan.testing"

local policy = "@PATH@"
local MiB = 1024 * 1024

-- What every policy should do: stay inside the disk, end, and so on.
require "scan.contract" (policy)

describe ("@NAME@", function ()
  it ("prefetches the whole disk, the last block cut short", function ()
    local result = testing.run { policy = policy, size = 5 * MiB, block = 2 * MiB }
    assert.is_nil (result.error)
    assert.is_true (result.finished)
    assert.same ({ { 0, 2 * MiB }, { 2 * MiB, 2 * MiB }, { 4 * MiB, MiB } },
                 result.prefetches)
  end)

  it ("skips what the client has just read", function ()
    local result = testing.run {
      policy = policy, size = 10 * MiB, block = 2 * MiB,
      events = { { after = 1, read = { 2 * MiB, 4 * MiB } } },
    }
    assert.same ({ 0, 6, 8 }, testing.offsets (result, MiB))
  end)

  it ("starts where it is told", function ()
    local result = testing.run {
      policy = policy, args = { from = "4M" }, size = 8 * MiB, block = 2 * MiB,
    }
    assert.same ({ 4, 6 }, testing.offsets (result, MiB))
  end)
end)
]]

return M
