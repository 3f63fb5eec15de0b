-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A scan made of generators: each offers ranges, the best is taken from first.
--
-- A generator is a table with
--
-- - `next (self)`: the next range that it would fetch, as offset and count in bytes,
--   or nil if there is none now;
-- - `took (self, offset, count)`: that, or a first part of it, is being fetched;
-- - `note (self, offset, count, met)`, optional: sees each client read, before any
--   `next`; if it returns something true, the read is not shown to the generators
--   behind;
-- - `ended (self, offset, count, errno)`, optional: sees each prefetch that ended;
-- - `due (self)`, optional: seconds after which it may have something to offer;
-- - `worth`: how much of what it offers is read, as a guess, from 0 to 1.
--
-- The guess is put right by what is seen: worth is the share of the bytes that it
-- had fetched, the later ones more, that a client read.  How much may be in flight is
-- not decided here.  Of units of 64K it is kept who had them fetched, of 65536 of
-- them at most.
--
-- @module scan.generators

local M = {}

local UNIT_BYTES = 65536
local UNITS = 65536
local SECTOR_BYTES = 512
-- What a guess weighs, in bytes fetched; and after how many old ones count half.
local GUESS_BYTES, MEMORY_BYTES = 4 << 20, 64 << 20
-- What a short first piece does not mean: so much is asked for at once in any case.
local LEAST_BYTES = 128 << 10

-- Measures what each generator is worth.
local function new_meter (generators)
  local owner, owned = {}, 0
  local meter = {}

  for _, generator in ipairs (generators) do
    generator.fetched, generator.used = GUESS_BYTES, GUESS_BYTES * generator.worth
  end

  local function judge (generator)
    generator.worth = math.min (1, generator.used / generator.fetched)
  end

  function meter.fetched (generator, offset, count)
    if owned >= UNITS then owner, owned = {}, 0 end
    for unit = offset // UNIT_BYTES, (offset + count - 1) // UNIT_BYTES do
      if not owner[unit] then owned = owned + 1 end
      owner[unit] = generator
    end
    generator.fetched = generator.fetched + count
    if generator.fetched > MEMORY_BYTES then
      generator.fetched, generator.used = generator.fetched / 2, generator.used / 2
    end
    judge (generator)
  end

  function meter.read (offset, count)
    while count > 0 do
      local generator = owner[offset // UNIT_BYTES]
      local here = math.min (count, UNIT_BYTES - offset % UNIT_BYTES)
      if generator then
        generator.used = generator.used + here
        judge (generator)
      end
      offset, count = offset + here, count - here
    end
  end

  return meter
end

-- The best that there is: offset, count and its generator.
local function best_of (generators)
  table.sort (generators, function (a, b)
    if a.worth ~= b.worth then return a.worth > b.worth end
    return a.turn < b.turn
  end)
  for _, generator in ipairs (generators) do
    local offset, count = generator:next ()
    if offset then return offset, count, generator end
  end
  return nil
end

--- Scan with generators until the client goes, or for as long as there is something
-- to do.
-- @tparam table disk
-- @tparam table generators a list, in the order in which they see the reads
-- @tparam[opt] boolean ends true if the scan is over once none of them has anything
-- to offer and nothing is in flight
function M.run (disk, generators, ends)
  local ranked = {}
  for i, generator in ipairs (generators) do
    generator.turn, ranked[i] = i, generator
  end
  local meter = new_meter (generators)
  -- Most bytes to ask for at once: two of the pieces in which it is done, so that
  -- what is asked for is not stale when its turn comes.
  local most, asked = disk.block, {}

  local function look ()
    for offset, count, met in disk:reads () do
      if met ~= "miss" then meter.read (offset, count) end
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
    local offset, count, generator = best_of (ranked)
    if offset then
      settled = false
      if count > most then count = most end
      generator:took (offset, count)
      -- What is less than a sector is there, but for how that is kept in mind.
      if count >= SECTOR_BYTES or offset + count == disk.size then
        meter.fetched (generator, offset, count)
        asked[offset] = count
        disk:prefetch (offset, count)
      end
    else
      local due
      for _, other in ipairs (generators) do
        local seconds = other.due and other:due ()
        if seconds and (not due or seconds < due) then due = seconds end
      end
      if due or not ends then
        disk:wait (due)
      elseif not settled then
        -- What is in flight may fail, or be waited for.
        settled = true
        disk:settle ()
      else
        return
      end
    end
  end
end

return M
