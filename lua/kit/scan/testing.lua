-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Tests of policies: a made-up disk, a made-up clock, and the exact prefetches.
--
--     local testing = require "scan.testing"
--     local result = testing.run {
--       policy = "reverse.lua", size = 10 * 2^20, block = 2^20,
--       events = { { after = 3, read = { 0, 4096 } }, { after = 5, close = true } },
--     }
--     assert.same ({ 9, 8, 7, 6, 5 }, testing.offsets (result, 2^20))
--
-- Nothing here needs nbdkit, a build or busted, and nothing takes time: the
-- clock is a number.  Every run of the same test is the same.
--
-- What is made up is the client, the disk and how long a prefetch takes.  How
-- the policy is treated is the filter's way: with one thread a prefetch is
-- over before the policy goes on; a policy gets one last turn after the client
-- has gone; a range larger than a block is issued a block at a time.
--
-- @module scan.testing

local events = require "scan.events"
local runner = require "scan.runner"
local world = require "scan.world"

local M = {}

local DEFAULT_BLOCK_BYTES = 2 * 1024 * 1024
local DEFAULT_PREFETCH_SECONDS = 0.01
local DEFAULT_STEPS = 100000

-- So many requests more for each block and hole: a policy may ask for a block, wait for
-- it, and have it fail and ask again.
local STEPS_EACH = 4

local OPTIONS = {
  policy = true, args = true, files = true, world = true, print = true, warn = true,
  size = true, block = true, export = true, threads = true, holes = true,
  contents = true, fail = true, prefetch_seconds = true, events = true, steps = true,
}

