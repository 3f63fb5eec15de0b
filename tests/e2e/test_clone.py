# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter: what is fetched when, and by whom; the gate plugin shows it
by order and count of the reads that reach it."""

import errno
import os
import subprocess

import nbd
import pytest

from harness import CLONE, SCAN, fails, gate, nbdkit, needs, pattern

K = 1024
M = 1024 * K
BLOCK = 4 * K
VERBOSE = ["-v", "-D", "clone.joins=1", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
WAITING = "clone: blocks [0-9]+ to [0-9]+: waiting"


def clone (*plugin_args, args=(), options=()):
    return nbdkit ([CLONE], gate ("log=read", *plugin_args), args, options)


class Read:
    """A read in progress."""

    def __init__ (self, h, count, offset):
        self.h = h
        self.buffer = nbd.Buffer (count)
        self.cookie = h.aio_pread (self.buffer, offset)

    def result (self):
        """Wait for its end; the bytes, or the errno."""
        try:
            while not self.h.aio_command_completed (self.cookie):
                self.h.poll (-1)
        except nbd.Error as error:
            return error.errnum
        return bytes (self.buffer.to_bytearray ())


def finish (h, cookie):
    while not h.aio_command_completed (cookie):
        h.poll (-1)


def reads (server):
    """What was read of the plugin: offset and count, in order."""
    return [(c.offset, c.count) for c in server.calls ("read")]


def wait_joins (server, n):
    start = 0
    for _ in range (n):
        _, start = server.wait_line (WAITING, start)


# -- what one request fetches ----------------------------------------------------

def test_a_read_fetches_its_blocks_and_no_more ():
    with clone () as server:
        h = server.connect ()
        assert h.pread (100, 5000) == pattern (5000, 100)
        assert h.pread (5000, 4000 + 64 * K) == pattern (4000 + 64 * K, 5000)
        assert reads (server) == [(4096, 4096), (64 * K, 12 * K)]


def test_what_was_read_is_not_read_again ():
    with clone () as server:
        h = server.connect ()
        assert h.pread (64 * K, 0) == pattern (0, 64 * K)
        assert h.pread (64 * K, 0) == pattern (0, 64 * K)
        assert h.pread (1000, 3000) == pattern (3000, 1000)
        assert reads (server) == [(0, 64 * K)]


def test_a_large_prefetch_is_one_read ():
    with clone ("size=4M") as server:
        h = server.connect ()
        h.cache (2 * M, 0)
        assert reads (server) == [(0, 2 * M)]
        assert h.pread (2 * M, 0) == pattern (0, 2 * M)
        assert len (reads (server)) == 1


def test_fetch_size_cuts_reads ():
    with clone ("size=4M", args=["clone-fetch-size=1M"]) as server:
        h = server.connect ()
        h.cache (2 * M + 8 * K, 0)
        assert reads (server) == [(0, M), (M, M), (2 * M, 8 * K)]


def test_small_gaps_are_read_over_and_large_ones_are_not ():
    with clone () as server:
        h = server.connect ()
        h.pwrite (b"x" * BLOCK, 64 * K)                 # a gap of one block
        h.pwrite (b"y" * 128 * K, 256 * K)              # and one of 128K
        assert h.pread (512 * K, 0) == (
            pattern (0, 64 * K) + b"x" * BLOCK
            + pattern (68 * K, 188 * K) + b"y" * 128 * K
            + pattern (384 * K, 128 * K))
        assert reads (server) == [(0, 256 * K), (384 * K, 128 * K)]


def test_the_end_of_a_disk_that_is_no_multiple_of_anything ():
    size = 100 * K + 7
    with clone (f"size={size}") as server:
        h = server.connect ()
        assert h.pread (100, size - 100) == pattern (size - 100, 100)
        h.cache (size, 0)
        h.pwrite (b"end", size - 3)
        assert h.pread (10, size - 10) == pattern (size - 10, 7) + b"end"
        assert h.pread (size - 10, 0) == pattern (0, size - 10)
        assert reads (server) == [(96 * K, 4 * K + 7), (0, 96 * K)]


# -- side by side ----------------------------------------------------------------

def test_reads_are_side_by_side ():
    with clone ("size=2M", "hold=read") as server:
        h = server.connect ()
        pending = [Read (h, 64 * K, n * 64 * K) for n in range (16)]
        calls = [server.next_call ("read") for _ in range (16)]
        for call in reversed (calls):
            server.release (call)
        for n, read in enumerate (pending):
            assert read.result () == pattern (n * 64 * K, 64 * K)


def test_a_hit_does_not_wait_for_a_fetch ():
    with clone ("size=4M", "hold=read") as server:
        h = server.connect ()
        first = Read (h, BLOCK, 0)
        server.release (server.next_call ("read"))
        first.result ()
        cookie = h.aio_cache (2 * M, 0)                 # around what is present
        held = server.next_call ("read")
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        server.release (held)
        finish (h, cookie)


def test_identical_reads_are_one_read_of_the_plugin ():
    with clone ("hold=read", options=VERBOSE) as server:
        handles = [server.connect () for _ in range (4)]
        pending = [Read (h, 64 * K, 0) for h in handles for _ in range (3)]
        call = server.next_call ("read")
        wait_joins (server, 11)
        server.release (call)
        for read in pending:
            assert read.result () == pattern (0, 64 * K)
        assert reads (server) == [(0, 64 * K)]


def test_joined_reads_try_for_themselves_when_the_fetch_fails ():
    with clone ("hold=read", options=VERBOSE) as server:
        h = server.connect ()
        pending = [Read (h, 64 * K, 0) for _ in range (5)]
        call = server.next_call ("read")
        wait_joins (server, 4)
        server.release (call, errno.EIO)
        calls = [server.next_call ("read") for _ in range (4)]
        server.release (calls[0], errno.EIO)            # all four at once
        while h.aio_in_flight () > 3:                   # before it is there after all
            h.poll (-1)
        for call in calls[1:]:
            server.release (call)
        results = [read.result () for read in pending]
        assert results.count (errno.EIO) == 2
        assert results.count (pattern (0, 64 * K)) == 3
        assert len (reads (server)) == 5


def test_a_read_takes_what_is_under_way_and_fetches_the_rest ():
    with clone ("hold=read", options=VERBOSE) as server:
        h = server.connect ()
        one = Read (h, 64 * K, 64 * K)
        a = server.next_call ("read")
        other = Read (h, 192 * K, 0)
        b = server.next_call ("read")
        server.release (b)
        c = server.next_call ("read")
        server.release (c)
        wait_joins (server, 1)
        server.release (a)
        assert one.result () == pattern (64 * K, 64 * K)
        assert other.result () == pattern (0, 192 * K)
        assert reads (server) == [(64 * K, 64 * K), (0, 64 * K),
                                  (128 * K, 64 * K)]


def test_a_small_read_does_not_wait_for_a_large_prefetch ():
    with clone ("size=4M", "hold=read") as server:
        h = server.connect ()
        cookie = h.aio_cache (2 * M, 0)
        large = server.next_call ("read")
        small = Read (h, BLOCK, M)
        call = server.next_call ("read")
        assert (call.offset, call.count) == (M, BLOCK)
        server.release (call)
        assert small.result () == pattern (M, BLOCK)
        server.release (large)
        finish (h, cookie)
        assert h.pread (2 * M, 0) == pattern (0, 2 * M)
        assert len (reads (server)) == 2


def waits_for_a_large_prefetch (rounds):
    """Does a small read, if one has been seen to take as long as a large prefetch, and
    so many reads longer?"""
    with clone ("size=64M", "hold=read", options=["-v", "-D", "clone.joins=1"]
                ) as server:
        h = server.connect ()
        h.pwrite (b"x" * BLOCK, 63 * M)                 # is present
        first = Read (h, BLOCK, 0)
        first_call = server.next_call ("read")
        cookie = h.aio_cache (2 * M, M)
        large = server.next_call ("read")
        for _ in range (rounds):
            h.pread (BLOCK, 63 * M)
        server.release (large)
        finish (h, cookie)
        server.release (first_call)
        first.result ()

        cookie = h.aio_cache (2 * M, 3 * M)
        large = server.next_call ("read")
        small = Read (h, BLOCK, 4 * M)
        line, _ = server.wait_line (
            f"{WAITING}|gate: pread count={BLOCK} offset={4 * M}$")
        waits = "waiting" in line[0]
        if waits:
            # Also what it reads for itself, if it has waited for long enough.
            server.release_all ()
        else:
            server.release (server.next_call ("read"))
            server.release (large)
        assert small.result () == pattern (4 * M, BLOCK)
        finish (h, cookie)
        return waits


def test_a_small_read_waits_for_a_large_prefetch_that_ends_as_soon ():
    """However fast this machine is: longer and longer, until the next comes before that
    time is over."""
    assert any (waits_for_a_large_prefetch (1 << n) for n in range (12))


def test_a_failed_read_marks_nothing ():
    with clone ("fail=read:1-1") as server:
        h = server.connect ()
        fails (errno.EIO, h.pread, BLOCK, 0)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        assert reads (server) == [(0, BLOCK), (0, BLOCK)]


# -- writes ----------------------------------------------------------------------

def test_whole_blocks_are_written_without_a_fetch ():
    with clone () as server:
        h = server.connect ()
        h.pwrite (b"w" * 2 * BLOCK, 8 * BLOCK)
        assert h.pread (2 * BLOCK, 8 * BLOCK) == b"w" * 2 * BLOCK
        assert reads (server) == []


def test_a_partial_write_fetches_its_edges ():
    with clone () as server:
        h = server.connect ()
        h.pwrite (b"w" * 3 * BLOCK, 1000)
        assert reads (server) == [(0, BLOCK), (3 * BLOCK, BLOCK)]
        assert h.pread (4 * BLOCK, 0) == (
            pattern (0, 1000) + b"w" * 3 * BLOCK
            + pattern (3 * BLOCK + 1000, BLOCK - 1000))


CHANGES = {
    "write": (lambda h, count, offset: h.pwrite (b"w" * count, offset), b"w"),
    "zero": (lambda h, count, offset: h.zero (count, offset), b"\0"),
    "zero, kept": (lambda h, count, offset:
                   h.zero (count, offset, nbd.CMD_FLAG_NO_HOLE), b"\0"),
    "trim": (lambda h, count, offset: h.trim (count, offset), b"\0"),
}


@pytest.mark.parametrize ("what", CHANGES)
@pytest.mark.parametrize ("prefetch", [True, False])
def test_a_change_during_a_fetch_is_kept (what, prefetch):
    change, byte = CHANGES[what]
    with clone ("hold=read") as server:
        h = server.connect ()
        if prefetch:
            cookie = h.aio_cache (256 * K, 0)
        else:
            read = Read (h, 256 * K, 0)
        held = server.next_call ("read")
        change (h, 64 * K, 64 * K)              # does not wait for the fetch
        server.release (held)
        if prefetch:
            finish (h, cookie)
        else:
            read.result ()
        assert h.pread (256 * K, 0) == (pattern (0, 64 * K) + byte * 64 * K
                                        + pattern (128 * K, 128 * K))
        assert len (reads (server)) == 1


@pytest.mark.parametrize ("what", CHANGES)
def test_a_partial_change_during_a_fetch_is_kept (what):
    change, byte = CHANGES[what]
    with clone ("hold=read", options=VERBOSE) as server:
        h, other = server.connect (), server.connect ()
        read = Read (h, 64 * K, 0)
        held = server.next_call ("read")
        start = {"write": lambda: other.aio_pwrite (b"w" * 100, 5000),
                 "zero": lambda: other.aio_zero (100, 5000),
                 "zero, kept": lambda: other.aio_zero (
                     100, 5000, flags=nbd.CMD_FLAG_NO_HOLE),
                 "trim": lambda: other.aio_trim (100, 5000)}[what]
        cookie = start ()
        wait_joins (server, 1)
        server.release (held)
        read.result ()
        finish (other, cookie)
        assert h.pread (64 * K, 0) == (pattern (0, 5000) + byte * 100
                                       + pattern (5100, 64 * K - 5100))
        assert len (reads (server)) == 1


def test_two_partial_writes_of_one_absent_block ():
    with clone ("hold=read", options=VERBOSE) as server:
        h = server.connect ()
        a = h.aio_pwrite (b"a" * 100, 100)
        held = server.next_call ("read")
        b = h.aio_pwrite (b"b" * 100, 300)
        wait_joins (server, 1)
        server.release (held)
        finish (h, a)
        finish (h, b)
        assert h.pread (BLOCK, 0) == (
            pattern (0, 100) + b"a" * 100 + pattern (200, 100) + b"b" * 100
            + pattern (400, BLOCK - 400))
        assert len (reads (server)) == 1


def test_a_partial_write_fails_if_its_edge_can_t_be_fetched ():
    with clone ("fail=read:1-1") as server:
        h = server.connect ()
        with pytest.raises (nbd.Error):
            h.pwrite (b"x", 10)
        assert h.pread (100, 0) == pattern (0, 100)


def test_nothing_is_written_to_the_plugin ():
    with clone ("write=true", "log=write", "log=zero", "log=trim") as server:
        h = server.connect ()
        for change, _ in CHANGES.values ():
            change (h, 64 * K, 64 * K)
        h.flush ()
        assert [c for c in server.calls () if c.op != "read"] == []


def test_a_fast_zero_is_fast_or_refused ():
    with clone () as server:
        h = server.connect ()
        # Needs a fetch.
        fails (errno.EOPNOTSUPP, h.zero, 100, 10, nbd.CMD_FLAG_FAST_ZERO)
        h.zero (64 * K, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert h.pread (64 * K, 0) == b"\0" * 64 * K
        assert reads (server) == []


@pytest.mark.parametrize ("what", ["zero", "trim", "pwrite"])
def test_a_source_may_fail_as_it_likes (what):
    """Of a zero that need not be fast the server doesn't survive an ENOTSUP."""
    with clone () as server:
        h = server.connect ()
        server.send (f"fail read {errno.ENOTSUP}")
        server.wait_line ("done fail read")
        fails (errno.EIO, getattr (h, what), b"w" if what == "pwrite" else 100, 10)
        server.send ("fail read 0")
        server.wait_line ("done fail read 0")
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)


