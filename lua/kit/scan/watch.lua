-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A live view of a server, from the files that scan-stats and clone-stats write.
--
-- The files have totals only, so the strip of an export shows shares of the disk and
-- not where they lie.  Rates are between the last two times that the files were
-- written.  What a file does not have, as the pace or the clone's counters, is left
-- out.
--
-- @module scan.watch

local escape = require "scan.escape"
local units = require "scan.units"

local M = {}

-- Seconds without news of a prefetch in flight after which a scan is called stalled,
-- and seconds without a new file after which its age is told: filters write theirs
-- every 5 seconds.
local STALLED_SECONDS = 10
local OLD_SECONDS = 15

-- Cells of a strip, in order, with the colour that they have on a terminal.
local CELLS = {
  { share = "read", cell = "#", color = "32" },
  { share = "fetched", cell = "=", color = "34" },
  { share = "hole", cell = "-", color = "2" },
  { share = "absent", cell = ".", color = "2" },
}
M.LEGEND = "# fetched and read   = fetched   - hole   . absent"

local UNESCAPED = { n = "\n", ["\\"] = "\\", ["\""] = "\"" }

-- The labels of a sample, as a table.
local function parse_labels (text)
  local labels = {}
  local position = 1
  while true do
    local name, value, after = text:match ('^,?([%a_][%w_]*)="(.-)"()', position)
    if not name then return labels end
    -- A quote behind an odd number of backslashes is not the end.
    while #value:match ("\\*$") % 2 == 1 do
      local more, later = text:match ('^(.-)"()', after)
      if not more then return labels end
      value, after = value .. '"' .. more, later
    end
    labels[name] = value:gsub ("\\(.)", UNESCAPED)
    position = after
  end
end

