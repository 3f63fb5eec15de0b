# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter and power cuts.

tests/preload/record.c records what a server does to the clone's two files while
clients work.  From the record come the states that a power cut at any instant could
have left: what was written before a sync that has ended is there; of what came after,
any part, down to single sectors, in any order.  For each state the map is loaded, and
what a client would then read is compared with what it wrote: nothing that was flushed
is lost, and nothing is read that was never there.  With one of these states the next
server begins, so that there are cuts after cuts.

SEEDS=N runs that many workloads, each with STATES states after each of its CUTS.
"""

import collections
import functools
import os
import random
import shutil
import struct
import subprocess
import tempfile
import threading

import nbd
import pytest

from harness import CLONE, PLUGINS, gate, nbdkit, pattern

SEEDS = int (os.environ.get ("SEEDS", 4))
STATES = int (os.environ.get ("STATES", 150))
CUTS = int (os.environ.get ("CUTS", 4))
OPS = 60                        # of each client
CLIENTS = 3

SECTOR = 512                    # what a disk writes whole, and our block
SIZE = 40 * 1024 * 1024         # 3 pages of the map
CELL = 16                       # sectors that belong to one client
BITS = 8 * 4096 // SECTOR       # where pages of bits begin in a map
# Where clients work: in each page of the map.
BASES = [0, 33000, 66000]

NEVER = float ("inf")

ENTRY = struct.Struct ("=BB2xIQQ")
WRITE, ZERO, TRUNCATE, SYNC, END = 1, 2, 3, 4, 5

Entry = collections.namedtuple ("Entry", "kind file id offset count data position")


def entries (log):
    """The entries, each with the position in the log at which it ends."""
    with open (log, "rb") as f:
        text = f.read ()
    at = 0
    while at + ENTRY.size <= len (text):
        kind, file, number, offset, count = ENTRY.unpack_from (text, at)
        at += ENTRY.size
        data = None
        if kind == WRITE:
            data = text[at:at + count]
            at += count
        yield Entry (kind, file, number, offset, count, data, at)


class File:
    """What is durable, and what has been done since: size and sectors."""

    def __init__ (self, state):
        self.size, self.sectors = state[0], dict (state[1])
        self.pending = []           # [entry, has ended]

    @staticmethod
    def apply (size, sectors, entry, included):
        if entry.kind == TRUNCATE:
            if included (0):
                if entry.offset == 0:
                    sectors.clear ()
                size = entry.offset
        else:
            for i in range (entry.offset // SECTOR,
                            (entry.offset + entry.count) // SECTOR):
                if included (i):
                    at = i * SECTOR - entry.offset
                    sectors[i] = entry.data[at:at + SECTOR] if entry.data else None
        return size

    def sync (self, number_begun):
        """All that had ended before this sync began is durable."""
        kept = []
        for item in self.pending:
            entry, ended = item
            if ended and ended < number_begun:
                self.size = self.apply (self.size, self.sectors, entry,
                                        lambda _: True)
            else:
                kept.append (item)
        self.pending = kept

    def after_cut (self, rng):
        """A state that a power cut now could leave."""
        mode = rng.choice (["none", "all", "some", "sectors", "newest", "oldest"])
        half = rng.randrange (len (self.pending) + 1)
        size, sectors = self.size, dict (self.sectors)
        for i, (entry, _) in enumerate (self.pending):
            whole = {"none": False, "all": True, "newest": i >= half,
                     "oldest": i < half}.get (mode, rng.random () < 0.5)
            size = self.apply (
                size, sectors, entry, (lambda _: rng.random () < 0.5)
                if mode == "sectors" else (lambda _, w=whole: w))
        return size, sectors


def states (log, before, rng, how_many):
    """(position in the log, data, map, whether it is in a commit) of random instants,
    with more of them where something is waiting for a sync of the map, and at the first
    commits.  Before the log there were these data and map."""
    all_entries = list (entries (log))
    chosen = collections.Counter (rng.randrange (1, len (all_entries))
                                  for _ in range (how_many // 2))
    syncs = [i for i, e in enumerate (all_entries) if e.kind == SYNC and e.file == 1]
    for _ in range (how_many - how_many // 2):
        chosen[min (len (all_entries) - 1,
                    max (1, rng.choice (syncs[:rng.choice ([3, None])])
                         + rng.randrange (-3, 4)))] += 1

    files, begun = [File (state) for state in before], {}
    for number, e in enumerate (all_entries):
        if e.kind == END:
            b, n = begun.pop ((e.file, e.id))
            if b.kind == SYNC:
                files[e.file].sync (n)
            else:
                for item in files[e.file].pending:
                    if item[0] is b:
                        item[1] = number
        else:
            begun[(e.file, e.id)] = (e, number)
            if e.kind != SYNC:
                files[e.file].pending.append ([e, 0])
        for _ in range (chosen[number]):
            data, pages = files[0].after_cut (rng), files[1].after_cut (rng)
            yield e.position, data, pages, any (
                i >= BITS and sector != files[1].sectors.get (i)
                for i, sector in pages[1].items ())


def write_state (path, state):
    size, sectors = state
    with open (path, "wb") as f:
        f.truncate (size)
        for i, data in sectors.items ():
            if data is not None and i * SECTOR < size:
                f.seek (i * SECTOR)
                f.write (data)


class Dump:
    """Loads maps, with the filter's own code."""

    def __init__ (self, directory):
        self.path = os.path.join (directory, "state.map")
        self.process = subprocess.Popen (
            [os.path.join (PLUGINS, "map-dump")], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True)

    def load (self, state):
        """The kind of result, whether clients wrote, and the set of blocks."""
        write_state (self.path, state)
        self.process.stdin.write (self.path + "\n")
        self.process.stdin.flush ()
        line = self.process.stdout.readline ().rstrip ("\n")
        if not line.startswith (("ok ", "repaired ")):
            return line, set ()
        kind, _, runs = line.split (" ")
        present = set ()
        for run in filter (None, runs.split (",")):
            first, end = map (int, run.split ("-"))
            present.update (range (first, end))
        return kind, present

    def close (self):
        self.process.stdin.close ()
        self.process.wait ()
        self.process.stdout.close ()


