# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What the stock filter gets wrong, each fault verified on nbdkit 1.32.5, and
what it warns of."""

import errno
import socket
import struct

import nbd
import pytest

from harness import CHECK_WITH, SCAN, fails, gate, nbdkit, pattern, refused

# Debug messages, without a line for every request.
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
FINISHED = "scan: finished scanning the plugin"


def test_a_failing_prefetch_only_warns ():
    """The stock filter passes a NULL err to .cache: the server dies."""
    with nbdkit ([SCAN], gate ("size=64K", "fail=cache:all"), ["scan-size=4096"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        assert [c.offset for c in server.calls ("cache")] == \
            list (range (0, 65536, 4096))
        assert h.pread (1000, 30000) == pattern (30000, 1000)
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        assert len (server.errors ()) == 1
        warning = server.errors ()[0]
        assert warning.startswith ("scan: warning: ")
        assert "offset 0" in warning and "Input/output error" in warning


@pytest.mark.parametrize ("fast", [True, False])
def test_a_fast_zero_that_the_plugin_does_not_offer_is_refused (fast):
    """Over the stock filter, as over none, it ends the server, so it is offered."""
    with nbdkit ([SCAN], gate ("size=64K", "write=true", "log=zero", "cache=none",
                               f"fast-zero={fast}")) as server:
        h = server.connect ()
        if fast:
            h.zero (4096, 0, nbd.CMD_FLAG_FAST_ZERO)
        else:
            fails (errno.EOPNOTSUPP, h.zero, 4096, 0, nbd.CMD_FLAG_FAST_ZERO)
        h.zero (4096, 4096)
        assert [c.offset for c in server.calls ("zero")] == [0, 4096][not fast:]


def test_each_scan_warns_of_failures_once ():
    with nbdkit ([SCAN], gate ("size=64K", "fail=cache:/3"),
                 ["scan-size=4096", "scan-clock=false"], VERBOSE) as server:
        for number in (1, 2):
            h = server.connect ()
            _, start = server.wait_line (f"gate: open {number}")
            server.wait_line (FINISHED, start)
            server.disconnect (h)
            server.wait_line (f"gate: close {number}")
            assert len (server.calls ("cache")) == 16 * number
            assert len (server.errors ()) == number


def test_an_empty_disk_ends_a_scan_that_goes_on_forever ():
    """The stock filter spins, and the server can't exit."""
    with nbdkit ([SCAN], gate ("size=0"), ["scan-forever=true"], VERBOSE) as server:
        h = server.connect ()
        assert h.get_size () == 0
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        assert server.calls ("cache") == [] and server.errors () == []


def send_reads (h, total):
    """Read a byte, very often: by hand, for libnbd would take a minute."""
    batch = 1000
    request = b"".join (struct.pack (">IHHQQI", 0x25609513, 0, 0, cookie, 0, 1)
                        for cookie in range (batch))
    with socket.socket (fileno=h.aio_get_fd ()) as connection:
        connection.setblocking (True)   # libnbd made it otherwise
        for _ in range (total // batch):
            connection.sendall (request)
            left = batch * (16 + 1)      # a simple reply and the byte
            while left > 0:
                left -= len (connection.recv (left))
        connection.detach ()             # it is still libnbd's


@pytest.mark.skipif (CHECK_WITH != "", reason="checkers use memory of their own")
def test_reads_after_the_end_of_the_scan_take_no_memory ():
    """The stock filter's queue of reads grows by 16 bytes with each."""
    with nbdkit ([SCAN], gate ("size=64K"), (), ["-t", "1", *VERBOSE]) as server:
        h = server.connect (
            prepare=lambda h: h.set_request_structured_replies (False))
        server.wait_line (FINISHED)
        send_reads (h, 100_000)
        before = server.rss_bytes ()
        send_reads (h, 900_000)
        assert server.rss_bytes () - before < 1024 * 1024


@pytest.mark.parametrize ("size", ["4098M", "4G", "64M", "33554433", "3M", "513",
                                   "511", "256", "1", "0"])
def test_a_bad_scan_size_is_refused (size):
    """The stock filter takes 4098M for 2M."""
    errors = refused ([SCAN], ["memory", "1M"], [f"scan-size={size}"])
    assert len (errors) == 1
    assert "scan-size parameter should be [512..32M] and a power of two" in errors[0]


@pytest.mark.parametrize ("size", ["512", "32M", "4096", "2M"])
def test_a_good_scan_size_is_taken (size):
    with nbdkit ([SCAN], ["memory", "1M"], [f"scan-size={size}"]) as server:
        server.connect ()
        assert server.errors () == []


# What can't be scanned: plugin parameters, export name, and what the warning has
# to say: why, and what to do.
UNSCANNABLE = {
    "an export that is not the default": ([], "other", "default export", "scan-exports"),
    "a plugin that takes one request at a time":
        (["model=serialize_all_requests"], "", "thread model", "use another plugin"),
    "a layer that emulates .cache by reading":
        (["cache=emulate"], "", "NBD_CMD_CACHE", "--filter=clone"),
    "a layer without .cache": (["cache=none"], "", "NBD_CMD_CACHE", "--filter=clone"),
}


@pytest.mark.parametrize ("case", UNSCANNABLE)
def test_what_cannot_be_scanned_is_warned_of_once (case):
    params, export, why, remedy = UNSCANNABLE[case]
    with nbdkit ([SCAN], gate ("size=64K", *params)) as server:
        for number in (1, 2):
            h = server.connect (export)
            assert h.pread (512, 512) == pattern (512, 512)
            server.disconnect (h)
            server.wait_line (f"gate: close {number}")
        [warning] = server.errors ()
        assert warning.startswith ("scan: warning: ")
        assert why in warning and remedy in warning
        assert server.calls ("cache") == []