--- What a file in Prometheus' format says of each export.
-- @tparam string text
-- @treturn table exports in order of their names, each with `name`, `scan` and
-- `clone` (values by the name of the metric, without its prefix), `results` (reads
-- by result), and `state`, `policy` and `error`, nil if the file has them not; and of
-- the line that all of them share `pace`, values by the name of the metric
function M.parse (text)
  local by_name, exports = {}, { pace = {} }
  for line in text:gmatch ("[^\n]+") do
    local gauge, shared = line:match ("^nbdkit_scan_pace_([%w_]+) (%S+)$")
    if gauge then exports.pace[gauge] = tonumber (shared) end
    local filter, metric, labels, value =
      line:match ("^nbdkit_(%a+)_([%w_]+){(.*)} (%S+)$")
    value = tonumber (value)
    if value and (filter == "scan" or filter == "clone") then
      labels = parse_labels (labels)
      local name = labels.export or ""
      local export = by_name[name]
      if not export then
        export = { name = name, scan = {}, clone = {}, results = {} }
        by_name[name] = export
        exports[#exports + 1] = export
      end
      if labels.result then
        export.results[labels.result] = value
      elseif labels.state then
        if value == 1 then export.state = labels.state end
      elseif metric == "policy_info" then
        export.policy = labels.policy
        export.error = labels.error ~= "" and labels.error or nil
      else
        export[filter][metric] = value
      end
    end
  end
  table.sort (exports, function (a, b) return a.name < b.name end)
  return exports
end

--- What has become of the bytes of an export's disk.
--
-- What the clone has and no scan fetched, as what clients fetched themselves, counts
-- as read.
-- @tparam table export as parse gives it
-- @treturn table `read`, `fetched`, `hole` and `absent`, in bytes, and their `size`
function M.shares (export)
  local scan, clone = export.scan, export.clone
  local size = scan.size_bytes or clone.size_bytes or 0
  local covered = math.min (scan.covered_bytes or 0, size)
  local fetched = math.min (scan.unread_bytes or 0, covered)
  local hole = math.min (scan.hole_bytes or 0, size - covered)
  local others = math.max ((clone.present_bytes or 0) - covered - hole, 0)
  others = math.min (others, size - covered - hole)
  return { read = covered - fetched + others, fetched = fetched, hole = hole,
           absent = size - covered - hole - others, size = size }
end

--- How many cells of a strip each share has: in proportion, and at least one if it is
-- not nothing.
-- @tparam table shares as `M.shares` gives them
-- @tparam integer width of the strip, at least four
-- @treturn table cells by share
function M.cells (shares, width)
  local cells, left = {}, width
  local largest
  for _, kind in ipairs (CELLS) do
    local bytes = shares[kind.share]
    local n = shares.size > 0 and math.floor (bytes / shares.size * width) or 0
    if bytes > 0 and n == 0 then n = 1 end
    cells[kind.share], left = n, left - n
    if not largest or n > cells[largest] then largest = kind.share end
  end
  -- What rounding leaves over, or has taken too much, matters least there.
  if shares.size == 0 then largest = "absent" end
  cells[largest] = cells[largest] + left
  return cells
end

local function draw_strip (shares, width, color)
  local cells, parts = M.cells (shares, width), {}
  for _, kind in ipairs (CELLS) do
    local text = kind.cell:rep (cells[kind.share])
    if color and #text > 0 then text = ("\27[%sm%s\27[0m"):format (kind.color, text) end
    parts[#parts + 1] = text
  end
  return "[" .. table.concat (parts) .. "]"
end

-- Of a counter, since the frame before; nil if there is none or it began anew.
local function gained (now, before, filter, name)
  local new = now[filter][name]
  local old = before and before[filter][name]
  return new and old and new >= old and new - old or nil
end

local function percent (part, all)
  return all > 0 and ("%.0f %%"):format (100 * part / all) or "-"
end

local function total (results)
  return (results.hit or 0) + (results.late or 0) + (results.miss or 0)
end

-- "a scan runs", with why it does not, or that nothing comes from the source.
local function state_of (export)
  local scan = export.scan
  if export.error then return "failed: " .. export.error end
  if (scan.prefetches_in_flight or 0) > 0
     and (scan.quiet_seconds or 0) >= STALLED_SECONDS then
    return "stalled for " .. units.seconds (math.floor (scan.quiet_seconds))
  end
  return export.state or "-"
end

-- What is known of the line, as a text; nil if nothing is.
local function pace_of (exports)
  local parts = {}
  for _, gauge in ipairs {
    { "window_bytes", "window %s", units.bytes },
    { "piece_bytes", "pieces of %s", units.bytes },
    { "bandwidth_bytes", "%s/s", units.bytes },
    { "latency_seconds", "latency %s", units.seconds },
  } do
    local value = exports.pace[gauge[1]] or 0
    if value > 0 then parts[#parts + 1] = gauge[2]:format (gauge[3] (value)) end
  end
  return parts[1] and "pace: " .. table.concat (parts, ", ")
end

-- What stands in both forms, as a list of texts.
local function figures (now, before, seconds)
  local shares = M.shares (now)
  local parts = {}
  local function add (...) parts[#parts + 1] = (...):format (select (2, ...)) end
  local function rate (filter, name)
    local bytes = gained (now, before, filter, name)
    return bytes and seconds > 0 and units.bytes (bytes / seconds) .. "/s"
  end

  local done = shares.size - shares.absent
  if shares.size > 0 then
    add ("%s of %s", percent (done, shares.size), units.bytes (shares.size))
  end
  local fetching = rate ("scan", "prefetched_bytes_total")
  if fetching then add ("fetching %s", fetching) end
  local reading = rate ("scan", "read_bytes_total")
  if reading then add ("read %s", reading) end
  local bytes = gained (now, before, "scan", "prefetched_bytes_total")
  if now.state == "running" and bytes and bytes > 0 and shares.absent > 0 then
    add ("%s left", units.seconds (math.ceil (shares.absent / bytes * seconds)))
  end
  local reads = total (now.results)
  if reads > 0 then
    add ("hit %s, late %s", percent (now.results.hit or 0, reads),
         percent (now.results.late or 0, reads))
  end
  if before then
    local new = reads - total (before.results)
    local hits = (now.results.hit or 0) - (before.results.hit or 0)
    -- Not if it began anew.
    if new > 0 and new < reads and hits >= 0 and hits <= new then
      add ("lately hit %s", percent (hits, new))
    end
  end
  if (now.scan.prefetch_failures_total or 0) > 0 then
    add ("%d failed", now.scan.prefetch_failures_total // 1)
  end
  local clone = now.clone
  if clone.present_bytes then
    add ("clone has %s", percent (clone.present_bytes, shares.size))
    local source = rate ("clone", "fetched_bytes_total")
    if source then add ("source %s", source) end
    if (clone.fetch_failures_total or 0) > 0 then
      add ("%d fetches failed", clone.fetch_failures_total // 1)
    end
    if (clone.not_kept_total or 0) > 0 then
      add ("%d not kept", clone.not_kept_total // 1)
    end
    if clone.broken == 1 then add ("CLONE BROKEN") end
  end
  return parts
end

-- What it is called, and what becomes of it.  Names come from clients, and messages have
-- words of theirs: what a terminal would obey is not for one.
local function heading (export)
  local name = export.name == "" and "(default export)" or export.name
  return { escape.line (name), escape.line (state_of (export)) }
end

-- The frame before, by name.
local function index (exports)
  local by_name = {}
  for _, export in ipairs (exports or {}) do by_name[export.name] = export end
  return by_name
end

-- Set texts beside each other, in lines no wider than that: a message of Lua or an
-- export's name can be longer, and is cut.
local function wrap (parts, width, indent)
  local lines, line = {}, nil
  for _, part in ipairs (parts) do
    if line and #line + 2 + #part <= width then
      line = line .. "  " .. part
    else
      lines[#lines + 1] = line
      line = indent .. part
    end
  end
  lines[#lines + 1] = line      -- nil if there were no texts
  for n, text in ipairs (lines) do lines[n] = text:sub (1, width) end
  return lines
end

-- A text in lines of a terminal.  One that is left to the terminal to break would be
-- counted as one, and stay in part when the next frame is drawn.
local function fold (text, width)
  local lines = {}
  for position = 1, #text, width do
    lines[#lines + 1] = text:sub (position, position + width - 1)
  end
  return lines
end

--- What a terminal shows: for each export its state, a strip and figures.
-- @tparam table now exports, as parse gives them
-- @tparam ?table before those of the last frame, or nil
-- @tparam number seconds between the two
-- @tparam table options `width` and `height` of the terminal, and `color`
-- @treturn table lines, no more than fit
function M.frame (now, before, seconds, options)
  local lines, old = {}, index (before)
  local left_out = 0
  local pace = pace_of (now)
  for i, export in ipairs (now) do
    local head = heading (export)
    head[3] = export.policy and escape.line ("policy " .. export.policy)
    local block = wrap (head, options.width, "")
    block[#block + 1] = draw_strip (M.shares (export), math.max (options.width - 2, 4),
                                    options.color)
    table.move (wrap (figures (export, old[export.name], seconds), options.width, "  "),
                1, 99, #block + 1, block)
    if i > 1 and #lines + #block + (pace and 3 or 2) > options.height then
      left_out = #now - i + 1
      break
    end
    table.move (block, 1, #block, #lines + 1, lines)
  end
  if #now == 0 then lines[1] = "no export has been scanned yet" end
  if left_out > 0 then lines[#lines + 1] = ("and %d more"):format (left_out) end
  if pace then lines[#lines + 1] = pace:sub (1, options.width) end
  lines[#lines + 1] = M.LEGEND:sub (1, options.width)
  return lines
end

--- The same where there is no terminal: a line for each export.
-- @treturn table lines
function M.lines (now, before, seconds)
  local lines, old = {}, index (before)
  for i, export in ipairs (now) do
    local parts = heading (export)
    table.move (figures (export, old[export.name], seconds), 1, 99, 3, parts)
    parts[#parts + 1] = pace_of (now)
    lines[i] = table.concat (parts, ", ")
  end
  return lines
end

--- Show frames until there have been enough, or sleeping is interrupted.
-- @tparam table world what it needs of the system: `read ()` returns the text of the
-- files and when they were written, in seconds, or nil and a message, `clock ()` the
-- time now, `sleep (seconds)` returns false when interrupted, `write (text)`,
-- `terminal` whether it goes to one, `size ()` its width and height, and `date ()` the
-- time of day as a text
-- @tparam table options `interval` in seconds, and `count` of frames, or nil
-- @treturn boolean false, and a message, if there is nothing to read at first
function M.run (world, options)
  local last, before          -- as it was written last, and the time before that
  local drawn, frames = 0, 0
  while true do
    local text, written = world.read ()
    local lines, note
    local width, height
    if world.terminal then width, height = world.size () end
    if not text then
      if frames == 0 then return false, written end
      lines, note = {}, written
    else
      local age = math.floor (world.clock () - written)
      if age >= OLD_SECONDS then
        note = ("last written %s ago: has the server ended?")
          :format (units.seconds (age))
      end
      if not last or written ~= last.written then
        last, before = { exports = M.parse (text), written = written }, last
      end
      local old = before and before.exports
      local seconds = before and last.written - before.written or 0
      if world.terminal then
        lines = M.frame (last.exports, old, seconds, {
          width = width, color = true,
          height = height - 1 - (note and #fold (note, width) or 0),
        })
      else
        lines = M.lines (last.exports, old, seconds)
      end
    end
    for _, line in ipairs (note and (width and fold (note, width) or { note }) or {}) do
      lines[#lines + 1] = line
    end
    if world.terminal then
      -- One is left for the cursor, so that nothing scrolls.
      for n = #lines, math.max (height, 2), -1 do lines[n] = nil end
      -- Up to where the last frame began, and nothing of it stays.
      world.write ((drawn > 0 and ("\27[%dA"):format (drawn) or "") .. "\r\27[J"
                   .. table.concat (lines, "\n") .. "\n")
    else
      for _, line in ipairs (lines) do
        world.write (world.date () .. " " .. line .. "\n")
      end
    end
    drawn, frames = #lines, frames + 1
    if frames == options.count or not world.sleep (options.interval) then
      return true
    end
  end
end

return M
