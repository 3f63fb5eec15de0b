-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- How much may be on its way from the source: the filter's pace, once more.
--
-- This is filter/scan/pace.c, function by function, so that a policy meets in the
-- simulator what it meets in the server; filter/scan/pace.h says how it works, and what
-- is said of a function or a step there is not said again here.  Times are in seconds.
-- Change both: tests/unit/test-pace-events.c compares them.
--
-- @module scan.pace

local M = {}

local Pace = {}
Pace.__index = Pace

M.LEAST = 4096
M.SMALLEST = 65536
M.DEPTH = 8
M.NEAR_SECONDS = 0.0005

local MORE_BRINGS, LARGER_BEATS = 0.6, 1.15
local CLEARLY, BESIDE = 1.1, 1.75
local FULL = 0.8
local ROUNDING = 0.75
local GAIN = 1.1
local HOLD_TRANSFERS = 28
local TOGETHER = 1 / 32
local NEAR_IN_A_ROW = 4
local PIECE_TIMES = 2
local FIRST_BESIDE, FIRST_TRIES, FIRST_TIMES = 4, 3, 8
local HARM, CREDIT_TRIPS = 0.02, 5
local ANEW_SECONDS, HUNG_SECONDS = 15, 10
local RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 0.001, 0.02

local function smallest_piece (p)
  return math.min (p.largest, M.SMALLEST)
end

-- How long the bytes of a piece take by themselves.
local function bytes_seconds (p, bytes)
  return p.serial * bytes / smallest_piece (p)
end

local function alone_seconds (p)
  return p.least + bytes_seconds (p, p.is_by_requests and p.piece or smallest_piece (p))
end

local function window_of (p)
  return GAIN * p.bandwidth * alone_seconds (p)
end

-- -- levels -----------------------------------------------------------------------

-- Nothing has ended so far.
local function no_sum ()
  return { in_flight = 0, ours = 0, trip = 0, least = math.huge, nr = 0 }
end

local function set_level (p, phase, level)
  p.phase, p.level, p.level_id = phase, level, p.level_id + 1
  p.nr_older, p.nr_ended = p.nr_ours, 0
  p.full, p.missed = no_sum (), no_sum ()
  p.brought = { count = 0, nr = 0 }
  p.low_is_burst = false
  p.owed = { nr = 0 }
end

local function is_beginning (p)
  return p.phase == "first" and p.piece > 0
end

local function begin_anew (p, now)
  p.anew = now + ANEW_SECONDS
  p.piece = math.min (p.largest, M.LEAST)
  p.is_by_requests = false
  p.wider, p.cannot_narrow, p.found_serial = nil, false, nil
  p.was_long = false
  p.nr_near, p.nr_tries = 0, 0
  set_level (p, "first", 0)
end

local function whole_pieces (p, bytes)
  local most = math.floor (math.min (bytes, p.largest))
  return math.max (smallest_piece (p), most - most % M.SMALLEST)
end

local function hold (p, window)
  p.window = math.max (window, p.piece)
  set_level (p, "hold", p.window)
  if not p.is_by_requests then p.piece = whole_pieces (p, p.window / M.DEPTH) end
end

local function is_full (p, times)
  return bytes_seconds (p, times * p.bandwidth) >= FULL
end

-- A piece takes no longer than so many times what the smallest takes.
local function may_be (p, piece)
  return piece <= p.largest
    and p.least + bytes_seconds (p, piece) <= PIECE_TIMES * (p.least + p.serial)
end

local function try_larger (p, level)
  local times = may_be (p, 4 * p.piece) and not is_full (p, 4) and 4 or 2
  p.low_level, p.low_piece = level, p.piece
  p.piece = times * p.piece
  set_level (p, "larger", times * level)
end

local function end_larger (p, level, piece)
  p.is_by_requests = piece > p.guessed
  p.piece = p.is_by_requests and piece or smallest_piece (p)
  local window = math.min (level, window_of (p))
  if p.is_by_requests and p.low.in_flight >= 2 * piece then
    if window >= (1 + ROUNDING) * piece then
      window = math.max (window, 2 * piece)
    else
      p.piece = whole_pieces (p, window / 2)
    end
  end
  hold (p, window)
end

-- See pace.c: more than the line's bytes allow is of pieces that were cut short.
local function counted (p, m)
  if p.brought.nr == 0 or p.is_by_requests or p.serial == 0 then return m end
  local part = math.min (1, p.brought.count / p.brought.nr / p.piece)
  local least = math.max (m.in_flight - (1 - part) * m.ours,
                          m.trip / bytes_seconds (p, FULL))
  return { in_flight = math.min (m.in_flight, least), ours = m.ours, trip = m.trip }
