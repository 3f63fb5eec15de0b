# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""An edge server with the filter, in front of an origin server over a network.

    client -- edge: scan, cow, nbd plugin -- network -- origin: log, delay, file

The two servers are in network namespaces of their own, joined by a pair of virtual
interfaces.  The log filter of the origin tells what went over the network.
"""

import contextlib
import os
import random
import re
import subprocess
import time

import pytest

import harness
from harness import CHECK_WITH, SCAN, nbdkit

SIZE = 8 * 1024 * 1024 + 512
BLOCK = 256 * 1024
BLOCKS = SIZE // BLOCK + 1
COW_BLOCK = 64 * 1024       # what the cow filter fetches at the least
DATA = random.Random (2).randbytes (SIZE)
ORIGIN = "192.0.2.1"        # an address that is for examples, and not routed

pytestmark = pytest.mark.skipif (CHECK_WITH != "",
                                 reason="ip can't run under the checker")


def ip (*words):
    run = subprocess.run (["ip", *words], stdout=subprocess.DEVNULL,
                          stderr=subprocess.PIPE, text=True)
    if run.returncode != 0:
        pytest.skip (f"ip {' '.join (words)}: {run.stderr.strip ()}")


@pytest.fixture (name="network")
def make_network ():
    """The names of two namespaces, joined; .1 is the first, .2 the second."""
    if os.geteuid () != 0:
        pytest.skip ("network namespaces need root")
    names = [f"scan-{end}-{os.getpid ()}" for end in ("origin", "edge")]
    made = []
    try:
        for name in names:
            ip ("netns", "add", name)
            made.append (name)
        ip ("link", "add", "hop", "netns", names[0], "type", "veth",
            "peer", "name", "hop", "netns", names[1])
        for number, name in enumerate (names, 1):
            ip ("-n", name, "address", "add", f"192.0.2.{number}/24", "dev", "hop")
            ip ("-n", name, "link", "set", "hop", "up")
        yield names
    finally:
        for name in made:
            subprocess.run (["ip", "netns", "del", name], check=True)


@contextlib.contextmanager
def inside (namespace):
    """Make the command lines of the harness start in a network namespace."""
    plain = harness.command
    harness.command = lambda *words: ["ip", "netns", "exec", namespace,
                                      *plain (*words)]
    try:
        yield
    finally:
        harness.command = plain


@contextlib.contextmanager
def origin (network, directory):
    """A server with slow reads in the first namespace; its log is origin.log."""
    image, pid = directory / "disk.img", directory / "origin.pid"
    image.write_bytes (DATA)
    server = subprocess.Popen (
        ["ip", "netns", "exec", network[0], "nbdkit", "-f", "-r", "-i", ORIGIN,
         "-P", pid, "--filter=log", "--filter=delay", "file", image, "delay-read=2ms",
         f"logfile={directory}/origin.log"])
    try:
        deadline = time.monotonic () + harness.PATIENCE_SECS
        while not pid.exists ():
            assert server.poll () is None and time.monotonic () < deadline
            time.sleep (0.001)
        yield
    finally:
        server.terminate ()
        status = server.wait (harness.PATIENCE_SECS)
    assert status == 0


@contextlib.contextmanager
def edge (network, *args):
    """A server with the filter in the second namespace."""
    with inside (network[1]), \
         nbdkit ([SCAN, "cow"], ["nbd", f"hostname={ORIGIN}"],
                 ["cow-on-read=true", "scan-method=read", f"scan-size={BLOCK}", *args],
                 ["-v", "-D", "nbdkit.backend.datapath=0"]) as server:
        yield server


def fetched (log):
    """The reads that a log filter wrote down, as (offset, count) in order."""
    request = re.compile (r" Read id=\d+ offset=(\w+) count=(\w+)")
    return [(int (m[1], 16), int (m[2], 16))
            for m in map (request.search, log.read_text ().splitlines ()) if m]


def errors (server):
    """The errors of an edge, but for one of nbdkit itself: opening the nbd plugin it
    asks for the client's export name, and prints this where there is no client."""
    harmless = "no connection in this thread", "no context in this thread"
    return [e for e in server.errors () if e not in harmless]


def test_edge_without_a_client (network, tmp_path):
    """The edge fetches the disk once, before any client comes; the clients then need
    the network no more."""
    log = tmp_path / "origin.log"
    with origin (network, tmp_path), \
         edge (network, "scan-background=true", "scan-threads=4") as server:
        server.wait_line ("scan: finished scanning the plugin")
        assert sorted (fetched (log)) == \
            [(offset, min (BLOCK, SIZE - offset)) for offset in range (0, SIZE, BLOCK)]
        for _ in range (2):
            h = server.connect ()
            for offset in range (0, SIZE, BLOCK):
                assert h.pread (min (BLOCK, SIZE - offset), offset) == \
                    DATA[offset : offset + BLOCK]
        assert len (fetched (log)) == BLOCKS
        assert errors (server) == []


def test_fleet_from_one_trace (network, tmp_path):
    """What one machine read is what each edge fetches first, in that order; a machine
    that reads the same then needs the network no more."""
    log, trace = tmp_path / "origin.log", tmp_path / "boot.log"
    blocks = random.Random (3).sample (range (BLOCKS), 9)
    reads = [(block * BLOCK + 512, 4096) for block in blocks if block < BLOCKS - 1]
    with origin (network, tmp_path):
        with inside (network[1]), \
             nbdkit (["log"], ["nbd", f"hostname={ORIGIN}"],
                     [f"logfile={trace}"]) as server:
            h = server.connect ()
            for offset, count in reads:
                h.pread (count, offset)
        assert fetched (trace) == reads

        for _ in range (2):
            before = len (fetched (log))
            with edge (network, "scan-background=true", "scan-policy=replay",
                       f"scan-file-trace={trace}") as server:
                server.wait_line ("scan: finished scanning the plugin")
                assert fetched (log)[before:] == \
                    [(offset - 512, COW_BLOCK) for offset, _ in reads]
                before = len (fetched (log))
                h = server.connect ()
                for offset, count in reads:
                    assert h.pread (count, offset) == DATA[offset : offset + count]
                assert len (fetched (log)) == before
                assert errors (server) == []
