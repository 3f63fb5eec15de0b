-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- docs/reference, and the doc comments that it is made from.

local images = dofile ("tests/spec/images.lua")

local FILES = "lua/runtime/scan/{host,sandbox,file}.lua lua/library/scan/*.lua "
  .. "lua/kit/scan/{testing,contract,simulator,plot}.lua"

local function page_of (files)
  return images.output (("bash -c 'lua5.4 docs/reference %s'"):format (files))
end

-- The functions of a file that others may call, and their arguments.
local function public_functions (path)
  local functions, above = {}, ""
  for line in io.lines (path) do
    local name, arguments = line:match ("^function ([%w_.:]+) (%b())")
    if name then
      functions[#functions + 1] = { name = name, arguments = arguments, comment = above }
    end
    above = line:match ("^%s*%-%-") and above .. line .. "\n" or ""
  end
  return functions
end

local function library ()
  return images.output ("ls lua/library/scan/*.lua"):gmatch ("%S+")
end

describe ("the reference", function ()
  local page

  setup (function () page = page_of (FILES) end)

  it ("has every public function of the library", function ()
    for path in library () do
      for _, fn in ipairs (public_functions (path)) do
        local name = fn.name:match ("[%w_]+$")
        assert.is_truthy (page:find ("=item C<[%w_]+[.:]" .. name .. " ?%("),
                          path .. ": " .. fn.name .. " has no doc comment")
      end
    end
  end)

  it ("has what policies see of the modules that run them, and no more", function ()
    for _, title in ipairs { "scan.open (name)", "scan.words (s)", "scan.warn (message)",
                             "scan.policy (name [, args])", "file:read ([count])",
                             "file:lines ()", "file:rows (columns, log, parse)",
                             "disk:prefetch (offset [, count])", "disk:now ()" } do
      assert.is_truthy (page:find ("=item C<" .. title .. ">", 1, true), title)
    end
    for _, name in ipairs { "sandbox", "file.new", "host" } do
      assert.is_nil (page:find ("=item C<" .. name, 1, true), name)
    end
  end)

  it ("has the arguments that the functions have", function ()
    for path in library () do
      for _, fn in ipairs (public_functions (path)) do
        local documented = {}
        for name in fn.comment:gmatch ("@tparam%S* %S+ ([%w_.]+)") do
          documented[#documented + 1] = name
        end
        if #documented > 0 or fn.arguments == "()" then
          assert.equal (fn.arguments, "(" .. table.concat (documented, ", ") .. ")",
                        path .. ": " .. fn.name)
        end
      end
    end
  end)

  it ("has the disk, the options of testing.run, and the contract's", function ()
    for _, text in ipairs {
      "=item C<disk:prefetch (offset [, count])>", "=item C<disk:reads ()>",
      "=item C<disk:closed ()>", "=item C<testing.run (options)>",
      "C<prefetch_seconds>: how long each is",
      "=item C<require \"scan.contract\" (policy [, options])>",
      "=item C<args.number (args, name, default [, least [, most]])>",
    } do
      assert.is_truthy (page:find (text, 1, true), text)
    end
  end)

  it ("has text, and no code, behind code", function ()
    assert.is_truthy (page:find ("\n     [^\n]+\n\nCalled in a spec, at the top"))
    assert.is_nil (page:match ("\n     [^\n]+\n(%S[^\n]*)"))
    assert.is_truthy (page:find ("a I<hit> if all", 1, true))
  end)

  it ("is POD without faults", function ()
    if not images.have ("podchecker") then return pending ("podchecker is not here") end
    local path = os.tmpname ()
    local handle = assert (io.open (path, "w"))
    handle:write (page)
    handle:close ()
    local said = images.output ("(podchecker -warnings " .. path .. " 2>&1)")
    os.remove (path)
    assert.matches ("pod syntax OK", said)
    assert.is_nil (said:find ("WARNING", 1, true), said)
  end)

  it ("calls nothing by the name that it has inside of its module", function ()
    assert.is_nil (page:match ("[^\n]*%f[%w]M%.%a[^\n]*"))
  end)

  it ("is not made of a file without a module", function ()
    local path = os.tmpname ()
    local said = images.output ("(lua5.4 docs/reference " .. path .. " 2>&1)")
    os.remove (path)
    assert.matches ("there is no comment with @module", said)
  end)
end)