end

local function rate_of (means) return means.in_flight / means.trip end

local function mean_of (sum)
  return { in_flight = sum.in_flight / sum.nr, ours = sum.ours / sum.nr,
           trip = sum.trip / sum.nr }
end

local function has_grown (low, high)
  local added = high.in_flight / low.in_flight - 1
  return added > 0 and rate_of (high) >= rate_of (low) * (1 + MORE_BRINGS * added)
end

local function end_more (p, m, is_reached)
  p.low, p.bandwidth = m, rate_of (m)
  local window = math.max (is_reached and window_of (p) or m.in_flight, p.piece)
  local is_free = not is_reached or not is_full (p, 1)
  p.is_by_requests = p.is_by_requests or is_free
  if is_free and may_be (p, 2 * p.piece) then return try_larger (p, window) end
  hold (p, window)
end

-- Enough is known of a level, by its phase.
local DECIDE = {}

local function is_tried_again (p, m)
  local known = p.least + (p.piece < smallest_piece (p) and 0 or p.serial)
  if p.nr_tries > 0 then m.trip = math.min (m.trip, p.low.trip) end
  p.low = { in_flight = p.piece, trip = m.trip }
  if m.in_flight ~= p.piece and p.bandwidth > 0 and m.trip > CLEARLY * known then
    p.nr_tries = p.nr_tries + 1
    if p.nr_tries < FIRST_TRIES then
      set_level (p, "first", 0)
      return true
    end
  end
  p.nr_tries = 0
  return false
end

local function first_piece (p, count)
  local most = math.min (p.largest / 2, FIRST_TIMES * count)
  if p.serial > 0 then
    most = math.min (most, p.least / M.DEPTH / p.serial * smallest_piece (p))
  end
  return whole_pieces (p, most)
end

local function measure_twice (p, trip, count, is_beside)
  local before = p.before
  if count < 2 * before.count or is_beside and before.trip > CLEARLY * trip then
    return false
  end
  local is_alone = not is_beside and not before.is_beside
  if before.is_beside and not is_beside then
    before = { trip = p.least, count = M.LEAST }
  end
  p.serial = math.max (0, trip - before.trip) * smallest_piece (p)
    / (count - before.count)
  if is_alone then
    p.least = math.max (M.NEAR_SECONDS, before.trip - bytes_seconds (p, before.count))
  end
  return true
end

local function end_first (p, theirs, trip, count)
  p.serial, p.shown_serial = math.max (p.serial, math.min (p.shown_serial, p.least)), 0
  p.low = { in_flight = p.piece, ours = p.piece, trip = trip }
  p.piece = first_piece (p, count)
  p.guessed = p.piece
  if p.moved >= p.anew then p.anew = p.moved + ANEW_SECONDS end
  if p.serial > p.least then
    p.bandwidth = p.piece / p.serial
    return hold (p, p.piece)
  end
  set_level (p, "more", theirs
             + math.max (2 * p.piece,
                         math.min (p.window / 2, M.DEPTH * p.piece)))
end

function DECIDE.first (p, m, count)
  local smallest = smallest_piece (p)
  local theirs, trip = m.in_flight - p.piece, m.trip
  if p.piece > smallest then
    if not measure_twice (p, trip, count, theirs > 0) then count = 0 end
    p.piece = smallest
    return end_first (p, theirs, p.least + p.serial, count)
  end
  if theirs > 0 and p.least > 0 and trip > BESIDE * p.least then
    m.trip = math.max (p.least, trip - p.least)
  end
  if is_tried_again (p, m) then return end
  if p.piece < smallest then
    p.least, p.piece = m.trip, smallest
    return set_level (p, "first", 0)
  end
  local is_known = p.least > 0
  if is_known and count > M.LEAST then
    p.serial = math.max (0, m.trip - p.least) * smallest / (count - M.LEAST)
  end
  if m.trip * CLEARLY < p.least then
    p.least = m.trip
    p.piece = math.min (p.largest, M.LEAST)
    return set_level (p, "first", 0)
  end
  p.least = is_known and math.min (p.least, m.trip) or m.trip
  local is_thin = p.serial > p.least
  local is_doubtful = theirs == 0 and is_thin
    or theirs > 0 and not is_thin and trip > CLEARLY * p.least
  if (not is_known or is_doubtful)
     and count > M.LEAST and p.largest >= 2 * smallest then
    p.before = { trip = trip, count = count, is_beside = theirs > 0 }
    p.piece = 2 * smallest
    return set_level (p, "first", 0)
  end
  end_first (p, theirs, m.trip, count)
