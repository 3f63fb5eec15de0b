-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- How much may be on its way from the source: the filter's pace, once more.
--
-- This is filter/scan/pace.c, function by function, so that a policy meets in the
-- simulator what it meets in the server; filter/scan/pace.h says how it works.  Times
-- are in seconds here.  After a change of either, change the other, and
--
--     lua5.4 tests/unit/pace-events.lua > tests/unit/pace.events
--
-- writes down what this one does, for the C one's test to compare itself with.
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
local LARGER_TRIES = 4
local CLEARLY, BESIDE = 1.1, 1.75
local BY_BYTES, FULL = 0.5, 0.8
local ROUNDING = 0.75
local GAIN = 1.1
local HOLD_TRANSFERS = 28
local TOGETHER = 1 / 8
local NEAR_IN_A_ROW = 4
local FIRST_BESIDE = 4
local HARM, CREDIT_TRIPS = 0.03, 4
local ANEW_MIN_SECONDS, ANEW_MAX_SECONDS = 10, 80
local HUNG_SECONDS = 10
local RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 0.001, 0.02

local function smallest_piece (p)
  return math.min (p.largest, M.SMALLEST)
end

-- How long the bytes of a piece take by themselves.
local function bytes_seconds (p, bytes)
  return p.serial * bytes / smallest_piece (p)
end

-- How long a piece takes where nothing is in its way.
local function alone_seconds (p)
  return p.least + bytes_seconds (p, p.is_by_requests and p.piece or smallest_piece (p))
end

local function window_of (p)
  return GAIN * p.bandwidth * alone_seconds (p)
end

-- -- levels -----------------------------------------------------------------------

local function set_level (p, phase, level)
  p.phase, p.level, p.level_id = phase, level, p.level_id + 1
  p.nr_older = p.nr_ours
  p.nr_ended, p.nr_full, p.nr_not_full = 0, 0, 0
  p.weight = 1
  p.sum_in_flight, p.sum_trip = 0, 0
  p.missed, p.nr_missed = { in_flight = 0, trip = 0 }, 0
  if phase ~= "hold" or p.is_by_requests then return end
  while p.piece * 2 <= p.largest and p.piece * 2 * M.DEPTH <= level do
    p.piece = p.piece * 2
  end
  while p.piece > M.SMALLEST and p.piece * M.DEPTH > level do p.piece = p.piece // 2 end
end

local function begin_anew (p, now)
  p.window_before = p.window
  p.began, p.anew = now, now + ANEW_MIN_SECONDS
  p.piece = p.least > 0 and smallest_piece (p) or math.min (p.largest, M.LEAST)
  p.is_by_requests = false
  p.nr_near, p.theirs = 0, 0
  set_level (p, "first", 0)
end

local function set_low (p, in_flight, trip)
  p.low = { in_flight = in_flight, trip = trip }
  p.low_level, p.low_piece = p.level, p.piece
  p.low_is_first, p.low_is_burst = p.phase == "first", false
end

local function hold (p, window)
  p.window = math.max (window, p.piece)
  set_level (p, "hold", p.window)
end

local function hold_first (p, window)
  local same = window > p.window_before * 0.75 and window < p.window_before * 1.25
  p.interval = same and math.min (p.interval * 2, ANEW_MAX_SECONDS) or ANEW_MIN_SECONDS
  p.anew = p.began + p.interval
  hold (p, window)
end

local function try_larger (p)
  local times = p.low_piece * 4 <= p.largest and p.low_level >= M.DEPTH * p.low_piece
    and bytes_seconds (p, 4 * p.bandwidth) < FULL and 4 or 2
  p.piece = p.low_piece * times
  set_level (p, "larger", p.low_level * times)
end

-- More in flight brings no more.
local function end_more (p, window, is_reached)
  p.window = math.max (window, p.piece)
  local is_free = not is_reached or bytes_seconds (p, p.bandwidth) < BY_BYTES
  p.is_by_requests = p.is_by_requests or is_free
  if is_free and p.piece * 2 <= p.largest then
    p.level = p.window
    set_low (p, p.window, alone_seconds (p))
    return try_larger (p)
  end
  hold_first (p, p.window)
