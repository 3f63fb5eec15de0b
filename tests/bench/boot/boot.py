#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""How long a guest takes to boot and do some work over a slow line.

    tests/bench/boot/boot.py [--help]

`make bench-boot` runs it.  Each run is a line of build/boot/results.jsonl; a run that
is there already is not made again.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile

HERE = os.path.dirname (os.path.abspath (__file__))
sys.path[:0] = [HERE, os.path.dirname (HERE)]

import common           # noqa: E402
import guest            # noqa: E402
import page             # noqa: E402
import stacks           # noqa: E402

RESULTS = os.path.join (guest.OUT, "results.jsonl")


def parse_args ():
    parser = argparse.ArgumentParser (
        description="Boot a small Debian over slow lines, through stacks of filters.",
        epilog="Patterns are shell patterns over the names that --list prints.")
    parser.add_argument ("--list", action="store_true",
                         help="print what there is, and end")
    parser.add_argument ("--stack", action="append", metavar="PATTERN")
    parser.add_argument ("--line", action="append", metavar="PATTERN")
    parser.add_argument ("--rounds", type=int, default=1)
    parser.add_argument ("--writable", action="store_true",
                         help="the guest writes over NBD, and not to a local overlay")
    parser.add_argument ("--accel", choices=["auto", "kvm", "tcg"], default="auto")
    parser.add_argument ("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument ("--page", action="store_true",
                         help="measure nothing; write what was measured into "
                         "docs/performance.md and docs/boot.svg")
    return parser.parse_args ()


def version (filters):
    """Of the guest and those of our filters that are among these: results of another
    one count no more."""
    digest = hashlib.sha256 ()
    ours = [guest.FILTERS[f] for f in filters if f in guest.FILTERS]
    for path in (*ours, guest.OUT + "/version"):
        if os.path.exists (path):
            with open (path, "rb") as f:
                digest.update (f.read ())
    return digest.hexdigest ()[:16]


def load ():
    """Earlier results of the same filters and guest."""
    current = {stacks.run_name (s, run): version (s.filters)
               for s in stacks.stacks () for run in range (s.runs)}
    return [r for r in common.load (RESULTS)
            if r["version"] == current.get (r["stack"])]


def measure (stack, line, round_, args, accel, trace):
    """Boots of one stack in a row, each appended to the results."""
    with tempfile.TemporaryDirectory (prefix="scan-boot-", dir="/var/tmp") as directory:
        for run in range (stack.runs):
            name = stacks.run_name (stack, run)
            print (f"{line.name if line else 'no line':18} {name:28} ", end="",
                   flush=True)
            seconds, read_bytes = guest.boot_over (stack, line, accel, directory,
                                                   trace, args.writable)
            print (f"{seconds:7.1f} s  {read_bytes / 2**20:6.0f} MiB", flush=True)
            common.append (RESULTS, {
                "version": version (stack.filters), "stack": name, "round": round_,
                "line": line.name if line else None, "accel": accel,
                "writable": args.writable, "seconds": seconds,
                "read_bytes": read_bytes})


def main ():
    args = parse_args ()
    if args.list:
        for row in (*common.choose (stacks.LINES, args.line),
                    *common.choose (stacks.stacks (), args.stack)):
            print (row.name)
        return
    if args.page:
        page.write (load ())
        return
    lines = common.choose (stacks.LINES, args.line)
    chosen = common.choose (stacks.stacks (), args.stack)
    # All else is shown as a multiple of it.
    if not any (s.name == stacks.LOCAL for s in chosen):
        chosen = common.choose (stacks.stacks (), [stacks.LOCAL]) + chosen

    os.makedirs (guest.OUT, exist_ok=True)
    here = os.path.dirname (os.path.abspath (__file__))
    if subprocess.run ([here + "/make-guest", guest.OUT]).returncode != 0:
        sys.exit (1)
    accel, why = (args.accel, "") if args.accel != "auto" else guest.accelerator ()
    if accel == "tcg":
        print ("The guest's processor is emulated, which makes it slow and all ratios "
               "small" + (f": {why}." if why else "."), flush=True)
    if args.fresh and os.path.exists (RESULTS):
        os.remove (RESULTS)
    trace = os.path.join (guest.OUT, f"trace-{version ([stacks.OURS])}.log")
    try:
        if not os.path.exists (trace) and any ("=TRACE" in a for s in chosen
                                               for a in s.args):
            print ("Recording what the guest reads.", flush=True)
            guest.record_trace (accel, trace)
        there = {(r["stack"], r["line"], r["round"], r["accel"], r["writable"])
                 for r in load ()}
        for round_ in range (args.rounds):
            for stack in chosen:
                for line in [None] if stack.how == "local" else lines:
                    last = stacks.run_name (stack, stack.runs - 1)
                    if (last, line.name if line else None, round_, accel,
                            args.writable) not in there:
                        measure (stack, line, round_, args, accel, trace)
    except guest.Failed as failure:
        sys.exit (f"boot: {failure}")
    print ()
    print (page.tables (load ()))


if __name__ == "__main__":
    main ()
