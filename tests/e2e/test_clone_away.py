# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The clone filter while the source is away: who connects then has what is there, and
the rest once the source is back."""

import errno
import os
import re
import threading

import nbd
import pytest

from harness import CHECK_WITH, CLONE, SCAN, fails, gate, nbdkit, pattern
from test_clone_files import clone

K = 1024
M = 1024 * K
BLOCK = 4 * K
HALF = 512 * K                  # of the disk, is there
WITHOUT = "cannot be opened, so it is served without"


@pytest.fixture
def disk (tmp_path):
    """A clone of the gate plugin's disk, the first half of which is there."""
    path = tmp_path / "disk.img"
    with clone (path) as server:
        server.connect ().cache (HALF, 0)
    return path


def is_read (h, count, offset):
    try:
        return bool (h.pread (count, offset))
    except nbd.Error:
        return False


def until_read (h, count, offset):
    while not is_read (h, count, offset):
        pass


def warnings (server):
    return [e for e in server.errors () if WITHOUT in e]


def test_who_connects_has_what_is_there (disk):
    with clone (disk, plugin=["fail=open:all"]) as server:
        h, other = server.connect (), server.connect ()
        for client in h, other:
            assert client.get_size () == M and not client.is_read_only ()
            assert client.can_multi_conn ()
            assert client.pread (HALF, 0) == pattern (0, HALF)
            fails (errno.EIO, client.pread, BLOCK, HALF)
        fails (errno.EIO, h.pread, 2 * BLOCK, HALF - BLOCK)     # the half of it
        fails (errno.EIO, h.cache, BLOCK, HALF)
        h.cache (HALF, 0)
        h.flush ()
        assert server.run ("nbdinfo", "--size", "{uri}") == f"{M}\n"
        assert len (warnings (server)) == 1


def test_writes_without_the_source (disk):
    """Only those of a part of what is absent need it."""
    with clone (disk, plugin=["fail=open:all"]) as server:
        h = server.connect ()
        h.pwrite (b"w" * 100, 1000)
        h.pwrite (b"v" * BLOCK, HALF, nbd.CMD_FLAG_FUA)
        h.zero (BLOCK, HALF + BLOCK)
        h.trim (BLOCK, HALF + 2 * BLOCK)
        h.zero (BLOCK, HALF + 3 * BLOCK, nbd.CMD_FLAG_FAST_ZERO)
        for change in h.zero, h.trim:
            fails (errno.EIO, change, 100, HALF + 8 * BLOCK)
        fails (errno.EIO, h.pwrite, b"x" * BLOCK, HALF + 8 * BLOCK + 1)
        fails (errno.EIO, h.pwrite, b"x" * (BLOCK + 1), M - BLOCK - 1)
        fails (errno.EOPNOTSUPP, h.zero, 100, HALF + 8 * BLOCK, nbd.CMD_FLAG_FAST_ZERO)
    with clone (disk) as server:
        assert server.connect ().pread (M, 0) == (
            pattern (0, 1000) + b"w" * 100 + pattern (1100, HALF - 1100)
            + b"v" * BLOCK + bytes (3 * BLOCK)
            + pattern (HALF + 4 * BLOCK, HALF - 4 * BLOCK))


def test_what_is_absent_counts_as_data (disk):
    with clone (disk, plugin=["fail=open:all"]) as server:
        h = server.connect (prepare=lambda h: h.add_meta_context ("base:allocation"))
        h.zero (BLOCK, M - BLOCK)
        told = []
        h.block_status (M, 0, lambda _, offset, extents, error: told.append (extents))
        assert told == [[M - BLOCK, 0, BLOCK, nbd.STATE_HOLE | nbd.STATE_ZERO]]


