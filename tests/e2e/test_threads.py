# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-threads and scan-method: many prefetches at once, each offset once."""

import pytest

from harness import SCAN, gate, nbdkit, pattern, refused

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK = 4096
BLOCKS = 32


def most_at_once (server, op):
    """The most requests of a kind that the gate plugin had at one time."""
    running, most = set (), 0
    for line in list (server.log):
        words = line.split ()
        if words[:2] == ["gate:", "begin"] and words[3] == op:
            running.add (words[2])
        elif words[:2] == ["gate:", "end"]:
            running.discard (words[2])
        most = max (most, len (running))
    return most


@pytest.mark.parametrize ("threads", [1, 2, 16, 64])
def test_as_many_at_once_as_there_are_threads (threads):
    with nbdkit ([SCAN], gate (f"size={BLOCK * BLOCKS}", "hold=cache"),
                 [f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        server.connect ()
        held = [server.next_call ("cache") for _ in range (min (threads, BLOCKS))]
        # No more can begin before one of these has ended: that is counted below.
        for done in range (BLOCKS):
            server.release (held.pop (0))
            if done + threads < BLOCKS:
                held.append (server.next_call ("cache"))
        server.wait_line (FINISHED)
        offsets = [call.offset for call in server.calls ("cache")]
        assert sorted (offsets) == list (range (0, BLOCK * BLOCKS, BLOCK))
        if threads == 1:
            assert offsets == sorted (offsets)
        assert most_at_once (server, "cache") == min (threads, BLOCKS)
        assert server.errors () == []


def test_many_threads_fetch_every_offset_once ():
    """With nothing held: whoever is first."""
    size = 2000 * 512
    with nbdkit ([SCAN], gate (f"size={size}"),
                 ["scan-size=512", "scan-threads=64", "scan-ahead=false"],
                 VERBOSE) as server:
        h = server.connect ()
        for offset in range (0, size, 100_000):
            assert h.pread (512, offset) == pattern (offset, 512)
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, size, 512))


@pytest.mark.parametrize ("background", [True, False])
def test_finished_comes_after_the_last_prefetch (background):
    """Not when the policy has handed out the last offset."""
    with nbdkit ([SCAN], gate (f"size={8 * BLOCK}", "hold=cache"),
                 [f"scan-size={BLOCK}", "scan-threads=16",
                  f"scan-background={background}"], VERBOSE) as server:
        server.connect ()
        for call in [server.next_call ("cache") for _ in range (8)]:
            assert not any (FINISHED in line for line in server.log)
            server.release (call)
        server.wait_line (FINISHED)


def test_a_large_count_is_shared_among_threads (tmp_path):
    policy = tmp_path / "one.lua"
    policy.write_text ("return function (disk) disk:prefetch (1000, 30000) end")
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache"),
                 [f"scan-size={BLOCK}", "scan-threads=8", f"scan-policy={policy}",
                  "scan-pace=false"],
                 VERBOSE) as server:
        server.connect ()
        calls = [server.next_call ("cache") for _ in range (8)]
        assert sorted ((c.offset, c.count) for c in calls) == \
            [(1000 + BLOCK * i, min (BLOCK, 30000 - BLOCK * i)) for i in range (8)]


@pytest.mark.parametrize ("threads", [1, 4])
def test_settle_in_a_loop_does_not_spin (tmp_path, threads):
    """It rests for a millisecond each time; a slow machine can't break this."""
    policy = tmp_path / "spins.lua"
    policy.write_text ("""
        return function (disk)
          disk:prefetch (0)
          local begun = disk:now ()
          for _ = 1, 120 do
            for offset, count in disk:failures () do disk:prefetch (offset, count) end
            disk:settle ()
          end
          print (disk:now () - begun >= 0.1 and "rested" or "spun")
        end""")
    with nbdkit ([SCAN], gate (f"size={4 * BLOCK}"),
                 [f"scan-policy={policy}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        server.connect ()
        assert server.wait_line ("scan: policy: (rested|spun)")[0][1] == "rested"


def test_settle_waits_for_what_is_in_flight (tmp_path):
    policy = tmp_path / "settle.lua"
    policy.write_text ("""
        return function (disk)
          for i = 0, 3 do disk:prefetch (i * disk.block) end
          disk:settle ()
          for offset, _, err in disk:failures () do print (offset .. " " .. err) end
          print "settled"
        end""")
    with nbdkit ([SCAN], gate (f"size={4 * BLOCK}", "hold=cache"),
                 [f"scan-size={BLOCK}", "scan-threads=8", f"scan-policy={policy}",
                  "scan-pace=false"],
                 VERBOSE) as server:
        server.connect ()
        calls = [server.next_call ("cache") for _ in range (4)]
        for call in calls:
            assert not any ("settled" in line for line in server.log)
            server.release (call, 5)        # EIO
        server.wait_line ("scan: policy: settled")
        told = {line.split ("policy: ")[1] for line in server.log if " EIO" in line}
        assert told == {f"{i * BLOCK} EIO" for i in range (4)}


@pytest.mark.parametrize ("threads", [1, 8])
def test_reading_over_a_layer_that_keeps_it (threads):
    """Everything the client reads afterwards comes from cow's overlay."""
    block, blocks = 65536, 16
    with nbdkit ([SCAN, "cow"], gate (f"size={block * blocks}", "hold=read",
                                      "log=read", "cache=none"),
                 ["scan-method=read", f"scan-threads={threads}",
                  f"scan-size={block}", "cow-on-read=true"], VERBOSE) as server:
        h = server.connect ()
        held = [server.next_call ("read") for _ in range (threads)]
        server.send ("hold read 0")
        for call in held:
            server.release (call)
        server.wait_line (FINISHED)
        server.disconnect (h)               # which waits for the last of them
        server.wait_line ("gate: close 1")
        assert sorted ((c.offset, c.count) for c in server.calls ("read")) == \
            [(block * i, block) for i in range (blocks)]
        assert most_at_once (server, "read") >= threads
        h = server.connect ()
        for i in range (blocks):
            assert h.pread (block, block * i) == pattern (block * i, block)
        assert len (server.calls ("read")) == blocks
        assert server.errors () == []


def test_clients_read_while_all_threads_are_held ():
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache"),
                 ["scan-size=512", "scan-threads=64"]) as server:
        h = server.connect ()
        calls = [server.next_call ("cache") for _ in range (64)]
        assert h.pread (1000, 40000) == pattern (40000, 1000)
        for call in calls:
            server.release (call)


def test_disconnecting_with_all_threads_held ():
    """It waits for what is in flight, and for nothing else."""
    with nbdkit ([SCAN], gate ("size=1M", "hold=cache"),
                 ["scan-size=512", "scan-threads=16"]) as server:
        h = server.connect ()
        calls = [server.next_call ("cache") for _ in range (16)]
        server.disconnect (h)
        server.wait_joined (*(call.tid for call in calls))
        for call in calls:
            server.release (call)
        server.wait_line ("gate: close 1")
        assert len (server.calls ("cache")) == 16


def test_too_much_scratch_memory_is_refused ():
    errors = refused ([SCAN], ["memory", "1M"],
                      ["scan-method=read", "scan-threads=17", "scan-size=32M"])
    assert len (errors) == 1
    for word in ("scan-threads=17", "scan-size=33554432", "512M"):
        assert word in errors[0]
