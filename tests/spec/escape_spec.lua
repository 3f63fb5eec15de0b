-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/kit/scan/escape.lua: as the filter's, which tests/unit/test-escape.c tests.

local escape = require "scan.escape"

describe ("scan.escape", function ()
  it ("leaves what can be shown as it is, in several lines", function ()
    for _, text in ipairs { "", "disk 1", "a\nb\tc", "\\ ' \"", "\u{2603}", "\u{fffd}",
                            "\u{10ffff}" } do
      assert.equal (text, escape.text (text))
    end
  end)

  it ("shows what a terminal would obey, and what is no text", function ()
    for text, expected in pairs {
      ["\27[2J\127"] = "\\x1b[2J\\x7f", ["c\r"] = "c\\x0d", ["\0"] = "\\x00",
      ["\xe2\x98"] = "\\xe2\\x98", ["\xc0\x80"] = "\\xc0\\x80",
      ["\xed\xa0\x80"] = "\\xed\\xa0\\x80", ["\xf5\x80\x80\x80"] = "\\xf5\\x80\\x80\\x80",
      ["\u{9b}"] = "\\xc2\\x9b", ["\u{202e}x"] = "\\xe2\\x80\\xaex",
      ["\u{2603}\xff\u{2603}"] = "\u{2603}\\xff\u{2603}",
    } do
      assert.equal (expected, escape.text (text))
      assert.equal (expected, escape.text (expected))
    end
  end)

  it ("makes one line of several", function ()
    assert.equal ("a b  c\\x1b", escape.line ("a\nb\n\tc\27"))
  end)
end)
