-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Trying a policy on several clients and disks, and saying what is wrong.
--
-- The contract (scan.contract) is stricter and is for tests; this is for a person
-- who has just written a policy and wants to know how it does.
--
-- @module scan.dry_run

local ranges = require "scan.ranges"
local testing = require "scan.testing"

local M = {}

local MiB = 1024 * 1024
local BLOCK_BYTES = 2 * MiB
local SIZE_BYTES = 32 * BLOCK_BYTES + 512

-- What people write, and what they should write instead.
local HINTS = {
  { "global 'io'", "policies have no files; read one with scan.open (NAME), "
    .. "given as scan-file-NAME=FILE" },
  { "global 'package'", "policies have no package; require finds scan.* and files "
    .. "beside the policy" },
  { "global 'debug'", "policies have no debug library" },
  { "global 'dofile'", "use require for a file beside the policy" },
  { "global 'loadfile'", "use require for a file beside the policy" },
  { "method 'match'", "policies have no string patterns; use scan.words and "
    .. "string.find, which looks for plain text" },
  { "method 'gmatch'", "policies have no string patterns; use scan.words" },
  { "method 'gsub'", "policies have no string patterns; use string.find and sub" },
  { "field 'match'", "policies have no string patterns; use scan.words and "
    .. "string.find, which looks for plain text" },
  { "field 'gmatch'", "policies have no string patterns; use scan.words" },
  { "field 'gsub'", "policies have no string patterns; use string.find and sub" },
  { "field 'execute'", "policies can't run commands" },
  { "is outside the disk", "compare with disk.size first; the last block begins at "
    .. "(disk.blocks - 1) * disk.block" },
  { "attempt to yield from outside a coroutine", "disk:prefetch and its like are for "
    .. "the function that the policy returns, not for the chunk that returns it" },
  { "without coming back", "a loop should prefetch, wait or return; "
    .. "disk:wait () comes back when the client reads" },
  { "field 'driver'", "call the disk's methods with a colon: disk:prefetch (offset)" },
  { "offset should be a whole number of bytes, got nil", "is there a colon, as in "
    .. "disk:prefetch (offset)?" },
}

--- Add what a policy's author should know to an error message.
-- @tparam string message
-- @treturn string
function M.explain (message)
  for _, hint in ipairs (HINTS) do
    if message:find (hint[1], 1, true) then
      return message .. "\nhint: " .. hint[2]
    end
  end
  return message
end

local function every_second_read ()
  local events = {}
  for i = 1, 12 do
    events[i] = { after = i, read = { (i * 5 % 32) * BLOCK_BYTES, 4096 } }
  end
  events[#events + 1] = { at = 600, close = true }
  return events
end

-- Name, and what testing.run gets besides the policy.
local CASES = {
  { "a client that reads nothing", {} },
  { "a client that reads here and there", { events = every_second_read () } },
  { "a client that reads the last sector first", { events = {
    { after = 0, read = { SIZE_BYTES - 512, 512 } }, { at = 600, close = true },
  } } },
  { "a client that goes at once", { events = { { after = 1, close = true } } } },
  { "a disk that is half holes", { holes = { { 0, SIZE_BYTES // 2 } } } },
  { "a disk smaller than a block", { size = 512 } },
  { "prefetches that fail", { fail = function () return "EIO" end } },
  { "8 prefetches at once", { threads = 8 } },
}

-- Prefetches after which the client of an endless policy goes.
local ENDLESS_PREFETCHES = 100

local function describe_case (result, size, endless, goes)
  local set, again = ranges.new (), 0
  for _, prefetch in ipairs (result.prefetches) do
    local first, after = prefetch[1], prefetch[1] + prefetch[2]
    if #set:missing (first, after) == 0 then again = again + 1 end
    set:add (first, after)
  end
  local number = #result.prefetches
  local text = ("%d %s, %.0f %% of the disk")
    :format (number, number == 1 and "prefetch" or "prefetches",
             100 * set:bytes () / size)
  if endless then
    text = text .. "; it goes on for as long as the client stays"
  elseif again > 0 then
    text = text .. (", %d of them of what had been prefetched already"):format (again)
  end
  if not endless and not goes and not result.finished then
    text = text .. "; then it waits for the client"
  end
  return text
end

-- Returns whether it went well, and what to say.
local function run_case (policy, extra, warn)
  local options = { policy = policy.policy, args = policy.args, files = policy.files,
                    print = function () end, warn = warn, steps = 10000,
                    size = SIZE_BYTES, block = BLOCK_BYTES }
  for name, value in pairs (extra) do options[name] = value end
  local goes = extra.events and extra.events[1].close
  options.events = options.events or { { at = 600, close = true } }
  local ok, result = pcall (testing.run, options)
  local endless = not ok and tostring (result):find ("gave up after", 1, true)
  if endless then
    table.insert (options.events, { after = ENDLESS_PREFETCHES, close = true })
    ok, result = pcall (testing.run, options)
    table.remove (options.events)
  end
  if not ok then return false, M.explain (tostring (result)) end
  if result.error then return false, M.explain (result.error) end
  return true, describe_case (result, options.size, endless, goes)
end

--- Try a policy.
-- @tparam table policy options for `world.load`: `policy`, `args`, `files`
-- @treturn table report: `ok`, and `lines` to print
function M.check (policy)
  local warnings = {}
  local function warn (message) warnings[#warnings + 1] = message end
  local function ignore () end
  local ok, loaded = pcall (testing.world, {
    policy = policy.policy, args = policy.args, files = policy.files,
    print = ignore, warn = ignore,
  })
  if not ok then
    local message = M.explain (tostring (loaded))
    return { ok = false, lines = { "FAIL  loading it: " .. message } }
  end
  local report = { ok = true, lines = { "ok    loading it" } }
  local failure
  for i, case in ipairs (CASES) do
    -- One of them is enough to know what it warns of.
    local good, text = run_case (policy, case[2], i == 1 and warn or ignore)
    report.ok = report.ok and good
    if good then
      table.insert (report.lines, "ok    " .. case[1] .. ": " .. text)
    else
      if text == failure then text = "the same" else failure = text end
      table.insert (report.lines, "FAIL  " .. case[1] .. ": " .. text)
    end
  end
  for _, message in ipairs (warnings) do
    table.insert (report.lines, "note  it warns: " .. message)
  end
  local globals = loaded:new_globals ()
  if #globals > 0 then
    table.insert (report.lines, "note  it makes globals, which all its scans share: "
                  .. table.concat (globals, ", ") .. "; is a 'local' missing?")
  end
  return report
end

return M
