-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- One scan outside the filter: a policy's coroutine, and what the filter keeps
-- for it.
--
-- The runner has no clock and no disk of its own.  It hands out *actions*, which
-- its owner does when and how it likes, and is told what has become of them and
-- what the client does.  The test kit and the simulator are two owners; both
-- get the same prefetches in the same order for the same happenings.
--
-- As in the filter: a number of threads, each with one prefetch in flight; a
-- range larger than a block is issued a block at a time; the policy goes on
-- when a thread is free; once the client has gone it gets one last turn, and
-- what it asks for then is dropped.  If its owner has a pace, room for a prefetch is
-- taken before the policy is asked.
--
-- @module scan.runner

local host = require "scan.host"
local known = require "scan.known"

local M = {}

--- Most client reads that are kept for a policy that does not look at them.
-- When there are more, the newest entry keeps whichever read ends further.
M.READS_MAX = 256

--- Most failed prefetches that are kept for a policy that does not look at them.
-- When there are more, the newest entry covers them, too.
M.FAILURES_MAX = 256

--- Most results of prefetches that are kept, the newest.
M.RESULTS_MAX = 256

--- The shortest `disk:wait`, so that a policy can't spin by waiting for 0.
M.WAIT_MIN_SECONDS = 0.001

local Runner = {}
Runner.__index = Runner

-- The answers to a policy's questions, see scan.host.  As in the filter, they are for
-- the scan that is being decided for: a policy may keep the disk of another one.
local function make_driver (runner, options)
  local driver = {
    size = options.size, block = options.block, export = options.export,
    now = options.now,
  }

  -- Called by what the policy has called.
  local function check_scan ()
    if runner.world.deciding ~= runner then
      error (runner:has_ended () and "this disk belongs to a scan that has ended"
             or "this disk belongs to another scan", 3)
    end
  end

  -- A question about what has gathered in a list since it was last asked.  There is one
  -- iterator for each, which begins anew.
  local function take_all (name)
    local list, length, i = {}, 0, 0
    local function take ()
      check_scan ()
      if i == length then return nil end
      i = i + 1
      return table.unpack (list[i], 1, 4)
    end
    return function ()
      check_scan ()
      list, i = runner[name], 0
      length = #list
      if length > 0 then runner[name] = {} end
      return take
    end
  end

  driver.reads = take_all "reads"
  driver.results = take_all "results"
  driver.failures = take_all "failures"

  local prefetch = host.prefetcher (options)
  function driver.prefetch (...)
    check_scan ()
    return prefetch (...)
  end

  function driver.missing (_, from, to)
    check_scan ()
    return runner.known:missing (from, to)
  end

  function driver.reads_in_flight ()
    check_scan ()
    return runner.reading
  end

  -- Times are kept only from the first question on.
  function driver.idle ()
    check_scan ()
    runner.last_read_seconds = runner.last_read_seconds or options.now ()
    if runner.reading > 0 then return 0 end
    -- 0 says that a read is in flight.
    return math.max (options.now () - runner.last_read_seconds, 1e-9)
  end

  function driver.room ()
    check_scan ()
    return runner.piece
  end

  -- Of another scan, too: this one may wait for that.
  function driver.closed ()
    return runner.closed
  end

  return driver
end

