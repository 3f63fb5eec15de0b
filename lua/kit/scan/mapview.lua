-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Shows a map of the clone filter: as lines with a strip of the disk, or as SVG.
--
-- @module scan.mapview

local escape = require "scan.escape"
local svg = require "scan.svg"
local units = require "scan.units"

local M = {}

-- How much of a part of the disk is present, from nothing to all: as a cell of the
-- strip and as a colour.
local SHADES = {
  { cell = ".", name = "nothing", color = svg.FAINT },
  { cell = ":", name = "less than half", color = "#b3d4e8" },
  { cell = "+", name = "half or more", color = "#66a9d0" },
  { cell = "#", name = "all", color = "#0072b2" },
}

local function shade (present, size)
  if present == size then return 4 end
  if present == 0 then return 1 end
  return present * 2 < size and 2 or 3
end

-- Never 100 % of what is not whole, nor 0 % of something.
local function percent (part, all)
  if part == all then return "100 %" end
  return ("%.1f %%"):format (math.min (math.max (100 * part / all, part > 0 and 0.1 or 0),
                                       99.9))
end

local function facts (map, total, runs)
  return ("%s of %s present, %s, %s"):format (
    units.bytes (total), units.bytes (map.size), percent (total, map.size),
    runs == 1 and "in one run" or ("in %d runs"):format (runs))
end

--- Lines for a terminal.
-- @tparam table map as clonemap.load gives it
-- @tparam integer width of the strip, with its brackets
-- @treturn table lines
function M.lines (map, width)
  local present, sizes, total, runs = map:shares (math.max (width - 2, 1))
  local lines = { facts (map, total, runs) }
  local made = ("blocks of %s"):format (units.bytes (map.block))
  if map.export ~= "" then made = made .. (", export %q"):format (map.export) end
  if map.id ~= "" then made = made .. (", clone-id=%s"):format (map.id) end
  lines[#lines + 1] = escape.line (made)
  lines[#lines + 1] = map.written and "clients have written"
    or "no client has written"
  if map.lost then
    lines[#lines + 1] = "some of the map is lost; what it told of is fetched again"
  end
  local strip, legend = {}, {}
  for i, bytes in ipairs (present) do strip[i] = SHADES[shade (bytes, sizes[i])].cell end
  lines[#lines + 1] = "[" .. table.concat (strip) .. "]"
  for i = 4, 1, -1 do
    legend[#legend + 1] = SHADES[i].cell .. " " .. SHADES[i].name
  end
  lines[#lines + 1] = table.concat (legend, "   ")
  return lines
end

local WIDTH, HEIGHT = 1000, 600
local LEFT, RIGHT, TOP, BOTTOM = 84, 24, 96, 24
local COLUMNS, ROWS = 128, 32

--- Draw a map.  The disk goes from left to right, row by row, as text does.
-- @tparam table map as clonemap.load gives it
-- @tparam string title
-- @treturn string an SVG document
function M.svg (map, title)
  -- Not more parts than there are blocks, and a rectangle of them all the same.
  local rows = math.max (math.min (ROWS, map.blocks // COLUMNS), 1)
  local columns = math.max (math.min (COLUMNS, map.blocks // rows), 1)
  local present, sizes, total, runs = map:shares (rows * columns)
  local parts = {}
  local function out (text) parts[#parts + 1] = text end
  local cell_width = (WIDTH - LEFT - RIGHT) / columns
  local cell_height = math.min ((HEIGHT - TOP - BOTTOM) / rows, 32)

  svg.begin (out, WIDTH, HEIGHT, LEFT, title, facts (map, total, runs))
  local x = LEFT
  for i = 4, 1, -1 do
    out (('<rect x="%.1f" y="69" width="14" height="9" fill="%s"/>\n')
           :format (x, SHADES[i].color))
    svg.text (out, x + 20, 78, "start", 12, SHADES[i].name)
    x = x + 44 + 6.3 * #SHADES[i].name
  end
  local unit, name = units.byte_unit (map.size)
  svg.text (out, 22, (TOP + HEIGHT - BOTTOM) / 2, "middle", 13,
            "offset on the disk (" .. name .. ")",
            (' transform="rotate(-90 22 %.1f)"'):format ((TOP + HEIGHT - BOTTOM) / 2))
  for row = 0, rows - 1 do
    local y = TOP + row * cell_height
    if row % 4 == 0 then
      svg.text (out, LEFT - 8, y + 10, "end", 12,
                ("%.3g"):format (map.size / unit * row / rows))
    end
    -- Neighbours of one shade are one box.
    local column = 0
    while column < columns do
      local function shade_at (where)
        local part = row * columns + where + 1
        return shade (present[part], sizes[part])
      end
      local first, its = column, shade_at (column)
      repeat column = column + 1
      until column == columns or shade_at (column) ~= its
      out (('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>\n')
             :format (LEFT + first * cell_width, y, (column - first) * cell_width,
                      cell_height - 1, SHADES[its].color))
    end
  end
  out ("</svg>\n")
  return table.concat (parts)
end

return M
