-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- reverse: from the end of the disk to its beginning, a block at a time.
--
-- Every block once, the last first.  Client reads do not matter to it.  Costs
-- no memory and fetches holes too.  It wins where the end is read first (a
-- QCOW2 or ZIP directory, a disk that is read backwards) and loses against a
-- reader that goes upwards: the two meet in the middle.

require "scan.args".check_known (..., {})

return function (disk)
  for block = disk.blocks - 1, 0, -1 do
    if disk:closed () then return end
    disk:prefetch (block * disk.block)
  end
end