--- A client read begins.  The policy sees it from now on.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @treturn string "hit", "late" or "miss", by what is known to have been read or
-- prefetched
function Runner:begin_read (offset, count)
  local reads = self.reads
  local met = self.known:begin_read (offset, count)
  if #reads < M.READS_MAX then
    reads[#reads + 1] = { offset, count, met }
  elseif offset + count > reads[#reads][1] + reads[#reads][2] then
    reads[#reads] = { offset, count, met }
  end
  self.reading = self.reading + 1
  self.woken = true
  return met
end

--- A client read is over.
function Runner:end_read ()
  self.reading = self.reading - 1
  self.last_read_seconds = self.last_read_seconds and self.now ()
  self.woken = true
end

--- The client has gone.
function Runner:close ()
  self.closed = true
  self.woken = true
end

--- Is nothing left of this scan, neither a client nor a turn?
-- @treturn boolean
function Runner:has_ended ()
  return self.closed and (self.state == "finished" or self.state == "failed")
end

-- Rather too much is looked at again than one forgotten.
local function add_failure (failures, offset, count, errno)
  if #failures < M.FAILURES_MAX then
    failures[#failures + 1] = { offset, count, errno }
    return
  end
  local last = failures[#failures]
  local stop = math.max (last[1] + last[2], offset + count)
  last[1] = math.min (last[1], offset)
  last[2] = stop - last[1]
end

--- A prefetch is over.
-- @tparam integer offset as it was handed out
-- @tparam integer count
-- @tparam number seconds that it took
-- @tparam[opt] string errno name if it failed
function Runner:done (offset, count, seconds, errno)
  self.in_flight = self.in_flight - 1
  self.known:end_prefetch (offset, count, not errno)
  if #self.results == M.RESULTS_MAX then table.remove (self.results, 1) end
  table.insert (self.results, { offset, count, seconds, errno })
  if not errno then return end
  add_failure (self.failures, offset, count, errno)
  self.woken = true
end

--- The answer to a "next_data" or "pread" action.
function Runner:answer (...)
  self.state, self.answers = "ready", table.pack (...)
end

local function fail (runner, message)
  runner.state, runner.error = "failed", message
  return "failed"
end

-- An error ends all scans that share the policy's state.
local function fail_all (runner, value, message)
  local said = runner.world:describe (runner.co, value, message)
  runner.world.error = debug.traceback (runner.co, said)
  return fail (runner, runner.world.error)
end

local function inside (runner, offset)
  return math.type (offset) == "integer" and offset >= 0 and offset < runner.size
end

-- Is what was yielded, n values, a request?  As vm.c of the filter sees it.
local function is_request (runner, n, what, a, b)
  if what == "settle" then return n == 1 end
  if what == "wait" then
    return n == 2 and (a == nil or type (a) == "number" and a >= 0)
  end
  if not inside (runner, a) then return false end
  if what == "next_data" then return n == 2 end
  return n == 3 and math.type (b) == "integer" and b >= 1 and b <= runner.size - a
    and (what == "prefetch" or what == "pread" and b <= host.PREAD_MAX_BYTES)
end

-- What the policy asked for becomes the runner's state.  A policy can yield by
-- itself, so nothing is taken on trust.
local function take_request (runner, n, what, a, b)
  if not is_request (runner, n, what, a, b) then
    return fail_all (runner, nil, "the policy yielded something that is not a request; "
                     .. "call disk:prefetch and its like instead")
  end
  local rests = what == "settle" and runner.asked == "settle"
  runner.requests, runner.asked = runner.requests + 1, what
  if runner.closed then
    runner.state, runner.dropped = "finished", what
  elseif what == "prefetch" then
    runner.state, runner.offset, runner.is_rest = "prefetching", a, false
    runner.left = b
  elseif what == "wait" then
    runner.waits = runner.waits + 1
    runner.state = "waiting"
    runner.deadline = a and runner.now () + math.max (a, M.WAIT_MIN_SECONDS)
  elseif rests then
    -- Nothing is in flight; a policy that asks for nothing else would spin.
    runner.state, runner.deadline = "waiting", runner.now () + M.WAIT_MIN_SECONDS
  elseif what == "settle" then
    runner.state = "settling"
  else
    runner.state = "asking"
    return what, a, b
  end
end

local function resume (runner)
  if runner.world.error then return fail (runner, runner.world.error) end
  runner.world.deciding = runner
  -- A wait ends for anything that happened since the last one did, so it may
  -- come back early.
  if runner.state == "waiting" then runner.woken = false end
  local answers = runner.answers
  runner.answers = nil
  local results
  if answers then
    results = table.pack (runner.world:resume (runner.co,
                                               table.unpack (answers, 1, answers.n)))
  elseif runner.started then
    results = table.pack (runner.world:resume (runner.co))
  else
    runner.started = true
    results = table.pack (runner.world:resume (runner.co, runner.world.run,
                                               runner.driver))
  end
  if not results[1] then return fail_all (runner, results[2]) end
  if coroutine.status (runner.co) == "dead" then
    runner.state, runner.returned = "finished", true
    return "finished"
  end
  return take_request (runner, results.n - 1, table.unpack (results, 2, 4))
end

-- Can the policy have its next turn?
local function ready (runner)
  local state = runner.state
  if state == "ready" then
    return true
  elseif state == "waiting" then
    return runner.woken or runner.deadline and runner.now () >= runner.deadline
  elseif state == "settling" then
    return runner.in_flight == 0 or runner.closed
  elseif state == "prefetching" then
    -- A thread that is free comes back for more.
    return (runner.left == 0 or runner.closed) and runner.in_flight < runner.threads
  end
  return false
end

-- Under a pace the pieces of a range may be long in coming; a client may have read
-- meanwhile what is left of it.
function Runner:leave_out_what_is_there ()
  local stop = self.offset + self.left
  self.offset = self.known:missing (self.offset, stop) or stop
  self.left = stop - self.offset
end

--- What is to be done next.
-- @treturn string|nil "prefetch" (with offset, count: it is in flight from now
-- on, tell `done`), "next_data" (with offset: tell `answer`), "pread" (with
-- offset, count: tell `answer`), "finished", "failed" (see `error`); nil if
-- nothing can be done until something happens (see `state` and `deadline`)
function Runner:next ()
  while true do
    local state = self.state
    self.has_no_room = false
    if state == "finished" or state == "failed" then return state end
    if state == "prefetching" and self.left > 0 and not self.closed then
      if self.in_flight >= self.threads then return nil end
      if self.room and self.is_rest then self:leave_out_what_is_there () end
      local offset, count = self.offset, math.min (self.left, self.block)
      if self.room and count > 0 then
        local room = self.room ()
        self.has_no_room = room == 0
        if self.has_no_room then return nil end
        count = math.min (count, room)
      end
      if count > 0 then
        self.offset, self.left = offset + count, self.left - count
        self.is_rest = true
        self.in_flight = self.in_flight + 1
        self.known:begin_prefetch (offset, count)
        return "prefetch", offset, count
      end
    end
    if not ready (self) then return nil end
    -- So that what it says is not stale when there is room.
    if self.room then
      local room = self.room ()
      self.has_no_room = not self.closed and room == 0
      if self.has_no_room then return nil end
      if room > 0 then self.piece = room end
    end
    local action, a, b = resume (self)
    if action then return action, a, b end
  end
end

--- Make a runner.
-- @tparam table options `world` (from scan.world), `size`, `block` (bytes),
-- `export` (name), `threads` (prefetches in flight), `now` (function: seconds), and
-- optionally `room` (function: most bytes that may be prefetched now, 0 for none;
-- it is asked again at the next call of `next`)
-- @treturn table runner; `requests` and `waits` count, `returned` is true if
-- the policy has returned, `dropped` names what it asked for in its last turn
function M.new (options)
  local map = options.world.known
  if not map or map.size ~= options.size then
    map = known.new (options.size)
    options.world.known = map
  end
  local runner = setmetatable ({
    known = map, room = options.room, results = {},
    world = options.world, size = options.size, block = options.block,
    piece = options.block,
    threads = options.threads, now = options.now,
    reads = {}, reading = 0, failures = {},
    closed = false, woken = false, in_flight = 0, requests = 0, waits = 0,
    left = 0, state = "ready",
  }, Runner)
  runner.driver = make_driver (runner, options)
  runner.co = coroutine.create (host.main)
  -- The filter starts no scan of an empty disk.
  if options.size == 0 then runner.state, runner.returned = "finished", true end
  return runner
end

return M
