-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What stands between a policy and whoever runs it.
--
-- A policy is a function of the disk (or a table that `to_function` turns into
-- one).  It runs in a coroutine; everything that may take time (`prefetch`,
-- `wait`, `settle`, `next_data`, `pread`) is a *request* that is yielded to the
-- runner, which does it and resumes the policy with the answer.  Everything
-- that is only a question (`reads`, `missing`, `room`, `results`, `failures`,
-- `reads_in_flight`, `idle`, `closed`, `now`) is answered at once by the runner's
-- *driver*.  The filter, the simulator and the test kit are three runners; a policy
-- can't tell them apart.
--
-- Requests, as the runner sees them come out of `coroutine.resume`:
--
--     "prefetch",  offset, count   -> (nothing)
--     "wait",      seconds or nil  -> (nothing)
--     "settle"                     -> (nothing)
--     "next_data", offset          -> offset, or nil if only holes follow; and
--                                     true if nobody has looked further yet
--     "pread",     offset, count   -> string, or nil and an errno name
--
-- A driver is a table; its functions become methods of the disk, so they are
-- called with the disk as an argument, which they ignore:
--
--     size, block, export   bytes, bytes, name
--     reads ()              -> iterator over (offset, count, met), oldest first
--     missing (from, to)    -> offset, count of the first range in [from, to) that
--                              was neither read nor fetched nor is in flight
--     room ()               -> bytes that the next prefetch may have in one piece
--     results ()            -> iterator over (offset, count, seconds, errno name)
--     failures ()           -> iterator over (offset, count, errno name)
--     reads_in_flight ()    -> number
--     idle ()               -> seconds
--     closed ()             -> boolean
--     now ()                -> seconds
--     prefetch              optional: what `M.prefetcher` gives after a check, or what
--                           does the same faster
--
-- Arguments are checked here, once for all runners, and a bad one is the
-- caller's error (level 2).  The filter checks ranges again: a policy can
-- yield whatever it likes.
--
-- @module scan.host

local error, math_type, tointeger = error, math.type, math.tointeger
local sub, tostring, type = string.sub, tostring, type
local yield = coroutine.yield
local huge = math.huge

local M = {}

--- Most bytes that one `disk:pread` may ask for.
M.PREAD_MAX_BYTES = 1024 * 1024

local Disk = {}

-- Most bytes of a string that a message shows.
local SHOWN_BYTES = 40

--- An argument that was not what it should be, as a message shows it.  A string may
-- look like a number, and where a table lies helps nobody.
-- @param value
-- @treturn string
function M.shown (value)
  local kind = type (value)
  if kind == "string" then
    if #value > SHOWN_BYTES then value = sub (value, 1, SHOWN_BYTES) .. "..." end
    return "'" .. value .. "', a string"
  end
  if kind == "number" or kind == "nil" then return tostring (value) end
  return "a " .. kind
end

-- A whole number of bytes, as an integer; or nil and what is wrong.  `2^20` is a float
-- in Lua and a natural thing to write, so whole floats are taken.
local function to_whole (n, what)
  local integer = type (n) == "number" and tointeger (n)
  if integer then return integer end
  return nil, what .. " should be a whole number of bytes, got " .. M.shown (n)
end

-- The same, inside a disk of this size.
local function to_offset (size, offset)
  local n, wrong = to_whole (offset, "offset")
  if n and (n < 0 or n >= size) then
    return nil, "offset " .. n .. " is outside the disk (size " .. size .. ")"
  end
  return n, wrong
end

local function to_count (count)
  local n, wrong = to_whole (count, "count")
  if n and n < 1 then return nil, "count should be at least 1, got " .. n end
  return n, wrong
end

-- What one of these gave, or its message as an error at this level.
local function check (level, where, n, wrong)
  if not n then error (where .. ": " .. wrong, level) end
  return n
end

-- What is wrong with the disk that a method was given; nil if nothing is.  Called with a
-- dot, it has the first argument for the disk.  Another table may stand for a disk.
local function wrong_disk (disk)
  if type (disk) == "table" then return nil end
  return "called without the disk, got " .. M.shown (disk) .. "; call it with a colon"
end

local function check_disk (name, disk)
  local wrong = wrong_disk (disk)
  if wrong then error (("disk:%s: %s"):format (name, wrong), 3) end
end

