-- SPDX-License-Identifier: BSD-3-Clause
-- Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

--- A policy that does what a file says, for fuzz-answers.c.
--
-- A byte or two name an action, and those after them are what the action needs.  Whatever
-- a policy may do to the runner with one call should be here: requests with any
-- values, made through the disk or yielded directly, from nested coroutines, with
-- disks and iterators of other scans, and limits that are exceeded.

local input = scan.open ("input")

-- Shared by the scans of this export.
local kept = {}

local at_end = false

local function byte ()
  local b = input:read (1)
  at_end = not b
  return b and b:byte () or 0
end

local function bytes (count)
  local s = input:read (count) or ""
  return s .. ("\0"):rep (count - #s)
end

-- Few, so that what is kept is found again.
local function slot ()
  return byte () & 7
end

local OPS = { "prefetch", "wait", "settle", "next_data", "pread", "", "close" }
local METHODS = { "prefetch", "wait", "settle", "next_data", "pread",
                  "reads", "failures", "room", "reads_in_flight", "idle", "closed",
                  "now" }

local value

local VALUES = {
  function () return nil end,
  function () return byte () end,
  function () return byte () * 4096 end,
  function () return (string.unpack ("<i8", bytes (8))) end,
  function () return (string.unpack ("<d", bytes (8))) end,
  function () return 1 << (byte () & 63) end,
  function () return (2.0 ^ (byte () & 63)) end,
  function () return 0 / 0 end,
  function () return 1 / 0 end,
  function () return bytes (byte () & 15) end,
  function () return OPS[byte () % #OPS + 1] end,
  function () return { value (), n = value () } end,
  function () return byte () % 2 == 0 end,
  function () return kept[slot ()] end,
  function () return coroutine.running () end,
  function () return value end,
}

function value ()
  return VALUES[byte () % #VALUES + 1] ()
end

local function values ()
  local list = { n = byte () & 3 }
  for i = 1, list.n do list[i] = value () end
  return table.unpack (list, 1, list.n)
end

-- Keep what comes back, to be used later, perhaps by the other scan.
local function keep (...)
  for i = 1, select ("#", ...) do kept[slot ()] = (select (i, ...)) end
end

local act

local ACTIONS = {
  -- A request as it should be.
  function (disk) keep (disk:prefetch (byte () * disk.block % disk.size)) end,
  function (disk) keep (disk:next_data (byte () % disk.size)) end,
  function (disk) keep (disk:pread (byte () % disk.size, byte () + 1)) end,
  -- A request with any values, caught or not.
  function (disk) keep (disk[METHODS[byte () % #METHODS + 1]] (disk, values ())) end,
  function (disk)
    keep (pcall (disk[METHODS[byte () % #METHODS + 1]], disk, values ()))
  end,
  -- The same, directly.
  function ()
    local op = byte () % 2 == 0 and "prefetch" or "pread"
    keep (coroutine.yield (op, byte () * 256, value ()))
  end,
  -- Iterators, one step at a time.
  function (disk) keep (disk:reads ()) end,
  function (disk) keep (disk:failures ()) end,
  function () keep (kept[slot ()] (values ())) end,
  function () keep (pcall (kept[slot ()], values ())) end,
  -- What belongs to another scan.
  function (disk) kept[slot ()], kept[slot ()] = disk, disk.reads end,
  function () act (kept[slot ()]) end,
  -- Coroutines.
  function (disk) keep (coroutine.wrap (act) (disk)) end,
  function (disk)
    local co = coroutine.create (act)
    kept[slot ()] = co
    keep (coroutine.resume (co, disk))
  end,
  function () keep (coroutine.resume (kept[slot ()], values ())) end,
  function () keep (coroutine.close (kept[slot ()])) end,
  function () keep (pcall (coroutine.close, kept[slot ()])) end,
  function (disk)
    local _ <close> = setmetatable ({}, { __close = function () act (disk) end })
    act (disk)
  end,
  function (disk)
    keep (setmetatable ({}, { __index = act, __call = act, __tostring = act,
                              __gc = byte () == 0 and act or nil,
                              __name = value (), __mode = "kv" }), disk)
  end,
  -- Failures.
  function () error (value (), byte () & 3) end,
  function (disk) keep (pcall (act, disk)) end,
  function (disk) keep (xpcall (act, act, disk)) end,
  function (disk) return act (disk) end,
  function (disk) act (disk); act (disk) end,
  -- Limits.
  function () kept[slot ()] = ("x"):rep (1 << (byte () & 31)) end,
  function (disk) for _ = 1, byte () do keep (disk:idle ()) end end,
  function (disk) keep (disk:room ()) end,
  -- The rest of what there is to call.
  function () keep (load (bytes (byte ()))) end,
  function () print (values ()) end,
  function (disk) scan.policy ("reverse", { [value () or 1] = value () }) (disk) end,
}

-- Seldom, as most of these end the policy.
local WILD = {
  function () keep (coroutine.yield (OPS[byte () % #OPS + 1], values ())) end,
  function () keep (coroutine.yield (values ())) end,
  function () keep (pcall (coroutine.yield, values ())) end,
  function () coroutine.yield (table.unpack ({}, 1, byte () * 64)) end,
  function (disk) while true do keep (disk:idle ()) end end,
}

function act (disk)
  local wild = byte () >= 250 and WILD[byte () % #WILD + 1]
  if wild then return wild (disk) end
  return ACTIONS[byte () % #ACTIONS + 1] (disk)
end

-- Most failures are caught, for what comes after them is as odd as they are.
return function (disk)
  repeat
    if byte () < 240 then
      pcall (act, disk)
    else
      act (disk)
    end
  until at_end or disk:closed ()
end
