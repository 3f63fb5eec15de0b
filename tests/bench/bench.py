#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Is prefetching any use?  Runs every stack of matrix.py, and says.

    make bench                 the quick form, under 5 minutes
    make bench FULL=1          everything, for hours; run it again to resume
    tests/bench/bench.py --help

Stacks take turns, round by round, so that what else the machine does falls on all
of them; what counts is each one's ratio to no filter in the same round.
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time

import common
import matrix
import report

TOP = os.path.dirname (os.path.dirname (os.path.dirname (os.path.abspath (__file__))))
OUT = os.path.join (TOP, "build/bench")
SCAN = os.environ.get ("SCAN_FILTER", os.path.join (TOP, "build/nbdkit-scan-filter.so"))
OURS = {matrix.OURS: SCAN,
        matrix.CLONE: os.path.join (os.path.dirname (SCAN), "nbdkit-clone-filter.so")}
TRACE_LOG = os.path.join (TOP, "tests/traces/debugfs-rdump.log")

CELL_TIMEOUT_SECS = 600
START_TIMEOUT_SECS = 30


def version (path):
    """Tells one build of a filter from another."""
    with open (path, "rb") as f:
        return hashlib.sha256 (f.read ()).hexdigest ()[:12]


def versions ():
    """Of the filters of each stack that are ours; None if none is."""
    ours = {name: version (path) for name, path in OURS.items ()}
    return {stack.name: " ".join (ours[f] for f in stack.filters if f in ours) or None
            for stack in matrix.stacks ()}


def make_disk (mib, sparse):
    """Random bytes, the same each time; if sparse, only every eighth MiB.  Returns
    the path; another run may be using it."""
    path = os.path.join (OUT, f"{'sparse' if sparse else 'disk'}-{mib}.img")
    if os.path.exists (path):
        return path
    contents = random.Random (1)
    with tempfile.NamedTemporaryFile (dir=OUT, delete=False) as f:
        for i in range (mib):
            block = contents.randbytes (matrix.MIB)
            if not sparse or i % 8 == 0:
                f.seek (i * matrix.MIB)
                f.write (block)
        f.truncate (mib * matrix.MIB)
    os.rename (f.name, path)
    return path


def make_trace (path, disk_bytes):
    """The reads of a log, as lines of "offset count"."""
    reads = []
    with open (TRACE_LOG) as log:
        for line in log:
            m = re.search (r" Read id=\d+ offset=(0x\w+) count=(0x\w+) ", line)
            if m and int (m[1], 16) + int (m[2], 16) <= disk_bytes:
                reads.append (f"{int (m[1], 16)} {int (m[2], 16)}\n")
    if not reads:
        sys.exit (f"bench: {TRACE_LOG}: no reads in it are within the disk")
    with tempfile.NamedTemporaryFile ("w", dir=OUT, delete=False) as f:
        f.writelines (reads)
    os.rename (f.name, path)


