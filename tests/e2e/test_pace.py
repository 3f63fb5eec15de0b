# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-pace: how much may be on its way.  What it finds on which line is tested on a
simulated one, in tests/unit/test-pace.c."""

import nbd
import pytest

from harness import SCAN, gate, nbdkit, refused

VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0", "-D", "scan.pace=1"]
LEAST = 4096
SMALLEST = 64 * 1024
BLOCK = 1 << 20
WHOLE = "return function (disk) disk:prefetch (0, disk.size) end"


@pytest.fixture
def whole (tmp_path):
    path = tmp_path / "whole.lua"
    path.write_text (WHOLE)
    return path


@pytest.mark.parametrize ("policy", ["default", "ahead", "clock", "forever"])
@pytest.mark.parametrize ("asked", [True, False])
def test_the_stock_ones_are_paced_only_if_asked (policy, asked):
    with nbdkit ([SCAN], gate ("size=4M", "hold=cache"),
                 [f"scan-policy={policy}", f"scan-size={BLOCK}",
                  *(["scan-pace=true"] if asked else [])]) as server:
        server.connect ()
        assert server.next_call ("cache").count == (LEAST if asked else BLOCK)


@pytest.mark.parametrize ("asked", [True, False])
def test_all_others_are_unless_asked_not_to (whole, asked):
    with nbdkit ([SCAN], gate ("size=4M", "hold=cache"),
                 [f"scan-policy={whole}", f"scan-size={BLOCK}",
                  *([] if asked else ["scan-pace=false"])]) as server:
        server.connect ()
        assert server.next_call ("cache").count == (LEAST if asked else BLOCK)


@pytest.mark.parametrize ("paced", [True, False])
def test_a_policy_is_told_what_there_is_room_for (tmp_path, paced):
    policy = tmp_path / "room.lua"
    policy.write_text ("return function (disk) disk:prefetch (0, disk:room ()) "
                       "disk:prefetch (1 << 20, disk:room ()) end")
    with nbdkit ([SCAN], gate ("size=4M", "hold=cache"),
                 [f"scan-policy={policy}", f"scan-size={BLOCK}",
                  f"scan-pace={str (paced).lower ()}"]) as server:
        server.connect ()
        first = server.next_call ("cache")
        assert first.count == (LEAST if paced else BLOCK)
        server.release (first)
        assert server.next_call ("cache").count == (SMALLEST if paced else BLOCK)


def test_all_of_it_is_fetched_in_pieces (whole):
    """They end at multiples of 64K, wherever they begin, but for the smallest, with
    which a search begins; by how long these take it may do so again."""
    with nbdkit ([SCAN], gate ("size=4M"),
                 [f"scan-policy={whole}", f"scan-size={BLOCK}", "scan-threads=4"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line ("scan: finished scanning the plugin")
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        calls = sorted (server.calls ("cache"), key=lambda call: call.offset)
        at = 0
        for call in calls:
            assert call.offset == at
            assert call.count == LEAST or (at + call.count) % SMALLEST == 0
            at += call.count
        assert at == 4 << 20


@pytest.mark.parametrize ("threads", [1, 8])
def test_it_begins_with_one_piece (whole, threads):
    """Two, of 4K and 64K, one at a time; then as many as are tried next.  The delay says
    that it is far away; on a busy machine it may seem thin, too."""
    with nbdkit ([SCAN], gate ("size=4M", "hold=cache", "delay=cache:20"),
                 [f"scan-policy={whole}", f"scan-size={BLOCK}",
                  f"scan-threads={threads}"], VERBOSE) as server:
        server.connect ()
        h = server.connect ()           # all scans share the line
        most, nr, at = LEAST, 0, 0
        while True:
            call = server.next_call ("cache")
            nr += 1
            assert call.count == most or LEAST < call.count < most
            assert len (server.calls ("cache")) == nr
            server.release (call)
            line, at = server.wait_line (
                r"scan: pace: (\w+): level (\d+), pieces of (\d+)", at)
            if line[1] != "first":
                break
            # The first is tried again, if it took longer than the second.
            most = int (line[3])
            assert most == (SMALLEST if nr % 2 == 1 else LEAST)
        # By how long these took, bytes may seem to cost much or nothing.
        piece = int (line[3])
        assert SMALLEST <= piece <= BLOCK // 2
        level = int (line[2]) // piece
        # Each of the two scans has this many threads to fetch with.
        assert level in {"more": (2,), "hold": (1,)}[line[1]]
        more = min (level, 2 * threads)
        calls = [server.next_call ("cache") for _ in range (more)]
        assert all (call.count == piece or call.count < piece and
                    (call.offset + call.count) % SMALLEST == 0 for call in calls)
        assert len (server.calls ("cache")) == nr + more
        server.disconnect (h)
        server.release_all ()


def test_a_client_with_much_in_flight_leaves_no_room (whole):
    """A prefetch begins when it has read what it wanted."""
    with nbdkit ([SCAN], gate ("size=4M", "hold=read", "hold=cache"),
                 ["scan-policy=" + str (whole), f"scan-size={BLOCK}"],
                 VERBOSE) as server:
        greedy = server.connect ()
        first = server.next_call ("cache")
        for i in range (8):
            greedy.aio_pread (nbd.Buffer (SMALLEST), i * SMALLEST)
        reads = [server.next_call ("read") for _ in range (8)]
        server.release (first)
        # A read that comes after the prefetch could have.
        greedy.aio_pread (nbd.Buffer (SMALLEST), 0)
        reads.append (server.next_call ("read"))
        assert len (server.calls ("cache")) == 1
        server.send ("hold read 0")
        for call in reads:
            server.release (call)
        while greedy.aio_in_flight () > 0:
            greedy.poll (-1)
        server.next_call ("cache")
        server.release_all ()


def test_what_a_policy_reads_waits_for_room_too (tmp_path):
    """It is asked without, so that it loses no reads of the client's."""
    policy = tmp_path / "reads.lua"
    policy.write_text ("""return function (disk)
        disk:prefetch (0, 4096)
        while not disk:reads () () do disk:wait () end
        disk:pread (12345, 6)
    end""")
    with nbdkit ([SCAN], gate (f"size={256 * SMALLEST}", "hold=cache", "log=read"),
                 [f"scan-policy={policy}", "scan-threads=2"],
                 VERBOSE + ["-D", "scan.decisions=1"]) as server:
        h = server.connect ()
        first = server.next_call ("cache")
        at = server.wait_line ("policy: prefetch")[1]
        for i in range (255, 0, -1):    # those that go on from another are one
            h.pread (512, i * SMALLEST)
        server.wait_line ("policy: pread", at)
        h.pread (512, 0)
        server.release (first)
        server.wait_line ("scan: finished scanning the plugin")
        log = "\n".join (server.log)
        assert log.index (f"gate: end {first.id} ") < log.index (" 12345 6 ")


