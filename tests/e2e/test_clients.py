# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Real clients over the filter, as in the stock project's own two tests."""

import nbd
import pytest

from harness import SCAN, gate, nbdkit


@pytest.mark.parametrize ("size", ["1M", "1G"])
def test_copy (size):
    """The sparse-random plugin compares: it refuses a write of anything but what
    is read from it."""
    # With these, about half of it is data; with the default runlength, no byte of
    # the small one.
    with nbdkit ([SCAN], ["sparse-random", size, "seed=7", "percent=50",
                          "runlength=16384"]) as server:
        server.run ("nbdcopy", "{uri}", "{uri}")
        assert server.errors () == []


@pytest.mark.parametrize ("size", ["1", "1M", "1G"])
def test_info (size):
    with nbdkit ([SCAN], ["memory", size]) as server:
        assert server.run ("nbdinfo", "--size", "{uri}").strip () == \
            {"1": "1", "1M": "1048576", "1G": "1073741824"}[size]
        assert "can_cache: true" in server.run ("nbdinfo", "{uri}")
        assert server.errors () == []


def test_info_of_another_export ():
    with nbdkit ([SCAN], ["memory", "1M"], options=["-e", "test"]) as server:
        assert "1048576" in server.run ("nbdinfo", "{uri}", export="test")
        assert len (server.errors ()) >= 1
        assert all ("not the default export" in e for e in server.errors ())


def test_reads_in_flight (tmp_path):
    """A policy knows how many there are, at any time: of its own client only."""
    policy = tmp_path / "counts.lua"
    policy.write_text ("""
        return function (disk)
          local last
          while not disk:closed () do
            local now = disk:reads_in_flight ()
            if now ~= last then print ("in flight: " .. now) end
            last = now
            disk:wait ()
          end
        end""")
    with nbdkit ([SCAN], gate ("size=64K", "hold=read"), [f"scan-policy={policy}"],
                 ["-v"]) as server:
        def printed (number):
            nonlocal cursor
            _, cursor = server.wait_line (f"policy: in flight: {number}$", cursor)

        cursor = 0
        h = server.connect ()
        printed (0)
        for n in 1, 2, 3:
            h.aio_pread (nbd.Buffer (512), n * 512)
            printed (n)
        other = server.connect ()
        other.aio_pread (nbd.Buffer (512), 0)
        printed (1)
        for _ in range (4):
            server.release (server.next_call ("read"))
        server.poll (lambda: h.poll (0) == 0 and h.aio_in_flight () == 0, "the reads")
        printed (0)
        assert server.errors () == []
