-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/world.lua: policies loaded outside the filter live by its rules.

local testing = require "scan.testing"
local world = require "scan.world"

local directory

setup (function ()
  directory = os.tmpname ()
  os.remove (directory)
  assert (os.execute ("mkdir " .. directory .. " " .. directory .. "/lib"))
end)

teardown (function () os.execute ("rm -r " .. directory) end)

local function write (name, text)
  local path = directory .. "/" .. name
  local handle = assert (io.open (path, "w"))
  handle:write (text)
  handle:close ()
  return path
end

local function failure (options)
  local ok, message = pcall (world.load, options)
  assert.is_false (ok)
  return message
end

describe ("scan.world", function ()
  it ("takes a name for a built-in and a path for a file", function ()
    local _, path = world.find ("default")
    assert.matches ("policies/default.lua$", path)
    assert.equal (path, select (2, world.find ("default.lua")))
    local own = write ("default", "return 1")
    assert.equal ("return 1", (world.find (own)))
  end)

  it ("names the modules that a policy can require, and no others", function ()
    local names = world.modules ()
    assert.is_true (#names > 0)
    for _, name in ipairs (names) do
      world.load { policy = write ("requires.lua", ("require '%s' return print")
                                     :format (name)) }
    end
    local handle = assert (io.popen ("ls lua/library/scan | wc -l"))
    assert.equal (#names, handle:read ("n"))
    handle:close ()
  end)

  it ("looks for what nobody named among the built-ins first", function ()
    local here = assert (io.popen ("pwd")):read ("l")
    local lua_path = world.LUA_PATH:gsub ("%f[%w]lua/", here .. "/lua/")
    local program = here .. "/lua/bin/scan-policy run reverse --size 2M"
    write ("reverse", "error 'not asked for'")
    local handle = assert (io.popen (("cd %s && LUA_PATH='%s;;' lua5.4 %s 2>&1")
                                       :format (directory, lua_path, program)))
    assert.matches ("1 prefetches; the policy has finished", handle:read ("a"))
    handle:close ()
  end)

  it ("gives a policy a built-in, its neighbour, or what its arguments name", function ()
    local path = write ("asks.lua", [[
      local args = ...
      return scan.policy (args.go or "data")
    ]])
    write ("data.lua", "error 'a built-in comes first'")
    write ("lib/other.lua", "return function (disk) disk:prefetch (0) end")
    write ("beside.lua", "return function (disk) disk:prefetch (512, 512) end")
    local function first (go)
      local result = testing.run { policy = path, args = { go = go }, size = 4096 }
      assert.is_nil (result.error)
      return result.prefetches[1]
    end
    assert.same ({ 0, 4096 }, first ())
    assert.same ({ 512, 512 }, first ("beside"))
    assert.same ({ 0, 4096 }, first (directory .. "/lib/other.lua"))
    local strict = write ("strict.lua",
                          ("return scan.policy '%s/lib/other.lua'"):format (directory))
    assert.matches ("there is no file '.*/lib/other.lua' and no built%-in policy of that",
                    failure { policy = strict })
  end)

  it ("lists the built-ins where there is no such policy", function ()
    local text, message = world.find ("nonesuch")
    assert.is_nil (text)
    assert.matches ("there is no file 'nonesuch' and no built%-in policy", message)
    assert.matches ("ahead, .*default, .*forever", message)
    assert.matches ("No such file", select (2, world.find ("./nonesuch")))
    assert.matches ("Is a directory", select (2, world.find (directory)))
  end)

  it ("lists the built-ins, each with a sentence", function ()
    local seen = {}
    for _, policy in ipairs (world.list ()) do
      seen[policy.name] = true
      assert.matches ("^%l.*%.$", policy.about)
    end
    assert.is_true (seen.default and seen.ahead and seen.clock and seen.forever)
  end)

  it ("skips an interpreter line, and keeps the lines' numbers", function ()
    for _, mark in ipairs { "", "\xef\xbb\xbf" } do
      local path = write ("run.lua", mark .. "#!/usr/bin/lua\nerror 'here'\n")
      assert.matches ("run.lua:2: here", failure { policy = path })
      path = write ("run.lua", mark .. "error 'there'\n")
      assert.matches ("run.lua:1: there", failure { policy = path })
    end
  end)

  it ("takes strings only as arguments", function ()
    assert.matches ("args: strings expected, as in scan%-arg%-NAME=VALUE, got %[n%] = 5",
                    failure { policy = "default", args = { n = 5 } })
  end)

  it ("gives a policy arguments of its own to write into", function ()
    local args = { window = "4" }
    local path = write ("p.lua", [[
      local args = ...
      args.window = tonumber (args.window)
      local function pairs_of () return function () error "asked" end end
      setmetatable (args, { __pairs = pairs_of })
      local ok, message = pcall (scan.policy, "nonesuch")
      assert (not message:find ("asked"))
      return function (disk) disk:prefetch (args.window) end]])
    for _ = 1, 2 do
      local result = testing.run { policy = path, args = args, size = 4096 }
      assert.same ({ { 4, 4092 } }, result.prefetches)
    end
    assert.same ({ window = "4" }, args)
    assert.is_nil (getmetatable (args))
  end)

  it ("gives more time to load a policy, and more yet with files to read", function ()
    local limit, load_limit = world.LIMIT_INSTRUCTIONS, world.LOAD_INSTRUCTIONS
    finally (function ()
      world.LIMIT_INSTRUCTIONS, world.LOAD_INSTRUCTIONS = limit, load_limit
    end)
    assert.is_true (load_limit > limit)
    world.LIMIT_INSTRUCTIONS, world.LOAD_INSTRUCTIONS = 1000000, 5000000
    local function path (number)
      return write ("counts.lua", ([[
        for _ = 1, %d do end
        return function () while true do end end]]):format (number))
    end
    local loaded = world.load { policy = path (3000000) }
    assert.matches ("the policy ran 5 million instructions",
                    failure { policy = path (10000000) })
    world.load { policy = path (10000000), files = { trace = (" "):rep (100000) } }
    -- But no more to decide.
    local ok, message = loaded:resume (coroutine.create (loaded.run))
    assert.is_false (ok)
    assert.matches ("the policy ran 1 million instructions", message)
  end)

  it ("notes what takes more memory than the server gives", function ()
    collectgarbage ()
    local path = write ("p.lua", [[
      local kept = ('x'):rep ((...).size)
      return function () return kept end]])
    assert.is_true (world.load { policy = path,
                                 args = { size = "70000000" } }.is_large)
    assert.is_false (world.load { policy = path,
                                  args = { size = "50000000" } }.is_large)
    local loaded = world.load { policy = write ("p.lua", [[
      return function (disk)
        disk:prefetch (0)
        local kept = {}
        for i = 1, 12 do kept[i] = ('x'):rep (7000000) end
        disk:prefetch (1)
      end]]) }
    local scan = testing.scan { world = loaded, size = 1000 }
    scan:step ()
    assert.is_false (loaded.is_large)
    collectgarbage ()
    scan:step ()
    assert.is_true (loaded.is_large)
  end)

  describe ("refuses what takes too much memory in one call", function ()
    local most

    before_each (function ()
      most = world.TURN_KIB
      world.TURN_KIB = 4 * 1024
      collectgarbage ()
    end)

    after_each (function () world.TURN_KIB = most end)

    for code, place in pairs {
      ["('x'):rep (5 * 2^20)"] = "p.lua:2: ",
      ["string.rep ('x', '0x500000')"] = "p.lua:2: ",
      ["('x'):rep (math.maxinteger, 'y')"] = "p.lua:2: ",
      ["string.pack ('c3000000 c3000000', 'x', 'y')"] = "p.lua:2: ",
      ["#table.concat { s, s, s, s, s }"] = "p.lua:2: ",
      ["#table.concat ({ 1, 2, '', 4, '', 6 }, s)"] = "p.lua:2: ",
      ["#table.concat (setmetatable ({}, { __index = { s, s, s, s, s } }), '', 1, 5)"] =
        "p.lua:2: ",
      -- Nothing but the end of the turn tells of this one.
      ["s .. s .. s .. s .. s"] = "p.lua: ",
    } do
      it (code, function ()
        local path = write ("p.lua", ([[
          local s = ('x'):rep (1 << 20)
          local made = %s
          return function () return made end]]):format (code))
        assert.matches (place .. "the policy took more than 4 MiB of memory",
                        failure { policy = path })
      end)
    end

    it ("and nothing else", function ()
      world.load { policy = write ("p.lua", [[
        local s = ('x'):rep (3 * 2^20)
        assert (('x'):rep (-math.maxinteger) == '' and ('xy'):rep (2, 1) == 'xy1xy')
        assert (string.pack ('c3z', 'x', 'c9999999') == 'x\0\0c9999999\0')
        assert (not pcall (string.rep) and not pcall (string.rep, 'x', {}))
        assert (not pcall (string.pack) and not pcall (string.pack, 'c'))
        local asked = 0
        local function element (_, i) asked = asked + 1 return i end
        local made = setmetatable ({}, { __index = element, __metatable = false })
        assert (table.concat (made, ',', 1, 2) == '1,2' and asked == 2)
        assert (next (made) == nil)
        local t = { s, 'x', 2, s, s }
        assert (table.concat (t, ',', 2, 3) == 'x,2' and table.concat (t, s, 6) == '')
        assert (not pcall (table.concat) and not pcall (table.concat, t, '', 1, 6))
        return print]]) }
    end)
  end)

  describe ("require", function ()
    local function required (name)
      return world.load {
        policy = write ("p.lua", "return { next = print, m = require '" .. name .. "' }"),
      }
    end

    it ("finds our modules and files beside the policy", function ()
      required ("scan.args")
      write ("mine.lua", "return {}")
      write ("lib/deep.lua", "return {}")
      required ("mine")
      required ("lib.deep")
    end)

    it ("finds files beside the policy itself, not beside a link to it", function ()
      write ("lib/deep.lua", "return {}")
      local policy = write ("lib/linked.lua", "require 'deep' return scan.policy 'next'")
      write ("lib/next.lua", "return print")
      local link = write ("p.lua", "")
      assert (os.execute (("ln -sf lib/linked.lua '%s'"):format (link)))
      finally (function () os.remove (link) end)
      world.load { policy = link }
      world.load { policy = policy }
    end)

    it ("does not find the kit, which the filter has not", function ()
      local path = write ("p.lua", "return require 'scan.testing'")
      assert.matches ("'scan.testing' not found: .*/scan/testing.lua: No such file",
                      failure { policy = path })
    end)

    it ("does not find the modules that worlds are built with", function ()
      for _, name in ipairs { "scan.sandbox", "scan.host", "scan.file" } do
        local path = write ("p.lua", ("return require %q"):format (name))
        assert.matches ("is not for policies", failure { policy = path })
      end
    end)

    it ("gives each policy modules of its own, down to their methods", function ()
      local path = write ("p.lua", [[
        local name = (...).name
        local module = require (name)
        assert (module == require (name) and not module.spoilt)
        local methods = module.new
          and getmetatable (module.new ({ size = 1 }, {})).__index or {}
        assert (not methods.spoilt)
        module.spoilt, methods.spoilt = true, true
        return print]])
      for _, name in ipairs (world.modules ()) do
        for _ = 1, 2 do world.load { policy = path, args = { name = name } } end
        assert.is_nil (require (name).spoilt)
      end
    end)

    it ("gives our modules the same modules as the policy", function ()
      local path = write ("p.lua", [[
        local asked
        require "scan.sizes".parse = function (word) asked = word return 5 end
        assert (require "scan.args".size ({ a = "1K" }, "a") == 5 and asked == "1K")
        return print]])
      world.load { policy = path }
    end)

    it ("does not lead out of the directory", function ()
      write ("mine.lua", "return {}")
      for _, name in ipairs { "..mine", ".mine", "mine.", "lib/../mine", "", "a b" } do
        local path = write ("lib/p.lua", ("return require %q"):format (name))
        assert.matches ("words joined by dots", failure { policy = path })
      end
    end)
  end)

  it ("seals the methods of strings while the policy runs, and only then", function ()
    local path = write ("p.lua", [[
      return function (disk)
        disk:prefetch (0)
        local ok = pcall (function () return ("x"):match ("x") end)
        assert (not ok and ("x"):upper () == "X")
        error ("as it should")
      end]])
    local scan = testing.scan { policy = path, size = 100 }
    scan:step ()
    assert.equal ("x", ("x"):match ("x"))
    scan:step ()
    assert.equal ("x", ("x"):match ("x"))
    assert.matches ("as it should", scan.error)
  end)

  it ("seals them while the chunk is loaded, and unseals them after an error", function ()
    local path = write ("p.lua", "return ('x'):gsub ('x', 'y')")
    assert.matches ("method 'gsub'", failure { policy = path })
    assert.equal ("y", (("x"):gsub ("x", "y")))
  end)

  it ("seals them after what it does for the policy, whether that ends well or not",
      function ()
    local path = write ("p.lua", [[
      local ok, message = pcall (print, "a")
      assert (not ok and message == "no paper")
      assert (not pcall (function () return ("x"):match ("x") end))
      assert (getmetatable ("") == "string")
      return print]])
    world.load { policy = path, print = function () error ("no paper", 0) end }
  end)

  describe ("keeps them sealed from a policy that prints", function ()
    -- The policy calls this; what it prints is what is found then.
    local show = "local function show () print (type (getmetatable (''))) end\n"

    local function seen (code)
      local found = {}
      collectgarbage ()
      pcall (world.load, { policy = write ("p.lua", show .. code .. " return print"),
                           print = function (line) found[line] = true end })
      return found
    end

    it ("where there is almost no stack left", function ()
      assert.same ({ string = true, done = true }, seen [[
        local left, deepest = math.huge, 0
        local action = show
        local function down ()
          left, deepest = left - 1, deepest + 1
          if left > 0 then return down () + 1 end
          action ()
          return 1
        end
        pcall (down)
        left = deepest - 200
        function action ()
          action = show
          for more = 1, 200 do
            left = more
            pcall (down)
            pcall (show)
          end
        end
        down ()
        print ("done")]])
    end)

    it ("where it is stopped in the middle of it", function ()
      local most = world.TURN_KIB
      finally (function () world.TURN_KIB = most end)
      world.TURN_KIB = 4 * 1024
      -- The hook fails each time that it comes, which is somewhere else each time.
      assert.same ({ string = true, done = true }, seen [[
        local much = ("x"):rep (3 << 20)
        much = much .. much .. much .. much .. much .. much
        local count, stops = 0, 0
        local function often ()
          for _ = 1, stops do end
          while count < 10000 do count = count + 1 show () end
        end
        local function again ()
          while count < 10000 do stops = stops + 1 pcall (often) end
        end
        while count < 10000 do pcall (again) end
        print ("done")]])
    end)
  end)

  it ("takes none of the policy's time for what it does for the policy", function ()
    local limit = world.LOAD_INSTRUCTIONS
    finally (function () world.LOAD_INSTRUCTIONS = limit end)
    world.LOAD_INSTRUCTIONS = 1000000
    world.load { policy = write ("p.lua", "print ('a') return print"),
                 print = function () for _ = 1, 3000000 do end end }
  end)

  it ("prints where it is told, unsealed", function ()
    local lines = {}
    world.load { policy = write ("p.lua", "print ('a', 1) return print"),
                 print = function (line) lines[#lines + 1] = line:match ("a.*") end }
    assert.same ({ "a\t1" }, lines)
  end)

  it ("finds the globals that a policy makes", function ()
    local w = world.load { policy = write ("p.lua", [[
      b = 1
      return function () a = 1 end]]) }
    testing.run { world = w, size = 1 }
    assert.same ({ "a", "b" }, w:new_globals ())
    assert.same ({}, world.load { policy = "default" }:new_globals ())
  end)

  it ("finds them without asking the policy", function ()
    local w = world.load { policy = write ("p.lua", [[
      local function fail () error "asked" end
      setmetatable (_G, { __pairs = fail, __index = fail })
      _G[setmetatable ({}, { __tostring = fail, __name = "x" })] = 1
      _G.b = setmetatable ({}, { __eq = fail })
      return print]]) }
    assert.same ({ "a table", "b" }, w:new_globals ())
  end)

  it ("describes what a policy fails with, however long it and its place are", function ()
    -- At each of its words one of our own places may go on.
    local path = write ("p.lua", [[
      local long = ("lua/x/scan/"):rep (100000)
      return function (disk)
        if disk.size == 1 then error (long, 0) end
        load ("error (nil)", "@" .. long) ()
      end]])
    local long = ("lua/x/scan/"):rep (100000)
    assert.truthy (testing.run { policy = path, size = 1 }.error:find (long, 1, true))
    assert.matches ("p.lua: %.%.%.[%w/]+:1: %(error object is a nil value%)",
                    testing.run { policy = path, size = 2 }.error)
  end)

  it ("refuses a chunk that prefetches by itself", function ()
    local path = write ("p.lua", "coroutine.yield ('prefetch', 0, 1) return print")
    assert.matches ("asked for something while it was loaded", failure { policy = path })
  end)

  describe ("stops a policy that loops", function ()
    local limit

    before_each (function ()
      limit = world.LIMIT_INSTRUCTIONS
      world.LIMIT_INSTRUCTIONS = 2000000
    end)

    after_each (function () world.LIMIT_INSTRUCTIONS = limit end)

    for name, code in pairs {
      ["while it runs"] = "while true do end",
      ["though it catches errors"] =
        "while true do pcall (function () while true do end end) end",
      ["in a coroutine of its own"] =
        "coroutine.wrap (function () while true do end end) ()",
      ["in a coroutine in a coroutine, caught"] = [[
        coroutine.wrap (function ()
          while true do
            pcall (coroutine.wrap (function () while true do end end))
          end
        end) ()]],
      ["in a coroutine of a module of ours"] = [[
        local combine = require "scan.combinators"
        combine.interleave (function () while true do end end) (disk)]],
    } do
      it (name, function ()
        local path = write ("p.lua", "return function (disk) " .. code .. " end")
        local result = testing.run { policy = path, size = 1 }
        assert.matches ("ran 2 million instructions without coming back", result.error)
      end)
    end

    it ("while it is loaded", function ()
      assert.matches ("million instructions",
                      failure { policy = write ("p.lua", "while true do end") })
    end)

    it ("but counts each turn by itself", function ()
      local path = write ("p.lua", [[
        return function (disk)
          for _ = 1, 5 do
            for _ = 1, 1000000 do end
            disk:prefetch (0)
          end
        end]])
      local result = testing.run { policy = path, size = 1 }
      assert.is_nil (result.error)
      assert.equal (5, #result.prefetches)
    end)
  end)
end)
