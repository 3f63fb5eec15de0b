-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): all that is not a hole, once.
--
-- Upwards to the end of the disk from where a stream was read last, or from the
-- start, then what was left out before, a block at a time; what failed again, three
-- times, after 1, 2 and 4 seconds (256 such ranges wait at most, others are given up).
--
-- @module scan.rest

local M = {}

local Rest = {}
local META = { __index = Rest }

local RETRIES, RETRY_SECONDS, RETRY_RANGES = 3, 1, 256

--- Make one.
-- @tparam table disk
-- @tparam[opt] table readers from scan.streams: go on from where they are
-- @treturn table generator
function M.new (disk, readers)
  return setmetatable ({
    disk = disk, readers = readers, at = 0, start = 0, wrapped = false,
    failed = {}, tries = {},
  }, META)
end

--- A prefetch has ended.
function Rest:ended (offset, count, errno)
  local tries = self.tries[offset]
  self.tries[offset] = nil
  if not errno then return end
  tries = (tries or 0) + 1
  if tries <= RETRIES and #self.failed < RETRY_RANGES then
    table.insert (self.failed, { offset = offset, count = count, tries = tries,
      due = self.disk:now () + RETRY_SECONDS * 2 ^ (tries - 1) })
  end
end

--- Seconds until something is to be tried again, or nil.
function Rest:due ()
  local due = self.is_in_hole and self.disk:now () or nil
  for _, range in ipairs (self.failed) do
    if not due or range.due < due then due = range.due end
  end
  return due and math.max (0, due - self.disk:now ())
end

-- A range that failed, if its time has come and nobody has fetched it since.
local function next_failed (rest)
  local now = rest.disk:now ()
  for i, range in ipairs (rest.failed) do
    if range.due <= now then
      table.remove (rest.failed, i)
      rest.again = range.tries
      if rest.disk:missing (range.offset, range.offset + range.count) then
        return range.offset, range.count
      end
      return next_failed (rest)
    end
  end
  rest.again = nil
  return nil
end

--- What was offered is being fetched.
function Rest:took (offset, count)
  if self.again then
    self.tries[offset] = self.again
  else
    self.at = offset + count
  end
end

--- The next range.
-- @treturn integer|nil offset in bytes, nil if there is none now
-- @treturn integer count in bytes
function Rest:next ()
  local disk, block = self.disk, self.disk.block
  self.is_in_hole = false
  local failed, failed_count = next_failed (self)
  if failed then return failed, failed_count end
  local position = self.readers and self.readers.position
  if position and position ~= self.position then
    self.position = position
    self.at, self.start, self.wrapped = position, position, false
  end
  while true do
    local stop = self.wrapped and self.start or disk.size
    local offset, count = disk:missing (self.at, stop)
    if offset then
      local data, is_more = disk:next_data (offset, true)
      -- A vast hole: the client may have read meanwhile.
      self.is_in_hole = is_more
      if is_more then
        self.at = data
        return nil
      end
      if data and data < offset + count then
        count = math.min (offset + count - data, block - data % block)
        return data, count
      end
      self.at = data or disk.size
    elseif self.wrapped or self.start == 0 then
      self.at = stop
      return nil
    else
      self.at, self.wrapped = 0, true
    end
    if self.at >= stop then self.at = stop end
  end
end

return M
