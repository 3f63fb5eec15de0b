# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""A disk whose size changes between connections: each size has a policy state, a
map and scans of its own."""

import os

import pytest

from harness import SCAN, gate, nbdkit, pattern
from test_reports import FINISHED, counters

BLOCK = 2 * 1024 * 1024
SIZES = """
    local scans = 0             -- of this policy state
    return function (disk)
      scans = scans + 1
      print (("scan %d of %d bytes"):format (scans, disk.size))
      local last = disk.size - disk.block
      if last >= 0 then disk:prefetch (last) end
    end"""


@pytest.fixture
def disk (tmp_path):
    """A sparse file, and a function that gives it another size."""
    path = tmp_path / "disk.img"

    def resize (size):
        with open (path, "ab") as f:
            f.truncate (size)
    resize (1 << 30)
    return path, resize


@pytest.fixture
def policy (tmp_path):
    path = tmp_path / "sizes.lua"
    path.write_text (SIZES)
    return f"scan-policy={path}"


def scan_once (server, line):
    """Connect, let the scan end, and return the handle."""
    start = len (server.log)
    h = server.connect ()
    server.wait_line (f"policy: {line}$", start)
    server.wait_line (FINISHED, start)
    return h


def leave (server, h):
    """Disconnect, and wait until the server has forgotten the connection."""
    start = len (server.log)
    server.disconnect (h)
    server.wait_line ("debug: file: close", start)


@pytest.mark.parametrize ("first", [1 << 30, 0])
@pytest.mark.parametrize ("report", ["scan-stats", "scan-progress"])
def test_a_disk_that_grows (disk, policy, tmp_path, first, report):
    path, resize = disk
    stats = tmp_path / "stats"
    resize (first)
    value = stats if report == "scan-stats" else "true"
    with nbdkit ([SCAN, "cache"], ["file", path],
                 [f"{report}={value}", policy], ["-v"]) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        resize (6 << 40)
        h = scan_once (server, f"scan 1 of {6 << 40} bytes")
        h.pread (4096, 5 << 30)
        h.pread (4096, (6 << 40) - 4096)
    if report == "scan-stats":
        seen = counters (stats)
        export = 'export=""'
        assert seen["size_bytes", export] == 6 << 40
        assert seen["reads_by_result_total", f'{export},result="hit"'] == 1
        assert seen["reads_by_result_total", f'{export},result="miss"'] == 1


def test_a_size_has_a_policy_state_of_its_own (disk, policy):
    path, resize = disk
    with nbdkit ([SCAN, "cache"], ["file", path], [policy], ["-v"]) as server:
        one = scan_once (server, f"scan 1 of {1 << 30} bytes")
        resize (2 << 30)
        leave (server, scan_once (server, f"scan 1 of {2 << 30} bytes"))
        leave (server, scan_once (server, f"scan 2 of {2 << 30} bytes"))
        # The old one is still in use, and is found again.
        resize (1 << 30)
        leave (server, scan_once (server, f"scan 2 of {1 << 30} bytes"))
        leave (server, one)
        resize (2 << 30)
        leave (server, scan_once (server, f"scan 1 of {2 << 30} bytes"))


def test_two_sizes_at_once (disk, policy, tmp_path):
    """Two first scans, of different sizes, that run at the same time."""
    path, resize = disk
    stats = tmp_path / "stats"
    with nbdkit ([SCAN, "cache"], ["file", path],
                 [policy, f"scan-stats={stats}"], ["-v"]) as server:
        small = server.connect ()
        resize (6 << 40)
        large = server.connect ()
        server.wait_line (f"policy: scan 1 of {1 << 30} bytes$")
        server.wait_line (f"policy: scan 1 of {6 << 40} bytes$")
        large.pread (4096, 5 << 30)
        small.pread (4096, 0)
        large.pread (4096, 5 << 40)
    assert counters (stats)["reads_total", 'export=""'] == 3


def test_a_background_scan_is_of_one_size (disk, tmp_path):
    """A client that is told another size is not a client of that scan."""
    path, resize = disk
    with nbdkit ([SCAN, "cache"], ["file", path],
                 ["scan-background=true", f"scan-stats={tmp_path / 'stats'}",
                  "scan-policy=replay", f"scan-file-trace={os.devnull}"],
                 ["-v"]) as server:
        server.wait_line (FINISHED)
        start = len (server.log)
        h = server.connect ()
        h.pread (4096, 0)
        leave (server, h)
        assert not any (FINISHED in line for line in server.log[start:])
        start = len (server.log)
        resize (6 << 40)
        h = server.connect ()
        server.wait_line (FINISHED, start)
        h.pread (4096, 5 << 40)


@pytest.mark.parametrize ("first", ["leaves", "stays"])
def test_counters_go_on_when_the_size_changes (first, tmp_path):
    """Those that count events; a disk of another size has no bytes covered."""
    image, stats = tmp_path / "disk", tmp_path / "stats"
    image.write_bytes (bytes (4 * BLOCK))
    with nbdkit ([SCAN, "cache"], ["file", image],
                 [f"scan-stats={stats}"], ["-v"]) as server:
        h = server.connect ()
        _, line = server.wait_line (FINISHED)
        if first == "leaves":
            server.disconnect (h)
        image.write_bytes (bytes (2 * BLOCK))
        server.connect ()
        server.wait_line (FINISHED, line)
    seen = counters (stats)
    assert seen["prefetches_total", 'export=""'] == 6
    assert seen["covered_bytes", 'export=""'] == 2 * BLOCK
    assert seen["decisions_total", 'export=""'] == 5 + 3


@pytest.mark.parametrize ("threads", [1, 4])
def test_granules_larger_than_a_prefetch (disk, tmp_path, threads):
    """At 6 TiB four prefetches of 2 MiB make one."""
    path, resize = disk
    stats = tmp_path / "stats"
    resize (6 << 40)
    ranges = tmp_path / "trace"
    ranges.write_text ("".join (f"{i * BLOCK} {BLOCK}\n" for i in range (200)))
    with nbdkit ([SCAN, "cache"], ["file", path],
                 [f"scan-stats={stats}", "scan-policy=replay",
                  f"scan-file-trace={ranges}", f"scan-threads={threads}"],
                 ["-v"]) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
    seen = counters (stats)
    assert seen["covered_bytes", 'export=""'] == 200 * BLOCK
    assert seen["unread_bytes", 'export=""'] == 200 * BLOCK
    del h


def test_reads_hit_parts_of_granules (disk, tmp_path):
    path, resize = disk
    stats = tmp_path / "stats"
    resize (6 << 40)
    policy = tmp_path / "some.lua"
    policy.write_text ("""
        return function (disk)
          for i = 0, 199 do disk:prefetch (i * 64 * 1024 * 1024, 4096) end
        end""")
    with nbdkit ([SCAN, "cache"], ["file", path],
                 [f"scan-stats={stats}", f"scan-policy={policy}"],
                 ["-v"]) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        for i in range (200):
            h.pread (4096, i * 64 << 20)
            h.pread (4096, (i * 64 << 20) + 4096)
    seen = counters (stats)
    for result in "hit", "miss":
        assert seen["reads_by_result_total", f'export="",result="{result}"'] == 200
    assert seen["covered_bytes", 'export=""'] == 200 * 4096
    assert seen["partly_covered_bytes", 'export=""'] == 200 * (8 << 20)


@pytest.mark.parametrize ("minimum", [4096, 65536])
@pytest.mark.parametrize ("method", ["cache", "read"])
@pytest.mark.parametrize ("settings", [
    ["scan-size=32K"], ["scan-size=1M", "scan-threads=4"],
    ["scan-size=1M", "scan-pace=false"], ["scan-size=1M", "scan-limit=100000"]])
def test_a_layer_that_takes_only_whole_blocks (tmp_path, minimum, method, settings):
    """It is asked for these, whatever the policy asks for and the pace has room for,
    and the policy gets the bytes that it wants."""
    size, asked = 4 << 20, (1 << 20, (1 << 20) + 300000)
    policy = tmp_path / "odd.lua"
    policy.write_text (f"""return function (disk)
        disk:prefetch ({asked[0] + 12345}, {asked[1] - asked[0] - 12345})
        disk:settle ()
        print (("%d %d %d %d %d"):format (disk:pread (1080, 5):byte (1, -1)))
    end""")
    with nbdkit ([SCAN, "blocksize-policy"], gate (f"size={size}", "log=read"),
                 [f"scan-policy={policy}", f"scan-method={method}",
                  f"blocksize-minimum={minimum}", "blocksize-preferred=64K",
                  "blocksize-error-policy=error",
                  *settings], ["-v"]) as server:
        h = server.connect ()
        limited = "scan-limit=100000" in settings
        server.wait_line ("scan: scan-limit has been reached" if limited else FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        assert not any ("failed" in line for line in server.log)
        calls = [call for call in server.calls (method) if call.offset > 0]
        assert all (call.offset % minimum == call.count % minimum == 0
                    for call in calls)
        if limited:
            assert sum (call.count for call in calls) == 100000 // minimum * minimum
            return
        expected = " ".join (str (byte) for byte in pattern (1080, 5))
        assert any (f"policy: {expected}" in line for line in server.log)
        covered = bytearray (size // minimum)
        for call in calls:
            for block in range (call.offset // minimum,
                                (call.offset + call.count) // minimum):
                covered[block] += 1
        first, last = asked[0] + 12345, asked[1] - 1
        for block in range (first // minimum, last // minimum + 1):
            assert covered[block] == 1
