# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Sources that fail: the scan goes on, clients don't notice, policies are told."""

import re

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
    with nbdkit ([SCAN], gate ("size=1M", "fail=cache:all", "quiet=cache"),
                 ["scan-size=512", f"scan-policy={policy}"], VERBOSE) as server:
        server.connect ()
        server.wait_line ("policy: 256\tfailures")
