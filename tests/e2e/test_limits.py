# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-rate and scan-limit."""

import os
import time

import pytest

from harness import SCAN, gate, nbdkit

FINISHED = "scan: finished scanning the plugin"
LIMIT = "scan: scan-limit has been reached"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK = 4096
JUMPING = """
    -- Single bytes, blocks and more, up and down.
    return function (disk)
      local state = 1
      for _ = 1, 2000 do
        state = state * 48271 % 2147483647
        disk:prefetch (state % disk.size, state % 3 == 0 and 1
                       or state % 7 == 0 and 3 * disk.block or nil)
      end
    end"""


def fetched (server):
    return sum (call.count for call in server.calls ("cache"))


@pytest.fixture (params=["default", "jumping"])
def policy (request, tmp_path):
    if request.param == "default":
        return "default"
    path = tmp_path / "jumping.lua"
    path.write_text (JUMPING)
    return path


@pytest.mark.parametrize ("clients, background", [(1, False), (3, False), (2, True)])
@pytest.mark.parametrize ("threads", [1, 16])
def test_rate (policy, threads, clients, background):
    """No more bytes than the rate allows since the server started, however long it
    takes: a slow machine can't break this."""
    rate = 1024 * 1024
    before = time.monotonic ()
    with nbdkit ([SCAN], gate ("size=1M"),
                 [f"scan-size={BLOCK}", f"scan-rate={rate}",
                  f"scan-threads={threads}", f"scan-policy={policy}",
                  f"scan-background={background}"]) as server:
        for _ in range (clients):
            server.connect ()
        for _ in range (50):
            server.next_call ("cache")
            count = fetched (server)
            assert count <= rate * (time.monotonic () - before)


@pytest.mark.parametrize ("threads", [1, 16])
@pytest.mark.parametrize ("clients", [1, 3])
@pytest.mark.parametrize ("limit", [1, 100, BLOCK, 10 * BLOCK + 17])
def test_limit (policy, threads, clients, limit):
    """Exactly that much, all scans together."""
    with nbdkit ([SCAN], gate ("size=1M"),
                 [f"scan-size={BLOCK}", f"scan-limit={limit}",
                  f"scan-threads={threads}", f"scan-policy={policy}"],
                 VERBOSE) as server:
        for i in range (clients):
            server.connect ()
        start = 0
        for i in range (clients):
            _, start = server.wait_line (LIMIT, start)
        server.poll (lambda: fetched (server) >= limit, "the last bytes")
        for h in list (server.connections):
            server.disconnect (h)
        for i in range (clients):
            server.wait_line (f"gate: close {i + 1}$")
        assert fetched (server) == limit


def test_a_limit_larger_than_the_disk ():
    with nbdkit ([SCAN], gate ("size=64K"), ["scan-limit=1G", f"scan-size={BLOCK}"],
                 VERBOSE) as server:
        server.connect ()
        server.wait_line (FINISHED)
        assert not any (LIMIT in line for line in server.log)


@pytest.mark.parametrize ("threads", [1, 16])
def test_a_disconnect_cuts_a_wait_short (threads):
    """A block is due in a year."""
    with nbdkit ([SCAN], gate ("size=1G"),
                 ["scan-size=32M", "scan-rate=1", f"scan-threads={threads}"],
                 VERBOSE) as server:
        for i in (1, 2):
            server.disconnect (server.connect ())
            server.wait_line (f"gate: close {i}$")
        assert server.calls ("cache") == []


def test_what_a_scan_did_not_use_is_given_back (tmp_path):
    """Of the rate and of the limit: a scan holds room for what it is to fetch while it
    waits for its turn, for a minute here.  The next client's wait, of half a second, does
    not come on top of three of these."""
    policy = tmp_path / "one.lua"
    policy.write_text (
        "return function (disk) disk:prefetch (0, tonumber (disk.export)) end")
    with nbdkit ([SCAN], gate ("size=64K"),
                 ["scan-size=32M", "scan-rate=1K", "scan-limit=64K", "scan-exports=*",
                  f"scan-policy={policy}", "scan-pace=false"], VERBOSE) as server:
        for i in range (1, 4):
            server.disconnect (server.connect ("65536"))
            server.wait_line (f"gate: close {i}$")
        assert os.path.exists (server.socket)
        assert server.calls ("cache") == []
        server.connect ("512")
        assert server.next_call ("cache").count == 512