--- What `disk:prefetch` makes of its arguments, here and in the filter, which calls
-- this for all that are not plainly right.
-- @tparam integer size of the disk
-- @tparam integer block bytes
-- @param disk that it was called for
-- @param offset
-- @param[opt] count
-- @treturn integer|nil offset, or nil if there is something wrong
-- @treturn integer|string count, cut at the end of the disk; or a message
function M.prefetch_range (size, block, disk, offset, count)
  local first, length, wrong = nil, block, wrong_disk (disk)
  if not wrong then first, wrong = to_offset (size, offset) end
  if first and count ~= nil then length, wrong = to_count (count) end
  if wrong then return nil, "disk:prefetch: " .. wrong end
  if length > size - first then length = size - first end
  return first, length
end

--- The method `prefetch`, for a driver that has something to check first.
-- @tparam table driver
-- @treturn function
function M.prefetcher (driver)
  local size, block = driver.size, driver.block
  return function (disk, offset, count)
    local first, length = M.prefetch_range (size, block, disk, offset, count)
    if not first then error (length, 2) end
    yield ("prefetch", first, length)
  end
end

--- Nothing to do now: come back after a client read, a failed prefetch, or the
-- given time.  It may come back early; look again.
-- @tparam[opt] number seconds
function Disk:wait (seconds)
  check_disk ("wait", self)
  -- NaN fails both comparisons.
  if seconds ~= nil and not (type (seconds) == "number"
                             and seconds >= 0 and seconds < huge) then
    error ("disk:wait: seconds should be a number from 0 up, got "
           .. M.shown (seconds), 2)
  end
  yield ("wait", seconds)
end

--- Come back when no prefetch of this scan is in flight, so that `failures`
-- is complete.  With one thread that is always so.
function Disk:settle () -- luacheck: no self
  yield ("settle")
end

--- The first offset at or after this one that is not in a hole.
-- @tparam integer offset in bytes, inside the disk
-- @tparam[opt] boolean briefly come back from a vast hole after some of it, to
-- look at reads or do something else
-- @treturn integer|nil an offset, nil if only holes follow; the same offset if
-- the layer below can't tell holes
-- @treturn boolean|nil true, only if asked briefly: so far there was a hole, and
-- perhaps it goes on
function Disk:next_data (offset, briefly)
  check_disk ("next_data", self)
  offset = check (3, "disk:next_data", to_offset (self.size, offset))
  while true do
    local data, more = yield ("next_data", offset)
    if briefly or not more then return data, more end
    offset = data
  end
end

--- Read the disk, to look at partition tables and file systems.
-- @tparam integer offset in bytes, inside the disk
-- @tparam integer count in bytes, at most 1 MiB; cut at the end of the disk
-- @treturn string|nil the bytes, or nil and an errno name
function Disk:pread (offset, count)
  check_disk ("pread", self)
  offset = check (3, "disk:pread", to_offset (self.size, offset))
  count = check (3, "disk:pread", to_count (count))
  if count > M.PREAD_MAX_BYTES then
    error ("disk:pread: count should be at most " .. M.PREAD_MAX_BYTES
           .. ", got " .. count, 2)
  end
  if count > self.size - offset then count = self.size - offset end
  return yield ("pread", offset, count)
end

-- `disk:missing` for a driver: what it is asked, made a range of the disk.
local function missing_of (driver)
  local missing, size = driver.missing, driver.size
  return function (disk, from, to)
    if type (disk) ~= "table" then check_disk ("missing", disk) end
    if math_type (from) ~= "integer" then
      from = check (3, "disk:missing", to_whole (from, "from"))
    end
    if to == nil then
      to = size
    elseif math_type (to) ~= "integer" then
      to = check (3, "disk:missing", to_whole (to, "to"))
    end
    -- The end of the disk is where a walk ends; nothing is before its beginning.
    if from < 0 or to < 0 then
      error (("disk:missing: %s %d is outside the disk (size %d)")
               :format (from < 0 and "from" or "to", from < 0 and from or to, size), 2)
    end
    if to > size then to = size end
    if from >= to then return nil end
    return missing (disk, from, to)
  end
end

