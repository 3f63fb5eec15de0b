# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The files of the clone filter: restarts, damage, trouble, several exports."""

import concurrent.futures
import contextlib
import errno
import fcntl
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile

import nbd
import pytest

from harness import (CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, fails, gate, kill_at_once,
                     nbdkit, needs, pattern, refused)

K = 1024
M = 1024 * K
BLOCK = 4 * K
PAGE = 4096                     # of a map
BITS = 8 * PAGE                 # where its bits begin
LATER = "clone-commit=3600"     # only when asked to


def clone (path, *args, plugin=(), options=()):
    return nbdkit ([CLONE], gate ("log=read", *plugin),
                   [f"clone-file={path}", *args], options)


def reads (server):
    return [(c.offset, c.count) for c in server.calls ("read")]


@pytest.fixture
def disk (tmp_path):
    return tmp_path / "disk.img"


def map_of (path):
    return path.with_name (path.name + ".map")


def crash (server):
    """kill -9, as far as the harness can still end the test after it."""
    server.process.kill ()
    server.process.wait ()


@contextlib.contextmanager
def crashing (path, *args):
    """A server that is killed at the end of the block."""
    server = None
    try:
        with clone (path, *args) as server:
            yield server
            crash (server)
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass


# -- restart ---------------------------------------------------------------------

def test_a_restart_goes_on (disk):
    with clone (disk) as server:
        h = server.connect ()
        h.pread (64 * K, 0)
        h.pwrite (b"w" * 100, 200 * K)
    with clone (disk) as server:
        h = server.connect ()
        assert h.pread (64 * K, 0) == pattern (0, 64 * K)
        assert h.pread (BLOCK, 200 * K) == (b"w" * 100
                                            + pattern (200 * K + 100, BLOCK - 100))
        assert reads (server) == []


def test_after_a_crash_what_was_flushed_is_there (disk):
    with crashing (disk, LATER) as server:
        h = server.connect ()
        h.pread (64 * K, 0)
        h.pwrite (b"w" * BLOCK, 200 * K)
        h.flush ()
        h.pwrite (b"v" * BLOCK, 0)              # over what is present
        h.pwrite (b"f" * BLOCK, 400 * K, nbd.CMD_FLAG_FUA)
        h.pwrite (b"u" * BLOCK, 300 * K)        # not flushed: may be lost
    with clone (disk) as server:
        h = server.connect ()
        assert h.pread (64 * K, 0) == b"v" * BLOCK + pattern (BLOCK, 60 * K)
        assert h.pread (BLOCK, 200 * K) == b"w" * BLOCK
        assert h.pread (BLOCK, 400 * K) == b"f" * BLOCK
        assert reads (server) == []
        assert h.pread (BLOCK, 300 * K) in (b"u" * BLOCK,
                                            pattern (300 * K, BLOCK))


def test_what_is_fetched_is_committed_now_and_then (disk):
    with crashing (disk, "clone-commit=0.1", "clone-stats=" + str (disk) + ".st"
                   ) as server:
        h = server.connect ()
        h.cache (M, 0)
        server.poll (lambda: os.path.exists (f"{disk}.st") and re.search (
            r"commits_total\S+ [1-9]", open (f"{disk}.st").read ()), "a commit")
    with clone (disk) as server:
        assert server.connect ().pread (M, 0) == pattern (0, M)
        assert reads (server) == []


