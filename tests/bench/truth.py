#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Does the simulator tell the truth?  Runs some cells in it and over the real filter,
above the clone filter, and prints both times and their ratio.

    make filter
    tests/bench/truth.py [--workload NAME] [--policy NAME] [--line MS,MBIT] [--threads N]

Each may be given more than once.  The client is the same one: a read begins its think
time after the end of the read that it depends on.
"""

import argparse
import heapq
import itertools
import os
import subprocess
import sys
import tempfile
import time

import nbd

TOP = os.path.dirname (os.path.dirname (os.path.dirname (os.path.abspath (__file__))))
SCAN = os.environ.get ("SCAN_FILTER", os.path.join (TOP, "build/nbdkit-scan-filter.so"))
CLONE = os.path.join (os.path.dirname (SCAN), "nbdkit-clone-filter.so")

WORKLOADS = ["sequential 256K", "random 4K", "boot-debian12"]
POLICIES = ["none", "adaptive"]
LINES = ["20,400", "80,100"]
SERVER_THREADS = 64
BURSTINESS = 0.05               # truth.lua says the same
START_SECS = 30
MIB = 1 << 20


def line (text):
    """For argparse: '20,400' as its two words."""
    words = text.split (",")
    if len (words) != 2 or not all (w.isdigit () and int (w) > 0 for w in words):
        raise argparse.ArgumentTypeError (
            f"'{text}' is not MS,MBIT, two whole numbers above 0")
    return words


def parse_args ():
    parser = argparse.ArgumentParser (
        description="The simulator against the real filter.")
    parser.add_argument ("--workload", action="append",
                         help="one of tests/bench/grid.lua's; without it: "
                         + ", ".join (WORKLOADS))
    parser.add_argument ("--policy", action="append",
                         help="none for no prefetch; without it: " + ", ".join (POLICIES))
    parser.add_argument ("--line", action="append", type=line, metavar="MS,MBIT",
                         help="without it: " + " and ".join (LINES))
    parser.add_argument ("--threads", type=int, default=16, help="scan-threads (16)")
    return parser.parse_args ()


def simulate (policy, latency, mbit, threads, workload):
    """Returns its seconds, the disk's size, its data and the reads."""
    result = subprocess.run (
        ["lua5.4", "tests/bench/truth.lua", policy, latency, mbit, str (threads),
         workload], cwd=TOP, stdout=subprocess.PIPE, text=True)
    if result.returncode != 0:
        sys.exit (1)
    seconds, size, data, reads = None, None, [], []
    for text in result.stdout.splitlines ():
        what, *words = text.split ()
        if what == "seconds":
            seconds = float (words[0])
        elif what == "size":
            size = int (words[0])
        elif what == "data":
            data.append ((int (words[0]), int (words[1])))
        else:
            reads.append ((int (words[0]), int (words[1]), float (words[2]),
                           int (words[3])))
    return seconds, size, data, reads


def make_disk (path, size, data):
    chunk = os.urandom (MIB)
    with open (path, "wb") as f:
        f.truncate (size)
        for offset, count in data:
            f.seek (offset)
            while count > 0:
                count -= f.write (chunk[:min (count, MIB)])


def replay (uri, reads):
    """Do the reads; returns the seconds until the last has ended."""
    h = nbd.NBD ()
    h.connect_uri (uri)
    waiting, ready, turn = {}, [], itertools.count ()
    left, in_flight = len (reads), 0
    start = time.monotonic ()
    for number, (_, _, think, after) in enumerate (reads, 1):
        if after == 0:
            heapq.heappush (ready, (start + think, number))
        else:
            waiting.setdefault (after, []).append (number)

    cookies = {}
    while left > 0:
        now = time.monotonic ()
        while ready and ready[0][0] <= now:
            number = heapq.heappop (ready)[1]
            offset, count = reads[number - 1][:2]
            buf = nbd.Buffer (count)
            cookies[h.aio_pread (buf, offset)] = number
        ms = -1
        if ready:
            ms = max (0, int ((ready[0][0] - time.monotonic ()) * 1000))
        if cookies:
            h.poll (ms)
        elif ms > 0:
            time.sleep (ms / 1000)
        for cookie in list (cookies):
            if h.aio_command_completed (cookie):
                number = cookies.pop (cookie)
                left -= 1
                now = time.monotonic ()
                for other in waiting.pop (number, []):
                    heapq.heappush (ready, (now + reads[other - 1][2], other))
    seconds = time.monotonic () - start
    h.shutdown ()
    return seconds


def run (policy, latency, mbit, threads, disk, reads):
    """Over the real filters; returns seconds."""
    with tempfile.TemporaryDirectory (prefix="scan-truth-") as place:
        socket = os.path.join (place, "sock")
        pid_file = os.path.join (place, "pid")
        scan = [] if policy == "none" else ["--filter=" + SCAN]
        command = ["nbdkit", "-f", "-r", "-U", socket, "-P", pid_file,
                   f"--threads={SERVER_THREADS}", *scan, "--filter=" + CLONE,
                   "--filter=rate", "--filter=delay", "file", disk,
                   f"rate={mbit}000000", f"burstiness={BURSTINESS}",
                   f"rdelay={latency}ms", f"clone-file={place}/clone"]
        if scan:
            command += [f"scan-policy={policy}", f"scan-threads={threads}"]
        server = subprocess.Popen (command, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic () + START_SECS
            while not os.path.exists (pid_file):
                if server.poll () is not None or time.monotonic () > until:
                    sys.exit ("truth: nbdkit does not start")
                time.sleep (0.01)
            return replay (f"nbd+unix:///?socket={socket}", reads)
        finally:
            server.terminate ()
            server.wait ()


def main ():
    args = parse_args ()
    if not os.path.exists (CLONE):
        sys.exit (f"truth: {CLONE} is not there: make filter")
    print ("| workload | line | policy | simulated | real | real / simulated |\n"
           "|---|---|---|---|---|---|")
    for workload in args.workload or WORKLOADS:
        with tempfile.TemporaryDirectory (prefix="scan-truth-") as place:
            disk = os.path.join (place, "disk")
            for latency, mbit in args.line or [line (text) for text in LINES]:
                for policy in args.policy or POLICIES:
                    simulated, size, data, reads = simulate (
                        policy, latency, mbit, args.threads, workload)
                    if not os.path.exists (disk):
                        make_disk (disk, size, data)
                    real = run (policy, latency, mbit, args.threads, disk, reads)
                    print (f"| {workload} | {latency} ms, {mbit} Mbit/s | {policy} | "
                           f"{simulated:.2f} s | {real:.2f} s | "
                           f"{real / simulated:.2f} |", flush=True)


if __name__ == "__main__":
    main ()
