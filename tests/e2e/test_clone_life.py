# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter over several lives of a server.

Two clients, one request at a time, read and change a disk of some odd size.  Then the
server is stopped or killed, and the next one goes on with the files: with other
parameters, other layers above and below and, in "both", the other clone-write.  In
"failing", calls on the files fail for a while.  What is read is what was written last;
after a kill each byte is as it was flushed, or as it was written since.

SEED=N runs one schedule, SEEDS=N that many of each kind.
"""

import errno
import os
import random
import shutil
import tempfile

import nbd
import pytest

from harness import CHECK_WITH, CLONE, PLUGINS, SCAN, Server

SEEDS = int (os.environ.get ("SEEDS", 3 if CHECK_WITH else 12))
ONE_SEED = os.environ.get ("SEED")

SIZES = [1, 511, 512, 513, 4095, 4096, 4097, 10000, 65536, 100001, 300000, 1 << 20,
         (1 << 20) + 1, 2000003]
COUNTS = [1, 2, 100, 511, 512, 513, 4096, 4096, 8192, 65536, 100000, 300000]
BELOW = {
    "blocksize-policy": ["blocksize-minimum=4096", "blocksize-preferred=4096"],
    "noextents": [], "cacheextents": [], "nocache": [], "retry": [], "readahead": [],
    "multi-conn": [],
}
FAILURES = [errno.EIO, errno.ENOSPC, errno.EDQUOT]


class Disk:
    """What a client may find."""

    def __init__ (self, data):
        self.now = bytearray (data)
        self.flushed ()

    def flushed (self):
        self.durable = bytearray (self.now)
        self.since = []                 # (offset, bytes) that may be there or not

    def write (self, offset, data, ok=True):
        self.since.append ((offset, data))
        if ok:
            self.now[offset:offset + len (data)] = data

    def settle (self, found):
        """After a crash."""
        allowed = [{byte} for byte in self.durable] if found != self.durable else []
        for offset, data in self.since if allowed else ():
            for i, byte in enumerate (data, offset):
                allowed[i].add (byte)
        wrong = [i for i, of in enumerate (allowed) if found[i] not in of]
        assert not wrong, f"after a crash: {len (wrong)} bytes from {wrong[0]} on"
        self.now[:] = found
        self.flushed ()


class Life:
    """One server, from its start to its end."""

    def __init__ (self, rng, kind, folder, size, args):
        r = self.rng = rng
        self.kind, self.size = kind, size
        self.when = os.path.join (folder, "when")
        self.works ()
        through = {"through": True, "both": r.random () < 0.5}.get (kind, False)
        above, below = [], []
        args = [*args, "clone-reserve=0", f"clone-fetch-size={r.choice (['1M', '32M'])}",
                f"clone-commit={r.choice ([0.1, 5, 3600])}",
                "clone-write=" + ("through" if through else "local")]
        if r.random () < 0.4:
            above = [SCAN]
            args += [f"scan-threads={r.randrange (1, 4)}",
                     f"scan-size={r.choice (['64K', '2M'])}",
                     f"scan-background={r.choice (['true', 'false'])}"]
        for name, more in BELOW.items ():
            if r.random () < 0.12:
                below.append (name)
                args += more
        self.server = Server ([*above, CLONE, *below], ["file", f"{folder}/source"],
                              args, (), True)
        self.handles = []
        for _ in range (2):
            self.connect ()

    def connect (self):
        h = self.server.connect (prepare=lambda h: h.add_meta_context (
            nbd.CONTEXT_BASE_ALLOCATION))
        h.set_strict_mode (0)
        assert h.get_size () == self.size
        self.handles.append (h)

    def works (self):
        """All calls on the files, from now on."""
        for name in os.listdir (self.when):
            os.unlink (os.path.join (self.when, name))

    def breaks (self):
        """Or some do not."""
        self.works ()
        if self.kind != "failing" or self.rng.random () < 0.5:
            return
        call = self.rng.choice (["pread", "pwrite", "pwrite", "fallocate", "sync"])
        name = "disk" if call == "pread" else self.rng.choice (["disk", "disk.map"])
        with open (os.path.join (self.when, "new"), "w") as f:
            f.write (str (self.rng.choice (FAILURES)))
        os.rename (f.name, os.path.join (self.when, f"{call}.{name}"))

    def tried (self, call, *args):
        """Call it; whether it went well."""
        try:
            call (*args)
        except nbd.Error as e:
            assert self.kind == "failing" and e.errnum in FAILURES, e
            return False
        return True

    def extent (self):
        r = self.rng
        count = r.choice (COUNTS)
        unit = r.choice ([1, 512, 4096])
        offset = r.choice ([r.randrange (self.size) // unit * unit,
                            max (0, self.size - count)])
        return min (count, self.size - offset), offset

    def change (self, h, disk, what, count, offset):
        r = self.rng
        data = r.randbytes (count) if what == "write" else bytes (count)
        flags = nbd.CMD_FLAG_FUA if r.random () < 0.1 else 0
        if what == "zero":
            flags |= r.choice ([0, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_NO_HOLE])
        try:
            if what == "write":
                h.pwrite (data, offset, flags)
            elif what == "zero":
                h.zero (count, offset, flags)
            else:
                h.trim (count, offset, flags)
        except nbd.Error as e:
            fast = flags & nbd.CMD_FLAG_FAST_ZERO and e.errnum == errno.EOPNOTSUPP
            assert fast or (self.kind == "failing" and e.errnum in FAILURES), e
            # It may have been done in part.
            self.works ()
            disk.write (offset, data, False)
            found = bytearray (count)
            if not self.tried (lambda: found.__setitem__ (
                    slice (None), h.pread (count, offset))):
                return          # a sync has failed, now or before
            assert all (a in (b, c) for a, b, c in zip (
                found, data, disk.now[offset:offset + count])), what
            disk.write (offset, bytes (found))
            return
        disk.write (offset, data)
        if flags & nbd.CMD_FLAG_FUA:
            disk.durable[offset:offset + count] = data
            disk.since = [(at, was) for at, was in disk.since if
                          at < offset or at + len (was) > offset + count]

    def one (self, disk):
        r = self.rng
        h = r.choice (self.handles)
        what = r.choice (["read"] * 3 + ["write"] * 3 + [
            "zero", "trim", "cache", "flush", "extents", "again"])
        count, offset = self.extent ()
        if what == "read":
            buf = bytearray (count)
            if self.tried (lambda: buf.__setitem__ (
                    slice (None), h.pread (count, offset))):
                assert buf == disk.now[offset:offset + count], (
                    f"{count} bytes at {offset}")
        elif what in ("write", "zero", "trim"):
            self.change (h, disk, what, count, offset)
        elif what == "cache":
            self.tried (h.cache, count, offset)
        elif what == "flush":
            if self.tried (h.flush):
                disk.flushed ()
        elif what == "extents":
            found = []
            h.block_status (count, offset, lambda _, at, entries, err:
                            found.extend (entries) or 0)
            for length, state in zip (found[::2], found[1::2]):
                assert not (state & nbd.STATE_ZERO
                            and any (disk.now[offset:offset + length])), offset
                offset += length
        else:
            self.works ()
            self.handles.remove (h)
            if r.random () < 0.5:
                self.server.disconnect (h)
            else:
                h.shutdown ()
                self.server.connections.remove (h)
            self.connect ()

    def read_all (self):
        h = self.handles[0]
        return b"".join (h.pread (min (1 << 20, self.size - at), at)
                         for at in range (0, self.size, 1 << 20))


def make_source (rng, size, path):
    data = bytearray (rng.randbytes (size))
    for _ in range (rng.randrange (4)):
        first = rng.randrange (size)
        end = min (size, first + rng.randrange (200000))
        data[first:end] = bytes (end - first)
    with open (path, "wb") as f:
        f.truncate (size)
        for at in range (0, size, 4096):
            if any (data[at:at + 4096]):
                f.seek (at)
                f.write (data[at:at + 4096])
    return bytes (data)


def run (rng, kind, folder):
    os.mkdir (os.path.join (folder, "when"))
    size = rng.choice (SIZES)
    source = make_source (rng, size, os.path.join (folder, "source"))
    disk = Disk (source)
    crashed = ever_crashed = False
    args = [f"clone-file={folder}/disk",
            f"clone-block-size={rng.choice ([512, 1024, 4096, 65536, 1 << 20])}"]
    for _ in range (rng.randrange (2, 6)):
        life = Life (rng, kind, folder, size, args)
        try:
            if crashed:
                disk.settle (life.read_all ())
            for _ in range (rng.randrange (5, 50)):
                if rng.random () < 0.2:
                    life.breaks ()
                life.one (disk)
            # Without a commit at its end a stop is as good as a crash.
            life.breaks ()
            crashed = rng.random () < 0.5 or os.listdir (life.when) != []
        except BaseException:
            life.server.kill ()
            raise
        if crashed:
            life.server.kill ()
        else:
            life.server.stop ()
            # What has failed just before is in the log by now.
            crashed = any ("cannot be made durable" in line for line in life.server.log)
            if not crashed:
                disk.flushed ()
        ever_crashed |= crashed
    with open (os.path.join (folder, "source"), "rb") as f:
        at_end = f.read ()
    if kind in ("local", "failing"):
        assert at_end == source
    elif kind == "through" and not ever_crashed:
        assert at_end == disk.now


@pytest.mark.parametrize ("kind", ["local", "through", "both", "failing"])
@pytest.mark.parametrize ("seed", [int (ONE_SEED)] if ONE_SEED else range (SEEDS))
def test_lives (seed, kind, monkeypatch):
    folder = tempfile.mkdtemp (prefix="clone-life-", dir=(
        "/dev/shm" if os.access ("/dev/shm", os.W_OK) else None))
    if kind == "failing":
        monkeypatch.setenv ("FAIL_WHEN", os.path.join (folder, "when"))
        monkeypatch.setenv ("LD_PRELOAD", os.path.join (PLUGINS, "fail.so"))
    try:
        run (random.Random (f"{kind} {seed}"), kind, folder)
    finally:
        shutil.rmtree (folder)
