# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter and servers that are killed while clients work.

The server is killed at any moment and started again on the same pair of files, over
and over: no flushed write is lost, no byte is read that was never there, and what had
been committed is not fetched again.  KILLS=N kills that often.
"""

import os
import random
import shutil
import tempfile
import threading

import nbd

from harness import CHECK_WITH, CLONE, Server, gate, nbdkit
from test_clone_powercut import BASES, CELL, CLIENTS, SECTOR, SIZE, Work, Write, source

KILLS = int (os.environ.get ("KILLS", 5 if CHECK_WITH else 30))
# Sectors that clients work on from each base on, and how many places of that size
# there are.
WIDTH = 3 * CLIENTS * CELL
ROUNDS = 100

# A position that all that has been answered lies before.
NOW = 1


class KilledWork (Work):
    """Nothing is recorded here, so there are no positions: all that has been
    answered, has been."""

    def position (self):
        return 0

    def restart (self, number):
        """Somewhere else than before, as all that was looked at is there to stay."""
        self.bases = [base + number % ROUNDS * WIDTH for base in BASES]
        self.answers = self.time = 0
        self.flushes.clear ()

    def client (self, server, number):
        rng = random.Random (self.seed * 10 + number)
        try:
            h = server.connect ()
            while True:
                self.one (rng, h, number)
                with self.lock:
                    self.answers += 1
        except nbd.Error:
            pass                # it has been killed

    def settle (self, sector, value):
        """After a restart this is what there is, and it stays."""
        self.writes[sector] = [Write (value, 0, 0, 0)]


def look (server, work, where):
    """Compare all that clients work on with what they have written."""
    h = server.connect ()
    for base in work.bases:
        data = h.pread (WIDTH * SECTOR, base * SECTOR)
        for i in range (WIDTH):
            got = bytes (data[i * SECTOR:(i + 1) * SECTOR])
            assert got in work.allowed (base + i, NOW), (
                f"{where}: sector {base + i} holds {got[:8].hex ()}, may hold "
                f"{[v[:8].hex () for v in work.allowed (base + i, NOW)]}")
            if got != source (base + i) or work.writes[base + i]:
                work.settle (base + i, got)
    server.disconnect (h)


def run_and_kill (server, work, answers):
    """Kill the server once it has answered that many requests of all clients."""
    threads = [threading.Thread (target=work.client, args=(server, n))
               for n in range (CLIENTS)]
    for thread in threads:
        thread.start ()
    server.poll (lambda: work.answers >= answers, "clients to work")
    server.process.kill ()
    for thread in threads:
        thread.join ()


def test_kill_and_start_again ():
    directory = tempfile.mkdtemp (prefix="clone-kill-", dir=(
        "/dev/shm" if os.access ("/dev/shm", os.W_OK) else None))
    args = [f"clone-file={directory}/disk", "clone-block-size=512",
            "clone-reserve=0"]
    rng = random.Random (1)
    work = KilledWork (None, 0)
    try:
        for kill in range (KILLS):
            work.seed = kill
            # Where only a flush commits, it is seen whether it does.
            commit = rng.choice (["clone-commit=0.1", "clone-commit=3600"])
            server = Server ([CLONE], gate (f"size={SIZE}"), [*args, commit], (), True)
            try:
                look (server, work, f"after kill {kill}")
                work.restart (kill)
                run_and_kill (server, work, rng.randrange (1, 150))
            finally:
                server.kill ()
        with nbdkit ([CLONE], gate (f"size={SIZE}", "log=read"), args) as server:
            look (server, work, "at the end")
        # All that was looked at is committed by then, and not fetched again.
        with nbdkit ([CLONE], gate (f"size={SIZE}", "log=read"), args) as server:
            look (server, work, "after a clean end")
            assert server.calls ("read") == []
    finally:
        shutil.rmtree (directory)
