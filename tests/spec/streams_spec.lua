-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

-- lua/library/scan/streams.lua: what is a stream, how far it is followed, and when not.

local streams = require "scan.streams"

local KiB, MiB = 1024, 1024 * 1024

-- A disk that does nothing: the spec moves its clock and hands it reads.
local function new_disk (options)
  local disk = {
    size = 1 << 40, block = 2 * MiB, time = 0, queue = {}, fetched = {},
    fetch_seconds = options and options.fetch_seconds or 0.02,
    threads = options and options.threads,
  }
  function disk.now () return disk.time end
  function disk.reads_in_flight ()
    return (disk.idle_seconds or 0) > 0 and 0 or disk.depth or 1
  end
  -- No clock stands still.
  function disk.settle ()
    disk.time = disk.time + (disk.threads and disk.fetch_seconds or 0.0001)
  end
  function disk.reads ()
    local list, i = disk.queue, 0
    disk.queue = {}
    return function ()
      i = i + 1
      if list[i] then return list[i][1], list[i][2] end
    end
  end
  function disk.prefetch (_, offset, count)
    disk.time = disk.time + (disk.threads and 0.0001 or disk.fetch_seconds)
    table.insert (disk.fetched, { offset, count })
  end
  return disk
end

-- A read; the next one is `seconds` later, or when prefetches let it.
local function read (readers, offset, count, seconds)
  local disk = readers.disk
  disk.time = math.max (disk.time, disk.due or 0)
  table.insert (disk.queue, { offset, count })
  disk.idle_seconds = 0
  readers:look ()
  if seconds and seconds > 1 then
    -- The end of the read, and the pause after it.
    disk.idle_seconds = 0.001
    readers:look ()
  end
  disk.due = disk.time + (seconds or 0.02)
end

-- All that is to be prefetched now.
local function fetch (readers)
  local from = #readers.disk.fetched
  while true do
    local stream, _, count = readers:next ()
    if not stream then break end
    readers:prefetch (stream, count)
    readers:look ()
  end
  return { table.unpack (readers.disk.fetched, from + 1) }
end

local function new (options, trust)
  local disk = new_disk (options)
  return streams.new (disk, { window = 32 * MiB, trust = trust }), disk
end