end

local function end_larger (p)
  p.piece = p.low_piece
  p.is_by_requests = p.piece > smallest_piece (p)
  hold_first (p, math.min (p.low_level, window_of (p)))
end

local function rate_of (means) return means.in_flight / means.trip end

local function has_grown (p, high)
  local added = high.in_flight / p.low.in_flight - 1
  return rate_of (high) >= rate_of (p.low) * (1 + MORE_BRINGS * added)
end

local function has_brought_more (p, high)
  return high.in_flight / p.least_trip >= LARGER_BEATS * p.bandwidth
    and p.least_trip <= 2 * (p.least + p.serial)
end

-- Enough is known of a level, by its phase.
local DECIDE = {}

-- A piece alone has taken this long.
function DECIDE.first (p, m)
  local trip, smallest = m.trip, smallest_piece (p)
  -- It has waited for one of the client's.
  if p.is_beside and p.least_before > 0 and trip > BESIDE * p.least_before then
    trip = math.max (p.least_before, trip - p.least_before)
  end
  local is_small = p.piece < smallest
  local before = p.least + p.serial
  local is_same = p.is_measured and trip > 0.8 * before and trip < 1.25 * before
  if not is_small and p.is_measured and not is_same then
    -- The line is another one.
    p.is_measured, p.least, p.serial = false, 0, 0
    p.piece = math.min (p.largest, M.LEAST)
    return set_level (p, "first", 0)
  end
  if p.least == 0 then
    p.least = trip
  elseif trip < p.least then
    p.least = math.max (trip - p.serial, trip / 2)
  elseif p.first_count > M.LEAST then
    p.serial = (trip - p.least) * smallest / (p.first_count - M.LEAST)
  end
  p.least_before = p.least
  if is_small then
    p.piece = math.min (4 * p.piece, smallest)
    return set_level (p, "first", 0)
  end
  p.is_measured = true
  set_low (p, p.piece, trip)
  if p.serial > p.least then
    p.bandwidth = p.piece / p.serial
    return hold_first (p, p.piece)
  end
  p.low_level = p.piece
  local is_clear = not p.is_beside and trip <= CLEARLY * p.least
  local known = is_same and math.min (p.window_before / 2, M.DEPTH * p.piece) or 0
  set_level (p, "more", p.theirs + math.max ((is_clear and 4 or 2) * p.piece, known))
end

function DECIDE.more (p, m)
  if has_grown (p, m) then
    if p.phase == "probe" then p.began = p.moved
    elseif not p.low_is_burst then
      p.least = math.max (p.least, p.low.trip - bytes_seconds (p, p.piece))
    end
    local times = p.phase == "more" and p.piece <= M.SMALLEST
      and m.trip <= CLEARLY * p.low.trip and 4 or 2
    set_low (p, m.in_flight, m.trip)
    return set_level (p, "more", times * p.level)
  end
  p.bandwidth = rate_of (m)
  if p.phase == "probe" then
    p.is_by_requests = p.is_by_requests and window_of (p) >= 2 * p.piece
    return hold (p, window_of (p))
  end
  end_more (p, window_of (p) - (p.low_is_first and p.theirs or 0), true)
end

DECIDE.probe = DECIDE.more

function DECIDE.larger (p, m)
  if not has_brought_more (p, m) then return end_larger (p) end
  p.bandwidth = rate_of (m)
  set_low (p, m.in_flight, m.trip)
  local is_full = p.level >= 2 * p.piece and bytes_seconds (p, p.bandwidth) >= FULL
  if p.piece * 2 <= p.largest and not is_full then
    try_larger (p)
  else
    end_larger (p)
  end
end

function DECIDE.hold (p, m)
  set_low (p, m.in_flight, m.trip)
  if p.window < 2 * p.piece then return hold (p, p.window) end
  set_level (p, "probe", p.window + math.max (p.window / 4, p.piece))
