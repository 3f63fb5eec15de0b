-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- The command scan-policy: reads its arguments and calls the rest of the kit.
--
-- Results go to standard output, progress and errors to standard error.  Exit
-- status: 0 all well, 1 a policy or a file is at fault, 2 bad usage.
--
-- @module scan.command

local argparse = require "argparse"

local clonemap = require "scan.clonemap"
local dry_run = require "scan.dry_run"
local image = require "scan.image"
local mapview = require "scan.mapview"
local plot = require "scan.plot"
local simulator = require "scan.simulator"
local sizes = require "scan.sizes"
local template = require "scan.template"
local testing = require "scan.testing"
local trace = require "scan.trace"
local translate = require "scan.translate"
local units = require "scan.units"
local watch = require "scan.watch"
local world = require "scan.world"

local M = {}

local MiB = 1024 * 1024
local DEFAULT_SIZE_BYTES = 64 * MiB

-- Seconds of real time between two lines of progress where there is no terminal.
local PROGRESS_SECONDS = 10

-- -- reading arguments ----------------------------------------------------------

local function bytes (flag, least)
  return function (word)
    local n = sizes.parse (word)
    if n and n >= (least or 0) then return n end
    return nil, ("%s: a size like 64K, 2M or 1048576%s expected, got '%s'")
      :format (flag, least and " of at least " .. least .. " bytes" or "", word)
  end
end

local function seconds (flag)
  return function (word)
    local n = units.parse_seconds (word)
    if n then return n end
    return nil, ("%s: a time like 20ms, 0.02 or 1.5s expected, got '%s'")
      :format (flag, word)
  end
end

local function count (flag, least, most)
  return function (word)
    local n = math.tointeger (tonumber (word))
    if n and n >= least and n <= (most or n) then return n end
    return nil, ("%s: a whole number from %d%s expected, got '%s'")
      :format (flag, least, most and " up to " .. most or " up", word)
  end
end

local function pair (flag)
  return function (word)
    local name, value = word:match ("^([^=]+)=(.*)$")
    if name then return { name, value } end
    return nil, ("%s: NAME=VALUE expected, got '%s'"):format (flag, word)
  end
end

-- When something happens: a number of prefetches, or a time if it has a unit.
local function moment (word)
  local after = math.tointeger (tonumber (word:match ("^%d+$")))
  if after then return { after = after } end
  local at = word:match ("%a$") and units.parse_seconds (word)
  return at and { at = at }
end

-- N:OFFSET:COUNT or TIME:OFFSET:COUNT
local function client_read (word)
  local when, offset, length = word:match ("^([^:]+):([^:]+):([^:]+)$")
  local event = when and moment (when)
  offset = offset and sizes.parse (offset)
  length = length and sizes.parse (length)
  if event and offset and length and length > 0 then
    event.read = { offset, length }
    return event
  end
  return nil, ("--read: N:OFFSET:COUNT like 3:16M:4K, or TIME:OFFSET:COUNT like "
               .. "20ms:16M:4K, expected, got '%s'"):format (word)
end

local function client_close (word)
  local event = moment (word)
  if not event then
    return nil, ("--close: a number of prefetches like 8, or a time like 1.5s, "
                 .. "expected, got '%s'"):format (word)
  end
  event.close = true
  return event
end

local function add_policy_options (command)
  command:option ("--arg", "What the server takes as scan-arg-NAME=VALUE."
                  .. " May be given several times.")
    :argname ("NAME=VALUE"):convert (pair ("--arg")):count ("*")
  command:option ("--file", "What the server takes as scan-file-NAME=FILE."
                  .. " May be given several times.")
    :argname ("NAME=FILE"):convert (pair ("--file")):count ("*")
end