# -- clone-write=through -----------------------------------------------------------

def through (*plugin_args, **kw):
    return clone ("write=true", "log=write", "log=zero", *plugin_args,
                  args=["clone-write=through"], **kw)


def test_through_writes_to_both ():
    with through () as server:
        h = server.connect ()
        h.pwrite (b"w" * 3 * BLOCK, 1000)
        h.zero (64 * K, 64 * K)
        h.trim (64 * K, 256 * K)
        assert [(c.op, c.offset, c.count) for c in server.calls ()] == [
            ("write", 1000, 3 * BLOCK), ("zero", 64 * K, 64 * K),
            ("zero", 256 * K, 64 * K)]
        # The edges are left to be fetched.
        assert h.pread (4 * BLOCK, 0) == (
            pattern (0, 1000) + b"w" * 3 * BLOCK
            + pattern (3 * BLOCK + 1000, BLOCK - 1000))
        assert reads (server) == [(0, 4 * BLOCK)]
        assert h.pread (64 * K, 64 * K) == b"\0" * 64 * K
        assert h.pread (64 * K, 256 * K) == b"\0" * 64 * K
        assert len (reads (server)) == 1


def test_through_to_what_is_present ():
    with through () as server:
        h = server.connect ()
        h.cache (64 * K, 0)
        h.pwrite (b"w" * 3 * BLOCK, 1000)
        assert h.pread (4 * BLOCK, 0) == (
            pattern (0, 1000) + b"w" * 3 * BLOCK
            + pattern (3 * BLOCK + 1000, BLOCK - 1000))
        assert len (reads (server)) == 1


