-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Policies made from policies.
--
-- Each function takes one or more policies (functions of the disk, or tables
-- with `next`) and returns a function of the disk, so they nest:
--
--     local combine = require "scan.combinators"
--     local regions = scan.policy ("regions")
--     local rest = scan.policy ("reverse")
--     return combine.once (combine.chain (regions, rest))
--
-- All but `interleave` hand the inner policy a disk that is the real one with
-- a method or two replaced.  What is not replaced goes straight through: reads
-- and failures belong to the inner policy, whoever is outside.  Read from the
-- outside in: in `once (align (policy))` a prefetch is first aligned, then
-- dropped if it has been asked for already.
--
-- @module scan.combinators

local host = require "scan.host"

local M = {}

-- Policies as functions, or an error at the caller of the combinator.
local function policy_functions (what, ...)
  local runs = table.pack (...)
  if runs.n == 0 then error (what .. ": at least one policy expected", 3) end
  for i = 1, runs.n do
    local run, expected = host.to_function (runs[i])
    if not run then
      if type (runs[i]) ~= "table" then
        expected = "a policy expected, as scan.policy gives it or a function of the "
          .. "disk, got " .. host.shown (runs[i])
      end
      error (("%s: argument %d: %s"):format (what, i, expected), 3)
    end
    runs[i] = run
  end
  return runs
end

-- Less is nothing; and what is divided by it may be no number.
local LEAST = 1e-9

local function positive (value, what, unit)
  if type (value) ~= "number" or not (value >= LEAST and value < math.huge) then
    error (("%s: a number of %s from 1e-9 up expected, got %s")
           :format (what, unit, host.shown (value)), 3)
  end
  return value
end

-- The disk with some methods replaced.
local function replacing (disk, methods)
  return setmetatable (methods, { __index = disk })
end

-- Wait for some time above 0.  A very short time may be none at all by
-- rounding, and the caller's loop would not end.
local WAIT_SECONDS = 0.001

local function wait (disk, seconds)
  disk:wait (math.max (seconds, WAIT_SECONDS))
end

-- As the disk takes numbers: 2^20 is a float, and whole.
local function whole (n) return type (n) == "number" and math.tointeger (n) end

-- Where a prefetch begins and ends: its count defaults to a block and is cut at the end
-- of the disk.  Nil for bad arguments, left to the real disk to complain about.
local function range_of (disk, offset, count)
  offset, count = whole (offset), whole (count or disk.block)
  if not offset or not count or offset < 0 or offset >= disk.size or count < 1 then
    return nil
  end
  return offset, disk.size - offset > count and offset + count or disk.size
end

-- A policy that sees the disk with another `prefetch`: for each scan `make (disk)`
-- gives a function of where a range begins and where it ends, which is inside the disk.
local function with_prefetch (run, make)
  return function (disk)
    local prefetch_range = make (disk)
    local outer = {}

    function outer:prefetch (offset, count)
      local first, stop = range_of (disk, offset, count)
      if not first then return disk:prefetch (offset, count) end
      return prefetch_range (first, stop)
    end

    return run (replacing (disk, outer))
  end
end

-- The same a block at a time, or a large range would go at once; each when `make (disk)`,
-- a function of its bytes, says that there are no more seconds to wait.  One that waits
-- when the client goes is dropped.
local function held_back (run, make)
  return with_prefetch (run, function (disk)
    local seconds_to_wait = make (disk)
    return function (offset, stop)
      while offset < stop do
        local piece = math.min (disk.block, stop - offset)
        local seconds = seconds_to_wait (piece)
        while seconds > 0 do
          wait (disk, seconds)
          if disk:closed () then return end
          seconds = seconds_to_wait (piece)
        end
        disk:prefetch (offset, piece)
        offset = offset + piece
      end
    end
  end)
end

--- One policy after the other: each starts when the one before has ended.
-- @tparam function ... policies, at least one
-- @treturn function of the disk
function M.chain (...)
  local runs = policy_functions ("chain", ...)
  return function (disk)
    for _, run in ipairs (runs) do
      if disk:closed () then return end
      run (disk)
    end
  end
end

-- After so many prefetches left out in a row there is a wait, so that no decision
-- gets long on a huge disk of which nothing is to be fetched.
local SKIP_MOST = 4096

