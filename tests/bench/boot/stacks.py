# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What a guest is booted over: lines to the source, and stacks of filters.

A stack that is not here is one line away: add it to `stacks`.
"""

import collections
import os

TOP = os.path.dirname (os.path.dirname (os.path.dirname (os.path.dirname (
    os.path.abspath (__file__)))))

# latency_ms: of each request; rate_mbit: of all together.
Line = collections.namedtuple ("Line", "name latency_ms rate_mbit")

# how: "nbdkit" with these filters, outermost first, or "local", QEMU on the disk
# itself, or "stream", QEMU's own copying from an nbdkit without filters; OURS and
# CLONE stand for the filters under test, TRACE for a recorded boot, DIR for a
# directory that is kept for all runs of the stack in a round; runs: boots in a row,
# each shown as a row of its own.
Stack = collections.namedtuple ("Stack", "name how filters args runs",
                                defaults=[[], [], 1])

OURS, CLONE = "OURS", "CLONE"
LOCAL = "local disk"
NONE = "no filter"

LINES = [Line ("20 ms, 400 Mbit/s", 20, 400), Line ("80 ms, 100 Mbit/s", 80, 100)]

CACHE_2M = ["cache-min-block-size=2M"]
# What a policy needs besides.
POLICIES = {"default": [], "data": [], "adaptive": [],
            "replay": ["scan-file-trace=TRACE"], "learn": ["scan-trace=DIR/trace"]}


def stacks ():
    return [
        Stack (LOCAL, "local"),
        Stack (NONE, "nbdkit"),
        Stack ("stock scan + cow", "nbdkit", ["scan", "cow"], ["cow-on-cache=true"]),
        Stack ("stock scan + cache 2M", "nbdkit", ["scan", "cache"], CACHE_2M),
        Stack ("readahead + cache 2M", "nbdkit", ["readahead", "cache"], CACHE_2M),
        Stack ("QEMU's block-stream", "stream"),
        *(Stack (f"{policy} + clone", "nbdkit", [OURS, CLONE],
                 [f"scan-policy={policy}", "scan-threads=8", *more],
                 2 if policy == "learn" else 1)
          for policy, more in POLICIES.items ()),
    ]


def run_name (stack, run):
    """Of one of several boots in a row."""
    if stack.runs == 1:
        return stack.name
    return f"{stack.name}, {['first', 'second'][run]} run"
