-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What `simulate` and `plot` have in common.
--
-- @module scan.command.simulation

local hints = require "scan.hints"
local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local simulator = require "scan.simulator"
local words = require "scan.command.words"

local M = {}

--- The options of a simulation.
-- @tparam table command
-- @tparam string traces how many there may be, for inputs.add_trace_option
function M.add_options (command, traces)
  local source = simulator.SOURCE
  inputs.add_trace_option (command, traces)
  command:option ("--latency", ("Of the source, for each request. Default: %gms.")
                    :format (source.latency_seconds * 1000))
    :argname ("TIME"):convert (words.seconds ("--latency"))
  command:option ("--bandwidth", ("Of the source, in bytes a second. Default: %d.")
                    :format (source.bandwidth // 1))
    :argname ("SIZE"):convert (words.bytes ("--bandwidth", 1))
  command:option ("--slots", ("Requests that the source does at once. Default: %d.")
                    :format (source.slots))
    :argname ("N"):convert (words.count ("--slots", 1))
  command:option ("--clients", "So many clients, each with this trace. Default: 1.")
    :argname ("N"):convert (words.count ("--clients", 1, 1000))
  command:option ("--depth", "Reads that a client has in flight. Default: 1.")
    :argname ("N"):convert (words.count ("--depth", 1))
  command:option ("--think", "The client's pause before each read. Default: the"
                  .. " trace's own.")
    :argname ("TIME"):convert (words.seconds ("--think"))
  command:flag ("--keep-reads", "The cache keeps what is read, too (cache-on-read).")
  command:flag ("--background", "One scan shared by all clients (scan-background).")
end

--- Simulate the client of a trace.
-- @tparam table loaded from inputs.trace
-- @tparam ?table policy from inputs.policy; nil: nothing is prefetched
-- @tparam table options of the command
-- @tparam[opt] boolean record what `plot` draws
-- @treturn table result of simulator.run
function M.run (loaded, policy, options, record)
  local traces = {}
  for i = 1, options.clients or 1 do traces[i] = loaded.reads end
  local name = policy and policy.policy or "no policy"
  local disk = inputs.disk (options, loaded)
  local meter = output.progress_meter (name .. " on " .. loaded.name,
                                       function (reads) return reads .. " reads" end)
  local result = inputs.guarded (simulator.run, {
    policy = policy and policy.policy, args = policy and policy.args,
    files = policy and policy.files, traces = traces,
    size = disk.size, block = disk.block, holes = disk.holes, contents = disk.contents,
    threads = disk.threads, depth = options.depth, think_seconds = options.think,
    keep_reads = options.keep_reads, background = options.background,
    source = { latency_seconds = options.latency, bandwidth = options.bandwidth,
               slots = options.slots },
    record = record, progress = meter.show,
  })
  meter.clear ()
  if result.error then inputs.refuse (hints.explain (result.error)) end
  return result
end

return M
