-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- What the pages say holds.

local runner = require "scan.runner"
local testing = require "scan.testing"
local world = require "scan.world"

local function read (path)
  local handle = assert (io.open (path, "rb"))
  local text = handle:read ("a")
  handle:close ()
  return text
end

local function output_of (command)
  local handle = assert (io.popen (("LUA_PATH='%s;;' %s 2>&1")
                                     :format (world.LUA_PATH, command)))
  local text = handle:read ("a")
  handle:close ()
  return text
end

describe ("the README", function ()
  it ("shows a policy that gains something for the trace that it names", function ()
    local text = read ("README.md")
    local policy = text:match ("    (%-%- edges.lua.-\n)\n")
    local command = text:match ("    (scan%-policy simulate [^\n]*)")
    local path = os.tmpname ()
    local handle = assert (io.open (path, "w"))
    handle:write ((policy:gsub ("\n    ", "\n")))
    handle:close ()
    local printed = output_of ("lua5.4 lua/bin/" .. command:gsub ("edges.lua", path))
    local checked = output_of ("lua5.4 lua/bin/scan-policy check " .. path)
    os.remove (path)
    assert.is_nil (checked:find ("FAIL") or checked:find ("note"), checked)
    local stock = tonumber (printed:match (" default .- ([%d.]+) x"))
    local own = tonumber (printed:match (path .. " .- ([%d.]+) x"))
    assert (stock and own and own > 1.5 and own > stock, printed)
  end)
end)

