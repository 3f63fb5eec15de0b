-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A generator (see scan.generators): all that is not a hole, once.
--
-- Upwards to the end of the disk from where a stream was read last, or from the
-- start, then what was left out before, a block at a time.  What lies between the
-- first and the last of what failed, also for a client, is gone through again, after 1,
-- 2, 4 seconds and so on: so a source that was down is tried again before it has been
-- back for as long as it was away.
--
-- @module scan.rest

local generators = require "scan.generators"

local M = {}

local Rest = {}

--- Make one.
-- @tparam table disk
-- @tparam table walks from scan.walks: go on from where they are
-- @treturn table generator
function M.new (disk, walks)
  return setmetatable ({ disk = disk, walks = walks, due = 0, seconds = 1,
                         ranges = { { at = 0, stop = disk.size } } }, { __index = Rest })
end

--- A prefetch has failed, or a client's read.
function Rest:failed (offset, count)
  local again = self.again or { at = offset, stop = 0 }
  self.again = { at = math.min (again.at, offset),
                 stop = math.max (again.stop, offset + count) }
end

--- A prefetch has ended.
function Rest:ended (_, _, errno)
  -- The source is back.
  if not errno then self.seconds = 1 end
end

--- The next range.
function Rest:next (most)
  local disk, position = self.disk, self.walks.position
  if position ~= self.position then
    self.position, self.due = position, 0
    self.ranges = { { at = position, stop = disk.size }, { at = 0, stop = position } }
  end
  local now = disk:now ()
  while self.due <= now do
    local offset, count = generators.take_first (disk, self.ranges, most, disk.block)
    if offset or count then return offset, count end
    if not self.again then return nil end
    self.ranges, self.again = { self.again }, nil
    now = disk:now ()
    self.due, self.seconds = now + self.seconds, 2 * self.seconds
  end
  -- Not asked again: it may have gone past what is due since the loop looked.
  return nil, self.due - now
end

return M
