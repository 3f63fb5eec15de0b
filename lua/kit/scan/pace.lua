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

M.SMALLEST = 65536
M.DEPTH = 8
M.NEAR_SECONDS = 0.0005

local MORE_BRINGS, LARGER_BRINGS, LARGER_BEATS = 0.6, 0.4, 1.2
local LARGER_TRIES = 4
local SHORT = 0.75
local ROUNDING = 0.75
local GAIN, GAIN_PIECES = 1.1, 4
local HOLD_TRANSFERS = 32
local NEAR_IN_A_ROW = 4
local FIRST_BESIDE = 4
local ANEW_MIN_SECONDS, ANEW_MAX_SECONDS = 10, 80
local RETRY_MIN_SECONDS, RETRY_MAX_SECONDS = 0.001, 0.02

local function smallest_piece (p)
  return math.min (p.largest, M.SMALLEST)
end

-- -- levels -----------------------------------------------------------------------

local function set_level (p, phase, level)
  p.phase, p.level, p.level_id = phase, level, p.level_id + 1
  p.nr_older = p.nr_ours
  p.nr_ended, p.nr_full, p.nr_not_full = 0, 0, 0
  p.sum_in_flight, p.sum_trip = 0, 0
  if phase == "larger" or p.is_larger then return end
  while p.piece * 2 <= p.largest and p.piece * 2 * M.DEPTH <= level do
    p.piece = p.piece * 2
  end
  while p.piece > M.SMALLEST and p.piece * M.DEPTH > level do p.piece = p.piece // 2 end
end

local function begin_anew (p, now)
  p.window_before = p.window
  p.anew = now + p.interval
  p.piece = smallest_piece (p)
  p.is_larger = false
  p.nr_near = 0
  set_level (p, "first", 0)
end

local function set_low (p, means)
  p.low, p.low_level, p.low_piece = means, p.level, p.piece
  p.low_is_first = p.phase == "first"
end

local function hold (p, window)
  p.window = math.max (window, p.piece)
  set_level (p, "hold", p.window)
end

-- There was room for two pieces: smaller ones before none but in pauses.
local function hold_probed (p, window)
  while p.piece > M.SMALLEST and window < 2 * p.piece do p.piece = p.piece // 2 end
  hold (p, window)
end

local function hold_first (p, window)
  local same = window > p.window_before * 0.75 and window < p.window_before * 1.25
  p.interval = same and math.min (p.interval * 2, ANEW_MAX_SECONDS) or ANEW_MIN_SECONDS
  hold (p, window)
end

local function try_larger (p)
  p.piece = p.low_piece * 2
  set_level (p, "larger", p.low_level * 2)
end

local function end_more (p)
  if not p.is_larger and p.low_piece * 2 <= p.largest
     and p.window < 2 * M.DEPTH * smallest_piece (p) then
    try_larger (p)
  else
    hold_first (p, p.window)
  end
end

local function rate_of (means) return means.in_flight / means.trip end

local function has_grown (p, high)
  local brings = p.phase == "larger" and LARGER_BRINGS or MORE_BRINGS
  local added = high.in_flight / p.low.in_flight - 1
  return rate_of (high) >= rate_of (p.low) * (1 + brings * added)
end

local function has_brought_more (p, high)
  return has_grown (p, high) and rate_of (high) >= LARGER_BEATS * p.bandwidth
    and high.trip <= 2 * p.smallest
end

local function end_larger (p)
  p.piece = p.low_piece
  hold_first (p, p.is_larger and p.low_level or p.window)
end

local function window_of (p)
  local product = p.bandwidth * p.latency
  if p.is_larger or product < GAIN_PIECES * smallest_piece (p) then return product end
  return GAIN * product
end

-- Enough is known of a level, by its phase.
local DECIDE = {}

function DECIDE.first (p, m)
  p.smallest, p.latency = m.trip, m.trip
  set_low (p, m)
  p.low_level = p.piece
  set_level (p, "more", 2 * m.in_flight)
end

function DECIDE.more (p, m)
  if has_grown (p, m) then
    if p.phase == "more" then p.latency = p.low.trip end
    set_low (p, m)
    return set_level (p, "more", 2 * p.level)
  end
  p.bandwidth = rate_of (m)
  p.latency = math.min (p.latency, p.low.trip)
  if p.phase == "probe" then return hold_probed (p, window_of (p)) end
  p.window = p.low_is_first and p.piece or window_of (p)
  if p.low_is_first then p.low.in_flight = p.piece end
  end_more (p)
end

DECIDE.probe = DECIDE.more

function DECIDE.larger (p, m)
  if not has_brought_more (p, m) then return end_larger (p) end
  p.is_larger = true
  p.bandwidth, p.latency = rate_of (m), m.trip
  set_low (p, m)
  if p.piece * 2 <= p.largest then try_larger (p) else end_larger (p) end
end

function DECIDE.hold (p, m)
  set_low (p, m)
  if p.window < 2 * p.piece then return hold (p, p.window) end
  set_level (p, "probe", p.window + math.max (p.window / 4, p.piece))
end

-- A level is not reached, by its phase.
local GIVE_UP = {}

function GIVE_UP.first () end