describe ("the demo", function ()
  it ("says nothing that is wider than a page", function ()
    for line in io.lines ("tests/demo/demo") do assert (#line <= 90, line) end
  end)

  it ("says what its strip is made of, where it is first shown", function ()
    local story = read ("tests/demo/demo"):match ("%-%- the story .*")
    assert.equal ("show legend", story:match ("\n(show[^\n]*)"))
  end)
end)

describe ("docs/fleet.md", function ()
  it ("simulates what it deploys", function ()
    local text = read ("docs/fleet.md")
    local simulated = text:match ("scan%-policy simulate .-```")
    local deployed = text:match ("scan%-policy=replay scan%-file%-trace=tuesday.-```")
    assert.equal (deployed:match ("scan%-size=(%w+)"),
                  simulated:match ("%-%-block (%w+)"))
    assert.equal (deployed:match ("scan%-threads=(%w+)"),
                  simulated:match ("%-%-threads (%w+)"))
  end)
end)

-- Files and folders of the tree, as far as the pages name them in full.
local ROOTS = { completion = true, debian = true, docs = true, filter = true,
                lua = true, packaging = true, policies = true, tests = true }

local function exists (path)
  local handle = io.open (path)
  if handle then handle:close () end
  return handle ~= nil
end

-- What a page names between backticks: "filter/scan/", "tests/e2e/harness.py".
local function each_path (text)
  local paths = {}
  for code in text:gmatch ("`([^`\n]+)`") do
    for word in code:gmatch ("%S+") do
      if ROOTS[word:match ("^(%w+)/")] and not word:find ("NAME") then
        table.insert (paths, word)
      end
    end
  end
  return ipairs (paths)
end

-- What a block of a manual page holds, by how its first line begins.
local function block_of (page, first)
  local text = "\n" .. read (page)
  local from = assert (text:find ("\n " .. first, 1, true), first)
  local lines = {}
  for line in text:sub (from + 1):gmatch ("([^\n]*)\n") do
    if line:find ("^%S") then break end
    lines[#lines + 1] = line:sub (2)
  end
  return table.concat (lines, "\n")
end

describe ("nbdkit-scan-policy(3)", function ()
  it ("has a test that its example passes", function ()
    local page = "docs/nbdkit-scan-policy.pod"
    local here = output_of ("pwd"):match ("[^\n]+")
    local directory = output_of ("mktemp -d"):match ("[^\n]+")
    local function write (name, text)
      local handle = assert (io.open (directory .. "/" .. name, "w"))
      handle:write (text)
      handle:close ()
    end
    local policy = block_of (page, "-- backwards.lua: ")
    write ("backwards.lua", assert (policy:match ("^(.-\n)nbdkit ")))
    write ("backwards_spec.lua", block_of (page, "local testing = "))
    local printed = output_of (("sh -c 'cd %s && LUA_PATH=\"%s;;\" busted "
      .. "--lua=/usr/bin/lua5.4 backwards_spec.lua'")
      :format (directory, (world.LUA_PATH:gsub ("%f[%w/]lua/", here .. "/lua/"))))
    os.execute ("rm -r " .. directory)
    assert.matches ("1 success / 0 failures / 0 errors", printed)
  end)
end)

describe ("nbdkit-scan-library(3)", function ()
  -- Examples of policies among the comments, with what they may open.
  local files = { boot = "5M 4K\n0 1M\n2M 1M\n", regions = "1M 1M\n" }
  local expected = {
    extents = { prefetches = { { 0, 2^20 }, { 2^21, 2^20 } },
                warning = "of 3 ranges, 1 lie" },
    combinators = { prefetches = { { 2^20, 2^20 }, { 3 * 2^20, 2^20 },
                                   { 2^21, 2^20 }, { 0, 2^20 } } },
  }

  for path in output_of ("ls lua/library/scan"):gmatch ("%S+") do
    local comment = read ("lua/library/scan/" .. path):match ("\n(%-%-%- .-)\n[^-]")
    local code = {}
    for line in comment:gmatch ("[^\n]+") do
      local shown = line:match ("^%-%-     (.*)")
      if not shown and #code > 0 then break end
      code[#code + 1] = shown
    end
    local text = table.concat (code, "\n")
    local name = path:gsub ("%.lua$", "")

    it ("has a policy that runs, of " .. name, function ()
      if not text:find ("%f[%w]return ") then
        assert.is_nil (expected[name])
        return
      end
      local policy, warning = os.tmpname (), ""
      finally (function () os.remove (policy) end)
      local handle = assert (io.open (policy, "w"))
      handle:write (text)
      handle:close ()
      local result = testing.run { policy = policy, size = 4 << 20, block = 1 << 20,
                                   files = files,
                                   warn = function (message) warning = message end }
      assert.is_nil (result.error)
      assert.same (expected[name].prefetches, result.prefetches)
      assert.truthy (warning:find (expected[name].warning or "", 1, true), warning)
    end)
  end
end)

for _, page in ipairs { "docs/design.md", "CONTRIBUTING.md" } do
  describe (page, function ()
    it ("names what there is", function ()
      local found = 0
      for _, path in each_path (read (page)) do
        assert (exists (path), path)
        found = found + 1
      end
      assert (found > 5)
    end)

    it ("links to what there is", function ()
      local folder = page:match ("^(.*/)") or ""
      for target in read (page):gmatch ("%]%(([^)#:]+)[^)]*%)") do
        assert (exists (folder .. target), target)
      end
    end)
  end)
end

describe ("docs/design.md", function ()
  local text = read ("docs/design.md")

  -- The files of a room, by the names in the first column of its table.
  local function named (room)
    local from = assert (select (2, text:find ("\n### filter/" .. room .. "/", 1, true)))
    local names = {}
    for row in text:sub (from, text:find ("\n##", from, true)):gmatch ("\n| ([^|]+) |") do
      for name in row:gmatch ("`([^`]+)`") do names[name:gsub ("%.%a+$", "")] = true end
    end
    return names
  end

  for _, room in ipairs { "scan", "policy", "report", "clone" } do
    it ("tells of every file in filter/" .. room, function ()
      local names = named (room)
      local there = {}
      for path in output_of ("ls filter/" .. room):gmatch ("%S+") do
        local name = path:gsub ("%.%a+$", "")
        there[name] = true
        -- Some are told of beside another.
        assert (names[name] or text:find ("`" .. path .. "`", 1, true), path)
      end
      for name in pairs (names) do assert (there[name], name) end
    end)
  end
end)

describe ("the manual pages", function ()
  for _, page in ipairs { "nbdkit-clone-filter", "nbdkit-scan-filter",
                          "nbdkit-scan-policy", "scan-policy" } do
    it (page .. " has no mark-up where it would be shown as it is", function ()
      for line in read ("docs/" .. page .. ".pod"):gmatch ("[^\n]+") do
        if line:match ("^%s") then assert.is_nil (line:match ("%f[%a][A-Z]<+[^<>]*>")) end
      end
    end)
  end

  it ("say how short a wait can be", function ()
    local page = read ("docs/nbdkit-scan-policy.pod")
    assert.equal (0.001, runner.WAIT_MIN_SECONDS)
    assert.truthy (page:find ("The shortest time is a millisecond;", 1, true))
    -- And how often it comes back for reads.
    assert.truthy (read ("filter/scan/reads.c")
                     :find ("WAKE_INTERVAL_NS (NS_PER_SECOND / 2000)", 1, true))
    assert.truthy (page:find ("twice a millisecond at most", 1, true))
  end)

  it ("say how often a recording looks, and how much of a warning is shown", function ()
    local looks = read ("filter/scan/looker.c"):match ("NS_PER_SECOND / (%d+)")
    for _, page in ipairs { "nbdkit-scan-filter.pod", "design.md" } do
      assert.truthy (read ("docs/" .. page):find (looks .. " times a second", 1, true),
                     page)
    end
    local bytes = read ("filter/policy/vm-native.c"):match ("WARNING_MAX (%d+)") - 1
    for _, page in ipairs { "docs/nbdkit-scan-policy.pod",
                            "lua/runtime/scan/sandbox.lua" } do
      assert.truthy (read (page):find (bytes .. " bytes", 1, true), page)
    end
  end)
end)