describe ("streams", function ()
  it ("follows from the fourth read on, no further than was read", function ()
    local readers = new ()
    for i = 0, 2 do
      read (readers, i * 256 * KiB, 256 * KiB)
      assert.same ({}, fetch (readers))
    end
    read (readers, 768 * KiB, 256 * KiB)
    local fetched = fetch (readers)
    assert.same ({ MiB, 512 * KiB }, fetched[1])
    local stop = fetched[#fetched][1] + fetched[#fetched][2]
    assert.is_true (stop <= 2 * MiB)
  end)

  it ("follows several at once, the one read last first", function ()
    local readers = new ()
    for i = 0, 3 do
      read (readers, i * 64 * KiB, 64 * KiB)
      read (readers, (1 << 30) + i * 64 * KiB, 64 * KiB)
    end
    local fetched = fetch (readers)
    assert.equal (1 << 30, fetched[1][1] & ~(MiB - 1))
    local both = false
    for _, range in ipairs (fetched) do both = both or range[1] < MiB end
    assert.is_true (both)
  end)

  it ("is not led astray by single reads", function ()
    local readers = new ()
    local place = 1
    for _ = 1, 2000 do
      place = (place * 1103515245 + 12345) % 2147483648
      read (readers, place, 4 * KiB)
      assert.same ({}, fetch (readers))
    end
  end)

  it ("does not take a read behind, or a skip, as progress", function ()
    local readers = new ()
    for _ = 1, 10 do read (readers, 0, 4 * KiB) end
    for i = 1, 10 do read (readers, i * 12 * KiB, 4 * KiB) end
    assert.same ({}, fetch (readers))
  end)

  it ("leaves a reader alone whose reads are fast", function ()
    local readers = new ()
    for i = 0, 99 do read (readers, i * 256 * KiB, 256 * KiB, 0.0005) end
    assert.same ({}, fetch (readers))
  end)

  it ("takes longer to tell where they are not much slower", function ()
    local readers = new ()
    for i = 0, 15 do
      read (readers, i * 256 * KiB, 256 * KiB, 0.002)
      assert.same ({}, fetch (readers))
    end
    read (readers, 16 * 256 * KiB, 256 * KiB, 0.002)
    assert.is_true (#fetch (readers) > 0)
  end)

  it ("leaves a reader of large reads alone", function ()
    local readers = new ()
    for i = 0, 9 do read (readers, i * 2 * MiB, 2 * MiB) end
    assert.same ({}, fetch (readers))
  end)

  it ("grows the window with use, up to what is allowed", function ()
    local readers, disk = new ()
    local largest, ahead = 0, 0
    for i = 0, 1999 do
      -- What was prefetched is there at once.
      read (readers, i * 256 * KiB, 256 * KiB, i < 8 and 0.02 or 0.0001)
      for _, range in ipairs (fetch (readers)) do
        largest = math.max (largest, range[2])
        ahead = math.max (ahead, range[1] + range[2] - (i + 1) * 256 * KiB)
      end
    end
    assert.equal (disk.block, largest)
    assert.is_true (ahead <= 32 * MiB)
  end)

  it ("needs no wider a window than the reader can use meanwhile", function ()
    -- A prefetch takes 20 ms; at 256K every 100 ms 8 MB ahead would be silly.
    local readers = new ()
    local ahead = 0
    for i = 0, 399 do
      read (readers, i * 256 * KiB, 256 * KiB, 0.1)
      for _, range in ipairs (fetch (readers)) do
        ahead = math.max (ahead, range[1] + range[2] - (i + 1) * 256 * KiB)
      end
    end
    assert.is_true (ahead > 0 and ahead <= 2 * MiB, ahead)
  end)

  it ("lets a stream go that is slower for it, and tries again much later", function ()
    -- Each prefetch holds the reader up for much longer than its own reads take.
    local readers = new { fetch_seconds = 1 }
    local followed = {}
    for i = 0, 1023 do
      read (readers, i * 256 * KiB, 256 * KiB, 0.02)
      if #fetch (readers) > 0 then followed[#followed + 1] = i // 4 end
    end
    -- In MB: at the start, 32 MB later, 64 MB after that, 128 MB after that.
    assert.is_true (#followed <= 12, #followed)
    assert.is_true (followed[1] <= 2)
    for _, megabyte in ipairs (followed) do
      assert.is_true (megabyte <= 4 or megabyte >= 32)
    end
    assert.is_true (followed[#followed] >= 90)
  end)

  it ("tells others with which it shares its trust", function ()
    local function reads_before_it_follows (trust)
      local readers = new ({}, trust)
      for i = 0, 99 do
        read (readers, i * 256 * KiB, 256 * KiB)
        if #fetch (readers) > 0 then return i + 1 end
      end
    end
    local trust = streams.trust ()
    assert.equal (4, reads_before_it_follows (trust))
    local slow = new ({ fetch_seconds = 1 }, trust)
    for i = 0, 7 do
      read (slow, i * 256 * KiB, 256 * KiB)
      fetch (slow)
    end
    assert.equal (8, reads_before_it_follows (trust))
    assert.equal (4, reads_before_it_follows (streams.trust ()))
  end)

  it ("does not hold a pause of the client against a stream", function ()
    local readers = new ()
    local fetched = 0
    for i = 0, 199 do
      local seconds = i % 20 == 19 and 30 or i < 8 and 0.02 or 0.015
      read (readers, i * 256 * KiB, 256 * KiB, seconds)
      local now = #fetch (readers)
      -- If it were held against it at the first pause, it would be let go here.
      if i >= 60 and i < 100 then fetched = fetched + now end
    end
    assert.is_true (fetched > 0)
  end)

  it ("gets wary of short runs", function ()
    local readers, disk = new ()
    local early
    for run = 0, 399 do
      for i = 0, 4 do
        read (readers, run * 64 * MiB + i * 64 * KiB, 64 * KiB)
        fetch (readers)
      end
      if run == 199 then early = #disk.fetched end
    end
    assert.is_true (early > 0)
    assert.equal (early, #disk.fetched)
  end)

  it ("keeps no more streams than it should", function ()
    local readers = new ()
    for i = 0, 99 do read (readers, i << 30, 4096) end
    assert.equal (8, #readers.list)
  end)

  it ("skips what it is told to, and goes back for it", function ()
    local readers = new ()
    for i = 0, 3 do read (readers, i * 256 * KiB, 256 * KiB) end
    local stream, offset, count = readers:next ()
    assert.equal (MiB, offset)
    readers:skip (stream, count)
    assert.equal (MiB + count, stream.ready)
    readers:rewind (stream)
    assert.same ({ stream, offset, count }, { readers:next () })
  end)

  it ("does not take one read that takes long for a source that is slow", function ()
    local readers = new ()
    for i = 0, 40 do
      read (readers, i * 256 * KiB, 256 * KiB, i == 1 and 0.05 or 0.0001)
      assert.same ({}, fetch (readers))
    end
    -- One in four is another matter.
    readers = new ()
    for i = 0, 40 do
      read (readers, i * 256 * KiB, 256 * KiB, i % 4 == 1 and 0.05 or 0.0001)
    end
    assert.is_true (#fetch (readers) > 0)
  end)

  it ("takes smaller pieces when threads fetch several at a time", function ()
    local pieces = {}
    for _, threads in ipairs { false, true } do
      local readers, disk = new { threads = threads, fetch_seconds = 0.05 }
      for i = 0, 39 do
        read (readers, i * 256 * KiB, 256 * KiB)
        fetch (readers)
      end
      table.insert (pieces, #disk.fetched)
    end
    assert.is_true (pieces[2] > 1.5 * pieces[1])
  end)

  describe ("and a client with many reads in flight", function ()
    local function read_on (readers, reads, seconds)
      local first = readers.last or 0
      for i = first, first + reads - 1 do
        read (readers, i * 256 * KiB, 256 * KiB, seconds)
      end
      readers.last = first + reads
      return readers:next ()
    end

    it ("does not follow it", function ()
      local readers = new ()
      readers.disk.depth = 16
      assert.is_nil (read_on (readers, 100, 0.05))
    end)

    it ("follows it when there are fewer", function ()
      local readers = new ()
      readers.disk.depth = 16
      assert.is_nil (read_on (readers, 20, 0.05))
      readers.disk.depth = 1
      assert.is_nil (read_on (readers, 4, 0.05))
      assert.is_truthy (read_on (readers, 12, 0.05))
    end)

    it ("follows it no longer when there are more", function ()
      local readers = new ()
      assert.is_truthy (read_on (readers, 10, 0.05))
      readers.disk.depth = 16
      assert.is_nil (read_on (readers, 1, 0.05))
      readers.disk.depth = 1
      assert.is_nil (read_on (readers, 40, 0.05))
    end)

    it ("is sure that a few of them are slow, first", function ()
      for _, seconds in ipairs { 0.002, 0.004 } do
        local slow = seconds > 0.003
        local readers = new ()
        assert.equal (slow, read_on (readers, 14, seconds) ~= nil)
        assert.is_truthy (read_on (readers, 20, seconds))

        readers = new ()
        readers.disk.depth = 4
        assert.is_nil (read_on (readers, 14, seconds))
        assert.equal (slow, read_on (readers, 20, seconds) ~= nil)
      end
    end)
  end)
end)