local function add_disk_options (command)
  command:option ("--size", "Size of the disk. Default: that of the image, or what the"
                  .. " trace says, or 64M.")
    :argname ("SIZE"):convert (bytes ("--size"))
  command:option ("--block", "What the server takes as scan-size. Default: 2M.")
    :argname ("SIZE"):convert (bytes ("--block", 512))
  command:option ("--threads", "What the server takes as scan-threads. Default: 1.")
    :argname ("N"):convert (count ("--threads", 1, 64))
  command:option ("--image", "A raw image: the disk has its holes and its contents.")
    :argname ("FILE")
end

local function add_trace_option (command, how_many)
  command:option ("--trace", "What the client reads: a log of nbdkit's log filter, or"
                  .. " a list of 'offset count'."
                  .. (how_many == "?" and "" or " May be given several times."))
    :argname ("FILE"):count (how_many)
end

local function add_simulation_options (command)
  local source = simulator.SOURCE
  add_trace_option (command, "+")
  command:option ("--latency", ("Of the source, for each request. Default: %gms.")
                    :format (source.latency_seconds * 1000))
    :argname ("TIME"):convert (seconds ("--latency"))
  command:option ("--bandwidth", ("Of the source, in bytes a second. Default: %d.")
                    :format (source.bandwidth // 1))
    :argname ("SIZE"):convert (bytes ("--bandwidth", 1))
  command:option ("--slots", ("Requests that the source does at once. Default: %d.")
                    :format (source.slots))
    :argname ("N"):convert (count ("--slots", 1))
  command:option ("--clients", "So many clients, each with this trace. Default: 1.")
    :argname ("N"):convert (count ("--clients", 1, 1000))
  command:option ("--depth", "Reads that a client has in flight. Default: 1.")
    :argname ("N"):convert (count ("--depth", 1))
  command:option ("--think", "The client's pause before each read. Default: the"
                  .. " trace's own.")
    :argname ("TIME"):convert (seconds ("--think"))
  command:flag ("--keep-reads", "The cache keeps what is read, too (cache-on-read).")
  command:flag ("--background", "One scan shared by all clients (scan-background).")
end

local function make_parser ()
  local parser = argparse ("scan-policy",
    "Check, run, simulate and draw policies of nbdkit's scan filter, without a server.")
  parser:epilog [[
Begin here:
  scan-policy new mine            write mine.lua and its test, mine_spec.lua
  scan-policy check mine.lua      does it load, and does it behave?
  busted --lua=/usr/bin/lua5.4 mine_spec.lua
  scan-policy simulate default mine.lua --trace boot.log
  scan-policy plot mine.lua --trace boot.log -o mine.svg

A trace is made with nbdkit --filter=log PLUGIN ... logfile=boot.log
'scan-policy COMMAND --help' has more examples.]]
  parser:command_target ("command")
  parser:require_command (true)

  local check = parser:command ("check",
    "Load a policy and run it against some clients and disks; explain what is wrong.")
  check:epilog [[
Examples:
  scan-policy check mine.lua
  scan-policy check replay --file trace=boot.log
  scan-policy check metadata --image disk.img
  scan-policy check mine.lua --trace boot.log --block 256K]]
  check:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  add_policy_options (check)
  add_disk_options (check)
  add_trace_option (check, "?")

  local run = parser:command ("run", "Print the prefetches of a policy, one a line.")
  run:epilog [[
Examples:
  scan-policy run reverse --size 10M
  scan-policy run mine.lua --read 3:16M:4K --close 8
    the client reads 4K at 16M while the 3rd prefetch is in flight, and goes
    during the 8th
  scan-policy run mine.lua --read 0s:0:64K --read 20ms:64K:64K --close 5s
    the same by the clock; each prefetch takes 10 ms
  scan-policy run metadata --image disk.img]]
  run:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  add_policy_options (run)
  add_disk_options (run)
  add_trace_option (run, "?")
  run:option ("--read", "A client read while the N-th prefetch is in flight (0: before"
              .. " the first), or at a time like 20ms. May be given several times.")
    :argname ("N|TIME:OFFSET:COUNT"):convert (client_read):count ("*")
  run:option ("--close", "The client goes while the N-th prefetch is in flight, or at a"
              .. " time like 5s.")
    :argname ("N|TIME"):convert (client_close)

  local simulate = parser:command ("simulate",
    "Compare policies: a table of what each does for the client of each trace.")
  simulate:epilog [[
Examples:
  scan-policy simulate default reverse mine.lua --trace boot.log
  scan-policy simulate default,ahead=false default --trace boot.log --latency 50ms
    arguments of one policy follow its name, after commas
  scan-policy simulate adaptive --trace boot.log --threads 8 --clients 4 --background

The columns: time until the client has read all, and how many times faster that is
than without prefetch; hit, late and missed reads in percent; what was prefetched
and never read. 'ideal' is what no policy can beat.]]
  simulate:argument ("policy", "Files, or names of built-ins."):argname ("FILE")
    :args ("+")
  add_policy_options (simulate)
  add_disk_options (simulate)
  add_simulation_options (simulate)

  local draw = parser:command ("plot",
    "Draw a simulation as SVG: offset against time, reads coloured hit, late or miss.")
  draw:epilog [[
Examples:
  scan-policy plot mine.lua --trace boot.log -o mine.svg
  rsvg-convert mine.svg -o mine.png]]
  draw:argument ("policy", "A file, or the name of a built-in."):argname ("FILE")
  draw:option ("-o --output", "Where to write it. Default: standard output.")
    :argname ("SVG")
  add_policy_options (draw)
  add_disk_options (draw)
  add_simulation_options (draw)

  local new = parser:command ("new",
    "Write NAME.lua, a policy to start from, and NAME_spec.lua, its test.")
  new:epilog [[
Example:
  scan-policy new nightly && busted --lua=/usr/bin/lua5.4 nightly_spec.lua]]
  new:argument ("name", "Its name; letters, digits, _ and -, perhaps after a directory.")
    :argname ("NAME")

  local move = parser:command ("translate",
    "Write a trace anew for an image that was rebuilt: by content, not by offset.")
  move:epilog [[
Examples:
  scan-policy translate --from monday.img --to tuesday.img monday.trace > tuesday.trace
  scan-policy translate --from nbd://build/monday --to tuesday.img monday.trace

Each 4K block that the trace reads is looked for in the new image. What is not there
goes with its neighbours, or keeps its place. The share of each is told at the end.]]
  move:argument ("trace", "A log of nbdkit's log filter, a list of 'offset count', or"
                 .. " what scan-record wrote."):argname ("TRACE")
  move:option ("--from", "The image that was traced: a raw file or an NBD URI.")
    :argname ("OLD"):count (1)
  move:option ("--to", "The image that it was rebuilt to: a raw file or an NBD URI.")
    :argname ("NEW"):count (1)

  local view = parser:command ("watch",
    "Show what a server is doing, from the file that scan-stats=FILE writes.")
  view:epilog [[
Examples:
  scan-policy watch /run/nbdkit/scan.prom
  scan-policy watch scan.prom clone.prom      with what the clone filter counts
  scan-policy watch scan.prom --count 1       once, as for a script

On a terminal the view is drawn anew in place, until Ctrl-C; elsewhere it is a line for
each export. The strip shows which share of the disk is in which state, not where.]]
  view:argument ("file", "What scan-stats, or clone-stats, names."):argname ("FILE")
    :args ("+")
  view:option ("--interval", "Between two views. Default: 2s, or 10s with no terminal.")
    :argname ("TIME"):convert (seconds ("--interval"))
  view:option ("--count", "End after so many. Default: go on.")
    :argname ("N"):convert (count ("--count", 1))

  local map = parser:command ("map",
    "Show what is there of a disk, from the map of the clone filter.")
  map:epilog [[
Examples:
  scan-policy map disk.img.map
  scan-policy map disk.img.map -o map.svg

It shows what the last commit has left in the file (clone-commit), also of a server
that runs. Exit status 1 says that the filter would refuse the map.]]
  map:argument ("map", "Beside the image: FILE.map for clone-file=FILE.")
    :argname ("FILE.map")
  map:option ("-o --output", "Draw a picture, too."):argname ("SVG")

  parser:command ("list", "List the built-in policies.")
  return parser
end

-- -- what several commands do -------------------------------------------------------

-- A failure that is the user's to mend: a message without a traceback.
local function refuse (message)
  error ({ message = message }, 0)
end

local function read_file (flag, path)
  local text, message = world.read_file (path)
  if not text then refuse (flag .. ": " .. message) end
  return text
end

-- "NAME,ARG=VALUE,..." and the --arg and --file options, for world.load.
local function policy_options (word, options)
  local policy, rest = word, ""
  if not io.open (word, "rb") then policy, rest = word:match ("^([^,]*)(.*)$") end
  local args, files = {}, {}
  for _, entry in ipairs (options.arg) do args[entry[1]] = entry[2] end
  for part in rest:gmatch ("[^,]+") do
    local name, value = part:match ("^([^=]+)=(.*)$")
    if not name then
      refuse (("%s: NAME=VALUE expected after the comma, got '%s'"):format (word, part))
    end
    args[name] = value
  end
  for _, entry in ipairs (options.file) do
    files[entry[1]] = read_file ("--file", entry[2])
  end
  return { policy = policy, args = args, files = files }
end

-- Call with the policy's own errors told from ours.
local function guarded (action, ...)
  local ok, result = pcall (action, ...)
  if ok then return result end
  if type (result) == "table" then error (result, 0) end
  refuse (dry_run.explain (tostring (result)))
end

-- A trace as the simulator wants it, and the size that its log tells.
local function load_trace (path)
  local text = read_file ("--trace", path)
  local position = 1
  local source = { lines = function ()
    return function ()
      if position > #text then return nil end
      local newline = text:find ("\n", position, true) or #text + 1
      local line = text:sub (position, newline - 1)
      position = newline + 1
      return line
    end
  end }
  local ok, reads = pcall (trace.read, source)
  if not ok then refuse (("--trace %s: %s"):format (path, reads)) end
  if #reads == 0 then refuse (("--trace %s: there are no reads in it"):format (path)) end
  local size = tonumber (text:match (" Connect [^\n]* size=(0x%x+)") or "0")
  for _, read in ipairs (reads) do size = math.max (size, read.offset + read.count) end
  return { reads = reads, size = size,
           name = path:match ("([^/]+)$"):gsub ("%.[^.]*$", "") }
end

-- The disk that --size, --block, --threads, --image and a trace describe.
local function disk_options (options, loaded)
  local disk = { block = options.block, threads = options.threads }
  if options.image then
    if image.is_uri (options.image) then
      refuse ("--image: a file expected, got the URI " .. options.image)
    end
    local ok, opened = pcall (image.open, options.image)
    if not ok then refuse ("--image: " .. opened) end
    disk.size, disk.holes = opened.size, opened:holes ()
    disk.contents = { path = options.image }
    opened:close ()
  end
  if loaded and disk.size and disk.size < loaded.size then
    refuse (("--trace: it reads up to %d, and the image ends at %d")
              :format (loaded.size, disk.size))
  end
  disk.size = options.size or disk.size or loaded and loaded.size
  return disk
end

local function is_terminal (descriptor)
  return os.execute ("test -t " .. descriptor) or false
end

-- Progress on standard error: rewritten in place on a terminal.
local function progress_meter (label, describe)
  local terminal, last = nil, os.time ()
  local meter = { shown = false }
  function meter.show (done, all)
    local now = os.time ()
    if terminal == nil then terminal = is_terminal (2) end
    if now - last < (terminal and 1 or PROGRESS_SECONDS) then return end
    last, meter.shown = now, terminal
    io.stderr:write (terminal and "\r" or "",
                     ("%s: %s of %s (%d %%)"):format (label, describe (done),
                                                      describe (all),
                                                      done * 100 // all),
                     terminal and "" or "\n")
    io.stderr:flush ()
  end
  function meter.clear ()
    if meter.shown then io.stderr:write ("\r\27[K") end
  end
  return meter
end

local function simulate_one (loaded, policy, options, record)
  local traces = {}
  for i = 1, options.clients or 1 do traces[i] = loaded.reads end
  local name = policy and policy.policy or "no policy"
  local disk = disk_options (options, loaded)
  local meter = progress_meter (name .. " on " .. loaded.name,
                                function (reads) return reads .. " reads" end)
  local result = guarded (simulator.run, {
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
  if result.error then refuse (name .. ": " .. dry_run.explain (result.error)) end
  return result
end

-- Columns as wide as they need to be: the first to the left, the rest to the right.
local function print_table (rows, left)
  local widths = {}
  for _, row in ipairs (rows) do
    for i, cell in ipairs (row) do widths[i] = math.max (widths[i] or 0, #cell) end
  end
  for _, row in ipairs (rows) do
    local cells = {}
    for i, cell in ipairs (row) do
      local padding = (" "):rep (widths[i] - #cell)
      cells[i] = i <= left and cell .. padding or padding .. cell
    end
    print ((table.concat (cells, "  "):gsub ("%s+$", "")))
  end
end

-- -- the commands -------------------------------------------------------------------

local COMMANDS = {}

function COMMANDS.check (options)
  local loaded = options.trace and load_trace (options.trace)
  local disk = disk_options (options, loaded)
  disk.reads = loaded and loaded.reads
  local report = guarded (dry_run.check, policy_options (options.policy, options), disk)
  for _, line in ipairs (report.lines) do print (line) end
  return report.ok and 0 or 1
end

function COMMANDS.run (options)
  local given = policy_options (options.policy, options)
  local loaded = options.trace and load_trace (options.trace)
  for name, value in pairs (disk_options (options, loaded)) do given[name] = value end
  given.size = given.size or DEFAULT_SIZE_BYTES
  given.events = loaded and dry_run.events_of (loaded.reads) or {}
  for _, event in ipairs (options.read) do table.insert (given.events, event) end
  if options.close then table.insert (given.events, options.close) end
  local result = guarded (testing.run, given)
  local rows = { { "#", "offset", "count", "offset in blocks" } }
  local block = options.block or 2 * MiB
  for i, prefetch in ipairs (result.prefetches) do
    rows[i + 1] = { ("%d"):format (i), ("%d"):format (prefetch[1]),
                    ("%d"):format (prefetch[2]), ("%g"):format (prefetch[1] / block) }
  end
  print_table (rows, 0)
  if result.error then refuse (dry_run.explain (result.error)) end
  local ending = result.finished and "the policy has finished"
    or options.close and "the client has gone"
    or "the policy waits for a client that does nothing more"
  print (("%d prefetches; %s"):format (#result.prefetches, ending))
  return 0
end

local function result_row (name, trace_name, result, without)
  local all = result.hits + result.late + result.misses
  local function percent (n) return ("%.0f %%"):format (100 * n / all) end
  return { trace_name, name, units.seconds (result.seconds),
           ("%.2f x"):format (without.seconds / result.seconds),
           percent (result.hits), percent (result.late), percent (result.misses),
           units.bytes (result.prefetched_bytes), units.bytes (result.wasted_bytes) }
end

function COMMANDS.simulate (options)
  local rows = { { "trace", "policy", "time", "faster", "hit", "late", "miss",
                   "prefetched", "wasted" } }
  local policies = {}
  for i, word in ipairs (options.policy) do
    policies[i] = policy_options (word, options)
  end
  for _, path in ipairs (options.trace) do
    local loaded = load_trace (path)
    local without = simulate_one (loaded, nil, options)
    rows[#rows + 1] = result_row ("(none)", loaded.name, without, without)
    for i, policy in ipairs (policies) do
      local result = simulate_one (loaded, policy, options)
      rows[#rows + 1] = result_row (options.policy[i], loaded.name, result, without)
    end
    rows[#rows + 1] = { loaded.name, "(ideal)", units.seconds (without.ideal_seconds),
                        ("%.2f x"):format (without.seconds / without.ideal_seconds),
                        "", "", "", "", "" }
  end
  print_table (rows, 2)
  return 0
end

local function write_output (path, text)
  local handle, message = io.open (path, "wb")
  local ok = handle and handle:write (text)
  if handle then ok = handle:close () and ok end
  if not ok then refuse ("--output: " .. (message or "can't write " .. path)) end
end

function COMMANDS.plot (options)
  if #options.trace > 1 then refuse ("--trace: a picture shows one trace") end
  local loaded = load_trace (options.trace[1])
  local policy = policy_options (options.policy, options)
  local without = simulate_one (loaded, nil, options)
  local result = simulate_one (loaded, policy, options, true)
  local svg = plot.svg (result, {
    title = ("%s for %s"):format (options.policy:match ("([^/]+)$"), loaded.name),
    without_seconds = without.seconds,
  })
  if not options.output then
    io.write (svg)
    return 0
  end
  write_output (options.output, svg)
  print (("%s: %d reads, %d prefetches"):format (options.output, #result.reads,
                                                 #result.timeline))
  return 0
end

function COMMANDS.new (options)
  local directory, name = options.name:match ("^(.*/)([^/]*)$")
  directory, name = directory or "", (name or options.name):gsub ("%.lua$", "")
  if not name:match ("^[%w_-]+$") then
    refuse (("NAME: letters, digits, _ and - expected, got '%s'"):format (options.name))
  end
  local policy_path = directory .. name .. ".lua"
  local spec_path = directory .. name .. "_spec.lua"
  local fill = { ["@NAME@"] = name, ["@PATH@"] = policy_path }
  for _, path in ipairs { policy_path, spec_path } do
    local handle = io.open (path, "rb")
    if handle then
      handle:close ()
      refuse (path .. " exists already; choose another name or move it away")
    end
  end
  for path, text in pairs { [policy_path] = template.POLICY,
                            [spec_path] = template.SPEC } do
    local handle, message = io.open (path, "wb")
    if not handle then refuse (message) end
    handle:write ((text:gsub ("@%u+@", fill)))
    handle:close ()
  end
  print (("wrote %s and %s; next:"):format (policy_path, spec_path))
  print ("  scan-policy check " .. policy_path)
  -- Where Lua would not find the kit by itself, busted must be told.
  local path = os.getenv ("LUA_PATH") or
    "/usr/share/lua/5.4/?.lua;/usr/local/share/lua/5.4/?.lua"
  local found = package.searchpath ("scan.testing", path)
  local where = found and "" or ("LUA_PATH='%s;;' "):format (world.LUA_PATH)
  print (("  %sbusted --lua=/usr/bin/lua5.4 %s"):format (where, spec_path))
  return 0
end

-- Raises what is the user's to mend: all that can go wrong is in what was named.
local function must (action, ...)
  local results = table.pack (pcall (action, ...))
  if results[1] then return table.unpack (results, 2, results.n) end
  if type (results[2]) == "table" then error (results[2], 0) end
  refuse (tostring (results[2]))
end

function COMMANDS.translate (options)
  local meter = progress_meter (options.to, units.bytes)
  local function load (size, block)
    local handle, message = io.open (options.trace, "rb")
    if not handle then refuse (message) end
    local ok, blocks = pcall (trace.blocks, handle, block, size)
    handle:close ()
    if not ok then refuse (options.trace .. ": " .. blocks) end
    if #blocks == 0 then
      refuse (options.trace .. ": there are no reads of this image in it")
    end
    return blocks
  end
  local list, counts = must (translate.translate, options.from, options.to, load,
                             meter.show)
  meter.clear ()
  for _, range in ipairs (list) do io.write (range[1], " ", range[2], "\n") end
  local function share (n) return ("%.1f %%"):format (100 * n / counts.blocks) end
  io.stderr:write (("%s: %d blocks of 4K: %s found by content, %s placed by their "
                    .. "neighbours, %s left in place%s\n")
    :format (options.trace, counts.blocks, share (counts.content),
             share (counts.shift), share (counts.place),
             counts.lost > 0 and (", %s behind the end of the new image")
               :format (share (counts.lost)) or ""))
  return 0
end

-- What a command prints, without the end of the line.
local function output_of (command)
  local handle = io.popen (command)
  local line = handle and handle:read ("l")
  if handle then handle:close () end
  return line
end

-- The width and the height of the terminal, if there is one.
local function terminal_size ()
  local rows, columns = (output_of ("stty size 2>/dev/null </dev/tty") or "")
    :match ("^(%d+) (%d+)$")
  return tonumber (columns) or 80, tonumber (rows) or 24
end

function COMMANDS.map (options)
  local map, message = clonemap.load (options.map)
  if not map then
    if message == "unborn" then
      message = "is still being made; nothing is present yet"
    end
    refuse (options.map .. " " .. message)
  end
  local width = is_terminal (1) and terminal_size () or 80
  for _, line in ipairs (mapview.lines (map, width)) do print (line) end
  if options.output then
    write_output (options.output,
                  mapview.svg (map, options.map:match ("([^/]*)$"):gsub ("%.map$", "")))
  end
  return 0
end

function COMMANDS.watch (options)
  local quoted = {}
  for i, path in ipairs (options.file) do
    quoted[i] = "'" .. path:gsub ("'", "'\\''") .. "'"
  end
  local terminal = is_terminal (1)
  local view = { terminal = terminal }
  -- When each was written, as one text; a file is replaced as a whole.
  local function stamps ()
    return output_of ("stat -L -c %.6Y -- " .. table.concat (quoted, " ")
                      .. " 2>/dev/null | sort -n | tr '\\n' ' '") or ""
  end
  function view.read ()
    local texts, written
    repeat
      texts, written = {}, stamps ()
      for i, path in ipairs (options.file) do
        local text, message = world.read_file (path)
        if not text then return nil, message end
        texts[i] = text
      end
    until written == stamps ()
    return table.concat (texts, "\n"), tonumber (written:match ("(%S+) $")) or 0
  end
  function view.clock () return os.time () end
  function view.sleep (time)
    return (os.execute (("sleep %.2f"):format (time)))
  end
  view.size = terminal_size
  function view.write (text)
    io.write (text)
    io.flush ()
  end
  function view.date () return (os.date ("%H:%M:%S")) end

  local called, ok, message = pcall (watch.run, view, {
    interval = options.interval or (terminal and 2 or 10), count = options.count,
  })
  -- Ctrl-C while something was drawn; while it sleeps, that is told otherwise.
  if not called and tostring (ok):find ("interrupted!", 1, true) then return 0 end
  if not called then error (ok, 0) end
  if not ok then refuse (message) end
  return 0
end

function COMMANDS.list ()
  local rows = {}
  for i, policy in ipairs (world.list ()) do rows[i] = { policy.name, policy.about } end
  print_table (rows, 2)
  return 0
end

--- Do what the arguments say.
-- @tparam table arguments as in `arg`
-- @treturn integer exit status
function M.main (arguments)
  local ok, options = make_parser ():pparse (arguments)
  if not ok then
    io.stderr:write ("scan-policy: ", tostring (options),
                     "; see scan-policy --help\n")
    return 2
  end
  local done, status = xpcall (COMMANDS[options.command], function (message)
    if type (message) == "table" and message.message then return message end
    return debug.traceback (message)
  end, options)
  if done then return status end
  if type (status) == "table" then
    io.stderr:write ("scan-policy: ", status.message, "\n")
  else
    io.stderr:write ("scan-policy: a fault of its own: ", status, "\n")
  end
  return 1
end

return M
