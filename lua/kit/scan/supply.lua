-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Where the bytes of a simulation come from: a source, and the cache in front of it.
--
-- scan.simulator says what is modelled of them.
--
-- @module scan.supply

local ranges = require "scan.ranges"

local M = {}

-- scan.simulator says what these are.
M.HIT_SECONDS = 20e-6
M.REQUEST_SECONDS = 50e-6
M.COPY_SECONDS = 1 / 2e9

-- The clone layer's blocks, the most that it asks for at once, and what it rather
-- reads again than ask twice: filter/clone/options.c and fetch.c.
local CLONE_BLOCK_BYTES = 4096
local CLONE_FETCH_BYTES = 2 * 1024 * 1024
local CLONE_GAP_BYTES = 64 * 1024

-- A read there waits for another's fetch of up to this much, or of its own size, or for
-- one that should end as soon as its own would.
local CLONE_JOIN_BYTES = 256 * 1024

-- So far ahead a prefetch asks it where holes are, and the scan filter.
local CLONE_ASK_BYTES = 64 * 1024 * 1024
local SCAN_ASK_BYTES = 4 * 1024 * 1024 * 1024

local Supply = {}
Supply.__index = Supply

local function wait (supply, seconds, action)
  supply.clock.events:add (supply.clock.now + seconds, action)
end

-- -- the source ---------------------------------------------------------------------

local start_requests

-- By chance, from 0 to 1.
local function draw (supply)
  supply.place = supply.place * 6364136223846793005 + 1442695040888963407
  return (supply.place >> 11) / (1 << 53)
end

local function end_request (supply, request, seconds)
  local together, jitter = supply.source.together_seconds, supply.source.jitter_seconds
  if jitter > 0 then seconds = seconds + jitter * draw (supply) end
  if together > 0 then seconds = math.ceil (seconds / together) * together end
  supply.clock.events:add (seconds, function ()
    supply.busy = supply.busy - 1
    request.done ()
    start_requests (supply)
  end)
end

-- As bucket.c of nbdkit's rate filter: who finds too little takes that, sleeps for as
-- long as the rest takes to come, and looks again.
local function pass_bucket (supply, request, bytes)
  local source, bucket = supply.source, supply.bucket
  local came = (supply.clock.now - bucket.seconds) * source.bandwidth
  local level = math.min (bucket.level + came, source.burst_bytes)
  bucket.seconds, bucket.level = supply.clock.now, math.max (0, level - bytes)
  -- But for rounding, all of it.
  if level + 1 >= bytes then
    return end_request (supply, request, supply.clock.now + source.latency_seconds)
  end
  wait (supply, (bytes - level) / source.bandwidth, function ()
    pass_bucket (supply, request, bytes - level)
  end)
end

local function pass_link (supply, request)
  local source = supply.source
  local arrived = supply.clock.now + source.latency_seconds
  supply.link_free = math.max (arrived, supply.link_free)
    + request.bytes / source.bandwidth
  end_request (supply, request, supply.link_free)
end

start_requests = function (supply)
  local source = supply.source
  while supply.busy < source.slots and supply.queue[supply.queue_first] do
    local request = supply.queue[supply.queue_first]
    supply.queue[supply.queue_first] = nil
    supply.queue_first = supply.queue_first + 1
    supply.busy = supply.busy + 1
    if source.burst_bytes > 0 then
      pass_bucket (supply, request, request.bytes)
    else
      pass_link (supply, request)
    end
  end
end

local function ask_source (supply, bytes, done)
  supply.queue_last = supply.queue_last + 1
  supply.queue[supply.queue_last] = { bytes = bytes, done = done }
  start_requests (supply)
end

-- -- the cache ----------------------------------------------------------------------