@pytest.mark.parametrize ("plugin", ["that asks for the name", "of one disk"])
def test_the_source_comes_back (disk, plugin, tmp_path):
    """While a client is connected, who goes on; the server has all layers' words for
    it.  A plugin that asks for the name has to be told."""
    source = tmp_path / "source"
    source.write_bytes (pattern (0, M))
    with (clone (disk) if plugin != "of one disk" else nbdkit (
            [CLONE], ["file", str (source)], [f"clone-file={disk}"])) as server:
        def away (is_away):
            if plugin == "of one disk":
                here, there = source, tmp_path / "moved"
                os.rename (here if is_away else there, there if is_away else here)
            else:
                server.send (f"fail open {errno.EIO if is_away else 0}")

        away (True)
        h, other = server.connect (), server.connect ()
        fails (errno.EIO, h.pread, BLOCK, HALF)
        h.pwrite (b"w" * BLOCK, M - BLOCK)
        away (False)
        server.poll (lambda: is_read (h, BLOCK, HALF), "the source to be seen")
        expected = pattern (0, M - BLOCK) + b"w" * BLOCK
        # The others have it at once, and a client that comes needs no attempt.
        for client in other, h, server.connect ():
            assert client.pread (M, 0) == expected
        other.pwrite (b"v" * 100, 1000)
        # Another outage is another warning.
        away (True)
        for offset in 0, 2000:
            assert h.pread (100, offset) == expected[offset:offset + 100]
    assert len (warnings (server)) == 1


def test_a_source_that_goes_twice (disk):
    with clone (disk) as server:
        for n in 1, 2:
            server.send (f"fail open {errno.EIO}")
            h = server.connect ()
            assert len (warnings (server)) == n
            server.send ("fail open 0")
            server.poll (lambda h=h, n=n: is_read (h, BLOCK, HALF + n * BLOCK),
                         "the source to be seen")


def test_reads_of_what_is_there_wait_for_nothing (disk):
    """Nor do those that wait for the source wait for long, or ask for it as well."""
    with clone (disk, options=["--threads=4"]) as server:
        server.send (f"fail open {errno.EIO}")
        h, other = server.connect (), server.connect ()
        server.send ("fail open 0")
        server.send ("hold open 1")
        # None comes at once after one that has failed.
        seen = threading.Thread (target=lambda: until_read (h, BLOCK, HALF))
        seen.start ()
        held = server.next_call ("open")
        assert other.pread (BLOCK, 0) == pattern (0, BLOCK)
        fails (errno.EIO, other.pread, BLOCK, HALF)
        third = server.connect ()               # does not wait either
        assert third.pread (BLOCK, 0) == pattern (0, BLOCK)
        assert len (server.calls ("open")) == 1
        server.send ("hold open 0")
        server.release (held)
        seen.join ()
        assert third.pread (BLOCK, HALF + BLOCK) == pattern (HALF + BLOCK, BLOCK)


def test_another_disk_comes_back (disk, tmp_path):
    """It is refused as when a client connects, and stays so for this one."""
    source = tmp_path / "source"
    source.touch ()
    changed = f"clone: the source is {2 * M} bytes now, and was {M}"
    with nbdkit ([CLONE], ["file", str (source)], [f"clone-file={disk}"]) as server:
        source.unlink ()
        h = server.connect ()
        source.write_bytes (b"x" * 2 * M)

        def is_seen ():
            assert not is_read (h, BLOCK, HALF)
            return any (changed in e for e in server.errors ())
        server.poll (is_seen, "the source to be seen")
        fails (errno.EIO, h.pread, BLOCK, HALF)
        assert h.pread (HALF, 0) == pattern (0, HALF)
        with pytest.raises (nbd.Error):
            server.connect ()
        source.write_bytes (pattern (0, M))
        assert server.connect ().pread (BLOCK, HALF) == pattern (HALF, BLOCK)
        assert not is_read (h, BLOCK, HALF + BLOCK)
        assert h.pread (BLOCK, HALF) == pattern (HALF, BLOCK)   # is there by now


@pytest.mark.parametrize ("args", [[], ["clone-dir={tmp_path}"], ["clone-file={new}"]])
def test_a_clone_that_is_not_there_is_refused (args, tmp_path):
    args = [a.format (tmp_path=tmp_path, new=tmp_path / "new") for a in args]
    with nbdkit ([CLONE], gate ("fail=open:all"), args) as server:
        with pytest.raises (nbd.Error):
            server.connect ("new")
        assert warnings (server) == []
        assert os.listdir (tmp_path) == []


