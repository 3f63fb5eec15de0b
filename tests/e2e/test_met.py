# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What a policy is told of the map: what its client's reads met, what is missing,
and what became of its prefetches."""

import errno

import nbd
import pytest

from harness import SCAN, gate, nbdkit
from test_reports import FINISHED, counters

BLOCK = 65536
DISK = gate (f"size={16 * BLOCK}", "hold=cache")


def run (tmp_path, text, args=(), plugin=DISK):
    path = tmp_path / "told.lua"
    path.write_text (text)
    return nbdkit ([SCAN], plugin,
                   [f"scan-size={BLOCK}", f"scan-policy={path}", "scan-pace=false",
                    *args], ["-v"])


def said (server):
    return [line.split ("policy: ", 1)[1] for line in server.log
            if "scan: policy: " in line]


def test_what_reads_meet (tmp_path):
    """As of when they begin: a prefetch that ends before the policy asks makes no
    hit of a read that came late."""
    with run (tmp_path, """
            return function (disk)
              disk:prefetch (0)
              for offset, _, met in disk:reads () do print (offset, met) end
            end""") as server:
        h = server.connect ()
        call = server.next_call ("cache")
        h.pread (512, 0)
        h.pread (512, BLOCK - 512)
        h.pread (1024, BLOCK - 512)
        h.pread (512, 2 * BLOCK)
        server.release (call)
        server.wait_line (FINISHED)
        assert said (server) == [
            "0\tlate", f"{BLOCK - 512}\tlate", f"{BLOCK - 512}\tmiss",
            f"{2 * BLOCK}\tmiss"]


def test_what_was_read_before_is_a_hit (tmp_path):
    """For the policy; it is none of the scan's."""
    stats = tmp_path / "stats"
    with run (tmp_path, """
            return function (disk)
              repeat
                disk:wait ()
                for offset, _, met in disk:reads () do print (offset, met) end
              until disk:closed ()
            end""", [f"scan-stats={stats}"]) as server:
        h = server.connect ()
        h.pread (4096, 0)
        server.wait_line ("policy: 0\tmiss$")
        h.pread (4096, 0)
        server.wait_line ("policy: 0\thit$")
    assert counters (stats)["reads_by_result_total", 'export="",result="miss"'] == 2


def test_what_one_connection_fetched_another_hits (tmp_path):
    with run (tmp_path, """
            local first = true
            return function (disk)
              if first then
                first = false
                disk:prefetch (0)
              else
                repeat
                  disk:wait ()
                  for offset, _, met in disk:reads () do print (offset, met) end
                until disk:closed ()
              end
            end""") as server:
        server.connect ()
        server.release (server.next_call ("cache"))
        server.wait_line (FINISHED)
        h = server.connect ()
        h.pread (512, 4096)
        server.wait_line ("policy: 4096\thit$")