def test_through_a_fetch_that_began_before_is_not_kept ():
    with through ("hold=read") as server:
        h = server.connect ()
        read = Read (h, BLOCK, 0)
        held = server.next_call ("read")
        h.pwrite (b"w" * 100, 100)              # a part of the block
        server.release (held)
        read.result ()
        again = Read (h, BLOCK, 0)
        server.release (server.next_call ("read"))
        assert again.result () == (pattern (0, 100) + b"w" * 100
                                   + pattern (200, BLOCK - 200))


@pytest.mark.parametrize ("joined", [False, True])
def test_through_a_prefetch_that_began_before_is_made_again (joined):
    """It says that all is here, so all has to be; also for who has joined it."""
    with through ("hold=read") as server:
        h, other = server.connect (), server.connect ()
        cookies = [(h, h.aio_cache (M, 0))]
        server.next_call ("read")
        if joined:
            cookies.append ((other, other.aio_cache (M, 0)))
        h.pwrite (b"w" * 100, 100)
        server.release_all ()           # also what began after the write
        for each in cookies:
            finish (*each)
        n = len (reads (server))
        assert h.pread (M, 0) == (pattern (0, 100) + b"w" * 100
                                  + pattern (200, M - 200))
        assert len (reads (server)) == n


def test_through_a_prefetch_keeps_what_is_not_written_meanwhile ():
    with through ("hold=read") as server:
        h = server.connect ()
        cookie = h.aio_cache (M, 0)
        server.next_call ("read")
        h.pwrite (b"w" * 100, 64 * K)
        server.release_all ()
        finish (h, cookie)
        fetched = reads (server)
        assert sum (count for _, count in fetched) == M + 4 * K


