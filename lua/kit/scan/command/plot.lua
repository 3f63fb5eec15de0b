-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy plot.
--
-- @module scan.command.plot

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local simulation = require "scan.command.simulation"
local plot = require "scan.plot"

local M = {}

M.about =
  "Draw a simulation as SVG: offset against time, reads coloured hit, late or miss."

M.epilog = [[
Examples:
  scan-policy plot mine.lua --trace boot.log -o mine.svg
  rsvg-convert mine.svg -o mine.png]]

function M.add_options (command)
  command:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  command:option ("-o --output", "Where to write it. Default: standard output.")
    :argname ("SVG")
  inputs.add_policy_options (command)
  inputs.add_disk_options (command)
  simulation.add_options (command, "1")
end

function M.run (options)
  local loaded = inputs.trace (options.trace)
  local policy = inputs.policy (options.policy, options)
  local without = simulation.run (loaded, nil, options)
  local result = simulation.run (loaded, policy, options, true)
  local svg = plot.svg (result, {
    title = ("%s for %s"):format (options.policy:match ("([^/]+)$"), loaded.name),
    without_seconds = without.seconds,
  })
  if not options.output then
    output.write (svg)
    return 0
  end
  output.write_file (options.output, svg)
  output.write (("%s: %d reads, %d prefetches\n")
              :format (options.output, #result.reads, #result.timeline))
  return 0
end

return M
