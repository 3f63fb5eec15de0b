# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter against a plain model of a disk, over seeded schedules.

Two clients read, write, zero, trim, cache and flush one small disk at the same time,
aligned to the clone's blocks and not, and the test decides in which order the
plugin's calls end, and which of them fail.  For each unit of the disk the model knows
what a read may see: what the last write left that had ended before the read began, or
a write that is under way at the time of either.  At the end all is read again, and
once more after a restart.

SEED=N runs one schedule, SEEDS=N that many.
"""

import os
import random
import shutil
import tempfile

import nbd
import pytest

from harness import CHECK_WITH, CLONE, gate, nbdkit, pattern

UNIT = 128                      # bytes: what ops are aligned to
BLOCK = 4096
SIZE = 12 * BLOCK + 5 * UNIT    # the last block is short
UNITS = SIZE // UNIT
HOLES = ["data=0+9000", "data=20480+12288"]     # the rest is holes
PER_SERVER = 25
SEEDS = int (os.environ.get ("SEEDS", 50 if CHECK_WITH else 300))
ONE_SEED = os.environ.get ("SEED")
OPS = 40
FOREVER = float ("inf")


def source (holes):
    """What the plugin's disk holds at first, in units."""
    data = bytearray (pattern (0, SIZE))
    for first, end in ((9000, 20480), (20480 + 12288, SIZE)) if holes else ():
        data[first:end] = bytes (end - first)
    return [bytes (data[i:i + UNIT]) for i in range (0, SIZE, UNIT)]


class Write:
    def __init__ (self, begun, ended, value):
        self.begun, self.ended, self.value = begun, ended, value


