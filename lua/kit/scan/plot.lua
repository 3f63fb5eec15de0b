-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A picture of a simulation: offset against time, as SVG.
--
-- Prefetches are grey boxes, from when each was issued to when it was done and
-- as high as its range.  The client's reads lie on top, coloured by what became
-- of them.  What falls on the same spot is drawn once, so the picture of a long
-- run is not large.
--
-- @module scan.plot

local svg = require "scan.svg"
local units = require "scan.units"

local M = {}

local WIDTH, HEIGHT = 1000, 600
local LEFT, RIGHT, TOP, BOTTOM = 84, 24, 96, 64
local TICKS = 8

-- Told apart also by people who don't see red and green, and by their shape.
local KINDS = {
  { kind = "hit", name = "hit: was in the cache", color = "#0072b2" },
  { kind = "late", name = "late: waited for a prefetch", color = "#e69f00" },
  { kind = "miss", name = "miss: went to the source", color = "#d43a2a" },
}
local PREFETCH_COLOR = "#c3c9d1"
local INK, FAINT = svg.INK, svg.FAINT

-- A round step that gives about so many ticks: 1, 2 or 5 times a power of ten,
-- or a power of two.
local function decimal_step (span)
  local power = 10 ^ math.floor (math.log (span / TICKS, 10))
  for _, factor in ipairs { 1, 2, 5 } do
    if span / (factor * power) <= TICKS then return factor * power end
  end
  return 10 * power
end

local function binary_step (span)
  local step = 1
  while span / step > TICKS do step = step * 2 end
  return step
end

local text_at = svg.text

local function draw_axes (out, box)
  local bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
  local unit, name = units.second_unit (box.seconds)
  local step = decimal_step (box.seconds / unit)
  for i = 0, math.floor (box.seconds / unit / step + 1e-9) do
    local x = box.x (i * step * unit)
    out (('<path d="M%.1f %d V%d" stroke="%s"/>\n'):format (x, TOP, bottom, FAINT))
    text_at (out, x, bottom + 18, "middle", 12, ("%.6g"):format (i * step))
  end
  text_at (out, (LEFT + right) / 2, bottom + 44, "middle", 13, "time (" .. name .. ")")

  unit, name = units.byte_unit (box.size)
  step = binary_step (box.size / unit)
  for i = 0, math.floor (box.size / unit / step) do
    local y = box.y (i * step * unit)
    out (('<path d="M%d %.1f H%d" stroke="%s"/>\n'):format (LEFT, y, right, FAINT))
    text_at (out, LEFT - 8, y + 4, "end", 12, ("%d"):format (i * step))
  end
  local middle = (TOP + bottom) / 2
  text_at (out, 22, middle, "middle", 13, "offset on the disk (" .. name .. ")",
           (' transform="rotate(-90 22 %.1f)"'):format (middle))
end

local function draw_mark (out, kind, x1, x2, y, color)
  if x2 - x1 > 3 then
    out (('<path d="M%.1f %.1f H%.1f" stroke="%s" stroke-width="2.5"/>\n')
           :format (x1, y, x2, color))
  end
  if kind == "hit" then
    out (('<circle cx="%.1f" cy="%.1f" r="2.2" fill="%s"/>\n'):format (x1, y, color))
  elseif kind == "late" then
    out (('<rect x="%.1f" y="%.1f" width="5" height="5" fill="%s"/>\n')
           :format (x1 - 2.5, y - 2.5, color))
  else
    out (('<path d="M%.1f %.1f l3.2 5.6 h-6.4 z" fill="%s"/>\n')
           :format (x1, y - 3.4, color))
  end
end

-- What has been drawn already, to the half pixel.
local function drawn_once ()
  local seen = {}
  return function (...)
    local words = table.pack (...)
    for i = 1, words.n do
      if type (words[i]) == "number" then words[i] = math.floor (words[i] * 2 + 0.5) end
    end
    local key = table.concat (words, " ")
    local new = not seen[key]
    seen[key] = true
    return new
  end
end

local function draw_prefetches (out, box, result)
  local new = drawn_once ()
  for _, prefetch in ipairs (result.timeline) do
    if prefetch.seconds <= box.seconds then
      local x1 = box.x (prefetch.seconds)
      local x2 = box.x (math.min (prefetch.done or box.seconds, box.seconds))
      local top = box.y (prefetch.offset + prefetch.count)
      local width, height = math.max (x2 - x1, 1.5), box.y (prefetch.offset) - top
      -- Neighbours keep a line between them where there is room for one.
      if height > 3 then top, height = top + 0.5, height - 1 end
      height = math.max (height, 1.2)
      if new (x1, x2, top, height) then
        out (('<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f"/>\n')
               :format (x1, top, width, height))
      end
    end
  end
end

local function draw_reads (out, box, result)
  local new = drawn_once ()
  for _, read in ipairs (result.reads) do
    local x1, x2 = box.x (read.seconds), box.x (read.done or box.seconds)
    local y = box.y (read.offset + read.count / 2)
    for _, kind in ipairs (KINDS) do
      if kind.kind == read.kind and new (kind.kind, x1, x2, y) then
        draw_mark (out, kind.kind, x1, x2, y, kind.color)
      end
    end
  end
end

local function draw_legend (out, result)
  local counts = { hit = result.hits, late = result.late, miss = result.misses }
  local x, y = LEFT, 78
  for _, kind in ipairs (KINDS) do
    local label = ("%s (%d)"):format (kind.name, counts[kind.kind])
    draw_mark (out, kind.kind, x + 4, x + 4, y - 4, kind.color)
    text_at (out, x + 14, y, "start", 12, label)
    x = x + 34 + 6.3 * #label
  end
  out (('<rect x="%.1f" y="%d" width="14" height="9" fill="%s"/>\n')
         :format (x, y - 9, PREFETCH_COLOR))
  text_at (out, x + 20, y, "start", 12, ("prefetch (%d)"):format (#result.timeline))
end

--- Draw a simulation.
-- @tparam table result of `simulator.run` with `record`
-- @tparam[opt] table options `title`, and `without_seconds`, the time of the
-- same client without a policy
-- @treturn string an SVG document
function M.svg (result, options)
  options = options or {}
  local seconds = math.max (result.seconds, 1e-6)
  local size = math.max (result.size, 1)
  local width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
  local box = {
    seconds = seconds, size = size,
    x = function (s) return LEFT + s / seconds * width end,
    y = function (offset) return HEIGHT - BOTTOM - offset / size * height end,
  }
  local parts = {}
  local function out (text) parts[#parts + 1] = text end

  local title = options.title or result.name or ""
  local facts = "finished in " .. units.seconds (result.seconds)
  if options.without_seconds then
    facts = facts .. ", without prefetch " .. units.seconds (options.without_seconds)
  end
  facts = facts .. (", ideal %s; %s prefetched, %s of it never read")
    :format (units.seconds (result.ideal_seconds), units.bytes (result.prefetched_bytes),
             units.bytes (result.wasted_bytes))
  svg.begin (out, WIDTH, HEIGHT, LEFT, title, facts)
  draw_legend (out, result)
  draw_axes (out, box)
  out (('<g fill="%s">\n'):format (PREFETCH_COLOR))
  draw_prefetches (out, box, result)
  out ("</g>\n<g>\n")
  draw_reads (out, box, result)
  out ("</g>\n")
  out (('<path d="M%d %d V%d H%d" fill="none" stroke="%s"/>\n')
         :format (LEFT, TOP, HEIGHT - BOTTOM, WIDTH - RIGHT, INK))
  out ("</svg>\n")
  return table.concat (parts)
end

return M
