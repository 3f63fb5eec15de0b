-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- Writes down what lua/kit/scan/pace.lua is put through, what it says, and what
-- filter/scan/pace.c should say in tests/unit/test-pace-events.c.  Run by make.
--
--     init LARGEST
--     take BEGUN ENDED READS HITS NOW COUNT
--     begin ID BEGUN ENDED READS NOW
--     end ID COUNT NOW PIECE LEVEL
--
-- in bytes and nanoseconds, which are whole, so that both see the same ones; each hit is
-- of 4096 bytes.

package.path = "lua/kit/?.lua;" .. package.path
local events = require "scan.events"
local pace = require "scan.pace"

local EVENTS = 1200
local MS = 1000000
local RETRY = 4 * MS
local LARGEST = 2 << 20
local HIT_BYTES = 4096 -- of each hit

-- Threads that prefetch, and a client that now reads and now pauses, on a line that
-- takes so many requests at once.  Every 50th transfer is held up, every 70th fails.  If
-- it is "short" every second is, if "late" all are, by up to a latency.
local function run (latency, rate, slots, threads, client_count, odd)
  local p, queue = pace.new (LARGEST), events.new ()
  local client = { begun = 0, ended = 0, reads = 0, hits = 0, hit_bytes = 0 }
  local now, link_free, busy, written, id = 0, 0, 0, 0, 0
  local waiting, free, wants = {}, threads, true

  local function write (format, ...)
    print (format:format (...))
    written = written + 1
  end

  local function start ()
    while busy < slots and #waiting > 0 do
      local request = table.remove (waiting, 1)
      busy = busy + 1
      link_free = math.max (now + latency, link_free) + request.count * 1000 * MS // rate
      queue:add (link_free + request.more, function ()
        busy = busy - 1
        request.done ()
      end)
    end
  end

  local function ask (count, more, done)
    table.insert (waiting, { count = count, more = more, done = done })
  end

  local function take ()
    while free > 0 do
      local transfer = p:take (client, now / 1e9)
      write ("take %d %d %d %d %d %d", client.begun, client.ended, client.reads,
             client.hits, now, transfer and transfer.count or 0)
      if not transfer then return end
      id, free = id + 1, free - 1
      local mine = id
      write ("begin %d %d %d %d %d", mine, client.begun, client.ended, client.reads, now)
      p:begin (transfer, client, now / 1e9)
      local wanted = odd == "short" and mine % 2 == 1 and 32768 or transfer.count
      local count = mine % 70 == 69 and 0 or wanted
      local late = odd == "late" and mine * 7919 % 64 * latency // 64 or 0
      ask (wanted, mine % 50 == 49 and 3 * latency or late, function ()
        free = free + 1
        p:done (transfer, count, now / 1e9)
        write ("end %d %d %d %d %.3f", mine, count, now, p.piece, p.level)
      end)
    end
  end

  -- Of its reads, every fifth is of what was fetched for it; see HIT_BYTES.
  local reads = 0
  local function read ()
    reads = reads + 1
    if reads % 5 == 4 then
      client.hits, client.hit_bytes = client.hits + 1, client.hit_bytes + HIT_BYTES
      return queue:add (now + MS, read)
    end
    client.begun, client.reads = client.begun + client_count, client.reads + 1
    ask (client_count, 0, function ()
      client.ended, client.reads = client.ended + client_count, client.reads - 1
      queue:add (now + (reads % 20 == 0 and 20 * latency or MS), read)
    end)
  end

  local function retry ()
    wants = true
    queue:add (now + RETRY, retry)
  end

  write ("init %d", LARGEST)
  if client_count > 0 then queue:add (5 * latency, read) end
  retry ()
  while written < EVENTS do
    local ours = free
    if wants then take () end
    start ()
    now = math.max (now, queue:next_seconds ())
    queue:take () ()
    wants = wants or free ~= ours
  end
end

run (20 * MS, 50000000, 64, 32, 0)
run (80 * MS, 12500000, 64, 16, 4096)
run (20 * MS, 50000000, 1, 8, 16384)
run (20 * MS, 50000000, 4, 8, 0)
run (MS // 10, 1000000000, 64, 4, 4096)
run (50 * MS, 1250000, 64, 8, 65536)
run (20 * MS, 4000000000, 64, 1, 0)
run (5 * MS, 4000000000, 1, 8, 262144)
run (50 * MS, 12500000, 64, 8, 262144)
run (MS, 1250000, 64, 1, 4096, "short")
run (20 * MS, 12500000, 64, 8, 4096, "late")
run (10 * MS, 12500000, 4, 16, 262144, "short")
run (20 * MS, 4000000000, 4, 16, 262144, "short")
