#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Does the simulator tell the truth?

    make bench-truth [TRUTH="--help"]

Runs some cells over the real filter, above the clone filter, and in the simulator, and
compares the times.  Each real run is a line of build/truth/results.jsonl; a run that is
there already is not made again.
"""

import argparse
import collections
import hashlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

import common

TOP = os.path.dirname (os.path.dirname (os.path.dirname (os.path.abspath (__file__))))
SCAN = os.environ.get ("SCAN_FILTER", os.path.join (TOP, "build/nbdkit-scan-filter.so"))
CLONE = os.path.join (os.path.dirname (SCAN), "nbdkit-clone-filter.so")
CLIENT = os.path.join (TOP, "build/bench/client")
SLOW = os.path.join (TOP, "build/tests/slow.so")
RESULTS = os.path.join (TOP, "build/truth/results.jsonl")
PAGE = os.path.join (TOP, "docs/performance.md")
BEGIN, END = "<!-- bench-truth: begin -->", "<!-- bench-truth: end -->"

SERVER_THREADS = 64
BURSTINESS = 0.05               # truth.lua says the same
START_SECS = 30

# A second takes so many, for server and client: so what others do with the processors
# counts for so much less.  It is little beside the line that what is compared does.
SLOWER = 5

MIB = 1 << 20

# More than this apart, and the simulator is wrong.
AGREE = 0.15

# In a run of seconds one search for the window decides, and where that ends is chance: so
# each is run several times, on both sides, and the medians are compared.
SEEDS = range (1, 12)

# reads: the first so many of the workload's, 0 for all; such that a run takes seconds.
Cell = collections.namedtuple ("Cell", "workload reads latency_ms mbit policy threads")

CELLS = [
    Cell ("sequential 4K", 300, 20, 400, "none", 1),
    Cell ("sequential 4K", 0, 80, 100, "default", 1),
    Cell ("sequential 4K", 0, 80, 100, "adaptive", 16),
    Cell ("sequential 64K", 100, 50, 1000, "none", 1),
    Cell ("sequential 64K", 0, 20, 400, "data", 16),
    Cell ("sequential 256K", 0, 20, 400, "none", 1),
    Cell ("sequential 256K", 64, 80, 100, "none", 1),
    Cell ("sequential 256K", 0, 80, 100, "default", 1),
    Cell ("sequential 256K", 0, 20, 400, "adaptive", 16),
    Cell ("sequential 1024K", 64, 20, 400, "adaptive", 16),
    Cell ("sequential 256K, 1 s before", 0, 80, 100, "replay", 16),
    Cell ("random 4K", 300, 20, 400, "none", 1),
    Cell ("random 4K", 0, 80, 100, "adaptive", 16),
    Cell ("16K at every 384K", 0, 80, 100, "stride", 16),
    Cell ("4 streams", 0, 80, 100, "adaptive", 16),
    Cell ("64 in flight", 0, 5, 1000, "none", 1),
    Cell ("64 in flight", 0, 20, 400, "data", 16),
    Cell ("64 in flight", 0, 80, 100, "adaptive", 16),
    Cell ("boot-debian12", 800, 20, 400, "adaptive", 16),
    Cell ("boot-debian12", 800, 80, 100, "replay", 16),
]


def client_of (cell):
    reads = f", {cell.reads} reads" if cell.reads else ""
    return cell.workload + reads


def line_of (cell):
    return f"{cell.latency_ms} ms, {cell.mbit} Mbit/s"


def policy_of (cell):
    return cell.policy + (f", {cell.threads} threads" if cell.threads > 1 else "")


def name_of (cell):
    return "; ".join ([client_of (cell), line_of (cell), policy_of (cell)])


def parse_args ():
    parser = argparse.ArgumentParser (
        description="The simulator against the real filter.",
        epilog="Patterns are shell patterns over the names that --list prints.")
    parser.add_argument ("--list", action="store_true",
                         help="print what there is, and end")
    parser.add_argument ("--cell", action="append", metavar="PATTERN")
    parser.add_argument ("--rounds", type=int, default=1)
    parser.add_argument ("--fresh", action="store_true", help="forget earlier results")
    parser.add_argument ("--page", action="store_true",
                         help="measure nothing; write what was measured into "
                         "docs/performance.md")
    return parser.parse_args ()


def ask (cell, *more):
    """What the simulator's half says of a cell."""
    result = subprocess.run (
        ["lua5.4", "tests/bench/truth.lua", cell.workload, str (cell.reads),
         *map (str, more)], cwd=TOP, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit (1)
    return result.stdout


def simulate (cell):
    """Returns the seconds of each run."""
    return [float (seconds) for seconds in
            ask (cell, cell.policy, cell.latency_ms, cell.mbit, cell.threads,
                 *SEEDS).split ()]


def version_of (reads):
    """Of what is measured: results of another one count no more."""
    digest = hashlib.sha256 (f"{SLOWER} {reads}".encode ())
    for path in SCAN, CLONE, CLIENT, SLOW:
        with open (path, "rb") as f:
            digest.update (f.read ())
    return digest.hexdigest ()[:16]


def load ():
    """Earlier results, as seconds by cell's name and version."""
    found = collections.defaultdict (list)
    for result in common.load (RESULTS):
        found[result["cell"], result["version"]].append (result["seconds"])
    return found


def write_disk (path, lines):
    chunk = os.urandom (MIB)
    with open (path, "wb") as f:
        for what, *numbers in lines:
            if what == "size":
                f.truncate (int (numbers[0]))
            elif what == "data":
                offset, count = map (int, numbers)
                f.seek (offset)
                while count > 0:
                    count -= f.write (chunk[:min (count, MIB)])


def fail (what, log):
    log.seek (0)
    sys.exit (f"truth: {what}:\n{log.read ()}")


def run (cell, reads):
    """Over the real filters; returns seconds."""
    lines = [line.split () for line in reads.splitlines ()]
    with tempfile.TemporaryDirectory (prefix="scan-truth-", dir="/var/tmp") as place:
        disk, socket, pid_file, file = (os.path.join (place, name) for name in
                                        ("disk", "sock", "pid", "reads"))
        write_disk (disk, lines)
        with open (file, "w") as f:
            f.writelines (" ".join (words[1:]) + "\n" for words in lines
                          if words[0] == "read")
        with open (file + ".trace", "w") as f:
            f.writelines (f"{words[1]} {words[2]}\n" for words in lines
                          if words[0] == "read")
        scan = [] if cell.policy == "none" else ["--filter=" + SCAN]
        command = ["nbdkit", "-f", "-r", "-U", socket, "-P", pid_file,
                   f"--threads={SERVER_THREADS}", *scan, "--filter=" + CLONE,
                   "--filter=rate", "--filter=delay", "file", disk,
                   f"rate={cell.mbit}M", f"burstiness={BURSTINESS}",
                   f"rdelay={cell.latency_ms}ms", f"clone-file={place}/clone"]
        if scan:
            command += [f"scan-policy={cell.policy}", f"scan-threads={cell.threads}"]
        if cell.policy == "replay":
            command += [f"scan-file-trace={file}.trace"]
        env = {**os.environ, "LD_PRELOAD": SLOW, "SLOW": str (SLOWER)}
        with open (os.path.join (place, "log"), "w+") as log:
            server = subprocess.Popen (command, stdin=subprocess.DEVNULL, stderr=log,
                                       env=env)
            try:
                until = time.monotonic () + START_SECS
                while not os.path.exists (pid_file):
                    if server.poll () is not None or time.monotonic () > until:
                        fail ("nbdkit does not start", log)
                    time.sleep (0.01)
                client = subprocess.run (
                    [CLIENT, f"nbd+unix:///?socket={socket}", "mode=replay",
                     f"file={file}"], stdout=subprocess.PIPE, env=env)
                if client.returncode != 0:
                    fail ("the client failed", log)
                return json.loads (client.stdout)["seconds"]
            finally:
                server.terminate ()
                server.wait ()


def measure (cells, rounds):
    results = load ()
    for round_ in range (rounds):
        for cell in cells:
            name, reads = name_of (cell), ask (cell)
            version = version_of (reads)
            if len (results[name, version]) > round_:
                continue
            print (f"{name:64} ", end="", flush=True)
            seconds = run (cell, reads)
            print (f"{seconds:6.2f} s", flush=True)
            results[name, version].append (seconds)
            common.append (RESULTS, {"cell": name, "version": version,
                                      "seconds": seconds})


def gather (cells):
    """Cell, simulated seconds and real ones, of each that was measured."""
    results = load ()
    rows = [(cell, results[name_of (cell), version_of (ask (cell))]) for cell in cells]
    return [(cell, simulate (cell), real) for cell, real in rows if real]


def shown (runs):
    """Their median, and in brackets the range."""
    low, middle, high = (f"{f (runs):.2f}" for f in (min, statistics.median, max))
    return f"{middle} s" + (f" ({low}-{high})" if low != high else "")


def table (rows):
    """As Markdown, and how many agree."""
    out = ["| client | line | policy | simulated | real | real runs | real / simulated |",
           "|---" * 7 + "|"]
    agree = 0
    for cell, simulated, real in rows:
        # As it is shown, so that nobody wonders.
        ratio = round (statistics.median (real) / statistics.median (simulated), 2)
        agrees = 1 - AGREE <= ratio <= 1 + AGREE
        agree += agrees
        out.append ("| " + " | ".join (
            [client_of (cell), line_of (cell), policy_of (cell), shown (simulated),
             shown (real), str (len (real)),
             f"{ratio:.2f}" if agrees else f"**{ratio:.2f}**"]) + " |")
    others = "" if agree == len (rows) else " The others are **bold**."
    return "\n".join ([*out, "", f"Of {len (rows)} cells, {agree} agree to "
                       f"{AGREE * 100:.0f} %, by the medians.{others}"])


def write_page ():
    rows = gather (CELLS)
    if not rows:
        sys.exit ("truth: nothing has been measured yet")
    common.write_between (PAGE, BEGIN, END, table (rows))
    print (f"truth: wrote the table of {PAGE}")


def main ():
    args = parse_args ()
    cells = common.choose (CELLS, args.cell, name_of)
    if args.list:
        print ("\n".join (map (name_of, cells)))
        return
    for path in SCAN, CLONE, CLIENT, SLOW:
        if not os.path.exists (path):
            sys.exit (f"truth: {path} is not there: make bench-truth")
    if args.page:
        write_page ()
        return
    os.makedirs (os.path.dirname (RESULTS), exist_ok=True)
    if args.fresh and os.path.exists (RESULTS):
        os.remove (RESULTS)
    measure (cells, args.rounds)
    print ()
    print (table (gather (cells)))


if __name__ == "__main__":
    main ()
