-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- replay: what an earlier run read, in the order in which it did.
--
-- The file named with scan-file-trace=FILE is what scan-record wrote, a log of
-- nbdkit's log filter (`nbdkit --filter=log … logfile=boot.log`) or a list of
-- "offset count" lines.  Each byte that it reads is prefetched once, in the order of
-- the first touch, or with order=offset upwards through the disk: in pieces of 4K,
-- for nothing keeps less than that.  Reads that lie close on the disk, and less than
-- some 50 pieces apart in the trace, are fetched as one, with the gap.  What a client
-- has read, or was fetched, is left out, and so is what is outside the disk.
--
-- It watches what the client reads.  Each read that is not in the trace counts one
-- up, each that is counts one down, and at 64 the trace is left, with a message:
-- the client does something else, and for long.
--
-- Order by time when the source has no seek cost (most networks), by offset for a
-- single spinning disk.  Memory: some 50 bytes for each piece, and the trace's text
-- while it is loaded.  It wins by far on a boot or an application start that is much like
-- the one recorded, and loses when the disk was rebuilt since: then see `scan-policy
-- translate`.
--
-- scan-arg-order=ORDER      time (the default) or offset
-- scan-arg-gap=SIZE         the most that is fetched to join two reads (32K)
-- scan-arg-then=NAME        a policy to go on with (none: the scan ends); what was
--                           replayed is not fetched again
-- scan-arg-then.NAME=VALUE  an argument of that policy

local arguments = require "scan.args"
local combine = require "scan.combinators"
local extents = require "scan.extents"
local trace = require "scan.trace"
local args = ...
arguments.check_known (args, { "order", "gap", "then", "then.*" })
local ORDER = arguments.choice (args, "order", "time", { "time", "offset" })
local GAP_BYTES = arguments.size (args, "gap", 32 * 1024)
local go_on = combine.named (args, "then", scan.policy)

local UNIT_BYTES = 4096

-- No client reads more at once, by far.
local READ_MOST_BYTES = 1 << 30

-- The last pieces that others may be joined to, this many to twice as many.  Not many
-- more are on their way at a time, so the order hardly changes.
local JOIN_PIECES = 32

-- Where a piece ends that others are joined to: a longer one would hold up the next.
local PIECE_UNITS = (1 << 20) // UNIT_BYTES

-- So far do reads that are not in the trace outnumber the others when it is left.
local STRANGE_READS = 64

-- What is kept of a trace is made small, for a million reads are no more than a guest
-- makes in a day: a bit for each unit that is read, 64 to an integer, and the pieces
-- in the order of the trace, each the number of its first unit and, in the lowest 20
-- bits, how many there are.
local words, pieces = {}, {}
local COUNT_BITS = 20
local COUNT_MASK = (1 << COUNT_BITS) - 1

-- Are all units of a range in the trace?
local function is_known (first, last)
  for word = first >> 6, last >> 6 do
    local bits = words[word]
    if not bits then return false end
    local from = word == first >> 6 and first & 63 or 0
    local to = word == last >> 6 and last & 63 or 63
    local mask = -1 << from & -1 >> 63 - to
    if bits & mask ~= mask then return false end
  end
  return true
end

local function know (first, last)
  for word = first >> 6, last >> 6 do
    local from = word == first >> 6 and first & 63 or 0
    local to = word == last >> 6 and last & 63 or 63
    words[word] = (words[word] or 0) | -1 << from & -1 >> 63 - to
  end
end

-- The last pieces by the stretch of the disk that they begin or end in; those before
-- them are dropped from time to time.
local GAP_UNITS = GAP_BYTES // UNIT_BYTES
local STRETCH_UNITS = GAP_UNITS + 1
local recent, older = {}, {}

-- Make a piece longer if a range is close to it.
local function join (i, first, last)
  local from = pieces[i] >> COUNT_BITS
  local to = from + (pieces[i] & COUNT_MASK) - 1
  if first > to + 1 + GAP_UNITS or last < from - 1 - GAP_UNITS then return false end
  if from < first then first = from end
  if to > last then last = to end
  if last - first >= PIECE_UNITS then return false end
  pieces[i] = first << COUNT_BITS | last - first + 1
  recent[first // STRETCH_UNITS], recent[last // STRETCH_UNITS] = i, i
  return true
end

local function join_at (unit, first, last)
  local stretch = unit // STRETCH_UNITS
  local i = recent[stretch] or older[stretch]
  return i and join (i, first, last)
end

local function add (first, last)
  -- A piece that is close enough ends or begins in one of these stretches.
  if join_at (first - 1, first, last) or join_at (last + 1, first, last)
     or join_at (first - STRETCH_UNITS, first, last)
     or join_at (last + STRETCH_UNITS, first, last)
     or join_at (first, first, last) or join_at (last, first, last) then
    return
  end
  local i = #pieces + 1
  pieces[i] = first << COUNT_BITS | last - first + 1
  if i % JOIN_PIECES == 0 then recent, older = {}, recent end
  recent[first // STRETCH_UNITS], recent[last // STRETCH_UNITS] = i, i
end

local UNITS_MOST = math.maxinteger >> COUNT_BITS

for offset, count in trace.ranges (scan.open ("trace")) do
  if count > READ_MOST_BYTES then
    error (("scan-file-trace: a read of %d bytes is none of a client; for a list of "
            .. "large ranges there is scan-policy=regions"):format (count), 0)
  end
  local first, last = offset // UNIT_BYTES, (offset + count - 1) // UNIT_BYTES
  -- No disk is as large as that.
  if last <= UNITS_MOST and not is_known (first, last) then
    know (first, last)
    add (first, last)
  end
end
recent, older = nil, nil
if #pieces == 0 then scan.warn ("scan-file-trace: there are no reads in it") end

-- The number of a piece's first unit comes first in it.
if ORDER == "offset" then table.sort (pieces) end

local function piece (i)
  local first = pieces[i] >> COUNT_BITS
  return first * UNIT_BYTES, (pieces[i] & COUNT_MASK) * UNIT_BYTES
end

-- The last unit of a disk may be short.
local function each_piece (size)
  local i = 0
  return function ()
    i = i + 1
    if not pieces[i] then return nil end
    local offset, count = piece (i)
    if offset < size and offset + count - size < UNIT_BYTES then
      count = math.min (count, size - offset)
    end
    return offset, count
  end
end

-- Counts the client's reads; true once the trace should be left.
local function watcher (disk)
  local strange = 0
  return function ()
    for offset, count in disk:reads () do
      local known = is_known (offset // UNIT_BYTES, (offset + count - 1) // UNIT_BYTES)
      strange = math.max (0, strange + (known and -1 or 1))
    end
    return strange >= STRANGE_READS
  end
end

local function replay (disk)
  local message = extents.stale (each_piece (disk.size), disk)
  if message then scan.warn ("scan-file-trace: " .. message) end
  local is_left = watcher (disk)
  for i = 1, #pieces do
    local first, length = piece (i)
    local stop = first + length
    local offset, count = disk:missing (first, stop)
    while offset do
      if disk:closed () then return end
      if is_left () then
        scan.warn (("replay: the client reads what is not in the trace, which is left "
                    .. "after %d of %d pieces"):format (i - 1, #pieces))
        return
      end
      count = math.min (count, disk.block)
      disk:prefetch (offset, count)
      offset, count = disk:missing (offset + count, stop)
    end
  end
end

return go_on and combine.chain (replay, combine.once (go_on)) or replay