def test_small_prefetches_pay_for_what_they_are (tmp_path):
    """Not each for a whole block first, which would be half a minute."""
    policy = tmp_path / "small.lua"
    policy.write_text ("""
        return function (disk)
          for offset = 0, disk.size - 1, 4096 do disk:prefetch (offset, 4096) end
        end""")
    with nbdkit ([SCAN], gate ("size=1M"),
                 ["scan-size=1M", "scan-rate=512K", f"scan-policy={policy}",
                  "scan-pace=true"]) as server:
        server.connect ()
        for i in range (100):
            assert server.next_call ("cache").offset == 4096 * i


def test_a_scan_that_reads_nothing_pays_nothing (tmp_path):
    """Before its policy was asked, a scan doesn't know whether it will read: three
    clients that wait would hold up the fourth for years."""
    policy = tmp_path / "idle.lua"
    policy.write_text ("""
        return function (disk)
          print "asked"
          while true do disk:wait () end
        end""")
    with nbdkit ([SCAN], gate ("size=1G"),
                 ["scan-size=32M", "scan-rate=1", f"scan-policy={policy}"],
                 VERBOSE) as server:
        start = 0
        for _ in range (4):
            server.connect ()
            _, start = server.wait_line ("scan: policy: asked", start)


def test_scans_that_wait_hold_nothing_of_the_limit (tmp_path):
    """Four idle clients and one that reads: it has all of it."""
    policy = tmp_path / "follow.lua"
    policy.write_text ("""
        return function (disk)
          while true do
            disk:wait ()
            for offset, count in disk:reads () do disk:prefetch (offset + count) end
          end
        end""")
    with nbdkit ([SCAN], gate ("size=16M"),
                 ["scan-size=1M", "scan-limit=2M", f"scan-policy={policy}",
                  "scan-pace=false"], VERBOSE) as server:
        for i in range (4):
            server.connect ()
            server.wait_line (f"gate: open {i + 1}")
        h = server.connect ()
        for i in range (2):
            h.pread (512, i * (4 << 20))
            assert server.next_call ("cache").count == 1 << 20
        server.wait_line (LIMIT)
        assert fetched (server) == 2 << 20


@pytest.mark.parametrize ("pread", [4096, 65536, 100000])
def test_what_a_policy_reads_is_of_the_limit (tmp_path, pread):
    policy = tmp_path / "pread.lua"
    policy.write_text (f"""
        return function (disk)
          for offset = 0, disk.size - {pread}, {pread} do
            disk:pread (offset, {pread})
          end
        end""")
    with nbdkit ([SCAN], gate ("size=16M", "log=read"),
                 ["scan-limit=1M", f"scan-policy={policy}"], VERBOSE) as server:
        server.connect ()
        server.wait_line (LIMIT)
        read = sum (call.count for call in server.calls ("read"))
        assert read == (1 << 20) // pread * pread


def test_what_a_policy_reads_is_of_the_rate (tmp_path):
    policy = tmp_path / "pread.lua"
    policy.write_text ("""
        return function (disk)
          for offset = 0, disk.size - 65536, 65536 do disk:pread (offset, 65536) end
        end""")
    rate = 1024 * 1024
    before = time.monotonic ()
    with nbdkit ([SCAN], gate ("size=16M", "log=read"),
                 [f"scan-rate={rate}", "scan-size=64K", f"scan-policy={policy}"],
                 VERBOSE) as server:
        server.connect ()
        for _ in range (20):
            server.next_call ("read")
            count = sum (call.count for call in server.calls ("read"))
            assert count <= rate * (time.monotonic () - before)