end

-- A level is not reached, by its phase.
local GIVE_UP = {}

function GIVE_UP.first () end

function GIVE_UP.more (p)
  local nr = p.nr_missed
  local reached = { in_flight = p.missed.in_flight / nr, trip = p.missed.trip / nr }
  p.bandwidth = rate_of (reached)
  if not has_grown (p, reached) then
    return end_more (p, math.min (reached.in_flight, CLEARLY * window_of (p)), true)
  end
  end_more (p, reached.in_flight, false)
end

GIVE_UP.larger = end_larger

function GIVE_UP.hold (p) hold (p, p.window) end

GIVE_UP.probe = GIVE_UP.hold

-- A transfer has ended that does not say what this level brings, or by a share.
local function miss_level (p, share)
  p.nr_not_full = p.nr_not_full + share
  if p.nr_not_full > math.max (2, p.level / p.piece) then GIVE_UP[p.phase] (p) end
end

local function transfers_needed (p)
  local pieces = p.level / p.piece
  if p.phase == "first" then return 1 end
  if p.phase == "larger" then return pieces / 4 end
  if p.phase == "hold" then return math.max (HOLD_TRANSFERS, 2 * pieces) end
  return math.max (2, pieces / 2)
end

local function means_of_level (p)
  return {
    in_flight = p.sum_in_flight / p.nr_full,
    trip = p.phase == "more" and p.least_trip or p.sum_trip / p.nr_full,
  }
end

local function is_known (p)
  if p.nr_full < transfers_needed (p) then return false end
  return p.phase ~= "larger" or p.nr_full >= LARGER_TRIES
    or has_brought_more (p, means_of_level (p))
end

-- -- what the client pays, and is paid ----------------------------------------------

local function is_paused (p, client, now)
  return client == 0 and now >= p.busy + math.max (alone_seconds (p), M.NEAR_SECONDS)
end

-- May a piece be in the client's way?
local function is_tight (p)
  return p.phase == "first" or p.level < 2 * p.piece
    or p.level < M.DEPTH * smallest_piece (p)
end

-- The part of its trip, and the seconds, that a transfer may cost the client.
local function cost_of (p)
  if p.phase ~= "hold" and p.phase ~= "probe" or p.level < 2 * p.piece then
    return p.piece / math.max (p.level, p.piece), 0
  end
  local seconds = bytes_seconds (p, p.piece)
  return 0, seconds * seconds / (2 * (p.least + seconds))
end

local function may_be_in_the_way (p)
  if p.nr_near >= NEAR_IN_A_ROW then return false end
  if not is_tight (p) or p.least == 0 then return true end
  return p.credit > (p.phase == "first" and p.least + p.serial or 0)
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
    largest = largest, interval = ANEW_MIN_SECONDS, anew = 0, level_id = 0,
    forgotten = 0, moved = 0, window = 0, ours = 0, nr_ours = 0, level = 0, piece = 0,
    bandwidth = 0, least = 0, least_before = 0, serial = 0, nr_near = 0,
    client_begun = 0, busy = 0, credit = math.huge, seen = 0, hits = 0, hit_bytes = 0,
  }, Pace)
end

