-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- Loading a policy outside the filter.
--
-- The policy lives in the same world that the filter builds (scan.sandbox) and
-- under the same rules, so what loads and runs here does so in the server.  Two
-- things are done differently, because this Lua state is not the policy's
-- alone: strings get the policy's methods only while the policy runs, and its
-- time is counted in instructions, so that a policy that loops fails at the
-- same place every time.
--
-- @module scan.world

local escape = require "scan.escape"
local host = require "scan.host"
local sandbox = require "scan.sandbox"
local shell = require "scan.shell"

local M = {}

--- Most instructions of the Lua machine that a policy may run at one go (about
-- a second's worth).
M.LIMIT_INSTRUCTIONS = 100 * 1000 * 1000

--- Most that it may run while it is loaded, for which the server gives it as long as for
-- all else, and so many more for each byte of its files.
M.LOAD_INSTRUCTIONS = 500 * 1000 * 1000
M.FILE_BYTE_INSTRUCTIONS = 100

--- What the server gives a policy if scan-policy-memory does not say, in KiB.
M.SERVER_KIB = 64 * 1024

--- Most KiB that it may have more at the end of a turn, or in the middle of one, than at
-- its beginning.  Only what grows without an end takes so much; how much a policy needs
-- for itself can't be told here, where it shares its Lua with the one who runs it.
M.TURN_KIB = 256 * 1024

-- A hook comes so often: seldom enough to cost little, and before much can be made of
-- long strings in between.
local STEP_INSTRUCTIONS = 4000

-- Modules lie in a folder each for what runs policies, for what policies may
-- require, and for the kit, which the filter does not have.  An installed tree is
-- laid out as the source is, and has links to all of them where Lua looks.
local here = debug.getinfo (1, "S").source:sub (2)
local lua_dir = here:match ("^(.*)/kit/scan/[^/]*$")
if not lua_dir then
  local share = here:match ("^(.*)/lua/5%.4/scan/[^/]*$")
  lua_dir = share and share .. "/nbdkit-scan-filter-lua/lua" or "lua"
end

--- The path for Lua to find all modules of ours, as in LUA_PATH.
M.LUA_PATH = ("D/library/?.lua;D/runtime/?.lua;D/kit/?.lua"):gsub ("D", lua_dir)

-- As errno has it.
local ENOENT = 2

-- More than this is not a policy or a trace, for the server either.
local FILE_MAX_BYTES = 256 * 1024 * 1024

-- So much is read at a time.
local PIECE_BYTES = 64 * 1024

local function read_file (path)
  local handle <close>, message, code = io.open (path, "rb")
  if not handle then return nil, message, code end
  local pieces, length = {}, 0
  repeat
    local piece, wrong = handle:read (PIECE_BYTES)
    pieces[#pieces + 1], length = piece, length + #(piece or "")
    if length > FILE_MAX_BYTES then wrong = "larger than 256M, the most that is read" end
    if wrong then return nil, path .. ": " .. wrong end
  until not piece
  return table.concat (pieces), nil, nil, not handle:seek ()
end

--- Read a whole file, of up to 256M.
-- @tparam string path
-- @treturn string|nil its contents, or nil and a message that names it
-- @treturn integer|nil errno if it can't even be opened
-- @treturn boolean|nil is it a pipe, which is empty now?
M.read_file = read_file

-- The mark that some editors begin UTF-8 with and an interpreter line are not Lua; the
-- newline stays, for the line numbers.
local function code_of (text)
  return text and (text:gsub ("^\xef\xbb\xbf", ""):gsub ("^#[^\n]*", ""))
end

-- The names of the files of Lua in a directory, without `.lua`, in order.
local function names_in (dir)
  local names = {}
  local files = shell.output ("ls " .. shell.quote (dir) .. " 2>/dev/null") or ""
  for file in files:gmatch ("[^\n]+") do
    names[#names + 1] = file:match ("^([%w_-]+)%.lua$")
  end
  table.sort (names)
  return names
end

--- The modules of ours that policies may require.
-- @treturn table sorted list of names, as for `require`
function M.modules ()
  local names = names_in (lua_dir .. "/library/scan")
  for i, name in ipairs (names) do names[i] = "scan." .. name end
  return names
end

--- Which version this is of.
-- @treturn string from the changelog, as in build.mk, which puts it into a file where
-- this is installed; "unknown" if neither is there
function M.version ()
  local top = lua_dir:sub (1, -#"lua" - 1)
  local installed = read_file (top .. "version")
  local changelog = read_file (top .. "debian/changelog") or ""
  return installed and installed:match ("%S+") or changelog:match ("^[^\n]-%((.-)%)")
    or "unknown"
end

local POLICY_DIR = lua_dir:sub (1, -#"lua" - 1) .. "policies"

--- The built-in policies.
-- @treturn table sorted list of { name =, path =, about = } where about is
-- the first sentence of the file's opening comment
function M.list ()
  local list = {}
  for i, name in ipairs (names_in (POLICY_DIR)) do
    local path = ("%s/%s.lua"):format (POLICY_DIR, name)
    local text = (read_file (path) or ""):gsub ("^%-%- SPDX.-\n\n", "")
    local opening = text:match ("^%-%-+%s*(.-)\n[^-]") or ""
    opening = opening:gsub ("\n%-%-", " "):gsub ("%s+", " ")
    local about = (opening .. " "):match ("^[%w_-]+:%s*(.-%.)%s")
      or opening:match ("^[%w_-]+:%s*(.*)$") or opening
    list[i] = { name = name, path = path, about = about }
  end
  return list
end

-- In the server's words.
local function unknown_policy (name)
  local names = {}
  for i, policy in ipairs (M.list ()) do names[i] = policy.name end
  return nil, ("there is no file '%s' and no built-in policy of that name; the "
               .. "built-in policies are: %s")
    :format (name:sub (1, 128), table.concat (names, ", "))
end

local function built_in (name)
  if name:find ("/", 1, true) then return nil end
  local path = ("%s/%s.lua"):format (POLICY_DIR, (name:gsub ("%.lua$", "")))
  return read_file (path), path
end

--- Is this the name of a built-in policy, with or without `.lua`?
-- @tparam string name
-- @treturn boolean
function M.is_built_in (name)
  return built_in (name) ~= nil
end

-- Policies that can be read only once, and are loaded several times, by path.
local piped = {}

--- Find a policy as the filter does: without a slash a built-in, with or without
-- `.lua`, else a file.
-- @tparam string name
-- @treturn string|nil its text, or nil and why not
-- @treturn string its path
function M.find (name)
  local text, path = built_in (name)
  if text then return text, path end
  if piped[name] then return piped[name], name end
  local message, code, is_pipe
  text, message, code, is_pipe = read_file (name)
  if text then
    text = code_of (text)
    if is_pipe then piped[name] = text end
    return text, name
  end
  if name:find ("/", 1, true) or code ~= ENOENT then return nil, message end
  return unknown_policy (name)
end

-- While a policy runs, `("x"):upper ()` finds what the policy's own `string` has.
local string_meta = debug.getmetatable ("")
local string_index, string_lock = string_meta.__index, string_meta.__metatable

local function seal (world)
  if world.env then
    string_meta.__index, string_meta.__metatable = world.string_methods, "string"
  end
end

local function unseal ()
  string_meta.__index, string_meta.__metatable = string_index, string_lock
end

-- Has it more by so much, which is no garbage, than at the beginning of the turn?
local function has_grown (world, most_kib)
  -- What was garbage before the turn may go during it.
  local function too_much ()
    local kib = collectgarbage ("count")
    if kib < world.base_kib then world.base_kib = kib end
    return kib - world.base_kib > most_kib
  end
  if not too_much () then return false end
  collectgarbage ()
  return too_much ()
end

-- As an error at this level.
local function refuse_memory (level)
  error (("the policy took more than %d MiB of memory without coming back; does "
          .. "something grow without end?"):format (M.TURN_KIB // 1024), level)
end

local function check_memory (world)
  world.is_large = world.is_large or has_grown (world, M.SERVER_KIB)
  if has_grown (world, M.TURN_KIB) then refuse_memory (0) end
end

local World = {}
World.__index = World

-- A turn has ended.
local function turned (world, ok, ...)
  unseal ()
  -- One call of C, where no hook comes, may have taken much.
  local fits, message = pcall (check_memory, world)
  if ok and not fits then return false, message end
  return ok, ...
end

--- Resume a coroutine of the policy, within its limits.  `is_large` is set if it took
-- more memory, in one turn, than the server gives it.
-- @tparam thread co
-- @param ... what the policy gets
-- @return what `coroutine.resume` returns
function World:resume (co, ...)
  self.used, self.base_kib = 0, collectgarbage ("count")
  debug.sethook (co, self.hook, "", STEP_INSTRUCTIONS)
  seal (self)
  return turned (self, coroutine.resume (co, ...))
end

local function returned (ok, ...)
  if not ok then error ((...), 0) end
  return ...
end

local function sealed (world, ...)
  seal (world)
  return ...
end

local function act (world, action, ...)
  unseal ()
  return sealed (world, pcall (action, ...))
end

-- Do something of ours in the middle of a policy's turn.  In a coroutine of its own,
-- which has neither the policy's hook nor a stack that the policy has filled: what is
-- unsealed there is sealed there, whatever fails.
local function outside (world, action, ...)
  local co = coroutine.create (act)
  return returned (returned (coroutine.resume (co, world, action, ...)))
end

--- The globals that the policy has made.
-- @treturn table sorted list of names
function World:new_globals ()
  local names = {}
  -- Not with `pairs` and `tostring`, which may call what the policy has put there.
  for name in next, self.env or {} do
    if not self.own_globals[name] then
      names[#names + 1] = type (name) == "string" and name or host.shown (name)
    end
  end
  table.sort (names)
  return names
end

local function check_alive (world)
  if world.used > world.limit then
    error (("the policy ran %d million instructions without coming back; does it loop?")
             :format (world.limit // 1000000), 0)
  end
end

-- Once the limit is passed the hook stays on at every instruction, so that the
-- policy's own pcall can't keep it going.
local function make_hook (world)
  local function hook ()
    world.used = world.used + STEP_INSTRUCTIONS
    if world.used > world.limit then
      debug.sethook (hook, "", 1)
      check_alive (world)
    end
    check_memory (world)
  end
  return hook
end

-- -- what went wrong ----------------------------------------------------------------

-- A place in our own modules, which says nothing to a policy's author.
local OUR_PLACE = "^[^:\n]-%f[%w]lua/[%w.]+/scan/[%w_/]+%.lua:%d+: "

-- The most that a place has.  Looking for one takes time with the square of it, and a
-- policy may make its messages, and name what it loads, as it likes.
local PLACE_MAX_BYTES = 4096

-- Where the place ends that a text begins with, if it is one of ours.
local function end_of_our_place (text)
  local _, last = text:sub (1, PLACE_MAX_BYTES):find (OUR_PLACE)
  return last
end

-- Where in the author's code a coroutine is; nil if nothing of that runs.
local function place_of (co)
  local level = 0
  while true do
    local info = debug.getinfo (co, level, "Sl")
    if not info then return nil end
    local place = ("%s:%d: "):format (info.source:sub (2), info.currentline)
    if info.what ~= "C" and not end_of_our_place (place) then
      return ("%s:%d: "):format (info.short_src, info.currentline)
    end
    level = level + 1
  end
end

--- What to say of a coroutine of the policy that has stopped, as the filter says it: with
-- a place in the author's code, or at least the policy's name.
-- @tparam thread co
-- @param value the error's, if it is one
-- @tparam[opt] string message to say instead
-- @treturn string
function World:describe (co, value, message)
  local kind, has_place = type (value), false
  if not message and kind == "string" then
    local last = end_of_our_place (value)
    message, has_place = value:sub ((last or 0) + 1), not last
  elseif not message then
    message = kind == "number" and tostring (value)
      or ("(error object is a %s value)"):format (kind)
  end
  if not has_place then message = (place_of (co) or "") .. message end
  if self.path and not message:match ("^[^\n]*"):find (self.path, 1, true) then
    message = self.path .. ": " .. message
  end
  return message
end

-- A module of ours, if there is one of that name in this folder.
local function our_module (folder, name)
  local own = name:match ("^scan%.([%w_]+)$")
  if not own then return nil end
  local path = ("%s/%s/scan/%s.lua"):format (lua_dir, folder, own)
  return read_file (path), "@" .. path, true
end

-- A module of ours by its name, or of the author's beside the policy.
local function find_module (dir, name)
  if name:find ("[^%w_.-]") or name:find ("^%.") or name:find ("%.$")
  or name:find ("..", 1, true) or name == "" then
    return nil, "a module's name should be words joined by dots"
  end
  if our_module ("library", name) then return our_module ("library", name) end
  if our_module ("runtime", name) then return nil, "it is not for policies" end
  local path = ("%s/%s.lua"):format (dir (), (name:gsub ("%.", "/")))
  local text, message = read_file (path)
  if text then return code_of (text), "@" .. path end
  return nil, message
end

local function print_to_stderr (line)
  io.stderr:write (escape.text (line), "\n")
end

local function warn_on_stderr (message)
  io.stderr:write ("warning: ", escape.text (message), "\n")
end

-- A policy that another one asks for: a built-in, a file beside it, or what was
-- given as an argument.
local function find_policy (dir, args, name)
  local text, path = built_in (name)
  if text then return text, "@" .. path end
  if not name:find ("/", 1, true) then
    path = ("%s/%s.lua"):format (dir (), (name:gsub ("%.lua$", "")))
    local message, code
    text, message, code = read_file (path)
    if text then return code_of (text), "@" .. path end
    if code ~= ENOENT then return nil, message end
  end
  for _, value in pairs (args) do
    if value == name then
      text, path = M.find (name)
      return text, text and "@" .. path or path
    end
  end
  return unknown_policy (name)
end

-- Names that were warned of.
local hidden = {}

-- As the filter says it, once.
local function advise_of_hidden_file (name)
  if hidden[name] or not (built_in (name) and read_file (name)) then return end
  hidden[name] = true
  warn_on_stderr (("scan-policy=%s is the built-in policy; for the file in this "
                   .. "directory, use scan-policy=./%s"):format (name, name))
end

-- Where a policy's neighbours are: beside the file itself, not a link to it.  Asked for
-- when the first one is, as it takes a process.
local function directory_of (path)
  local directory
  return function ()
    if not directory then
      local real = shell.output ("readlink -f " .. shell.quote (path)) or path
      directory = real:match ("^(.*)/") or "."
    end
    return directory
  end
end

local function copy (t)
  local other = {}
  for key, value in pairs (t or {}) do other[key] = value end
  return other
end

local function make_native (world, path, options)
  local dir = directory_of (path)
  local args, files = options.args or {}, options.files or {}
  return {
    find_module = function (name) return outside (world, find_module, dir, name) end,
    find_policy = function (name)
      return outside (world, find_policy, dir, args, name)
    end,
    open_file = function (name)
      local contents = files[name]
      if not contents then return nil end
      return function (offset, count)
        return string.sub (contents, offset + 1, offset + count)
      end
    end,
    print = function (line)
      outside (world, options.print or print_to_stderr, line)
    end,
    warn = function (message)
      outside (world, options.warn or warn_on_stderr, message)
    end,
    alive = function () check_alive (world) end,
    -- A hook set from Lua is not handed on to new coroutines.
    create = function (body)
      local co = coroutine.create (body)
      debug.sethook (co, world.hook, "", STEP_INSTRUCTIONS)
      return co
    end,
  }
end

-- Where one call of C makes many bytes of a few: no hook comes before it has.  What is
-- left is `..`, for which nothing of ours is called (it takes some 200 strings at once),
-- the line that `print` makes, and `format`, whose errors would be told otherwise than in
-- the server.
local function bound_strings (env)
  local rep, pack, concat = env.string.rep, env.string.pack, env.table.concat

  function env.string.rep (s, n, separator)
    local bytes = #tostring (s) + #tostring (separator or "")
    -- As a float, which can't overflow.
    if (bytes + 0.0) * (n and tonumber (n) or 0) > M.TURN_KIB * 1024 then
      refuse_memory (3)
    end
    return rep (s, n, separator)
  end

  function env.string.pack (format, ...)
    local bytes = 0.0
    for count in string.gmatch (tostring (format), "c(%d+)") do bytes = bytes + count end
    if bytes > M.TURN_KIB * 1024 then refuse_memory (3) end
    return pack (format, ...)
  end

  function env.table.concat (t, separator, first, last)
    if type (t) ~= "table" then return concat (t) end
    first, last = first or 1, last or #t
    -- With metamethods, what they give may differ the next time.
    local list, bytes = debug.getmetatable (t) and {} or t, 0
    local between = #tostring (separator or "")
    for i = math.tointeger (first) or 1, math.tointeger (last) or 0 do
      local value = t[i]
      if value == nil then break end
      list[i], bytes = value, bytes + between + (type (value) == "string" and #value or 0)
    end
    if bytes > M.TURN_KIB * 1024 then refuse_memory (3) end
    return concat (list, separator, first, last)
  end
end

-- Globals for our modules.  Each world loads its own, as each does in the server: what a
-- policy does to one of them reaches no other policy, and nothing that the kit uses.  And
-- their coroutines have the hook that the policy's have.
local function library_globals (world)
  local globals, required = copy (_G), world.env.require
  globals.coroutine = copy (world.env.coroutine)
  function globals.require (name)
    -- What worlds are built with is given to no policy.
    local shared = outside (world, our_module, "runtime", name)
    return shared and require (name) or required (name)
  end
  return globals
end

--- Load a policy.  An error in it is raised as a string, with its place.
-- @tparam table options `policy` (a file's name, a built-in's name, or a
-- function of the disk, which is taken as it is); `args` (table of the
-- scan-arg-NAME=VALUE strings); `files` (table of NAME = contents); `print`
-- and `warn` (functions of a line, standard error if left out)
-- @treturn table world with `run` (a function of the disk), `name` and `resume`;
-- its scans share the policy's upvalues, as the connections of one export do
function M.load (options)
  local policy = options.policy
  local world = setmetatable ({ used = 0, limit = M.LIMIT_INSTRUCTIONS }, World)
  world.hook = make_hook (world)
  if type (policy) == "function" then
    world.run, world.name = policy, "function"
    return world
  end
  if type (policy) ~= "string" then
    error ("policy: a file's name, a built-in's name or a function expected, got "
           .. type (policy), 2)
  end
  for name, value in pairs (options.args or {}) do
    if type (name) ~= "string" or type (value) ~= "string" then
      error (("args: strings expected, as in scan-arg-NAME=VALUE, got [%s] = %s (a %s)")
               :format (tostring (name), tostring (value), type (value)), 2)
    end
  end

  local text, path = M.find (policy)
  if not text then error (path, 0) end
  advise_of_hidden_file (policy)
  local native = make_native (world, path, options)
  world.name, world.path = policy, path
  world.env = sandbox.new (native)
  bound_strings (world.env)
  native.library = library_globals (world)
  world.string_methods = sandbox.string_methods (world.env)
  world.own_globals = {}
  for name in pairs (world.env) do world.own_globals[name] = true end

  world.limit = M.LOAD_INSTRUCTIONS
  for _, contents in pairs (options.files or {}) do
    world.limit = world.limit + #contents * M.FILE_BYTE_INSTRUCTIONS
  end
  local co = coroutine.create (sandbox.load)
  -- What the policy is given is its own: it may write into it, and set metamethods.
  local ok, run = world:resume (co, world.env, text, "@" .. path, copy (options.args))
  world.limit = M.LIMIT_INSTRUCTIONS
  if not ok then error (world:describe (co, run), 0) end
  if coroutine.status (co) ~= "dead" then
    error (path .. ": the policy asked for something while it was loaded; "
           .. "it should return a function of the disk", 0)
  end
  world.run = run
  return world
end

return M