--- The disk that a policy sees.
-- @tparam table driver of the runner; kept, not copied
-- @treturn table disk
function M.disk (driver)
  return {
    size = driver.size,
    block = driver.block,
    -- Rounded up in a way that can't overflow on the largest disks.
    blocks = driver.size // driver.block
      + (driver.size % driver.block > 0 and 1 or 0),
    export = driver.export,

    -- Each disk has its methods in itself, so that a policy can spoil its own
    -- disk but not the next scan's, and so that finding them is quick.

    --- Prefetch this range next.  Returns when there is room for another prefetch
    -- (with one thread: when this one is done, well or not; see `failures`).
    -- @function disk:prefetch
    -- @tparam integer offset in bytes, inside the disk
    -- @tparam[opt] integer count in bytes, one block if left out; cut at the end
    -- of the disk, and issued a block at a time if it is more than a block
    prefetch = driver.prefetch or M.prefetcher (driver),

    wait = Disk.wait,
    settle = Disk.settle,
    next_data = Disk.next_data,
    pread = Disk.pread,

    -- Questions go straight to the driver.

    --- The first range that no client has read, and that was neither fetched nor is
    -- in flight.  All scans of the export share what is known.  That is bounded: on
    -- a huge disk things are forgotten, so a range may be given that is there
    -- already, and never the other way round.
    -- @function disk:missing
    -- @tparam integer from in bytes, 0 or more
    -- @tparam[opt] integer to where to end, in bytes, 0 or more; the end of the disk
    -- if it is left out or lies beyond
    -- @treturn integer|nil offset in bytes, nil if there is none
    -- @treturn integer count of it, or of as much as was looked at
    missing = missing_of (driver),

    --- The client reads since this was last called, oldest first.  What a loop
    -- that is broken off has not looked at is not shown again; and this, called inside
    -- the loop, ends it.  `results` and `failures` are the same.
    -- @function disk:reads
    -- @treturn function iterator over offset, count (bytes), and what the read met
    -- when it began: "hit" if all of it had been read or fetched before, "late" if
    -- what had not was in flight, "miss" if not
    reads = driver.reads,

    --- Bytes that there is room for: what goes out in one piece, as of what is asked for
    -- next.  A policy that asks for no more has a say after each piece; of more, the rest
    -- goes out before it is asked again, when it may be stale.  Less than a block if
    -- `scan-pace` says so.
    -- @function disk:room
    -- @treturn integer from 1 to `block`
    room = driver.room,

    --- What became of the prefetches that ended since this was last called, pieces
    -- of a block or less.  The newest 256 are kept.
    -- @function disk:results
    -- @treturn function iterator over offset, count (bytes), seconds that it took,
    -- errno name or nil if all is well
    results = driver.results,

    --- What failed since this was last called: prefetches, and what clients tried to
    -- read.
    -- @function disk:failures
    -- @treturn function iterator over offset, count (bytes), errno name ("EIO")
    failures = driver.failures,

    --- How many of the client's reads are in flight.
    -- @function disk:reads_in_flight
    -- @treturn integer
    reads_in_flight = driver.reads_in_flight,

    --- Seconds since the client last had a read in flight; 0 while one is.
    -- @function disk:idle
    idle = driver.idle,

    --- True once the client has gone.  The scan then has this one last turn.
    -- @function disk:closed
    closed = driver.closed,

    --- Monotonic seconds; only differences mean anything.
    -- @function disk:now
    now = driver.now,
  }
end

-- Where a function begins, for messages about what it returned.
local function place_of (f)
  local info = debug.getinfo (f, "S")
  return info.short_src .. ":" .. info.linedefined
end

-- The table form: `next (scan)` gives the ranges one by one.
local function from_table (policy)
  local next_range, open, close = policy.next, policy.open, policy.close
  return function (disk)
    local scan = disk
    if open then scan = open (disk) end
    while not disk:closed () do
      local offset, count = next_range (scan)
      if offset == nil then break end
      if math_type (offset) ~= "integer" or offset < 0 or offset >= disk.size then
        offset = check (0, place_of (next_range) .. ": next",
                        to_offset (disk.size, offset))
      end
      if count ~= nil and (math_type (count) ~= "integer" or count < 1) then
        count = check (0, place_of (next_range) .. ": next", to_count (count))
      end
      disk:prefetch (offset, count)
    end
    if close then close (scan) end
  end
end

--- What a policy chunk returned, as a function of the disk.
-- @param policy a function, or a table with `next` and optionally `open` and
-- `close`
-- @treturn function|nil the function; or nil and what was expected
function M.to_function (policy)
  if type (policy) == "function" then return policy end
  if type (policy) ~= "table" then
    return nil, "a policy should return a function of the disk, or a table "
      .. "with a function 'next', but it returned "
      .. (policy == nil and "nothing" or "a " .. type (policy))
  end
  if type (policy.next) ~= "function" then
    return nil, "a policy that is a table should have a function 'next', but "
      .. "its 'next' is " .. (policy.next == nil and "missing"
                              or "a " .. type (policy.next))
  end
  for _, name in ipairs { "open", "close" } do
    if policy[name] ~= nil and type (policy[name]) ~= "function" then
      return nil, "a policy's '" .. name .. "' should be a function, but it is a "
        .. type (policy[name])
    end
  end
  return from_table (policy)
end

--- The body of a scan's coroutine.
-- @tparam function run what `to_function` gave
-- @tparam table driver of the runner
function M.main (run, driver)
  run (M.disk (driver))
end

return M
