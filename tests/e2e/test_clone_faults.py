# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter when its own files fail, or are not what they should be."""

import contextlib
import errno
import os
import re
import shutil
import subprocess

import nbd
import pytest

from harness import (CLONE, PLUGINS, SCAN, fails, file_limit, gate, nbdkit, pattern,
                     refused)
from test_clone import Read, extents, finish, with_extents
from test_clone_files import clone, crashing, damage, make, map_of, newest_slot, reads

K = 1024
M = 1024 * K
HALF = 512 * K
BLOCK = 4 * K
PAGE = 4096                     # of a map
LATER = "clone-commit=3600"     # only when asked to


@pytest.fixture
def fail (tmp_path, monkeypatch):
    """Makes calls on a file fail, for a while; see tests/preload/fail.c."""
    when = tmp_path / "when"
    when.mkdir ()
    monkeypatch.setenv ("FAIL_WHEN", str (when))
    monkeypatch.setenv ("LD_PRELOAD", os.path.join (PLUGINS, "fail.so"))

    @contextlib.contextmanager
    def failing (call, name, err=errno.EIO, once=False):
        path = when / f"{call}.{name}"
        path.with_name ("new").write_text (f"{err} once" if once else str (err))
        path.with_name ("new").rename (path)
        yield
        if once:
            assert not path.exists ()
        else:
            path.unlink ()

    return failing


@pytest.fixture
def disk (tmp_path):
    return tmp_path / "disk.img"


# -- the files fail --------------------------------------------------------------------

def test_a_read_of_the_file_that_fails (disk, fail):
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pread (BLOCK, 0)
        with fail ("pread", disk.name):
            fails (errno.EIO, h.pread, BLOCK, 0)
            assert h.pread (BLOCK, BLOCK) == pattern (BLOCK, BLOCK)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)


def test_why_a_map_can_t_be_read (disk, fail):
    """Not what became of the last thing that was asked of the disk."""
    with clone (disk) as server:
        server.connect ()
    with fail ("pread", map_of (disk).name):
        errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert errors == [f"clone: {map_of (disk)}: Input/output error"]


def test_a_map_whose_first_page_can_t_be_read (disk, fail):
    """What is in it is in the second, too."""
    with clone (disk) as server:
        server.connect ().pread (BLOCK, 0)
    with fail ("pread-first", map_of (disk).name), clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == pattern (0, BLOCK)
        assert server.calls ("read") == []
    damage (map_of (disk), PAGE, b"x")
    with fail ("pread-first", map_of (disk).name):
        assert refused ([CLONE], gate (), [f"clone-file={disk}"]) == [
            f"clone: {map_of (disk)}: Input/output error"]


@pytest.mark.parametrize ("what", ["disk.img", "disk.img.map"])
def test_a_signal_while_a_clone_is_made (disk, fail, what):
    with fail ("ftruncate", what, errno.EINTR, once=True), clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == pattern (0, BLOCK)


def test_what_can_t_be_stored_is_not_present (disk, fail):
    with clone (disk, LATER) as server:
        h = server.connect ()
        with fail ("pwrite", disk.name):
            assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
            fails (errno.EIO, h.pwrite, b"w" * BLOCK, 0)
            fails (errno.EIO, h.pwrite, b"w", 100)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        assert len (server.calls ("read")) == 3