def test_through_a_prefetch_that_is_always_too_late_fails ():
    with through ("hold=read") as server:
        h = server.connect ()
        cookie = h.aio_cache (M, 0)
        for _ in range (4):
            call = server.next_call ("read")
            h.pwrite (b"w" * 100, 100)
            server.release (call)
        fails (errno.EIO, finish, h, cookie)


def test_through_a_write_that_the_plugin_refuses_changes_nothing ():
    with through ("fail=write:all") as server:
        h = server.connect ()
        h.cache (64 * K, 0)
        for offset in 0, 256 * K:
            fails (errno.EIO, h.pwrite, b"w" * BLOCK, offset)
            assert h.pread (BLOCK, offset) == pattern (offset, BLOCK)


def test_through_overlapping_writes_come_one_after_the_other ():
    with through ("hold=write") as server:
        h = server.connect ()
        a = h.aio_pwrite (b"a" * BLOCK, 0)
        first = server.next_call ("write")
        b = h.aio_pwrite (b"b" * BLOCK, 0)
        c = h.aio_pwrite (b"c" * BLOCK, 64 * K)         # elsewhere: at once
        elsewhere = server.next_call ("write")
        assert elsewhere.offset == 64 * K
        server.release (elsewhere)
        finish (h, c)
        server.release (first)
        finish (h, a)
        server.release (server.next_call ("write"))
        finish (h, b)
        assert h.pread (BLOCK, 0) == b"b" * BLOCK


