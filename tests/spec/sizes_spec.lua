-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/sizes.lua

local sizes = require "scan.sizes"

describe ("scan.sizes", function ()
  it ("reads decimal and hexadecimal numbers, and nbdkit's suffixes", function ()
    for word, bytes in pairs {
      ["0"] = 0, ["4096"] = 4096, ["0x10"] = 16, ["0X1b"] = 27, ["0x1e"] = 30,
      ["100b"] = 100, ["2s"] = 1024, ["64K"] = 65536, ["2m"] = 2097152, ["1G"] = 1 << 30,
      ["1t"] = 1 << 40, ["1P"] = 1 << 50, ["7E"] = 7 << 60, ["1.5m"] = 1572864,
      ["0.5k"] = 512, ["9007199254740993.0"] = 9007199254740993,
      ["7.0000000000000000008673617379884035472059622406959533691406250E"]
        = 7 << 60 | 1, ["007.500K"] = 7680, ["9223372036854775807"] = math.maxinteger,
      ["0x7fffffffffffffff"] = math.maxinteger, ["0x00000000000000001000"] = 4096,
      ["00000000000000000000004096"] = 4096,
    } do
      local n = sizes.parse (word)
      assert.equal (bytes, n, word)
      assert.equal ("integer", math.type (n))
    end
  end)

  it ("gives nil for what is no size, or more than an integer holds", function ()
    for _, word in ipairs {
      "", "K", "1X", "-1", "1.3", "1.", ".5K", "1 K", "0x", "0x1K", "1e3", "nan", "8E",
      "9223372036854775808", "99999P", "8192.0P", "0x8000000000000000",
      "0.1E", "0.1000000000000000055511151231257827E", "0.3K", "1.00000000000000000001",
      "0x10000000000000001", "0x0010000000000000001", "1KB", " 1",
    } do
      assert.is_nil (sizes.parse (word), word)
    end
  end)

  it ("says where something else than a string came from", function ()
    for _, value in ipairs { false, 5, {} } do
      local ok, message = pcall (function () return (sizes.parse (value)) end)
      assert.is_false (ok)
      assert.matches ("^tests/spec/sizes_spec.lua:%d+: sizes.parse: a string expected, "
                      .. "got " .. type (value) .. "$", message)
    end
  end)
end)