def test_a_prefetch_fails_if_it_can_t_be_stored (disk, fail):
    """What a client reads is not lost on it; nobody has asked for a prefetch but to
    have it here."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        with fail ("pwrite", disk.name):
            fails (errno.EIO, h.cache, 64 * K, 0)
            assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        n = len (reads (server))
        h.cache (64 * K, 0)
        assert h.pread (64 * K, 0) == pattern (0, 64 * K)
        assert len (reads (server)) == n + 1


@pytest.mark.parametrize ("err", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_scan_ends_if_what_it_fetches_has_no_room (disk, fail, err):
    """Whether it is the disk that is full, a quota, or a file as large as it may be."""
    with clone (disk) as server:
        server.connect ()
    with fail ("pwrite", disk.name, err), nbdkit (
            [SCAN, CLONE], gate ("log=read"),
            [f"clone-file={disk}", "scan-policy=data"], ["-v"]) as server:
        h = server.connect ()
        server.wait_line ("scan: the layer below has no space left")
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        assert not any ("prefetch of" in e for e in server.errors ())


def test_a_map_that_can_t_be_written_is_tried_again (disk, fail):
    with crashing (disk, LATER) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 0)
        with fail ("pwrite", map_of (disk).name, errno.ENOSPC):
            fails (errno.ENOSPC, h.flush)
            fails (errno.ENOSPC, h.flush)
        h.flush ()
    with clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == b"w" * BLOCK


# -- a sync has failed -------------------------------------------------------------------

FILES = ["disk.img", "disk.img.map"]
NEAR = 256 * BLOCK              # blocks of which changes are noted together


def lose (path, offset):
    """What the kernel does to a page that it could not write, when memory is short."""
    damage (path, offset, bytes (BLOCK))


@pytest.mark.parametrize ("what", FILES)
@pytest.mark.parametrize ("write", ["local", "through"])
def test_after_a_failed_sync_nothing_is_written (disk, fail, what, write):
    """And what clients have written last is not shown: it may be old by now."""
    with clone (disk, LATER, f"clone-write={write}", plugin=["size=16M", "write=true"]
                ) as server:
        h = server.connect (prepare=with_extents)
        h.pwrite (b"f" * BLOCK, 8 * M)
        h.pwrite (b"f" * BLOCK, 10 * M)
        h.flush ()
        h.pwrite (b"w" * BLOCK, 0)
        h.trim (BLOCK, 10 * M)
        with fail ("sync", what):
            fails (errno.EIO, h.flush)
        for call, *args in [
                (h.flush,), (h.pwrite, b"v" * BLOCK, 8 * M), (h.trim, BLOCK, 8 * M),
                (h.pwrite, b"v" * 100, 12 * M + 1), (h.zero, BLOCK, 12 * M),
                (h.pread, 1, 0), (h.pread, BLOCK, NEAR - BLOCK),
                (h.pread, BLOCK, 10 * M), (h.pread, 4 * M, 6 * M + BLOCK)]:
            fails (errno.EIO, call, *args)
        assert h.pread (2 * BLOCK, 8 * M) == b"f" * BLOCK + pattern (8 * M + BLOCK, BLOCK)
        assert extents (h, BLOCK, 10 * M) == [(BLOCK, 0)]


@pytest.mark.parametrize ("what", FILES)
def test_what_was_fetched_before_a_failed_sync_is_fetched_again (disk, fail, what):
    """A page that could not be written is dropped, and then the file has zeroes there."""
    with clone (disk, LATER) as server:
        h, other = server.connect (), server.connect ()
        h.pread (BLOCK, 0)
        h.flush ()
        h.pread (BLOCK, 64 * K)
        with fail ("sync", what):
            fails (errno.EIO, h.flush)
        if what == disk.name:
            lose (disk, 64 * K)
        n = len (reads (server))
        for client in h, other, server.connect ():
            assert client.pread (BLOCK, 64 * K) == pattern (64 * K, BLOCK)
        assert len (reads (server)) == n + 3    # it is not kept
        h.cache (BLOCK, 0)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        fails (errno.EIO, h.cache, M, 0)
        assert len (reads (server)) == n + 3
        assert h.pread (M, 0) == pattern (0, M)
    with clone (disk, LATER) as server:
        h = server.connect ()
        assert h.pread (M, 0) == pattern (0, M)
        h.pwrite (b"w" * BLOCK, 0)
        h.flush ()
        assert h.pread (BLOCK, 0) == b"w" * BLOCK


def test_a_sync_fails_in_the_background (disk, fail):
    with clone (disk, "clone-commit=0.1") as server:
        h = server.connect ()
        with fail ("sync", disk.name):
            h.pread (BLOCK, 64 * K)
            server.wait_line ("cannot be made durable")
        lose (disk, 64 * K)
        assert h.pread (BLOCK, 64 * K) == pattern (64 * K, BLOCK)


def complete_when_a_sync_fails (server, disk, fail):
    """The first half is durable.  Returns a client that came when all was there."""
    h = server.connect ()
    h.pread (HALF, 0)
    h.flush ()
    h.cache (M, 0)
    late = server.connect ()
    with fail ("sync", disk.name):
        fails (errno.EIO, late.flush)
    return late


@pytest.mark.parametrize ("away", [False, True])
def test_a_clone_that_was_complete_before_a_failed_sync (disk, fail, away):
    """Who has come without a source, as there was no need, needs one then."""
    with clone (disk, LATER) as server:
        late = complete_when_a_sync_fails (server, disk, fail)
        server.send (f"fail open {errno.ENOENT if away else 0}")
        lose (disk, HALF)
        assert late.pread (HALF, 0) == pattern (0, HALF)
        if away:
            fails (errno.EIO, late.pread, BLOCK, HALF)
        else:
            assert late.pread (HALF, HALF) == pattern (HALF, HALF)


@pytest.mark.parametrize ("blocks", [2, 3])
def test_a_sync_fails_while_a_read_is_under_way (disk, fail, blocks):
    """What a client has written is not taken for what the source has there, at the end of
    what is read, or in the middle."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, BLOCK)
        server.send ("hold read 1")
        read = Read (h, blocks * BLOCK, 0)
        server.next_call ("read")
        with fail ("sync", disk.name):
            fails (errno.EIO, h.flush)
        server.release_all ()
        assert read.result () == errno.EIO


def test_a_sync_fails_while_extents_are_asked_for (disk, fail):
    """Nor is it taken for a hole, though there is one in the file by then; of what nobody
    has changed the source says what it is."""
    def ask (h, count, offset):
        cookie = h.aio_block_status (count, offset, lambda _, at, entries, error:
                                     found.append (list (entries)) or 0)
        server.next_call ("extents")
        return cookie

    with clone (disk, LATER, plugin=["size=4M", "data=0+64K"]) as server:
        found = []
        clients = [server.connect (prepare=with_extents) for _ in range (3)]
        clients[0].pwrite (b"w" * HALF, M)
        server.send ("hold extents 1")
        cookies = [ask (clients[0], 4 * M, 0), ask (clients[1], M, 2 * M)]
        with fail ("sync", disk.name):
            fails (errno.EIO, clients[2].flush)
        os.truncate (disk, M)
        os.truncate (disk, 4 * M)
        server.release_all ()
        fails (errno.EIO, finish, clients[0], cookies[0])
        finish (clients[1], cookies[1])
        assert found == [[M, 3]]


def test_a_sync_fails_where_nobody_has_asked_the_plugin_for_a_name (disk, fail):
    """A filter has made one up, and nbdkit must not ask now."""
    with nbdkit ([CLONE, "exportname"], gate (),
                 [f"clone-file={disk}", LATER, "default-export="]) as server:
        late = complete_when_a_sync_fails (server, disk, fail)
        fails (errno.EIO, late.pread, BLOCK, HALF)
        assert late.pread (HALF, 0) == pattern (0, HALF)


def test_a_sync_fails_while_others_are_under_way (disk, fail):
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pread (BLOCK, 0)
        server.send ("hold read 1")
        read, joins = Read (h, BLOCK, 64 * K), Read (h, BLOCK, 64 * K)
        cookies = [h.aio_cache (BLOCK, 128 * K), h.aio_pwrite (b"w" * 100, 256 * K)]
        for _ in range (3):
            server.next_call ("read")
        with fail ("sync", disk.name):
            fails (errno.EIO, h.flush)
        server.send ("hold read 0")
        server.release_all ()
        assert read.result () == joins.result () == pattern (64 * K, BLOCK)
        for cookie in cookies:
            fails (errno.EIO, finish, h, cookie)
        lose (disk, 64 * K)
        assert h.pread (BLOCK, 64 * K) == pattern (64 * K, BLOCK)


def test_through_a_sync_fails_while_a_write_is_under_way (disk, fail):
    """Its client is told that it was done; so nobody is shown what was there before."""
    with clone (disk, LATER, "clone-write=through", plugin=["write=true", "size=4M"]
                ) as server:
        h = server.connect ()
        h.pread (4 * M, 0)
        server.send ("hold write 1")
        cookie = h.aio_pwrite (b"w" * BLOCK, 0)
        server.next_call ("write")
        with fail ("sync", disk.name):
            fails (errno.EIO, h.flush)
        server.release_all ()
        finish (h, cookie)
        fails (errno.EIO, h.pread, BLOCK, 0)
        assert h.pread (BLOCK, 2 * M) == pattern (2 * M, BLOCK)


