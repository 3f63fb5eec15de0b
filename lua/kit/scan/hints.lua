-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- What is said to the author of a policy that has failed.
--
-- @module scan.hints

local escape = require "scan.escape"
local host = require "scan.host"
local world = require "scan.world"

local M = {}

-- What people write, and what they should write instead.
local HINTS = {
  { "global 'io'", "policies have no files; read one with scan.open (NAME), "
    .. "given as scan-file-NAME=FILE" },
  { "global 'package'", "policies have no package; require finds scan.* and files "
    .. "beside the policy" },
  { "global 'debug'", "policies have no debug library" },
  { "global 'dofile'", "use require for a file beside the policy" },
  { "global 'loadfile'", "use require for a file beside the policy" },
  -- A method, or a field.
  { " 'match')", "policies have no string patterns; use scan.words and "
    .. "string.find, which looks for plain text" },
  { " 'gmatch')", "policies have no string patterns; use scan.words" },
  { " 'gsub')", "policies have no string patterns; use string.find and sub" },
  { "field 'execute'", "policies can't run commands" },
  { "offset -", "offsets are from 0 up; does a loop or a difference go below? "
    .. "a loop downwards ends at 0: for offset = from, 0, -disk.block do" },
  { "from -", "offsets are from 0 up; does a difference go below?" },
  { "is outside the disk", "compare with disk.size first; the last block begins at "
    .. "(disk.blocks - 1) * disk.block" },
  { "attempt to yield from outside a coroutine", "disk:prefetch and its like are for "
    .. "the function that the policy returns, not for the chunk that returns it" },
  { "scan.open: no file '", "scan-policy takes it as --file NAME=FILE" },
  { "gave up after", "for scan-policy run that is --close N" },
  { "instructions without coming back", "a loop should prefetch, wait or return; "
    .. "disk:wait () comes back when the client reads" },
  { "number of bytes, got nil", "is there an offset, as in disk:prefetch (offset)?" },
  { "bytes, got '", "what is in quotes is a string; scan.sizes and scan.args make "
    .. "numbers of what operators write" },
  { "module 'scan.testing'", "it is for tests of policies; the filter does not have it" },
  { "a policy expected", "scan.policy (NAME) finds one by its name" },
  { "a function value", "disk:reads () and its like are for a loop: for offset, count "
    .. "in disk:reads () do" },
  { "got a function", "disk:reads () and its like are for a loop: for offset, count "
    .. "in disk:reads () do" },
  { "across a C-call boundary", "disk:prefetch and its like can't be called by what "
    .. "table.sort calls" },
}

-- Where our own functions are; what they say of themselves helps no author.
local OURS = { "/lua/runtime/scan/", "/lua/library/scan/", "/lua/kit/scan/",
               "/lua/5.4/scan/", "\t[C]: ", "\t(...tail calls...)" }

local function is_ours (line)
  for _, place in ipairs (OURS) do
    if line:find (place, 1, true) then return true end
  end
  return false
end

-- The message with the frames of its traceback that are the author's; without them if
-- all they say is what place the message begins with.
local function authors_frames (message)
  local text, frames, in_traceback = {}, {}, false
  for line in message:gmatch ("[^\n]+") do
    if line == "stack traceback:" then
      in_traceback = true
    elseif not in_traceback then
      text[#text + 1] = line
    elseif not is_ours (line) then
      frames[#frames + 1] = line
    end
  end
  local place = #frames == 1 and frames[1]:match ("^\t(.-:%d+: )")
  if place and text[1] and text[1]:sub (1, #place) == place then frames = {} end
  if #frames > 0 then text[#text + 1] = "stack traceback:" end
  table.move (frames, 1, #frames, #text + 1, text)
  return table.concat (text, "\n")
end

-- -- names that are nearly right ----------------------------------------------------

local function names_of (...)
  local names = {}
  for _, part in ipairs { ... } do
    for name in pairs (part) do
      if type (name) == "string" then names[#names + 1] = name end
    end
  end
  table.sort (names)
  return names
end

-- What stands behind a colon, and behind a dot.
local function ignore () end
local DISK = host.disk { size = 1, block = 1, export = "", reads = ignore,
                         missing = ignore, room = ignore, results = ignore,
                         failures = ignore, reads_in_flight = ignore,
                         idle = ignore, closed = ignore, now = ignore }
local METHODS = names_of (DISK, { lines = true, read = true, rows = true })
local FIELDS = names_of (DISK, { open = true, policy = true, warn = true, words = true },
                         require "scan.args", require "scan.combinators",
                         require "scan.extents", require "scan.sizes",
                         require "scan.trace", string, table, math)

local function built_in_names ()
  local names = {}
  for i, policy in ipairs (world.list ()) do names[i] = policy.name end
  return names
end

-- How many letters have to be changed, left out, put in or swapped with the next one.
local function distance (a, b)
  local rows = {}
  for i = 0, #a do
    rows[i] = { [0] = i }
    for j = 1, #b do
      if i == 0 then
        rows[0][j] = j
      else
        local same = a:byte (i) == b:byte (j)
        rows[i][j] = math.min (rows[i - 1][j] + 1, rows[i][j - 1] + 1,
                               rows[i - 1][j - 1] + (same and 0 or 1))
        if i > 1 and j > 1 and a:byte (i) == b:byte (j - 1)
           and a:byte (i - 1) == b:byte (j) then
          rows[i][j] = math.min (rows[i][j], rows[i - 2][j - 2] + 1)
        end
      end
    end
  end
  return rows[#a][#b]
end

-- A misspelt word is at most so far from the right one.
local NEAR = 2

local function nearest (word, names)
  local best, least = nil, NEAR + 1
  for _, name in ipairs (names) do
    local far = distance (word, name)
    if far > 0 and far < least and far < #name // 2 then best, least = name, far end
  end
  return best
end

-- A hint for a message that names what is not there.
local function misspelt (message)
  local kind, word = message:match ("nil value %((%a+) '([%w_]+)'%)")
  local near
  if kind == "method" then
    near = nearest (word, METHODS)
    if not near then return "a disk has: " .. table.concat (names_of (DISK), ", ") end
  elseif kind == "field" then
    near = nearest (word, FIELDS)
  else
    word = message:match ("module '([%w_.]+)' not found")
    near = word and nearest (word, world.modules ())
    word = message:match ("no file '([%w_-]+)' and no built%-in")
    near = near or word and nearest (word, built_in_names ())
  end
  return near and ("did you mean '%s'?"):format (near)
end

-- -- messages -----------------------------------------------------------------------

--- An error message as a policy's author wants it: without our own frames, with a hint
-- where there is one, and with nothing in it that a terminal would obey.
-- @tparam string message
-- @treturn string
function M.explain (message)
  message = authors_frames (escape.text (message))
  -- Tracebacks have words of their own.
  local first = message:match ("^[^\n]*")
  for _, hint in ipairs (HINTS) do
    if first:find (hint[1], 1, true) then return message .. "\nhint: " .. hint[2] end
  end
  local hint = misspelt (first)
  return hint and message .. "\nhint: " .. hint or message
end

return M
