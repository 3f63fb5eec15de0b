-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/bin/scan-policy, run as a user runs it.

local LUA_PATH = require "scan.world".LUA_PATH
local LUA = "lua5.4"
local TRACE = "tests/traces/fsck.log"

local here, directory

setup (function ()
  local handle = io.popen ("pwd")
  here = handle:read ("l")
  handle:close ()
  directory = os.tmpname ()
  os.remove (directory)
  assert (os.execute ("mkdir " .. directory))
end)

teardown (function () os.execute ("rm -r " .. directory) end)

local function read (path)
  local handle = assert (io.open (path, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

local function write (name, text)
  local path = directory .. "/" .. name
  local handle = assert (io.open (path, "w"))
  handle:write (text)
  handle:close ()
  return path
end

-- Standard output, standard error and the exit status.
local function run (command)
  local out, err = directory .. "/out", directory .. "/err"
  local _, _, status = os.execute (("%s %s/lua/bin/scan-policy %s >%s 2>%s")
                                     :format (LUA, here, command, out, err))
  return read (out), read (err), status
end

local function succeed (command)
  local out, err, status = run (command)
  assert.same ({ "", 0 }, { err, status })
  return out
end

local function fail (expected_status, command)
  local out, err, status = run (command)
  assert.equal (expected_status, status, out .. err)
  assert.equal (0, select (2, err:gsub ("traceback", "")), err)
  return err
end

describe ("scan-policy", function ()
  it ("teaches with examples", function ()
    assert.matches ("Begin here:", succeed ("--help"))
    for _, command in ipairs { "check", "run", "simulate", "plot", "new", "watch",
                                "map" } do
      assert.matches ("Examples?:\n  scan%-policy " .. command,
                      succeed (command .. " --help"))
    end
  end)

  it ("watches the files of a server", function ()
    local scan = write ("scan '1'.prom", table.concat ({
      'nbdkit_scan_size_bytes{export=""} 1048576',
      'nbdkit_scan_covered_bytes{export=""} 524288',
      'nbdkit_scan_state{export="",state="running"} 1' }, "\n"))
    local clone = write ("clone.prom", 'nbdkit_clone_present_bytes{export=""} 262144\n')
    local out = succeed (('watch "%s" %s --count 2 --interval 0.1'):format (scan, clone))
    local line = "%d%d:%d%d:%d%d %(default export%), running, 50 %% of 1 MiB, "
      .. "clone has 25 %%\n"
    assert.matches ("^" .. line .. line .. "$", out)
    local err = fail (1, "watch " .. directory .. "/no-such")
    assert.matches ("no%-such: No such file", err)
    err = fail (1, "watch " .. write ("disk.img", "\0\0\0\n") .. " --count 1")
    assert.matches ("disk.img: no counters of the scan or the clone filter are", err)
    assert.matches ("a whole number from 1 up expected, got '0'",
                    fail (2, "watch x --count 0"))
    assert.matches ("%-%-interval: a time like .* of at least 0.1s expected, got '0'",
                    fail (2, "watch x --interval 0"))
  end)

  it ("says when what it prints does not arrive", function ()
    local trace = write ("t", "4096 4096\n")
    for _, command in ipairs { "list", "run reverse", "plot reverse --trace " .. TRACE,
                               "--version", "--help", "check --help",
                               "watch --count 2 --interval 0.1 "
                                 .. write ("w.prom",
                                           'nbdkit_scan_size_bytes{export=""} 1\n'),
                               ("translate --from %s --to %s %s")
                                 :format (trace, trace, write ("u", "0 512\n")) } do
      local _, _, status = os.execute (
        ("%s lua/bin/scan-policy %s >/dev/full 2>%s/err")
        :format (LUA, command, directory))
      assert.equal (1, status, command)
      assert.matches ("scan%-policy: standard output: No space left on device\n$",
                      read (directory .. "/err"))
    end
  end)

  it ("says which version it is", function ()
    local version = read ("debian/changelog"):match ("%((.-)%)")
    assert.equal ("scan-policy " .. version .. "\n", succeed ("--version"))
  end)

  it ("says which module it lacks", function ()
    local _, _, status = os.execute (
      ("LUA_PATH='/none/?.lua' %s lua/bin/scan-policy list 2>%s/err")
      :format (LUA, directory))
    assert.equal (1, status)
    assert.equal ("scan-policy: Lua's module argparse is missing; install lua-argparse\n",
                  read (directory .. "/err"))
  end)

  it ("lists the built-ins", function ()
    local out = succeed ("list")
    assert.matches ("\ndefault +what the stock scan filter does", "\n" .. out)
  end)

  describe ("check", function ()
    it ("is content with the built-ins", function ()
      local out = succeed ("check default")
      assert.matches ("ok    loading it\n", out)
      assert.matches ("a client that reads nothing: 33 prefetches, 100 %% of the disk\n",
                      out)
      assert.matches ("for as long as the client stays", succeed ("check forever"))
    end)

    it ("calls nothing endless that ends", function ()
      assert.matches ("reads nothing: 21504 prefetches, 100 %% of the disk\n",
                      succeed ("check reverse --size 42G"))
    end)

    it ("does not take one that polls for endless", function ()
      local out = succeed ("check " .. write ("p.lua", [[
        return function (disk)
          disk:prefetch (0)
          repeat disk:wait (0.001) until disk:closed ()
        end]]))
      assert.matches ("a client that reads nothing: 1 prefetch, 3 %% of the disk; what "
                      .. "comes after 20128 requests was not looked at\n", out)
    end)

    it ("knows a file with a comma in its name", function ()
      local path = write ("a,b=c.lua", "return function () end")
      assert.matches ("^ok    loading it", succeed ("check '" .. path .. "'"))
    end)

    it ("shows what a policy says, and obeys nothing in it", function ()
      local path = write ("p.lua", [[
        scan.warn "\7"
        print "\27[2J"
        return function () end]])
      assert.matches ("note  it warns: \\x07\n$", succeed ("check " .. path))
      assert.equal ("warning: \\x07\n\\x1b[2J\n", select (2, run ("run " .. path)))
    end)

    it ("reads a policy from a pipe", function ()
      local path = write ("p.lua", "return function (disk) disk:prefetch (0) end")
      local _, _, status = os.execute (
        ("cat %s | %s lua/bin/scan-policy check /dev/stdin >%s/out")
        :format (path, LUA, directory))
      assert.same ({ succeed ("check " .. path), 0 },
                   { read (directory .. "/out"), status })
    end)

    -- What is wrong, and what is said about it.
    local faults = {
      ["x = = 1"] = { "loading it: .*p.lua:1: " },
      ["return 5"] = { "should return a function of the disk" },
      ["return function (d) d.prefetch (0) end"] =
        { "p.lua:1: disk:prefetch: called without the disk", "call it with a colon" },
      ["return function (d) d:prefetch () end"] =
        { "p.lua:1", "hint: is there an offset" },
      ["local kept return function (d) kept = kept or d kept:reads () end"] =
        { "a client after another one: .*p.lua:1: this disk belongs to a scan" },
      ["return function (d) d:prefetch (d.size) end"] =
        { "p.lua:1", "outside the disk", "hint: compare with disk.size" },
      ["return function (d) d:prefetch (-d.block) end"] =
        { "p.lua:1", "outside the disk", "hint: offsets are from 0 up" },
      ["return function () local _ = ('x'):match ('x') end"] =
        { "p.lua:1", "hint: policies have no string patterns" },
      ["local f = io.open ('x') return print"] = { "hint: policies have no files" },
      ["return function (d) d:prefecth (0) end"] = { "hint: did you mean 'prefetch'" },
      ["return function (d) d:find_data (0) end"] = { "hint: a disk has: block, b" },
      ["return require 'scan.extends'"] = { "hint: did you mean 'scan.extents'" },
      ["return require 'scan.partition'"] = { "hint: did you mean 'scan.partitions'" },
      ["require 'scan.testing'"] = { "hint: it is for tests of policies" },
      ["return scan.policy 'adaptative'"] =
        { "p.lua: there is no file", "hint: did you mean 'adaptive'" },
      ["return function (d) d:prefetch ('0') end"] =
        { "got '0', a string", "hint: what is in quotes is a string" },
      ["return function (d) d:missing (-1) end"] = { "hint: offsets are from 0 up" },
      ["return function (d) for _ in ipairs (d:reads ()) do _ = 1 end end"] =
        { "hint: disk:reads %(%) and its like are for a loop" },
      ["return function (d) d:prefetch (d:reads ()) end"] =
        { "got a function", "hint: disk:reads %(%) and its like are for a loop" },
      ["return function (d) table.sort ({ 1, 2 }, function () d:wait () end) end"] =
        { "hint: disk:prefetch and its like can't be called by what table.sort calls" },
      ["return require 'scan.combinators'.once ('data')"] =
        { "loading it: [^\n]*p.lua: once: argument 1: .* got 'data', a string\n",
          "hint: scan.policy" },
      ["local a = require 'scan.args' a.size (args, 'x', 1) return print"] =
        { "p.lua:1: scan.args: the table of the policy's arguments, .* got nil" },
      ["return function (d) coroutine.yield (5) end"] =
        { "p.lua:1: the policy yielded something that is not a request" },
      ["return function (d) error ({}) end"] =
        { "p.lua:1: %(error object is a table value%)" },
      ["scan.warn '\\27[2J' error ('\\27[31mred\\7')"] =
        { "loading it: [^\n]*p.lua:1: \\x1b%[31mred\\x07\n$" },
      ["error ({})"] =
        { "loading it: [^\n]*p.lua:1: %(error object is a table value%)" },
    }
    for code, expected in pairs (faults) do
      it ("explains " .. code, function ()
        local path = write ("p.lua", code)
        local out, err, status = run ("check " .. path)
        assert.same ({ "", 1 }, { err, status })
        for _, pattern in ipairs (expected) do
          assert.matches ("FAIL.*" .. pattern, out)
        end
      end)
    end

    it ("has a client that reads while the policy waits", function ()
      local out, _, status = run ("check " .. write ("p.lua", [[
        return function (disk)
          while not disk:closed () do
            for offset in disk:reads () do
              assert (offset < disk.size // 2 or offset == disk.size - 512, "far")
            end
            disk:wait ()
          end
        end]]))
      assert.equal (1, status)
      assert.matches ("FAIL  a client that reads here and there: [^\n]*p.lua:4: far", out)
    end)

    it ("says the same thing once", function ()
      local out = run ("check " .. write ("p.lua", "return function () error 'x' end"))
      assert.equal (1, select (2, out:gsub ("p.lua:1: x", "")))
      assert.matches ("FAIL  8 prefetches at once: the same\n", out)
      -- However the numbers in it differ.
      out = run ("check " .. write ("p.lua",
                                    "return function (d) d:prefetch (d.size) end"))
      assert.equal (1, select (2, out:gsub ("outside the disk", "")))
    end)

    it ("shows the author's frames and not its own", function ()
      local path = write ("p.lua", [[
        local function helper (disk) disk:prefetch (-1) end
        return function (disk) helper (disk) end]])
      for _, command in ipairs { "check ", "run " } do
        local out, err = run (command .. path)
        local text = out .. err
        assert.matches ("stack traceback:\n\t[^\n]*p.lua:1: [^\n]*\n\t[^\n]*p.lua:2: "
                        .. "[^\n]*\nhint", text)
        assert.is_nil (text:find ("lua/runtime/scan", 1, true))
      end
    end)

    it ("lets nothing grow without an end", function ()
      local grows = write ("p.lua", [[
        return function ()
          local t = {}
          while true do t[#t + 1] = ("x"):rep (1e6) .. #t end
        end]])
      assert.matches ("p.lua: the policy took more than 256 MiB of memory .*p.lua:3: in",
                      select (2, run ("run " .. grows)))
    end)

    it ("shows policies that wait for a client what they wait for", function ()
      for _, policy in ipairs { "readahead", "stride" } do
        local out = succeed ("check " .. policy)
        assert.matches ("reads upwards: [1-9]", out)
        assert.is_nil (out:find ("note", 1, true))
      end
      local out = succeed ("check " .. write ("p.lua", [[
        return function (disk)
          while not disk:closed () do
            for _, count in disk:reads () do
              if count == 12345 then disk:prefetch (0) end
            end
            disk:wait ()
          end
        end]]))
      assert.matches ("note  it has prefetched nothing: none of these clients did what",
                      out)
      out = succeed (("check %s --trace %s"):format (directory .. "/p.lua",
                                                     write ("t", "4096 12345\n")))
      assert.matches ("ok    the client of the trace: 1 prefetch", out)
      assert.is_nil (out:find ("note", 1, true))
    end)

    it ("makes no hole that ends where no layer's would", function ()
      local out = succeed ("check " .. write ("p.lua", [[
        return function (disk)
          local offset = disk:next_data (0)
          while offset do
            disk:prefetch (offset)
            offset = offset + disk.block
            offset = offset < disk.size and disk:next_data (offset) or nil
          end
        end]]))
      assert.is_nil (out:find ("note", 1, true), out)
    end)

    it ("notes what takes more memory than the server gives", function ()
      assert.matches ("\nnote  it takes more than 64 MiB of memory, which is what the "
                      .. "server gives", succeed ("check " .. write ("p.lua", [[
        local kept = ('x'):rep (80000000)
        return function () return kept end]])))
    end)

    it ("warns where a file is hidden by a built-in's name", function ()
      write ("data.lua", "error 'never run'")
      local command = "cd %s && LUA_PATH='%s;;' %s %s/lua/bin/scan-policy check %s 2>&1"
      local lua_path = LUA_PATH:gsub ("%f[%w]lua/", here .. "/lua/")
      local function check (name)
        local handle = io.popen (command:format (directory, lua_path, LUA, here, name))
        local out = handle:read ("a")
        handle:close ()
        return out
      end
      -- As the filter says it: advise_of_hidden_file in filter/scan/options.c.
      local out, told = check ("data.lua"):gsub (
        "warning: scan%-policy=data.lua is the built%-in policy; for the file in this "
        .. "directory, use scan%-policy=%./data.lua\n", "")
      assert.equal (1, told)
      assert.matches ("^ok    loading it\n", out)
      assert.matches ("FAIL  loading it: ./data.lua:1: never run", check ("./data.lua"))
    end)

    it ("takes the disk that it is told of", function ()
      assert.matches ("reads nothing: 10 prefetches, 100 %%",
                      succeed ("check default --size 10M --block 1M"))
      local path = directory .. "/image"
      assert (os.execute ("truncate -s 8M " .. path .. " && printf data | dd of=" .. path
                          .. " bs=1M seek=5 conv=notrunc status=none"))
      assert.matches ("reads nothing: 1 prefetch, ",
                      succeed ("check data --image " .. path))
      assert.matches ("\n1 +5242880 ", succeed ("run data --image " .. path))
      -- What is before a colon is no protocol.
      assert (os.rename (path, directory .. "/disk-10:30.img"))
      assert.matches ("\n1 +5242880 ", succeed (("run data --image '%s/disk-10:30.img'")
                                                 :format (directory)))
      assert (os.rename (directory .. "/disk-10:30.img", path))
      assert.matches ("here and there: 0 prefetches", succeed ("check ahead --size 0"))
      assert.matches ("here and there: 20000 prefetches, 0 %% of the disk; what comes "
                      .. "after 20000 requests was not looked at\n",
                      succeed ("check ahead --size 7E"))
      local trace = write ("t", "5M 4\n")
      assert.matches ("\nt +data ", succeed (("simulate data --image %s --trace %s")
                                              :format (path, trace)))
      assert.matches ("reads up to 9437188, and the image ends at 8388608",
                      fail (1, ("run data --image %s --trace %s")
                                 :format (path, write ("t", "9M 4\n"))))
      assert.matches ("%-%-image: .*none: No such file", fail (1, "run data --image "
                                                            .. directory .. "/none"))
      assert.matches ("a file expected", fail (1, "check data --image nbd://nowhere"))
    end)

    it ("notes prefetches that are hardly meant", function ()
      local path = write ("p.lua", "return function (d) d:prefetch (d.size - 1) end")
      assert.matches ("note  it prefetches as little as 1 bytes",
                      succeed ("check " .. path))
      -- A disk may end like that.
      path = write ("p.lua", "return function (d) d:prefetch (0) end")
      assert.is_nil (succeed ("check " .. path .. " --size 100"):find ("note", 1, true))
    end)

    it ("notes globals", function ()
      local out = succeed ("check " .. write ("p.lua", "leak = 1 return print"))
      assert.matches ("note  it makes globals, .*: leak;", out)
      local path = write ("p.lua", [[_G["\27[2J\xc2\x9b"] = 1 return print]])
      out = succeed ("check " .. path)
      assert.matches ("it makes globals, .*: \\x1b%[2J\\xc2\\x9b;", out)
    end)

    it ("notes what a policy warns of", function ()
      local trace = write ("trace", "1T 4K\n2T 4K\n")
      assert.matches ("note  it warns: scan%-file%-trace: of 2 ranges, 2 lie beyond "
                      .. "the end of the disk %(%d+ bytes%)",
                      succeed ("check replay --file trace=" .. trace))
      assert.matches ("note  it warns: scan%-file%-trace: there are no reads in it\n",
                      succeed ("check replay --file trace=" .. write ("trace", "")))
    end)

    it ("hands over arguments and files", function ()
      local path = write ("p.lua", [[
        local args = ...
        assert (args.a == "1" and args.b == "x=y" and scan.open ("f"):read () == "text")
        return function () end]])
      local file = write ("file", "text")
      succeed (("check %s --arg a=1 --arg b=x=y --file f=%s"):format (path, file))
      assert.matches ("%-%-file: .*none: No such file", fail (1, "check default --file f="
                                                            .. directory .. "/none"))
      assert.matches ("%-%-file: there is a file 'f' already;",
                      fail (1, ("check %s --file f=%s --file f=%s")
                                 :format (path, file, file)))
    end)

    it ("reads no file that the server would not", function ()
      local path = write ("large", "")
      assert (os.execute ("truncate -s 257M " .. path))
      assert.matches ("%-%-file: .*large: larger than 256M, the most that is read\n",
                      fail (1, "check default --file x=" .. path))
    end)
  end)

  describe ("run", function ()
    it ("prints the prefetches, and why there are no more", function ()
      local out = succeed ("run default --size 10M --read 1:4M:4")
      assert.matches ("\n2  4194308  2097152 +2\n", out)
      assert.matches ("4 prefetches; the policy has finished\n", out)
      assert.matches ("2 prefetches; the client has gone\n",
                      succeed ("run forever --size 10M --close 2"))
      assert.matches ("2 prefetches; the client has gone\n",
                      succeed ("run forever --size 10M --close 15ms"))
      -- While the 3rd prefetch is in flight, which begins after 20 ms.
      assert.matches ("\n4 +6291456 ", succeed ("run ahead --size 16M --read 25ms:0:4M"))
      assert.matches ("\n4 +8388608 ", succeed ("run ahead --size 16M --read 25ms:6M:2M"))
      assert.matches ("\n2 +8388609 ", succeed ("run ahead --size 16M --trace "
                                                .. write ("t", "8M 1\n")))
      local waits = write ("p.lua", "return function (disk) disk:wait () end")
      assert.matches ("0 prefetches; the policy waits", succeed ("run " .. waits))
    end)

    it ("goes on for as long as a disk is, and no longer", function ()
      assert.matches ("131072 prefetches; the policy has finished\n",
                      succeed ("run reverse --size 256G"))
      assert.matches ("gave up after 100020 requests .*hint: .*%-%-close N",
                      fail (1, "run forever --size 10M"))
    end)

    it ("takes blocks and threads", function ()
      assert.matches ("10 prefetches", succeed ("run clock --size 10M --block 1M"))
      succeed ("run clock --threads 64")
    end)
  end)

  describe ("simulate", function ()
    it ("makes a table of policies against traces", function ()
      local out = succeed (("simulate default clock --trace %s --trace %s")
                             :format (TRACE, "tests/traces/nbdcopy.log"))
      local lines = {}
      for line in out:gmatch ("[^\n]+") do lines[#lines + 1] = line end
      assert.equal (9, #lines)
      assert.matches ("^trace +policy +time +faster +hit +late +miss", lines[1])
      assert.matches ("^fsck +%(none%) .* 1.00 x +0 %% +0 %% +100 %%", lines[2])
      assert.matches ("^fsck +default ", lines[3])
      assert.matches ("^nbdcopy +%(ideal%)", lines[9])
    end)

    it ("takes the disk's size from a log, or as told", function ()
      local log = write ("t", [[
2026-01-01 00:00:00.000000 connection=1 Connect export="" tls=0 size=0x800000 maxsize=0x0
2026-01-01 00:00:00.000000 connection=1 Read id=1 offset=0x0 count=0x200 ...
2026-01-01 00:00:00.000000 connection=1 ...Read id=1 return=0
2026-01-01 00:01:00.000000 connection=1 Read id=2 offset=0x0 count=0x200 ...
]])
      assert.matches ("clock .* 8 MiB", succeed ("simulate clock --trace " .. log))
      assert.matches ("clock .* 3 MiB", succeed ("simulate clock --size 3M --trace "
                                                .. log))
    end)

    it ("takes arguments of one policy after its name", function ()
      local out = succeed ("simulate default,ahead=false,clock=true default --trace "
                           .. TRACE)
      assert.matches ("fsck +default,ahead=false,clock=true ", out)
      assert.matches ("scan%-arg%-ahead: true or false expected, got 'perhaps'",
                      fail (1, "simulate default,ahead=perhaps --trace " .. TRACE))
    end)

    it ("takes the source and the clients as told", function ()
      local function seconds (options)
        return succeed ("simulate default --trace " .. write ("t", "0 1M\n1M 1M\n") .. " "
                        .. options):match ("%(none%) +([%d.]+ %a+) ")
      end
      assert.equal ("2.02 s", seconds ("--latency 1s --bandwidth 100M"))
      assert.equal ("4 s", seconds ("--latency 1 --bandwidth 1M"))
      assert.equal ("3 s", seconds ("--latency 1 --bandwidth 1M --depth 2"))
      assert.equal ("6 s", seconds ("--latency 1 --bandwidth 1M --think 1"))
      assert.equal ("5 s", seconds ("--latency 1 --bandwidth 1M --clients 2 --slots 2"))
      assert.equal ("8 s", seconds ("--latency 1 --bandwidth 1M --clients 2 --slots 1"))
    end)
  end)

  describe ("plot", function ()
    it ("writes an SVG, to a file or to standard output", function ()
      local path = directory .. "/p.svg"
      assert.matches ("p.svg: 24 reads, %d+ prefetches\n",
                      succeed ("plot default --trace " .. TRACE .. " -o " .. path))
      assert.matches ("^<svg .*</svg>\n$", read (path))
      assert.equal (read (path), succeed ("plot default --trace " .. TRACE))
    end)

    it ("shows one trace", function ()
      assert.is_nil (succeed ("plot --help"):match ("%-%-trace FILE [^\n]*several"))
      assert.matches ("%-%-trace' must be used 1 time",
                      fail (2, "plot default --trace a --trace b"))
      assert.matches ("%-%-trace' must be used at most 1 time",
                      fail (2, "run default --trace a --trace b"))
    end)

    it ("says what it can't write", function ()
      assert.matches ("%-%-output: .*No such file",
                      fail (1, "plot default --trace " .. TRACE .. " -o /no/such/p.svg"))
    end)
  end)

  describe ("new", function ()
    it ("writes a policy that checks, and a spec that passes", function ()
      local name = directory .. "/fresh"
      local out = succeed ("new " .. name)
      assert.matches ("wrote .*/fresh.lua and .*/fresh_spec.lua", out)
      succeed ("check " .. name .. ".lua")
      assert.equal (0, select (2, read (name .. "_spec.lua"):gsub ("@%u+@", "")))
      local ok = os.execute (("LUA_PATH='%s;;' busted --lua=%s "
                              .. "%s_spec.lua >%s/busted 2>&1")
                               :format (LUA_PATH, LUA, name, directory))
      assert.is_true (ok, read (directory .. "/busted"))
    end)

    it ("never overwrites", function ()
      write ("old_spec.lua", "precious")
      assert.matches ("old_spec.lua exists already",
                      fail (1, "new " .. directory .. "/old"))
      assert.equal ("precious", read (directory .. "/old_spec.lua"))
      assert.is_nil (io.open (directory .. "/old.lua"))
    end)

    it ("refuses names that are none, or mean another policy", function ()
      assert.matches ("NAME: letters", fail (1, "new 'a b'"))
      assert.matches ("NAME: 'reverse' is a built%-in", fail (1, "new reverse"))
      assert.matches ("NAME: 'data' is a built%-in", fail (1, "new data.lua"))
      succeed ("new " .. directory .. "/reverse")
      succeed ("check " .. directory .. "/reverse.lua")
    end)
  end)

  it ("takes no reads outside of the disk", function ()
    assert.matches ("%-%-read: a range inside the disk %(size 1048576%) expected, got "
                    .. "104857600:4096",
                    fail (1, "run default --size 1M --read 0:100M:4K"))
    for _, command in ipairs { "check", "run" } do
      assert.matches ("%-%-size: at least %d+ expected, for so far does %-%-trace read, "
                      .. "got 1048576", fail (1, ("%s default --size 1M --trace %s")
                                                   :format (command, TRACE)))
    end
  end)

  it ("names the flag at fault", function ()
    local cases = {
      ["run default --size many"] = "%-%-size: a size like 64K, .*got 'many'",
      ["run default --size -1"] = "%-%-size: a size like 64K, .*got '%-1'",
      ["simulate default --trace x --think -.5s"] = "%-%-think: a time .*got '%-.5s'",
      ["run default --block 256"] = "%-%-block: a power of two from 512 to 32M .*'256'",
      ["run default --block 3000"] = "%-%-block: a power of two .*got '3000'",
      ["check default --block 64M"] = "%-%-block: a power of two .*got '64M'",
      ["run default --threads '2 '"] = "%-%-threads: a whole number .*got '2 '",
      ["run default --threads 65"] = "%-%-threads: a whole number from 1 up to 64",
      ["run default --read 3:x:1"] = "%-%-read: N:OFFSET:COUNT like 3:16M:4K",
      ["run default --read 3x:1:1"] = "or TIME:OFFSET:COUNT like 20ms:16M:4K",
      ["run default --close x"] = "%-%-close: a number of prefetches like 8, or a",
      ["run default --arg x"] = "%-%-arg: NAME=VALUE expected, got 'x'",
      ["simulate default"] = "%-%-trace",
      ["simulate default --trace x --latency soon"] = "%-%-latency: a time like 20ms",
      ["frobnicate"] = "frobnicate",
      [""] = "command",
    }
    for command, expected in pairs (cases) do
      assert.matches ("^scan%-policy: .*" .. expected, fail (2, command))
    end
  end)

  it ("names the file at fault", function ()
    assert.matches ("%-%-trace: /no/such: No such file",
                    fail (1, "simulate default --trace /no/such"))
    assert.matches ("%-%-trace .*/t: trace: line 2: ",
                    fail (1, "simulate default --trace " .. write ("t", "0 1\nx\n")))
    assert.matches ("%-%-trace .*/t: trace: line 1: .* got '\\x1b%[2Jx'\n$",
                    fail (1, "simulate default --trace " .. write ("t", "\27[2Jx\n")))
    assert.matches ("got '\\x07'; see scan%-policy", fail (2, "check x --size '\7'"))
    local image = write ("i", "image")
    assert.matches ("^scan%-policy: TRACE: %.: Is a directory\n$",
                    fail (1, ("translate --from %s --to %s ."):format (image, image)))
    assert.matches ("%-%-trace .*/t: there are no reads in it",
                    fail (1, "simulate default --trace " .. write ("t", "# none\n")))
    assert.matches ("there is no file 'nonesuch' and no built%-in policy",
                    fail (1, "run nonesuch"))
  end)

  it ("runs from another directory, through a link, and installed", function ()
    local link = directory .. "/link"
    os.execute (("ln -s %s/lua/bin/scan-policy %s"):format (here, link))
    assert (os.execute (("cd / && %s %s list >%s/out"):format (LUA, link, directory)))
    assert.matches ("default", read (directory .. "/out"))

    local prefix = directory .. "/usr"
    assert (os.execute (([[
      mkdir -p P/bin P/share/nbdkit-scan-filter-lua
      cp H/lua/bin/scan-policy P/bin
      cp -r H/lua H/policies P/share/nbdkit-scan-filter-lua]]):gsub ("%f[%w][PH]%f[/]",
                                                     { P = prefix, H = here })))
    assert (os.execute (("cd / && %s %s/bin/scan-policy check default >%s/out")
                          :format (LUA, prefix, directory)))
    assert.matches ("ok    loading it", read (directory .. "/out"))
  end)
end)