def test_a_map_that_can_t_be_read_after_a_failed_sync (disk, fail):
    """Nothing is known of what is durable, so nothing is shown."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 0)
        h.flush ()
        h.pread (BLOCK, BLOCK)
        with fail ("sync", disk.name), fail ("pread", map_of (disk).name):
            fails (errno.EIO, h.flush)
        for offset in 0, BLOCK, 512 * K:
            fails (errno.EIO, h.pread, BLOCK, offset)


def test_a_scan_whose_clone_keeps_nothing_any_more (disk, fail):
    """It asks the source for nothing."""
    with nbdkit ([SCAN, CLONE], gate ("hold=read", "size=4M"),
                 [f"clone-file={disk}", LATER, "scan-policy=data", "scan-size=64K",
                  "scan-threads=1"], ["-v"]) as server:
        h = server.connect ()
        call = server.next_call ("read")
        h.pwrite (b"w" * BLOCK, M)
        with fail ("sync", disk.name):
            fails (errno.EIO, h.flush)
        server.send ("hold read 0")
        server.release (call)
        server.wait_line ("scan: warning: prefetch of")
        server.wait_line ("clone: cache count=4096")    # the half of a half, and so on
        assert len (reads (server)) == 1
        assert h.pread (M, 3 * M) == pattern (3 * M, M)


@pytest.mark.parametrize ("what", FILES)
def test_a_clone_is_read_from_the_disk (disk, fail, what):
    """A sync that failed leaves in the page cache what the disk lacks.  That the kernel
    is told can be seen here, and not what it makes of it."""
    with clone (disk) as server:
        server.connect ()
    with fail ("posix_fadvise", what, once=True), clone (disk) as server:
        server.connect ()


@pytest.mark.parametrize ("what", FILES)
def test_what_is_not_durable_does_not_count_as_present (disk, tmp_path, fail, what):
    """Whoever sees that all is there may switch the source off."""
    stats = tmp_path / "stats"

    def present ():
        text = stats.read_text ()
        return [int (re.search (rf"^nbdkit_clone_{name}\S* (\d+)$", text, re.M)[1])
                for name in ("present_bytes", "commits_total")]

    with clone (disk, LATER, f"clone-stats={stats}") as server:
        h = server.connect ()
        h.pread (BLOCK, 0)
        h.flush ()
        h.pread (BLOCK, BLOCK)
        with fail ("sync", what):
            fails (errno.EIO, h.flush)
    assert present () == [BLOCK, 1]
    with clone (disk, LATER, f"clone-stats={stats}") as server:
        server.connect ().pread (2 * BLOCK, 0)
    assert present ()[0] == 2 * BLOCK


def test_what_a_failed_write_has_written_is_synced (disk, fail):
    """It is what reads give, so it may not come back as it was."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pread (2 * BLOCK, 0)
        h.flush ()
        with fail ("pwrite", disk.name):
            fails (errno.EIO, h.pwrite, b"w" * 2 * BLOCK, BLOCK)
        with fail ("sync", disk.name):
            fails (errno.EIO, h.flush)


@pytest.mark.parametrize ("what", FILES)
def test_a_sync_that_a_signal_interrupts_goes_on (disk, fail, what):
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 0)
        with fail ("sync", what, errno.EINTR, once=True):
            h.flush ()
        h.flush ()


