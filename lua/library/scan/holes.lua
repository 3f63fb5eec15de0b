-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What of a range is worth a prefetch: it is not there, and no hole.
--
-- For policies that have something else to do.  None of these asks further than it is
-- asked for, where `disk:next_data` would look for the end of a hole of terabytes.
--
-- @module scan.holes

local M = {}

--- Is there a hole at this place?
-- @tparam table disk
-- @tparam integer offset in bytes, inside the disk
-- @treturn boolean false too if the layer below can't tell
function M.is_hole (disk, offset)
  return disk:next_data (offset, true) ~= offset
end

--- The first of a range that is missing (see `disk:missing`), and in no hole.
-- @tparam table disk
-- @tparam integer from in bytes, 0 or more
-- @tparam integer to where to end, in bytes; at most the end of the disk
-- @treturn integer|nil offset in bytes, nil if there is none
-- @treturn integer count of it, or of as much as was looked at
function M.missing_data (disk, from, to)
  local offset, count = disk:missing (from, to)
  if not offset then return nil end
  local data, is_more = disk:next_data (offset, true)
  while is_more and data < to do data, is_more = disk:next_data (data, true) end
  if data == offset then return offset, count end
  if not data or data >= to then return nil end
  return disk:missing (data, to)
end

return M
