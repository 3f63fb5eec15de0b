# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""A disk in use from the first moment on, while it becomes local.

A client works over scan and clone on the disk of another server.  nbdkit is killed
under it and started again; all of the disk arrives; the other server goes away; nbdkit
is killed and started again without it.  As QEMU does with reconnect-delay, the client
connects again and repeats the request that got no answer.  `make check-restore` does
the same with a guest.

SEED=N is what the client does.
"""

import os
import queue
import random
import re
import threading

import nbd

from harness import CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, Server, gate, pattern
from test_clone_model import UNIT, Model, Write

SIZE = 1024 * 1024 + 5 * UNIT           # the last block is short
UNITS = SIZE // UNIT
STEPS = 20 if CHECK_WITH else 100       # of the client, between events


class Client:
    """Does one request after the other, in a thread, and checks what it reads."""

    def __init__ (self, seed):
        disk = pattern (0, SIZE)
        self.random = random.Random (seed)
        self.model = Model ([disk[i:i + UNIT] for i in range (0, SIZE, UNIT)])
        self.flushed = 0        # when the last flush began that went well
        self.servers = queue.Queue ()
        self.killed = threading.Event ()
        self.steps = self.repeated = 0
        self.ending = False
        self.failure = None
        self.thread = threading.Thread (target=self._run, daemon=True)

    def start (self, server):
        self.h = server.connect ()
        self.thread.start ()

    def stop (self):
        self.ending = True
        self.thread.join ()
        if self.failure:
            raise self.failure

    def wait (self, server, steps=STEPS):
        """Let it do that many more."""
        until = self.steps + steps
        server.poll (lambda: self.failure or self.steps >= until, "the client")
        if self.failure:
            raise self.failure

    def _run (self):
        try:
            while not self.ending:
                self._step ()
                self.steps += 1
        except BaseException as e:      # pylint: disable=broad-except
            self.failure = e

    def _step (self):
        r = self.random
        first = r.choice ([r.randrange (UNITS), r.randrange (UNITS) // 32 * 32])
        count = min (r.choice ([1, 7, 32, 33, 64, 200]), UNITS - first)
        what = r.choice (["read", "read", "write", "write", "zero", "trim", "flush"])
        values = [r.randbytes (UNIT) if what == "write" else bytes (UNIT)
                  for _ in range (count)]
        while True:
            try:
                self._request (what, first, values)
                return
            except nbd.Error:
                if not self.killed.is_set ():
                    raise
                self.reconnect ()
                self.repeated += 1

    def _request (self, what, first, values):
        offset, count = first * UNIT, len (values) * UNIT
        begun = self.model.tick ()
        if what == "read":
            self.model.check (first, self.h.pread (count, offset), begun, "a read")
        elif what == "flush":
            self.h.flush ()
            self.flushed = begun
        else:
            # One that is cut off stays under way: it may have been done or not.
            writes = self.model.write (first, values)
            if what == "write":
                self.h.pwrite (b"".join (values), offset)
            elif what == "zero":
                self.h.zero (count, offset)
            else:
                self.h.trim (count, offset)
            self.model.end (writes, True)

    def reconnect (self):
        """All that was flushed must be there, and what is there stays."""
        server = self.servers.get (timeout=PATIENCE_SECS)
        self.killed.clear ()
        self.h = server.connect ()
        # Only where it has written: the rest is the scan's to fetch.
        for unit in range (UNITS):
            if len (self.model.units[unit]) > 1:
                data = self.h.pread (UNIT, unit * UNIT)
                self.model.check (unit, data, self.flushed, "after a kill")
                self.model.units[unit] = [Write (-1, -1, bytes (data))]
        self.flushed = self.model.tick ()


def present (path):
    """Bytes that are in the clone, by its counters."""
    if not os.path.exists (path):
        return 0
    with open (path) as f:
        found = re.search (r"^nbdkit_clone_present_bytes\S* (\d+)$", f.read (), re.M)
    return int (found[1]) if found else 0


def test_a_disk_becomes_local_under_its_client (tmp_path):
    seed = int (os.environ.get ("SEED", random.randrange (10**6)))
    print (f"SEED={seed}")
    clone, stats = tmp_path / "clone.img", tmp_path / "stats"
    client = Client (seed)

    def start (*more):
        return Server ([SCAN, CLONE], ["nbd", f"socket={origin.socket}"], [
            f"clone-file={clone}", f"clone-stats={stats}", "clone-reserve=0",
            "scan-size=32768", *more], (), True)

    def kill (server):
        client.killed.set ()
        server.kill ()
        if stats.exists ():
            stats.unlink ()

    origin = Server ([], gate (f"size={SIZE}"), (), (), False)
    try:
        # So little is fetched that it is not all there before the first kill, and only
        # the client's flushes commit.
        server = start ("scan-limit=256K", "clone-commit=3600")
        try:
            client.start (server)
            client.wait (server)
        finally:
            kill (server)

        server = start ("scan-policy=data", "clone-commit=0.1")
        try:
            client.servers.put (server)
            client.wait (server)
            server.poll (lambda: client.failure or present (stats) >= SIZE,
                         "the whole disk to be there")
            assert client.repeated == 1
            origin.kill ()
            client.wait (server)
        finally:
            kill (server)
    finally:
        if origin.process.returncode is None:
            origin.kill ()

    server = start ("scan-policy=data")
    try:
        client.servers.put (server)
        client.wait (server)
        client.stop ()
        assert client.repeated == 2
        client.h.flush ()
        client.model.check (0, client.h.pread (SIZE, 0), client.model.tick (),
                            "at the end")
        assert server.errors () == []
        server.stop ()
    except BaseException:
        server.kill ()
        raise
    # It depends on nothing any more.
    client.model.check (0, clone.read_bytes (), client.model.tick (), "the file")