def test_several_exports (tmp_path):
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        server.connect ("a").pread (BLOCK, 0)
    with nbdkit ([CLONE], gate (), [f"clone-dir={tmp_path}"]) as server:
        server.send (f"fail open {errno.EIO}")
        with pytest.raises (nbd.Error):
            server.connect ("b")
        h = server.connect ("a")
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        server.send ("fail open 0")
        server.poll (lambda: is_read (h, BLOCK, BLOCK), "the source to be seen")
        server.wait_line ("gate: open [0-9]+ a$")


def test_a_temporary_clone ():
    with nbdkit ([CLONE], gate ()) as server:
        h = server.connect ()
        h.pwrite (b"w" * BLOCK, 0)
        server.disconnect (h)
        server.send (f"fail open {errno.EIO}")
        h = server.connect ()
        assert h.pread (BLOCK, 0) == b"w" * BLOCK
        fails (errno.EIO, h.pread, BLOCK, BLOCK)
        assert "the temporary file" in warnings (server)[0]


def test_through_needs_the_source (disk):
    with clone (disk, "clone-write=through", plugin=["write=true", "fail=open:all"]
                ) as server:
        with pytest.raises (nbd.Error):
            server.connect ()
        assert warnings (server) == []


@pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                     reason="the shell of the eval plugin dies under it")
def test_a_source_that_opens_and_does_not_tell_its_size (disk, tmp_path):
    there = tmp_path / "there"
    plugin = ["eval", "thread_model=echo parallel",
              f"get_size=test -e {there} && echo {M}",
              "pread=head -c $3 /dev/zero"]
    with nbdkit ([CLONE], plugin, [f"clone-file={disk}"]) as server:
        h = server.connect ()
        assert h.pread (BLOCK, 0) == pattern (0, BLOCK)
        fails (errno.EIO, h.pread, BLOCK, HALF)
        there.touch ()
        server.poll (lambda: is_read (h, BLOCK, HALF), "the source to be seen")
        assert len (warnings (server)) == 1


@pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                     reason="the shell of the eval plugin dies under it")
@pytest.mark.parametrize ("how", ["in the background", "by a client",
                                  "of a plugin that asks for the name"])
def test_a_scan_goes_on_when_the_source_is_back (disk, tmp_path, how):
    """Its threads serve no connection, so they can't open a plugin that asks."""
    asks, stats = how.endswith ("name"), tmp_path / "stats"
    there, source = tmp_path / "there", tmp_path / "source"
    source.write_bytes (pattern (0, M))
    plugin = ["eval", "thread_model=echo parallel", f"open=test -e {there}",
              f"get_size=echo {M}",
              f"pread=dd if={source} skip=$4 count=$3 iflag=skip_bytes,count_bytes"]
    with nbdkit ([SCAN, CLONE], gate ("fail=open:1-3") if asks else plugin,
                 [f"clone-file={disk}", f"clone-stats={stats}", "clone-commit=0.1",
                  "scan-policy=adaptive", "scan-size=64K", "scan-background=" +
                  ("true" if how == "in the background" else "false")]) as server:
        h = server.connect ()
        assert h.pread (HALF, 0) == pattern (0, HALF)
        fails (errno.EIO, h.pread, BLOCK, HALF)
        there.touch ()
        if asks:
            server.poll (lambda: is_read (h, BLOCK, HALF), "the source to be seen")
        server.poll (lambda: stats.exists () and re.search (
            rf"present_bytes\S+ {M}$", stats.read_text (), re.M), "all to be there")
        assert h.pread (M, 0) == pattern (0, M)


# -- the default export ------------------------------------------------------------------

def named (tmp_path, *args):
    """A clone of a plugin that says what its default export is, and opens; or doesn't."""
    name, there = tmp_path / "name", tmp_path / "there"
    return nbdkit ([CLONE], [
        "eval", "thread_model=echo parallel", f"get_size=echo {M}",
        f"default_export=cat {name}", f"open=test -e {there} && echo $3",
        "pread=head -c $3 /dev/zero | tr '\\0' $2"], [
            f"clone-file={tmp_path / 'disk.img'}", *args])


def is_refused (server, name=""):
    try:
        server.disconnect (server.connect (name))
    except nbd.Error:
        return True
    return False


no_shell = pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                               reason="the shell of the eval plugin dies under it")


