-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- learn: replay what earlier runs read, if there is a trace of them yet.
--
-- scan-trace=FILE names the trace.  Where there is none yet, it does what adaptive
-- does, and the filter records what clients read.  Once there is one, it does what
-- replay does and then what adaptive does, while the filter adds this run to it; so
-- the second start of the same command line is as fast as a replay.
--
-- Costs what those two do.  It loses where each start reads something else: then the
-- trace is left after some reads, and adaptive goes on.
--
-- scan-arg-order=ORDER, scan-arg-gap=SIZE   see replay
-- scan-arg-then=NAME        in place of adaptive, or none
-- scan-arg-then.NAME=VALUE  an argument of that policy

local arguments = require "scan.args"
local combine = require "scan.combinators"
local args = ...
arguments.check_known (args, { "order", "gap", "then", "then.*" })
-- Also while there is no trace: the second start is to take what the first one did.
arguments.choice (args, "order", "time", { "time", "offset" })
arguments.size (args, "gap", 0)
args["then"] = args["then"] or "adaptive"

-- It is no error if there is no trace yet.
if pcall (scan.open, "trace") then return scan.policy ("replay", args) end

return combine.named (args, "then", scan.policy) or function () end