class Model:
    """What each unit may hold.  Time is a count of events."""

    def __init__ (self, initial):
        self.now = 0
        self.units = [[Write (-1, -1, value)] for value in initial]

    def tick (self):
        self.now += 1
        return self.now

    def write (self, first, values):
        """A write begins; returns what `end` takes."""
        begun = self.tick ()
        writes = []
        for i, value in enumerate (values):
            w = Write (begun, FOREVER, value)
            self.units[first + i].append (w)
            writes.append (w)
        return writes

    def end (self, writes, ok):
        """One that failed may have been done in part, or may not."""
        now = self.tick ()
        for w in writes:
            if ok:
                w.ended = now

    def allowed (self, unit, begun):
        """What a read that began then and ends now may see."""
        done = [w for w in self.units[unit] if w.ended < begun]
        # A write is overwritten by one that began after it had ended.
        latest = max (w.begun for w in done)
        return {w.value for w in self.units[unit]
                if w.ended >= begun or w.ended >= latest}

    def check (self, first, data, begun, what):
        for i in range (len (data) // UNIT):
            got = bytes (data[i * UNIT:(i + 1) * UNIT])
            allowed = self.allowed (first + i, begun)
            # Nothing says that a unit changes all at once.
            assert got in allowed or all (
                b in of for b, of in zip (got, zip (*allowed))), (
                f"{what}: unit {first + i} (byte {(first + i) * UNIT}) holds "
                f"{got[:8].hex ()}, may hold "
                f"{[v[:8].hex () for v in allowed]}")

    def settle (self, data):
        """Nothing is under way, and this is what was read: so it stays."""
        for i in range (UNITS):
            self.units[i] = [Write (-1, -1, bytes (data[i * UNIT:(i + 1) * UNIT]))]

    def values (self):
        return [writes[0].value for writes in self.units]


class Run:
    """One schedule."""

    def __init__ (self, server, seed, export, model):
        self.server = server
        self.random = random.Random (seed)
        self.export = export
        self.model = model
        self.seed = seed
        self.handles = [server.connect (export) for _ in range (2)]
        for h in self.handles:
            h.set_strict_mode (0)
        self.pending = 0
        self.wrong = None

    def extent (self):
        """A range that lies well with blocks, or that doesn't."""
        r = self.random
        if r.random () < 0.4:
            first = r.randrange (UNITS // 32 + 1) * 32
            count = r.choice ([32, 32, 64, 96, 256])
        else:
            first = r.randrange (UNITS)
            count = r.choice ([1, 2, 7, 31, 32, 33, 70])
        first = min (first, UNITS - 1)
        return first, min (count, UNITS - first)

    def done (self, then):
        """A completion that can't raise, as libnbd would drop that."""
        def completed (error):
            self.pending -= 1
            try:
                then (int (error.value))
            except AssertionError as e:
                self.wrong = self.wrong or e
            return 1
        self.pending += 1
        return completed

    def begin (self, h, name):
        model, r = self.model, self.random
        first, count = self.extent ()
        offset, nbytes = first * UNIT, count * UNIT
        if name == "read":
            buf, begun = nbd.Buffer (nbytes), model.tick ()
            h.aio_pread (buf, offset, completion=self.done (
                lambda err: err or model.check (
                    first, buf.to_bytearray (), begun, f"a read ({self.seed})")))
        elif name == "write":
            values = [r.randbytes (UNIT) for _ in range (count)]
            writes = model.write (first, values)
            buf = nbd.Buffer.from_bytearray (bytearray (b"".join (values)))
            h.aio_pwrite (buf, offset, flags=r.choice ([0, 0, nbd.CMD_FLAG_FUA]),
                          completion=self.done (
                              lambda err, _=buf: model.end (writes, not err)))
        elif name in ("zero", "trim"):
            writes = model.write (first, [bytes (UNIT)] * count)
            call = h.aio_zero if name == "zero" else h.aio_trim
            flags = r.choice ([0, nbd.CMD_FLAG_FUA])
            if name == "zero":
                flags |= r.choice ([0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO])
            call (nbytes, offset, flags=flags,
                  completion=self.done (lambda err: model.end (writes, not err)))
        elif name == "cache":
            h.aio_cache (nbytes, offset, completion=self.done (lambda err: None))
        else:
            h.aio_flush (completion=self.done (lambda err: None))

    def pump (self, milliseconds=0):
        for h in self.handles:
            while h.poll (milliseconds) > 0:
                pass

    def release_one (self, may_fail):
        calls = self.server.untaken
        if not calls:
            return False
        call = calls.pop (self.random.randrange (len (calls)))
        fails = may_fail and self.random.random () < 0.1
        self.server.release (call, 5 if fails else 0)
        return True

    def drain (self):
        while self.pending:
            self.pump ()
            self.server.log         # take in what has begun
            if not self.release_one (False):
                for h in self.handles:
                    h.poll (1)

    def read_all (self, h, begun, what):
        """Every plugin call that it needs is let go."""
        buf, failed = nbd.Buffer (SIZE), []
        h.aio_pread (buf, 0, completion=self.done (
            lambda err: failed.append (err) if err else None))
        self.drain ()
        assert not failed, f"{what}: {os.strerror (failed[0])}"
        data = buf.to_bytearray ()
        self.model.check (0, data, begun, what)
        return data

    def run (self):
        names = ["read"] * 5 + ["write"] * 5 + ["cache"] * 3 + \
            ["zero", "zero", "trim", "flush"]
        for _ in range (OPS):
            if self.random.random () < 0.6:
                self.begin (self.random.choice (self.handles),
                            self.random.choice (names))
            else:
                self.release_one (True)
            self.pump ()
            self.server.log
            assert self.wrong is None, self.wrong
        self.drain ()
        assert self.wrong is None, self.wrong

        h, other = self.handles
        data = self.read_all (h, self.model.tick (), f"the end of {self.seed}")
        assert data == self.read_all (other, self.model.tick (),
                                      f"the other client of {self.seed}")
        self.model.settle (data)
        h.aio_flush (completion=self.done (lambda err: None))
        self.drain ()
        for h in self.handles:
            self.server.disconnect (h)


def folder ():
    """Syncs are not what is tested here, so it is in memory where it can be."""
    return tempfile.mkdtemp (prefix="clone-model-", dir=(
        "/dev/shm" if os.access ("/dev/shm", os.W_OK) else None))


def run_seeds (seeds, write):
    directory = folder ()
    args = [f"clone-dir={directory}", f"clone-write={write}", "clone-commit=0.1",
            "clone-reserve=0"]
    # The gate's holes stay holes for .extents when they are written to.
    holes = HOLES if write == "local" else []
    plugin = [f"size={SIZE}", "write=true", *holes]
    held = [f"hold={op}" for op in ("read", "write", "zero", "trim")]
    at_end, disk = {}, source (holes)
    try:
        with nbdkit ([CLONE], gate (*plugin, *held), args) as server:
            for seed in seeds:
                run = Run (server, seed, f"s{seed}", Model (list (disk)))
                run.run ()
                at_end[seed] = b"".join (run.model.values ())
                if write == "through":
                    disk = run.model.values ()
        # Nobody has written since; with `through` the plugin's disk has gone.
        with nbdkit ([CLONE], gate (*plugin), args) as server:
            for seed in seeds:
                if write == "local":
                    h = server.connect (f"s{seed}")
                    assert h.pread (SIZE, 0) == at_end[seed], f"{seed}: restart"
                    server.disconnect (h)
    finally:
        shutil.rmtree (directory)


def batches ():
    if ONE_SEED:
        return [[int (ONE_SEED)]]
    return [list (range (i, min (i + PER_SERVER, SEEDS)))
            for i in range (0, SEEDS, PER_SERVER)]


@pytest.mark.parametrize ("write", ["local", "through"])
@pytest.mark.parametrize ("seeds", batches (), ids=lambda s: f"{s[0]}-{s[-1]}")
def test_every_byte_is_right (seeds, write):
    run_seeds (seeds, write)
