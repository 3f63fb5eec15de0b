-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): all that is not a hole, once.
--
-- Upwards to the end of the disk from where a stream was read last, or from the
-- start, then what was left out before, a block at a time.  What lies between the
-- first and the last of what failed is gone through again, three times, after 1, 2
-- and 4 seconds.
--
-- @module scan.rest

local M = {}

local Rest = {}
local META = { __index = Rest }

-- A source that is down for longer than these seconds is not waited for.
local RETRY_SECONDS = { 1, 2, 4 }

--- Make one.
-- @tparam table disk
-- @tparam[opt] table readers from scan.streams: go on from where they are
-- @treturn table generator
function M.new (disk, readers)
  return setmetatable ({ disk = disk, readers = readers or {}, at = 0, start = 0,
                         stop = disk.size, due = 0, tries = 0 }, META)
end

--- A prefetch has ended.
function Rest:ended (offset, count, errno)
  if not errno then return end
  self.low = math.min (self.low or offset, offset)
  self.high = math.max (self.high or 0, offset + count)
end

--- The next range.
function Rest:next (most)
  local disk, position = self.disk, self.readers.position
  if position ~= self.position then
    self.position, self.at, self.start = position, position, position
    self.stop, self.due = disk.size, 0
  end
  while self.due <= disk:now () do
    local offset, count = disk:missing (self.at, self.stop)
    if offset then
      local data, is_more = disk:next_data (offset, true)
      self.at = data or self.stop
      -- A vast hole: the client may have read meanwhile.
      if is_more then return nil, 0 end
      if data and data < offset + count then
        count = math.min (offset + count - data, disk.block - data % disk.block, most)
        self.at = data + count
        return data, count
      end
    elseif self.start > 0 then
      self.at, self.start, self.stop = 0, 0, self.start
    elseif self.low and RETRY_SECONDS[self.tries + 1] then
      self.tries = self.tries + 1
      self.due = disk:now () + RETRY_SECONDS[self.tries]
      self.at, self.stop, self.low, self.high = self.low, self.high, nil, nil
    else
      return nil
    end
  end
  return nil, self.due - disk:now ()
end

return M