-- Is told of each whether it is left out.
local function skipper (disk)
  local skipped = 0
  return function (is_left_out)
    skipped = is_left_out and skipped + 1 or 0
    if skipped == SKIP_MOST then
      skipped = 0
      disk:wait (0)
    end
  end
end

--- Leave out what is a hole.
--
-- Costs a `next_data` for each block that is not in a hole, one for each hole
-- that is crossed upwards, or a few for a vast one.  On an empty disk of very many
-- blocks the policy `data` is the better tool: it jumps, this one is asked for each
-- block.
-- @tparam function policy
-- @treturn function of the disk
function M.skip_holes (policy)
  local run = policy_functions ("skip_holes", policy)[1]
  return with_prefetch (run, function (disk)
    -- The hole met last, half open.
    local hole_offset, hole_end = 0, 0
    local skip = skipper (disk)
    return function (offset, stop)
      while offset < stop do
        if offset >= hole_offset and offset < hole_end then
          offset = math.min (hole_end, stop)
          skip (true)
        else
          local data = disk:next_data (offset, true) or disk.size
          if data > offset then
            hole_offset, hole_end = offset, data
          else
            local piece = math.min (disk.block, stop - offset)
            skip (false)
            disk:prefetch (offset, piece)
            offset = offset + piece
          end
        end
      end
    end
  end)
end

--- Leave out what is there: what has been fetched or is on its way, by whichever scan
-- of the export, and what clients have read.
--
-- A range whose prefetch failed is not there.  See `disk:missing` for how exact that
-- is.
-- @tparam function policy
-- @treturn function of the disk
function M.once (policy)
  local run = policy_functions ("once", policy)[1]
  return with_prefetch (run, function (disk)
    local skip = skipper (disk)
    return function (offset, stop)
      local from, length = disk:missing (offset, stop)
      skip (not from)
      while from do
        -- A block at a time, or what is read meanwhile would be fetched.
        length = math.min (length, disk.block)
        disk:prefetch (from, length)
        from, length = disk:missing (from + length, stop)
      end
    end
  end)
end

--- Widen each prefetch to whole blocks.
-- @tparam function policy
-- @treturn function of the disk
function M.align (policy)
  local run = policy_functions ("align", policy)[1]
  return with_prefetch (run, function (disk)
    return function (offset, stop)
      local from = offset - offset % disk.block
      -- Not beyond the disk, whose size may be next to the largest integer.
      local widened = math.min (-stop % disk.block, disk.size - stop)
      disk:prefetch (from, stop - from + widened)
    end
  end)
end

--- Prefetch no faster than so many bytes a second.
--
-- A prefetch may begin once those before it are paid for, so the first one is
-- at once and the average holds from there on; time in which nothing was asked
-- for is not saved up.  A prefetch asked for after the client has gone is
-- dropped.  For a limit over all policies and scans use scan-rate.
-- @tparam function policy
-- @tparam number rate in bytes per second
-- @treturn function of the disk
function M.throttle (policy, rate)
  local run = policy_functions ("throttle", policy)[1]
  positive (rate, "throttle", "bytes per second")
  return held_back (run, function (disk)
    local due = disk:now ()
    return function (piece)
      local now = disk:now ()
      if now < due then return due - now end
      due = now + piece / rate
      return 0
    end
  end)
end

-- Of `client_first`, if it is given none.
local SILENCE_SECONDS = 0.1

--- Hold each prefetch back until the client has had no read in flight for a
-- while.  A client that never pauses is never disturbed, and nothing is
-- fetched.  A prefetch asked for after the client has gone is dropped.
-- @tparam function policy
-- @tparam[opt] number silence in seconds, 0.1 if left out
-- @treturn function of the disk
function M.client_first (policy, silence)
  local run = policy_functions ("client_first", policy)[1]
  silence = positive (silence or SILENCE_SECONDS, "client_first", "seconds")
  return held_back (run, function (disk)
    return function () return silence - disk:idle () end
  end)
end

-- What each policy of an interleave has for itself of what is told only once, and how
-- much of it is kept for one that doesn't ask.
local TOLD = { "reads", "results", "failures" }
local KEPT_MOST = 1024

-- A bounded queue; when it is full the oldest goes.
local function queue_new ()
  return { first = 1, last = 0 }
end

local function queue_push (queue, item)
  queue.last = queue.last + 1
  queue[queue.last] = item
  if queue.last - queue.first >= KEPT_MOST then
    queue[queue.first] = nil
    queue.first = queue.first + 1
  end
