-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- A recorded client as one that waits for its answers.
--
-- A log of nbdkit's log filter tells when each read began and ended.  A program
-- that has many reads under way does not wait for all of them before it goes on; so
-- a read is taken to depend on the last one that had ended when it began, and the
-- time between the two to be the client's own.  Replayed so, a slower source makes
-- the client later and no less busy.  Who uses it has Lua find the modules of ours.

local trace = require "scan.trace"

local M = {}

local MICROSECONDS = 1000000

local function key_of (line)
  return line:match ("connection=(%d+) ") .. " " .. line:match (" id=(%d+)")
end

--- Read a log.  Reads whose end is not in it are left out.
-- @tparam table file with `lines`
-- @treturn table list of { offset =, count =, began =, ended =, think =, after = },
-- times in seconds since the first read, in the order in which they began; `after`
-- is the index of the read that it depends on, 0 if there is none; for
-- `closed_loop` of scan.simulator
function M.read (file)
  local list, open, first = {}, {}, nil
  for line in file:lines () do
    local now = trace.time (line)
    if now and line:find (" ...Read ", 1, true) then
      local key = key_of (line)
      if open[key] then open[key].ended = (now - first) / MICROSECONDS end
      open[key] = nil
    elseif now and line:find (" Read ", 1, true) then
      first = first or now
      local read = { offset = tonumber (line:match (" offset=(0x%x+)")),
                     count = tonumber (line:match (" count=(0x%x+)")),
                     began = (now - first) / MICROSECONDS }
      list[#list + 1], open[key_of (line)] = read, read
    end
  end
  return M.link (list)
end

--- Find out what depends on what.
-- @tparam table list of { offset =, count =, began =, ended = } by `began`
-- @treturn table the reads with `think` and `after`, as from `read`
function M.link (list)
  local reads, by_end = {}, {}
  for _, read in ipairs (list) do
    if read.ended then
      reads[#reads + 1] = read
      by_end[#reads] = #reads
    end
  end
  table.sort (by_end, function (a, b) return reads[a].ended < reads[b].ended end)
  local place = 0
  for i, read in ipairs (reads) do
    while by_end[place + 1] and reads[by_end[place + 1]].ended <= read.began
          and by_end[place + 1] < i do
      place = place + 1
    end
    read.after = by_end[place] or 0
    read.think = read.began - (place > 0 and reads[read.after].ended or 0)
  end
  return reads
end

return M