class Cell:
    """One run of one stack."""

    def __init__ (self, stack, source, workload, files):
        self.stack, self.source, self.workload = stack, source, workload
        self.files = files
        self.disk = make_disk (workload.disk_mib or files["size"], source.sparse)
        self.dir = tempfile.mkdtemp (prefix="scan-bench-")
        self.socket = os.path.join (self.dir, "sock")
        self.uri = f"nbd+unix:///?socket={self.socket}"

    def server_command (self):
        filters = [OURS.get (f, f) for f in self.stack.filters]
        args = [a.replace ("=TRACE", "=" + self.files["trace"])
                for a in self.stack.args]
        if matrix.OURS in self.stack.filters:
            args.append (f"scan-stats={self.dir}/scan")
        filters.append ("stats")
        args.append (f"statsfile={self.dir}/stats")
        if self.source.rate_mbit:
            filters.append ("rate")
            args += [f"rate={self.source.rate_mbit}000000", "burstiness=0.05"]
        if self.stack.native:
            plugin = [os.path.join (TOP, "build/tests/nbdkit-native-plugin.so"),
                      f"file={self.disk}", f"latency={self.source.latency_ms}"]
        else:
            plugin = ["file", self.disk]
            if self.source.latency_ms:
                filters.append ("delay")
                args.append (f"rdelay={self.source.latency_ms}ms")
        return ["nbdkit", "-f", "-U", self.socket, "-P", self.dir + "/pid",
                *("--filter=" + f for f in filters), *plugin, *args]

    def client_command (self):
        client = self.workload.client
        if client == "fio":
            return ["fio", "--name=random", "--ioengine=nbd", "--uri=" + self.uri,
                    "--rw=randread", "--bs=4k", "--iodepth=1", "--randseed=1",
                    f"--number_ios={self.files['random reads']}",
                    f"--size={os.path.getsize (self.disk)}",
                    "--output-format=json", "--output=" + self.dir + "/fio"]
        if isinstance (client, str):
            return [*client.split (), self.uri, "null:"]
        return [os.path.join (OUT, "client"), self.uri,
                *(a.replace ("=TRACE", "=" + self.files["trace"]) for a in client)]

    def run (self):
        """Returns what was measured, as a dictionary."""
        with open (self.dir + "/log", "w+") as log:
            server = subprocess.Popen (self.server_command (), stderr=log,
                                       stdin=subprocess.DEVNULL)
            try:
                deadline = time.monotonic () + START_TIMEOUT_SECS
                while not os.path.exists (self.dir + "/pid"):
                    if server.poll () is not None or time.monotonic () > deadline:
                        self.fail ("nbdkit did not start", log)
                    time.sleep (0.001)
                start = time.monotonic ()
                client = subprocess.run (
                    self.client_command (), stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, text=True, stderr=log, cwd=self.dir,
                    timeout=CELL_TIMEOUT_SECS)
                seconds = time.monotonic () - start
                if client.returncode != 0:
                    self.fail (f"the client failed: {self.client_command ()}", log)
            finally:
                server.send_signal (signal.SIGTERM)
                status = server.wait (CELL_TIMEOUT_SECS)
            # The stock filters crash when they are stopped during a prefetch.
            if status != 0 and set (OURS).intersection (self.stack.filters):
                self.fail (f"nbdkit ended with {status}", log)
        result = {"seconds": seconds, "status": status}
        result.update (self.client_figures (client.stdout))
        result.update (self.server_figures ())
        shutil.rmtree (self.dir)
        return result

    def fail (self, what, log):
        log.seek (0)
        sys.exit (f"bench: {what}\n{' '.join (self.server_command ())}\n"
                  + log.read ())

    def client_figures (self, text):
        if self.workload.client == "fio":
            with open (self.dir + "/fio") as f:
                read = json.load (f)["jobs"][0]["read"]
            latency = read["clat_ns"]
            return {"seconds": read["runtime"] / 1000,
                    "p50_ms": latency["percentile"]["50.000000"] / 1e6,
                    "p99_ms": latency["percentile"]["99.000000"] / 1e6}
        if isinstance (self.workload.client, str):
            return {}
        return json.loads (text)

    def server_figures (self):
        figures = {}
        if not os.path.exists (self.dir + "/stats"):
            return figures
        with open (self.dir + "/stats") as stats:
            for line in stats:
                m = re.match (r"(read|cache): (\d+) ops, [\d.]+ s, ([\d.]+) (\w*)",
                              line)
                if m:
                    unit = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
                    figures[f"source_{m[1]}s"] = int (m[2])
                    figures[f"source_{m[1]}_bytes"] = float (m[3]) * unit[m[4]]
        if matrix.OURS in self.stack.filters:
            with open (self.dir + "/scan") as stats:
                for line in stats:
                    m = re.match (r'nbdkit_scan_reads_by_result_total{.*'
                                  r'result="(\w+)".*} (\d+)', line)
                    if m:
                        figures[m[1]] = figures.get (m[1], 0) + int (m[2])
        return figures


def choose (rows, patterns, quick):
    """Rows by shell patterns, or those of the form that is asked for."""
    return [r for r in common.choose (rows, patterns) if patterns or r.quick or not quick]


