-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A scan made of generators: the first of them that has something to fetch is served.
--
-- A generator is a table with
--
-- - `next (self, most)`: the next range to fetch, as offset and count in bytes, at most
--   so many of them; it counts as fetched from then on.  Or nil if there is none now,
--   and seconds after which there may be one, if it does not wait for a read;
-- - `note (self, offset, count, met)`, optional: sees each client read, before any
--   `next`; if it returns true, the generators behind do not see that read;
-- - `ended (self, offset, count, errno)`, optional: sees each prefetch that ended.
--
-- How much may be in flight is not decided here.
--
-- @module scan.generators

local M = {}

-- What a short first piece does not mean: so much is asked for at once in any case.
local LEAST_BYTES = 128 << 10

-- The first that there is: offset and count; or nil, and when there may be one.
local function take_first (generators, most)
  local due
  for _, generator in ipairs (generators) do
    local offset, count = generator:next (most)
    if offset then return offset, count end
    due = due or count
  end
  return nil, due
end

--- Scan with generators until the client goes, or for as long as there is something
-- to do.
-- @tparam table disk
-- @tparam table generators a list, the one that is served first in front; in that
-- order they see the reads, too
-- @tparam[opt] boolean ends true if the scan is over once none of them has anything
-- to fetch and nothing is in flight
function M.run (disk, generators, ends)
  -- Most bytes to ask for at once: two of the pieces in which it is done, so that
  -- what is asked for is not stale when its turn comes.
  local most, asked = disk.block, {}

  local function look ()
    for offset, count, met in disk:reads () do
      for _, generator in ipairs (generators) do
        if generator.note and generator:note (offset, count, met) then break end
      end
    end
    for offset, count, _, errno in disk:results () do
      if asked[offset] then
        local is_whole = count == asked[offset]
        most = math.max (2 * count, LEAST_BYTES, is_whole and most or 0)
        most = math.min (most, disk.block)
        asked[offset] = nil
      end
      for _, generator in ipairs (generators) do
        if generator.ended then generator:ended (offset, count, errno) end
      end
    end
  end

  local is_settled = false
  while not disk:closed () do
    look ()
    local offset, count = take_first (generators, most)
    if offset then
      is_settled = false
      asked[offset] = count
      disk:prefetch (offset, count)
    elseif count or not ends then
      disk:wait (count)
    elseif not is_settled then
      -- What is in flight may fail, or be waited for.
      is_settled = true
      disk:settle ()
    else
      return
    end
  end
end

return M