-- One of the client's reads is being answered before us; the others fill the line.
local function charge_client (p, client)
  local bytes = client.begun - client.ended
  if bytes == 0 then return 0 end
  return math.max (bytes - bytes / client.reads, smallest_piece (p), p.piece // 2)
end

local function has_room (p, client, is_free)
  if not is_free and not may_be_in_the_way (p) then return false end
  if p.phase == "first" then
    return p.ours == 0 and client <= FIRST_BESIDE * smallest_piece (p)
  end
  if p.nr_near >= NEAR_IN_A_ROW or p.level < 2 * p.piece then return p.ours == 0 end
  return p.ours + client + p.piece * ROUNDING <= p.level
end

-- What has been on its way for so long, with nothing else moving, is lost.
local function forget_hung (p, now)
  if p.nr_ours == 0 or now < p.moved + HUNG_SECONDS then return end
  p.forgotten, p.ours, p.nr_ours = p.level_id, 0, 0
  begin_anew (p, now)
end

--- Take room for a transfer.
-- @tparam table client what it asked of the source, `begun` and `ended`: bytes so far;
-- `reads` that are in flight; and its reads of what was fetched, `hits` and `hit_bytes`
-- @tparam number now in seconds
-- @treturn table|nil transfer, with `count`, the bytes that it may have; nil if there
-- is no room: ask again when a transfer has ended, and at `retry` at the latest
function Pace:take (client, now)
  forget_hung (self, now)
  if now >= self.anew then begin_anew (self, now) end
  local charge = charge_client (self, client)
  if charge > 0 or client.begun ~= self.client_begun then self.busy = now end
  self.client_begun = client.begun
  if self.phase == "first" then self.theirs = math.max (self.theirs, charge) end
  earn (self, client, now)
  local is_free = is_paused (self, charge, now)
  if not has_room (self, charge, is_free) then return nil end
  local share, seconds = 0, 0
  if not is_free and is_tight (self) then share, seconds = cost_of (self) end
  self.ours, self.nr_ours, self.moved = self.ours + self.piece, self.nr_ours + 1, now
  return { count = self.piece, charge = self.piece, level_id = self.level_id,
           cost_share = share, cost_seconds = seconds }
end

--- Give back the room of a transfer, begun or not.  May be called twice.
function Pace:give (transfer)
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
  transfer.in_flight = self.ours + charge_client (self, client)
  transfer.is_full = self.phase == "larger"
    or transfer.in_flight + self.piece * ROUNDING > self.level
  self.last_begun, self.last = now, transfer
  transfer.is_settled = (self.nr_ended > 0 or self.nr_ours == 1)
    and self.nr_older == 0
  if self.phase == "first" then self.is_beside = client.reads > 0 end
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
  self.credit = self.credit - transfer.cost_seconds - transfer.cost_share * trip
  if count == 0 then return end
  if self.piece > M.SMALLEST and count < charge then
    if self.phase == "larger" then miss_level (self, 0.25) end
    return
  end
  if trip < M.NEAR_SECONDS then
    self.nr_near = self.nr_near + 1
    if self.phase == "first" then self.piece = smallest_piece (self) end
    return
  end
  self.nr_near = 0
  if transfer.level_id ~= self.level_id then return end
  if not transfer.is_settled then
    local m = { in_flight = transfer.in_flight, trip = trip }
    if self.phase == "more" and self.piece <= M.SMALLEST and transfer.is_full
       and has_grown (self, m) then
      DECIDE.more (self, m)
      self.low_is_burst = true
    end
    return
  end

  -- Of those that begin together the last stands for all.
  if transfer ~= self.last and self.last_begun - transfer.begun <= trip * TOGETHER then
    self.weight = self.weight + 1
    return
  end
  local weight = self.weight
  self.weight = 1
  self.first_count = count
  if transfer.is_full then
    self.nr_full = self.nr_full + weight
    self.sum_in_flight = self.sum_in_flight + weight * transfer.in_flight
    self.sum_trip = self.sum_trip + weight * trip
    self.least_trip = self.nr_full == weight and trip or math.min (self.least_trip, trip)
    if is_known (self) then DECIDE[self.phase] (self, means_of_level (self)) end
  else
    self.missed.in_flight = self.missed.in_flight + weight * transfer.in_flight
    self.missed.trip = self.missed.trip + weight * trip
    self.nr_missed = self.nr_missed + weight
    miss_level (self, weight)
  end
end

--- When to look at the client again, if there was no room.
function Pace:retry (now)
  return now + math.max (RETRY_MIN_SECONDS,
                         math.min (RETRY_MAX_SECONDS, alone_seconds (self) / 8))
end

return M