def test_through_to_a_hole_below_the_cache_filter (tmp_path):
    """It keeps what is written, and still calls it a hole."""
    disk = tmp_path / "disk"
    disk.touch ()
    os.truncate (disk, M)
    with nbdkit ([CLONE, "cache"], ["file", str (disk)], ["clone-write=through"]
                 ) as server:
        h = server.connect (prepare=lambda h: h.add_meta_context ("base:allocation"))
        h.pwrite (b"w" * 100, 100)              # a part of the block
        told = []
        h.block_status (M, 0, lambda _, offset, extents, error: told.append (extents))
        h.cache (M, 0)
        assert h.pread (BLOCK, 0) == (
            bytes (100) + b"w" * 100 + bytes (BLOCK - 200))
        assert not told[0][1] & nbd.STATE_ZERO


def test_through_a_fast_zero_that_is_not_fast_for_the_plugin_is_refused (tmp_path):
    """It is offered all the same, as nbdkit dies of one that was not.  Nothing is written."""
    stats = tmp_path / "stats"
    with nbdkit ([CLONE], gate ("write=true", "log=zero"), [
            "clone-write=through", f"clone-file={tmp_path / 'disk'}",
            f"clone-stats={stats}"]) as server:
        h = server.connect ()
        fails (errno.EOPNOTSUPP, h.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert server.calls ("zero") == []
        h.zero (BLOCK, 0)
    assert f'nbdkit_clone_written_bytes_total{{export=""}} {BLOCK}\n' in stats.read_text ()


def test_through_a_read_only_plugin_is_read_only ():
    with clone (args=["clone-write=through"]) as server:
        assert server.connect ().is_read_only ()
    with clone () as server:
        assert not server.connect ().is_read_only ()
    with clone (options=["-r"]) as server:
        assert server.connect ().is_read_only ()


# -- holes -----------------------------------------------------------------------

@needs ("mke2fs")
def test_holes_below_the_ext2_filter_are_not_those_of_the_file (tmp_path):
    """It tells where they are in the file system, at the file's offsets."""
    data = os.urandom (4 * M)
    (tmp_path / "files").mkdir ()
    (tmp_path / "files/disk").write_bytes (data)
    # The inodes that are in no use are a hole at the start.
    with open (tmp_path / "fs", "wb") as fs:
        os.truncate (fs.fileno (), 16 * M)
        subprocess.run (["mke2fs", "-q", "-t", "ext2", "-N", "4096", "-d",
                         tmp_path / "files", fs.name], check=True,
                        env={**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"})
        if os.lseek (fs.fileno (), 0, os.SEEK_HOLE) >= len (data):
            pytest.skip ("a file system without holes")
    with nbdkit ([CLONE, "ext2"], ["file", str (tmp_path / "fs")],
                 ["ext2file=/disk"]) as server:
        h = server.connect ()
        h.cache (len (data), 0)
        assert h.pread (len (data), 0) == data


def extents (h, count, offset):
    found = []
    h.block_status (count, offset,
                    lambda _, at, entries, err: found.extend (entries) or 0)
    return list (zip (found[::2], found[1::2]))


def with_extents (h):
    h.add_meta_context (nbd.CONTEXT_BASE_ALLOCATION)


def test_holes_are_present_without_being_read ():
    with clone ("size=4M", f"data={256 * K}+{64 * K}", "log=extents") as server:
        h = server.connect ()
        h.cache (M, 0)
        assert reads (server) == [(256 * K, 64 * K)]
        assert h.pread (M, 0) == (bytes (256 * K) + pattern (256 * K, 64 * K)
                                  + bytes (704 * K))
        h.cache (2 * M, 2 * M)                  # asked for already
        assert len (server.calls ("extents")) == 1
        assert len (reads (server)) == 1


def test_the_largest_prefetch_asks_for_no_more_extents_than_can_be ():
    """Its edges make it 4G, which is one more than a count can say."""
    with clone ("size=8G", f"data={6 * K * M}+{M}", args=["clone-reserve=0"]) as server:
        h = server.connect ()
        h.cache (2 ** 32 - 1, 1)
        assert sum (count for _, count in reads (server)) <= 64 * K
        assert h.pread (K, 6 * K * M) == pattern (6 * K * M, K)


def test_extents_of_both ():
    HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
    with clone ("size=4M", f"data={M}+{M}", "log=extents") as server:
        h = server.connect (prepare=with_extents)
        h.pwrite (b"w" * 64 * K, 256 * K)
        h.trim (64 * K, M + 256 * K)
        assert extents (h, 4 * M, 0) == [
            (256 * K, HOLE), (64 * K, 0), (M - 320 * K, HOLE),
            (256 * K, 0), (64 * K, HOLE), (M - 320 * K, 0), (2 * M, HOLE)]
        assert h.pread (M, 2 * M) == bytes (M)
        assert reads (server) == []             # learnt from the extents


@pytest.mark.parametrize ("data", [f"{M}+{512 * K}", "0+4194304"])
def test_a_question_for_extents_is_one_for_the_plugin (data):
    """However often what is present and what is absent alternate."""
    HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
    first, count = map (int, data.split ("+"))
    expected = []

    def expect (length, flags):
        if expected and expected[-1][1] == flags:
            length += expected.pop ()[0]
        expected.append ((length, flags))

    for offset in range (4 * K, 4 * M - 4 * K, BLOCK):
        written = offset // BLOCK % 8 == 3 and offset >= 512 * K
        data_here = first <= offset < first + count
        expect (BLOCK, 0 if written or data_here else HOLE)
    with clone ("size=4M", f"data={data}", "log=extents") as server:
        h = server.connect (prepare=with_extents)
        for offset in range (0, 4 * M, BLOCK):
            if offset // BLOCK % 8 == 3 and offset >= 512 * K:
                h.pwrite (b"w" * BLOCK, offset)
        for n in 1, 2:
            assert extents (h, 4 * M - 8 * K, 4 * K) == expected
            if first > 0:       # what is in no hole is asked for again
                assert len (server.calls ("extents")) <= 1 + n
            else:
                assert len (server.calls ("extents")) == n
        assert reads (server) == []


@pytest.mark.parametrize ("block", [512, 4 * K, 256 * K])
def test_a_layer_that_answers_little_is_asked_once_at_a_time (block):
    """A client goes on by itself, and may have other things to do."""
    HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
    filters = [CLONE, "blocksize"]
    with nbdkit (filters, gate ("size=4M", f"data={M + 10 * K}+{M}", "log=extents"),
                 ["maxlen=64K", f"clone-block-size={block}"]) as server:
        h = server.connect (prepare=with_extents)
        h.pwrite (b"w" * 256 * K, 256 * K)
        found, asked = [], 0
        at = 0
        while at < 4 * M:
            answer = extents (h, 4 * M - at, at)
            assert len (server.calls ("extents")) <= asked + 1
            asked = len (server.calls ("extents"))
            assert sum (length for length, _ in answer) > 0
            for length, state in answer:
                if found and found[-1][1] == state:
                    length += found.pop ()[0]
                found.append ((length, state))
            at = sum (length for length, _ in found)
        assert found == [(256 * K, HOLE), (256 * K, 0), (M - 502 * K, HOLE), (M, 0),
                         (2 * M - 10 * K, HOLE)]


def test_a_scan_walks_over_a_layer_that_answers_little ():
    with nbdkit ([SCAN, CLONE, "blocksize"],
                 gate ("size=64M", f"data={60 * M + 10 * K}+{M}", "log=read"),
                 ["maxlen=64K", "scan-policy=data"], ["-v"]) as server:
        h = server.connect ()
        server.wait_line ("scan: finished scanning the plugin")
        n = len (reads (server))
        assert M <= sum (count for _, count in reads (server)) <= 2 * M
        assert h.pread (M, 60 * M + 10 * K) == pattern (60 * M + 10 * K, M)
        assert len (reads (server)) == n


def test_a_question_for_extents_that_the_plugin_can_t_answer ():
    """What is present is known all the same, and what is absent counts as data."""
    HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
    with clone (f"data=0+{M}", "log=extents", "size=2M") as server:
        h = server.connect (prepare=with_extents)
        h.trim (M // 2, 0)
        h.trim (64 * K, M)
        server.send (f"fail extents {errno.EIO}")
        for _ in 1, 2:
            assert extents (h, 2 * M, 0) == [
                (M // 2, HOLE), (M // 2, 0), (64 * K, HOLE), (M - 64 * K, 0)]
        assert len (server.calls ("extents")) == 2
        server.send ("fail extents 0")
        assert extents (h, 2 * M, 0) == [(M // 2, HOLE), (M // 2, 0), (M, HOLE)]


def test_trims_give_space_back (tmp_path):
    path = tmp_path / "disk"
    with clone ("size=4M", args=[f"clone-file={path}"]) as server:
        h = server.connect ()
        h.cache (4 * M, 0)
        full = path.stat ().st_blocks
        h.trim (2 * M, M)
        assert full - path.stat ().st_blocks >= 2 * M // 512 - 64
        assert path.stat ().st_size == 4 * M
        assert h.pread (2 * M, M) == bytes (2 * M)


# -- with others -----------------------------------------------------------------

def test_what_the_plugin_asks_for_is_kept_to ():
    size = M + 1000
    with clone (f"size={size}", f"blocks={64 * K}-{128 * K}") as server:
        h = server.connect ()
        assert h.pread (100, 70000) == pattern (70000, 100)
        h.pwrite (b"w" * 100, 200 * K)
        assert h.pread (512 * K, 0) == (pattern (0, 200 * K) + b"w" * 100
                                        + pattern (200 * K + 100, 312 * K - 100))
        assert h.pread (10, size - 10) == pattern (size - 10, 10)
        h.pwrite (b"v" * BLOCK, 640 * K)        # what is absent is not aligned
        assert h.pread (256 * K, 640 * K) == (
            b"v" * BLOCK + pattern (644 * K, 252 * K))
        h.cache (size, 0)
        assert reads (server)[:3] == [(64 * K, 64 * K), (192 * K, 64 * K),
                                      (0, 64 * K)]


def test_extents_are_asked_for_as_the_plugin_wants ():
    HOLE = nbd.STATE_HOLE | nbd.STATE_ZERO
    with clone ("size=4M", f"blocks={64 * K}-{128 * K}",
                f"data={M + 10 * K}+{M}") as server:
        h = server.connect (prepare=with_extents)
        h.pwrite (b"w" * BLOCK, M)
        assert extents (h, 100 * K, M + BLOCK) == [(6 * K, HOLE), (94 * K, 0)]
        assert extents (h, 8 * K, 3 * M + 1000)[0] == (8 * K, HOLE)


def test_a_block_may_be_larger_than_what_the_plugin_gives ():
    with clone ("blocks=4096-65536", args=["clone-block-size=256K"]) as server:
        h = server.connect ()
        assert h.pread (100, 300 * K) == pattern (300 * K, 100)
        assert reads (server) == [(n * 64 * K, 64 * K) for n in range (4, 8)]


def test_a_serial_plugin ():
    with clone ("model=serialize_requests", "size=4M") as server:
        a, b = server.connect (), server.connect ()
        pending = [Read (h, 64 * K, n * 64 * K) for n in range (8)
                   for h in (a, b)]
        for n, read in enumerate (pending):
            assert read.result () == pattern (n // 2 * 64 * K, 64 * K)
        a.cache (M, 0)
