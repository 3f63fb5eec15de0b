# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Counts that tell what a filter costs: instructions, memory, threads.

These are counts and not times, so tests/e2e/test_costs.py asserts some of them.
"""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time

import nbd

TOP = os.path.dirname (os.path.dirname (os.path.dirname (os.path.abspath (__file__))))
SCAN = os.path.abspath (os.environ.get (
    "SCAN_FILTER", os.path.join (TOP, "build/nbdkit-scan-filter.so")))

# Only how long to wait for what should happen.
PATIENCE_SECS = 60

READ_BYTES = 512
READS_AT_ONCE = 64
DISK_BYTES = 1024 * 1024

# Holds prefetches until it is told to let them go; see tests/plugins/gate.c.
GATE = os.path.join (os.path.abspath (os.environ.get (
    "TEST_BUILD", os.path.join (TOP, "build/tests"))), "nbdkit-gate-plugin.so")

# Makes decisions; see decisions.c.
DECISIONS = os.path.join (TOP, "build/bench/decisions")


class Server:
    """nbdkit with the gate plugin, perhaps below another program; made by
    `server`."""

    def __init__ (self, filters, args, options, wrapper):
        self.control, theirs = socket.socketpair ()
        self.dir = tempfile.mkdtemp (prefix="scan-cost-")
        self.socket = os.path.join (self.dir, "sock")
        pid_file = os.path.join (self.dir, "pid")
        command = [*wrapper, "nbdkit", "-f", "-U", self.socket, "-P", pid_file,
                   *options, *("--filter=" + f for f in filters), GATE,
                   f"size={DISK_BYTES}", "quiet=cache",
                   f"control={theirs.fileno ()}", *args]
        self.log = open (os.path.join (self.dir, "log"), "w+")
        self.process = subprocess.Popen (command, cwd=self.dir, stderr=self.log,
                                         stdin=subprocess.DEVNULL,
                                         stdout=self.log,
                                         pass_fds=[theirs.fileno ()])
        theirs.close ()
        self.clients = []
        # Writes the file, and says how far the scan is.
        self.reporters = sum (a.startswith ("scan-stats=") for a in args)
        self.poll (lambda: os.path.exists (pid_file), "nbdkit to start")

    def poll (self, condition, what):
        deadline = time.monotonic () + PATIENCE_SECS
        while not condition ():
            if self.process.poll () is not None or time.monotonic () > deadline:
                self.log.seek (0)
                raise RuntimeError (f"waited in vain for {what}: "
                                    + self.log.read ())
            time.sleep (0.001)

    def connect (self):
        h = nbd.NBD ()
        h.connect_unix (self.socket)
        self.clients.append (h)
        return h

    def threads (self):
        return len (os.listdir (f"/proc/{self.process.pid}/task"))

    def idle_threads (self):
        """How many there are with no scan, if nbdkit was told --threads=1: one a
        connection, the server's, one that reports, and the gate plugin's as long as
        it holds."""
        return (len (self.clients) + 1 + self.reporters
                + (self.control.fileno () >= 0))

    def memory_kib (self):
        """Private memory in use; what libraries map is not counted."""
        with open (f"/proc/{self.process.pid}/status") as f:
            return int (re.search (r"RssAnon:\s+(\d+) kB", f.read ())[1])

    def release (self):
        """Hold no prefetch any more."""
        self.control.close ()

    def stop (self):
        """Returns nbdkit's exit status."""
        self.release ()
        for h in self.clients:
            h.shutdown ()
        self.process.send_signal (signal.SIGTERM)
        status = self.process.wait (PATIENCE_SECS)
        self.log.close ()
        return status


@contextlib.contextmanager
def server (filters, args=(), options=(), wrapper=()):
    s = Server (filters, args, options, wrapper)
    try:
        yield s
    finally:
        if s.process.poll () is None:
            s.process.kill ()
            s.process.wait ()
        shutil.rmtree (s.dir, ignore_errors=True)


def read (h, reads):
    """Small reads through the disk, round and round."""
    blocks = DISK_BYTES // READ_BYTES
    for i in range (reads):
        h.pread (READ_BYTES, i % blocks * READ_BYTES)


def read_fast (h, reads):
    """The same, many at once."""
    blocks = DISK_BYTES // READ_BYTES
    buffers = [nbd.Buffer (READ_BYTES) for _ in range (READS_AT_ONCE)]
    for i in range (0, reads, READS_AT_ONCE):
        cookies = [h.aio_pread (b, (i + n) % blocks * READ_BYTES)
                   for n, b in enumerate (buffers)]
        while h.aio_in_flight () > 0:
            h.poll (-1)
        for cookie in cookies:
            h.aio_command_completed (cookie)


def wait_for_end_of_scan (s):
    s.poll (lambda: s.threads () == s.idle_threads (), "the end of the scan")


def callgrind_total (path):
    with open (path) as f:
        return int (re.search (r"^(?:summary|totals): (\d+)", f.read (), re.M)[1])


# When a client's read may come, as instructions_per_read wants it: during a scan with
# room in the queue of what its policy has not asked for, and with none; and after it.
MOMENTS = {"queued": {}, "queue full": {"before": 300}, "after": {"during": False}}


def callgrind (s, *command):
    """Tell the callgrind that a server runs under to do something."""
    subprocess.run (["callgrind_control", *command, str (s.process.pid)], check=True,
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def instructions_per_read (filters, args=(), before=10, reads=200, during=True):
    """What one of so many reads of a client takes in the server, after some before
    them: during a scan, which is held at its first prefetch, or after it."""
    with server (filters, [*args, *(["hold=cache"] if during else [])],
                 options=["--threads=1"],
                 wrapper=["valgrind", "--tool=callgrind", "--quiet",
                          "--callgrind-out-file=out"]) as s:
        h = s.connect ()
        if not during:
            wait_for_end_of_scan (s)
        read (h, before)
        callgrind (s, "--zero")
        read (h, reads)
        callgrind (s, "--dump=reads")
        s.stop ()
        return callgrind_total (os.path.join (s.dir, "out.1")) / reads


def instructions_of_decisions (policy, decisions, args):
    """All instructions of the program that makes so many decisions."""
    with tempfile.NamedTemporaryFile (prefix="scan-cost-") as out:
        subprocess.run (["valgrind", "--tool=callgrind", "--quiet",
                         "--callgrind-out-file=" + out.name,
                         DECISIONS, policy, str (decisions), "1", *args],
                        check=True, stdout=subprocess.DEVNULL)
        return callgrind_total (out.name)


def instructions_per_decision (policy, args=()):
    """What one more decision of a policy takes, with no reads to look at."""
    few, many = 1000, 5000
    return (instructions_of_decisions (policy, many, args)
            - instructions_of_decisions (policy, few, args)) / (many - few)
