-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/trickle.lua: how much is fetched beside a client, and when not.

local trickle = require "scan.trickle"

local KiB, MiB = 1024, 1024 * 1024

-- So many reads of 20 ms, all lone ones unless said otherwise.
local function read (little, count, options)
  options = options or {}
  for _ = 1, count do
    little:read (not options.in_a_row)
    little:took (options.seconds or 0.02)
  end
end

local function ready (options)
  local little = trickle.new (2 * MiB)
  -- Nothing is known of the first read's time when it is seen.
  read (little, 1, { in_a_row = options and options.in_a_row, seconds = 0 })
  read (little, 7, options)
  return little
end

-- Fetch pieces that take so long; returns their sizes.
local function fetch (little, count, seconds_of)
  local sizes = {}
  for i = 1, count do
    sizes[i] = little:bytes ()
    if not sizes[i] then break end
    little:fetched (seconds_of (sizes[i]), sizes[i], 1)
  end
  return sizes
end

describe ("trickle", function ()
  it ("knows the client first", function ()
    local little = trickle.new (2 * MiB)
    for _ = 1, 8 do
      assert.is_nil (little:bytes ())
      read (little, 1)
    end
    assert.equal (64 * KiB, little:bytes ())
  end)

  it ("is for lone reads", function ()
    local little = ready { in_a_row = true }
    assert.is_nil (little:bytes ())
    read (little, 8)
    assert.is_truthy (little:bytes ())
    read (little, 3, { in_a_row = true })
    assert.is_nil (little:bytes ())
  end)

  it ("has nothing to give to a client whose reads are fast", function ()
    assert.is_nil (ready { seconds = 0.001 }:bytes ())
  end)

  it ("grows pieces as long as their time is latency, up to a block", function ()
    local sizes = fetch (ready (), 4, function () return 0.02 end)
    assert.same ({ 64 * KiB, 256 * KiB, MiB, 2 * MiB }, sizes)
  end)

  it ("keeps them no longer on the line than the latency is", function ()
    for _, megabytes in ipairs { 1, 10, 50, 125, 1000 } do
      local line = megabytes * 1e6
      local sizes = fetch (ready (), 100, function (bytes) return 0.02 + bytes / line end)
      for i, bytes in ipairs (sizes) do
        -- The first is to find out.
        assert.is_true (i == 1 or bytes / line <= 0.0181)
      end
      local last = sizes[#sizes]
      if megabytes == 1 then
        assert.equal (64 * KiB, last)
      elseif last < 2 * MiB then
        assert.is_true (last / line > 0.008)
      end
    end
  end)

  it ("takes more ranges at a time as long as they take no longer", function ()
    -- A source that does three things at a time.
    local little = ready ()
    local count = {}
    for _ = 1, 200 do
      local bytes, ranges = little:bytes ()
      count[ranges] = (count[ranges] or 0) + 1
      little:fetched (ranges > 3 and 0.04 or 0.02, bytes, ranges)
    end
    assert.is_true (count[3] > 150)
    assert.is_true (count[4] >= 4 and count[4] <= 7)
    assert.is_nil (count[5])
    -- One that does many.
    little = ready ()
    for _ = 1, 20 do
      local bytes, ranges = little:bytes ()
      little:fetched (0.02, bytes, ranges)
    end
    assert.same ({ 2 * MiB, 8 }, { little:bytes () })
    -- Fewer than it gave say nothing about more.
    little = ready ()
    for _ = 1, 20 do little:fetched (0.02, little:bytes (), 0) end
    assert.equal (1, select (2, little:bytes ()))
  end)

  it ("learns nothing from less than it gave", function ()
    local little = ready ()
    for _ = 1, 10 do little:fetched (0.02, 16 * KiB, 1) end
    assert.equal (64 * KiB, little:bytes ())
  end)

  it ("takes smaller pieces where they become slower, and tries again", function ()
    local sizes = fetch (ready (), 80, function (bytes)
      return bytes > MiB and 0.05 or 0.02
    end)
    local count = {}
    for _, bytes in ipairs (sizes) do count[bytes] = (count[bytes] or 0) + 1 end
    assert.is_true (count[MiB] > 60)
    assert.is_true (count[2 * MiB] >= 6 and count[2 * MiB] <= 9)
  end)

  it ("does not mind one that takes longer", function ()
    local n = 0
    local sizes = fetch (ready (), 40, function ()
      n = n + 1
      return n % 4 == 0 and 0.04 or 0.02
    end)
    assert.equal (2 * MiB, sizes[40])
  end)

  it ("leaves the client alone if the first piece waits for a read", function ()
    local little = ready ()
    little:fetched (0.04, 64 * KiB, 1)
    assert.is_nil (little:bytes ())
    read (little, 255)
    assert.is_nil (little:bytes ())
    read (little, 1)
    assert.equal (64 * KiB, little:bytes ())
    little:fetched (0.04, 64 * KiB, 1)
    read (little, 511)
    assert.is_nil (little:bytes ())
  end)

  it ("leaves the client alone if its reads take longer", function ()
    local little = ready ()
    for _ = 1, 16 do
      fetch (little, 1, function () return 0.02 end)
      read (little, 1, { seconds = 0.03 })
    end
    assert.is_nil (little:bytes ())
  end)

  it ("goes on if its reads take less long", function ()
    local little = ready ()
    for _ = 1, 100 do
      fetch (little, 1, function () return 0.02 end)
      read (little, 1, { seconds = 0.001 })
    end
    assert.equal (2 * MiB, little:bytes ())
  end)

  it ("does with small blocks", function ()
    local little = trickle.new (4096)
    read (little, 8)
    assert.equal (4096, little:bytes ())
    fetch (little, 10, function () return 0.02 end)
    assert.equal (4096, little:bytes ())
  end)
end)