function GIVE_UP.more (p)
  p.window, p.low_level = p.last_ours, p.last
  p.bandwidth = rate_of (p.low)
  end_more (p)
end

GIVE_UP.larger = end_larger

function GIVE_UP.hold (p) hold (p, p.window) end

GIVE_UP.probe = GIVE_UP.hold

local function is_by_bytes (p, count, trip)
  local share = count / smallest_piece (p)
  return share <= SHORT and trip <= p.smallest * 2 * share / (1 + share)
end

-- A transfer has ended that does not say what this level brings.
local function miss_level (p)
  p.nr_not_full = p.nr_not_full + 1
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
    trip = (p.phase == "hold" or p.phase == "probe") and p.sum_trip / p.nr_full
      or p.least_trip,
  }
end

local function is_known (p)
  if p.nr_full < transfers_needed (p) then return false end
  return p.phase ~= "larger" or p.nr_full >= LARGER_TRIES
    or has_brought_more (p, means_of_level (p))
end

-- -- what pace.h has -----------------------------------------------------------------

--- Make one.
-- @tparam integer largest most bytes of one transfer
-- @treturn table pace
function M.new (largest)
  return setmetatable ({
    largest = largest, interval = ANEW_MIN_SECONDS, anew = 0, level_id = 0,
    window = 0, ours = 0, nr_ours = 0, level = 0, piece = 0, latency = 0, bandwidth = 0,
    nr_near = 0, client_begun = 0, busy = 0,
  }, Pace)
end

-- One of the client's reads is being answered before us; the others fill the line.
local function charge_client (p, client)
  local bytes = client.begun - client.ended
  if bytes == 0 then return 0 end
  return math.max (bytes - bytes / client.reads, smallest_piece (p), p.piece // 2)
end

local function has_room (p, client, now)
  if p.nr_near >= NEAR_IN_A_ROW or p.phase ~= "first" and p.level < 2 * p.piece then
    return p.ours == 0 and client == 0
      and now >= p.busy + math.max (p.latency, M.NEAR_SECONDS)
  end
  if p.phase == "first" then
    return p.ours == 0 and client <= FIRST_BESIDE * p.piece
  end
  return p.ours + client + p.piece * ROUNDING <= p.level
end

--- Take room for a transfer.
-- @tparam table client what it asked of the source, `begun` and `ended`: bytes so far,
-- and `reads` that are in flight
-- @tparam number now in seconds
-- @treturn table|nil transfer, with `count`, the bytes that it may have; nil if there
-- is no room: ask again when a transfer has ended, and at `retry` at the latest
function Pace:take (client, now)
  local charge = charge_client (self, client)
  if now >= self.anew then begin_anew (self, now) end
  if charge > 0 or client.begun ~= self.client_begun then self.busy = now end
  self.client_begun = client.begun
  if not has_room (self, charge, now) then return nil end
  self.ours, self.nr_ours = self.ours + self.piece, self.nr_ours + 1
  return { count = self.piece, charge = self.piece, level_id = self.level_id }
end

--- Give back the room of a transfer, begun or not.  May be called twice.
function Pace:give (transfer)
  if transfer.charge == 0 then return end
  self.ours, self.nr_ours = self.ours - transfer.charge, self.nr_ours - 1
  if transfer.level_id < self.level_id then self.nr_older = self.nr_older - 1 end
  transfer.charge = 0
end

--- A transfer that has room begins.
function Pace:begin (transfer, client, now)
  transfer.begun = now
  transfer.ours = self.ours
  transfer.in_flight = self.ours + charge_client (self, client)
  transfer.is_full = transfer.in_flight + self.piece * ROUNDING > self.level
  transfer.is_settled = (self.nr_ended > 0 or self.nr_ours == 1)
    and (self.nr_older == 0 or self.phase == "more" or self.phase == "probe")
end

--- It has ended, and gives back its room.
-- @tparam table transfer
-- @tparam integer count bytes that it has brought, 0 if it has failed
-- @tparam number now in seconds
function Pace:done (transfer, count, now)
  local trip = now - transfer.begun
  local charge = transfer.charge
  self:give (transfer)
  self.nr_ended = self.nr_ended + 1
  if count == 0 or charge == 0 then return end
  if self.piece > M.SMALLEST and count < charge then
    if self.phase == "larger" and is_by_bytes (self, count, trip) then
      miss_level (self)
    end
    return
  end
  if trip < M.NEAR_SECONDS then
    self.nr_near = self.nr_near + 1
    return
  end
  self.nr_near = 0
  if transfer.level_id ~= self.level_id or not transfer.is_settled then return end

  self.last, self.last_ours = transfer.in_flight, transfer.ours
  if transfer.is_full then
    self.nr_full = self.nr_full + 1
    self.sum_in_flight = self.sum_in_flight + transfer.in_flight
    self.sum_trip = self.sum_trip + trip
    self.least_trip = self.nr_full == 1 and trip or math.min (self.least_trip, trip)
    if is_known (self) then DECIDE[self.phase] (self, means_of_level (self)) end
  else
    miss_level (self)
  end
end

--- When to look at the client again, if there was no room.
function Pace:retry (now)
  return now + math.max (RETRY_MIN_SECONDS,
                         math.min (RETRY_MAX_SECONDS, self.latency / 8))
end

return M
