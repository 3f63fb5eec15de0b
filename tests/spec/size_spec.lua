-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/size.lua, the one parser of sizes in Lua.

local size = require "scan.size"
local units = require "scan.units"

describe ("scan.size", function ()
  it ("reads decimal numbers with nbdkit's suffixes, and hexadecimal ones", function ()
    local sizes = {
      ["0"] = 0, ["4096"] = 4096, ["8b"] = 8, ["8S"] = 4096, ["4K"] = 4096,
      ["3m"] = 3 << 20, ["2G"] = 2 << 30, ["5t"] = 5 << 40, ["1P"] = 1 << 50,
      ["7E"] = 7 << 60, ["0x1b"] = 27, ["0X1E"] = 30,
      ["9223372036854775807"] = math.maxinteger,
      ["0x7fffffffffffffff"] = math.maxinteger,
    }
    for word, bytes in pairs (sizes) do
      assert.equal (bytes, size.parse (word))
      assert.equal ("integer", math.type (size.parse (word)))
    end
  end)

  it ("knows what is none", function ()
    for _, word in ipairs { "", "K", "x", "-1", "1.5", "1e3", "1KB", "0x", "0x1K", "1 ",
                            "8E", "9223372036854775808", "0x8000000000000000",
                            "0x10000000000000001", "99999999999999999999" } do
      assert.is_nil (size.parse (word), word)
    end
  end)

  it ("lets people write fractions", function ()
    assert.equal (1536 * 1024, units.parse_bytes ("1.5M"))
    assert.equal (27, units.parse_bytes ("0x1b"))
    assert.is_nil (units.parse_bytes ("0.3K"))
    assert.is_nil (units.parse_bytes ("1.5Q"))
  end)
end)
