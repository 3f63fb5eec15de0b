-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- stride: goes on with the step that most of the last reads took.
--
-- The deltas between the offsets of successive reads go into a history of the
-- last 16.  A majority vote (Boyer-Moore, then a count) is taken over the
-- newest 4, and if that has no majority over the newest 8, then 16.  The delta
-- that is found, if it is not 0, is the trend, and the last read's offset plus
-- 1, 2 ... `depth` times the trend is prefetched, as many bytes each as that
-- read had; what runs into one another is asked for as one range, at most a
-- block.  A step that was asked for lately (the last 64, or twice the most
-- steps if that is more) is not asked for again.
--
-- The depth starts at 1; it doubles when a read is one that was predicted, up
-- to scan-arg-depth, and is halved, down to 1, when one is not.  Without a
-- majority nothing is asked for.  Between reads it waits.
--
-- Memory is constant.  It wins on regular steps through a table or a matrix,
-- upwards or downwards, and with a minority of other reads mixed in.  It loses
-- (fetches nothing) on several streams at once, for which there is `readahead`.
--
-- scan-arg-depth=N   most steps ahead (32)

local arguments = require "scan.args"
local args = ...
arguments.check_known (args, { "depth" })
local DEPTH = arguments.integer (args, "depth", 32, 1, 1024)

local HISTORY = 16
local ASKED = math.max (64, 2 * DEPTH)

-- The delta that more than half of the newest `n` have, or nil.
local function majority (deltas, newest, n)
  local candidate, votes = nil, 0
  for i = newest - n + 1, newest do
    local delta = deltas[i % HISTORY]
    if votes == 0 then candidate = delta end
    votes = votes + (delta == candidate and 1 or -1)
  end
  local count = 0
  for i = newest - n + 1, newest do
    if deltas[i % HISTORY] == candidate then count = count + 1 end
  end
  return count > n // 2 and candidate or nil
end

local function trend (deltas, newest)
  local n = 4
  while n <= HISTORY and n <= newest do
    local delta = majority (deltas, newest, n)
    if delta then return delta end
    n = n * 2
  end
  return nil
end

return function (disk)
  local deltas, newest = {}, 0
  local previous, read_offset, read_count
  local depth = 1
  -- Offsets asked for, as a ring and as a set.
  local ring, at, asked = {}, 0, {}

  local function remember (offset)
    local old = ring[at]
    if old and asked[old] == at then asked[old] = nil end
    ring[at], asked[offset] = offset, at
    at = (at + 1) % ASKED
  end

  local function ask (delta)
    local from, stop
    local offset = read_offset
    for _ = 1, depth do
      -- Compared before it is added, so that nothing can overflow.
      if delta > 0 and delta >= disk.size - offset or delta < 0 and -delta > offset then
        break
      end
      offset = offset + delta
      if not asked[offset] then
        remember (offset)
        local count = math.min (read_count, disk.size - offset)
        if from and offset <= stop and offset + count >= from
           and math.max (stop, offset + count) - math.min (from, offset) <= disk.block
        then
          from, stop = math.min (from, offset), math.max (stop, offset + count)
        else
          if from then disk:prefetch (from, stop - from) end
          from, stop = offset, offset + count
        end
      end
    end
    if from then disk:prefetch (from, stop - from) end
  end

  while not disk:closed () do
    local seen = false
    for offset, count in disk:reads () do
      if previous then
        newest = newest + 1
        deltas[newest % HISTORY] = offset - previous
      end
      previous, read_offset, read_count, seen = offset, offset, count, true
      depth = asked[offset] and math.min (depth * 2, DEPTH) or math.max (depth // 2, 1)
    end
    local delta = seen and trend (deltas, newest)
    if delta and delta ~= 0 then
      ask (delta)
    else
      disk:wait ()
    end
  end
end