@functools.lru_cache (None)
def source (sector):
    return pattern (sector * SECTOR, SECTOR)


class Write:
    """Of one sector: the position before it, the time when it was answered, and the
    position from which on it is durable by itself."""

    def __init__ (self, value, before, done=NEVER, durable=NEVER):
        self.value, self.before = value, before
        self.done, self.durable = done, durable


class Work:
    """What clients do, and when it was durable, in positions of the log."""

    def __init__ (self, log, seed, base=source):
        self.log = log
        self.seed = seed
        self.base = base        # what a sector held before
        self.bases = BASES
        self.lock = threading.Lock ()
        self.time = 0
        self.writes = collections.defaultdict (list)    # by sector
        self.flushes = []       # (time of the request, position of the answer)
        self.wrong = []

    def position (self):
        return os.path.getsize (self.log) if os.path.exists (self.log) else 0

    def tick (self):
        with self.lock:
            self.time += 1
            return self.time

    def one (self, rng, h, client):
        name = rng.choice (["read", "cache", "write", "write", "write", "zero",
                            "trim", "flush", "fua"])
        # Clients never share a sector.
        cell = rng.choice (self.bases) + (rng.randrange (3) * CLIENTS + client) * CELL
        first = rng.randrange (CELL)
        count = rng.randrange (1, CELL - first + 1)
        first += cell
        offset, length = first * SECTOR, count * SECTOR
        if name == "read":
            h.pread (length, offset)
        elif name == "cache":
            h.cache (length, offset)
        elif name == "flush":
            begun = self.tick ()
            h.flush ()
            self.flushes.append ((begun, self.position ()))
        else:
            fua = nbd.CMD_FLAG_FUA if name == "fua" else 0
            values = [rng.randbytes (SECTOR) if name in ("write", "fua")
                      else bytes (SECTOR) for _ in range (count)]
            writes = [Write (value, self.position ()) for value in values]
            for i, write in enumerate (writes):
                self.writes[first + i].append (write)
            if name == "zero":
                h.zero (length, offset)
            elif name == "trim":
                h.trim (length, offset)
            else:
                h.pwrite (b"".join (values), offset, flags=fua)
            done, after = self.tick (), self.position ()
            for write in writes:
                write.done = done
                write.durable = after if fua else NEVER

    def client (self, server, number):
        rng = random.Random (self.seed * 10 + number)
        try:
            h = server.connect ()
            for _ in range (OPS):
                self.one (rng, h, number)
        except BaseException as e:      # noqa: for the main thread
            self.wrong.append (e)

    def allowed (self, sector, position):
        """What may be read of it after a cut at this position."""
        values = [self.base (sector)]
        for w in self.writes[sector]:
            if w.before > position:
                break
            if w.durable <= position or any (
                    begun > w.done and after <= position
                    for begun, after in self.flushes):
                values = []
            values.append (w.value)
        return values


