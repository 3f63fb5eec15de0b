-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- replay: what an earlier run read, in the order in which it did.
--
-- The file named with scan-file-trace=FILE is a log of nbdkit's log filter
-- (`nbdkit --filter=log … logfile=boot.log`) or a list of "offset count" lines.
-- Its reads are widened to whole blocks, and each block is prefetched once: in
-- the order of the first touch, or with order=offset upwards through the disk.
-- What is outside the disk is left out; that, and an empty trace, is warned of.
--
-- Order by time when the source has no seek cost (most networks), by offset
-- for a single spinning disk.  Memory: 32 bytes for each read that the trace
-- doesn't repeat, and the log itself.  It wins by far on a boot or an
-- application start that is much like the one recorded, and loses when the
-- disk has changed since: it then fetches what is no longer asked for.  Client
-- reads do not matter to it.
--
-- scan-arg-order=ORDER   time (the default) or offset
-- scan-arg-then=NAME     a policy to go on with (none: the scan ends); it is
--                        not told what was replayed, but no block is fetched
--                        again

local arguments = require "scan.args"
local blockmap = require "scan.blockmap"
local combine = require "scan.combinators"
local trace = require "scan.trace"
local args = ...
arguments.check_known (args, { "order", "then" })
local ORDER = arguments.choice (args, "order", "time", { "time", "offset" })
local go_on = combine.named (args, "then", scan.policy)

-- Reads of what has been read before are dropped, as far as can be told
-- without knowing the disk.
local UNIT_BYTES = 4096

local offsets, counts, order = {}, {}, {}
local touched = blockmap.new (math.maxinteger // UNIT_BYTES + 1)
for offset, count in trace.ranges (scan.open ("trace")) do
  local first, last = offset // UNIT_BYTES, (offset + count - 1) // UNIT_BYTES
  local new = touched:next_missing (first)
  local n = #offsets
  if n > 0 and offset == offsets[n] + counts[n] then
    counts[n] = counts[n] + count
  elseif new and new <= last then
    offsets[n + 1], counts[n + 1], order[n + 1] = offset, count, n + 1
  end
  touched:add (first, last + 1)
end

if ORDER == "offset" then
  table.sort (order, function (a, b)
    if offsets[a] ~= offsets[b] then return offsets[a] < offsets[b] end
    return a < b
  end)
end

if #order == 0 then scan.warn ("scan-file-trace: there are no reads in it") end

local function replay (disk)
  local outside = 0
  for _, i in ipairs (order) do
    local offset = offsets[i]
    if offset >= disk.size then outside = outside + 1 end
    local stop = offset < disk.size and disk.size - offset > counts[i]
      and offset + counts[i] or disk.size
    while offset < stop do
      if disk:closed () then return end
      disk:prefetch (offset, 1) -- widened to a block by `align`
      offset = offset - offset % disk.block
      if disk.size - offset <= disk.block then break end
      offset = offset + disk.block
    end
  end
  if outside > 0 then
    scan.warn (("scan-file-trace: %d of its %d reads lie beyond the end of the disk "
                .. "(%d bytes)"):format (outside, #order, disk.size))
  end
end

replay = combine.align (replay)
return combine.once (go_on and combine.chain (replay, go_on) or replay)
