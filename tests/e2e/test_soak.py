# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Everything at once, for a while: clients of several exports that read, vanish and
die in their handshakes, over a plugin that fails now and then, beside a scan in the
background; and then the server is told to end in the middle of it.

SOAK_SECONDS is how long (for each way to run it), SEED what the clients do.
"""

import contextlib
import os
import random
import socket
import struct
import threading
import time

import nbd
import pytest

from harness import SCAN, gate, nbdkit, pattern

SECONDS = float (os.environ.get ("SOAK_SECONDS", 2.5))
CLIENTS = 12
SIZE = 256 * 1024
EXPORTS = ["", "", "a", "b", "c"]
WAYS = {
    "parallel": ["scan-background=true"],
    "serialize_requests": ["scan-background=true"],
    "parallel, no background": [],
}


def read (server, rng, export):
    """Read and check; leave in good manners, or without a word."""
    h = server.connect (export)
    try:
        for _ in range (rng.randrange (8)):
            count = rng.randrange (1, 5000)
            offset = rng.randrange (SIZE - count)
            assert h.pread (count, offset) == pattern (offset, count)
        if rng.random () < 0.5:
            h.shutdown ()
    finally:
        server.disconnect (h)


def vanish (server, rng, export):
    """Leave at some moment of the handshake."""
    name = export.encode ()
    words = [struct.pack (">I", 3),
             b"IHAVEOPT" + struct.pack (">III", 7, 6 + len (name), len (name)),
             name, struct.pack (">H", 0)]
    with socket.socket (socket.AF_UNIX) as client:
        client.connect (server.socket)
        for word in words[:rng.randrange (len (words) + 1)]:
            with contextlib.suppress (BrokenPipeError):
                client.sendall (word)


def be_a_client (server, seed, deadline, failures):
    rng = random.Random (seed)
    try:
        while time.monotonic () < deadline:
            action = rng.choice ([read, read, vanish])
            # The plugin refuses some of them.
            with contextlib.suppress (nbd.Error):
                action (server, rng, rng.choice (EXPORTS))
    except BaseException as e:          # pylint: disable=broad-except
        failures.append (e)


@pytest.mark.parametrize ("way", WAYS)
def test_soak (way):
    seed = int (os.environ.get ("SEED", random.randrange (10**6)))
    print (f"SEED={seed}")
    with nbdkit ([SCAN], gate (f"size={SIZE}", f"model={way.split (',')[0]}",
                               "write=true", "exports=,a,b,c",
                               "quiet=open", "quiet=cache", "delay=cache:1",
                               "delay=can_fua:1", "fail=open:/13", "fail=cache:/17"),
                 [*WAYS[way], "scan-exports=*", "scan-size=4096", "scan-threads=8",
                  "scan-forever=true"]) as server:
        failures = []
        deadline = time.monotonic () + SECONDS
        threads = [threading.Thread (target=be_a_client, args=(
            server, seed + i, deadline, failures)) for i in range (CLIENTS)]
        for thread in threads:
            thread.start ()
        for thread in threads:
            thread.join ()
        assert failures == []
        assert server.process.poll () is None
        for i in range (CLIENTS):
            with contextlib.suppress (nbd.Error):
                vanish (server, random.Random (i), "")
        # A thread of nbdkit 1.32.5 that begins at the signal reads what its main
        # thread frees, now and then dies of it, and the server with it: see that all
        # have begun.
        with contextlib.suppress (nbd.Error):
            server.connect ("b").pread (512, 0)
        server.terminate ()
        for h in list (server.connections):
            server.disconnect (h)