local function class_of (bytes)
  local n, blocks = 0, -(-bytes // CLONE_BLOCK_BYTES)
  while blocks > 1 do n, blocks = n + 1, blocks // 2 end
  return n
end

-- What the clone layer has seen fetches of such a size take: filter/clone/claims.h.
local function note_trip (supply, fetch)
  local n, seconds = class_of (fetch.after - fetch.first), supply.clock.now - fetch.began
  supply.trips[n] = supply.trips[n] and (3 * supply.trips[n] + seconds) / 4 or seconds
end

local function ends_soon (supply, fetch, bytes)
  local trip = supply.trips[class_of (fetch.after - fetch.first)]
  local n = class_of (bytes)
  while n > 0 and not supply.trips[n] do n = n - 1 end
  local own = supply.trips[n] or 0
  local late = trip and supply.clock.now - fetch.began - trip
  return trip and -own <= late and late <= own
end

-- Ask the source for a range.  If it is kept, others may wait for it.
local function fetch_gap (supply, gap, keep, done)
  local bytes = gap.after - gap.first
  if not keep then return ask_source (supply, bytes, done) end
  local fetch = { first = gap.first, after = gap.after, began = supply.clock.now,
                  waiters = { done } }
  table.insert (supply.in_flight, fetch)
  local function kept ()
    for i, other in ipairs (supply.in_flight) do
      if other == fetch then table.remove (supply.in_flight, i) break end
    end
    supply.cache:add (fetch.first, fetch.after)
    note_trip (supply, fetch)
    for _, waiter in ipairs (fetch.waiters) do waiter () end
  end
  ask_source (supply, bytes, function ()
    if not supply.is_clone then return kept () end
    wait (supply, bytes * M.COPY_SECONDS, kept)
  end)
end

-- The clone layer asks for one part after the other.
local function fetch_in_turn (supply, gaps, i, part_done)
  local gap = gaps[i]
  if not gap then return end
  local function fetched ()
    part_done ()
    fetch_in_turn (supply, gaps, i + 1, part_done)
  end
  -- Others may have fetched it meanwhile.
  if #supply.cache:missing (gap.first, gap.after) == 0 then return fetched () end
  fetch_gap (supply, gap, true, fetched)
end

-- The requests that the clone layer makes of what is missing.
local function clone_requests (gaps)
  local requests = {}
  for _, gap in ipairs (gaps) do
    local last = requests[#requests]
    if last and gap.first - last.after <= CLONE_GAP_BYTES
       and gap.after - last.first <= CLONE_FETCH_BYTES then
      last.after = gap.after
    else
      for first = gap.first, gap.after - 1, CLONE_FETCH_BYTES do
        requests[#requests + 1] = {
          first = first, after = math.min (gap.after, first + CLONE_FETCH_BYTES)
        }
      end
    end
  end
  return requests
end

-- Holes take no fetch, nor does what is read of them later.
local function ask_for_holes (supply, first, after)
  if first >= supply.asked_first and after <= supply.asked_after
     or #supply.cache:missing (first, after) == 0 then
    return
  end
  supply.asked_first = first
  supply.asked_after = math.max (after, first + CLONE_ASK_BYTES)
  for _, hole in ipairs (supply.holes) do
    local from = math.max (hole[1], first)
    local to = math.min (hole[1] + hole[2], supply.asked_after)
    if from < to then supply.cache:add (from, to) end
  end
end

-- What of the gaps is not in a fetch.
local function subtract (gaps, fetch)
  local left, overlap = {}, false
  for _, gap in ipairs (gaps) do
    if fetch.after <= gap.first or gap.after <= fetch.first then
      left[#left + 1] = gap
    else
      overlap = true
      if gap.first < fetch.first then
        left[#left + 1] = { first = gap.first, after = fetch.first }
      end
      if fetch.after < gap.after then
        left[#left + 1] = { first = fetch.after, after = gap.after }
      end
    end
  end
  return left, overlap
end

--- A policy asks where data is: the clone layer keeps what the source says of holes.
-- @tparam integer offset from where on
function Supply:next_data (offset)
  if self.is_clone then
    ask_for_holes (self, offset, math.min (offset + SCAN_ASK_BYTES, self.size))
  end
end

--- Get a range from wherever it is.
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam boolean is_prefetch or a read
-- @tparam function done is called when it is there
-- @treturn table what had to be asked of the source: list of { first =, after = }
-- @treturn string "hit", "late" or "miss"
function Supply:get (offset, count, is_prefetch, done)
  local first, after, join_bytes = offset, offset + count, math.huge
  if self.is_clone then
    first = first // CLONE_BLOCK_BYTES * CLONE_BLOCK_BYTES
    after = math.min (-(-after // CLONE_BLOCK_BYTES) * CLONE_BLOCK_BYTES, self.size)
    if is_prefetch then
      ask_for_holes (self, first, after)
    else
      join_bytes = math.max (CLONE_JOIN_BYTES, after - first)
    end
    local seconds = M.REQUEST_SECONDS + (is_prefetch and 0 or count * M.COPY_SECONDS)
    local answered = done
    done = function () wait (self, seconds, answered) end
  end
  local gaps = self.cache:missing (first, after)
  local parts = 0
  local function part_done ()
    parts = parts - 1
    if parts == 0 then done () end
  end
  for _, fetch in ipairs (self.in_flight) do
    local left, overlap = subtract (gaps, fetch)
    if overlap and (fetch.after - fetch.first <= join_bytes
                    or ends_soon (self, fetch, after - first)) then
      gaps, parts = left, parts + 1
      table.insert (fetch.waiters, part_done)
    end
  end
  local kind = #gaps > 0 and "miss" or parts > 0 and "late" or "hit"
  if kind == "hit" then
    if self.is_clone then done () else wait (self, M.HIT_SECONDS, done) end
  elseif self.is_clone then
    local requests = clone_requests (gaps)
    parts = parts + #requests
    fetch_in_turn (self, requests, 1, part_done)
  else
    parts = parts + #gaps
    for _, gap in ipairs (gaps) do
      fetch_gap (self, gap, is_prefetch or self.keep_reads, part_done)
    end
  end
  return gaps, kind
end

--- Make one, with nothing in the cache.
-- @tparam table clock with `now`, seconds, and `events` (from scan.events)
-- @tparam table source as in the options of simulator.run, all of it
-- @tparam table options of simulator.run: `size`, `holes`, `layer` and `keep_reads`
-- @treturn table supply
function M.new (clock, source, options)
  return setmetatable ({
    clock = clock, source = source, busy = 0, link_free = 0,
    bucket = { level = source.burst_bytes, seconds = 0 },
    queue = {}, queue_first = 1, queue_last = 0, place = source.seed,
    cache = ranges.new (), in_flight = {}, trips = {}, size = options.size,
    keep_reads = options.keep_reads, is_clone = options.layer == "clone",
    holes = options.holes or {}, asked_first = 0, asked_after = 0,
  }, Supply)
end

return M