def test_what_is_missing (tmp_path):
    """Neither what is on its way, nor what was fetched, nor what the client read,
    though the policy never asks for its reads."""
    with run (tmp_path, """
            return function (disk)
              print ("missing", disk:missing (0))
              disk:prefetch (0)
              disk:prefetch (2 * disk.block)
              print ("missing", disk:missing (0))
              print ("missing", disk:missing (disk.block, 2 * disk.block))
              disk:prefetch (4 * disk.block)
              print ("missing", disk:missing (0))
              local offset, count = disk:missing (0)
              while offset do
                disk:prefetch (offset, count)
                offset, count = disk:missing (offset + count)
              end
              print ("missing", disk:missing (0))
            end""", ["scan-threads=2"]) as server:
        h = server.connect ()
        one = server.next_call ("cache")
        server.wait_line ("policy: missing")
        two = server.next_call ("cache")
        h.pread (BLOCK // 2, BLOCK)
        server.release (one)
        three = server.next_call ("cache")
        server.send ("hold cache 0")
        server.release (two)
        server.release (three)
        server.wait_line (FINISHED)
        told = said (server)
        assert told[0] == f"missing\t0\t{16 * BLOCK}"
        assert told[-1] == "missing"
        fetched = [(c.offset, c.count) for c in server.calls ("cache")]
        assert (BLOCK * 3 // 2, BLOCK // 2) in fetched
        assert sum (count for _, count in fetched) == 16 * BLOCK - BLOCK // 2


def test_what_failed_was_not_read (tmp_path):
    """Else what a client could not read while the source was away is never fetched."""
    with run (tmp_path, """
            return function (disk)
              repeat
                disk:wait ()
                print ("missing", disk:missing (0, 4096))
                for offset, count in disk:reads () do print ("read", offset, count) end
                for offset, count, err in disk:failures () do
                  print ("failed", offset, count, err)
                end
              until disk:closed ()
            end""", plugin=gate (f"size={16 * BLOCK}", "hold=read")) as server:
        h = server.connect ()
        h.aio_pread (nbd.Buffer (4096), 0)
        call = server.next_call ("read")
        server.wait_line ("policy: missing$")
        server.wait_line ("policy: read\t0\t4096$")
        server.release (call, errno.EIO)
        server.wait_line ("policy: missing\t0\t4096$")
        server.wait_line ("policy: failed\t0\t4096\tEIO$")
        assert len ([line for line in said (server) if line.startswith ("read")]) == 1


def test_a_policy_that_asks_for_failures_alone_has_the_clients_too (tmp_path):
    with run (tmp_path, """
            return function (disk)
              repeat
                disk:wait ()
                for offset, count in disk:failures () do print (offset, count) end
              until disk:closed ()
            end""", plugin=gate (f"size={16 * BLOCK}", "fail=read:all")) as server:
        h = server.connect ()
        with pytest.raises (nbd.Error):
            h.pread (4096, BLOCK)
        server.wait_line (f"policy: {BLOCK}\t4096$")


def test_more_reads_fail_than_anybody_looks_at (tmp_path):
    """As in an outage, when the only thread waits for the source."""
    with run (tmp_path, """
            return function (disk)
              local block, failed, n = disk.block, {}, 0
              disk:prefetch (0)
              for offset, count in disk:failures () do
                for at = offset, offset + count - 1, block do failed[at] = true end
              end
              for at = block, disk.size - 1, block do
                if failed[at] and disk:missing (at, at + block) == at then n = n + 1 end
              end
              print (n, "to fetch")
            end""", ["scan-size=4096"],
              gate (f"size={1001 * 4096}", "hold=cache", "quiet=read",
                    "fail=read:all")) as server:
        h = server.connect ()
        call = server.next_call ("cache")
        for block in range (1, 1001):
            with pytest.raises (nbd.Error):
                h.pread (4096, 4096 * block)
        server.release (call)
        server.wait_line ("policy: 1000\tto fetch")


def test_adaptive_fetches_what_a_client_could_not_read ():
    """Also where it has been already."""
    with nbdkit ([SCAN], gate ("size=1M", "hold=cache", "hold=read"),
                 [f"scan-size={BLOCK}", "scan-policy=adaptive", "scan-pace=false",
                  "scan-threads=2"], ["-v", "-D", "scan.decisions=1"]) as server:
        h = server.connect ()
        cookie = h.aio_pread (nbd.Buffer (4096), 15 * BLOCK)
        read = server.next_call ("read")
        left = 16 * BLOCK - 4096
        while True:
            call = server.next_call ("cache")
            left -= call.count
            if left == 0:
                break
            server.release (call)
        server.wait_line ("scan: policy: settle")
        server.release (read, errno.EIO)
        with pytest.raises (nbd.Error):
            while not h.aio_command_completed (cookie):
                h.poll (-1)
        server.release (call)
        call = server.next_call ("cache")
        assert (call.offset, call.count) == (15 * BLOCK, 4096)
        server.release (call)
        server.wait_line (FINISHED)


def test_what_became_of_prefetches (tmp_path):
    with run (tmp_path, """
            return function (disk)
              for i = 0, 3 do disk:prefetch (i * disk.block) end
              disk:settle ()
              for offset, count, seconds, err in disk:results () do
                print (offset, count, math.type (seconds), seconds >= 0, err)
              end
              print (disk:results () ())
              for i = 0, 299 do disk:prefetch (i % 16 * disk.block) end
              disk:settle ()
              local n = 0
              for _ in disk:results () do n = n + 1 end
              print ("results", n)
            end""", plugin=gate (f"size={16 * BLOCK}", "fail=cache:/3")) as server:
        server.connect ()
        server.wait_line (FINISHED)
        told = said (server)
        assert len (told) == 6
        ends = [line.split ("\t") for line in told[:4]]
        assert [int (end[0]) for end in ends] == [i * BLOCK for i in range (4)]
        assert all (end[1:4] == [str (BLOCK), "float", "true"] for end in ends)
        assert [end[4] for end in ends].count ("EIO") == 1
        assert told[5] == "results\t256"
