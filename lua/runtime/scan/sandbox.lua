-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- The world that a policy's code lives in.
--
-- An allow-list: what is not named here does not exist for a policy.  The same
-- world is built by the filter and by the kit, so what works under
-- `scan-policy check` works in the server.  It guards against mistakes, not
-- malice: see docs/design.md.
--
-- Left out, and why: `io`, `os.execute` and their like, `package`, `debug`
-- (reach outside); `string.find` with patterns, `match`, `gmatch` and `gsub`
-- (a pattern can run for minutes inside one C call, where nothing can stop
-- it; use plain `string.find` and `scan.words`); `collectgarbage` but for
-- "count"; `__gc` (finalizers run where no limit applies); tables with weak keys and
-- strong values (see `has_weak_keys`); binary chunks (they
-- can crash the interpreter); and what this file is made of (`require
-- "scan.sandbox"` would give a policy the means to build another world).
--
-- The runner gives a table `native`:
--
--     find_module (name)  -> text, chunk name, true if it is one of ours;
--                            or nil and where it looked
--     find_policy (name)  -> text, chunk name; or nil and why not
--     open_file (name)    -> the functions for scan.file; or nil
--     print (string)      what `print` writes to
--     warn (string)       what `scan.warn` tells the operator
--     alive ()            raises once the policy has run out of time
--     create, resume, close  (may be left out) what to use for coroutine.create and
--                            its like
--     library             (may be left out) globals to load our modules with; without
--                         it, they are those of Lua's own `require`
--
-- @module scan.sandbox

local file = require "scan.file"
local host = require "scan.host"

local M = {}

M.BASE = {
  "assert", "error", "getmetatable", "ipairs", "next", "pairs", "pcall",
  "rawequal", "rawget", "rawlen", "rawset", "select", "tonumber", "tostring",
  "type", "_VERSION",
}

M.LIBRARIES = {
  coroutine = { "isyieldable", "running", "status", "yield" },
  math = {
    "abs", "acos", "asin", "atan", "ceil", "cos", "deg", "exp", "floor", "fmod",
    "huge", "log", "max", "maxinteger", "min", "mininteger", "modf", "pi", "rad",
    "random", "randomseed", "sin", "sqrt", "tan", "tointeger", "type", "ult",
  },
  os = { "clock", "difftime", "time" },
  string = {
    "byte", "char", "format", "len", "lower", "pack", "packsize", "reverse",
    "sub", "unpack", "upper",
  },
  table = { "pack" },
  utf8 = { "char", "charpattern", "codepoint", "codes", "len", "offset" },
}

-- Most different warnings of a policy: nobody reads more.
local WARNINGS_MAX = 20

-- The most that `load` compiles: the compiler can't be stopped, and for a long chain of
-- `and`, `or` or `elseif` what it does grows with the square of the length.  For so much
-- it is some tenths of a second.
local LOAD_MAX_BYTES = 64 * 1024

-- Where the table library does a step for each element inside C, nothing can
-- stop it, and how many there are is for the policy to make up (with `__len`, or
-- with a few elements at powers of 2).  So steps are done in Lua, or on a table
-- that has been looked through in Lua.
local function check_table (t, what)
  if type (t) ~= "table" then
    error (("bad argument #1 to '%s' (table expected, got %s)")
           :format (what, type (t)), 3)
  end
end

-- A whole float is a position, as it is for the library.
local function check_position (position, first, last, what)
  local n = math.tointeger (position)
  if n and n >= first and n <= last then return n end
  error (("bad argument #2 to '%s' (position out of bounds)"):format (what), 3)
end

-- A list without metamethods: its elements are in it, and none is missing.
local function plain_list (t, first, last)
  if not debug.getmetatable (t) then return t end
  local list = {}
  for i = first, last do list[i] = t[i] end
  return list
end

