#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Everything at once, for as long as wanted.

    tests/soak/soak.py [HOURS]          (1/3; SEED=N does what an earlier run did)

`make soak` runs it.  Three houses are lived in at the same time:

- over scan and clone, one server from beginning to end, with a source that fails,
  many exports, and clients that read, write, vanish and die in their handshakes;
- over scan alone, the same over a plugin that opens, prefetches and handshakes badly;
- one server after the other, with layers, a policy and options as they come, that are
  ended in good manners or killed, over clones that stay, or disks whose size changes.

Whatever a client reads is compared with what a model says it may be.  Of the servers
that stay, memory, threads and descriptors in the second half of the time are compared
with those of its second quarter, each while no client is there.

SEED decides what is done and with what; threads come in any order, so a run with the
same seed is alike and not the same.
"""

import contextlib
import glob
import os
import random
import shutil
import statistics
import sys
import tempfile
import threading
import time

HERE = os.path.dirname (os.path.abspath (__file__))
sys.path.insert (0, os.path.join (HERE, "../e2e"))

import nbd              # noqa: E402

import test_soak        # noqa: E402
from harness import CLONE, SCAN, TOP, Server, gate, pattern     # noqa: E402
from test_clone_model import UNIT, Model, Write         # noqa: E402

CLIENTS = 4                     # of each house
SHIFT_SECS = 3                  # then they all leave, and all is compared
MINUTE = 60
SIZE = 2 * 1024 * 1024 + 3 * UNIT       # no multiple of a block
MOST = 8 * 1024 * 1024          # of disks whose size changes
PATTERN = pattern (0, MOST)

# A server may have so much more memory late than early: it keeps what is bounded, and
# malloc what was free at the time.
MORE_RATIO, MORE_BYTES = 1.1, 3 * 1024 * 1024

POLICIES = [f"scan-policy={name}" for name in (
    "adaptive", "ahead", "clock", "data", "default", "forever", "learn", "metadata",
    "readahead", "reverse", "shuffle", "stride")]
BAD_POLICIES = sorted (glob.glob (os.path.join (TOP, "tests/fixtures/bad-run/*.lua")))


class LockedModel (Model):
    """Of one export, for clients in threads; `flushed` is when the last flush began
    that went well."""

    def __init__ (self, disk):
        super ().__init__ ([disk[i:i + UNIT] for i in range (0, len (disk), UNIT)])
        self.lock = threading.Lock ()
        self.flushed = 0

    def write (self, first, values):
        with self.lock:
            return super ().write (first, values)

    def end (self, writes, ok):
        with self.lock:
            super ().end (writes, ok)

    def begin (self):
        with self.lock:
            return self.tick ()

    def has_flushed (self, begun):
        with self.lock:
            self.flushed = max (self.flushed, begun)

    def check (self, first, data, begun, what):
        with self.lock:
            super ().check (first, data, begun, what)


class House:
    """A server and the clients of its exports, whom `shift` sends in once."""

    def __init__ (self, name, rng, deadline):
        self.name, self.rng, self.deadline = name, rng, deadline
        self.models = {}        # of exports that are written to
        self.disks = {}         # of those that are only read
        self.trims = True       # what was trimmed reads as zeroes
        self.caches = True      # clients prefetch, too
        self.writing = contextlib.nullcontext ()        # around each write
        self.server = None
        self.failures = []
        self.requests = self.bytes = self.refused = 0
        self.lock = threading.Lock ()

    # -- clients --

    def count (self, count):
        with self.lock:
            self.requests += 1
            self.bytes += count

    def extent (self, rng, size):
        """In units; most are small, some lie well with blocks."""
        units = size // UNIT
        first = rng.randrange (units)
        if rng.random () < 0.4:
            first = first // 32 * 32
        return first, min (rng.choice ([1, 3, 31, 32, 64, 65, 256, 1024]),
                           units - first)

    def one (self, rng, h, export):
        """A request of a client, checked."""
        model = self.models.get (export)
        disk = self.disks.get (export)
        size = h.get_size ()
        if size < UNIT:
            return
        first, count = self.extent (rng, size)
        offset, nbytes = first * UNIT, count * UNIT
        what = rng.choice (["read"] * 5 + ["cache"] * self.caches + (
            ["write"] * 4 + ["zero", "trim", "flush"] if model else []))
        self.count (nbytes)
        if what == "cache":
            h.cache (nbytes, offset)
        elif what == "read":
            begun = model.begin () if model else 0
            data = h.pread (nbytes, offset)
            if model:
                model.check (first, data, begun, f"{self.name}, '{export}'")
            else:
                assert data == disk[offset:offset + nbytes], (
                    f"{self.name}, '{export}': wrong bytes at {offset}+{nbytes}")
        elif what == "flush":
            begun = model.begin ()
            h.flush ()
            model.has_flushed (begun)
        else:
            values = [rng.randbytes (UNIT) if what == "write" else bytes (UNIT)] * count
            with self.writing:
                self.change (what, h, model, rng, first, values)

    def change (self, what, h, model, rng, first, values):
        offset, nbytes = first * UNIT, len (values) * UNIT
        writes, ok = model.write (first, values), False
        try:
            if what == "write":
                h.pwrite (b"".join (values), offset,
                          rng.choice ([0, 0, nbd.CMD_FLAG_FUA]))
            elif what == "zero":
                h.zero (nbytes, offset, rng.choice ([0, nbd.CMD_FLAG_NO_HOLE]))
            else:
                h.trim (nbytes, offset)
            # A trim need not do anything, and over the cache filter it may not.
            ok = what != "trim" or self.trims
        finally:
            model.end (writes, ok)

    def visit (self, rng, export, until):
        """Connect, and leave in good manners or without a word."""
        h = self.server.connect (export)
        try:
            for _ in range (rng.randrange (60)):
                if time.monotonic () > until:
                    break
                # The source may fail.  If the server is gone the next one tells.
                with contextlib.suppress (nbd.Error):
                    self.one (rng, h, export)
                if not h.aio_is_ready ():
                    break
            if rng.random () < 0.5:
                with contextlib.suppress (nbd.Error):
                    h.shutdown ()
        finally:
            with contextlib.suppress (ValueError, OSError):
                self.server.disconnect (h)

    def client (self, seed, until):
        rng = random.Random (seed)
        exports = [*self.models, *self.disks]
        try:
            while time.monotonic () < until and self.server.process.poll () is None:
                export = rng.choice (exports)
                try:
                    if rng.random () < 0.15:
                        test_soak.vanish (self.server, rng, export)
                    else:
                        self.visit (rng, export, until)
                except (nbd.Error, OSError):
                    # The plugin refuses some, or the server has been killed.
                    with self.lock:
                        self.refused += 1
        except BaseException as e:      # pylint: disable=broad-except
            self.failures.append (e)

    # -- the house --

    def start (self, filters, plugin, args):
        self.server = Server (filters, plugin, args, (), True)

    def shift (self, kill_after=None):
        """Clients come and go for a while, or until the server is killed."""
        until = time.monotonic () + SHIFT_SECS
        threads = [threading.Thread (target=self.client, args=(
            self.rng.randrange (2**32), until)) for _ in range (CLIENTS)]
        for thread in threads:
            thread.start ()
        if kill_after is not None:
            threads[0].join (kill_after)
            self.server.process.kill ()
        for thread in threads:
            thread.join ()
        self.fail_if_failed ()
        if kill_after is None:
            status = self.server.process.poll ()
            assert status is None, (f"{self.name}: nbdkit ended with {status}: "
                                    + "\n".join (self.server.log[-30:]))
            self.forget_log ()

    def fail_if_failed (self):
        if self.failures:
            raise self.failures[0]

    def forget_log (self):
        """What the harness keeps of a server's words would grow without end."""
        with self.server.changed:
            for kept in (self.server.lines, self.server.raw, self.server.begun,
                         self.server.untaken):
                del kept[:-500]

    def attempt (self, call):
        """The source and the plugin may fail a few times in a row, and not for ever."""
        for left in range (200, -1, -1):
            try:
                return call ()
            except nbd.Error:
                if left == 0:
                    raise

    def compare_all (self, killed=False):
        """Nobody is there: read all that has been written, and settle for that."""
        for export, model in self.models.items ():
            h = self.attempt (lambda e=export: self.server.connect (e))
            begun = model.flushed if killed else model.begin ()
            size, data = h.get_size (), bytearray ()
            while len (data) < size:
                count = min (256 * 1024, size - len (data))
                data += self.attempt (lambda n=count: h.pread (n, len (data)))
            model.check (0, data, begun, f"{self.name}, '{export}', "
                         + ("after a kill" if killed else "at the end of a shift"))
            begun = model.begin ()
            if h.can_flush ():
                self.attempt (h.flush)
            with model.lock:
                model.flushed = begun + 1
                model.now = begun + 1
                model.units = [[Write (-1, -1, bytes (data[i:i + UNIT]))]
                               for i in range (0, size, UNIT)]
            self.count (size)
            self.server.disconnect (h)