end

function DECIDE.more (p, m)
  m = counted (p, m)
  if not has_grown (p.low, m) then return end_more (p, m, true) end
  if not p.low_is_burst then
    p.least = math.max (p.least, p.low.trip - bytes_seconds (p, p.piece))
  end
  local times = p.piece <= M.SMALLEST and m.trip <= CLEARLY * p.low.trip and 4 or 2
  p.low = m
  set_level (p, "more", times * p.level)
end

function DECIDE.larger (p, m)
  local should = p.piece / p.low_piece
    * (p.least + bytes_seconds (p, p.low_piece)) / (p.least + bytes_seconds (p, p.piece))
  if m.in_flight / p.full.least < LARGER_BEATS * p.bandwidth
     or m.ours / p.full.least < MORE_BRINGS * should * p.low.ours / p.low.trip then
    if p.full.nr < 2 then return end
    return end_larger (p, p.low_level, p.low_piece)
  end
  p.low, p.bandwidth = m, rate_of (m)
  if may_be (p, 2 * p.piece) and (p.level < 2 * p.piece
     or not is_full (p, m.in_flight > m.ours and 1 or FULL)) then
    return try_larger (p, p.level)
  end
  end_larger (p, p.level, p.piece)
end

local function judge_narrower (p, carried)
  local wider = p.wider
  p.wider = nil
  if not has_grown (carried, wider.carried)
     and rate_of (carried) >= FULL * rate_of (wider.carried) then
    if not p.is_by_requests then
      p.found_serial = p.found_serial or math.max (p.serial, 1e-9)
      p.shown_serial = smallest_piece (p) / rate_of (carried)
      p.serial = math.max (p.serial, p.shown_serial)
    end
    return false
  end
  p.piece, p.is_by_requests, p.cannot_narrow = wider.piece, wider.is_by_requests, true
  hold (p, wider.window)
  return true
end

local function narrow (p, sum)
  local m = mean_of (sum)
  local part = math.min (1, p.brought.count / p.brought.nr / p.piece)
  local carried = { in_flight = part * m.in_flight, trip = m.trip }
  if p.wider and judge_narrower (p, carried) then return true end
  local long = CLEARLY * GAIN * alone_seconds (p)
  if p.cannot_narrow or math.min (p.window, m.in_flight) < 2 * p.piece
     or m.trip <= long or sum.least > long then
    p.was_long = false
    return false
  end
  p.was_long = not p.was_long
  if p.was_long then
    hold (p, p.window)
    return true
  end
  p.wider = { carried = carried, window = p.window, piece = p.piece,
              is_by_requests = p.is_by_requests }
  p.bandwidth = rate_of (m)
  if window_of (p) < 2 * p.piece then
    p.bandwidth, p.is_by_requests = rate_of (carried), false
  end
  local window = math.max (window_of (p), 2 * smallest_piece (p))
  hold (p, math.min (p.window, window))
  return true
end

function DECIDE.hold (p, m)
  if narrow (p, p.full) then return end
  p.low = m
  if p.window >= 2 * p.piece then
    return set_level (p, "probe", p.window + math.max (p.window / 4, p.piece))
  end
  local reads = m.in_flight > m.ours and 2 or 1
  if p.full.least > reads * BESIDE * alone_seconds (p) then
    if p.piece <= smallest_piece (p) then return begin_anew (p, p.moved) end
    p.shown_serial = (p.full.least - p.least) * smallest_piece (p) / p.piece
  end
  hold (p, p.window)
end

function DECIDE.probe (p, m)
  m = counted (p, m)
  if has_grown (p.low, m) then
    p.anew = p.moved + ANEW_SECONDS
    p.low = m
    p.serial, p.found_serial, p.shown_serial = p.found_serial or p.serial, nil, 0
    return set_level (p, "more", 2 * p.level)
  end
  p.bandwidth = rate_of (m)
  p.is_by_requests = p.is_by_requests and window_of (p) >= 2 * p.piece
  hold (p, window_of (p))
end

