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


def difference (seed):
    """None if both filters do the same, else what differs."""
    s = schedule.make (seed)
    stock = schedule.run (s, stock_filter ())
    ours = schedule.run (s, SCAN)
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