-- A misspelt field would quietly test something else.
local function check_fields (t, known, what)
  for name in pairs (t) do
    if not known[name] then
      local names = {}
      for field in pairs (known) do names[#names + 1] = tostring (field) end
      table.sort (names)
      error (("%s: no such field '%s'; there are: %s")
               :format (what, tostring (name), table.concat (names, ", ")), 0)
    end
  end
end

local function whole (value, default, least, name)
  if value == nil then value = default end
  local n = type (value) == "number" and math.tointeger (value)
  if not n or n < least then
    error (("%s: a whole number of at least %d expected, got %s")
             :format (name, least, tostring (value)), 0)
  end
  return n
end

local function range_of (pair, what)
  if type (pair) ~= "table" then
    error (what .. ": a pair { offset, count } expected, got " .. tostring (pair), 0)
  end
  return whole (pair[1], nil, 0, what .. ": offset"),
    whole (pair[2], nil, 1, what .. ": count")
end

-- Holes in order, those that touch made one.
local function sorted_holes (holes)
  local sorted, merged = {}, {}
  for i, hole in ipairs (holes) do
    local offset, count = range_of (hole, "holes[" .. i .. "]")
    sorted[i] = { first = offset, after = offset + count }
  end
  table.sort (sorted, function (a, b) return a.first < b.first end)
  for _, hole in ipairs (sorted) do
    local last = merged[#merged]
    if last and hole.first <= last.after then
      last.after = math.max (last.after, hole.after)
    else
      merged[#merged + 1] = hole
    end
  end
  return merged
end

--- Make the answer to `disk:next_data` from a list of holes.
-- @tparam table|nil holes list of { offset, count }; nil if the disk can't tell
-- @tparam integer size of the disk
-- @treturn function of an offset
function M.next_data (holes, size)
  if not holes then return function (offset) return offset end end
  local sorted = sorted_holes (holes)
  return function (offset)
    -- The last hole that does not begin behind the offset is the only one around it.
    local before, behind = 0, #sorted + 1
    while behind - before > 1 do
      local middle = (before + behind) // 2
      if sorted[middle].first <= offset then before = middle else behind = middle end
    end
    local hole = sorted[before]
    if hole and offset < hole.after then offset = hole.after end
    return offset < size and offset or nil
  end
end

local function read_image (path)
  local handle, message = io.open (path, "rb")
  if not handle then error ("contents: " .. message, 0) end
  return function (offset, count)
    handle:seek ("set", offset)
    return handle:read (count) or ""
  end
end

--- Make the answer to `disk:pread`.
-- @tparam nil|string|table|function contents a string, `{ path = "an image" }`,
-- or a function of offset and count; what lies behind the end of a string or
-- an image, and a disk without contents, is zeroes
-- @treturn function of offset, count: exactly that many bytes
function M.pread (contents)
  local read
  if contents == nil then
    read = function () return "" end
  elseif type (contents) == "string" then
    read = function (offset, count) return contents:sub (offset + 1, offset + count) end
  elseif type (contents) == "function" then
    read = contents
  elseif type (contents) == "table" and type (contents.path) == "string" then
    read = read_image (contents.path)
  else
    error ("contents: a string, a function or { path = \"IMAGE\" } expected, got "
           .. type (contents), 0)
  end
  return function (offset, count)
    local bytes = read (offset, count)
    if type (bytes) ~= "string" then
      error (("contents (%d, %d): a string expected, got %s")
               :format (offset, count, type (bytes)), 0)
    end
    return bytes:sub (1, count) .. ("\0"):rep (count - #bytes)
  end
end

--- Requests after which to give up on a policy: no policy that ends needs as many.
-- @tparam integer least for a disk of nothing
-- @tparam integer size of the disk in bytes
-- @tparam[opt] integer block bytes
-- @tparam[opt] table holes list of them
-- @treturn integer
function M.steps (least, size, block, holes)
  return least + STEPS_EACH * (size // (block or DEFAULT_BLOCK_BYTES)
                               + #(holes or {}))
end

local Scan = {}
Scan.__index = Scan

--- A client read that begins and, unless told otherwise, ends now.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam[opt] number seconds that it is in flight
function Scan:read (offset, count, seconds)
  self.runner:begin_read (offset, count)
  if seconds and seconds > 0 then
    self.events:add (self.now + seconds, function () self.runner:end_read () end)
  else
    self.runner:end_read ()
  end
end

--- The client goes.
function Scan:close ()
  self.runner:close ()
end

local function happen (scan, event)
  if event.read then scan:read (event.read[1], event.read[2], event.seconds) end
  if event.close then scan:close () end
end

local EVENT_FIELDS = { after = true, at = true, read = true, seconds = true,
                       close = true }

-- Sort the events given into those of the clock and those of the count.
local function plan_events (scan, list, size)
  for i, event in ipairs (list) do
    local what = "events[" .. i .. "]"
    if type (event) ~= "table" then error (what .. ": a table expected", 0) end
    check_fields (event, EVENT_FIELDS, what)
    if event.read then
      local offset, count = range_of (event.read, what .. ".read")
      if count > size - offset then
        error (("%s.read: offset %d, count %d is outside the disk (size %d)")
                 :format (what, offset, count, size), 0)
      end
    end
    if not event.read and not event.close then
      error (what .. ": read = { offset, count } or close = true expected", 0)
    end
    if (event.after == nil) == (event.at == nil) then
      error (what .. ": either after = N (prefetches) or at = SECONDS expected", 0)
    end
    if event.at then
      scan.events:add (event.at, function () happen (scan, event) end)
    else
      local n = whole (event.after, nil, 0, what .. ".after")
      scan.after[n] = scan.after[n] or {}
      table.insert (scan.after[n], event)
    end
  end
end

local function happen_after (scan, n)
  for _, event in ipairs (scan.after[n] or {}) do happen (scan, event) end
end

local function issue (scan, offset, count)
  table.insert (scan.prefetches, { offset, count })
  table.insert (scan.issued, scan.now)
  scan.events:add (scan.now + scan.prefetch_seconds, function ()
    scan.runner:done (offset, count, scan.prefetch_seconds, scan.fail (offset, count))
  end)
  happen_after (scan, #scan.prefetches)
end

local function answer_pread (scan, offset, count)
  local errno = scan.fail (offset, count)
  if errno then
    scan.runner:answer (nil, errno)
  else
    scan.runner:answer (scan.pread (offset, count))
  end
end

-- Let time pass until the next thing happens.  False if nothing will.
local function pass_time (scan)
  local deadline = scan.runner.state == "waiting" and scan.runner.deadline
  local seconds = scan.events:next_seconds ()
  if deadline and (not seconds or deadline < seconds) then
    scan.now = math.max (scan.now, deadline)
    return true
  end
  local action = scan.events:take ()
  if not action then return false end
  scan.now = math.max (scan.now, seconds)
  action ()
  return true
end

-- Let the policy have a turn, or else let time pass until the next thing
-- happens.  Returns like `Runner:next`, "waiting" if nothing will happen, or nil.
local function go_on (scan)
  if not scan.started then
    scan.started = true
    happen_after (scan, 0)
  end
  -- Before anything is handed out: a scan may be closed, and go on.
  if scan.runner.requests >= scan.steps then
    error (("gave up after %d requests and %d prefetches: with a policy that does not "
            .. "end, the client has to go: { after = N, close = true } among the events")
             :format (scan.steps, #scan.prefetches), 0)
  end
  local action, a, b = scan.runner:next ()
  if action == "prefetch" then
    issue (scan, a, b)
  elseif action == "next_data" then
    scan.runner:answer (scan.next_data (a))
  elseif action == "pread" then
    answer_pread (scan, a, b)
  elseif action == "finished" or action == "failed" then
    scan.error = scan.runner.error
  elseif not pass_time (scan) then
    action = "waiting"
  end
  return action, a, b
end

--- Go on until the next prefetch has been issued.  It is in flight when this
-- returns; it ends during a later step.
-- @treturn integer|nil its offset; nil if there is none
-- @treturn integer|string its count; or why there is none: "finished", "failed"
-- (see `error`), or "waiting" for something that only the caller can do
function Scan:step ()
  while true do
    local action, a, b = go_on (self)
    if action == "prefetch" then return a, b end
    if action == "finished" or action == "failed" or action == "waiting" then
      return nil, action
    end
  end
end

--- Go on until so much time has passed.
-- @tparam number seconds
function Scan:pass (seconds)
  local over = false
  self.events:add (self.now + seconds, function () over = true end)
  while not over do
    local action = go_on (self)
    if action == "finished" or action == "failed" then pass_time (self) end
  end
end

--- Go on until the policy has ended, as `run` does.
-- @treturn table result of `run`
function Scan:finish ()
  repeat
    local offset, state = self:step ()
    if state == "waiting" then self:close () end
  until not offset and state ~= "waiting"
  local run = self.runner
  local closed = run.closed
  -- So that nothing is left of this scan if another one of the same world follows.
  self:close ()
  return {
    prefetches = self.prefetches, issued = self.issued,
    finished = run.returned == true and not closed, closed = closed,
    dropped = run.dropped, error = self.error,
    requests = run.requests, waits = run.waits, seconds = self.now,
  }
end

--- Load a policy once, for several scans that share its state as the
-- connections of one export do.
-- @tparam table options `policy`, `args`, `files`, `print` as for `run`
-- @treturn table world, for the `world` option of `run` and `scan`
M.world = world.load

--- A scan that goes as far as its owner says; see `step`, `pass`, `finish`,
-- `read` and `close`.
-- Takes what `run` takes.
-- @treturn table scan with `prefetches` (list of { offset, count }), `issued`
-- (when each was, in seconds), `now` (seconds) and `error`
function M.scan (options)
  check_fields (options, OPTIONS, "testing")
  local size = whole (options.size, nil, 0, "size")
  local block = whole (options.block, DEFAULT_BLOCK_BYTES, 1, "block")
  local scan = setmetatable ({
    events = events.new (), after = {}, now = 0, started = false,
    prefetches = {}, issued = {},
    fail = options.fail or function () end,
    next_data = M.next_data (options.holes, size),
    pread = M.pread (options.contents),
    prefetch_seconds = options.prefetch_seconds or DEFAULT_PREFETCH_SECONDS,
    steps = options.steps or M.steps (DEFAULT_STEPS, size, block, options.holes),
  }, Scan)
  plan_events (scan, options.events or {}, size)
  scan.runner = runner.new {
    world = options.world or world.load {
      policy = options.policy, args = options.args, files = options.files,
      print = options.print, warn = options.warn,
    },
    size = size, block = block,
    export = options.export or "",
    threads = whole (options.threads, 1, 1, "threads"),
    now = function () return scan.now end,
  }
  return scan
end

--- Run a policy until it ends.
--
-- When the events are over and the policy waits for something that will never
-- come, the client goes; and when the policy has ended, at last.
--
-- @tparam table options
--
-- - `policy`: a file, a built-in's name, or a function of the disk (or `world`)
-- - `args`: table of its scan-arg-NAME=VALUE strings
-- - `files`: table of NAME = contents, for `scan.open`
-- - `size`, `block`: bytes (block: 2 MiB if left out); `export`: name
-- - `holes`: list of { offset, count }; if left out, the disk can't tell holes
-- - `contents`: what `disk:pread` reads, see `pread`
-- - `fail`: function of offset, count; the errno name with which that prefetch
--   or pread fails, or nil
-- - `threads`: prefetches in flight (1)
-- - `prefetch_seconds`: how long each is (0.01)
-- - `events`: list of what happens, each either
--   { after = N, ... } once the N-th prefetch has been issued and before it is
--   done (0: before the policy starts), or { at = SECONDS, ... }; and
--   read = { offset, count } with, if it takes time, seconds = how long; or
--   close = true
-- - `steps`: requests after which to give up, with an error (100000, and 4 for each
--   block and hole)
-- - `world`: from `world`, to share one loaded policy
-- - `print`, `warn`: functions of a line, where the policy's `print` and
-- `scan.warn` go
--
-- @treturn table result
--
-- - `prefetches`: list of { offset, count } in the order they were issued
-- - `issued`: list of seconds, when each was
-- - `finished`: true if the policy returned before the client went
-- - `closed`: true if the client went first
-- - `dropped`: what the policy asked for in its last turn, if anything
-- - `error`: message with a traceback if the policy failed
-- - `requests`, `waits`: how many requests, and how many of them `wait`
-- - `seconds`: how long it took
function M.run (options)
  return M.scan (options):finish ()
end

--- Just the offsets.
-- @tparam table result from `run`, or a scan
-- @tparam[opt] integer unit to divide by; offsets that are not a multiple come
-- out as fractions
-- @treturn table list of offsets
function M.offsets (result, unit)
  local offsets = {}
  for i, prefetch in ipairs (result.prefetches) do
    local offset = prefetch[1]
    if unit then offset = offset % unit == 0 and offset // unit or offset / unit end
    offsets[i] = math.tointeger (offset) or offset
  end
  return offsets
end

return M
