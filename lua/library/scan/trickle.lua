-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Fetching a little at a time while a client reads here and there.
--
-- A client that reads at random and never pauses leaves no time in which nothing
-- is lost by prefetching.  But if what it waits for is latency, a request beside
-- its own costs it nothing, least of all one made just after its own, which comes
-- behind it in every queue.  And if that request is on the line for no longer than
-- the latency is, it is over before the client's next read needs the line.  So a
-- piece is fetched at a time:
--
-- - it begins at 64K, and becomes four or two times as long if, to judge by the
--   last one, it would still take no more than 1.9 times the latency, which is what
--   the client's reads took, or less; up to so many bytes as is said.  Three in a
--   row that took longer halve it, and 32 pass before it grows again;
-- - it may be several ranges, for as many threads: one more each time as long as
--   that takes no longer, one less when it does (a source may have few hands), and
--   then 32 pass before there are more;
-- - where a first piece takes more than half as long again as the client's reads
--   did before, one waits for the other (a lock, a source that does one thing at
--   a time), and where the client's reads take a quarter longer than before, who
--   knows why: then the client is left alone for its next 256 reads, and twice
--   as many the next time;
-- - a client whose reads take less than 2 ms has little to gain: it is left alone.
--
-- It takes 8 reads to know what they take, and that most of them are lone.  A piece is
-- to begin beside a read that takes its time: after one that was quick the next is
-- there too soon.
--
-- @module scan.trickle

local M = {}

local Trickle = {}
local META = { __index = Trickle }

local LEAST_BYTES = 65536
local FIRST_READS = 7
local READS = 16            -- looked at together, later
local LONE_READS, LONE_MOST = 6, 8
local FAST_SECONDS = 0.002
local SLOWER = 1.9          -- a piece's time to the latency
local WAITS = 1.5           -- a smallest piece's time to a read's
local HARM = 1.25           -- a read's time to what it was
local GROW_AGAIN_AFTER, SHRINK_AFTER = 32, 3
local RANGES_MOST = 8
local HOLD_READS = 256

--- Make one for a scan.
-- @tparam integer most_bytes of a piece
-- @treturn table trickle
function M.new (most_bytes)
  return setmetatable ({
    most = most_bytes, piece = math.min (LEAST_BYTES, most_bytes),
    lone = 0,               -- up with each lone read, down with others
    -- Since they were last looked at together; a read is seen when it begins, so
    -- at first there is one more than have taken time.
    reads = -1, seconds = 0,
    hold = 0,               -- reads to come before anything is fetched
    hold_reads = HOLD_READS,
    slow = 0, needed = 0,   -- slow ones in a row; good ones before it grows
    ranges = 1, ranges_needed = 0,
    fetched_any = false,    -- since the reads were last looked at
  }, META)
end

local function give_up (trickle)
  trickle.hold, trickle.hold_reads = trickle.hold_reads, trickle.hold_reads * 2
  trickle.usual, trickle.fastest = nil, nil
  trickle.reads, trickle.seconds = 0, 0
  trickle.piece = math.min (LEAST_BYTES, trickle.most)
  trickle.slow, trickle.needed = 0, 0
  trickle.ranges, trickle.ranges_needed = 1, 0
end

--- A client's read was seen.
-- @tparam boolean lone it continues no stream
function Trickle:read (lone)
  self.lone = math.max (0, math.min (LONE_MOST, self.lone + (lone and 1 or -1)))
  self.reads = self.reads + 1
  self.hold = math.max (0, self.hold - 1)
end

--- The reads seen since this was last called have taken this long.
-- @tparam number seconds since the last call that followed a read
function Trickle:took (seconds)
  self.seconds = self.seconds + seconds
  if self.reads < (self.usual and READS or FIRST_READS) then return end
  local each = self.seconds / self.reads
  self.reads, self.seconds = 0, 0
  if not self.fetched_any then
    self.usual = each
  elseif self.usual and each > HARM * self.usual then
    give_up (self)
  end
  self.fetched_any = false
end

--- How much to fetch now.
-- @treturn integer|nil bytes, nil to leave the client alone
-- @treturn integer in so many ranges at most
function Trickle:bytes ()
  if self.lone < LONE_READS or self.hold > 0
     or not self.usual or self.usual < FAST_SECONDS then
    return nil
  end
  return self.piece, self.ranges
end

--- So much has been fetched.
-- @tparam number seconds it took, until it was there
-- @tparam integer bytes at most what `bytes` gave
-- @tparam integer ranges
function Trickle:fetched (seconds, bytes, ranges)
  self.fetched_any = true
  if seconds > WAITS * self.usual and self.piece <= LEAST_BYTES then
    return give_up (self)
  end
  self.fastest = math.min (self.fastest or seconds, seconds)
  local latency = math.min (self.fastest, self.usual)
  local most_seconds = SLOWER * latency
  if seconds > most_seconds then
    if ranges > 1 then
      self.ranges, self.ranges_needed = ranges - 1, GROW_AGAIN_AFTER
    end
    self.slow = self.slow + 1
    if self.slow == SHRINK_AFTER then
      self.piece = math.max (math.min (LEAST_BYTES, self.most), self.piece // 2)
      self.slow, self.needed = 0, GROW_AGAIN_AFTER
    end
    return
  end
  self.ranges_needed = math.max (self.ranges_needed - 1, 0)
  if ranges == self.ranges and self.ranges_needed == 0 then
    self.ranges = math.min (self.ranges + 1, RANGES_MOST)
  end
  if bytes > self.piece // 2 then
    self.slow = 0
    self.needed = math.max (self.needed - 1, 0)
    if self.needed > 0 then return end
    for _, factor in ipairs { 4, 2 } do
      local larger = factor * self.piece
      if latency + (seconds - latency) * larger / bytes <= most_seconds then
        self.piece = math.min (larger, self.most)
        return
      end
    end
  end
end

return M
