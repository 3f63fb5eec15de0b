# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Sources that fail: the scan goes on, clients don't notice, policies are told."""

import errno
import re
import time

import pytest

from harness import SCAN, gate, nbdkit, pattern

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK = 4096
BLOCKS = 32
COMES_BACK = """
    -- What has failed is asked for again, until it is there.
    return function (disk)
      for block = 0, disk.blocks - 1 do disk:prefetch (block * disk.block) end
      disk:settle ()
      local again = true
      while again do
        again = false
        for offset, count in disk:failures () do
          again = true
          disk:prefetch (offset, count)
        end
        disk:settle ()
      end
    end"""


@pytest.mark.parametrize ("threads", [1, 8])
@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
@pytest.mark.parametrize ("fail", ["/3", "all", "5-20"])
def test_the_scan_goes_on (fail, model, threads):
    """The default policy: each block is asked for once, whatever comes of it."""
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}", f"fail=cache:{fail}",
                               f"model={model}"),
                 [f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, BLOCK * BLOCKS, BLOCK))
        assert len ([e for e in server.errors () if "prefetch of" in e]) == 1


@pytest.mark.parametrize ("threads", [1, 8])
@pytest.mark.parametrize ("fail", ["/3", "1-20", "1-100"])
def test_a_policy_comes_back (tmp_path, fail, threads):
    policy = tmp_path / "comes-back.lua"
    policy.write_text (COMES_BACK)
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}", f"fail=cache:{fail}"),
                 [f"scan-size={BLOCK}", f"scan-threads={threads}",
                  f"scan-policy={policy}"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        ends = (re.search (r"gate: end (\d+) (\d+)$", line) for line in server.log)
        status = {int (m[1]): m[2] for m in ends if m}
        good = [c.offset for c in server.calls ("cache") if status[c.id] == "0"]
        assert sorted (good) == list (range (0, BLOCK * BLOCKS, BLOCK))


def test_the_error_filter (tmp_path):
    """Fails for as long as a file exists; clients are served all the time."""
    trigger = tmp_path / "trigger"
    trigger.touch ()
    policy = tmp_path / "comes-back.lua"
    policy.write_text (COMES_BACK)
    with nbdkit ([SCAN, "error"], gate (f"size={BLOCK * BLOCKS}", "log=cache"),
                 [f"scan-size={BLOCK}", f"scan-policy={policy}",
                  "error-cache-rate=100%", "error-cache=EIO",
                  f"error-file={trigger}"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line ("scan: warning: prefetch of 4096 bytes at offset 0 "
                          "failed: Input/output error")
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        trigger.unlink ()
        server.wait_line (FINISHED)
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, BLOCK * BLOCKS, BLOCK))


@pytest.mark.parametrize ("threads", [1, 4])
def test_a_source_that_hangs (threads):
    """Clients read meanwhile, and the scan goes on afterwards."""
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}", "hold=cache"),
                 [f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        h = server.connect ()
        held = [server.next_call ("cache") for _ in range (threads)]
        for i in range (20):
            assert h.pread (512, 512 * i) == pattern (512 * i, 512)
        server.send ("hold cache 0")
        for call in held:
            server.release (call)
        server.wait_line (FINISHED)
        assert server.errors () == []


def test_over_the_retry_filter ():
    """It makes requests one at a time on a handle, and opens the source again
    when one fails."""
    with nbdkit ([SCAN, "retry"], gate (f"size={BLOCK * BLOCKS}", "fail=cache:/5"),
                 [f"scan-size={BLOCK}", "scan-threads=3", "retry-delay=1",
                  "retries=3"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert {c.offset for c in server.calls ("cache")} == \
            set (range (0, BLOCK * BLOCKS, BLOCK))
        assert not any ("prefetch of" in e for e in server.errors ())


def test_more_failures_than_are_kept (tmp_path):
    """Bounded, and the policy goes on."""
    policy = tmp_path / "count.lua"
    policy.write_text ("""
        return function (disk)
          for block = 0, disk.blocks - 1 do disk:prefetch (block * disk.block) end
          disk:settle ()
          local n = 0
          for _ in disk:failures () do n = n + 1 end
          print (n, "failures")
        end""")
    with nbdkit ([SCAN], gate ("size=1M", "fail=cache:/2", "quiet=cache"),
                 ["scan-size=512", f"scan-policy={policy}"], VERBOSE) as server:
        server.connect ()
        server.wait_line ("policy: 256\tfailures")


def test_a_busy_source (tmp_path):
    """EBUSY of the source is a failure like any other, and not a prefetch that was
    left out because of a write."""
    policy = tmp_path / "tell.lua"
    policy.write_text ("""
        return function (disk)
          for block = 0, 7 do disk:prefetch (block * disk.block) end
          disk:settle ()
          for offset, _, err in disk:failures () do print (offset, err) end
        end""")
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}"),
                 [f"scan-size={BLOCK}", f"scan-policy={policy}"], VERBOSE) as server:
        server.send (f"fail cache {errno.EBUSY}")
        server.connect ()
        server.wait_line (f"scan: policy: {7 * BLOCK}\tEIO")
        assert len ([e for e in server.errors () if "prefetch of" in e]) == 1


@pytest.mark.parametrize ("clients", [1, 2])
def test_no_space_left (clients):
    """Scans end, and one message says what to do, in the server's life."""
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}"),
                 [f"scan-size={BLOCK}", "scan-forever=true"], VERBOSE) as server:
        server.send (f"fail cache {errno.ENOSPC}")
        for i in range (1, clients + 1):
            h = server.connect ()
            server.poll (lambda: len (server.calls ("cache", i)) == 1, "a prefetch")
            assert h.pread (1000, 1000) == pattern (1000, 1000)
            server.disconnect (h)
            server.wait_line (f"gate: close {i}$")
            assert len (server.calls ("cache", i)) == 1
        (message,) = [e for e in server.errors () if "scan" in e]
        assert "no space left" in message and "TMPDIR" in message


@pytest.mark.parametrize ("asked, what", [
    ("", "cache"), ("disk:prefetch (0)", "cache"), ("disk:pread (0, 512)", "read"),
], ids=["stock", "prefetch", "pread"])
def test_a_source_that_goes_on_failing_is_left_alone (tmp_path, asked, what):
    """For longer and longer, whatever the policy; a slow machine can't break this."""
    policy = tmp_path / "again"
    policy.write_text (f"return function (disk) while true do {asked} end end")
    scans = [f"scan-policy={policy}"] if asked else ["scan-forever=true"]
    with nbdkit ([SCAN], gate (f"size={BLOCK}", f"log={what}", f"fail={what}:all"),
                 [f"scan-size={BLOCK}", *scans], VERBOSE) as server:
        start = time.monotonic ()
        h = server.connect ()
        server.poll (lambda: len (server.calls (what)) >= 100, "failures")
        # After 16 come pauses of 1 ms, after 32 of 2, and so on.
        least = sum (0.001 * 2 ** (n // 16 - 1) for n in range (16, 99))
        assert time.monotonic () - start >= least
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
