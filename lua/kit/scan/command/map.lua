-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- scan-policy map.
--
-- @module scan.command.map

local clonemap = require "scan.clonemap"
local inputs = require "scan.command.inputs"
local output = require "scan.command.output"
local mapview = require "scan.mapview"

local M = {}

M.about = "Show what is there of a disk, from the map of the clone filter."

M.epilog = [[
Examples:
  scan-policy map disk.img.map
  scan-policy map disk.img.map -o map.svg

It shows what the last commit has left in the file (clone-commit), also of a server
that runs. Exit status 1 says that the filter would refuse the map, or that it is
still being made.]]

function M.add_options (command)
  command:argument ("map", "Beside the image: FILE.map for clone-file=FILE.")
    :argname ("FILE.map")
  command:option ("-o --output", "Draw a picture, too."):argname ("SVG")
end

-- A map that is not of the image beside it is not read on: it may speak of any size.
local function load (path)
  local name = path:match ("^(.+)%.map$")
  local image <close> = name and io.open (name, "rb")
  return clonemap.load (path, image and image:seek ("end"))
end

-- Why there is no map to show, to follow the name of the file.
local function why_not (path, message)
  -- An image may look like a map that is still being made, as both begin with zeroes.
  local map, beside = load (path .. ".map")
  if map or beside == "unborn" then
    return ("is the image; its map is %s.map"):format (path)
  elseif message == "unborn" then
    return "is still being made; nothing is present yet"
  end
  return message
end

function M.run (options)
  local map, message = load (options.map)
  if not map then
    inputs.refuse (options.map .. " " .. why_not (options.map, message))
  end
  local width = output.is_terminal (1) and output.terminal_size () or 80
  for _, line in ipairs (mapview.lines (map, width)) do output.write (line, "\n") end
  if options.output then
    local name = options.map:match ("([^/]*)$"):gsub ("%.map$", "")
    output.write_file (options.output, mapview.svg (map, name))
  end
  return 0
end

return M
