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
-- A bad line is an error at start-up.  Memory grows with the file.  It loses
-- when the file no longer fits the disk: nothing tells.
--
-- scan-arg-then=NAME   a policy to go on with (none: the scan ends)

local arguments = require "scan.args"
local combine = require "scan.combinators"
local args = ...
arguments.check_known (args, { "then" })
local go_on = combine.named (args, "then", scan.policy)

local UNITS = { k = 10, m = 20, g = 30, t = 40 }

local function size (word)
  local shift = UNITS[word:sub (-1):lower ()]
  local n = tonumber (shift and word:sub (1, -2) or word)
  n = n and math.tointeger (n)
  if not n or n < 0 or shift and n > math.maxinteger >> shift then return nil end
  return n << (shift or 0)
end

local function bad_line (number, line, expected)
  error (("scan-file-regions: line %d: %s expected, got '%s'")
           :format (number, expected, line), 0)
end

local function parse (file)
  local list, number = {}, 0
  for line in file:lines () do
    number = number + 1
    local comment = line:find ("#")
    local words = scan.words (comment and line:sub (1, comment - 1) or line)
    if #words > 0 then
      local offset, count = size (words[1]), words[2] and size (words[2])
      local priority = words[3] and tonumber (words[3]) or not words[3] and 0
      if #words < 2 or #words > 3 then
        bad_line (number, line, "OFFSET COUNT [PRIORITY]")
      elseif not offset then
        bad_line (number, line, "an offset like 4096 or 2M")
      elseif not count or count == 0 then
        bad_line (number, line, "a count like 4096 or 2M, at least 1")
      elseif not priority or priority ~= priority then
        bad_line (number, line, "a number as priority")
      end
      list[#list + 1] = { offset = offset, count = count, priority = priority,
                          number = number }
    end
  end
  table.sort (list, function (a, b)
    if a.priority ~= b.priority then return a.priority > b.priority end
    return a.number < b.number
  end)
  return list
end

local list = parse (scan.open ("regions"))

local function regions (disk)
  for _, range in ipairs (list) do
    local offset = range.offset
    local stop = offset < disk.size and disk.size - offset > range.count
      and offset + range.count or disk.size
    while offset < stop do
      if disk:closed () then return end
      local count = math.min (disk.block, stop - offset)
      disk:prefetch (offset, count)
      offset = offset + count
    end
  end
end

return combine.once (go_on and combine.chain (regions, go_on) or regions)