def test_a_server_that_waits_for_its_clients_to_go_commits (disk):
    """After SIGTERM, too: SIGKILL comes in the end, and finds nothing left to do."""
    stats = disk.with_name ("stats")

    def knows ():
        with open (f"/proc/{server.pid}/status") as f:
            pending = int (re.search (r"^ShdPnd:\s*(\w+)", f.read (), re.M)[1], 16)
        return not pending & 1 << (signal.SIGTERM - 1)

    with crashing (disk, "clone-commit=0.1", f"clone-stats={stats}") as server:
        server.send ("hold read 1")
        h, other = server.connect (), server.connect ()
        h.aio_pread (nbd.Buffer (BLOCK), 0)
        call = server.next_call ("read")
        other.aio_pread (nbd.Buffer (BLOCK), M // 2)
        server.next_call ("read")               # is waited for
        server.terminate ()
        server.poll (knows, "the signal to be taken")
        server.release (call)
        h.poll (-1)
        for _ in range (2):             # the first may have begun before that
            before = os.stat (stats).st_mtime_ns if stats.exists () else 0
            server.poll (lambda before=before: stats.exists ()
                         and os.stat (stats).st_mtime_ns > before, "a commit")
        crash (server)
    with clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == pattern (0, BLOCK)
        assert reads (server) == []


@pytest.mark.parametrize ("between", [[], ["noextents"]])
def test_a_hole_is_made_sure_of_after_a_crash (disk, between):
    """A write that was not committed has left its data in the file."""
    with crashing (disk, LATER) as server:
        server.connect ().pwrite (b"u" * BLOCK, 64 * K)
    with nbdkit ([CLONE, *between], gate ("data=0+4096"), [f"clone-file={disk}"]) as server:
        h = server.connect ()
        h.cache (M, 0)
        assert h.pread (BLOCK, 64 * K) == bytes (BLOCK)
    with crashing (disk, LATER) as server:
        pass


@pytest.mark.parametrize ("count", [BLOCK, 512, M])     # of each prefetch
def test_zeroes_that_are_fetched_take_no_room (disk, count):
    """The layer below does not know where its holes are."""
    data = f"data={260 * K}+{BLOCK}"
    with nbdkit ([CLONE, "noextents"], gate (data, "log=read"),
                 [f"clone-file={disk}", "clone-block-size=512"]) as server:
        h = server.connect (prepare=lambda h: h.add_meta_context (nbd.CONTEXT_BASE_ALLOCATION))
        for offset in range (0, M, count):
            h.cache (count, offset)
        assert sum (count for _, count in reads (server)) == M
        found = []
        h.block_status (M, 0, lambda _, at, entries, err: found.extend (entries[::2]) or 0)
        assert found == ([256 * K, 64 * K, 704 * K] if count == M
                         else [260 * K, BLOCK, 760 * K])
    assert disk.read_bytes () == bytes (260 * K) + pattern (260 * K, BLOCK) + bytes (760 * K)
    assert disk.stat ().st_blocks * 512 <= (64 * K if count == M else BLOCK)


def test_counters_are_there_from_the_start (disk, tmp_path):
    """And not those of a server that was killed."""
    stats = tmp_path / "stats"
    with clone (disk) as server:
        server.connect ().cache (64 * K, 0)
    stats.write_text ("# HELP nbdkit_clone_size_bytes Size of the disk.\n")
    with clone (disk, LATER, f"clone-stats={stats}") as server:
        server.poll (lambda: f'nbdkit_clone_present_bytes{{export=""}} {64 * K}\n'
                     in stats.read_text (), "the first counters")


def test_a_complete_clone_needs_no_source (disk):
    with clone (disk) as server:
        h = server.connect ()
        h.cache (M, 0)
        h.pwrite (b"w" * 100, 1000)
    expected = pattern (0, 1000) + b"w" * 100 + pattern (1100, M - 1100)
    assert disk.read_bytes () == expected
    with clone (disk, plugin=["fail=open:all"]) as server:
        h = server.connect ()
        assert h.get_size () == M
        assert h.pread (M, 0) == expected
        h.pwrite (b"v" * 100, 0)
        h.trim (64 * K, 64 * K)
        h.cache (M, 0)
        h.flush ()
        assert h.pread (100, 0) == b"v" * 100
        info = server.run ("nbdinfo", "--map", "{uri}")
        assert "hole,zero" in info


def test_a_clone_without_a_file_leaves_none (tmp_path, monkeypatch):
    monkeypatch.setenv ("TMPDIR", str (tmp_path))
    with nbdkit ([CLONE], gate ()) as server:
        h = server.connect ()
        h.pwrite (b"w" * 100, 1000)
        h.flush ()
        server.disconnect (h)
        assert server.connect ().pread (100, 1000) == b"w" * 100
        assert os.listdir (tmp_path) == []


def test_a_terabyte_costs_what_is_kept (disk):
    plugin = ["pattern", "1T"]
    with nbdkit ([CLONE], plugin, [f"clone-file={disk}"]) as server:
        h = server.connect ()
        assert h.pread (8, 2**40 - 16) == (2**40 - 16).to_bytes (8, "big")
        h.pwrite (b"w" * BLOCK, 2**39)
        assert server.rss_bytes () < 64 * M
    assert disk.stat ().st_blocks * 512 < M
    with nbdkit ([CLONE], plugin, [f"clone-file={disk}"]) as server:
        assert server.connect ().pread (BLOCK, 2**39) == b"w" * BLOCK


# -- who owns the files ------------------------------------------------------------

def test_files_are_for_their_owner_alone (disk):
    with clone (disk) as server:
        server.connect ()
        for path in disk, map_of (disk):
            assert stat.S_IMODE (path.stat ().st_mode) == 0o600


@pytest.mark.parametrize ("name, said", [
    ("clone-fil", "did you mean clone-file?"),
    ("clone-fetchsize", "did you mean clone-fetch-size?"),
    ("clone-background", "it has: clone-file, "),
    ("clone-", "it has: clone-file, "),
])
def test_a_parameter_that_we_do_not_have (name, said):
    """Some plugins take any."""
    [error] = refused ([CLONE], ["null"], [f"{name}=x"])
    assert error.startswith (f"{name}: the clone filter has no such parameter; {said}")


def test_links_and_other_things_are_refused (tmp_path):
    (tmp_path / "target").write_bytes (b"precious")
    link, fifo = tmp_path / "link", tmp_path / "fifo"
    link.symlink_to (tmp_path / "target")
    os.mkfifo (fifo)
    assert refused ([CLONE], gate (), [f"clone-file={link}"]) == [
        f"clone-file: {link} is a symbolic link, which is not followed; name the "
        "file itself"]
    for path in fifo, "/dev/null", tmp_path:
        assert refused ([CLONE], gate (), [f"clone-file={path}"]) == [
            f"clone-file: {path} is not a regular file"]
    assert (tmp_path / "target").read_bytes () == b"precious"


def test_a_link_that_comes_later_is_refused (disk, tmp_path):
    (tmp_path / "target").write_bytes (b"precious")
    with clone (disk) as server:
        # It has to be up, and not to have opened anything.
        server.connect (prepare=lambda h: h.set_opt_mode (True))
        disk.symlink_to (tmp_path / "target")
        with pytest.raises (nbd.Error):
            server.connect ()
        server.wait_line ("is a symbolic link, which is not followed")
        disk.unlink ()
        map_of (disk).symlink_to (tmp_path / "target")
        with pytest.raises (nbd.Error):
            server.connect ()
        server.wait_line ("disk.img.map is a symbolic link")
    assert (tmp_path / "target").read_bytes () == b"precious"


def test_a_second_server_is_refused (disk):
    with clone (disk) as server:
        server.connect ()
        assert refused ([CLONE], gate (), [f"clone-file={disk}"]) == [
            f"clone: {disk} is in use by another server or by QEMU; give each its own file"]


def lock (path, first=0, count=0, how=fcntl.LOCK_EX):
    """Until what this returns is closed."""
    f = open (path, "r+b")
    fcntl.lockf (f, how | fcntl.LOCK_NB, count, first)
    return f


def test_a_clone_that_others_have_locked (tmp_path):
    """All are waited for at the same time, as that takes a while."""
    with contextlib.ExitStack () as locks, concurrent.futures.ThreadPoolExecutor () as pool:
        waiting = []
        for first, count, how in [
                (0, 0, fcntl.LOCK_EX),          # all of it, by an earlier version
                (101, 1, fcntl.LOCK_SH),        # by a QEMU that writes
                (201, 1, fcntl.LOCK_SH)]:       # and by one that wants nobody to
            for suffix in "", ".map":
                disk = tmp_path / f"{first}{suffix}.img"
                with clone (disk) as server:
                    server.connect ()
                path = f"{disk}{suffix}"
                locks.enter_context (lock (path, first, count, how))
                waiting.append ((path, pool.submit (refused, [CLONE], gate (),
                                                    [f"clone-file={disk}"])))
        for path, errors in waiting:
            assert errors.result () == [
                f"clone: {path} is in use by another server or by QEMU; give each its own file"]


IN_USE = "is in use by another server, which may be about to end; waiting"


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit itself")
def test_a_server_that_is_started_while_one_before_ends (disk):
    """One that was killed has the locks until it is out of its last write."""
    with clone (disk) as server:
        server.connect ()
    for path in disk, map_of (disk):
        held = lock (path)
        with subprocess.Popen (["nbdkit", "-v", "-U", "-", f"--filter={CLONE}", "null", "1M",
                                f"clone-file={disk}", "--run", 'nbdinfo --size "$uri"'],
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
                               ) as run:
            assert any (IN_USE in line for line in run.stderr)
            held.close ()
            out, err = run.communicate (timeout=PATIENCE_SECS)
        assert out == f"{M}\n" and "error:" not in err


def test_a_client_that_comes_while_a_server_before_ends (tmp_path):
    """Others need not wait for it."""
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        server.connect ("a").pwrite (b"w" * BLOCK, 0)
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"], ["-v"]) as server, \
            concurrent.futures.ThreadPoolExecutor () as pool:
        with lock (tmp_path / "a.img"):
            client = pool.submit (server.connect, "a")
            server.wait_line (f"a.img {IN_USE}")
            other = server.connect ("b")
            assert not client.done ()
        assert client.result ().pread (BLOCK, 0) == b"w" * BLOCK
        assert other.pread (BLOCK, 0) == pattern (0, BLOCK)


def test_a_clone_is_locked_for_others (disk):
    with clone (disk) as server:
        server.connect ()
        for path in disk, map_of (disk):
            with open (path, "r+b") as f, pytest.raises (BlockingIOError):
                fcntl.lockf (f, fcntl.LOCK_EX | fcntl.LOCK_NB)


@needs ("qemu-img", "qemu-io")
def test_qemu_reads_a_clone_that_is_in_use (disk):
    """If it is told to, as for any image that somebody writes to."""
    def qemu (tool, *args):
        return subprocess.run ([tool, *args], stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT, text=True)

    copy = disk.with_name ("copy")
    with clone (disk) as server:
        server.connect ().cache (M, 0)
        convert = ["qemu-img", "convert", "-f", "raw", "-O", "raw"]
        refusals = qemu (*convert, disk, copy), qemu (
            "qemu-io", "-f", "raw", "-c", "write 0 512", disk)
        for run in refusals:
            assert run.returncode != 0 and '"write" lock' in run.stdout
        run = qemu (*convert, "-U", disk, copy)
        assert run.returncode == 0, run.stdout
        assert copy.read_bytes () == pattern (0, M)


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit itself")
@pytest.mark.parametrize ("what, why", [
    ("another file", "is there and holds data"),
    ("a map alone", "which it is the map of, is missing"),
    ("a fifo for a map", "disk.img.map is not a regular file"),
    ("a link for a map", "disk.img.map is a symbolic link")])
def test_no_command_is_run_for_a_clone_that_is_refused (disk, tmp_path, what, why):
    """It would wait for a server that has ended."""
    if what == "another file":
        disk.write_bytes (b"precious")
    elif what == "a map alone":
        with clone (disk) as server:
            server.connect ()
        disk.unlink ()
    elif what == "a fifo for a map":
        os.mkfifo (map_of (disk))
    else:
        map_of (disk).symlink_to (tmp_path / "target")
    run = subprocess.run (["nbdkit", "-U", "-", f"--filter={CLONE}", "null", "1M",
                           f"clone-file={disk}", "--run", f'touch {tmp_path}/ran; '
                           'nbdinfo --size "$uri"'],
                          stderr=subprocess.PIPE, text=True, timeout=PATIENCE_SECS)
    assert run.returncode == 1 and run.stderr.count ("error:") == 1 and why in run.stderr
    assert not (tmp_path / "ran").exists ()


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit itself")
def test_a_server_that_is_killed_while_its_command_runs (disk, tmp_path):
    """Another can take its place, for the command to connect to."""
    with clone (disk) as server:
        server.connect ().pread (BLOCK, 0)
    run = subprocess.Popen (
        ["nbdkit", "-U", tmp_path / "sock", "-P", tmp_path / "pid", f"--filter={CLONE}",
         "null", "1M", f"clone-file={disk}", "--run", 'nbdinfo --size "$uri"; cat'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert run.stdout.readline () == f"{M}\n".encode ()
        kill_at_once (int ((tmp_path / "pid").read_text ()))
        with clone (disk) as server:
            assert server.connect ().pread (BLOCK, 0) == pattern (0, BLOCK)
    finally:
        run.communicate (timeout=PATIENCE_SECS)


@pytest.mark.skipif (os.geteuid () != 0 or CHECK_WITH != "",
                     reason="only root can become another user")
def test_a_clone_that_the_user_may_not_open ():
    """Who may open it is seen when the server has become that user."""
    with tempfile.TemporaryDirectory () as folder:
        os.chmod (folder, 0o755)
        disk = f"{folder}/disk.img"
        with nbdkit ([CLONE], ["null", "1M"], [f"clone-file={disk}"]) as server:
            server.connect ()
        assert "Permission denied" in subprocess.run (
            ["nbdkit", "-f", "-U", f"{folder}/sock", "--user=nobody", f"--filter={CLONE}",
             "null", "1M", f"clone-file={disk}"], stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE_SECS).stderr
        # Nor does a command wait for a server that has ended.
        run = subprocess.run (["nbdkit", "-U", "-", "--user=nobody", f"--filter={CLONE}",
                               "null", "1M", f"clone-file={disk}", "--run",
                               'nbdinfo --size "$uri" && echo served'],
                              stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              timeout=PATIENCE_SECS)
        assert run.stdout == "" and "Permission denied" in run.stderr
        # Opened as root, and again; the process that runs the command has the first, too.
        for uid, mode in (0, 0o666), (pwd.getpwnam ("nobody").pw_uid, 0o600):
            for name in disk, disk + ".map":
                os.chown (name, uid, -1)
                os.chmod (name, mode)
            run = subprocess.run (["nbdkit", "-U", "-", "--user=nobody",
                                   f"--filter={CLONE}", "null", "1M",
                                   f"clone-file={disk}", "--run", 'nbdinfo --size "$uri"'],
                                  stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                  text=True, timeout=PATIENCE_SECS)
            assert (run.stdout, run.stderr) == ("1048576\n", "")


@pytest.mark.parametrize ("data", [b"x", b"precious" * 1000])
def test_a_file_that_is_no_clone_is_left_alone (disk, data):
    disk.write_bytes (data)
    for _ in range (2):
        errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
        assert len (errors) == 1 and "is there and holds data, but" in errors[0]
        assert disk.read_bytes () == data
        assert not map_of (disk).exists ()
    map_of (disk).touch ()                      # as good as none
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "is empty" in errors[0]
    assert disk.read_bytes () == data


@pytest.mark.parametrize ("what", ["another", "the source"])
def test_a_file_that_is_all_holes_and_has_no_map_is_left_alone (disk, tmp_path, what):
    """It may be the source itself; we make no disk before there is a map."""
    source = disk if what == "the source" else tmp_path / "source"
    for path in source, disk:
        path.touch ()
        os.truncate (path, 3 * M)
    assert refused ([CLONE], ["file", str (source)], [f"clone-file={disk}"]) == [
        f"clone: {disk} is there and is not empty, but {map_of (disk)}, which says what of "
        "it is a clone, is missing; name another file, or move this one away"]
    assert not map_of (disk).exists ()


def test_an_empty_disk_of_another_size_is_left_alone (disk):
    disk.touch ()
    os.truncate (disk, 3 * M)
    map_of (disk).touch ()
    with clone (disk) as server:
        with pytest.raises (nbd.Error):
            server.connect ()
        assert server.errors () == [
            f"clone: {disk} is there, is of no clone, and has {3 * M} bytes, and the disk "
            f"{M}; name another file, or move this one away"]
    assert disk.stat ().st_size == 3 * M and map_of (disk).stat ().st_size == 0


@pytest.mark.parametrize ("disk_is_there", [False, True])
def test_a_file_under_the_name_of_the_map_is_left_alone (disk, disk_is_there):
    """It may well begin with zeroes, as the clone of a disk does whose beginning was
    not read yet."""
    other = map_of (disk)
    with clone (other) as server:
        h = server.connect ()
        h.pwrite (b"precious", 512 * K)
    before = other.read_bytes ()
    assert before[:BITS] == bytes (BITS)
    if disk_is_there:
        disk.touch ()
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1
    assert other.read_bytes () == before
    with clone (other) as server:
        assert server.connect ().pread (8, 512 * K) == b"precious"


@pytest.mark.parametrize ("beside", [None, 0, 10 * M])
def test_a_source_under_the_name_of_the_map_is_left_alone (disk, beside):
    """Be it all holes, and a disk beside it, of the same size as well."""
    source = map_of (disk)
    for path, size in (source, 10 * M), (disk, beside):
        if size is not None:
            path.touch ()
            os.truncate (path, size)
    errors = refused ([CLONE], ["file", str (source)], [f"clone-file={disk}"])
    assert len (errors) == 1
    assert ("is missing" if beside is None else "is not a map of a clone") in errors[0]
    assert source.stat ().st_size == 10 * M


def test_a_map_that_is_another_server_s_disk_is_refused (disk):
    """Of two clones that are begun at once, of which one wants the other's disk."""
    other = map_of (disk)
    with clone (disk) as second:
        second.send ("hold open 1")
        with concurrent.futures.ThreadPoolExecutor () as pool:
            client = pool.submit (second.connect)
            call = second.next_call ("open")        # has found nothing
            with clone (other, LATER) as server:
                h = server.connect ()
                second.release (call)
                with pytest.raises (nbd.Error):
                    client.result ()
                second.wait_line ("disk.img.map is in use by another server")
                assert other.stat ().st_size == M and not disk.exists ()
                assert h.pread (BLOCK, M - BLOCK) == pattern (M - BLOCK, BLOCK)


@pytest.mark.parametrize ("what", ["file", "map", "both", "sparse", "sparse map"])
def test_an_empty_file_is_taken (disk, what):
    """The machine may have stopped while they were made, with whatever block size."""
    if what != "map":
        disk.touch ()
    if what != "file":
        map_of (disk).touch ()
    if "sparse" in what:
        os.truncate (disk, 128 * M)
    if what == "sparse map":
        os.truncate (map_of (disk), BITS + 2 * PAGE)    # with 4096 it has two more
    with clone (disk, plugin=["size=128M"]) as server:
        assert server.connect ().pread (100, 0) == pattern (0, 100)
    assert disk.stat ().st_size == 128 * M


def test_a_map_without_its_file_is_refused (disk):
    with clone (disk) as server:
        server.connect ().pread (BLOCK, 0)
    disk.unlink ()
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "which it is the map of, is missing" in errors[0]


# -- what does not fit ---------------------------------------------------------------

def test_a_source_of_another_size_is_refused (disk):
    with clone (disk) as server:
        server.connect ().pread (BLOCK, 0)
    with clone (disk, plugin=["size=2M"]) as server:
        with pytest.raises (nbd.Error):
            server.connect ()
        server.wait_line ("the source is 2097152 bytes now, and was 1048576")


def test_a_source_that_was_empty (disk):
    """Its clone is complete, but that is no reason to serve nothing for ever."""
    with clone (disk, plugin=["size=0"]) as server:
        assert server.connect ().get_size () == 0
    with clone (disk) as server:
        with pytest.raises (nbd.Error):
            server.connect ()
        server.wait_line ("the source is 1048576 bytes now, and was 0")


def test_clone_id (disk):
    with clone (disk, "clone-id=monday") as server:
        server.connect ()
    errors = refused ([CLONE], gate (), [f"clone-file={disk}", "clone-id=tuesday"])
    assert len (errors) == 1 and "made with clone-id='monday'" in errors[0]
    with clone (disk, "clone-id=monday") as server:
        server.connect ()
    with clone (disk) as server:
        server.connect ()


def test_another_block_size_is_refused (disk):
    with clone (disk, "clone-block-size=64K") as server:
        h = server.connect ()
        h.pread (1, 0)
        assert reads (server) == [(0, 64 * K)]
    errors = refused ([CLONE], gate (), [f"clone-file={disk}",
                                         "clone-block-size=4096"])
    assert len (errors) == 1 and "clone-block-size=65536" in errors[0]
    with clone (disk) as server:
        h = server.connect ()
        h.pread (1, 64 * K)
        assert reads (server) == [(64 * K, 64 * K)]


def test_a_clone_with_larger_blocks_than_fetches (disk):
    """The plugin is asked for no more than it is said to be asked for."""
    with clone (disk, "clone-block-size=64K") as server:
        server.connect ()
    with clone (disk, "clone-fetch-size=16K") as server:
        h = server.connect ()
        assert h.pread (10, 64 * K) == pattern (64 * K, 10)
        assert reads (server) == [(n * K, 16 * K) for n in (64, 80, 96, 112)]
        assert h.pread (64 * K, 64 * K) == pattern (64 * K, 64 * K)
        assert len (reads (server)) == 4


@pytest.mark.parametrize ("args, error", [
    (["clone-file=a", "clone-dir=b"], "clone-file and clone-dir cannot both"),
    (["clone-file=a", "clone-file=b"], "clone-file: given twice"),
    (["clone-file="], "clone-file: '' is not valid"),
    (["clone-file=/nowhere/at/all"], "clone-file: /nowhere/at: No such file"),
    (["clone-dir=/nowhere"], "clone-dir: /nowhere: No such file"),
    (["clone-dir=/dev/null"], "clone-dir: /dev/null is not a folder"),
    (["clone-block-size=1000"], "clone-block-size: '1000' is not valid"),
    (["clone-block-size=256"], "a power of two from 512 to 1M"),
    (["clone-fetch-size=33M"], "a power of two from 4096 to 32M"),
    (["clone-fetch-size=4096", "clone-block-size=64K"],
     "clone-fetch-size=4096 is less than"),
    (["clone-commit=0"], "clone-commit: '0' is not valid; it should be seconds"),
    (["clone-write=back"], "clone-write: 'back' is not valid; it should be local"),
    (["clone-reserve=-1"], "clone-reserve: '-1' is not valid"),
    (["clone-id=x"], "clone-id is only for a clone that stays"),
    (["clone-file=a", "clone-id=" + 256 * "x"], "a text of 1 to 255 bytes"),
])
def test_bad_parameters (args, error):
    errors = refused ([CLONE], gate (), args)
    assert len (errors) == 1 and error in errors[0], errors


def test_the_filter_twice_is_refused ():
    errors = refused ([CLONE, CLONE], gate ())
    assert len (errors) == 1 and "the filter is there 2 times" in errors[0]


# -- exports -------------------------------------------------------------------------

def test_exports_have_a_file_each (tmp_path):
    names = ["", "plain-1.x", "../escape", ".", "..", "a/b", "a%2Fb", "ä \n"]
    files = ["%root", "plain-1.x", "%2E.%2Fescape", "%2E", "%2E.", "a%2Fb",
             "a%252Fb", "%C3%A4%20%0A"]
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        for n, name in enumerate (names):
            server.connect (name).pwrite (bytes ([n + 1]) * 10, 0)
        for n, name in enumerate (names):
            assert server.connect (name).pread (10, 0) == bytes ([n + 1]) * 10
    assert sorted (os.listdir (tmp_path)) == sorted (
        f + end for f in files for end in (".img", ".img.map"))


def test_a_name_too_long_for_a_file (tmp_path):
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        server.connect ("x" * 247)
        with pytest.raises (nbd.Error):
            server.connect ("x" * 248)
        server.wait_line ("too long for that of a file in clone-dir")


def test_a_file_is_for_one_export (disk):
    for _ in range (2):                         # made anew, and opened
        with clone (disk) as server:
            h = server.connect ("one")
            with pytest.raises (nbd.Error):
                server.connect ("two")
            server.wait_line ("is for one export, and that is 'one', so 'two'")
            assert h.pread (10, 0) == pattern (0, 10)


def test_many_exports_are_let_go_and_come_back (tmp_path):
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        for n in range (40):
            h = server.connect (f"e{n}")
            h.pwrite (bytes ([n + 1]) * 10, 0)
            h.shutdown ()
            server.connections.remove (h)
        server.poll (lambda: len (os.listdir (f"/proc/{server.pid}/fd")) < 40,
                     "files to be closed")
        for n in range (40):
            h = server.connect (f"e{n}")
            assert h.pread (10, 0) == bytes ([n + 1]) * 10
            server.disconnect (h)


def test_temporary_exports_keep_what_was_written ():
    with nbdkit ([CLONE], gate ()) as server:
        for n in range (20):
            h = server.connect (f"e{n}")
            h.pwrite (bytes ([n + 1]) * 10, 0)
            server.disconnect (h)
        for n in range (20):
            h = server.connect (f"e{n}")
            assert h.pread (10, 0) == bytes ([n + 1]) * 10
            server.disconnect (h)


# -- damage --------------------------------------------------------------------------

def damage (path, offset, data):
    with open (path, "r+b") as f:
        f.seek (offset)
        f.write (data)


def newest_slot (path, page=0):
    """Where the newest version of a page of bits is."""
    best = None
    with open (path, "rb") as f:
        for slot in 0, 1:
            f.seek (BITS + (2 * page + slot) * PAGE)
            head = f.read (24)
            if head[:8] == b"clonemap":
                generation = int.from_bytes (head[16:24], "little")
                best = max (best or (0, 0),
                            (generation, BITS + (2 * page + slot) * PAGE))
    return best[1]


def make (disk, write):
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.cache (64 * K, 0)
        h.flush ()
        h.cache (64 * K, 64 * K)
        if write:
            h.pwrite (b"w" * BLOCK, 0)
        h.flush ()


@pytest.mark.parametrize ("what", ["flip", "zero", "page of another"])
def test_damage_where_clients_wrote_is_refused (disk, what):
    make (disk, write=True)
    offset = newest_slot (map_of (disk))
    damage (map_of (disk), offset + 100 if what == "flip" else offset,
            {"flip": b"\xaa", "zero": bytes (PAGE),
             "page of another": b"clonemap" * 512}[what])
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "disk.img.map is damaged" in errors[0]


@pytest.mark.parametrize ("what", ["flip", "zero"])
def test_damage_where_nobody_wrote_is_fetched_again (disk, what):
    make (disk, write=False)
    offset = newest_slot (map_of (disk))
    damage (map_of (disk), offset + 100 if what == "flip" else offset,
            b"\xaa" if what == "flip" else bytes (PAGE))
    with clone (disk) as server:
        server.wait_line ("was damaged; what it had forgotten is fetched again")
        h = server.connect ()
        assert h.pread (128 * K, 0) == pattern (0, 128 * K)
        assert reads (server) != []
        h.pwrite (b"w" * BLOCK, 0)
    with clone (disk) as server:
        h = server.connect ()
        assert h.pread (BLOCK, 0) == b"w" * BLOCK
        assert reads (server) == []


def test_a_write_to_what_is_present_counts_as_one (disk):
    """It changes no bit, but damage must not undo it."""
    with clone (disk, LATER) as server:
        h = server.connect ()
        h.cache (64 * K, 0)
        h.flush ()
        h.pwrite (b"w" * BLOCK, 0)
        h.flush ()
    damage (map_of (disk), newest_slot (map_of (disk)) + 100, b"\xaa")
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "is damaged" in errors[0]


def test_one_damaged_identity_does_no_harm (disk):
    make (disk, write=True)
    damage (map_of (disk), 50, b"\xaa\xaa")
    with clone (disk) as server:
        assert server.connect ().pread (BLOCK, 0) == b"w" * BLOCK
    damage (map_of (disk), PAGE + 50, b"\xaa\xaa")
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "is damaged" in errors[0]


@pytest.mark.parametrize ("pages", [(0, 1), (2, 3)])
@pytest.mark.parametrize ("write", [True, False])
def test_a_map_that_does_not_tell_whether_clients_wrote (disk, pages, write):
    """Nor does the message then."""
    make (disk, write)
    for page in pages:
        damage (map_of (disk), page * PAGE + 50, b"\xaa\xaa")
    assert refused ([CLONE], gate (), [f"clone-file={disk}"]) == [
        f"clone: {map_of (disk)} is damaged, and can't tell what is in the clone any more, "
        "which may be what clients have written; put back a copy of both files, or move "
        "both away to begin anew"]


@pytest.mark.parametrize ("change, error", [
    (lambda m: os.truncate (m, 3 * PAGE), "is too short for a map"),
    (lambda m: os.truncate (m, BITS + PAGE), "is 36864 bytes and should be 40960"),
    (lambda m: os.truncate (m, 1000 * PAGE), "is 4096000 bytes and should be"),
    (lambda m: os.truncate (m, 0), "is there and holds data, but"),
    (lambda m: m.write_bytes (b"#!/bin/sh\n" * 5000), "is not a map of a clone"),
    (lambda m: [damage (m, page * PAGE + 12, b"\2") for page in (0, 1)],
     "is a map of version 2, and this filter knows version 1 only"),
])
def test_maps_that_are_none (disk, change, error):
    make (disk, write=True)
    change (map_of (disk))
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and error in errors[0], errors


def test_a_file_cut_short_is_refused (disk):
    make (disk, write=False)
    os.truncate (disk, 100 * K)
    errors = refused ([CLONE], gate (), [f"clone-file={disk}"])
    assert len (errors) == 1 and "by its map it should be 1048576" in errors[0]


# -- no room ---------------------------------------------------------------------------

@pytest.fixture
def small (tmp_path):
    """A file system of 1M."""
    folder = tmp_path / "small"
    folder.mkdir ()
    if os.geteuid () != 0 or not shutil.which ("mount") or subprocess.run (
            ["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", folder],
            stderr=subprocess.DEVNULL).returncode != 0:
        pytest.skip ("can't mount a file system here")
    yield folder
    subprocess.run (["umount", folder], check=True)


def free (folder):
    st = os.statvfs (folder)
    return st.f_bavail * st.f_frsize


def test_fetches_leave_the_reserve (small):
    with clone (small / "disk", "clone-reserve=512K", plugin=["size=4M"]
                ) as server:
        h = server.connect ()
        for offset in range (0, 4 * M, 64 * K):
            assert h.pread (64 * K, offset) == pattern (offset, 64 * K)
        assert free (small) >= 512 * K
        n = len (reads (server))
        fails (errno.ENOSPC, h.cache, M, 3 * M)         # not fetched for nothing
        assert len (reads (server)) == n
        h.pwrite (b"w" * 256 * K, 2 * M)        # that's what it is for
        h.flush ()
        assert h.pread (256 * K, 2 * M) == b"w" * 256 * K
        h.trim (512 * K, 0)                     # room again
        h.trim (256 * K, 2 * M)
        h.pread (64 * K, 3 * M)
        n = len (reads (server))
        h.pread (64 * K, 3 * M)
        assert len (reads (server)) == n
        warnings = [e for e in server.errors () if "clone-reserve" in e]
        assert len (warnings) == 1


def test_a_prefetch_of_more_than_there_is_room_for (small):
    """It takes what there is, and most of what it is of may be here already."""
    with clone (small / "disk", "clone-reserve=512K", "clone-fetch-size=64K",
                plugin=["size=4M"]) as server:
        h = server.connect ()
        fails (errno.ENOSPC, h.cache, 4 * M, 0)
        assert 512 * K <= free (small) < 512 * K + 64 * K
        n = len (reads (server))
        fails (errno.ENOSPC, h.cache, 4 * M, 0)         # not fetched for nothing
        h.cache (64 * K, 0)                     # is there
        assert len (reads (server)) == n
        assert (small / "disk").stat ().st_blocks * 512 == n * 64 * K


def test_a_prefetch_takes_room_for_what_is_absent (small):
    """And not for all that it is of."""
    with clone (small / "disk", "clone-reserve=512K", plugin=["size=4M"]) as server:
        h = server.connect ()
        h.cache (128 * K, 0)
        h.cache (128 * K, 192 * K)
        assert 64 * K <= free (small) - 512 * K < 320 * K
        h.cache (320 * K, 0)
        n = len (reads (server))
        assert h.pread (320 * K, 0) == pattern (0, 320 * K)
        assert len (reads (server)) == n


@pytest.mark.parametrize ("background", ["true", "false"])
def test_a_scan_hears_that_there_is_no_room (small, background):
    """It ends, and does not take for fetched what nobody has kept."""
    stats = small.with_name ("stats")
    with nbdkit ([SCAN, CLONE], gate ("size=4M", "log=read"),
                 [f"clone-file={small / 'disk'}", "clone-reserve=512K",
                  "scan-policy=data", f"scan-background={background}",
                  f"scan-stats={stats}"], ["-v"]) as server:
        h = server.connect ()
        server.wait_line ("scan: the layer below has no space left")
        server.poll (lambda: stats.exists () and re.search (
            r'^nbdkit_scan_state\{.*state="failed".*\} 1$', stats.read_text (), re.M),
                     "the end of the scan")
        assert 512 * K <= free (small)
        covered = re.search (r"^nbdkit_scan_covered_bytes\S* (\d+)$",
                             stats.read_text (), re.M)
        assert 0 < int (covered[1]) <= 512 * K
        assert h.pread (M, 3 * M) == pattern (3 * M, M)
        (message,) = [e for e in server.errors () if "so scans end" in e]
        assert "clone-reserve" in message and "TMPDIR" in message


@pytest.mark.parametrize ("threads", [1, 4])
@pytest.mark.parametrize ("policy", ["data", "adaptive"])
def test_a_scan_in_the_background_goes_on_when_there_is_room (small, policy, threads):
    """At the latest when it looks again; a client that connects has it look at once.  What
    a client has read meanwhile was not kept.
    """
    stats = small.with_name ("stats")
    with nbdkit ([SCAN, CLONE], gate ("size=16M", "log=read"),
                 [f"clone-file={small / 'disk'}", "clone-reserve=512K",
                  f"scan-policy={policy}", "scan-background=true", f"scan-stats={stats}",
                  f"scan-threads={threads}", "scan-pace=false"], ["-v"]) as server:
        server.wait_line ("scan: the layer below has no space left")
        server.poll (lambda: stats.exists () and re.search (
            r'^nbdkit_scan_state\{.*state="failed".*\} 1$', stats.read_text (), re.M),
                     "that it waits")
        h = server.connect ()
        assert h.pread (M, 12 * M) == pattern (12 * M, M)
        subprocess.run (["mount", "-o", "remount,size=32M", small], check=True)
        h = server.connect ()
        server.wait_line ("scan: finished scanning the plugin")
        n = len (reads (server))
        assert h.pread (16 * M, 0) == pattern (0, 16 * M)
        assert len (reads (server)) == n
        assert not any ("prefetch of" in e for e in server.errors ())


def test_no_room_at_all (small):
    with clone (small / "disk", "clone-reserve=0", plugin=["size=4M"]) as server:
        h = server.connect ()
        for offset in range (0, 4 * M, 64 * K):
            assert h.pread (64 * K, offset) == pattern (offset, 64 * K)
        fails (errno.ENOSPC, h.cache, M, 3 * M)
        fails (errno.ENOSPC, h.pwrite, b"w" * M, 2 * M)
        fails (errno.ENOSPC, h.pwrite, b"w", 3 * M + 100)       # its edge has no room
        h.flush ()
        assert h.pread (64 * K, M) == pattern (M, 64 * K)
    with clone (small / "disk", plugin=["size=4M"]) as server:
        h = server.connect ()
        for offset in range (0, 2 * M, 64 * K):
            assert h.pread (64 * K, offset) == pattern (offset, 64 * K)


# -- clone-max-exports -----------------------------------------------------------------

def test_so_many_exports_are_cloned_and_no_more (tmp_path):
    """A plugin with one disk takes any name for it, and each is a pair of files."""
    args = [f"clone-dir={tmp_path}", "clone-max-exports=3"]
    for _ in range (2):         # those that are there count, and are opened
        with nbdkit ([CLONE], ["null", "1T"], args) as server:
            for name in "", "a", "b", "a":
                server.disconnect (server.connect (name))
            for name in "c", "d":
                with pytest.raises (nbd.Error):
                    server.connect (name)
            assert server.errors () == [
                f"clone: {tmp_path} has 3 clones, as many as clone-max-exports=3 allows, so "
                f"none is begun of the export '{name}'" for name in ("c", "d")]
            assert len (list (tmp_path.iterdir ())) == 6
    with nbdkit ([CLONE], ["null", "1T"], [args[0]]) as server:
        server.connect ("c")
    for wrong in "0", "x", "-1", "1000001":
        assert refused ([CLONE], ["null"], [args[0], f"clone-max-exports={wrong}"]) == [
            f"clone-max-exports: '{wrong}' is not valid; it should be a number from 1 to "
            "1000000"]
    assert refused ([CLONE], ["null"], ["clone-max-exports=3"]) == [
        "clone-max-exports is only for clone-dir"]


# -- counters --------------------------------------------------------------------------

def test_counters (disk, tmp_path):
    stats = tmp_path / "stats"
    with clone (disk, f"clone-stats={stats}", LATER) as server:
        h = server.connect ('a "b"\\')
        h.pread (BLOCK, 0)
        h.pread (BLOCK, 0)
        h.pwrite (b"w" * BLOCK, 64 * K)
    values = dict (re.findall (
        r'^nbdkit_clone_(\w+)\{export="a \\"b\\"\\\\"\} (\d+)$',
        stats.read_text (), re.M))
    assert {name: int (values[name]) for name in (
        "size_bytes", "present_bytes", "hits_total", "misses_total",
        "fetches_total", "fetched_bytes_total", "written_bytes_total",
        "broken")} == {
            "size_bytes": M, "present_bytes": 2 * BLOCK, "hits_total": 1,
            "misses_total": 1, "fetches_total": 1, "fetched_bytes_total": BLOCK,
            "written_bytes_total": BLOCK, "broken": 0}


@pytest.mark.parametrize ("where", ["clone-dir", "a temporary file"])
def test_counters_of_an_export_that_was_let_go (tmp_path, where):
    """They go on, and are told all the time."""
    stats = tmp_path / "stats"
    names = [f"e{n}" for n in range (20)]
    with nbdkit ([CLONE], gate (), [f"clone-stats={stats}", "clone-commit=0.1"] + (
            [f"clone-dir={tmp_path}"] if where == "clone-dir" else [])) as server:
        for name in [*names, *names]:
            h = server.connect (name)
            h.pread (BLOCK, 0)
            server.disconnect (h)
    text = stats.read_text ()

    def values (what):
        return {name: int (n) for name, n in re.findall (
            rf'^nbdkit_clone_{what}\{{export="(\w+)"\}} (\d+)$', text, re.M)}

    hits, misses = values ("hits_total"), values ("misses_total")
    assert [hits[n] + misses[n] for n in names] == [2] * len (names)
    assert values ("size_bytes") == dict.fromkeys (names, M)
    assert values ("present_bytes") == dict.fromkeys (names, BLOCK)