class Staying (House):
    """One server for all of the time, that is measured."""

    def __init__ (self, *args):
        super ().__init__ (*args)
        self.samples = []       # when, and a dict

    def sample (self):
        """Clients are gone; the last of their threads may take some moments."""
        def look ():
            fds = len (os.listdir (f"/proc/{self.server.pid}/fd"))
            return (self.server.rss_bytes (), len (self.server.threads ()), fds)
        looks, until = [], time.monotonic () + 10
        least = min ((numbers["threads"] for _, numbers in self.samples), default=0)
        while len (looks) < 20 or (min (n for _, n, _ in looks) > least > 0
                                   and time.monotonic () < until):
            looks.append (look ())
            time.sleep (0.01)
        rss, threads, fds = (min (column) for column in zip (*looks))
        self.samples.append ((time.monotonic (),
                              {"bytes": rss, "threads": threads, "descriptors": fds}))

    def run (self):
        try:
            self.open ()
            while time.monotonic () < self.deadline:
                self.shift ()
                self.compare_all ()
                self.sample ()
            self.server.stop ()
        except BaseException as e:      # pylint: disable=broad-except
            self.failures.append (e)

    def grown (self):
        """What has, as texts."""
        begin = self.samples[0][0]
        whole = max (self.samples[-1][0] - begin, 1e-9)
        early = [s for t, s in self.samples if 0.25 <= (t - begin) / whole < 0.5]
        late = [s for t, s in self.samples if (t - begin) / whole >= 0.75]
        if not early or not late:
            return [f"{self.name}: too few samples; let it run for longer"]
        found = []
        for key in self.samples[0][1]:
            before = statistics.median (s[key] for s in early)
            after = statistics.median (s[key] for s in late)
            limit = before * MORE_RATIO + MORE_BYTES if key == "bytes" else before + 2
            print (f"{self.name}: {key} {before:.0f} early, {after:.0f} late")
            if after > limit:
                found.append (f"{self.name}: {key} grew from {before:.0f} to {after:.0f}")
        return found