@no_shell
@pytest.mark.parametrize ("complete", [True, False])
def test_the_default_export_while_the_source_is_away (tmp_path, complete):
    """It is that which the clone was begun as, until the source has another."""
    name, there = tmp_path / "name", tmp_path / "there"
    name.write_text ("main\n")
    there.touch ()

    def goes_away ():
        name.unlink ()
        there.unlink ()

    def has_clone ():
        h = server.connect ()
        assert h.pread (BLOCK, 0) == b"m" * BLOCK
        server.disconnect (h)

    with named (tmp_path) as server:
        server.connect ().cache (M if complete else HALF, 0)
        goes_away ()
        has_clone ()
    with named (tmp_path) as server:
        has_clone ()
        name.write_text ("\n")          # another plugin than nbd means that
        assert is_refused (server) != complete
        name.write_text ("other\n")
        there.touch ()
        assert is_refused (server) != complete
        name.write_text ("main\n")
        h = server.connect ()
        assert h.pread (M, 0) == b"m" * M


@no_shell
def test_a_default_export_that_the_clone_was_not_begun_as (tmp_path):
    """There may be another disk of that name, or none that is for everybody."""
    name, there = tmp_path / "name", tmp_path / "there"
    there.touch ()
    with named (tmp_path) as server:
        server.connect ("main").cache (HALF, 0)
        assert is_refused (server)
        name.write_text ("\n")
        assert is_refused (server)
        name.unlink ()
        there.unlink ()
        assert is_refused (server)
        assert server.connect ("main").pread (BLOCK, 0) == b"m" * BLOCK


@no_shell
def test_a_default_export_without_a_name (tmp_path):
    name, there = tmp_path / "name", tmp_path / "there"
    name.write_text ("\n")
    there.touch ()
    with nbdkit ([CLONE], ["eval", f"get_size=echo {M}", f"default_export=cat {name}",
                           f"open=test -e {there}", "pread=head -c $3 /dev/zero"],
                 [f"clone-file={tmp_path / 'disk.img'}"]) as server:
        server.connect ().cache (HALF, 0)
        name.unlink ()
        there.unlink ()
        h = server.connect ()
        assert h.pread (BLOCK, 0) == bytes (BLOCK)
        # nbdkit would ask for the name, and must not while it serves the client.
        name.write_text ("\n")
        there.touch ()
        fails (errno.EIO, h.pread, BLOCK, HALF)
        assert server.connect ().pread (BLOCK, HALF) == bytes (BLOCK)


@no_shell
def test_the_default_export_of_clients_with_tls (tmp_path):
    """Others are not given that."""
    keys, there = tmp_path / "keys", tmp_path / "there"
    keys.write_text (f"me:{32 * '5a'}\n")
    there.touch ()

    def with_tls (h):
        h.set_tls (nbd.TLS_REQUIRE)
        h.set_tls_psk_file (str (keys))
        h.set_tls_username ("me")

    with nbdkit ([CLONE], [
            "eval", f"get_size=echo {M}", f"open=test -e {there}",
            f"default_export=test -e {there} && if $3; then echo secret; fi",
            "pread=head -c $3 /dev/zero"], [f"clone-file={tmp_path / 'disk.img'}"],
                 ["--tls=on", f"--tls-psk={keys}"]) as server:
        server.connect (prepare=with_tls).cache (M, 0)
        there.unlink ()
        assert is_refused (server)
        assert server.connect (prepare=with_tls).pread (BLOCK, 0) == bytes (BLOCK)


@pytest.mark.parametrize ("complete", [True, False])
def test_the_default_export_of_another_server (disk, complete):
    disk.unlink ()
    disk.with_name (disk.name + ".map").unlink ()
    with nbdkit ([], gate ("default=main")) as above:
        plugin = ["nbd", f"socket={above.socket}", "dynamic-export=true"]
        with nbdkit ([CLONE], plugin, [f"clone-file={disk}"]) as server:
            server.connect ().cache (M if complete else HALF, 0)
    with nbdkit ([CLONE], plugin, [f"clone-file={disk}"]) as server:
        assert server.connect ().pread (HALF, 0) == pattern (0, HALF)