-- A level is not reached: too few threads, or nothing to fetch.  What was reached says
-- what it is worth.
-- Not of "first" and "larger", where whatever is in flight is all of it.
local GIVE_UP = {}

function GIVE_UP.more (p, reached)
  local is_more = reached.in_flight > CLEARLY * p.low.in_flight
  end_more (p, reached, is_more and not has_grown (p.low, reached))
end

function GIVE_UP.probe (p, reached)
  reached = counted (p, reached)
  if rate_of (reached) > p.bandwidth then
    p.bandwidth = rate_of (reached)
    p.window = math.max (p.window, window_of (p))
  end
  hold (p, p.window)
end

function GIVE_UP.hold (p, reached)
  if not narrow (p, p.missed) then GIVE_UP.probe (p, reached) end
end

local function mean_of_level (p)
  local m = mean_of (p.full)
  if p.phase == "more" then m.trip = p.full.least end
  return m
end

-- -- what the client pays, and is paid ----------------------------------------------

local function is_tight (p)
  return p.level < math.max (2 * p.piece, M.DEPTH * smallest_piece (p))
end

local function cost_of (p)
  if (p.phase == "hold" or p.phase == "probe") and p.level >= 2 * p.piece then
    local seconds = bytes_seconds (p, p.piece)
    return math.min (1, seconds ^ 2 / 2 / p.least / (p.least + seconds))
  end
  return p.piece / math.max (p.level, p.piece)
end

local function earn (p, client, now)
  local hits, bytes = client.hits - p.hits, client.hit_bytes - p.hit_bytes
  if p.least > 0 then
    p.credit = math.min (CREDIT_TRIPS * p.least, p.credit + HARM * (now - p.seen)
      + hits * p.least + bytes_seconds (p, bytes))
  end
  p.hits, p.hit_bytes, p.seen = client.hits, client.hit_bytes, now
end

-- -- what pace.h has -----------------------------------------------------------------

--- Make one.
-- @tparam integer largest most bytes of one transfer
-- @treturn table pace
function M.new (largest)
  return setmetatable ({
    largest = largest, anew = 0, level_id = 0,
    forgotten = 0, moved = 0, window = 0, ours = 0, nr_ours = 0, level = 0, piece = 0,
    bandwidth = 0, least = 0, serial = 0, shown_serial = 0, guessed = 0, nr_near = 0,
    client_begun = 0, busy = 0, credit = math.huge, seen = 0, hits = 0, hit_bytes = 0,
  }, Pace)
end

-- One of the client's reads is being answered before us; the others fill the line.
local function charge_client (p, client)
  local bytes = client.begun - client.ended
  if bytes == 0 then return 0 end
  return math.max (bytes - bytes / math.max (client.reads, 1), smallest_piece (p))
end

local function is_near (p) return p.nr_near >= NEAR_IN_A_ROW end

local function has_room (p, client, is_paused)
  if not is_paused
     and (is_near (p) or is_tight (p) and p.least > 0 and p.credit <= 0) then
    return false
  end
  if p.phase == "first" and client > FIRST_BESIDE * smallest_piece (p) then
    return false
  end
  if is_near (p) or p.level < 2 * p.piece then return p.ours == 0 end
  return p.ours + client + p.piece * ROUNDING <= p.level
end

local function forget_hung (p, now)
  if p.nr_ours == 0 or now < p.moved + HUNG_SECONDS then return end
  p.forgotten, p.ours, p.nr_ours = p.level_id, 0, 0
  begin_anew (p, now)
end

--- Take room for a transfer.
-- @tparam table client what it asked of the source, `begun` and `ended`: bytes so far;
-- `reads` that are in flight; its first reads of what was fetched: `hits`, `hit_bytes`
-- @tparam number now in seconds
-- @treturn table|nil transfer, with `count`, the bytes that it may have; nil if there
-- is no room: ask again when a transfer has ended, and at `retry` at the latest
function Pace:take (client, now)
  forget_hung (self, now)
  if now >= self.anew and not is_beginning (self) then begin_anew (self, now) end
  local charge = charge_client (self, client)
  if charge > 0 or client.begun ~= self.client_begun then self.busy = now end
  self.client_begun = client.begun
  earn (self, client, now)
  local pause = is_near (self) and 0 or alone_seconds (self)
  local is_paused = charge == 0 and now >= self.busy + math.max (pause, M.NEAR_SECONDS)
  if not has_room (self, charge, is_paused) then return nil end
  local cost = not is_paused and is_tight (self) and cost_of (self) or 0
  self.ours, self.nr_ours, self.moved = self.ours + self.piece, self.nr_ours + 1, now
  return { count = self.piece, charge = self.piece, level_id = self.level_id,
           cost = cost }