class OverClone (Staying):
    def open (self):
        directory = os.path.join (self.dir, "staying")
        os.mkdir (directory)
        for export in "w", "x", "y":
            self.models[export] = LockedModel (PATTERN[:SIZE])
        for n in range (20):
            self.disks[f"r{n}"] = PATTERN[:SIZE]
        self.start ([SCAN, CLONE], gate (
            f"size={SIZE}", "quiet=open", "quiet=cache", "fail=read:/37",
            "fail=open:/41", "delay=read:1"), [
                f"clone-dir={directory}", "clone-commit=0.2", "clone-reserve=0",
                f"clone-stats={directory}/stats", "scan-exports=*", "scan-size=65536",
                "scan-threads=4", "scan-policy=adaptive",
                f"scan-stats={directory}/scan"])


class ScanAlone (Staying):
    def open (self):
        for export in "", "a", "b", "c":
            self.disks[export] = PATTERN[:SIZE]
        self.start ([SCAN], gate (
            f"size={SIZE}", "exports=,a,b,c", "quiet=open", "quiet=cache",
            "delay=cache:1", "delay=can_fua:1", "fail=open:/13", "fail=cache:/17"), [
                "scan-background=true", "scan-exports=*", "scan-size=4096",
                "scan-threads=8", "scan-forever=true"])