local function guarded_table (env)
  local concat, sort, unpack = table.concat, table.sort, table.unpack

  function env.insert (t, ...)
    check_table (t, "insert")
    local length = #t
    local position, value = length + 1, (...)
    local given = select ("#", ...)
    if given == 2 then
      position, value = ...
      position = check_position (position, 1, length + 1, "insert")
      for i = length, position, -1 do t[i + 1] = t[i] end
    elseif given ~= 1 then
      error ("wrong number of arguments to 'insert'", 2)
    end
    t[position] = value
  end

  function env.remove (t, position)
    check_table (t, "remove")
    local length = #t
    if position == nil then position = length end
    position = check_position (position, length == 0 and 0 or 1, length + 1, "remove")
    local value = t[position]
    for i = position, length - 1 do t[i] = t[i + 1] end
    if position <= length then t[length] = nil end
    return value
  end

  function env.move (from, first, last, at, to)
    to = to or from
    if at > first and at <= last and to == from then
      for i = last, first, -1 do to[at + i - first] = from[i] end
    else
      for i = first, last do to[at + i - first] = from[i] end
    end
    return to
  end

  function env.concat (t, separator, first, last)
    check_table (t, "concat")
    first, last = first or 1, last or #t
    return concat (plain_list (t, first, last), separator, first, last)
  end

  function env.unpack (t, first, last)
    first, last = first or 1, last or #t
    return unpack (plain_list (t, first, last), first, last)
  end

  -- With a comparison in Lua, which is called at each step.
  function env.sort (t, less)
    check_table (t, "sort")
    if less == nil then
      sort (t, function (a, b) return a < b end)
    else
      sort (t, function (a, b) return less (a, b) end)
    end
  end
end

-- The most that one search inside C may compare, the lengths of both texts multiplied.
local FIND_MAX_BYTES = 64 * 1024 * 1024

