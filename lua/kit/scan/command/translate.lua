-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy translate.
--
-- @module scan.command.translate

local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local trace = require "scan.trace"
local translate = require "scan.translate"
local units = require "scan.units"

local M = {}

M.about = "Write a trace anew for an image that was rebuilt: by content, not by offset."

M.epilog = [[
Examples:
  scan-policy translate --from monday.img --to tuesday.img monday.trace > tuesday.trace
  scan-policy translate --from nbd://build/monday --to tuesday.img monday.trace

Each 4K block that the trace reads is looked for in the new image. What is not there
goes with its neighbours, or keeps its place. The share of each is told at the end.]]

function M.add_options (command)
  command:argument ("trace", "A log of nbdkit's log filter, a list of 'offset count', or"
                    .. " what scan-record wrote."):argname ("TRACE")
  command:option ("--from", "The image that was traced: a raw file or an NBD URI.")
    :argname ("OLD"):count (1)
  command:option ("--to", "The image that it was rebuilt to: a raw file or an NBD URI.")
    :argname ("NEW"):count (1)
end

function M.run (options)
  local meter = output.progress_meter (options.to, units.bytes)
  local function load (size, block)
    local lines = inputs.lines_of ("TRACE", options.trace)
    local ok, blocks = pcall (trace.blocks, lines, block, size)
    if not ok then inputs.refuse (options.trace .. ": " .. blocks) end
    if #blocks == 0 then
      inputs.refuse (options.trace .. ": there are no reads of this image in it")
    end
    return blocks
  end
  local list, counts = inputs.guarded (translate.translate, options.from, options.to,
                                       load, meter.show)
  meter.clear ()
  for _, range in ipairs (list) do output.write (range[1], " ", range[2], "\n") end
  local function share (n) return ("%.1f %%"):format (100 * n / counts.blocks) end
  io.stderr:write (("%s: %d blocks of 4K: %s found by content, %s placed by their "
                    .. "neighbours, %s left in place%s\n")
    :format (options.trace, counts.blocks, share (counts.content),
             share (counts.shift), share (counts.place),
             counts.lost > 0 and (", %s behind the end of the new image")
               :format (share (counts.lost)) or ""))
  return 0
end

return M