class Changing (House):
    """One server after the other."""

    def __init__ (self, *args):
        super ().__init__ (*args)
        self.lives = self.kills = 0

    def options (self):
        rng = self.rng
        found = ["scan-exports=*", f"scan-size={rng.choice ([4096, 32768, 262144])}",
                 f"scan-threads={rng.choice ([1, 2, 8])}"]
        if rng.random () < 0.2:
            found += ["scan-policy=" + rng.choice (BAD_POLICIES),
                      "scan-policy-timeout=1"]
        else:
            found.append (rng.choice (POLICIES))
            if found[-1] == "scan-policy=learn":
                found.append (f"scan-trace={self.dir}/trace")
        found += rng.sample ([
            "scan-background=true", "scan-pace=false", "scan-rate=20M",
            "scan-limit=3M", f"scan-stats={self.dir}/stats",
            "scan-policy-memory=1M"], rng.randrange (3))
        return found

    def faults (self):
        return self.rng.sample (["fail=read:/29", "fail=cache:/11", "fail=open:/7",
                                 "delay=read:1", "delay=open:2"], self.rng.randrange (4))

    def local (self):
        """Clones that stay from life to life, and are killed."""
        directory = os.path.join (self.dir, "local")
        if not os.path.isdir (directory):
            os.mkdir (directory)
            self.clones = {e: LockedModel (PATTERN[:SIZE]) for e in ("", "a", "b")}
        self.models = self.clones
        self.start ([SCAN, CLONE], gate (
            f"size={SIZE}", "exports=,a,b", "quiet=open", "quiet=cache",
            *self.faults ()), [
                f"clone-dir={directory}", "clone-reserve=0", self.rng.choice (
                    ["clone-commit=0.1", "clone-commit=3600"]), *self.options ()])
        return True

    def through (self):
        """A clone in step with a file that is written to as well."""
        path = os.path.join (self.dir, "through")
        if not os.path.exists (path):
            with open (path, "wb") as f:
                f.write (PATTERN[:SIZE])
            self.stepped = {"": LockedModel (PATTERN[:SIZE])}
        self.models = self.stepped
        self.start ([SCAN, CLONE], ["file", path], [
            f"clone-file={path}.clone", "clone-reserve=0", "clone-write=through",
            *self.options ()])
        return True

    def layer (self, name, *args):
        """What nbdkit's own layers keep is gone with the server."""
        self.models = {"": LockedModel (PATTERN[:SIZE])}
        faults = self.faults ()
        self.start ([SCAN, name], gate (
            f"size={SIZE}", "write=true", "quiet=open", "quiet=cache", *faults), [
                *args, *self.options ()])
        return False

    def cow (self):
        return self.layer ("cow", "cow-on-cache=true")

    def cache (self):
        return self.layer ("cache")

    def sizes (self):
        """A file that grows and shrinks under its server."""
        path = os.path.join (self.dir, "sizes")
        self.disks = {"": PATTERN}
        self.resize (path)
        self.start ([SCAN], ["file", path], self.options ())
        return False

    def resize (self, path):
        """What is there always holds the pattern."""
        size = self.rng.randrange (MOST // UNIT) * UNIT
        with open (path, "ab") as f:
            at = f.tell ()
            if size > at:
                f.write (PATTERN[at:size])
            else:
                f.truncate (size)

    def live (self):
        kind = self.rng.choice (["local", "local", "through", "cow", "cache", "sizes"])
        self.name = f"life {self.lives}, {kind}"
        self.models, self.disks = {}, {}
        self.trims = kind in ("local", "through")
        # Cow (nbdkit 1.32.5) loses a write if a client prefetches there or another
        # writes a part of the same block, with no scan as well.
        self.caches = kind != "cow"
        self.writing = threading.Lock () if kind == "cow" else contextlib.nullcontext ()
        stays = getattr (self, kind) ()
        self.lives += 1
        try:
            if stays:
                # As the life before may have ended with a kill.
                self.compare_all (killed=True)
            for _ in range (self.rng.randrange (1, 4)):
                if kind == "sizes":
                    self.resize (os.path.join (self.dir, "sizes"))
                self.shift ()
                self.compare_all ()
            if stays and self.rng.random () < 0.7:
                self.kills += 1
                self.shift (kill_after=self.rng.random () * SHIFT_SECS)
                self.server.kill ()
            else:
                self.server.stop ()
        except BaseException:
            sys.stderr.write ("\n".join ([" ".join (self.server.process.args)]
                                         + self.server.log[-60:]) + "\n")
            self.server.kill ()
            raise

    def run (self):
        try:
            while time.monotonic () < self.deadline:
                self.live ()
        except BaseException as e:      # pylint: disable=broad-except
            self.failures.append (e)


def tell (begin, houses):
    changing = houses[-1]
    print (f"{(time.monotonic () - begin) / MINUTE:6.1f} min: "
           f"{sum (h.requests for h in houses)} requests, "
           f"{sum (h.bytes for h in houses) // 2**20} MiB, "
           f"{sum (h.refused for h in houses)} refused, {changing.lives} lives, "
           f"{changing.kills} kills", *(
               f"| {h.name} {s['bytes'] // 2**10} KiB {s['threads']} threads "
               f"{s['descriptors']} descriptors"
               for h in houses[:-1] for _, s in h.samples[-1:]), flush=True)


def main (args):
    try:
        hours = float (args[0]) if args else 1 / 3
        assert hours > 0
    except (ValueError, AssertionError):
        sys.exit (f"soak: HOURS={args[0]}: expected a number above 0, such as 0.5")
    seed = int (os.environ.get ("SEED", random.randrange (10**6)))
    print (f"SEED={seed}, {hours * 60:.1f} minutes", flush=True)
    begin = time.monotonic ()
    directory = tempfile.mkdtemp (prefix="scan-soak-", dir=(
        "/dev/shm" if os.access ("/dev/shm", os.W_OK) else None))
    houses = [kind (name, random.Random (seed + n), begin + hours * 3600)
              for n, (kind, name) in enumerate ([
                  (OverClone, "over clone"), (ScanAlone, "scan alone"),
                  (Changing, "changing")])]
    threads = []
    try:
        for house in houses:
            house.dir = directory
            threads.append (threading.Thread (target=house.run))
            threads[-1].start ()
        while any (thread.is_alive () for thread in threads):
            for thread in threads:
                thread.join (MINUTE / len (threads))
            tell (begin, houses)
            if any (house.failures for house in houses):
                for house in houses:
                    house.deadline = 0
    finally:
        for thread in threads:
            thread.join ()
        shutil.rmtree (directory)
    failures = [f"{house.name}: {failure!r}"
                for house in houses for failure in house.failures]
    if not failures:
        for house in houses[:-1]:
            failures += house.grown ()
    for failure in failures:
        print (f"soak: {failure} (SEED={seed})")
    print ("0 passed, 1 failed" if failures else "1 passed, 0 failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit (main (sys.argv[1:]))
