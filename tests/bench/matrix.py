# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What the benchmark compares: stacks of filters, sources below them, and what a
client does.

A stack that is not here is one line away: add it to `stacks`.
"""

import collections

MIB = 1024 * 1024

# filters: outermost first, OURS and CLONE stand for the filters under test; args: their
# parameters and those of the layers below; native: over a plugin with a .cache of
# its own instead of file; quick: also in the quick form.
Stack = collections.namedtuple ("Stack", "name filters args native quick")

# latency_ms: of a read; rate_mbit: of all together, None for no limit.
Source = collections.namedtuple ("Source", "name latency_ms rate_mbit sparse quick")

# client: arguments for client.c, or the name of a program; bound: bytes for the
# physical limit as a share of the disk, None if there is no such limit; think_ms:
# sum of all pauses is added to the limit; disk_mib: where the disk can't be of the
# usual size.
Workload = collections.namedtuple ("Workload",
                                   "name client bound think_ms quick disk_mib",
                                   defaults=[None])

OURS, CLONE = "OURS", "CLONE"
CACHE_2M = ["cache-min-block-size=2M"]
COW_READ = ["cow-on-read=true", "scan-method=read"]

# All that are shipped; replay and regions are told the trace that is played.
POLICIES = ["default", "adaptive", "readahead", "replay", "data", "stride", "metadata",
            "regions", "shuffle", "reverse", "ahead", "clock", "forever"]


def policy_args (policy):
    files = {"replay": ["scan-file-trace=TRACE"], "regions": ["scan-file-regions=TRACE"]}
    return [f"scan-policy={policy}", *files.get (policy, [])]


def stacks ():
    rows = []

    def add (name, filters, args=(), native=False, quick=False):
        rows.append (Stack (name, filters, list (args), native, quick))

    add ("no filter", [], quick=True)
    add ("cache", ["cache"])
    add ("cache 2M on-read", ["cache"], [*CACHE_2M, "cache-on-read=true"], quick=True)
    add ("cow on-read", ["cow"], ["cow-on-read=true"])
    add ("clone", [CLONE], quick=True)
    add ("readahead filter + cache", ["readahead", "cache"])
    add ("readahead filter + cache 2M", ["readahead", "cache"], CACHE_2M, quick=True)
    add ("stock scan + cache", ["scan", "cache"], quick=True)
    add ("stock scan + cache 2M", ["scan", "cache"], CACHE_2M, quick=True)
    add ("stock scan + cow", ["scan", "cow"], ["cow-on-cache=true"])

    for policy in POLICIES:
        args = policy_args (policy)
        advised = policy in ("default", "adaptive")
        add (f"{policy} + cache 2M", [OURS, "cache"], args + CACHE_2M, quick=advised)
        for threads in 1, 8, 32:
            add (f"{policy} + cow, {threads} threads" if threads > 1
                 else f"{policy} + cow", [OURS, "cow"],
                 args + COW_READ + [f"scan-threads={threads}"],
                 quick=threads == 8 and policy in ("default", "adaptive",
                                                   "readahead", "replay"))
        for threads in 1, 8, 32:
            add (f"{policy} + clone, {threads} threads" if threads > 1
                 else f"{policy} + clone", [OURS, CLONE],
                 args + [f"scan-threads={threads}"], quick=threads == 8 and advised)
    # All others have a pace as they are, but for those that are like the stock filter.
    add ("default, paced + clone, 8 threads", [OURS, CLONE],
         ["scan-policy=default", "scan-threads=8", "scan-pace=true"])
    for policy in "default", "adaptive":
        add (f"{policy}, background + clone, 8 threads", [OURS, CLONE],
             [f"scan-policy={policy}", "scan-threads=8", "scan-background=true"])
        add (f"{policy}, background + cow, 8 threads", [OURS, "cow"],
             [f"scan-policy={policy}", "scan-threads=8", "scan-background=true",
              *COW_READ])

    add ("no filter, native", [], native=True)
    add ("stock scan, native", ["scan"], native=True)
    for policy in POLICIES:
        add (f"{policy}, native, 8 threads", [OURS],
             [*policy_args (policy), "scan-threads=8"], native=True)
    return rows


SOURCES = [
    Source ("1 ms", 1, None, False, False),
    Source ("5 ms", 5, None, False, False),
    Source ("20 ms", 20, None, False, False),
    Source ("50 ms", 50, None, False, False),
    Source ("1 ms, 1000 Mbit/s", 1, 1000, False, False),
    Source ("5 ms, 1000 Mbit/s", 5, 1000, False, False),
    Source ("20 ms, 1000 Mbit/s", 20, 1000, False, True),
    Source ("50 ms, 1000 Mbit/s", 50, 1000, False, False),
    Source ("20 ms, 1000 Mbit/s, sparse disk", 20, 1000, True, False),
    Source ("local file", 0, None, False, False),
]

WORKLOADS = [
    Workload ("nbdcopy, 1 connection", "nbdcopy --connections=1", 1, 0, False),
    Workload ("nbdcopy, 4 connections", "nbdcopy --connections=4", 1, 0, True),
    Workload ("sequential", ["mode=sequential"], 1, 0, True),
    Workload ("sequential, 10 ms think", ["mode=sequential", "think=10"], 1, 10,
              True),
    Workload ("sequential, 100 ms think", ["mode=sequential", "think=100"], 1, 100,
              False),
    # On a small disk, a few reads of 2M each would be all of it.
    Workload ("random 4K", "fio", None, 0, True, 512),
    Workload ("trace", ["mode=trace", "file=TRACE"], None, 0, True),
    Workload ("two clients", ["mode=sequential", "connections=2"], 1, 0, False),
    Workload ("reads and writes", ["mode=mixed"], 1, 0, False),
]

# Reads of 256K.
READ_BYTES = 256 * 1024


def limit_seconds (source, workload, disk_bytes):
    """The time below which nothing can be, or None."""
    if workload.bound is None:
        return None
    line = disk_bytes * 8 / (source.rate_mbit * 1e6) if source.rate_mbit else 0
    pauses = disk_bytes / READ_BYTES * workload.think_ms / 1000
    return max (line, pauses) + source.latency_ms / 1000
