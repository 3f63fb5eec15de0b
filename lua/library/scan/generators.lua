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
-- - `ended (self, offset, count, errno)`, optional: sees each prefetch that ended, with
--   an errno name if it has failed;
-- - `failed (self, offset, count)`, optional: sees each that failed, and what a client
--   could not read.
--
-- What is there, on its way or a hole is left out by `take`, of ranges { at =, stop = }
-- in bytes.  How much may be in flight is not decided here.
--
-- @module scan.generators

local M = {}

--- What layers that keep data keep it in, often; a smaller piece is hardly cheaper.
M.UNIT_BYTES = 64 << 10

--- A range, widened to multiples.
-- @tparam table disk that the range is on
-- @tparam integer offset in bytes
-- @tparam integer count in bytes
-- @tparam integer unit what to widen it to, in bytes
-- @treturn table range
function M.widen (disk, offset, count, unit)
  -- In this way it can't overflow on the largest disks.
  local last = offset + math.min (count, disk.size - offset) - 1
  last = last - last % unit
  return { at = offset - offset % unit, stop = last + math.min (unit, disk.size - last) }
end

--- Take from a range what is missing and in no hole.
-- @tparam table disk
-- @tparam table range whose `at` moves behind what is taken, and which keeps what it
-- learns of a hole; with `holes` set, they count
-- @tparam integer most bytes
-- @tparam[opt] integer unit in bytes: not beyond the next multiple of it
-- @treturn integer|nil offset in bytes, nil if there is nothing left
-- @treturn integer|nil count in bytes; with no offset: seconds to the next time to ask
function M.take (disk, range, most, unit)
  while range.at < range.stop do
    local offset, count = disk:missing (range.at, range.stop)
    if not offset then return nil end
    local data, is_more, hole = offset, false, range.hole
    if range.holes then
      range.hole = nil
    elseif hole and offset >= hole.at and offset < hole.stop then
      data = hole.stop
    else
      data, is_more = disk:next_data (offset, true)
      -- Who goes on in it need not ask again.
      if data ~= offset then range.hole = { at = offset, stop = data or disk.size } end
    end
    range.at = math.min (data or range.stop, range.stop)
    -- A vast hole: the client may have read meanwhile.
    if is_more then return nil, 0 end
    local left = offset + count - range.at
    if left > 0 then
      count = math.min (left, most, unit and unit - range.at % unit or most)
      range.at = range.at + count
      return range.at - count, count
    end
  end
  return nil
end

--- Take from the first of some ranges that has something; those before it are dropped.
-- @tparam table disk
-- @tparam table ranges list
-- @tparam integer most bytes
-- @tparam[opt] integer unit as of `take`
-- @treturn integer|nil offset in bytes
-- @treturn integer|nil count as of `take`
function M.take_first (disk, ranges, most, unit)
  while ranges[1] do
    local offset, count = M.take (disk, ranges[1], most, unit)
    if offset or count then return offset, count end
    table.remove (ranges, 1)
  end
  return nil
end

-- What the first generator has that has something.
local function next_of (generators, most)
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
  local function look ()
    for offset, count, met in disk:reads () do
      for _, generator in ipairs (generators) do
        if generator.note and generator:note (offset, count, met) then break end
      end
    end
    for offset, count, _, errno in disk:results () do
      for _, generator in ipairs (generators) do
        if generator.ended then generator:ended (offset, count, errno) end
      end
    end
    for offset, count in disk:failures () do
      for _, generator in ipairs (generators) do
        if generator.failed then generator:failed (offset, count) end
      end
    end
  end

  local is_settled = false
  while not disk:closed () do
    look ()
    local offset, count = next_of (generators, disk:room ())
    if offset then
      is_settled = false
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