-- Plain searching only: see above for what patterns can do.  Where each byte may be the
-- beginning of a long text, a piece at a time.  And an empty string is not repeated, as
-- each time would be a step inside C.
local function guarded_string (env)
  local find, rep, sub = string.find, string.rep, string.sub

  local function find_by_pieces (s, text, init)
    local from = find (s, "", init, true) -- where that is, if it is there
    local step = math.max (FIND_MAX_BYTES // #text, 1)
    while from and from + #text - 1 <= #s do
      local first = find (sub (s, from, from + step + #text - 2), text, 1, true)
      if first then return from + first - 1, from + first + #text - 2 end
      from = from + step
    end
    return nil
  end

  function env.find (s, text, init)
    if type (s) == "string" and type (text) == "string"
       and #s * #text > FIND_MAX_BYTES then
      return find_by_pieces (s, text, init)
    end
    return find (s, text, init, true)
  end

  function env.rep (s, n, separator)
    if s == "" and (separator == nil or separator == "") and n then n = 0 end
    return rep (s, n, separator)
  end
end

-- Each conversion is a step inside C.
local DATE_MAX_BYTES = 256

local function guarded_os (env)
  local date = os.date

  function env.date (format, time)
    if type (format) == "string" and #format > DATE_MAX_BYTES then
      error (("bad argument #1 to 'date' (at most %d bytes)"):format (DATE_MAX_BYTES), 2)
    end
    return date (format, time)
  end
end

-- New coroutines and old ones alike stop once time is up, however a policy
-- nests them.  A coroutine that failed is not closed, neither by `wrap` nor by
-- `close`: if it failed because of a limit, its `__close` handlers would run
-- where no limit applies.
local function guarded_coroutine (env, native)
  local status = coroutine.status
  local create = native.create or coroutine.create
  local resume = native.resume or coroutine.resume
  local close = native.close or coroutine.close
  local alive = native.alive

  local function returned (ok, ...)
    if not ok then error ((...), 0) end
    return ...
  end

  function env.create (body)
    alive ()
    return create (body)
  end

  function env.wrap (body)
    alive ()
    local co = create (body)
    return function (...)
      alive ()
      return returned (resume (co, ...))
    end
  end

  function env.close (co)
    alive ()
    local state = status (co)
    if state == "dead" then return true end
    if state == "suspended" then return close (co) end
    error ("cannot close a " .. state .. " coroutine", 2)
  end

  function env.resume (co, ...)
    alive ()
    return resume (co, ...)
  end
end

-- The library's `xpcall` runs its handler inside the failure, where no limit
-- applies; this one just after it.
local function guarded_xpcall (body, handler, ...)
  local results = table.pack (pcall (body, ...))
  if results[1] then return table.unpack (results, 1, results.n) end
  return false, handler (results[2])
end

-- Where each value of such a table is the key of another one, the collector goes through
-- all of it again and again, in one step that nothing can stop: minutes for what fits
-- into the memory of a policy.  With weak values, too, it doesn't look at them.
local function has_weak_keys (meta)
  local mode = rawget (meta, "__mode")
  return type (mode) == "string" and string.find (mode, "k", 1, true) ~= nil
    and mode ~= "kv" and mode ~= "vk"
end

-- `__gc` is looked at here by Lua, too, and never again.  `__mode` is looked at whenever
-- there is garbage to collect, so one that is set later escapes this; that takes a policy
-- which means to, and a guard for each assignment would cost all others.
local function guarded_setmetatable (t, meta)
  if type (meta) == "table" then
    if rawget (meta, "__gc") ~= nil then
      error ("a policy can't have finalizers (__gc)", 2)
    elseif has_weak_keys (meta) then
      error ("a policy can't have weak keys with values that are not (__mode); use 'v' "
             .. "or 'kv'", 2)
    end
  end
  return setmetatable (t, meta)
end

local function printer (native)
  return function (...)
    local words = table.pack (...)
    for i = 1, words.n do words[i] = tostring (words[i]) end
    native.print (table.concat (words, "\t"))
  end
end

-- Text chunks only, of a bounded length, and by default in the policy's own
-- world.
local function loader (env, alive)
  return function (chunk, name, _, ...)
    if type (chunk) ~= "string" then
      error ("bad argument #1 to 'load' (string expected, got " .. type (chunk)
             .. ")", 2)
    end
    if #chunk > LOAD_MAX_BYTES then
      return nil, "load: a chunk should have at most " .. LOAD_MAX_BYTES .. " bytes"
    end
    alive ()
    local where = env
    if select ("#", ...) > 0 then where = (...) end
    return load (chunk, name, "t", where)
  end
end

-- `require` of our modules, and of files beside the policy.
local function requirer (env, native)
  local loaded = {}
  local loading = {} -- by name, the coroutine that does
  return function (name)
    if type (name) ~= "string" then
      error ("require: a module's name should be a string, got " .. type (name), 2)
    end
    if loaded[name] ~= nil then return loaded[name] end
    -- One whose client has left is dead, and was not told.
    if loading[name] and coroutine.status (loading[name]) ~= "dead" then
      error ("require: '" .. name .. "' requires itself", 2)
    end
    local text, chunk_name, ours = native.find_module (name)
    if not text then
      error ("require: module '" .. name .. "' not found: " .. chunk_name, 2)
    end
    local value
    loading[name] = coroutine.running ()
    -- Also if it fails, and is asked for again.
    local _ <close> = setmetatable ({}, { __close = function () loading[name] = nil end })
    if ours and not native.library then
      value = require (name)
    else
      local chunk, message = load (text, chunk_name, "t", ours and native.library or env)
      if not chunk then error (message, 0) end
      value = chunk (name)
    end
    if value == nil then value = true end
    loaded[name] = value
    return value
  end
end

--- The words of a string, which is what most patterns are for.
-- @function scan.words
-- @tparam string s
-- @treturn table list of the parts between white space
function M.words (s)
  if type (s) ~= "string" then
    error ("scan.words: a string expected, got " .. type (s), 2)
  end
  local words, from = {}, nil
  for i = 1, #s do
    local byte = s:byte (i)
    local space = byte == 32 or byte >= 9 and byte <= 13
    if not space and not from then
      from = i
    elseif space and from then
      words[#words + 1], from = s:sub (from, i - 1), nil
    end
  end
  if from then words[#words + 1] = s:sub (from) end
  return words
end

--- The methods of strings, `("x"):upper ()` and its like, while a policy runs: those of
-- the policy's `string`, and what it adds to that.  What it replaces there is no method,
-- for our own modules call these.
-- @tparam table env from `new`, before any code of a policy has run
-- @treturn table for `__index`
function M.string_methods (env)
  local methods = {}
  for name, method in pairs (env.string) do methods[name] = method end
  return setmetatable (methods, { __index = env.string })
end

--- Give strings these methods and no others.  For a Lua state that runs policies and
-- nothing else.
-- @tparam table env from `new`, before any code of a policy has run
function M.seal_strings (env)
  local meta = debug.getmetatable ("")
  meta.__index = M.string_methods (env)
  meta.__metatable = "string"
end

--- Build a world.  Each has globals of its own.
-- @tparam table native what the runner gives, see above
-- @treturn table the globals
function M.new (native)
  local env = {}
  for _, name in ipairs (M.BASE) do env[name] = _G[name] end
  for library, names in pairs (M.LIBRARIES) do
    env[library] = {}
    for _, name in ipairs (names) do env[library][name] = _G[library][name] end
  end
  guarded_table (env.table)
  guarded_string (env.string)
  guarded_os (env.os)
  guarded_coroutine (env.coroutine, native)
  env.setmetatable = guarded_setmetatable
  env.xpcall = guarded_xpcall
  env.collectgarbage = function () return collectgarbage ("count") end
  env.print = printer (native)
  env.load = loader (env, native.alive)
  env.require = requirer (env, native)
  env._G = env

  env.scan = { words = M.words }

  --- A file that the operator named with scan-file-NAME; an error if there is none.
  -- @function scan.open
  -- @tparam string name
  -- @treturn table file with `read`, `lines` and `rows`
  function env.scan.open (name)
    if type (name) ~= "string" then
      error ("scan.open: a file's name should be a string, got " .. type (name), 2)
    end
    local read_at, read_rows = native.open_file (name)
    if not read_at then
      error (("scan.open: no file '%s' was given; use scan-file-%s=FILE")
             :format (name, name), 2)
    end
    return file.new (read_at, read_rows)
  end

  local told, left = {}, WARNINGS_MAX

  --- Something that the operator should know, said once.  The server shows 499 bytes
  -- of it, and so many different ones: 20.
  -- @function scan.warn
  -- @tparam string message
  function env.scan.warn (message)
    if type (message) ~= "string" then
      error ("scan.warn: a message should be a string, got " .. type (message), 2)
    end
    if told[message] or left < 0 then return end
    left = left - 1
    if left < 0 then message = "the policy's further warnings are not shown" end
    told[message] = true
    native.warn (message)
  end

  --- Another policy, as a function of the disk: a built-in, else a file beside this
  -- one, else what the operator named with a scan-arg.
  -- @function scan.policy
  -- @tparam string name
  -- @tparam[opt] table args its scan-arg-NAME=VALUE strings
  -- @treturn function of the disk
  function env.scan.policy (name, args)
    if type (name) ~= "string" then
      error ("scan.policy: a policy's name should be a string, got " .. type (name), 2)
    end
    local text, chunk_name = native.find_policy (name)
    if not text then error (chunk_name, 2) end
    return M.load (env, text, chunk_name, args or {})
  end

  return env
end

--- Load a policy into a world.  Errors are raised as they come: a syntax error
-- as Lua words it, an error in the chunk with its own place.
-- @tparam table env from `new`
-- @tparam string text of the chunk
-- @tparam string chunk_name "@" and the path
-- @tparam table args the scan-arg-NAME=VALUE strings
-- @treturn function of the disk
function M.load (env, text, chunk_name, args)
  local chunk, message = load (text, chunk_name, "t", env)
  if not chunk then error (message, 0) end
  local run, expected = host.to_function (chunk (args))
  if not run then error (chunk_name:sub (2) .. ": " .. expected, 0) end
  return run
end

return M