def test_why_a_write_fails_is_said (disk, fail):
    """A client may not tell, and all that it is told is an errno."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        with fail ("pwrite", disk.name, errno.ENOSPC):
            fails (errno.ENOSPC, h.pwrite, b"w" * BLOCK, BLOCK)
            assert server.wait_line (
                f"clone: cannot write {disk} at offset {BLOCK}: No space left")
            fails (errno.ENOSPC, h.pwrite, b"w", 100)       # its edge can't be kept
            assert server.wait_line (f"clone: cannot write {disk} at offset 0: No space")
        h.pwrite (b"w" * BLOCK, 2 * BLOCK)
        with fail ("fallocate", disk.name), fail ("pwrite", disk.name):
            fails (errno.EIO, h.trim, BLOCK, 2 * BLOCK)
            assert server.wait_line (f"clone: cannot write {disk} at offset {2 * BLOCK}: ")
        # A client that asks for what is fast or nothing has another way.
        n = len (server.errors ())
        with fail ("fallocate", disk.name, errno.EOPNOTSUPP):
            fails (errno.EOPNOTSUPP, h.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert len (server.errors ()) == n


@pytest.mark.parametrize ("call", ["pwrite", "sync"])
def test_what_could_not_be_committed_is_not_let_go (tmp_path, fail, call):
    """Many exports, so that those nobody uses are closed: not one whose writes would
    be undone by that, or that must fail flushes still."""
    folder = tmp_path / "clones"
    folder.mkdir ()
    with nbdkit ([CLONE], gate (), [f"clone-dir={folder}", LATER]) as server:
        h = server.connect ("a")
        with fail (call, "a.img.map"):
            h.pwrite (b"w" * BLOCK, 0)
            h.shutdown ()
            server.wait_line ("a.img.* cannot be")
            for i in range (12):
                server.connect (f"other{i}").shutdown ()
            for i in range (2, 14):
                server.wait_line (f"gate: close {i}$")
        h = server.connect ("a")
        if call == "sync":
            fails (errno.EIO, h.pread, 2 * BLOCK, 0)
            fails (errno.EIO, h.flush)
        else:
            assert h.pread (2 * BLOCK, 0) == b"w" * BLOCK + pattern (BLOCK, BLOCK)
            h.flush ()


@pytest.mark.parametrize ("call, name, err", [
    ("sync", "clones", errno.EIO), ("ftruncate", "a.img", errno.EFBIG),
    ("sync", "a.img", errno.EIO), ("ftruncate", "a.img.map", errno.EIO),
    ("fallocate", "a.img.map", errno.ENOSPC), ("pwrite", "a.img.map", errno.ENOSPC),
    ("sync", "a.img.map", errno.EIO)])
def test_a_clone_that_can_t_be_begun_leaves_nothing (tmp_path, fail, call, name, err):
    """It would count, and be in the way of a disk of another size."""
    folder = tmp_path / "clones"
    folder.mkdir ()
    with nbdkit ([CLONE], gate (), [f"clone-dir={folder}", "clone-max-exports=1"]
                 ) as server:
        with fail (call, name, err), pytest.raises (nbd.Error):
            server.connect ("a")
        assert os.listdir (folder) == []
        server.connect ("b").pwrite (b"w" * BLOCK, 0, nbd.CMD_FLAG_FUA)
    with nbdkit ([CLONE], gate (), [f"clone-dir={folder}"]) as server:
        server.connect ("a")
        assert server.connect ("b").pread (BLOCK, 0) == b"w" * BLOCK


@pytest.mark.parametrize ("what", FILES)
def test_what_was_there_before_a_clone_that_can_t_be_begun_stays (disk, fail, what):
    before = disk.with_name (what)
    before.touch ()
    inode = before.stat ().st_ino
    with clone (disk) as server:
        with fail ("fallocate", map_of (disk).name, errno.ENOSPC):
            with pytest.raises (nbd.Error):
                server.connect ()
            assert before.stat ().st_ino == inode and before.stat ().st_blocks == 0
        server.connect ()


def test_holes_where_none_can_be_made (disk, fail):
    """What is one already takes no room; what was written becomes zeroes."""
    with clone (disk, LATER, plugin=["data=0+4096"]) as server, \
            fail ("fallocate", disk.name, errno.EOPNOTSUPP):
        h = server.connect ()
        h.cache (M, 0)
        h.trim (512 * K, 256 * K)
        assert disk.stat ().st_blocks <= 256
        h.pwrite (b"w" * 64 * K, 64 * K)
        h.trim (300 * K + 1, 70 * K + 1)
        assert h.pread (M, 0) == pattern (0, BLOCK) + bytes (60 * K) + (
            b"w" * (6 * K + 1) + bytes (954 * K - 1))
        assert disk.stat ().st_blocks <= 512


def test_zeroes_where_there_is_room_for_them_only (disk, fail):
    """To say where zeroes are may take room that is not there; they have theirs."""
    with clone (disk, LATER) as server, fail ("fallocate", disk.name, errno.ENOSPC):
        h = server.connect ()
        h.cache (M, 0)
        fails (errno.ENOTSUP, h.zero, BLOCK, 0, nbd.CMD_FLAG_FAST_ZERO)
        h.zero (BLOCK, 100, nbd.CMD_FLAG_NO_HOLE)
        h.zero (BLOCK, 64 * K)
        assert h.pread (128 * K, 0) == (pattern (0, 100) + bytes (BLOCK)
            + pattern (BLOCK + 100, 60 * K - 100) + bytes (BLOCK) + pattern (68 * K, 60 * K))
    with clone (disk) as server:
        assert server.connect ().pread (BLOCK, 100) == bytes (BLOCK)


@pytest.mark.parametrize ("magic, state", [(0x65735546, 0), (0xef53, 3)])
def test_fuse_does_not_know_where_holes_are (disk, fail, magic, state):
    """It asks a daemon, which may not have what clients have just written."""
    with clone (disk, plugin=["data=0+4096"]) as server, \
            fail ("fstatfs", disk.name, magic):
        h = server.connect (prepare=lambda h: h.add_meta_context (nbd.CONTEXT_BASE_ALLOCATION))
        h.cache (M, 0)
        found = []
        h.block_status (512 * K, 256 * K, lambda _, at, entries, err: found.extend (entries) or 0)
        assert found == [512 * K, state]
        with fail ("fallocate", disk.name, errno.EOPNOTSUPP):
            h.trim (512 * K, 256 * K)
    assert disk.read_bytes () == pattern (0, BLOCK) + bytes (M - BLOCK)
    allocated = disk.stat ().st_blocks * 512
    assert allocated >= 512 * K if state == 0 else allocated < 512 * K


def test_what_a_crash_has_left_of_a_clone_on_fuse (disk, fail):
    """A disk, and a map that is none yet."""
    with clone (disk) as server:
        server.connect ()
    for path in disk, map_of (disk):
        size = path.stat ().st_size
        path.write_bytes (b"")
        os.truncate (path, size)
    with clone (disk) as server, fail ("fstatfs", disk.name, 0x65735546):
        assert server.connect ().pread (BLOCK, 0) == pattern (0, BLOCK)


def test_zeroes_that_are_fetched_where_no_holes_can_be_made (disk, fail):
    """What is one already takes no room."""
    with nbdkit ([CLONE, "noextents"], gate ("data=0+4096"), [f"clone-file={disk}"]) as server, \
            fail ("fallocate", disk.name, errno.EOPNOTSUPP):
        server.connect ().cache (M, 0)
    assert disk.read_bytes () == pattern (0, BLOCK) + bytes (M - BLOCK)
    assert disk.stat ().st_blocks * 512 <= 64 * K


def test_there_is_no_map_before_its_name_lasts (disk, fail):
    map_of (disk).touch ()
    with clone (disk) as server:
        with fail ("sync", disk.parent.name):
            with pytest.raises (nbd.Error):
                server.connect ()
            assert map_of (disk).read_bytes () == b""
        server.connect ()


def test_folders_that_can_t_be_synced (disk, fail):
    """Some file systems have no such call, and no need of it."""
    with clone (disk) as server, fail ("sync", disk.parent.name, errno.EINVAL):
        server.connect ().pwrite (b"w" * BLOCK, 0, nbd.CMD_FLAG_FUA)
    with clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == b"w" * BLOCK


@pytest.mark.parametrize ("what", FILES)
def test_a_clone_is_durable_before_it_is_gone_on_with (disk, fail, what):
    """A server that was killed may have left what is in memory only; and a client that
    comes back and flushes relies on what it was answered before."""
    with crashing (disk, LATER) as server:
        h = server.connect ()
        h.pread (BLOCK, 0)
        h.flush ()
        h.pwrite (b"w" * BLOCK, 0)
    with fail ("sync", what):
        errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "cannot be synced" in errors[0]
    with fail ("sync", what, errno.EINTR, once=True), clone (disk, LATER) as server:
        assert server.connect ().pread (BLOCK, 0) == b"w" * BLOCK


# -- the source has places that can't be read -------------------------------------------

def test_a_bad_block_that_was_overwritten_is_in_nobodys_way (disk):
    """It is read over as long as nothing is wrong with it."""
    with clone (disk, plugin=[f"bad={2 * BLOCK}+{BLOCK}"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 2 * BLOCK)
        assert h.pread (3 * BLOCK, BLOCK) == (
            pattern (BLOCK, BLOCK) + b"w" * BLOCK + pattern (3 * BLOCK, BLOCK))
        assert reads (server) == [(BLOCK, 3 * BLOCK), (BLOCK, BLOCK), (3 * BLOCK, BLOCK)]
        h.cache (M, 0)
        n = len (reads (server))
        assert h.pread (M, 0) == (pattern (0, 2 * BLOCK) + b"w" * BLOCK
                                  + pattern (3 * BLOCK, M - 3 * BLOCK))
        assert len (reads (server)) == n


def test_a_prefetch_goes_round_a_bad_block_that_was_overwritten (disk):
    with clone (disk, plugin=[f"bad={2 * BLOCK}+{BLOCK}"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 2 * BLOCK)
        h.cache (M, 0)
        assert reads (server) == [(0, M), (0, 2 * BLOCK), (3 * BLOCK, M - 3 * BLOCK)]


def test_a_scan_completes_a_clone_whose_bad_block_was_overwritten (disk):
    with clone (disk) as server:
        server.connect ().pwrite (b"w" * BLOCK, 2 * BLOCK)
    with nbdkit ([SCAN, CLONE], gate ("log=read", f"bad={2 * BLOCK}+{BLOCK}"),
                 [f"clone-file={disk}", "scan-policy=data"], ["-v"]) as server:
        h = server.connect ()
        server.wait_line ("scan: finished scanning the plugin")
        n = len (reads (server))
        assert h.pread (M, 0) == (pattern (0, 2 * BLOCK) + b"w" * BLOCK
                                  + pattern (3 * BLOCK, M - 3 * BLOCK))
        assert len (reads (server)) == n
        assert not any ("prefetch of" in e for e in server.errors ())


def test_what_is_present_is_read_over_in_the_units_of_the_plugin (disk):
    """It can be asked for no less; what has the bad block is left out all the same."""
    with clone (disk, plugin=[f"blocks={64 * K}-{M}", f"bad={64 * K}+{64 * K}"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * 64 * K, 64 * K)
        h.pwrite (b"v" * BLOCK, 2 * BLOCK)
        assert h.pread (192 * K, 0) == (
            pattern (0, 2 * BLOCK) + b"v" * BLOCK + pattern (3 * BLOCK, 52 * K)
            + b"w" * 64 * K + pattern (128 * K, 64 * K))
        assert reads (server) == [(0, 192 * K), (0, 64 * K), (128 * K, 64 * K)]


SECTOR = 512
BAD = f"bad={2 * BLOCK}+{SECTOR}"


def test_the_neighbours_of_a_bad_sector_can_be_read (disk):
    """Though a block can only be kept as a whole."""
    with clone (disk, plugin=[BAD]) as server:
        h = server.connect ()
        for offset in (2 * BLOCK + SECTOR, 2 * BLOCK + 5 * SECTOR):
            for _ in range (2):
                n = len (reads (server))
                assert h.pread (SECTOR, offset) == pattern (offset, SECTOR)
                assert reads (server)[n:] == [(2 * BLOCK, BLOCK), (offset, SECTOR)]
        fails (errno.EIO, h.pread, SECTOR, 2 * BLOCK)
        fails (errno.EIO, h.pread, BLOCK, 2 * BLOCK)
        fails (errno.EIO, h.pwrite, b"w", 3 * BLOCK - 1)        # takes all of it
        # With others, of which those that are whole are kept.
        offset = 2 * BLOCK + SECTOR
        n = len (reads (server))
        assert h.pread (2 * BLOCK, offset) == pattern (offset, 2 * BLOCK)
        assert reads (server)[n:] == [(2 * BLOCK, 3 * BLOCK), (offset, 2 * BLOCK)]
        n = len (reads (server))
        assert h.pread (BLOCK, 3 * BLOCK) == pattern (3 * BLOCK, BLOCK)
        assert len (reads (server)) == n


@pytest.mark.parametrize ("where", ["before", "after"])
def test_an_edge_and_a_gap_that_are_bad_at_once (disk, where):
    """The read has a place for what it does not need."""
    offset = 2 * BLOCK + SECTOR if where == "before" else 0
    with clone (disk, plugin=[f"bad={2 * BLOCK}+{SECTOR}" if where == "before"
                              else f"bad={8 * BLOCK - SECTOR}+{SECTOR}"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 4 * BLOCK)
        data = bytearray (pattern (0, 8 * BLOCK))
        data[4 * BLOCK:5 * BLOCK] = b"w" * BLOCK
        end = 8 * BLOCK - SECTOR
        assert h.pread (end - offset, offset) == data[offset:end]


def test_a_bad_sector_in_a_block_larger_than_what_the_plugin_gives (disk):
    """Its units are kept to."""
    with clone (disk, "clone-block-size=64K",
                plugin=[f"blocks={BLOCK}-{8 * BLOCK}", BAD]) as server:
        h = server.connect ()
        assert h.pread (SECTOR, 20000) == pattern (20000, SECTOR)
        assert reads (server) == [(0, 8 * BLOCK), (16 * K, 2 * BLOCK)]
        h.pwrite (b"w" * 64 * K, 0)
        n = len (reads (server))
        assert h.pread (64 * K, 0) == b"w" * 64 * K
        assert len (reads (server)) == n


def test_a_sector_beside_a_bad_one_is_asked_once_more_at_most (disk):
    with clone (disk, plugin=["fail=read:all"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 4 * BLOCK)
        fails (errno.EIO, h.pread, SECTOR, SECTOR)
        assert reads (server) == [(0, BLOCK), (SECTOR, SECTOR)]
        fails (errno.EIO, h.pread, 8 * BLOCK - SECTOR, SECTOR)
        assert reads (server)[2:] == [(0, 8 * BLOCK), (SECTOR, 4 * BLOCK - SECTOR)]


@pytest.mark.parametrize ("change", ["whole", "part"])
def test_a_write_beside_a_read_of_less_than_a_block_is_kept (disk, change):
    """Nobody waits for that read, and it hides nothing."""
    with nbdkit ([CLONE], gate ("hold=read"), [f"clone-file={disk}"]) as server:
        h, other = server.connect (), server.connect ()
        read = Read (h, 2 * SECTOR, 2 * SECTOR)
        server.release (server.next_call ("read"), errno.EIO)
        held = server.next_call ("read")
        assert (held.offset, held.count) == (2 * SECTOR, 2 * SECTOR)
        if change == "whole":
            expected = b"w" * BLOCK
            other.pwrite (expected, 0)
        else:
            expected = (pattern (0, 3 * SECTOR) + b"w" * SECTOR
                        + pattern (4 * SECTOR, BLOCK - 4 * SECTOR))
            cookie = other.aio_pwrite (b"w" * SECTOR, 3 * SECTOR)
            server.release (server.next_call ("read"))
            while not other.aio_command_completed (cookie):
                other.poll (-1)
        server.release (held)
        assert read.result () == expected[2 * SECTOR:4 * SECTOR]
        assert h.pread (BLOCK, 0) == expected


def test_who_has_joined_a_read_that_meets_a_bad_sector (disk):
    """Each gets what it asked for, and nobody waits for what the others do then."""
    with nbdkit ([CLONE], gate ("hold=read"), [f"clone-file={disk}"],
                 ["-v", "-D", "clone.joins=1"]) as server:
        h = server.connect ()
        first = Read (h, SECTOR, SECTOR)
        block = server.next_call ("read")
        second = Read (h, SECTOR, 3 * SECTOR)
        server.wait_line ("clone: blocks 0 to 1: waiting")
        server.release (block, errno.EIO)
        calls = [server.next_call ("read") for _ in range (2)]
        assert {(c.offset, c.count) for c in calls} == {(SECTOR, SECTOR), (0, BLOCK)}
        exact, block = sorted (calls, key=lambda c: c.count)
        third = Read (h, SECTOR, 5 * SECTOR)            # joins the block's
        server.wait_line ("clone: blocks 0 to 1: waiting",
                          server.wait_line ("clone: blocks 0 to 1: waiting")[1])
        server.release (block, errno.EIO)
        calls = [server.next_call ("read") for _ in range (2)]
        for call in sorted (calls, key=lambda c: c.count):
            server.release (call, errno.EIO if call.count == BLOCK else 0)
        last = server.next_call ("read")
        assert (last.offset, last.count) == (5 * SECTOR, SECTOR)
        server.release (last)
        server.release (exact)
        for read, offset in (first, 1), (second, 3), (third, 5):
            assert read.result () == pattern (offset * SECTOR, SECTOR)


def test_through_a_write_beside_a_read_of_less_than_a_block (disk):
    """What is kept of that read is not what was there before."""
    with nbdkit ([CLONE], gate ("hold=read", "write=true"),
                 [f"clone-file={disk}", "clone-write=through"]) as server:
        h, other = server.connect (), server.connect ()
        read = Read (h, 2 * BLOCK, BLOCK - SECTOR)      # has one whole block
        server.release (server.next_call ("read"), errno.EIO)
        held = server.next_call ("read")
        assert (held.offset, held.count) == (BLOCK - SECTOR, 2 * BLOCK)
        other.pwrite (b"w" * SECTOR, BLOCK + SECTOR)
        server.release (held)
        read.result ()
        again = Read (h, BLOCK, BLOCK)
        server.release (server.next_call ("read"))
        assert again.result () == (pattern (BLOCK, SECTOR) + b"w" * SECTOR
                                   + pattern (BLOCK + 2 * SECTOR, BLOCK - 2 * SECTOR))


@pytest.mark.parametrize ("err, more", [(errno.EIO, 1), (errno.ESHUTDOWN, 0)])
def test_a_source_that_is_down_is_asked_once_more_at_most (disk, err, more):
    """And not for the same again, nor if it says that it can't be reached."""
    with clone (disk) as server:
        h = server.connect ()
        for block in 2, 4, 6:
            h.pwrite (b"w" * BLOCK, block * BLOCK)
        server.send (f"fail read {err}")
        for call in h.pread, h.cache:
            n = len (reads (server))
            fails (err, call, 8 * BLOCK, 0)
            assert reads (server)[n:] == [(0, 8 * BLOCK), (0, 2 * BLOCK)][:1 + more]
            n = len (reads (server))
            fails (err, call, BLOCK, BLOCK)
            assert reads (server)[n:] == [(BLOCK, BLOCK)]


