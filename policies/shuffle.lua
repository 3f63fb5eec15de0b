-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- shuffle: every block once, in an order that looks random.
--
-- The block numbers 0 to n-1 are put through a permutation of the smallest
-- power of 4 that is not below n: a Feistel network of four rounds keyed by the
-- seed, applied again while it lands outside (less than four times on average).
-- The same seed and disk size give the same order.
--
-- Memory is constant.  Costs about a microsecond a block.  It is for
-- measuring: what an order without any sense is worth, and for sources that
-- spread their load by offset.  It loses to every other order where there is
-- one to know.
--
-- scan-arg-seed=N   a whole number (0)

local arguments = require "scan.args"
local args = ...
arguments.check_known (args, { "seed" })
local SEED = arguments.integer (args, "seed", 0)

local ROUNDS = 4

-- Mix 64 bits; any fixed odd multipliers with spread-out bits will do.
local function mix (x)
  x = (x ~ x >> 31) * 0x7fb5d329728ea185
  x = (x ~ x >> 27) * 0x81dadef4bc2dd44d
  return x ~ x >> 33
end

local function permutation (n, seed)
  local half = 1
  while half < 31 and 1 << 2 * half < n do half = half + 1 end
  local mask = (1 << half) - 1
  local keys = {}
  for round = 1, ROUNDS do keys[round] = mix (seed * ROUNDS + round) end

  return function (x)
    repeat
      local left, right = x >> half, x & mask
      for round = 1, ROUNDS do
        left, right = right, left ~ mix (right ~ keys[round]) & mask
      end
      x = left << half | right
    until x < n
    return x
  end
end

return function (disk)
  local place = permutation (disk.blocks, SEED)
  for i = 0, disk.blocks - 1 do
    if disk:closed () then return end
    disk:prefetch (place (i) * disk.block)
  end
end