def parse_args ():
    parser = argparse.ArgumentParser (
        description="Compare stacks of nbdkit filters; results go to build/bench.",
        epilog="Patterns are shell patterns over names in tests/bench/matrix.py, "
        "like --stack 'no filter' --stack 'adaptive*' --source '20 ms'.  A run "
        "resumes what an earlier one of the same --name has begun.")
    parser.add_argument ("--full", action="store_true",
                         help="everything there is, not the quick form")
    parser.add_argument ("--name", help="of the results (quick, or full)")
    parser.add_argument ("--fresh", action="store_true",
                         help="forget earlier results of this name")
    parser.add_argument ("--stack", action="append", metavar="PATTERN")
    parser.add_argument ("--source", action="append", metavar="PATTERN")
    parser.add_argument ("--workload", action="append", metavar="PATTERN")
    parser.add_argument ("--rounds", type=int, help="(2, or 5 with --full)")
    parser.add_argument ("--size", type=int, metavar="MIB",
                         help="of the disk (32, or 64 with --full)")
    parser.add_argument ("--random-reads", type=int, metavar="N",
                         help="of the random workload (200, or 1000 with --full)")
    parser.add_argument ("--list", action="store_true",
                         help="print what there is, and end")
    args = parser.parse_args ()
    args.name = args.name or ("full" if args.full else "quick")
    args.rounds = args.rounds or (5 if args.full else 2)
    args.size = args.size or (64 if args.full else 32)
    args.random_reads = args.random_reads or (1000 if args.full else 200)
    if args.size < 8:
        parser.error (f"--size={args.size}: should be at least 8 MiB")
    return args


def load (path):
    """Earlier results of the filters as they are now."""
    current = versions ()
    return [r for r in common.load (path)
            if r["stack"] in current and r["filter"] == current[r["stack"]]]


def key (result):
    return tuple (result[k] for k in ("size_mib", "source", "workload", "round",
                                      "stack"))


def run_all (cells, path, files):
    """Run what is not there yet, and append it to the results."""
    done = {key (r) for r in load (path)}
    todo = [c for c in cells if key (c[0]) not in done]
    if len (todo) < len (cells):
        print (f"{len (cells) - len (todo)} of {len (cells)} runs are there from "
               "earlier", flush=True)
    start = time.monotonic ()
    for n, (row, stack, source, workload) in enumerate (todo):
        result = Cell (stack, source, workload, files).run ()
        common.append (path, {**row, **result})
        passed = time.monotonic () - start
        left = passed / (n + 1) * (len (todo) - n - 1)
        print ("\r\033[K" if sys.stdout.isatty () else "", end="")
        print (f"{n + 1}/{len (todo)}  {row['source']} | {row['workload']} | "
               f"{row['stack']}: {result['seconds']:.2f} s  "
               f"(about {left / 60:.0f} min left)",
               end="" if sys.stdout.isatty () else "\n", flush=True)
    if sys.stdout.isatty ():
        print ()


def main ():
    args = parse_args ()
    all_stacks = matrix.stacks ()
    quick = not args.full
    stacks = choose (all_stacks, args.stack, quick)
    sources = choose (matrix.SOURCES, args.source, quick)
    workloads = choose (matrix.WORKLOADS, args.workload, quick)
    if args.list:
        for what, rows in (("stacks", stacks), ("sources", sources),
                           ("workloads", workloads)):
            print (what + ":", *(r.name for r in rows), sep="\n  ")
        return
    for program in "nbdkit", "nbdcopy", "fio":
        if not shutil.which (program):
            sys.exit (f"bench: {program} is missing; it is in Debian's "
                      f"{'libnbd-bin' if program == 'nbdcopy' else program}")

    files = {"size": args.size, "trace": os.path.join (OUT, f"trace-{args.size}"),
             "random reads": args.random_reads}
    make_trace (files["trace"], args.size * matrix.MIB)

    current = versions ()
    cells = [({"filter": current[stack.name],
               "size_mib": args.size, "source": source.name,
               "workload": workload.name, "round": n, "stack": stack.name},
              stack, source, workload)
             for n in range (args.rounds) for source in sources
             for workload in workloads for stack in stacks
             if not (stack.native and source.rate_mbit)]
    path = os.path.join (OUT, args.name + ".jsonl")
    # The quick form is to see what is now.
    if (args.fresh or args.name == "quick") and os.path.exists (path):
        os.unlink (path)
    try:
        run_all (cells, path, files)
    except KeyboardInterrupt:
        print ("\nStopped; the same command goes on.  So far:")
    report.write (load (path), os.path.join (OUT, args.name))


if __name__ == "__main__":
    main ()
