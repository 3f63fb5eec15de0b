-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/args.lua: reading scan-arg-NAME=VALUE.

local arguments = require "scan.args"

local function message_of (name, ...)
  local call = table.pack (...)
  local ok, message = pcall (function ()
    return (arguments[name] (table.unpack (call, 1, call.n)))
  end)
  assert.is_false (ok)
  return message
end

describe ("scan.args", function ()
  it ("gives the default for what was not given", function ()
    assert.is_true (arguments.boolean ({}, "x", true))
    assert.equal (1.5, arguments.number ({}, "x", 1.5))
    assert.equal (7, arguments.integer ({}, "x", 7))
    assert.equal (512, arguments.size ({}, "x", 512))
    assert.equal ("up", arguments.choice ({}, "x", "up", { "up", "down" }))
  end)

  it ("has no opinion on a default of nil", function ()
    assert.is_nil (arguments.integer ({}, "x", nil, 1, 5))
    assert.is_nil (arguments.size ({}, "x", nil))
  end)

  it ("says where what it needs was forgotten", function ()
    for _, call in ipairs { { "size", "x", "1M" }, { "boolean" }, { "check_known" } } do
      assert.matches ("args_spec.lua:%d+: scan.args: the table of the policy's arguments",
                      message_of (table.unpack (call)))
    end
    assert.matches ("list of words expected, got nil",
                    message_of ("choice", {}, "x", "a"))
    assert.matches ("list of names expected, got 'x', a string",
                    message_of ("check_known", {}, "x"))
  end)

  it ("holds a default to what is allowed", function ()
    assert.equal (65536, arguments.size ({}, "x", "64K"))
    for _, call in ipairs {
      { "boolean", "maybe" }, { "number", 9, 0, 5 }, { "number", "x" },
      { "integer", 1.5 }, { "integer", 0, 1 }, { "size", 100, 512 }, { "size", "64X" },
      { "size", 4096, 512, 1024 }, { "choice", "left", { "up", "down" } },
    } do
      assert.matches ("scan%-arg%-x: the policy's default: .* expected, got '"
                      .. tostring (call[2]) .. "'",
                      message_of (call[1], {}, "x", table.unpack (call, 2)))
    end
  end)

  it ("reads booleans as nbdkit spells them, in any case", function ()
    for _, word in ipairs { "1", "true", "T", "yes", "Y", "On" } do
      assert.is_true (arguments.boolean ({ x = word }, "x", false))
    end
    for _, word in ipairs { "0", "false", "F", "no", "N", "Off" } do
      assert.is_false (arguments.boolean ({ x = word }, "x", true))
    end
    assert.matches ("scan%-arg%-x: true or false expected, got 'maybe'",
                    message_of ("boolean", { x = "maybe" }, "x", true))
  end)

  it ("reads numbers and checks both bounds", function ()
    assert.equal (0.25, arguments.number ({ x = "0.25" }, "x", 1, 0, 1))
    for _, word in ipairs { "-0.1", "1.1", "one", "nan", "" } do
      assert.matches ("scan%-arg%-x: a number from 0 up to 1 expected, got '"
                      .. word:gsub ("%p", "%%%0") .. "'",
                      message_of ("number", { x = word }, "x", 1, 0, 1))
    end
  end)

  it ("takes whole numbers only where a whole number is meant", function ()
    assert.equal ("integer", math.type (arguments.integer ({ x = "3" }, "x", 1)))
    assert.equal (16, arguments.integer ({ x = "0x10" }, "x", 1))
    assert.matches ("scan%-arg%-x: a whole number expected, got '1.5'",
                    message_of ("integer", { x = "1.5" }, "x", 1))
  end)

  it ("drops no digit of a number in hexadecimal", function ()
    assert.equal (-16, arguments.integer ({ x = " -0x10 " }, "x", 1))
    assert.equal (math.maxinteger,
                  arguments.integer ({ x = "0x7fffffffffffffff" }, "x", 1))
    for _, word in ipairs { "0x10000000000000005", "0xffffffffffffffff" } do
      assert.matches ("a whole number expected, got '" .. word .. "'",
                      message_of ("integer", { x = word }, "x", 1))
      assert.matches ("a number expected, got '" .. word .. "'",
                      message_of ("number", { x = word }, "x", 1))
    end
  end)

  it ("says that arguments have names", function ()
    assert.matches ("args_spec.lua:%d+: scan.args: .* strings as names, .* got 1$",
                    message_of ("check_known", { "order=time" }, { "order" }))
  end)

  it ("reads sizes with nbdkit's suffixes", function ()
    local sizes = { ["100"] = 100, ["100b"] = 100, ["2s"] = 1024, ["64K"] = 65536,
                    ["2m"] = 2097152, ["1G"] = 2^30, ["1T"] = 2^40, ["1P"] = 2^50 }
    for word, bytes in pairs (sizes) do
      local n = arguments.size ({ x = word }, "x", 0)
      assert.equal (bytes, n)
      assert.equal ("integer", math.type (n))
    end
  end)

  it ("refuses sizes that are none, too small or no whole number of bytes", function ()
    for _, word in ipairs { "", "K", "-1", "1.3", "2X", "99999P" } do
      assert.matches ("scan%-arg%-x: a size like 64K or 2M expected, got '",
                      message_of ("size", { x = word }, "x", 0))
    end
    assert.matches ("of at least 512 bytes expected, got '100'",
                    message_of ("size", { x = "100" }, "x", 0, 512))
  end)

  it ("takes one of the words allowed", function ()
    assert.equal ("down", arguments.choice ({ x = "down" }, "x", "up", { "up", "down" }))
    assert.matches ("scan%-arg%-x: one of up, down expected, got 'left'",
                    message_of ("choice", { x = "left" }, "x", "up", { "up", "down" }))
  end)

  it ("names an argument that nobody knows, and those that are known", function ()
    arguments.check_known ({ a = "1" }, { "a", "b" })
    assert.matches ("scan%-arg%-aa: this policy has no such argument; it knows: a, b",
                    message_of ("check_known", { zz = "1", aa = "2", a = "3" },
                                { "a", "b" }))
    -- The same name every time, however the table is laid out.
    local many = {}
    for i = 10, 99 do many["x" .. i] = "1" end
    assert.matches ("scan%-arg%-x10: ", message_of ("check_known", many, {}))
    assert.matches ("it knows: none", message_of ("check_known", { zz = "1" }, {}))
  end)

  it ("knows the arguments of another policy by what comes before the dot", function ()
    arguments.check_known ({ ["then.a"] = "1" }, { "then.*" })
    for _, name in ipairs { "then", "then.", "thena", "other.a" } do
      assert.matches (name .. ": this policy has no such argument",
                      message_of ("check_known", { [name] = "1" }, { "then.*" }))
    end
  end)

  it ("blames the line of the policy", function ()
    for name, value in pairs { boolean = true, number = 1, integer = 1, size = 1 } do
      local chunk = assert (load (([[
        local arguments, args = ...
        local one = 1
        return one + arguments.%s (args, "x", %s)]]):format (name, value), "@mine.lua"))
      local ok, message = pcall (chunk, arguments, { x = "?" })
      assert.is_false (ok)
      assert.matches ("^mine.lua:3: scan%-arg%-x", message)
    end
  end)
end)