# -- they are not what they should be --------------------------------------------------

@pytest.mark.parametrize ("pages", [2, 5, 8])
def test_a_map_without_its_beginning_is_not_made_anew (disk, pages):
    """Though the file is all holes: it is a client that has made them."""
    with clone (disk) as server:
        h = server.connect ()
        h.trim (M, 0)
        h.flush ()
    assert disk.stat ().st_blocks == 0
    with open (map_of (disk), "r+b") as f:
        f.write (bytes (pages * PAGE))
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "is not a map of a clone" in errors[0]


@pytest.mark.skipif (os.geteuid () != 0, reason="takes root")
@pytest.mark.parametrize ("what", ["disk.img", "disk.img.map"])
def test_a_file_of_another_user_in_a_folder_for_all (tmp_path, what):
    folder = tmp_path / "tmp"
    folder.mkdir ()
    disk = folder / "disk.img"
    (folder / what).touch (mode=0o666)
    os.chown (folder / what, 12345, 12345)
    for mode in 0o1777, 0o777, 0o1775:
        folder.chmod (mode)
        errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
        assert len (errors) == 1 and "belongs to another user" in errors[0], errors
    for mode in 0o755, 0o775:
        folder.chmod (mode)
        with clone (disk) as server:
            server.connect ()


@pytest.mark.parametrize ("name", ["disk.img", "disk.img.map"])
def test_a_file_that_must_not_change_is_nobody_elses (disk, name):
    """What chattr +i has made immutable is told as what it is."""
    with clone (disk) as server:
        server.connect ()
    path = disk.with_name (name)
    if shutil.which ("chattr") is None or subprocess.run (
            ["chattr", "+i", path], stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip ("no file can be made immutable here")
    try:
        errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    finally:
        subprocess.run (["chattr", "-i", path], check=True)
    assert errors == [f"clone: cannot open {path}: Operation not permitted"]


@pytest.mark.parametrize ("name", ["disk.img", "disk.img.map"])
@pytest.mark.parametrize ("replace", [False, True])
def test_a_file_that_is_removed_is_told (disk, name, replace):
    """Once, and in time to copy the disk from the server."""
    path = disk.with_name (name)
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 0, nbd.CMD_FLAG_FUA)
        assert server.errors () == []
        if replace:
            disk.with_name ("new").write_bytes (b"")
            disk.with_name ("new").rename (path)
        else:
            path.unlink ()
        for _ in range (2):
            h.pwrite (b"w" * BLOCK, BLOCK, nbd.CMD_FLAG_FUA)
        assert h.pread (2 * BLOCK, 0) == b"w" * 2 * BLOCK
        assert [e for e in server.errors () if f"warning: {path} has been removed while "
                "it is in use" in e] == server.errors ()
        assert len (server.errors ()) == 1


