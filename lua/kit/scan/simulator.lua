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
local supply = require "scan.supply"
local testing = require "scan.testing"
local world = require "scan.world"

local M = {}

--- What a request that needs nothing from the source takes, in seconds.
M.HIT_SECONDS = supply.HIT_SECONDS

--- What any request takes over the clone layer besides: a read of 4K from nbdkit over
-- a Unix socket, as tests/bench/client.c does it, is 30 to 60 us.
M.REQUEST_SECONDS = supply.REQUEST_SECONDS

--- What the clone layer takes to copy a byte into its file, or out of it to the
-- client: a read of 256K that is there takes 0.12 to 0.19 ms more than one of 4K.
M.COPY_SECONDS = supply.COPY_SECONDS

--- The source if nothing is said about it: 10 ms, 100 MB/s, 16 at a time (as
-- many as nbdkit has threads for a connection).
M.SOURCE = { latency_seconds = 0.01, bandwidth = 100e6, slots = 16, burst_bytes = 0,
             together_seconds = 0, jitter_seconds = 0, seed = 1 }

local DEFAULT_BLOCK_BYTES = 2 * 1024 * 1024
local DEFAULT_STEPS = 20 * 1000 * 1000
local PROGRESS_EVENTS = 20000

-- The policies that do what the stock filter does, and so have no pace.
local STOCK = { default = true, ahead = true, clock = true, forever = true }

-- -- clients and scans --------------------------------------------------------

local function begin_read (sim, client, read)
  local scan = client.scan
  -- What is there, or on its way, asks nothing of the line.
  local charge = scan:begin_read (read.offset, read.count) == "miss" and read.count or 0
  local reads = charge > 0 and 1 or 0
  sim.client.begun = sim.client.begun + charge
  sim.client.reads = sim.client.reads + reads
  local record
  local gaps, kind = sim.supply:get (read.offset, read.count, false, function ()
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
  local unfetched = sim.prefetched:missing (read.offset, read.offset + read.count)
  -- What was read before the clone keeps in any case.
  if kind == "hit" and #unfetched == 0
     and #sim.wanted:missing (read.offset, read.offset + read.count) > 0 then
    sim.client.hits = sim.client.hits + 1
    sim.client.hit_bytes = sim.client.hit_bytes + read.count
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

local function read_next (sim, client)
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
  local gaps = sim.supply:get (offset, count, true, function ()
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
      sim.supply:next_data (a)
      scan:answer (sim.next_data (a))
    elseif action == "pread" then
      sim.supply:get (a, b, false, function () scan:answer (sim.pread (a, b)) end)
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
  -- Threads that were woken together have all ended before one of them goes on.
  while sim.source.together_seconds > 0 and sim.events:next_seconds () == seconds do
    sim.events:take () ()
  end
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
  check_number (source.together_seconds, "source.together_seconds", 0)
  check_number (source.jitter_seconds, "source.jitter_seconds", 0)
  if math.type (source.seed) ~= "integer" then
    error ("source.seed: an integer expected, got " .. tostring (source.seed), 0)
  end
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
  return type (name) == "string" and not STOCK[name:match ("^(.*)%.lua$") or name]
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
--   (what a token bucket holds; 0 for a link), together_seconds = (answers that come
--   within as much of each other come at once; 0 for one by one), jitter_seconds = (so
--   much later an answer may come, by chance), seed = (an integer: other chances) }
-- - `layer`: "clone" if the clone filter is the cache; else it is an ideal one
-- - `keep_reads`: true if the ideal one keeps what is read, too (cache-on-read)
-- - `closed_loop`: true if the reads of the traces say which other one they wait for:
--   `after`, its index or 0, and `think`, seconds after that one's end
-- - `depth`: reads that each client has in flight (1)
-- - `think_seconds`: the same before every read, instead of the trace's
-- - `background`: true for one scan shared by all clients
-- - `record`: true to keep what `scan.plot` draws
-- - `progress`: function of the reads done and of all reads, called now and then
--
-- @treturn table result
--
-- - `seconds`: until the last client had read all; `ideal_seconds`: what no
--   policy can beat: the latency once and then the bytes at full bandwidth, or the
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
    source = check_source (options.source),
    pace = is_paced (options) and pace.new (options.block or DEFAULT_BLOCK_BYTES) or nil,
    client = { begun = 0, ended = 0, reads = 0, hits = 0, hit_bytes = 0 },
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
  sim.supply = supply.new (sim, sim.source, options)
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
    -- So many reads may think at a time.
    local depth = math.max (1, math.min (options.depth or 1, #trace))
    think_most = math.max (think_most, think / depth)
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
    ideal_seconds = math.max (
      sim.source.latency_seconds + wanted_bytes / sim.source.bandwidth, think_most),
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
