-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy simulate.
--
-- @module scan.command.simulate

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local simulation = require "scan.command.simulation"
local units = require "scan.units"

local M = {}

M.about = "Compare policies: a table of what each does for the client of each trace."

M.epilog = [[
Examples:
  scan-policy simulate default reverse mine.lua --trace boot.log
  scan-policy simulate default,ahead=false default --trace boot.log --latency 50ms
    arguments of one policy follow its name, after commas
  scan-policy simulate adaptive --trace boot.log --threads 8 --clients 4 --background

The columns: time until the client has read all, and how many times faster that is
than without prefetch; hit, late and missed reads in percent; what was prefetched
and never read. 'ideal' is what no policy can beat.]]

function M.add_options (command)
  command:argument ("policy", "Files, or names of built-ins."):argname ("FILE")
    :args ("+")
  inputs.add_policy_options (command)
  inputs.add_disk_options (command)
  simulation.add_options (command, "+")
end

local function result_row (name, trace_name, result, without)
  local all = result.hits + result.late + result.misses
  local function percent (n) return ("%.0f %%"):format (100 * n / all) end
  return { trace_name, name, units.seconds (result.seconds),
           ("%.2f x"):format (without.seconds / result.seconds),
           percent (result.hits), percent (result.late), percent (result.misses),
           units.bytes (result.prefetched_bytes), units.bytes (result.wasted_bytes) }
end

function M.run (options)
  local rows = { { "trace", "policy", "time", "faster", "hit", "late", "miss",
                   "prefetched", "wasted" } }
  local policies = {}
  for i, word in ipairs (options.policy) do
    policies[i] = inputs.policy (word, options)
  end
  for _, path in ipairs (options.trace) do
    local loaded = inputs.trace (path)
    local without = simulation.run (loaded, nil, options)
    rows[#rows + 1] = result_row ("(none)", loaded.name, without, without)
    for i, policy in ipairs (policies) do
      local result = simulation.run (loaded, policy, options)
      rows[#rows + 1] = result_row (options.policy[i], loaded.name, result, without)
    end
    rows[#rows + 1] = { loaded.name, "(ideal)", units.seconds (without.ideal_seconds),
                        ("%.2f x"):format (without.seconds / without.ideal_seconds),
                        "", "", "", "", "" }
  end
  output.print_table (rows, 2)
  return 0
end

return M
