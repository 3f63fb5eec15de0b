-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy run.
--
-- @module scan.command.run

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local dry_run = require "scan.dry_run"
local hints = require "scan.hints"
local sizes = require "scan.sizes"
local testing = require "scan.testing"
local units = require "scan.units"

local M = {}

local MiB = 1024 * 1024
local DEFAULT_SIZE_BYTES = 64 * MiB

M.about = "Print the prefetches of a policy, one a line."

M.epilog = [[
Examples:
  scan-policy run reverse --size 10M
  scan-policy run mine.lua --read 3:16M:4K --close 8
    the client reads 4K at 16M while the 3rd prefetch is in flight, and goes
    during the 8th
  scan-policy run mine.lua --read 0s:0:64K --read 20ms:64K:64K --close 5s
    the same by the clock; each prefetch takes 10 ms
  scan-policy run metadata --image disk.img]]

-- When something happens: a number of prefetches, or a time if it has a unit.
local function moment (word)
  local after = math.tointeger (tonumber (word:match ("^%d+$")))
  if after then return { after = after } end
  local at = word:match ("%a$") and units.parse_seconds (word)
  return at and { at = at }
end

-- N:OFFSET:COUNT or TIME:OFFSET:COUNT
local function client_read (word)
  local when, offset, length = word:match ("^([^:]+):([^:]+):([^:]+)$")
  local event = when and moment (when)
  offset = offset and sizes.parse (offset)
  length = length and sizes.parse (length)
  if event and offset and length and length > 0 then
    event.read = { offset, length }
    return event
  end
  return nil, ("--read: N:OFFSET:COUNT like 3:16M:4K, or TIME:OFFSET:COUNT like "
               .. "20ms:16M:4K, expected, got '%s'"):format (word)
end

local function client_close (word)
  local event = moment (word)
  if not event then
    return nil, ("--close: a number of prefetches like 8, or a time like 1.5s, "
                 .. "expected, got '%s'"):format (word)
  end
  event.close = true
  return event
end

function M.add_options (command)
  command:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  inputs.add_policy_options (command)
  inputs.add_disk_options (command)
  inputs.add_trace_option (command, "?")
  command:option ("--read", "A client read while the N-th prefetch is in flight (0:"
                  .. " before the first), or at a time like 20ms. May be given several"
                  .. " times.")
    :argname ("(N|TIME):OFFSET:COUNT"):convert (client_read):count ("*")
  command:option ("--close", "The client goes while the N-th prefetch is in flight, or at"
                  .. " a time like 5s.")
    :argname ("N|TIME"):convert (client_close)
end

function M.run (options)
  local given = inputs.policy (options.policy, options)
  local loaded = options.trace and inputs.trace (options.trace)
  for name, value in pairs (inputs.disk (options, loaded)) do given[name] = value end
  given.size = given.size or DEFAULT_SIZE_BYTES
  given.events = loaded and dry_run.events_of (loaded.reads) or {}
  for _, event in ipairs (options.read) do
    local offset, count = event.read[1], event.read[2]
    if count > given.size - offset then
      inputs.refuse (("--read: a range inside the disk (size %d) expected, got %d:%d")
                       :format (given.size, offset, count))
    end
    table.insert (given.events, event)
  end
  if options.close then table.insert (given.events, options.close) end
  local result = inputs.guarded (testing.run, given)
  local rows = { { "#", "offset", "count", "offset in blocks" } }
  local block = options.block or 2 * MiB
  for i, prefetch in ipairs (result.prefetches) do
    rows[i + 1] = { ("%d"):format (i), ("%d"):format (prefetch[1]),
                    ("%d"):format (prefetch[2]), ("%g"):format (prefetch[1] / block) }
  end
  output.print_table (rows, 0)
  if result.error then inputs.refuse (hints.explain (result.error)) end
  local ending = result.finished and "the policy has finished"
    or options.close and "the client has gone"
    or "the policy waits for a client that does nothing more"
  output.write (("%d prefetches; %s\n"):format (#result.prefetches, ending))
  return 0
end

return M
