#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What the filter costs: instructions for each client read, time of a decision,
memory and threads.  Prints tables, and writes them to build/bench/costs.md.

    make bench-costs           a few minutes
    make bench-costs FULL=1    with ten million reads for the memory
    tests/bench/costs.py [--full] [instructions] [decisions] [memory] [connections]
"""

import json
import os
import subprocess
import sys

import measure

OUT = os.path.join (measure.TOP, "build/bench")
FILTERDIR = subprocess.run (["pkg-config", "--variable=filterdir", "nbdkit"],
                            stdout=subprocess.PIPE, text=True).stdout.strip ()
STOCK = os.path.join (FILTERDIR, "nbdkit-scan-filter.so")
if os.path.exists (STOCK + ".distrib"):
    STOCK += ".distrib"

TRACE_LOG = os.path.join (measure.TOP, "tests/traces/debugfs-rdump.log")
POLICIES = ["default", "ahead", "clock", "forever", "adaptive", "readahead", "stride",
            "data", "reverse", "shuffle", "metadata", "replay"]
DECISIONS = 20000
POLICY_ARGS = {"replay": [f"file-trace={TRACE_LOG}"]}

MEMORY_READS = 10000000 if "--full" in sys.argv else 200000


class Report:
    def __init__ (self):
        self.lines = []

    def say (self, *lines):
        for line in lines:
            print (line, flush=True)
            self.lines.append (line)

    def table (self, heading, rows):
        self.say ("| " + " | ".join (heading) + " |", "|---" * len (heading) + "|")
        for row in rows:
            self.say ("| " + " | ".join (str (cell) for cell in row) + " |")
        self.say ("")


def instructions (report):
    report.say ("## Instructions for each client read", "",
                "By callgrind, in the whole server, over no filter.  During a scan: while "
                "a prefetch is held, and there is room for reads that its policy has not "
                "asked for, or none; after: when the scan has finished.", "")

    def rows ():
        none = measure.instructions_per_read ([], during=False)
        for name, filters, args in (
                ("stock scan", [STOCK], []),
                ("ours", [measure.SCAN], []),
                ("ours, with scan-stats", [measure.SCAN], ["scan-stats=stats"])):
            yield (name, *(f"{measure.instructions_per_read (filters, args, **m) - none:.0f}"
                           for m in measure.MOMENTS.values ()))
    report.table (["filter", "during a scan", "queue full", "after it"], rows ())


def decisions (report):
    report.say ("## A decision of each policy", "",
                "Instructions, and nanoseconds of processor time, means of a thousand: "
                "the least, and the median.  What replay and metadata do before "
                "their first decision is counted in the times.", "")

    def rows ():
        for policy in POLICIES:
            args = POLICY_ARGS.get (policy, [])
            result = json.loads (subprocess.run (
                [os.path.join (OUT, "decisions"), policy, str (DECISIONS), "10", *args],
                check=True, stdout=subprocess.PIPE, text=True).stdout)
            count = measure.instructions_per_decision (policy, args)
            # replay is done after fewer decisions.
            yield (policy, f"{count:.0f}" if count > 0 else "",
                   result["least_ns"], result["median_ns"])
    report.table (["policy", "instructions", "least ns", "median ns"], rows ())


def memory (report):
    report.say ("## Memory after many reads", "",
                f"KiB more after {MEMORY_READS} reads of one client, which begin during "
                "a scan that is held.", "")

    def rows ():
        for name, filters in ("no filter", []), ("stock scan", [STOCK]), \
                             ("ours", [measure.SCAN]):
            with measure.server (filters, ["hold=cache"]) as s:
                h = s.connect ()
                measure.read_fast (h, 10000)
                before = s.memory_kib ()
                measure.read_fast (h, MEMORY_READS)
                yield name, s.memory_kib () - before
                s.stop ()
    report.table (["filter", "KiB"], rows ())


def connections (report):
    report.say ("## Threads and memory of many connections", "",
                "With nbdkit --threads=1 (16 a connection otherwise); each scan is held "
                "at its first prefetch.  KiB are private memory of the whole server.",
                "")

    def rows ():
        for name, filters, args in (
                ("no filter", [], []), ("stock scan", [STOCK], []),
                ("ours", [measure.SCAN], []),
                ("ours, scan-threads=8", [measure.SCAN], ["scan-threads=8"]),
                ("ours, scan-background", [measure.SCAN], ["scan-background=true"])):
            row = [name]
            for count in 1, 16, 256:
                with measure.server (
                        filters, [*args, "hold=cache",
                                  *(["scan-size=64K", "scan-clock=false"]
                                    if filters else [])],
                        options=["--threads=1"]) as s:
                    for _ in range (count):
                        measure.read (s.connect (), 1)
                    row.append (f"{s.threads ()} / {s.memory_kib ()}")
                    s.stop ()
            yield row
    report.table (["filter", "1 connection", "16", "256"], rows ())


def main ():
    parts = {f.__name__: f for f in (instructions, decisions, memory, connections)}
    named = [a for a in sys.argv[1:] if a != "--full"]
    chosen = named or list (parts)
    if not set (chosen) <= set (parts):
        sys.exit ("costs: expected --full or some of: " + ", ".join (parts))
    report = Report ()
    report.say ("# What the filter costs", "")
    for name in chosen:
        parts[name] (report)
    if not named:
        with open (os.path.join (OUT, "costs.md"), "w") as f:
            f.write ("\n".join (report.lines))


if __name__ == "__main__":
    main ()
