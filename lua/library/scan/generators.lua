-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A scan made of generators: the first of them that has something to offer is taken
-- from.
--
-- A generator is a table with
--
-- - `next (self, most)`: the next range to fetch, as offset and count in bytes, at most
--   so many of them; or nil if there is none now, and seconds after which there may be
--   one if it does not wait for a read;
-- - `took (self, offset, count)`, optional: that, or a first part of it, is being
--   fetched; without it, it is taken as soon as it is offered;
-- - `note (self, offset, count, met)`, optional: sees each client read, before any
--   `next`; if it returns something true, the read is not shown to the generators
--   behind;
-- - `ended (self, offset, count, errno)`, optional: sees each prefetch that ended.
--
-- How much may be in flight is not decided here.
--
-- @module scan.generators

local M = {}

local SECTOR_BYTES = 512
-- What a short first piece does not mean: so much is asked for at once in any case.
local LEAST_BYTES = 128 << 10

-- The first that there is: offset and count; or nil, and when there may be one.
local function take_first (generators, most)
  local due
  for _, generator in ipairs (generators) do
    local offset, count = generator:next (most)
    if offset then
      count = math.min (count, most)
      if generator.took then generator:took (offset, count) end
      return offset, count
    end
    due = due or count
  end
  return nil, due
end

--- Scan with generators until the client goes, or for as long as there is something
-- to do.
-- @tparam table disk
-- @tparam table generators a list, the one that is to be taken from first in
-- front; in that order they see the reads, too
-- @tparam[opt] boolean ends true if the scan is over once none of them has anything
-- to offer and nothing is in flight
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
      local wanted = asked[offset]
      asked[offset] = nil
      if wanted and count < wanted then
        most = math.min (math.max (2 * count, LEAST_BYTES), disk.block)
      elseif wanted and wanted >= most then
        most = math.min (2 * most, disk.block)
      end
      for _, generator in ipairs (generators) do
        if generator.ended then generator:ended (offset, count, errno) end
      end
    end
  end

  local settled = false
  while not disk:closed () do
    look ()
    local offset, count = take_first (generators, most)
    if offset then
      settled = false
      -- What is less than a sector is there, but for how that is kept in mind.
      if count >= SECTOR_BYTES or offset + count == disk.size then
        asked[offset] = count
        disk:prefetch (offset, count)
      end
    elseif count or not ends then
      disk:wait (count)
    elseif not settled then
      -- What is in flight may fail, or be waited for.
      settled = true
      disk:settle ()
    else
      return
    end
  end
end

return M
