# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What the filter costs, as far as that can be counted; times are for `make bench`."""

import os
import sys

import pytest

import harness

sys.path.insert (0, os.path.join (harness.TOP, "tests/bench"))
import measure  # noqa: E402

pytestmark = pytest.mark.skipif (
    harness.CHECK_WITH != "", reason="counts are of the program as it is shipped")

NOISE_KIB = 256


@pytest.mark.parametrize ("moment", measure.MOMENTS)
def test_read_path_takes_no_more_instructions_than_stock (moment):
    stock, ours = (measure.instructions_per_read ([f], **measure.MOMENTS[moment])
                   for f in (harness.stock_filter (), harness.SCAN))
    assert ours <= stock


# 300 ns is what it is to take; with Lua's count hook set it would be 3,200.
def test_default_decides_in_few_instructions ():
    assert measure.instructions_per_decision ("default") < 2700


@pytest.mark.parametrize ("policy", ["default", "adaptive", "readahead"])
@pytest.mark.parametrize ("during", [True, False], ids=["during", "after"])
def test_memory_is_constant_in_reads (policy, during):
    args = [f"scan-policy={policy}", *(["hold=cache"] if during else [])]
    with measure.server ([harness.SCAN], args) as s:
        h = s.connect ()
        measure.read (h, 5000)
        before = s.memory_kib ()
        measure.read (h, 50000)
        assert s.memory_kib () - before < NOISE_KIB
        s.stop ()


# 16 bytes a read is what the stock filter keeps: the test above would see that.
def test_stock_memory_is_not ():
    with measure.server ([harness.stock_filter ()], ["hold=cache"]) as s:
        h = s.connect ()
        measure.read (h, 5000)
        before = s.memory_kib ()
        measure.read (h, 50000)
        assert s.memory_kib () - before > NOISE_KIB
        s.stop ()


@pytest.mark.parametrize ("connections", [1, 16])
@pytest.mark.parametrize ("scan_threads", [1, 8])
def test_threads (connections, scan_threads):
    """A scan has at most scan-threads threads, and none once it is finished."""
    with measure.server ([harness.SCAN],
                         ["scan-size=64K", "scan-clock=false", "hold=cache",
                          f"scan-threads={scan_threads}"],
                         options=["--threads=1"]) as s:
        for _ in range (connections):
            s.connect ()
        most = s.idle_threads () + connections * scan_threads
        s.poll (lambda: s.threads () >= most, "all threads of the scans")
        assert s.threads () == most
        s.release ()
        measure.wait_for_end_of_scan (s)
        s.stop ()


def test_background_scan_has_its_own_threads_only ():
    with measure.server ([harness.SCAN],
                         ["scan-size=64K", "hold=cache", "scan-threads=4",
                          "scan-background=true"], options=["--threads=1"]) as s:
        for _ in range (16):
            s.connect ()
        most = s.idle_threads () + 4
        s.poll (lambda: s.threads () >= most, "all threads of the scan")
        assert s.threads () == most
        s.stop ()
