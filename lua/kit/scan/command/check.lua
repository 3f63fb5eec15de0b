-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy check.
--
-- @module scan.command.check

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local dry_run = require "scan.dry_run"

local M = {}

M.about =
  "Load a policy and run it against some clients and disks; explain what is wrong."

M.epilog = [[
Examples:
  scan-policy check mine.lua
  scan-policy check replay --file trace=boot.log
  scan-policy check metadata --image disk.img
  scan-policy check mine.lua --trace boot.log --block 256K]]

function M.add_options (command)
  command:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  inputs.add_policy_options (command)
  inputs.add_disk_options (command)
  inputs.add_trace_option (command, "?")
end

function M.run (options)
  local loaded = options.trace and inputs.trace (options.trace)
  local disk = inputs.disk (options, loaded)
  disk.reads = loaded and loaded.reads
  local policy = inputs.policy (options.policy, options)
  local report = inputs.guarded (dry_run.check, policy, disk)
  for _, line in ipairs (report.lines) do output.write (line, "\n") end
  return report.ok and 0 or 1
end

return M