def test_what_is_cut_off_the_file_is_lost_and_no_hole (disk):
    with clone (disk, LATER, plugin=["size=4M"]) as server:
        h = server.connect (prepare=with_extents)
        h.cache (4 * M, 0)
        h.flush ()
        os.truncate (disk, M)
        assert extents (h, 3 * M, M) == [(3 * M, 0)]
        fails (errno.EIO, h.pread, BLOCK, 2 * M)
        h.pwrite (b"w" * BLOCK, 3 * M)      # makes it longer again, by a hole
        fails (errno.EIO, h.flush)
        fails (errno.EIO, h.pwrite, b"w" * BLOCK, 0)
        said = server.errors ()
    assert said[1:2] == [f"clone: {disk} is {3 * M + BLOCK} bytes, and should be {4 * M}; "
                         "somebody has cut it short while it is in use"]
    assert "until nbdkit is started again every write and flush fails" in said[2]
    assert len (said) == 3      # the first is of the read


@pytest.mark.parametrize ("how", ["pwrite", "cache"])
def test_what_is_cut_off_is_not_hidden_by_a_write_of_the_end (disk, how):
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.cache (M // 2, 0)
        h.flush ()
        os.truncate (disk, M // 4)
        for _ in range (3):
            assert h.pread (BLOCK, M - BLOCK) == pattern (M - BLOCK, BLOCK)
            if how == "pwrite":
                fails (errno.EIO, h.pwrite, b"w" * BLOCK, M - BLOCK)
            else:
                fails (errno.EIO, h.cache, M // 2, M // 2)
        assert sum ("cut it short while it is in use" in e for e in server.errors ()) == 1
        fails (errno.EIO, h.flush)
    assert disk.stat ().st_size == M // 4
    assert "somebody" not in refused ([CLONE], gate (), [f"clone-file={disk}"])[0]


@pytest.mark.parametrize ("name", ["a.img", "a.img.map"])
@pytest.mark.parametrize ("how", ["removed", "moved", "replaced"])
def test_a_clone_is_not_let_go_without_its_files (tmp_path, name, how):
    """It could not be opened again, and the warning says that it is there until the
    end."""
    def is_let_go ():
        """Are there no more clones open than may be idle?"""
        fds = f"/proc/{server.pid}/fd"
        try:
            names = [os.readlink (f"{fds}/{fd}") for fd in os.listdir (fds)]
        except FileNotFoundError:
            return False        # one has just been closed
        return sum (n.startswith (f"{tmp_path}/o") for n in names) <= 2 * 8

    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}", LATER]) as server:
        h = server.connect ("a")
        h.pwrite (b"w" * BLOCK, 0, nbd.CMD_FLAG_FUA)
        path = tmp_path / name
        if how == "removed":
            path.unlink ()
        else:
            path.rename (tmp_path / "moved")
        if how == "replaced":
            shutil.copy (tmp_path / "moved", path)
        h.pwrite (b"v" * BLOCK, 0, nbd.CMD_FLAG_FUA)
        server.disconnect (h)
        for n in range (12):
            server.disconnect (server.connect (f"o{n}"))
        server.poll (is_let_go, "clones to be let go")
        h = server.connect ("a")
        assert h.pread (BLOCK, 0) == b"v" * BLOCK
        h.flush ()


def test_a_limit_for_files_while_a_clone_is_opened (disk):
    """Its map was damaged, and what it has left is written down, but not then."""
    make (disk, write=False)
    damage (map_of (disk), newest_slot (map_of (disk)) + 100, b"\xaa")
    with contextlib.ExitStack () as stack:
        with file_limit (4 * PAGE):
            server = stack.enter_context (clone (disk, LATER))
        assert server.connect ().pread (BLOCK, M - BLOCK) == pattern (M - BLOCK, BLOCK)


def test_a_limit_for_files_ends_no_server (disk):
    size = f"size={16 * M}"
    with contextlib.ExitStack () as stack:
        with file_limit (M):
            server = stack.enter_context (clone (disk, plugin=[size]))
        with pytest.raises (nbd.Error):
            server.connect ()
        assert f"clone: {disk} cannot be made {16 * M} bytes long: File too large" \
            in server.errors ()
    with clone (disk, plugin=[size]) as server:
        server.connect ().pwrite (b"w" * BLOCK, 0)
    with contextlib.ExitStack () as stack:
        with file_limit (M):
            server = stack.enter_context (clone (disk, plugin=[size]))
        h = server.connect ()
        fails (errno.ENOSPC, h.pwrite, b"w" * BLOCK, 2 * M)
        assert h.pread (2 * BLOCK, 2 * M) == pattern (2 * M, 2 * BLOCK)
        h.pwrite (b"w" * BLOCK, BLOCK, nbd.CMD_FLAG_FUA)
        assert h.pread (2 * BLOCK, 0) == b"w" * 2 * BLOCK


def test_counters_replace_no_other_thing (disk, tmp_path):
    fifo = tmp_path / "stats"
    args = [f"clone-file={disk}", f"clone-stats={fifo}", "clone-commit=0.1"]
    with nbdkit ([CLONE], gate (), args) as server:
        server.connect ()
        server.poll (fifo.exists, "the counters")

        def is_noticed ():
            # What is being written may still be put in its place.
            if not fifo.is_fifo ():
                os.mkfifo (tmp_path / "fifo")
                (tmp_path / "fifo").rename (fifo)
            return any ("is not a regular file" in e for e in server.errors ())
        server.poll (is_noticed, "a warning of the fifo")
    assert fifo.is_fifo ()
    assert refused ([CLONE], gate (), args) == [
        f"clone-stats={fifo} cannot be written: it is there and is not a regular file"]


def test_counters_replace_no_other_file (disk, tmp_path):
    """Such as a disk, by a slip; and what comes later is left alone, too."""
    stats = tmp_path / "stats"
    stats.write_bytes (b"a disk" * 1000)
    args = [f"clone-file={disk}", f"clone-stats={stats}", "clone-commit=0.1"]
    assert refused ([CLONE], gate (), args) == [
        f"clone-stats={stats} cannot be written: it is there and holds something else "
        "than these counters"]
    assert stats.read_bytes () == b"a disk" * 1000
    stats.write_bytes (b"")             # nothing is lost by that
    with nbdkit ([CLONE], gate (), args) as server:
        server.connect ()
        server.poll (lambda: stats.stat ().st_size > 0, "the counters")

        def is_noticed ():
            # What is being written may still be put in its place.
            (tmp_path / "other").write_bytes (b"a disk")
            (tmp_path / "other").rename (stats)
            return any ("holds something else" in e for e in server.errors ())
        server.poll (is_noticed, "a warning of the file")
    assert stats.read_bytes () == b"a disk"


def test_two_filters_share_no_file (tmp_path):
    """Each would replace the counters of the other; it is the first's."""
    stats = tmp_path / "stats"
    with nbdkit ([SCAN, CLONE], gate (), [f"scan-stats={stats}", f"clone-stats={stats}"]
                 ) as server:
        server.connect ()
    first, other = (("scan", "clone") if "nbdkit_scan_" in stats.read_text ()
                    else ("clone", "scan"))
    assert server.errors () == [
        f"{other}: warning: {other}-stats={stats} cannot be written: it is there and holds "
        "something else than these counters"]
    assert stats.read_text ().startswith (f"# HELP nbdkit_{first}_")


def test_counters_in_a_folder_that_is_missing (tmp_path):
    assert refused ([CLONE], gate (), [f"clone-stats={tmp_path}/no/stats"]) == [
        f"clone-stats={tmp_path}/no/stats cannot be written: No such file or directory"]


def test_a_disk_whose_map_does_not_fit (disk):
    with clone (disk, plugin=[f"size={2 ** 62}"]) as server:
        with pytest.raises (nbd.Error):
            server.connect ()
        server.wait_line (f"clone: the map of a disk of {2 ** 62} bytes, in blocks of "
                          "4096, does not fit into memory: Cannot allocate memory; "
                          "with a larger clone-block-size it is smaller")
    assert not disk.exists ()


def test_counters_are_no_file_of_the_clone (tmp_path):
    disk = tmp_path / "disk.tmp"
    for where, path in [(f"clone-file={disk}", disk),
                        (f"clone-file={disk}", map_of (disk)),
                        (f"clone-dir={tmp_path}", tmp_path / "a.img"),
                        (f"clone-dir={tmp_path}//", tmp_path / "a.img.map")]:
        errors = refused ([CLONE], gate (), [where, f"clone-stats={path}"])
        assert errors == [f"clone-stats={path} is a file of the clone; it should be "
                          "one of its own"]
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}",
                                    f"clone-stats={tmp_path}/stats"]) as server:
        server.connect ()
    # What is written first is nobody else's, whatever it is called.
    with clone (disk, f"clone-stats={tmp_path}/disk") as server:
        server.connect ()


