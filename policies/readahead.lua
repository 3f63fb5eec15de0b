-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- readahead: stays ahead of sequential readers, and fetches nothing else.
--
-- lua/library/scan/streams.lua says what a sequential stream is, how far ahead of it is
-- fetched and when that is given up.  Of several streams the one read last goes
-- first.  Nothing is fetched before a stream shows; between reads it waits.
--
-- Memory: 8 streams.  About half of what it fetches is never read at most (a
-- stream that ends).  It wins over a source with much latency, more so with
-- several threads.  It loses (fetches nothing) on random reads and on a boot; see
-- `adaptive` and `replay` for these.
--
-- scan-arg-window=SIZE   most bytes ahead of a reader (32M)

local arguments = require "scan.args"
local streams = require "scan.streams"
local args = ...
arguments.check_known (args, { "window" })
local WINDOW = arguments.size (args, "window", 32 << 20, 65536)

return function (disk)
  local readers = streams.new (disk, { window = WINDOW })
  while not disk:closed () do
    readers:look ()
    local stream, _, count = readers:next ()
    if stream then
      readers:prefetch (stream, count)
    else
      disk:wait ()
    end
  end
end
