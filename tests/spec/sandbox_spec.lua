-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/runtime/scan/sandbox.lua: the world that policies live in.

local sandbox = require "scan.sandbox"

local native, env, printed

before_each (function ()
  printed = {}
  native = {
    find_module = function (name) return nil, "looked for " .. name end,
    find_policy = function (name) return nil, "no policy " .. name end,
    open_file = function () return nil end,
    print = function (line) printed[#printed + 1] = line end,
    warn = function (line) printed[#printed + 1] = "warning: " .. line end,
    alive = function () end,
  }
  env = sandbox.new (native)
end)

-- Run code in the world, as a policy's chunk would be.
local function run (code, ...)
  return assert (load (code, "@policy.lua", "t", env)) (...)
end

local function failure (code)
  local ok, message = pcall (run, code)
  assert.is_false (ok)
  return message
end

-- All that can be reached from a table, by path, without going up again.
local function reach (t, path, seen, visit)
  if seen[t] then return end
  seen[t] = true
  for name, value in pairs (t) do
    visit (path .. tostring (name), value)
    if type (value) == "table" then reach (value, path .. name .. ".", seen, visit) end
  end
end

describe ("scan.sandbox", function ()
  it ("has nothing but what is on the list", function ()
    local allowed = { collectgarbage = true, load = true, print = true, require = true,
                      setmetatable = true, xpcall = true, _G = true, scan = true,
                      ["scan.open"] = true, ["scan.policy"] = true,
                      ["scan.warn"] = true, ["scan.words"] = true, ["string.find"] = true,
                      ["string.rep"] = true, ["os.date"] = true,
                      ["table.insert"] = true, ["table.remove"] = true,
                      ["table.move"] = true, ["table.concat"] = true,
                      ["table.unpack"] = true, ["table.sort"] = true,
                      ["coroutine.create"] = true,
                      ["coroutine.wrap"] = true, ["coroutine.close"] = true,
                      ["coroutine.resume"] = true }
    for _, name in ipairs (sandbox.BASE) do allowed[name] = true end
    for library, names in pairs (sandbox.LIBRARIES) do
      allowed[library] = true
      for _, name in ipairs (names) do allowed[library .. "." .. name] = true end
    end
    local seen = {}
    reach (env, "", {}, function (path) seen[path] = true end)
    assert.same (allowed, seen)
  end)

  it ("does not have what reaches outside or runs without limits", function ()
    for _, name in ipairs {
      "io", "debug", "package", "dofile", "loadfile", "os.execute", "os.remove",
      "os.exit", "os.getenv", "os.tmpname", "os.rename", "string.gsub", "string.match",
      "string.gmatch", "string.dump",
    } do
      assert.is_nil (run ("return " .. name))
    end
  end)

  it ("keeps the globals of two worlds apart, and away from ours", function ()
    run ("made = 1; string.upper = nil; table.concat = nil")
    assert.is_nil (rawget (_G, "made"))
    assert.is_function (string.upper)
    local other = sandbox.new (native)
    assert.is_nil (other.made)
    assert.is_function (other.string.upper)
  end)

  it ("finds a long text a piece at a time, so that it can be stopped", function ()
    local function instructions (length)
      local find = run (([[
        local long = ("a"):rep (2^20)
        return function () return string.find (long, long:sub (1, %d) .. "b") end
      ]]):format (length))
      local n = 0
      debug.sethook (function () n = n + 1 end, "", 1)
      local first = find ()
      debug.sethook ()
      assert.is_nil (first)
      return n
    end
    -- 2^20 times 2^13 bytes, and no more than 2^26 at a time.
    assert.is_true (instructions (8192) > instructions (10) + 2^33 // 2^26)

    local same = run ([[
      local length, text = 2^20, ("a"):rep (98) .. "b"
      local results = {}
      -- One is where a piece of 2^26 // 99 places ends.
      for _, at in ipairs { 1, 2, 2^19, 2^26 // 99, length - 99, length - 98 } do
        local long = ("a"):rep (at - 1) .. text .. ("a"):rep (length - at - 98)
        for _, init in ipairs { 1, at, at + 1, at - 1 - #long, -99, 2^21 } do
          local first, last = string.find (long, text, init)
          results[#results + 1] = { long, text, init, first, last }
        end
      end
      return results
    ]])
    for _, result in ipairs (same) do
      local first, last = string.find (result[1], result[2], result[3], true)
      assert.same ({ first, last }, { result[4], result[5] })
    end
    assert.has_error (function ()
      run ("return ('x'):rep (2^20):find (('x'):rep (100), {})")
    end)
  end)

  it ("finds plain text only", function ()
    assert.same ({ 2, 2 }, { run ("return string.find ('a.b', '.')") })
    assert.is_nil (run ("return string.find ('aaa', 'a+')"))
    assert.equal (3, (run ("return string.find ('a.b.', '.', 3, false) and 3")))
    assert.is_nil ((run ("return string.find ('aab', 'a*b', 1, false)")))
  end)

  it ("repeats nothing at once", function ()
    assert.equal ("", run ("return string.rep ('', math.maxinteger)"))
    assert.equal ("", run ("return string.rep ('', math.maxinteger, '')"))
    assert.equal (",,", run ("return string.rep ('', 3, ',')"))
    assert.equal ("aa", run ("return string.rep ('a', 2)"))
    assert.matches ("number expected", failure ("string.rep ('')"))
  end)

  it ("formats no date that takes long", function ()
    assert.equal (os.date ("!%F", 0), run ("return os.date ('!%F', 0)"))
    assert.equal (os.date ("*t").year, run ("return os.date ('*t').year"))
    assert.is_string (run ("return os.date ()"))
    assert.matches ("at most 256 bytes", failure ("os.date (('%n'):rep (1000))"))
  end)

  it ("warns once", function ()
    run ("for _ = 1, 3 do scan.warn ('a') scan.warn ('b') end")
    assert.same ({ "warning: a", "warning: b" }, printed)
    assert.matches ("policy.lua:1: scan.warn: a message should be a string, got nil",
                    failure ("scan.warn ()"))
  end)

  it ("warns of no more than anybody reads", function ()
    run ("for i = 1, 1000 do scan.warn ('no ' .. i) end")
    assert.equal (21, #printed)
    assert.equal ("warning: no 20", printed[20])
    assert.equal ("warning: the policy's further warnings are not shown", printed[21])
  end)

  it ("splits words", function ()
    assert.same ({ "a", "bc", "d" }, sandbox.words (" a\tbc \n d"))
    assert.same ({}, sandbox.words (" \n"))
    assert.same ({ "x" }, run ("return scan.words ('x')"))
  end)

  it ("loads text, not binary chunks, into the policy's world", function ()
    assert.equal (5, run ("return load ('return 5') ()"))
    assert.is_true (run ("return load ('return _G') () == _G"))
    assert.is_nil (run ("return load ('return io') ()"))
    assert.equal (7, run ("return load ('return x', 'n', 't', { x = 7 }) ()"))
    env.binary = string.dump (function () end)
    assert.is_nil ((run ("return load (binary, 'b', 'b')")))
    assert.is_nil ((run ("return load (binary)")))
    assert.matches ("string expected, got function",
                    failure ("load (function () return ' ' end)"))
    assert.matches ("at most 65536 bytes",
                    select (2, run ("return load ((' '):rep (65537))")))
    assert.is_function (run ("return load ((' '):rep (65536))"))
  end)

  it ("refuses finalizers", function ()
    assert.matches ("can't have finalizers", failure
                      ("setmetatable ({}, { __gc = function () end })"))
    assert.equal (3, run ("return setmetatable ({}, { __index = { x = 3 } }).x"))
  end)

  it ("refuses what makes the collector follow weak keys", function ()
    for _, mode in ipairs { "k", "weak", "k\0v" } do
      assert.matches ("can't have weak keys", failure
                        (("setmetatable ({}, { __mode = %q })"):format (mode)))
    end
    for _, mode in ipairs { "v", "kv", "vk", "" } do
      run (("setmetatable ({}, { __mode = %q })"):format (mode))
    end
    run ("setmetatable ({}, { __mode = 1 })")
  end)

  it ("counts memory but does not collect it", function ()
    assert.is_number (run ("return collectgarbage ()"))
    assert.is_number (run ("return collectgarbage ('stop')"))
    assert.is_true (collectgarbage ("isrunning"))
  end)

  it ("prints through the runner, words with tabs between", function ()
    run ("print (1, nil, 'x')  print ()")
    assert.same ({ "1\tnil\tx", "" }, printed)
  end)

  it ("inserts, removes and moves like the library", function ()
    assert.same ({ 1, 2, 3, 4 }, run [[
      local t = { 1, 3 }
      table.insert (t, 2, 2)
      table.insert (t, 4)
      return t]])
    assert.same ({ 3, { 1, 2 } }, { run [[
      local t = { 1, 2, 3 }
      return table.remove (t), t]] })
    for _, range in ipairs { "1, 3, 2", "2, 4, 1", "1, 4, 1", "1, 0, 1", "1, 3, 5",
                             "1, 3, 3" } do
      local code = "local t = { 1, 2, 3, 4 } return table.move (t, " .. range .. ")"
      assert.same (load (code) (), run (code))
    end
    assert.same ({ 9, 1, 2 }, run ("return table.move ({ 1, 2 }, 1, 2, 2, { 9 })"))
  end)

  it ("changes lists as the library does, whatever they are made of", function ()
    local calls = {
      "table.insert (t, 5)", "table.insert (t, 1, 5)", "table.insert (t, 4, 5)",
      "table.insert (t, 5, 5)", "table.insert (t, 0, 5)", "table.insert (t)",
      "table.insert (t, 2.0, 5)", "table.insert (t, 1.5, 5)", "table.remove (t, 2.0)",
      "table.insert (t, {}, 5)", "table.remove (t, false)",
      "table.insert (t, 1, 2, 3)", "table.insert (nil, 1)", "table.remove (t)",
      "table.remove (t, 1)", "table.remove (t, 3)", "table.remove (t, 4)",
      "table.remove (t, 5)", "table.remove (t, 0)", "table.remove ({})",
      "table.remove ({}, 0)", "table.remove ({}, 1)", "table.remove ({}, -1)",
      "table.remove ({ [0] = 7 })", "table.concat (t)", "table.concat (t, '-', 2)",
      "table.concat (t, '-', 2, 9)", "table.concat (t, '-', 3, 2)",
      "table.concat ({ {} })", "table.concat (nil)", "table.unpack (t)",
      "table.unpack (t, 2)", "table.unpack (t, 2, 5)", "table.unpack (t, 3, 2)",
      "table.sort (t)", "table.sort (t, function (a, b) return a > b end)",
      "table.sort ({ 1, 'x' })", "table.sort (nil)", "table.sort (t, math.ult)",
    }
    -- Words of a message that depend on how a function was called don't count.
    local function outcome (chunk)
      local result = table.pack (pcall (chunk))
      if not result[1] then result = { false } end
      return result
    end
    for _, list in ipairs {
      "{ 3, 1, 2 }",
      "setmetatable ({}, { __index = { 3, 1, 2 }, __len = function () return 3 end })",
    } do
      for _, call in ipairs (calls) do
        local code = "local t = " .. list .. " return t[1], t[2], t[3], t[4], "
          .. "(function (...) return select ('#', ...), ... end) (" .. call .. ")"
          .. ", t[1], t[2], t[3], t[4], #t"
        assert.same (outcome (assert (load (code))),
                     outcome (assert (load (code, "", "t", env))), code)
      end
    end
  end)

  it ("does each step of a list in Lua, where time limits are seen", function ()
    local lists = {
      "setmetatable ({}, { __len = function () return 2^30 | 0 end, "
        .. "__index = rawlen, __newindex = rawequal })",
      "setmetatable ({}, { __len = function () return 2^30 | 0 end, "
        .. "__index = setmetatable ({}, { __index = table.concat }) })",
    }
    for _, list in ipairs (lists) do
      for _, call in ipairs {
        "table.insert (t, 1, 1)", "table.remove (t, 1)", "table.concat (t)",
        "table.sort (t)", "table.sort (t, math.type)", "table.unpack (t)",
      } do
        local co = coroutine.create (function ()
          return run ("local t = " .. list .. " " .. call)
        end)
        debug.sethook (co, function () error ("stopped") end, "", 100000)
        -- Stopped, or the list was refused; that it comes back is what counts.
        assert.is_false ((coroutine.resume (co)), call)
      end
    end
  end)

  describe ("once the policy's time is up", function ()
    local dead

    before_each (function ()
      dead = false
      native.alive = function () if dead then error ("too long", 0) end end
      env = sandbox.new (native)
      env.expire = function () dead = true end
    end)

    it ("makes, resumes and closes no more coroutines", function ()
      for _, call in ipairs {
        "coroutine.create (print)", "coroutine.wrap (print)", "coroutine.resume (co)",
        "wrapped ()", "coroutine.close (co)",
      } do
        dead = false
        assert.equal ("too long", failure (
          "local co, wrapped = coroutine.create (print), coroutine.wrap (print)\n"
          .. "expire () " .. call))
      end
    end)
  end)

  it ("wraps coroutines, and passes errors on", function ()
    assert.equal (3, run [[
      local f = coroutine.wrap (function (a) local b = coroutine.yield (a) return b end)
      return f (1) + f (2)]])
    assert.matches ("oops", failure
                      ("coroutine.wrap (function () error ('oops') end) ()"))
  end)

  it ("calls xpcall's handler after the failure", function ()
    assert.same ({ false, "H:x" }, { run [[
      return xpcall (error, function (m) return 'H:' .. m end, 'x')]] })
    assert.same ({ true, 1, nil, 3 }, { run [[
      return xpcall (function (...) return ... end, print, 1, nil, 3)]] })
  end)

  describe ("require", function ()
    it ("gives our modules, by name", function ()
      native.find_module = function (name) return "", "@" .. name, name == "scan.args" end
      assert.equal (require "scan.args", run ("return require 'scan.args'"))
    end)

    it ("runs a file beside the policy once, in its world", function ()
      native.find_module = function (name)
        return "count = (count or 0) + 1  return { name = ..., io = io }",
          "@" .. name .. ".lua"
      end
      assert.same ({ name = "mine" }, run ("return require 'mine'"))
      assert.is_true (run ("return require 'mine' == require 'mine'"))
      assert.equal (1, env.count)
    end)

    it ("gives true for a module that returns nothing", function ()
      native.find_module = function () return "", "@m" end
      assert.is_true (run ("return require 'm'"))
    end)

    it ("names what it can't find, what goes round, and where it fails", function ()
      assert.matches ("policy.lua:1: require: module 'x' not found: looked for x",
                      failure ("require 'x'"))
      assert.matches ("should be a string, got number", failure ("require (1)"))
      native.find_module = function (name) return "require '" .. name .. "'", "@m" end
      assert.matches ("'m' requires itself", failure ("require 'm'"))
      native.find_module = function () return "error 'no good'", "@m" end
      assert.matches ("m:1: no good", failure ("pcall (require, 'n')  require 'n'"))
      native.find_module = function () return "x = = 1", "@bad.lua" end
      assert.matches ("^bad.lua:1: ", failure ("require 'bad'"))
    end)

    it ("loads anew what a scan was loading that was stopped", function ()
      -- As the filter does if a client leaves meanwhile: nothing is closed then.
      local stopped = true
      env.stop = function () return stopped end
      native.find_module = function ()
        return "if stop () then error () end return 5", "@m"
      end
      local require_it = run ("return function () return require ('m') end")
      assert.is_false ((coroutine.resume (coroutine.create (require_it))))
      stopped = false
      assert.equal (5, require_it ())
    end)
  end)

  describe ("scan.open", function ()
    it ("opens what the operator gave", function ()
      native.open_file = function (name)
        return function (offset, count)
          return ("contents of " .. name):sub (offset + 1, offset + count)
        end
      end
      assert.equal ("contents of trace", run ("return scan.open ('trace'):read ()"))
    end)

    it ("says how to give a file", function ()
      assert.matches ("policy.lua:1: scan.open: no file 'trace' was given; "
                      .. "use scan%-file%-trace=FILE", failure ("scan.open 'trace'"))
      assert.matches ("policy.lua:1: scan.open: a file's name should be a string, got "
                      .. "number", failure ("scan.open (5)"))
    end)
  end)

  describe ("scan.policy", function ()
    it ("loads another policy with arguments of its own", function ()
      native.find_policy = function (name)
        return "local a = ... return function () return a.x end", "@" .. name
      end
      assert.equal ("5", run ("return scan.policy ('other', { x = '5' }) ()"))
      assert.is_nil (run ("return scan.policy ('other') ()"))
    end)

    it ("passes on why there is none", function ()
      assert.matches ("policy.lua:1: no policy other", failure ("scan.policy 'other'"))
      assert.matches ("policy.lua:1: scan.policy: a policy's name should be a string, "
                      .. "got nil", failure ("scan.policy ()"))
    end)
  end)

  describe ("load", function ()
    it ("hands the arguments to the chunk and returns its function", function ()
      local run_it = sandbox.load (env, "local a = ... return function () return a.x end",
                                   "@p.lua", { x = "1" })
      assert.equal ("1", run_it ())
    end)

    it ("names the file in every error", function ()
      assert.has_error (function () sandbox.load (env, "return 5", "@p.lua", {}) end,
        "p.lua: a policy should return a function of the disk, or a table with a "
        .. "function 'next', but it returned a number")
      local ok, message = pcall (sandbox.load, env, "\nx = = 1", "@p.lua", {})
      assert.is_false (ok)
      assert.matches ("^p.lua:2: ", message)
      ok, message = pcall (sandbox.load, env, "\nerror 'bad arg'", "@p.lua", {})
      assert.is_false (ok)
      assert.matches ("^p.lua:2: bad arg", message)
    end)
  end)

  it ("seals the methods of strings", function ()
    local meta = debug.getmetatable ("")
    local index = meta.__index
    finally (function () meta.__index, meta.__metatable = index, nil end)
    sandbox.seal_strings (env)
    local upper = run ("return ('x'):upper ()")
    local ok, message = pcall (run, "return ('x'):match ('x')")
    local lock = run ("return getmetatable ('')")
    meta.__index, meta.__metatable = index, nil
    assert.equal ("X", upper)
    assert.is_false (ok)
    assert.matches ("method 'match'", message)
    assert.equal ("string", lock)
  end)

  it ("keeps what a policy does to its library from our own code", function ()
    local meta = debug.getmetatable ("")
    local index = meta.__index
    finally (function () meta.__index, meta.__metatable = index, nil end)
    sandbox.seal_strings (env)
    local words, added = run ([[
      function string.sub () return "spoilt" end
      string.byte = nil
      function string.first (s) return s:sub (1, 1) end
      return scan.words ("a bc"), ("xyz"):first ()
    ]])
    meta.__index, meta.__metatable = index, nil
    assert.same ({ "a", "bc" }, words)
    assert.equal ("x", added)
  end)
end)
