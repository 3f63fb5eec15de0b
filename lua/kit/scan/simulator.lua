-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What a policy would do for a client: a simulation of discrete events.
--
-- Three things are modelled, and nothing else:
--
-- - *The source* does a number of requests at once (slots), the others queue in
--   the order they came.  A request takes the latency, then its bytes go over
--   one link of a given bandwidth, one request after the other; or, with
--   burst_bytes, past the token bucket of nbdkit's rate filter, where a small
--   request overtakes a large one.
-- - *The cache* in front of it keeps all that was prefetched and, if asked, what
--   was read.  A read of bytes that are being prefetched waits for them.  With
--   `layer = "clone"` it is the clone filter, which keeps whole blocks, lets no
--   read wait for a much larger prefetch, fetches the parts of a request one
--   after the other, learns of holes, and takes time to copy.
-- - *A client* reads what is in its trace, one read after the other (or several
--   at once), with the trace's think times between them.  When it has read all,
--   it goes.
--
-- A read is a *hit* if all of its bytes were in the cache, *late* if it had to
-- wait for bytes that somebody else had already asked for, a *miss* if bytes
-- had to be asked for on its behalf.
--
-- Not modelled: a full cache, processors that others want, the network between
-- the client and the server, prefetches and reads that fail.  Every run of the
-- same simulation is the same.  How near it comes to the real filters is measured:
-- tests/bench/truth.py.
--
-- @module scan.simulator

local events = require "scan.events"
local pace = require "scan.pace"
local ranges = require "scan.ranges"
local runner = require "scan.runner"
local testing = require "scan.testing"
local world = require "scan.world"

local M = {}

--- What a request that needs nothing from the source takes, in seconds.
M.HIT_SECONDS = 20e-6

--- What any request takes over the clone layer besides: a read of 4K from nbdkit over
-- a Unix socket, as tests/bench/client.c does it, is 30 to 60 us.
M.REQUEST_SECONDS = 50e-6

--- What the clone layer takes to copy a byte into its file, or out of it to the
-- client: a read of 256K that is there takes 0.12 to 0.19 ms more than one of 4K.
M.COPY_SECONDS = 1 / 2e9

-- The clone layer's blocks, the most that it asks for at once, and what it rather
-- reads again than ask twice: filter/clone/options.c and fetch.c.
local CLONE_BLOCK_BYTES = 4096
local CLONE_FETCH_BYTES = 2 * 1024 * 1024
local CLONE_GAP_BYTES = 64 * 1024

-- A read there waits for another's fetch of up to this much, or of its own size, or for
-- one that should end as soon as its own would.
local CLONE_JOIN_BYTES = 256 * 1024

-- So far ahead a prefetch asks it where holes are.
local CLONE_ASK_BYTES = 64 * 1024 * 1024

--- The source if nothing is said about it: 10 ms, 100 MB/s, 16 at a time (as
-- many as nbdkit has threads for a connection).
M.SOURCE = { latency_seconds = 0.01, bandwidth = 100e6, slots = 16, burst_bytes = 0 }

local DEFAULT_BLOCK_BYTES = 2 * 1024 * 1024
local DEFAULT_STEPS = 20 * 1000 * 1000
local PROGRESS_EVENTS = 20000

-- The policies that do what the stock filter does, and so have no pace.
local STOCK = { default = true, ahead = true, clock = true, forever = true }

-- -- the source and the cache -----------------------------------------------

local start_requests

local function end_request (sim, request, seconds)
  sim.events:add (seconds, function ()
    sim.busy = sim.busy - 1
    request.done ()
    start_requests (sim)
  end)
end

-- As bucket.c of nbdkit's rate filter: who finds too little takes that, sleeps for as
-- long as the rest takes to come, and looks again.
local function pass_bucket (sim, request, bytes)
  local source, bucket = sim.source, sim.bucket
  local came = (sim.now - bucket.seconds) * source.bandwidth
  local level = math.min (bucket.level + came, source.burst_bytes)
  bucket.seconds, bucket.level = sim.now, math.max (0, level - bytes)
  -- But for rounding, all of it.
  if level + 1 >= bytes then
    return end_request (sim, request, sim.now + source.latency_seconds)
  end
  sim.events:add (sim.now + (bytes - level) / source.bandwidth, function ()
    pass_bucket (sim, request, bytes - level)
  end)
end

local function pass_link (sim, request)
  local source = sim.source
  local arrived = sim.now + source.latency_seconds
  sim.link_free = math.max (arrived, sim.link_free) + request.bytes / source.bandwidth
  end_request (sim, request, sim.link_free)
