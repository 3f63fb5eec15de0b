-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Trying a policy on several clients and disks, and saying what is wrong.
--
-- The contract (scan.contract) is stricter and is for tests; this is for a person
-- who has just written a policy and wants to know how it does.
--
-- @module scan.dry_run

local escape = require "scan.escape"
local hints = require "scan.hints"
local ranges = require "scan.ranges"
local testing = require "scan.testing"
local world = require "scan.world"

local M = {}

local KiB, MiB = 1024, 1024 * 1024
local BLOCK_BYTES = 2 * MiB
local BLOCKS = 32

-- -- the cases ----------------------------------------------------------------------

-- A client that reads here and there, while a policy is busy and while it waits.
local function scattered (disk)
  local events = {}
  if disk.size == 0 then return events end
  for i = 1, 12 do
    local offset = disk.size // BLOCKS * (i * 5 % BLOCKS) // 512 * 512
    events[i] = { at = i * 0.025, read = { offset, math.min (512, disk.size - offset) } }
  end
  return events
end

-- One that goes on in even steps, with pauses: 100 reads of 64K, or of less where the
-- disk is small.
local READS = 100

local function in_steps (disk, first, step)
  local events = {}
  local eighth = disk.size // (8 * READS) // 512 * 512
  local count = math.max (512, math.min (64 * KiB, eighth))
  for i = 0, READS - 1 do
    local offset = first + i * step * count
    if offset >= 0 and offset + count <= disk.size then
      events[#events + 1] = { at = i * 0.03, read = { offset, count }, seconds = 0.01 }
    end
  end
  return events
end

-- Name, and a function of the disk that gives what testing.run gets besides.
local CASES = {
  { "a client that reads nothing", function () return {} end },
  { "a client that reads here and there",
    function (disk) return { events = scattered (disk) } end },
  { "a client that reads upwards",
    function (disk) return { events = in_steps (disk, 0, 1) } end },
  { "a client that reads downwards",
    function (disk)
      return { events = in_steps (disk, disk.size // 8192 * 4096, -1) }
    end },
  { "a client that reads each fourth piece",
    function (disk) return { events = in_steps (disk, 0, 4) } end },
  { "a client that reads the last sector first", function (disk)
    local count = math.min (512, disk.size)
    if count == 0 then return {} end
    return { events = { { after = 0, read = { disk.size - count, count } } } }
  end },
  { "a client that goes at once",
    function () return { events = { { after = 1, close = true } }, goes = true } end },
  { "a disk that is half holes",
    function (disk)
      local count = disk.size // 8192 * 4096
      return { holes = count > 0 and { { 0, count } } or nil }
    end },
  { "a disk smaller than a block", function () return { size = 512 } end },
  { "a source that fails",
    function () return { fail = function () return "EIO" end } end },
  { "8 prefetches at once", function () return { threads = 8 } end },
  { "a client after another one", function () return { is_second = true } end },
}

--- What a client does that reads a trace, for the `events` of `testing.run`: each read
-- when the trace says, or where it says no times one each 10 ms.
-- @tparam table reads from `trace.read`
-- @treturn table list of events
function M.events_of (reads)
  local events = {}
  for i, read in ipairs (reads) do
    events[i] = { at = read.seconds or i * 0.01, read = { read.offset, read.count },
                  seconds = 0.001 }
  end
  return events
end

-- Requests that a policy has with each client: so many, and more for a large disk.  Of
-- one that would take minutes just the beginning is looked at.
local STEPS, STEPS_MOST = 20000, 400000

-- What asks for a disk so many times over has no end.
local ENDLESS_TIMES = 3

-- `steps` is how many requests were looked at, if there would have been more.
local function describe_case (result, size, steps, goes)
  local set, again, asked = ranges.new (), 0, 0
  for _, prefetch in ipairs (result.prefetches) do
    local first, after = prefetch[1], prefetch[1] + prefetch[2]
    if #set:missing (first, after) == 0 then again = again + 1 end
    set:add (first, after)
    asked = asked + prefetch[2]
  end
  local number = #result.prefetches
  local text = ("%d %s, %.0f %% of the disk")
    :format (number, number == 1 and "prefetch" or "prefetches",
             100 * set:bytes () / math.max (size, 1))
  if steps and asked >= ENDLESS_TIMES * size then
    return text .. "; it goes on for as long as the client stays"
  elseif steps then
    return text .. ("; what comes after %d requests was not looked at"):format (steps)
  elseif again > 0 then
    text = text .. (", %d of them of what had been prefetched already"):format (again)
  end
  if not goes and not result.finished then
    text = text .. "; then it waits for the client"
  end
  return text
end

local function ignore () end

local function run_options (policy, disk, case)
  local options = { policy = policy.policy, args = policy.args, files = policy.files,
                    print = ignore }
  for name, value in pairs (disk) do options[name] = value end
  for name, value in pairs (case) do options[name] = value end
  options.goes, options.is_second = nil, nil
  options.events = { table.unpack (case.events or {}) }
  options.steps = testing.steps (STEPS, options.size, options.block, options.holes)
  if options.steps > STEPS_MOST then options.steps = STEPS end
  -- The client stays for longer than all of these take that prefetch.
  if not case.goes then
    table.insert (options.events, { at = 600 + options.steps * 0.01, close = true })
  end
  return options
end

-- Less than a sector is hardly meant, but at the end of a disk of odd size.
local LEAST_BYTES = 512

local function first_tiny (prefetches, size)
  for _, prefetch in ipairs (prefetches) do
    if prefetch[2] < LEAST_BYTES and prefetch[1] + prefetch[2] == size
       and size % LEAST_BYTES == 0 then
      return prefetch
    end
  end
end

-- Returns whether it went well, what to say, how many prefetches there were, one that is
-- tiny, and whether the policy is too large for the server.
local function run_case (policy, disk, case, warn)
  local options = run_options (policy, disk, case)
  options.warn = warn
  options.world = testing.world (options)
  if case.is_second then
    pcall (testing.run, options)
    -- Not what the first one has left it, or it might have nothing to do.
    options.world.known = nil
  end
  local scan = testing.scan (options)
  local ok, result = pcall (scan.finish, scan)
  local gave_up = not ok and scan.runner.requests >= options.steps
  if gave_up then
    scan.steps = math.huge
    scan:close ()
    ok, result = pcall (scan.finish, scan)
  end
  if not ok then return false, hints.explain (tostring (result)), 0 end
  if result.error then return false, hints.explain (result.error), 0 end
  return true, describe_case (result, options.size, gave_up and options.steps, case.goes),
    #result.prefetches, first_tiny (result.prefetches, options.size),
    options.world.is_large
end

-- The same mistake, whatever the disk's size: where it was made is the last line.
local function mistake_of (text)
  return (text:gsub ("%d+", "N"))
end

local function cases_of (disk, reads)
  local cases = {}
  for i, case in ipairs (CASES) do cases[i] = { case[1], case[2] (disk) } end
  if reads then
    cases[#cases + 1] = { "the client of the trace", { events = M.events_of (reads) } }
  end
  return cases
end

--- Try a policy.
-- @tparam table policy options for `world.load`: `policy`, `args`, `files`
-- @tparam[opt] table disk `size`, `block`, `threads`, `holes` and `contents` as for
-- `testing.run`; and `reads`, a trace from `trace.read`, for one more client
-- @treturn table report: `ok`, and `lines` to print
function M.check (policy, disk)
  local warnings = {}
  local function warn (message) warnings[#warnings + 1] = message end
  local ok, loaded = pcall (testing.world, {
    policy = policy.policy, args = policy.args, files = policy.files,
    print = ignore, warn = ignore,
  })
  if not ok then
    local message = hints.explain (tostring (loaded))
    return { ok = false, lines = { "FAIL  loading it: " .. message } }
  end
  disk = disk or {}
  local block = disk.block or BLOCK_BYTES
  local made = { size = disk.size or BLOCKS * block + 512, block = block,
                 threads = disk.threads, holes = disk.holes, contents = disk.contents }
  local report = { ok = true, lines = { "ok    loading it" } }
  local mistakes, prefetches, tiny, is_large = {}, 0, nil, loaded.is_large
  for i, case in ipairs (cases_of (made, disk.reads)) do
    -- One of them is enough to know what it warns of.
    local good, text, number, small, large = run_case (policy, made, case[2],
                                                       i == 1 and warn or ignore)
    report.ok, prefetches, tiny = report.ok and good, prefetches + number, tiny or small
    is_large = is_large or large
    local mistake = not good and mistake_of (text)
    if mistakes[mistake] then text = "the same" end
    if mistake then mistakes[mistake] = true end
    table.insert (report.lines, (good and "ok    " or "FAIL  ") .. case[1] .. ": "
                  .. text)
  end
  if report.ok and prefetches == 0 and #warnings == 0 then
    table.insert (report.lines, "note  it has prefetched nothing: none of these clients "
                  .. "did what it waits for; show it one with --trace, or try "
                  .. "'scan-policy run' with --read")
  end
  if tiny then
    table.insert (report.lines, ("note  it prefetches as little as %d bytes (at %d of a "
      .. "disk of %d); a prefetch is cut at the end of the disk, whose last block begins "
      .. "at (disk.blocks - 1) * disk.block"):format (tiny[2], tiny[1], made.size))
  end
  if is_large then
    table.insert (report.lines, ("note  it takes more than %d MiB of memory, which is "
      .. "what the server gives a policy without scan-policy-memory=SIZE")
      :format (world.SERVER_KIB // 1024))
  end
  for _, message in ipairs (warnings) do
    table.insert (report.lines, "note  it warns: " .. escape.text (message))
  end
  local globals = loaded:new_globals ()
  if #globals > 0 then
    table.insert (report.lines, "note  it makes globals, which all its scans share: "
                  .. escape.text (table.concat (globals, ", "))
                  .. "; is a 'local' missing?")
  end
  return report
end

return M