@pytest.mark.parametrize ("seed", range (SEEDS))
def test_power_cuts (seed, monkeypatch):
    directory = tempfile.mkdtemp (prefix="clone-cut-", dir=(
        "/dev/shm" if os.access ("/dev/shm", os.W_OK) else None))
    try:
        run (seed, os.path.realpath (directory), monkeypatch)
    finally:
        shutil.rmtree (directory)


def work_on (path, log, work, monkeypatch):
    """Let clients work, with a record; returns the position at which there is a map."""
    monkeypatch.setenv ("LD_PRELOAD", os.path.join (PLUGINS, "record.so"))
    monkeypatch.setenv ("RECORD_FILE", path)
    monkeypatch.setenv ("RECORD_LOG", log)
    with nbdkit ([CLONE], gate (f"size={SIZE}"),
                 [f"clone-file={path}", "clone-block-size=512", "clone-commit=0.1",
                  "clone-reserve=0"]) as server:
        monkeypatch.delenv ("LD_PRELOAD")
        server.connect ()       # makes the files
        made = work.position ()
        threads = [threading.Thread (target=work.client, args=(server, n))
                   for n in range (CLIENTS)]
        for thread in threads:
            thread.start ()
        for thread in threads:
            thread.join ()
        assert not work.wrong, work.wrong
    return made


def run (seed, directory, monkeypatch):
    path = os.path.join (directory, "disk")
    rng, dump, looked = random.Random (seed), Dump (directory), collections.Counter ()
    before, base = [(0, {}), (0, {})], source
    try:
        for cut in range (CUTS):
            log = os.path.join (directory, f"log{cut}")
            work = Work (log, seed * CUTS + cut, base)
            made = work_on (path, log, work, monkeypatch)
            chosen = None
            for position, *after, committing in states (log, before, rng, STATES):
                kind, present = dump.load (after[1])
                where = f"workload {seed}, cut {cut} at {position}"
                looked[kind] += 1
                if cut == 0 and position <= made:
                    # Nothing is lost, but it may not be a map yet.
                    assert kind in ("ok", "unborn") and not present, f"{where}: {kind}"
                    continue
                assert kind == "ok", f"{where}: {kind}"

                def held (sector, data=after[0][1], present=present):
                    return data.get (sector) or bytes (SECTOR) \
                        if sector in present else source (sector)

                for sector in present | set (work.writes):
                    got = held (sector)
                    assert got in work.allowed (sector, position), (
                        f"{where}: sector {sector} holds {got[:8].hex ()}, "
                        f"{'present' if sector in present else 'fetched'}; may hold "
                        f"{[v[:8].hex () for v in work.allowed (sector, position)]}")
                if chosen is None or committing and rng.random () < 0.2:
                    chosen = after, held
            before, base = chosen
            write_state (path, before[0])
            write_state (path + ".map", before[1])
    finally:
        dump.close ()
    assert looked["ok"] > CUTS * STATES // 2, looked
