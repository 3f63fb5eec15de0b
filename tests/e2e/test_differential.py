# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The built-in policies prefetch exactly what the stock filter prefetches.

SEED=N runs the one schedule of that seed, and shows it.  SCHEDULES=N changes how
many there are, FIRST_SEED=N which.
"""

import concurrent.futures
import difflib
import os

import pytest

import schedule
from harness import CHECK_WITH, SCAN, TOP, stock_filter

# Under a checker a server takes a second to start, and the 500 have run without.
SCHEDULES = int (os.environ.get ("SCHEDULES", 24 if CHECK_WITH else 504))
FIRST_SEED = int (os.environ.get ("FIRST_SEED", 1))


def difference (seed, policy=None):
    """None if both filters do the same, else what differs.  With a policy, ours
    runs that instead of the default one."""
    s = schedule.make (seed)
    args = None if policy is None else [
        f"scan-policy={policy}", f"scan-size={s.block}", f"scan-arg-ahead={s.ahead}",
        f"scan-arg-clock={s.clock}", f"scan-arg-forever={s.forever}",
        "scan-pace=false"]
    stock = schedule.run (s, stock_filter ())
    ours = schedule.run (s, SCAN, args)
    if stock == ours:
        return None
    return "\n".join ([f"SEED={seed} shows this again", str (s._replace (steps=()))]
                      + list (difflib.unified_diff (stock, ours, "stock", "ours",
                                                    n=1000, lineterm="")))


def test_same_as_stock ():
    if "SEED" in os.environ:
        seed = int (os.environ["SEED"])
        print (schedule.make (seed))
        print ("\n".join (schedule.run (schedule.make (seed), stock_filter ())))
        seeds = [seed]
    else:
        seeds = range (FIRST_SEED, FIRST_SEED + SCHEDULES)
        print (f"seeds {seeds[0]} to {seeds[-1]}")
    with concurrent.futures.ProcessPoolExecutor (os.cpu_count ()) as pool:
        try:
            for found in pool.map (difference, seeds, chunksize=4):
                assert found is None, found
        finally:
            pool.shutdown (cancel_futures=True)


# Mistakes in lua/library/scan/sequential.lua that the schedules above have to find: what
# is replaced, and by what.
MUTATIONS = {
    "the same": ("", ""),
    "aligned after a jump":
        ("position = offset + count", "position = (offset + count) // block * block"),
    "jumps back too": ("if position < offset + count then", "if true then"),
    "jumps to where a read begins": ("offset + count", "offset"),
    "clock not reset": ("if forever then clock.offset = 0 end", ""),
    "clock lowered": ("if clock.offset < position then", "if true then"),
    "clock raised after the client went":
        ("if closed (disk) then return end", ""),
    "clock one block late":
        ("if clock.offset < position then clock.offset = position end\n",
         "clock.offset = math.max (clock.offset, position - block)\n"),
    "clock read once":
        ("repeat\n      local position = shared and clock.offset or 0",
         "local start = shared and clock.offset or 0\n"
         "    repeat\n      local position = start"),
    "no clock shared": ("shared and clock.offset or 0", "0"),
    "reads forgotten at the end of a lap":
        ("if forever then", "for _ in reads (disk) do end\n      if forever then"),
}


def mutate (name, directory):
    """A policy file in which one thing is wrong."""
    with open (os.path.join (TOP, "lua/library/scan/sequential.lua")) as f:
        text = f.read ()
    old, new = MUTATIONS[name]
    assert old in text, "sequential.lua has changed: adapt this mutation"
    text = text.replace (old, new)
    assert text.endswith ("\nreturn M\n")
    path = directory / "mutant.lua"
    path.write_text ("local args = ...\n" + text.replace ("\nreturn M\n", """
local function on (name) return args[name] == "True" end
return M.scan {
  ahead = on "ahead",
  clock = on "clock" and M.clock () or nil,
  forever = on "forever",
}
"""))
    return path


@pytest.mark.skipif (CHECK_WITH != "", reason="tests the schedules, not the filter")
@pytest.mark.parametrize ("name", MUTATIONS)
def test_mutation_is_seen (name, tmp_path):
    policy = mutate (name, tmp_path)
    enough = range (FIRST_SEED, FIRST_SEED + (24 if name == "the same" else 200))
    found = next ((seed for seed in enough if difference (seed, policy)), None)
    print ("seen by seed", found)
    if name == "the same":
        assert found is None
    else:
        assert found is not None
