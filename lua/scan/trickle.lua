--- Fetching a little at a time while a client reads here and there.
--
-- A client that reads at random and never pauses leaves no time in which nothing
-- is lost by prefetching.  But if what it waits for is latency, a request beside
-- its own costs it nothing, least of all one made just after its own, which comes
-- behind it in every queue.  So one piece is fetched at a time, of a size at which
-- the time it takes is still latency for the most part:
--
-- - pieces begin at 64K; after two in a row that took at most a quarter longer
--   than the fastest so far they become twice as long, up to a block; three in a
--   row that took longer halve them, and 32 pieces pass before they grow again
--   (one may be two requests, with what the client has just read in between);
-- - where a first piece takes more than half as long again as the client's reads
--   did before, one waits for the other (a lock, a source that does one thing at
--   a time), and where the client's reads take a quarter longer than before, who
--   knows why: then the client is left alone for its next 256 reads, and twice
--   as many the next time;
-- - a client whose reads take less than 2 ms has little to gain: it is left alone.
--
-- It takes 16 reads to know what they take, and that most of them are lone.
--
-- @module scan.trickle

local M = {}

local Trickle = {}
local META = { __index = Trickle }

local LEAST_BYTES = 65536
local READS = 16            -- looked at together
local LONE_READS = 12       -- of the last 16
local FAST_SECONDS = 0.002
local SLOWER = 1.25         -- a piece's time to the fastest's
local WAITS = 1.5           -- a smallest piece's time to a read's
local HARM = 1.25           -- a read's time to what it was
local GROW_AFTER, GROW_AGAIN_AFTER, SHRINK_AFTER = 2, 32, 3
local HOLD_READS = 256

--- Make one for a scan.
-- @tparam integer block_bytes most bytes of a piece
-- @treturn table trickle
function M.new (block_bytes)
  return setmetatable ({
    most = block_bytes, piece = math.min (LEAST_BYTES, block_bytes),
    lone = 0,               -- up with each lone read, down with others
    reads = 0, seconds = 0, -- since they were last looked at together
    hold = 0,               -- reads to come before anything is fetched
    hold_reads = HOLD_READS,
    good = 0, slow = 0, needed = GROW_AFTER,
    fetched_any = false,    -- since the reads were last looked at
  }, META)
end

local function give_up (trickle)
  trickle.hold, trickle.hold_reads = trickle.hold_reads, trickle.hold_reads * 2
  trickle.usual, trickle.fastest = nil, nil
  trickle.reads, trickle.seconds = 0, 0
  trickle.piece = math.min (LEAST_BYTES, trickle.most)
  trickle.good, trickle.slow, trickle.needed = 0, 0, GROW_AFTER
end

--- A client's read was seen.
-- @tparam boolean lone it continues no stream
function Trickle:read (lone)
  self.lone = math.max (0, math.min (READS, self.lone + (lone and 1 or -1)))
  self.reads = self.reads + 1
  self.hold = math.max (0, self.hold - 1)
end

--- The reads seen since this was last called have taken this long.
-- @tparam number seconds since the last call that followed a read
function Trickle:took (seconds)
  self.seconds = self.seconds + seconds
  if self.reads < READS then return end
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
function Trickle:bytes ()
  if self.lone < LONE_READS or self.hold > 0
     or not self.usual or self.usual < FAST_SECONDS then
    return nil
  end
  return self.piece
end

--- A piece has been fetched.
-- @tparam number seconds it took, until it was there
function Trickle:fetched (seconds)
  self.fetched_any = true
  if seconds > WAITS * self.usual and self.piece <= LEAST_BYTES then
    return give_up (self)
  end
  self.fastest = math.min (self.fastest or seconds, seconds)
  if seconds > SLOWER * self.fastest then
    self.good, self.slow = 0, self.slow + 1
    if self.slow == SHRINK_AFTER then
      self.piece = math.max (math.min (LEAST_BYTES, self.most), self.piece // 2)
      self.slow, self.needed = 0, GROW_AGAIN_AFTER
    end
  else
    self.good, self.slow = self.good + 1, 0
    if self.good >= self.needed then
      self.piece = math.min (self.piece * 2, self.most)
      self.good, self.needed = 0, GROW_AFTER
    end
  end
end

return M
