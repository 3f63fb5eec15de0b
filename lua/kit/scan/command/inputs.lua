-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What commands are given: policies, traces, disks.
--
-- @module scan.command.inputs

local hints = require "scan.hints"
local file = require "scan.file"
local image = require "scan.image"
local shell = require "scan.shell"
local trace = require "scan.trace"
local words = require "scan.command.words"
local world = require "scan.world"

local M = {}

-- -- options ------------------------------------------------------------------------

--- The argument and the options that say what a policy is given.
function M.add_policy_options (command)
  command:option ("--arg", "What the server takes as scan-arg-NAME=VALUE."
                  .. " May be given several times.")
    :argname ("NAME=VALUE"):convert (words.pair ("--arg")):count ("*")
  command:option ("--file", "What the server takes as scan-file-NAME=FILE."
                  .. " May be given several times.")
    :argname ("NAME=FILE"):convert (words.pair ("--file")):count ("*")
end

--- The options that say what the disk is like.
function M.add_disk_options (command)
  command:option ("--size", "Size of the disk. Default: that of the image, or what the"
                  .. " trace says, or 64M.")
    :argname ("SIZE"):convert (words.bytes ("--size"))
  command:option ("--block", "What the server takes as scan-size. Default: 2M.")
    :argname ("SIZE"):convert (words.block ("--block"))
  command:option ("--threads", "What the server takes as scan-threads. Default: 1.")
    :argname ("N"):convert (words.count ("--threads", 1, 64))
  command:option ("--image", "A raw image: the disk has its holes and its contents.")
    :argname ("FILE")
end

--- The option that names a trace.
-- @tparam table command
-- @tparam string how_many as argparse's `count`: "?", "1" or "+"
function M.add_trace_option (command, how_many)
  command:option ("--trace", "What the client reads: a log of nbdkit's log filter, or"
                  .. " a list of 'offset count'."
                  .. (how_many == "+" and " May be given several times." or ""))
    :argname ("FILE"):count (how_many):overwrite (false)
end

-- -- what they name -----------------------------------------------------------------

--- A failure that is the user's to mend: a message without a traceback, for M.main of
-- scan.command.
function M.refuse (message)
  error ({ message = message }, 0)
end

local function read_file (flag, path)
  local text, message = world.read_file (path)
  if not text then M.refuse (flag .. ": " .. message) end
  return text
end

--- A file whose lines are read, and its text.
-- @tparam string flag or argument that names it
-- @tparam string path
function M.lines_of (flag, path)
  local text = read_file (flag, path)
  return file.new (function (offset, count)
    return text:sub (offset + 1, offset + count)
  end), text
end

--- "NAME,ARG=VALUE,..." and the --arg and --file options, for world.load.
function M.policy (word, options)
  local policy, rest = word:match ("^([^,]*)(.*)$")
  -- There may be a comma in a file's name.  Not opened: from a pipe it is read once.
  if rest ~= "" and os.execute ("test -e " .. shell.quote (word)) then
    policy, rest = word, ""
  end
  local args, files = {}, {}
  for _, entry in ipairs (options.arg) do args[entry[1]] = entry[2] end
  for part in rest:gmatch ("[^,]+") do
    local name, value = part:match ("^([^=]+)=(.*)$")
    if not name then
      M.refuse (("%s: NAME=VALUE expected after the comma, got '%s'"):format (word, part))
    end
    args[name] = value
  end
  for _, entry in ipairs (options.file) do
    if files[entry[1]] then
      M.refuse (("--file: there is a file '%s' already; give each one a name of its own")
                  :format (entry[1]))
    end
    files[entry[1]] = read_file ("--file", entry[2])
  end
  return { policy = policy, args = args, files = files }
end

--- Call, and make of an error the user's to mend: all that can go wrong is in what was
-- named.
function M.guarded (action, ...)
  local results = table.pack (pcall (action, ...))
  if results[1] then return table.unpack (results, 2, results.n) end
  if type (results[2]) == "table" then error (results[2], 0) end
  M.refuse (hints.explain (tostring (results[2])))
end

--- A trace as the simulator wants it, where its last read `stop`s, and the size that its
-- log tells.
function M.trace (path)
  local handle, text = M.lines_of ("--trace", path)
  local ok, reads = pcall (trace.read, handle)
  if not ok then M.refuse (("--trace %s: %s"):format (path, reads)) end
  if #reads == 0 then
    M.refuse (("--trace %s: there are no reads in it"):format (path))
  end
  local stop = 0
  for _, read in ipairs (reads) do stop = math.max (stop, read.offset + read.count) end
  local size = tonumber (text:match (" Connect [^\n]* size=(0x%x+)") or "0")
  return { reads = reads, stop = stop, size = math.max (size, stop),
           name = path:match ("([^/]+)$"):gsub ("%.[^.]*$", "") }
end

--- The disk that --size, --block, --threads, --image and a trace describe.
function M.disk (options, loaded)
  local disk = { block = options.block, threads = options.threads }
  if options.image then
    if image.is_uri (options.image) then
      M.refuse ("--image: a file expected, got the URI " .. options.image)
    end
    local ok, opened = pcall (image.open, options.image)
    if not ok then M.refuse ("--image: " .. opened) end
    disk.size, disk.holes = opened.size, opened:holes ()
    disk.contents = { path = options.image }
    opened:close ()
  end
  if loaded and disk.size and disk.size < loaded.size then
    M.refuse (("--trace: it reads up to %d, and the image ends at %d")
              :format (loaded.size, disk.size))
  end
  disk.size = options.size or disk.size or loaded and loaded.size
  if loaded and disk.size < loaded.stop then
    M.refuse (("--size: at least %d expected, for so far does --trace read, got %d")
              :format (loaded.stop, disk.size))
  end
  return disk
end

return M
