# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-exports: each export name has a policy state of its own, within bounds."""

import os
import re
import socket
import ssl
import struct

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit
from test_sources import make_certificate, needs

VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
COUNTER = """
    local count = 0             -- shared by all scans of one export
    return function (disk)
      count = count + 1
      print (("scan %d of '%s'"):format (count, disk.export))
    end"""


def scan_count (server, name, number):
    """Connect to an export and leave once its scan has counted."""
    start = len (server.log)
    h = server.connect (name)
    server.wait_line (f"policy: scan {number} of '{name}'$", start)
    server.disconnect (h)


@pytest.fixture
def counter (tmp_path):
    path = tmp_path / "counter.lua"
    path.write_text (COUNTER)
    return path


def test_each_name_has_its_own_state (counter):
    with nbdkit ([SCAN], gate ("size=64K"),
                 ["scan-exports=*", f"scan-policy={counter}"], VERBOSE) as server:
        for number in (1, 2, 3):
            for name in ("", "a", "b", "a/b", "\N{SNOWMAN}"):
                scan_count (server, name, number)
        assert server.errors () == []


@pytest.mark.parametrize ("pattern, names", [
    ("", [""]), ("disk", ["disk"]), ("disk[12]", ["disk1", "disk2"]),
    ("d*", ["d", "disk", "disk1", "disk2"]), ("?", ["d"]),
    ("*", ["", "d", "disk", "disk1", "disk2"])])
def test_patterns (counter, pattern, names):
    with nbdkit ([SCAN], gate ("size=64K"),
                 [f"scan-exports={pattern}", f"scan-policy={counter}"],
                 VERBOSE) as server:
        others = [name for name in ("", "d", "disk", "disk1", "disk2")
                  if name not in names]
        for name in names:
            scan_count (server, name, 1)
        assert server.errors () == []
        for number, name in enumerate (others):
            server.disconnect (server.connect (name))
            if number == 0:         # it is said once
                which = f"one of scan-exports={re.escape (pattern)}" if pattern \
                    else "the default export"
                server.wait_line (f"warning: not {which}, not scanning; "
                                  f"scan-exports='{name}'")
        scans = [line for line in server.log if "policy: scan" in line]
        assert len (scans) == len (names)


@pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                     reason="the shell of the eval plugin dies under it")
@pytest.mark.parametrize ("order", [["", "disk"], ["disk", ""],
                                    ["disk", "", "disk", ""]])
def test_the_order_of_clients_makes_no_difference (counter, order):
    """The default export is that of who asks for it.  Its name alone says nothing:
    nbdkit tells it to nobody who has not asked."""
    plugin = ["eval", "thread_model=echo parallel", "get_size=echo 65536",
              "can_cache=echo native", "cache=:", "default_export=echo disk",
              "open=:", "pread=head -c $3 /dev/zero"]
    with nbdkit ([SCAN], plugin, [f"scan-policy={counter}"], VERBOSE) as server:
        for number, name in enumerate (order):
            h = server.connect (name)
            if name == "":
                server.wait_line (f"policy: scan {order[:number].count ('') + 1} of")
            server.disconnect (h)
        scans = [line for line in server.log if "policy: scan" in line]
        assert len (scans) == order.count ("")
        assert ["scan-exports='disk'" in e for e in server.errors ()
                if "scan: " in e] == [True]


def receive (connection, count):
    found = b""
    while len (found) < count:
        more = connection.recv (count - len (found))
        assert more
        found += more
    return found


def ask (connection, option, data=b""):
    """Send an option of the handshake; returns the type of the last reply."""
    connection.sendall (b"IHAVEOPT" + struct.pack (">II", option, len (data)) + data)
    while True:
        reply, length = struct.unpack (">12xII", receive (connection, 20))
        receive (connection, length)
        if reply == 1 or reply & 1 << 31:
            return reply


@needs ("certtool")
def test_what_was_said_before_tls_counts_no_more (counter, tmp_path):
    """nbdkit forgets it, and frees the name that the client was told."""
    make_certificate (tmp_path)
    for name, of in (("server-key", "key"), ("server-cert", "cert"),
                     ("ca-cert", "cert")):
        os.link (tmp_path / f"{of}.pem", tmp_path / f"{name}.pem")
    trust = ssl.create_default_context (cafile=tmp_path / "cert.pem")
    info, starttls, go, ack = 6, 5, 7, 1
    with nbdkit ([SCAN], gate ("size=64K", "default=disk"), [f"scan-policy={counter}"],
                 [*VERBOSE, "--tls=on", f"--tls-certificates={tmp_path}"]) as server:
        plain = socket.socket (socket.AF_UNIX)
        plain.connect (server.socket)
        receive (plain, 18)
        plain.sendall (struct.pack (">I", 3))
        assert ask (plain, info, struct.pack (">IH", 0, 0)) == ack
        assert ask (plain, starttls) == ack
        with trust.wrap_socket (plain, server_hostname="localhost") as secret:
            assert ask (secret, go, struct.pack (">I4sH", 4, b"disk", 0)) == ack
            server.wait_line ("scan: warning: not the default export")


def test_the_default_export_is_never_forgotten (counter):
    with nbdkit ([SCAN], gate ("size=64K"),
                 ["scan-exports=*", f"scan-policy={counter}"], VERBOSE) as server:
        scan_count (server, "", 1)
        scan_count (server, "old", 1)
        for i in range (40):
            scan_count (server, f"other{i}", 1)
        scan_count (server, "", 2)
        scan_count (server, "other39", 2)       # a recent one
        scan_count (server, "old", 1)           # forgotten, and new again


@pytest.mark.skipif (CHECK_WITH != "", reason="checkers use memory of their own")
def test_any_number_of_names (tmp_path):
    """Kept for ever, their states and maps would take 800 MB."""
    stats = tmp_path / "stats"
    with nbdkit ([SCAN], gate ("size=64K", "quiet=open", "quiet=cache"),
                 ["scan-exports=*", f"scan-stats={stats}"]) as server:
        def visit (names):
            for i in names:
                h = server.connect (f"name{i}")
                h.pread (512, 0)
                server.disconnect (h)

        visit (range (200))
        before = server.rss_bytes ()
        visit (range (200, 2200))
        assert server.rss_bytes () - before < 16 * 1024 * 1024