end

start_requests = function (sim)
  local source = sim.source
  while sim.busy < source.slots and sim.queue[sim.queue_first] do
    local request = sim.queue[sim.queue_first]
    sim.queue[sim.queue_first] = nil
    sim.queue_first = sim.queue_first + 1
    sim.busy = sim.busy + 1
    if source.burst_bytes > 0 then
      pass_bucket (sim, request, request.bytes)
    else
      pass_link (sim, request)
    end
  end
end

local function ask_source (sim, bytes, done)
  sim.queue_last = sim.queue_last + 1
  sim.queue[sim.queue_last] = { bytes = bytes, done = done }
  start_requests (sim)
end

local function class_of (bytes)
  local n, blocks = 0, -(-bytes // CLONE_BLOCK_BYTES)
  while blocks > 1 do n, blocks = n + 1, blocks // 2 end
  return n
end

-- What the clone layer has seen fetches of such a size take: filter/clone/claims.h.
local function note_trip (sim, fetch)
  local n, seconds = class_of (fetch.after - fetch.first), sim.now - fetch.began
  sim.trips[n] = sim.trips[n] and (3 * sim.trips[n] + seconds) / 4 or seconds
end

local function ends_soon (sim, fetch, bytes)
  local trip = sim.trips[class_of (fetch.after - fetch.first)]
  local n = class_of (bytes)
  while n > 0 and not sim.trips[n] do n = n - 1 end
  local own = sim.trips[n] or 0
  local late = trip and sim.now - fetch.began - trip
  return trip and -own <= late and late <= own
end

-- Ask the source for a range.  If it is kept, others may wait for it.
local function fetch_gap (sim, gap, keep, done)
  local bytes = gap.after - gap.first
  if not keep then return ask_source (sim, bytes, done) end
  local fetch = { first = gap.first, after = gap.after, began = sim.now,
                  waiters = { done } }
  table.insert (sim.in_flight, fetch)
  local function kept ()
    for i, other in ipairs (sim.in_flight) do
      if other == fetch then table.remove (sim.in_flight, i) break end
    end
    sim.cache:add (fetch.first, fetch.after)
    note_trip (sim, fetch)
    for _, waiter in ipairs (fetch.waiters) do waiter () end
  end
  ask_source (sim, bytes, function ()
    if not sim.is_clone then return kept () end
    sim.events:add (sim.now + bytes * M.COPY_SECONDS, kept)
  end)
end

-- The clone layer asks for one part after the other.
local function fetch_in_turn (sim, gaps, i, part_done)
  local gap = gaps[i]
  if not gap then return end
  local function fetched ()
    part_done ()
    fetch_in_turn (sim, gaps, i + 1, part_done)
  end
  -- Others may have fetched it meanwhile.
  if #sim.cache:missing (gap.first, gap.after) == 0 then return fetched () end
  fetch_gap (sim, gap, true, fetched)
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

-- Before a prefetch: holes take no fetch, nor does what is read of them later.
local function ask_for_holes (sim, first, after)
  if first >= sim.asked_first and after <= sim.asked_after
     or #sim.cache:missing (first, after) == 0 then
    return
  end
  sim.asked_first, sim.asked_after = first, math.max (after, first + CLONE_ASK_BYTES)
  for _, hole in ipairs (sim.holes) do
    local from = math.max (hole[1], first)
    local to = math.min (hole[1] + hole[2], sim.asked_after)
    if from < to then sim.cache:add (from, to) end
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

-- Get a range from wherever it is, for a prefetch or a read.  Returns what had to be
-- asked of the source, and "hit", "late" or "miss".
local function get (sim, offset, count, is_prefetch, done)
  local first, after, join_bytes = offset, offset + count, math.huge
  if sim.is_clone then
    first = first // CLONE_BLOCK_BYTES * CLONE_BLOCK_BYTES
    after = math.min (-(-after // CLONE_BLOCK_BYTES) * CLONE_BLOCK_BYTES, sim.size)
    if is_prefetch then
      ask_for_holes (sim, first, after)
    else
      join_bytes = math.max (CLONE_JOIN_BYTES, after - first)
    end
    local seconds = M.REQUEST_SECONDS + (is_prefetch and 0 or count * M.COPY_SECONDS)
    local answered = done
    done = function () sim.events:add (sim.now + seconds, answered) end
  end
  local gaps = sim.cache:missing (first, after)
  local parts = 0
  local function part_done ()
    parts = parts - 1
    if parts == 0 then done () end
  end
  for _, fetch in ipairs (sim.in_flight) do
    local left, overlap = subtract (gaps, fetch)
    if overlap and (fetch.after - fetch.first <= join_bytes
                    or ends_soon (sim, fetch, after - first)) then
      gaps, parts = left, parts + 1
      table.insert (fetch.waiters, part_done)
    end
  end
  local kind = #gaps > 0 and "miss" or parts > 0 and "late" or "hit"
  if kind == "hit" then
    if sim.is_clone then done () else sim.events:add (sim.now + M.HIT_SECONDS, done) end
  elseif sim.is_clone then
    local requests = clone_requests (gaps)
    parts = parts + #requests
    fetch_in_turn (sim, requests, 1, part_done)
  else
    parts = parts + #gaps
    for _, gap in ipairs (gaps) do
      fetch_gap (sim, gap, is_prefetch or sim.keep_reads, part_done)
    end
  end
  return gaps, kind
end

-- -- clients and scans --------------------------------------------------------

local read_next

local function begin_read (sim, client, read)
  local scan = client.scan
  -- What is there, or on its way, asks nothing of the line.
  local charge = scan:begin_read (read.offset, read.count) == "miss" and read.count or 0
  local reads = charge > 0 and 1 or 0
  sim.client.begun = sim.client.begun + charge
  sim.client.reads = sim.client.reads + reads
  local record
  local gaps, kind = get (sim, read.offset, read.count, false, function ()
    sim.client.ended = sim.client.ended + charge
    sim.client.reads = sim.client.reads - reads
    scan:end_read ()
    if record then record.done = sim.now end
    client.in_flight = client.in_flight - 1
    sim.reads_done = sim.reads_done + 1
    client.ended (read)
  end)
  for _, gap in ipairs (gaps) do
    sim.demand_bytes = sim.demand_bytes + gap.after - gap.first
  end
  sim.counts[kind] = sim.counts[kind] + 1
  sim.wanted:add (read.offset, read.offset + read.count)
  sim.read_bytes = sim.read_bytes + read.count
  if sim.record then
    record = { offset = read.offset, count = read.count, seconds = sim.now,
               kind = kind, client = client.number }
    table.insert (sim.reads, record)
  end
end

local function finish_client (sim, client)
  sim.clients_left = sim.clients_left - 1
  sim.finished_seconds = sim.now
  if not sim.background or sim.clients_left == 0 then client.scan:close () end
end

read_next = function (sim, client)
  local read = client.trace[client.next]
  if not read then
    if client.in_flight == 0 then finish_client (sim, client) end
    return
  end
  client.next = client.next + 1
  client.in_flight = client.in_flight + 1
  sim.events:add (sim.now + sim.think (read), function ()
    begin_read (sim, client, read)
  end)
end

-- A client that reads what its trace says, so many reads at a time.
local function start_client (sim, client, depth)
  client.ended = function () read_next (sim, client) end
  for _ = 1, math.max (1, math.min (depth, #client.trace)) do read_next (sim, client) end
end

-- A client whose reads depend on one another: each begins its think time after
-- the end of the one that it waited for when it was recorded.
local function start_closed_loop (sim, client)
  local waiting, left = {}, #client.trace
  local function start (read)
    client.in_flight = client.in_flight + 1
    sim.events:add (sim.now + read.think, function () begin_read (sim, client, read) end)
  end
  client.ended = function (read)
    left = left - 1
    for _, next_one in ipairs (waiting[read] or {}) do start (next_one) end
    if left == 0 then finish_client (sim, client) end
  end
  for _, read in ipairs (client.trace) do
    local before = client.trace[read.after]
    if before then
      waiting[before] = waiting[before] or {}
      table.insert (waiting[before], read)
    end
  end
  for _, read in ipairs (client.trace) do
    if read.after == 0 then start (read) end
  end
  if left == 0 then finish_client (sim, client) end
end

local function prefetch (sim, scan, offset, count)
  local record
  local began, transfer = sim.now, scan.credit
  if transfer then
    scan.credit = nil
    sim.pace:begin (transfer, sim.client, began)
  end
  local gaps = get (sim, offset, count, true, function ()
    if record then record.done = sim.now end
    if transfer then sim.pace:done (transfer, count, sim.now) end
    scan:done (offset, count, sim.now - began)
  end)
  for _, gap in ipairs (gaps) do
    sim.prefetched:add (gap.first, gap.after)
  end
  table.insert (sim.prefetches, { offset, count })
  if sim.record then
    record = { offset = offset, count = count, seconds = sim.now }
    table.insert (sim.timeline, record)
  end
end

-- Let a scan do what it can do now.
local function pump (sim, scan)
  while true do
    local action, a, b = scan:next ()
    if scan.requests > sim.steps then
      error (("gave up after %d requests of the policy at %.3f simulated seconds")
               :format (sim.steps, sim.now), 0)
    end
    if action == "prefetch" then
      prefetch (sim, scan, a, b)
    elseif action == "next_data" then
      scan:answer (sim.next_data (a))
    elseif action == "pread" then
      get (sim, a, b, false, function () scan:answer (sim.pread (a, b)) end)
      return
    else
      -- Room is for who has something to fetch now.
      if scan.credit and (scan.state == "waiting" or scan.state == "settling"
                          or action) then
        sim.pace:give (scan.credit)
        scan.credit = nil
      end
      return
    end
  end
end

-- Let time pass until the next thing happens.  False if nothing will.
local function pass_time (sim)
  local deadline
  for _, scan in ipairs (sim.scans) do
    local at = scan.state == "waiting" and not scan.has_no_room and scan.deadline
      or scan.has_no_room and sim.pace:retry (sim.now)
    if at and (not deadline or at < deadline) then deadline = at end
  end
  local seconds = sim.events:next_seconds ()
  if deadline and (not seconds or deadline < seconds) then
    sim.now = math.max (sim.now, deadline)
    return true
  end
  local action = sim.events:take ()
  if not action then return false end
  sim.now = math.max (sim.now, seconds)
  action ()
  return true
end

local function check_number (value, name, least)
  if type (value) ~= "number" or value ~= value or value < least then
    error (("%s: a number of at least %s expected, got %s")
             :format (name, least, tostring (value)), 0)
  end
  return value
end

local function check_source (given)
  local source = {}
  for name, default in pairs (M.SOURCE) do
    source[name] = given and given[name] or default
  end
  check_number (source.latency_seconds, "source.latency_seconds", 0)
  check_number (source.burst_bytes, "source.burst_bytes", 0)
  check_number (source.bandwidth, "source.bandwidth (bytes a second)", 1)
  check_number (source.slots, "source.slots", 1)
  return source
end

local function check_traces (traces, size)
  if #traces == 0 then error ("traces: at least one expected", 0) end
  for i, trace in ipairs (traces) do
    for j, read in ipairs (trace) do
      if read.offset + read.count > size then
        error (("traces[%d]: read %d (offset %d, count %d) is outside the disk (size %d)")
                 :format (i, j, read.offset, read.count, size), 0)
      end
    end
  end
end

local function new_scan (sim, options)
  local scan
  local function room ()
    scan.credit = scan.credit
      or sim.pace:take (sim.client, sim.now)
    return scan.credit and scan.credit.count or 0
  end
  scan = runner.new {
    world = sim.world, size = options.size,
    block = options.block or DEFAULT_BLOCK_BYTES,
    export = options.export or "", threads = options.threads or 1,
    now = function () return sim.now end,
    room = sim.pace and room,
  }
  return scan
end

-- Is this policy paced, as the filter would?
local function is_paced (options)
  if options.pace ~= nil then return options.pace end
  local name = options.policy
  return type (name) == "string" and not STOCK[name]
end

--- Simulate.
--
-- @tparam table options
--
-- - `traces`: list of traces (from scan.trace), one for each client
-- - `policy`, `args`, `files`, `print`, `warn`: as for `testing.run`, or `world`; no
--   policy at all: nothing is prefetched
-- - `size`, `block`, `export`, `threads`, `holes`, `contents`: the same
-- - `source`: { latency_seconds =, bandwidth = (bytes a second), slots =, burst_bytes =
--   (what a token bucket holds; 0 for a link) }
-- - `layer`: "clone" if the clone filter is the cache; else it is an ideal one
-- - `keep_reads`: true if the ideal one keeps what is read, too (cache-on-read)
-- - `closed_loop`: true if the reads of the traces say which other one they wait for:
--   `after`, its index or 0, and `think`, seconds (see scan.closed_loop)
-- - `depth`: reads that each client has in flight (1)
-- - `think_seconds`: the same before every read, instead of the trace's
-- - `background`: true for one scan shared by all clients
-- - `record`: true to keep what `scan.plot` draws
-- - `progress`: function of the reads done and of all reads, called now and then
--
-- @treturn table result
--
-- - `seconds`: until the last client had read all; `ideal_seconds`: what no
--   policy can beat: the latency once, then the bytes at full bandwidth or the
--   think times, whichever is longer
-- - `hits`, `late`, `misses`: reads
-- - `read_bytes`: read by the clients; `wanted_bytes`: each byte counted once
-- - `prefetched_bytes`: asked of the source by the policy; `wasted_bytes`: of
--   those, never read; `demand_bytes`: asked of the source for reads
-- - `prefetches`: list of { offset, count } in the order of issue
-- - `error`: message with a traceback if the policy failed
-- - `reads`, `timeline`: with `record`
function M.run (options)
  local size = options.size
  check_number (size, "size", 0)
  check_traces (options.traces, size)
  local fixed = options.think_seconds
  local sim = {
    events = events.new (), now = 0, finished_seconds = 0,
    source = check_source (options.source), busy = 0, link_free = 0,
    queue = {}, queue_first = 1, queue_last = 0,
    cache = ranges.new (), in_flight = {}, trips = {}, size = size,
    keep_reads = options.keep_reads, is_clone = options.layer == "clone",
    holes = options.holes or {}, asked_first = 0, asked_after = 0,
    pace = is_paced (options) and pace.new (options.block or DEFAULT_BLOCK_BYTES) or nil,
    client = { begun = 0, ended = 0, reads = 0 },
    wanted = ranges.new (), prefetched = ranges.new (),
    counts = { hit = 0, late = 0, miss = 0 },
    read_bytes = 0, demand_bytes = 0, reads_done = 0,
    prefetches = {}, record = options.record, reads = {}, timeline = {},
    next_data = testing.next_data (options.holes, size),
    pread = testing.pread (options.contents),
    think = function (read) return fixed or read.idle or 0 end,
    background = options.background, clients_left = #options.traces,
    scans = {}, steps = options.steps or DEFAULT_STEPS,
  }
  sim.bucket = { level = sim.source.burst_bytes, seconds = 0 }
  sim.world = options.world or world.load {
    policy = options.policy or function () end,
    args = options.args, files = options.files, print = options.print,
    warn = options.warn,
  }

  local clients, reads_all, think_most = {}, 0, 0
  for i, trace in ipairs (options.traces) do
    local scan = sim.background and sim.scans[1] or new_scan (sim, options)
    if scan ~= sim.scans[1] then table.insert (sim.scans, scan) end
    clients[i] = { number = i, trace = trace, next = 1, in_flight = 0, scan = scan }
    local think = 0
    for _, read in ipairs (trace) do
      if not options.closed_loop then think = think + sim.think (read) end
    end
    think_most = math.max (think_most, think)
    reads_all = reads_all + #trace
  end
  -- A scan starts when its client connects, before the first read.
  for _, scan in ipairs (sim.scans) do pump (sim, scan) end
  for _, client in ipairs (clients) do
    if options.closed_loop then
      start_closed_loop (sim, client)
    else
      start_client (sim, client, options.depth or 1)
    end
  end

  local count = 0
  while sim.clients_left > 0 and pass_time (sim) do
    for _, scan in ipairs (sim.scans) do pump (sim, scan) end
    count = count + 1
    if options.progress and count % PROGRESS_EVENTS == 0 then
      options.progress (sim.reads_done, reads_all)
    end
  end
  -- The last turns, once what is in flight has arrived.
  while sim.events:next_seconds () and pass_time (sim) do
    for _, scan in ipairs (sim.scans) do pump (sim, scan) end
  end

  local failed
  for _, scan in ipairs (sim.scans) do failed = failed or scan.error end
  local wanted_bytes = sim.wanted:bytes ()
  return {
    seconds = sim.finished_seconds,
    ideal_seconds = sim.source.latency_seconds
      + math.max (wanted_bytes / sim.source.bandwidth, think_most),
    hits = sim.counts.hit, late = sim.counts.late, misses = sim.counts.miss,
    read_bytes = sim.read_bytes, wanted_bytes = wanted_bytes,
    prefetched_bytes = sim.prefetched:bytes (),
    wasted_bytes = sim.prefetched:bytes_without (sim.wanted),
    demand_bytes = sim.demand_bytes,
    prefetches = sim.prefetches, error = failed,
    reads = sim.record and sim.reads, timeline = sim.record and sim.timeline,
    size = size, name = sim.world.name,
  }
end

return M