end

-- An iterator that takes out what it gives, with the meaning of `reads`: what
-- is there now, and a loop broken off does not see the rest again.
local function queue_drain (queue)
  local at, last = queue.first, queue.last
  queue.first = last + 1
  return function ()
    if at > last then return nil end
    local item = queue[at]
    queue[at] = nil
    at = at + 1
    return table.unpack (item)
  end
end

--- Several policies at the same time, taking turns: one prefetch each.
--
-- Each sees all reads, results and failures, as if it were alone (those of the
-- others' prefetches too).  One that waits lets the others go on.  Ends when
-- all have ended.  For a policy that doesn't look at them the newest 1024 are kept.
-- @tparam function ... policies, at least one
-- @treturn function of the disk
function M.interleave (...)
  local runs = policy_functions ("interleave", ...)
  return function (disk)
    local turns = {}

    local function deliver ()
      for _, what in ipairs (TOLD) do
        for offset, count, a, b in disk[what] (disk) do
          for _, turn in ipairs (turns) do
            queue_push (turn[what], { offset, count, a, b })
            turn.waiting = false
          end
        end
      end
    end

    for i, run in ipairs (runs) do
      local turn, inner = { answer = { n = 0 } }, {}
      for _, what in ipairs (TOLD) do
        turn[what] = queue_new ()
        inner[what] = function ()
          deliver ()
          return queue_drain (turn[what])
        end
      end
      local seen = replacing (disk, inner)
      turn.body = coroutine.create (function () return run (seen) end)
      turns[i] = turn
    end

    -- One policy's turn: up to its next prefetch or wait.  Whatever else it
    -- asks for is passed on as it is.
    local function take (turn)
      while true do
        local request = table.pack (
          coroutine.resume (turn.body,
                            table.unpack (turn.answer, 1, turn.answer.n)))
        if not request[1] then error (request[2], 0) end
        turn.answer = { n = 0 }
        if coroutine.status (turn.body) == "dead" then
          turn.ended = true
          return
        end
        if request[2] == "wait" then
          turn.waiting = true
          turn.due = request[3] and disk:now () + request[3] or math.huge
          return
        end
        turn.answer = table.pack (
          coroutine.yield (table.unpack (request, 2, request.n)))
        if request[2] == "prefetch" then return end
      end
    end

    -- Ended ones no longer take turns, and are told nothing.
    local function drop_ended ()
      local left = {}
      for _, turn in ipairs (turns) do
        if not turn.ended then left[#left + 1] = turn end
      end
      turns = left
    end

    local function wake_all ()
      for _, turn in ipairs (turns) do turn.waiting = false end
    end

    while true do
      for _, turn in ipairs (turns) do
        if turn.waiting and turn.due <= disk:now () then turn.waiting = false end
        if not turn.waiting then take (turn) end
      end
      drop_ended ()
      if #turns == 0 then return end
      deliver ()

      if disk:closed () then wake_all () end

      local due, all_wait = math.huge, true
      for _, turn in ipairs (turns) do
        all_wait = all_wait and turn.waiting
        due = math.min (due, turn.due or math.huge)
      end
      if all_wait then
        if due < math.huge then wait (disk, due - disk:now ()) else disk:wait () end
        wake_all ()
      end
    end
  end
end

--- The policy that an argument names, for policies that can go on with another.  Its
-- own arguments are those with the name before theirs: scan-arg-then=data is given
-- scan-arg-then.NAME=VALUE as NAME.  List both for `check_known`: "then", "then.*".
-- @tparam table args of the policy
-- @tparam string name of the argument
-- @tparam function find `scan.policy`, which modules can't see
-- @treturn function|nil the policy; nil if the argument is not given, or "none"
function M.named (args, name, find)
  local own, prefix = {}, name .. "."
  for key, value in pairs (args) do
    if key:sub (1, #prefix) == prefix then own[key:sub (#prefix + 1)] = value end
  end
  local value = args[name]
  if value == nil or value == "none" then
    local key = next (own)
    if key then
      error (("scan-arg-%s%s: scan-arg-%s names no policy to give it to")
               :format (prefix, key, name), 0)
    end
    return nil
  end
  local ok, policy = pcall (find, value, own)
  if ok then return policy end
  error (("scan-arg-%s: %s"):format (name, tostring (policy)), 0)
end

return M