end

--- Give back the room of a transfer, begun or not.  May be called twice.
function Pace:give (transfer)
  if self.last == transfer then self.last = nil end
  if transfer.charge == 0 then return end
  if transfer.level_id > self.forgotten then
    self.ours, self.nr_ours = self.ours - transfer.charge, self.nr_ours - 1
    if transfer.level_id < self.level_id then self.nr_older = self.nr_older - 1 end
  end
  transfer.charge = 0
end

--- A transfer that has room begins.
function Pace:begin (transfer, client, now)
  transfer.begun = now
  if transfer.charge == 0 then return end
  transfer.ours = self.ours
  transfer.in_flight = self.ours + charge_client (self, client)
  transfer.is_full = self.phase == "larger"
    or transfer.in_flight + self.piece * ROUNDING > self.level
  transfer.is_settled = (self.nr_ended > 0 or self.nr_ours == 1)
    and self.nr_older == 0
  local last = self.last
  transfer.weight = 1
  if last and last.level_id == transfer.level_id
     and now - self.first <= TOGETHER * alone_seconds (self) then
    if last.is_settled or not transfer.is_settled then
      transfer.weight = 1 + last.weight
    end
    last.weight = 0
  else
    self.first = now
  end
  self.last = transfer
end

--- It has ended, and gives back its room.
-- @tparam table transfer
-- @tparam integer count bytes that it has brought, 0 if it has failed
-- @tparam number now in seconds
function Pace:done (transfer, count, now)
  local trip = now - transfer.begun
  local charge = transfer.charge
  self:give (transfer)
  self.nr_ended, self.moved = self.nr_ended + 1, now
  if charge == 0 then return end
  self.credit = self.credit - transfer.cost * trip
  if (count == 0 or trip < M.NEAR_SECONDS) and transfer.level_id == self.level_id
     and transfer.is_settled and transfer.weight > 1 then
    self.owed = { nr = self.owed.nr + transfer.weight - 1,
                  in_flight = transfer.in_flight, ours = transfer.ours,
                  is_full = transfer.is_full }
  end
  if count == 0 then return end
  if trip < M.NEAR_SECONDS then
    self.nr_near = self.nr_near + 1
    if self.phase == "first" then
      self.piece, self.nr_tries = smallest_piece (self), 0
    end
    return
  end
  self.nr_near = 0
  if transfer.level_id ~= self.level_id then return end
  if not transfer.is_settled then
    local m = { in_flight = transfer.in_flight, ours = transfer.ours, trip = trip }
    if self.phase == "more" and transfer.is_full and has_grown (self.low, m)
       and (self.piece <= M.SMALLEST or transfer.in_flight == transfer.ours) then
      DECIDE.more (self, m)
      self.low_is_burst = true
    end
    return
  end

  self.brought.count = self.brought.count + count
  self.brought.nr = self.brought.nr + 1
  local weight = transfer.weight
  if weight == 0 then
    local owed = self.owed
    if owed.nr == 0 then return end
    owed.nr, weight = owed.nr - 1, 1
    transfer.in_flight, transfer.ours = owed.in_flight, owed.ours
    transfer.is_full = owed.is_full
  end
  local sum = transfer.is_full and self.full or self.missed
  sum.in_flight = sum.in_flight + weight * transfer.in_flight
  sum.ours = sum.ours + weight * transfer.ours
  sum.trip = sum.trip + weight * trip
  sum.least = math.min (sum.least, trip)
  sum.nr = sum.nr + weight
  local needed
  if self.phase == "hold" then
    needed = self.level < 2 * self.piece and FIRST_TRIES or HOLD_TRANSFERS
  elseif transfer.is_full then
    needed = self.level / self.piece / 2
  else
    needed = math.max (2, transfer.in_flight / self.piece)
  end
  if transfer.is_full and sum.nr >= needed then
    DECIDE[self.phase] (self, mean_of_level (self), count)
  elseif not transfer.is_full and sum.nr > needed then
    GIVE_UP[self.phase] (self, mean_of (sum))
  end
end

--- When to look at the client again, if there was no room.
function Pace:retry (now)
  return now + math.max (RETRY_MIN_SECONDS,
                         math.min (RETRY_MAX_SECONDS, alone_seconds (self) / 8))
end

return M
