-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- The stock scan: upwards through the disk, a block at a time.
--
-- - The offset starts at the clock if there is one, else at 0.
-- - While it is inside the disk: each client read seen since the last step
--   moves it up to the end of that read, if that is further (with `ahead`).
--   If the client has gone, the scan stops there.  The clock is raised to the
--   offset.  If the offset is still inside the disk, a block is prefetched
--   there; then the offset moves up by a block, whatever became of that.
-- - At the end of the disk: with `forever` the clock goes back to 0 and the
--   scan starts again from there, else it is finished.
--
-- Offsets are never aligned: after a read that ends at 0x163 the scan goes on
-- from there.  A client that goes during the last block of a lap still finds
-- the clock at 0 next time, with `forever`.
--
-- @module scan.sequential

local M = {}

--- A position that several scans share.
-- @treturn table clock, for `scan`'s options
function M.clock ()
  return { offset = 0 }
end

--- Make the policy.
-- @tparam table options `ahead` (boolean): skip over what the client has read;
-- `clock` (from `sequential.clock`, or nil): where to start, and shared with other
-- scans; `forever` (boolean): start again at the end
-- @treturn function of the disk
function M.scan (options)
  local ahead, forever = options.ahead, options.forever
  local clock = options.clock or M.clock ()
  local shared = options.clock ~= nil

  return function (disk)
    local size, block = disk.size, disk.block
    local last = size - block -- no step from beyond this, so none can overflow
    -- This loop is the filter's usual work; looking methods up has a price.
    local prefetch, reads, closed = disk.prefetch, disk.reads, disk.closed
    if size == 0 then return end -- there is no lap to go round

    repeat
      local position = shared and clock.offset or 0
      while position < size do
        if ahead then
          for offset, count in reads (disk) do
            if position < offset + count then position = offset + count end
          end
        end
        if closed (disk) then return end
        if clock.offset < position then clock.offset = position end
        if position < size then prefetch (disk, position) end
        if position >= last then break end
        position = position + block
      end
      if forever then clock.offset = 0 end
    until not forever
  end
end

return M
