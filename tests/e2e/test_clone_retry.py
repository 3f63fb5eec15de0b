# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""clone-retry: a client's request waits for a source that fails, and others don't."""

import contextlib
import errno
import os
import subprocess

import nbd
import pytest

from harness import CLONE, fails, gate, nbdkit, pattern, refused
from test_clone_files import clone

K = 1024
M = 1024 * K
BLOCK = 4 * K
HALF = 512 * K                  # of the disk, is there
RETRY = "clone-retry=3600"


@pytest.fixture
def disk (tmp_path):
    """A clone of the gate plugin's disk, the first half of which is there."""
    path = tmp_path / "disk.img"
    with clone (path) as server:
        server.connect ().cache (HALF, 0)
    return path


class Pending:
    """A request that is on its way."""

    def __init__ (self, h, start):
        self.h = h
        self.cookie = start (h)

    def poll (self):
        return self.h.aio_command_completed (self.cookie)

    def wait (self):
        while not self.poll ():
            self.h.poll (-1)


class PendingRead (Pending):
    def __init__ (self, h, count, offset):
        self.buffer = nbd.Buffer (count)
        super ().__init__ (h, lambda h: h.aio_pread (self.buffer, offset))

    def wait (self):
        super ().wait ()
        return bytes (self.buffer.to_bytearray ())


def opened (server, number):
    """Wait until the plugin has been opened so often."""
    server.wait_line (f"gate: open {number} ")


def closed (server):
    return [int (line.split ()[2]) for line in server.log
            if line.startswith ("gate: close ")]


@pytest.mark.parametrize ("is_new", [False, True])
def test_a_read_waits_and_others_don_t (disk, tmp_path, is_new):
    """Whether the clone was there when the client came, or is new."""
    path = tmp_path / "new.img" if is_new else disk
    with clone (path, RETRY) as server:
        h = server.connect ()
        h.cache (HALF, 0)
        server.send (f"fail read {errno.EIO}")
        read = PendingRead (h, 2 * BLOCK, HALF - BLOCK)     # half of it is there
        opened (server, 2)
        assert h.pread (HALF, 0) == pattern (0, HALF)
        h.pwrite (b"w" * BLOCK, HALF + 2 * BLOCK)
        fails (errno.EIO, h.cache, BLOCK, HALF + 4 * BLOCK)     # nor do prefetches
        assert not read.poll ()
        server.send ("fail read 0")
        assert read.wait () == pattern (HALF - BLOCK, 2 * BLOCK)


def test_a_write_of_a_part_of_what_is_absent_waits (disk):
    with clone (disk, RETRY) as server:
        h = server.connect ()
        server.send (f"fail read {errno.EIO}")
        write = Pending (h, lambda h: h.aio_pwrite (
            nbd.Buffer.from_bytearray (bytearray (b"w" * 100)), HALF + 1000))
        opened (server, 2)
        assert not write.poll ()
        server.send ("fail read 0")
        write.wait ()
        assert h.pread (BLOCK, HALF) == (pattern (HALF, 1000) + b"w" * 100
                                         + pattern (HALF + 1100, BLOCK - 1100))


def test_who_connects_without_the_source_waits_for_it (disk):
    with clone (disk, RETRY, plugin=["fail=open:all"]) as server:
        h = server.connect ()
        read = PendingRead (h, BLOCK, HALF)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        server.send ("fail open 0")
        assert read.wait () == pattern (HALF, BLOCK)


def test_what_has_failed_is_closed_when_nobody_uses_it (disk):
    with clone (disk, RETRY) as server:
        h = server.connect ()
        server.send (f"fail read {errno.EIO}")
        server.send ("hold open 1")
        read = PendingRead (h, BLOCK, HALF)
        opening = server.next_call ("open")
        server.send ("fail read 0")
        server.send ("hold read 1")
        server.release (opening)
        held = server.next_call ("read", 2)
        # It is under way in the second while another is opened in its place.
        other = PendingRead (h, BLOCK, M - BLOCK)
        server.release (server.next_call ("read", 2), errno.EIO)
        opening = server.next_call ("open")
        server.send ("hold read 0")
        server.release (opening)
        assert other.wait () == pattern (M - BLOCK, BLOCK)
        assert closed (server) == []
        server.release (held)
        assert read.wait () == pattern (HALF, BLOCK)
        server.wait_line ("gate: close 2")
        assert closed (server) == [2]
        assert h.pread (BLOCK, HALF + BLOCK) == pattern (HALF + BLOCK, BLOCK)
        server.disconnect (h)
        server.wait_line ("gate: close 3")


def test_it_gives_up (disk):
    with clone (disk, "clone-retry=0.1") as server:
        h = server.connect ()
        server.send (f"fail read {errno.ESHUTDOWN}")
        fails (errno.ESHUTDOWN, h.pread, BLOCK, HALF)
        assert [call.connection for call in server.calls ("read")] == [1, 2]


def test_a_plugin_for_one_connection_is_not_opened_twice (disk):
    with clone (disk, RETRY, plugin=["model=serialize_connections"],
                options=["-v"]) as server:
        h = server.connect ()
        server.send (f"fail read {errno.EIO}")
        read = PendingRead (h, BLOCK, HALF)
        server.wait_line ("trying again", server.wait_line ("trying again")[1])
        server.send ("fail read 0")
        assert read.wait () == pattern (HALF, BLOCK)
        assert not any (line.startswith ("gate: open 2") for line in server.log)


def test_a_client_that_leaves_is_not_waited_for (disk):
    with clone (disk, RETRY) as server:
        h = server.connect ()
        server.send (f"fail read {errno.EIO}")
        PendingRead (h, BLOCK, HALF)
        opened (server, 2)
        server.disconnect (h)
        server.wait_line ("gate: close 1")


@contextlib.contextmanager
def origin (source, path):
    with subprocess.Popen (["nbdkit", "-f", "-U", path, "file", source]) as server:
        while not os.path.exists (path):
            assert server.poll () is None
        yield server
        server.kill ()
    os.unlink (path)


def test_a_server_of_nbd_that_was_started_again (disk, tmp_path):
    """The plugin's connection is dead for good, and is made anew."""
    source, path = tmp_path / "source", str (tmp_path / "origin")
    source.write_bytes (pattern (0, M))
    with contextlib.ExitStack () as stack:
        with origin (source, path):
            server = stack.enter_context (nbdkit (
                [CLONE], ["nbd", f"socket={path}"], [f"clone-file={disk}", RETRY]))
            h = server.connect ()
            assert h.pread (BLOCK, HALF) == pattern (HALF, BLOCK)
        read = PendingRead (h, BLOCK, M - BLOCK)
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        assert not read.poll ()
        stack.enter_context (origin (source, path))
        assert read.wait () == pattern (M - BLOCK, BLOCK)


@pytest.mark.parametrize ("args, error", [
    (["clone-retry=ever"],
     "clone-retry: 'ever' is not valid; it should be seconds from 0 to 86400"),
    (["clone-retry=60", "clone-write=through"],
     "clone-retry is not for clone-write=through"),
])
def test_bad_values (args, error):
    assert error in refused ([CLONE], gate ("write=true"), args)[0]
