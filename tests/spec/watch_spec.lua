-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

local watch = require "scan.watch"

local MiB = 1024 * 1024

-- A file as the scan filter writes it, for exports with these values.
local function file (exports, pace)
  local lines = { "# HELP nbdkit_scan_size_bytes Size of the disk.",
                  "# TYPE nbdkit_scan_size_bytes gauge" }
  for name, value in pairs (pace or {}) do
    lines[#lines + 1] = ("nbdkit_scan_pace_%s %s"):format (name, value)
  end
  for _, export in ipairs (exports) do
    local label = ('export="%s"'):format (export.label or "")
    for name, value in pairs (export.scan or {}) do
      lines[#lines + 1] = ("nbdkit_scan_%s{%s} %s"):format (name, label, value)
    end
    for name, value in pairs (export.clone or {}) do
      lines[#lines + 1] = ("nbdkit_clone_%s{%s} %s"):format (name, label, value)
    end
    for result, value in pairs (export.results or {}) do
      lines[#lines + 1] = ('nbdkit_scan_reads_by_result_total{%s,result="%s"} %d')
        :format (label, result, value)
    end
    for _, state in ipairs { "waiting", "running", "finished", "failed" } do
      lines[#lines + 1] = ('nbdkit_scan_state{%s,state="%s"} %d')
        :format (label, state, state == (export.state or "running") and 1 or 0)
    end
    lines[#lines + 1] = ('nbdkit_scan_policy_info{%s,policy="%s",error="%s"} 1')
      :format (label, export.policy or "adaptive", export.error or "")
  end
  return table.concat (lines, "\n") .. "\n"
end

local function all (export) return watch.parse (file { export }) end

local function one (export) return all (export)[1] end

describe ("watch.parse", function ()
  it ("tells exports apart, in order of their names", function ()
    local exports = watch.parse (file {
      { label = "b", scan = { size_bytes = 10 } }, { label = "a", state = "finished" },
    })
    assert.same ({ "a", "b" }, { exports[1].name, exports[2].name })
    assert.equal (10, exports[2].scan.size_bytes)
    assert.same ({ "finished", "running" }, { exports[1].state, exports[2].state })
  end)

  it ("takes results, policy and error", function ()
    local export = one { results = { hit = 3, late = 2, miss = 1 },
                         error = "x.lua:1: \\\"no\\\" \\\\" }
    assert.same ({ hit = 3, late = 2, miss = 1 }, export.results)
    assert.equal ("adaptive", export.policy)
    assert.equal ('x.lua:1: "no" \\', export.error)
    assert.is_nil (one {}.error)
  end)

  it ("undoes what escapes a name", function ()
    for label, name in pairs { ['a\\"b'] = 'a"b', ["c\\\\"] = "c\\", ["d\\ne"] = "d\ne",
                               ['{x} 1'] = "{x} 1", ['f\\\\\\"'] = 'f\\"' } do
      assert.equal (name, one { label = label, scan = { size_bytes = 1 } }.name)
    end
  end)

  it ("takes the clone's values beside the scan's", function ()
    local export = one { scan = { size_bytes = 1 }, clone = { present_bytes = 2 } }
    assert.same ({ 1, 2 }, { export.scan.size_bytes, export.clone.present_bytes })
  end)

  it ("passes over what it does not know, and half a line", function ()
    assert.same ({ pace = {} },
                 watch.parse ("x 1\nnode_load1 0.3\nnbdkit_scan_size_bytes{export="))
    assert.same ({ pace = {} }, watch.parse (""))
  end)
end)

describe ("watch.shares", function ()
  it ("add up to the disk", function ()
    local shares = watch.shares (one { scan = {
      size_bytes = 100, covered_bytes = 40, unread_bytes = 30, hole_bytes = 20 } })
    assert.same ({ read = 10, fetched = 30, hole = 20, absent = 40, size = 100 }, shares)
  end)

  it ("count what only the clone has as read", function ()
    local shares = watch.shares (one {
      scan = { size_bytes = 100, covered_bytes = 40, unread_bytes = 30 },
      clone = { present_bytes = 65 } })
    assert.same ({ read = 35, fetched = 30, hole = 0, absent = 35, size = 100 }, shares)
  end)

  it ("stay on the disk where totals were taken at different times", function ()
    local shares = watch.shares (one { scan = {
      size_bytes = 100, covered_bytes = 90, unread_bytes = 95, hole_bytes = 20 } })
    assert.same ({ read = 0, fetched = 90, hole = 10, absent = 0, size = 100 }, shares)
  end)

  it ("are nothing of a disk whose size is not known yet", function ()
    assert.equal (0, watch.shares (one {}).size)
  end)
end)

describe ("watch.cells", function ()
  local function sum (cells)
    return cells.read + cells.fetched + cells.hole + cells.absent
  end

  it ("fill the strip in proportion", function ()
    assert.same ({ read = 10, fetched = 20, hole = 30, absent = 40 },
      watch.cells ({ read = 1, fetched = 2, hole = 3, absent = 4, size = 10 }, 100))
  end)

  it ("show the least share, and are as many as there are", function ()
    for width = 4, 120 do
      local cells = watch.cells ({ read = 1, fetched = 1, hole = 1,
                                   absent = 2 ^ 40 - 3, size = 2 ^ 40 }, width)
      assert.equal (width, sum (cells))
      assert.same ({ 1, 1, 1 }, { cells.read, cells.fetched, cells.hole })
    end
  end)

  it ("are empty for a disk of size 0", function ()
    local cells = watch.cells ({ read = 0, fetched = 0, hole = 0, absent = 0, size = 0 },
                               10)
    assert.equal (10, cells.absent)
  end)
end)

describe ("watch.lines", function ()
  local before = { label = "disk", results = { hit = 10, miss = 10 },
                   scan = { size_bytes = 100 * MiB, covered_bytes = 10 * MiB,
                            prefetched_bytes_total = 10 * MiB,
                            read_bytes_total = 0 } }
  local now = { label = "disk", results = { hit = 19, miss = 11 },
                scan = { size_bytes = 100 * MiB, covered_bytes = 50 * MiB,
                         prefetched_bytes_total = 50 * MiB,
                         read_bytes_total = 4 * MiB } }

  it ("have rates since the last ones, and the hit share of all and lately", function ()
    local lines = watch.lines (all (now), all (before), 2)
    assert.same ({ "disk, running, 50 % of 100 MiB, fetching 20 MiB/s, read 2 MiB/s, "
                   .. "3 s left, hit 63 %, late 0 %, lately hit 90 %" }, lines)
  end)

  it ("have no rates at first, nor when the server began anew", function ()
    local first = watch.lines (all (now), nil, 0)[1]
    assert.equal ("disk, running, 50 % of 100 MiB, hit 63 %, late 0 %", first)
    local anew = watch.lines (all (before), all (now), 2)[1]
    assert.equal ("disk, running, 10 % of 100 MiB, hit 50 %, late 0 %", anew)
  end)

  it ("have no recent hits of a server that began anew and met more reads", function ()
    local line = watch.lines (all { results = { hit = 2, miss = 30 } },
                              all { results = { hit = 10, miss = 10 } }, 2)[1]
    assert.matches ("hit 6 %%, late 0 %%$", line)
    line = watch.lines (all { results = { hit = 30, miss = 2 } },
                        all { results = { hit = 10, miss = 10 } }, 2)[1]
    assert.matches ("hit 94 %%, late 0 %%$", line)
  end)

  it ("say why there is no scan, and what fails", function ()
    assert.matches ("failed: mine.lua:3: oh no", watch.lines (all {
      state = "failed", error = "mine.lua:3: oh no" }, nil, 0)[1], 1, true)
    assert.matches ("7 failed", watch.lines (all {
      scan = { prefetch_failures_total = 7 } }, nil, 0)[1])
  end)

  it ("call a scan stalled when nothing comes of what is in flight", function ()
    local function line (in_flight, quiet)
      return watch.lines (all { scan = { prefetches_in_flight = in_flight,
                                           quiet_seconds = quiet } }, nil, 0)[1]
    end
    assert.matches ("stalled for 42 s", line (1, 42.3))
    assert.not_matches ("stalled", line (0, 42))
    assert.not_matches ("stalled", line (3, 1))
  end)

  it ("show the clone where there is one", function ()
    local line = watch.lines (all {
      scan = { size_bytes = MiB },
      clone = { present_bytes = MiB / 2, not_kept_total = 2, broken = 1 } }, nil, 0)[1]
    assert.matches ("clone has 50 %, 2 not kept, CLONE BROKEN", line, 1, true)
  end)

  it ("show what is known of the line that all exports share", function ()
    local pace = { window_bytes = 1.5 * MiB, piece_bytes = 65536,
                   bandwidth_bytes = 10 * MiB, latency_seconds = 0.02 }
    local lines = watch.lines (watch.parse (file ({ { label = "a" }, { label = "b" } },
                                                  pace)), nil, 0)
    for i = 1, 2 do
      assert.matches ("pace: window 1.5 MiB, pieces of 64 KiB, 10 MiB/s, latency 20 ms",
                      lines[i], 1, true)
    end
    lines = watch.lines (watch.parse (file ({ {} }, { window_bytes = 0,
                                                      piece_bytes = 4096 })), nil, 0)
    assert.matches (", pace: pieces of 4 KiB$", lines[1])
    lines = watch.lines (watch.parse (file ({ {} }, { window_bytes = 0 })), nil, 0)
    assert.not_matches ("pace", lines[1])
  end)
end)

describe ("watch.frame", function ()
  local OPTIONS = { width = 60, height = 24 }

  it ("has a strip as wide as the terminal", function ()
    local lines = watch.frame (all { scan = {
      size_bytes = 100, covered_bytes = 50, unread_bytes = 25 } }, nil, 0, OPTIONS)
    assert.equal ("(default export)  running  policy adaptive", lines[1])
    assert.equal ("[" .. ("#"):rep (14) .. ("="):rep (14) .. ("."):rep (30) .. "]",
                  lines[2])
    assert.equal (watch.LEGEND, lines[#lines])
  end)

  it ("never has a line that is wider, nor more lines than fit", function ()
    local exports = {}
    for i = 1, 30 do
      exports[i] = { label = ("export %02d"):format (i), error = ("long "):rep (40),
                     results = { hit = 1, late = 1 },
                     scan = { size_bytes = MiB, covered_bytes = 1,
                              prefetch_failures_total = 1 } }
    end
    for _, width in ipairs { 20, 60, 200 } do
      local pace = { piece_bytes = 65536, bandwidth_bytes = 1, latency_seconds = 1 }
      local lines = watch.frame (watch.parse (file (exports, pace)), nil, 0,
                                 { width = width, height = 24 })
      assert.is_true (#lines <= 24)
      for _, line in ipairs (lines) do assert.is_true (#line <= width, line) end
      assert.matches ("^and %d+ more$", lines[#lines - 2])
      assert.matches ("^pace: ", lines[#lines - 1])
    end
  end)

  it ("lets no name or message move the cursor, or turn the text around", function ()
    local exports = all { label = "a\27[2Jb\u{9b}", error = "c\27[H\u{202e}\\nd",
                          policy = "p\u{9b}", scan = { size_bytes = 1 } }
    for _, lines in ipairs { watch.frame (exports, nil, 0, OPTIONS),
                             watch.lines (exports, nil, 0) } do
      local text = table.concat (lines, "\n")
      assert.is_nil (text:find ("[\27\x9b\xe2]"))
      assert.truthy (text:find ("a\\x1b[2Jb\\xc2\\x9b", 1, true))
      assert.truthy (text:find ("failed: c\\x1b[H\\xe2\\x80\\xae d", 1, true))
    end
  end)

  it ("says when there is nothing yet", function ()
    assert.equal ("no export has been scanned yet",
                  watch.frame (watch.parse (""), nil, 0, OPTIONS)[1])
  end)
end)

describe ("watch.run", function ()
  -- Goes through what there is to read, one a frame: a text and when it was written,
  -- or nil and a message.
  local function run (readings, more)
    local written, at, slept = {}, 0, {}
    local system = {
      terminal = false,
      read = function ()
        at = at + 1
        return readings[at][1], readings[at][2]
      end,
      clock = function () return 110 end,
      sleep = function (seconds) slept[#slept + 1] = seconds return at < #readings end,
      write = function (text) written[#written + 1] = text end,
      size = function () return 60, 24 end,
      date = function () return "12:00:00" end,
    }
    for name, value in pairs (more or {}) do system[name] = value end
    local ok, message = watch.run (system, { interval = 2 })
    return written, ok, message, slept
  end
  local A = file { { scan = { size_bytes = MiB, prefetched_bytes_total = 0 } } }
  local B = file { { scan = { size_bytes = MiB, prefetched_bytes_total = MiB } } }

  it ("prints lines with the time where there is no terminal", function ()
    local written, ok, _, slept = run { { A, 100 }, { B, 102 } }
    assert.is_true (ok)
    assert.same ({ 2, 2 }, slept)
    assert.equal ("12:00:00 (default export), running, 0 % of 1 MiB\n", written[1])
    assert.matches ("fetching 512 KiB/s", written[2])
    assert.is_nil (table.concat (written):find ("\27", 1, true))
  end)

  it ("has rates between writes of the file, however often it looks", function ()
    local written = run { { A, 100 }, { A, 100 }, { B, 105 }, { B, 105 }, { B, 110 } }
    assert.not_matches ("fetching", written[2])
    assert.matches ("fetching 205 KiB/s", written[3])
    assert.equal (written[3], written[4])
    assert.matches ("fetching 0 bytes/s", written[5])
  end)

  it ("draws over the frame before on a terminal", function ()
    local written = run ({ { A, 100 }, { B, 105 } }, { terminal = true })
    local _, height = written[1]:gsub ("\n", "")
    assert.equal ("\r\27[J", written[1]:sub (1, 4))
    local up = ("\27[%dA\r\27[J"):format (height)
    assert.equal (up, written[2]:sub (1, #up))
  end)

  it ("never writes more on a terminal than it draws over", function ()
    local exports = {}
    for i = 1, 10 do
      exports[i] = { label = "export " .. i, scan = { size_bytes = MiB } }
    end
    local gone = { nil, "/a/path/that/is/longer/than/the/terminal/is/wide: No such file" }
    for _, size in ipairs { { 20, 24 }, { 20, 6 }, { 80, 24 }, { 7, 3 } } do
      local written = run ({ { file (exports), 20 }, gone, { file (exports), 20 } }, {
        terminal = true, size = function () return size[1], size[2] end,
      })
      for _, frame in ipairs (written) do
        local text, rows = frame:gsub ("^[^J]*J", ""):gsub ("\27%[%d+m", ""), 0
        for line in text:gmatch ("([^\n]*)\n") do
          rows = rows + 1
          assert.is_true (#line <= size[1], line)
        end
        -- The cursor stands in the one behind.
        assert.is_true (rows < size[2], frame)
      end
      local message = written[2]:gsub ("\n", "")
      if size[2] == 24 then assert.matches (gone[2], message, 1, true) end
    end
  end)

  it ("fails if there is no file at first, and waits for it later", function ()
    local gone = { nil, "x: No such file" }
    local _, ok, message = run { gone }
    assert.same ({ false, "x: No such file" }, { ok, message })
    local written, ok_later = run { { A, 100 }, gone, { B, 104 } }
    assert.is_true (ok_later)
    assert.equal ("12:00:00 x: No such file\n", written[2])
    assert.matches ("fetching 256 KiB/s", written[3])
  end)

  it ("tells of a file that nobody writes any more", function ()
    local written = run { { A, 20 } }
    assert.matches ("last written 90 s ago: has the server ended?", written[2], 1, true)
    assert.equal (1, #run { { A, 100 } })
  end)
end)