# -- clone-write=through over what wants large requests --------------------------------

def test_through_a_fetch_widened_over_a_smaller_write_is_not_kept ():
    """The plugin wants 64K; a write of less, that it takes all the same, may fall into
    what a read of another block brings along."""
    with nbdkit ([CLONE, "blocksize-policy"], gate ("hold=read", "write=true"),
                 ["clone-write=through", "blocksize-minimum=64K",
                  "blocksize-preferred=64K"]) as server:
        h = server.connect ()
        h.set_strict_mode (0)
        read = Read (h, BLOCK, 0)
        held = server.next_call ("read")
        assert held.count == 64 * K
        h.pwrite (b"w" * 100, 3 * BLOCK + 100)
        server.release (held)
        read.result ()
        again = Read (h, BLOCK, 3 * BLOCK)
        server.release (server.next_call ("read"))
        assert again.result () == (pattern (3 * BLOCK, 100) + b"w" * 100
                                   + pattern (3 * BLOCK + 200, BLOCK - 200))


def test_through_what_was_fast_for_the_plugin_is_done_here_too (disk, fail):
    """Though it may take longer: it would differ from the plugin otherwise."""
    with clone (disk, LATER, "clone-write=through",
                plugin=["write=true", "fast-zero=true", "log=zero"]) as server:
        h = server.connect ()
        h.cache (M // 2, 0)
        with fail ("fallocate", disk.name, errno.EOPNOTSUPP):
            h.zero (M, 0, nbd.CMD_FLAG_FAST_ZERO)
        assert [(c.offset, c.count) for c in server.calls ("zero")] == [(0, M)]
        assert h.pread (M, 0) == bytes (M)


# -- a source that changes its size ----------------------------------------------------

def test_a_temporary_clone_is_begun_anew (tmp_path):
    """If the source has another size, and nothing is lost by it."""
    source = tmp_path / "source"
    source.write_bytes (b"\1" * 10000)
    with nbdkit ([CLONE], ["file", str (source)]) as server:
        found = []

        def connect ():
            """Only once the connection before is over."""
            with contextlib.suppress (nbd.Error):
                found.append (server.connect ())
            return found

        h = server.connect ()
        assert h.pread (512, 0) == b"\1" * 512
        h.shutdown ()
        source.write_bytes (b"\2" * 20000)
        server.poll (connect, "the other size")
        h = found[0]
        assert h.get_size () == 20000
        h.pwrite (b"w", 0)
        h.shutdown ()
        source.write_bytes (bytes (30000))
        with pytest.raises (nbd.Error):
            server.connect ()
        assert "holds what clients have written" in server.errors ()[-1]
        source.write_bytes (b"\2" * 20000)
        assert server.connect ().pread (2, 0) == b"w\2"
