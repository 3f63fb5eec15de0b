-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- regions: the ranges that a file lists, the highest priority first.
--
-- The file is named with scan-file-regions=FILE.  Each line is
--
--     OFFSET COUNT [PRIORITY]
--
-- in bytes, decimal or 0x…, with an optional K, M, G or T; a priority is any
-- number, 0 if left out; what follows a # is a comment.  Ranges of the same
-- priority go in the order of the file.  Each is fetched a block at a time.
-- What is outside the disk is cut off; bytes that are named twice are asked
-- for once (in units of 64K).
--
-- A bad line is an error at start-up.  Memory: 32 bytes a line, for a million lines
-- 33 MB.  It loses when the file no longer fits the disk; that regions lie outside, or
-- that there are none, is warned of.
--
-- scan-arg-then=NAME   a policy to go on with (none: the scan ends)

local arguments = require "scan.args"
local combine = require "scan.combinators"
local sizes = require "scan.sizes"
local args = ...
arguments.check_known (args, { "then" })
local go_on = combine.named (args, "then", scan.policy)

local function bad_line (number, line, expected)
  error (("scan-file-regions: line %d: %s expected, got '%s'")
           :format (number, expected, line), 0)
end

local function parse_line (number, line)
  local comment = line:find ("#")
  local words = scan.words (comment and line:sub (1, comment - 1) or line)
  if #words == 0 then return nil end
  local offset, count = sizes.parse (words[1]), words[2] and sizes.parse (words[2])
  local priority = words[3] and tonumber (words[3])
  if #words < 2 or #words > 3 then
    bad_line (number, line, "OFFSET COUNT [PRIORITY]")
  elseif not offset then
    bad_line (number, line, "an offset like 4096 or 2M")
  elseif not count or count == 0 then
    bad_line (number, line, "a count like 4096 or 2M, at least 1")
  elseif words[3] and (not priority or priority ~= priority) then
    bad_line (number, line, "a number as priority")
  end
  return offset, count, priority
end

-- The regions of a priority are lists of their offsets and counts.
local groups, by_priority = {}, {}
for offset, count, priority in scan.open ("regions"):rows (3, false, parse_line) do
  priority = priority or 0
  local group = by_priority[priority]
  if not group then
    group = { priority = priority, offsets = {}, counts = {} }
    by_priority[priority], groups[#groups + 1] = group, group
  end
  local n = #group.offsets + 1
  group.offsets[n], group.counts[n] = offset, count
end
table.sort (groups, function (a, b) return a.priority > b.priority end)
if #groups == 0 then scan.warn ("scan-file-regions: there are no regions in it") end

-- Returns true if the client has gone.
local function fetch (disk, offset, count)
  local stop = offset < disk.size and disk.size - offset > count
    and offset + count or disk.size
  while offset < stop do
    if disk:closed () then return true end
    local length = math.min (disk.block, stop - offset)
    disk:prefetch (offset, length)
    offset = offset + length
  end
end

local function regions (disk)
  local outside = 0
  for _, group in ipairs (groups) do
    for i, offset in ipairs (group.offsets) do
      if offset >= disk.size then outside = outside + 1 end
      if fetch (disk, offset, group.counts[i]) then return end
    end
  end
  if outside > 0 then
    scan.warn (("scan-file-regions: %d of its regions lie beyond the end of the disk "
                .. "(%d bytes)"):format (outside, disk.size))
  end
end

return combine.once (go_on and combine.chain (regions, go_on) or regions)
