-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- data: what is not a hole, from the start of the disk upwards.
--
-- At each step it asks for the first offset that is not in a hole, prefetches
-- from there to the next multiple of a block, and goes on behind that.  A block
-- that is part hole is fetched from its first data on.  Client reads do not
-- matter to it.
--
-- Costs no memory, and a question about the extents for each block; where the
-- layer below can't tell, everything is data.  On a sparse disk of any size it
-- takes as many steps as there are blocks with data.  It loses against a reader
-- that is ahead of it.

require "scan.args".check_known (..., {})

return function (disk)
  local offset = 0
  while offset < disk.size do
    if disk:closed () then return end
    offset = disk:next_data (offset)
    if not offset then return end
    local count = disk.block - offset % disk.block
    disk:prefetch (offset, count)
    if count >= disk.size - offset then return end
    offset = offset + count
  end
end