@pytest.mark.parametrize ("threads", [1, 8])
def test_a_disconnect_does_not_wait_for_room (whole, threads):
    with nbdkit ([SCAN], gate ("size=4M", "hold=cache"),
                 [f"scan-policy={whole}", f"scan-size={BLOCK}",
                  f"scan-threads={threads}"], VERBOSE) as server:
        server.connect ()
        first = server.next_call ("cache")
        server.disconnect (server.connect ())
        server.wait_line ("gate: close 2")
        server.release (first)
        server.release_all ()


@pytest.mark.parametrize ("paced", [True, False])
def test_the_counters_tell (whole, tmp_path, paced):
    stats = tmp_path / "stats"
    with nbdkit ([SCAN], gate ("size=4M"),
                 [f"scan-policy={whole}", f"scan-size={BLOCK}", f"scan-stats={stats}",
                  f"scan-pace={paced}"]):
        pass
    found = dict (line.split () for line in stats.read_text ().splitlines ()
                  if line.startswith ("nbdkit_scan_pace_"))
    assert set (found) == ({f"nbdkit_scan_pace_{name}" for name in (
        "window_bytes", "piece_bytes", "bandwidth_bytes", "latency_seconds")}
        if paced else set ())


def test_a_bad_value ():
    (message,) = refused ([SCAN], ["null"], ["scan-pace=perhaps"])
    assert message == "scan-pace: 'perhaps' is not valid; it should be true or false"
