# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Client writes and prefetches are kept apart: see filter/scan/guard.h.

The cow filter reads a block of the source, then stores it.  What a client writes
in between is lost if the two overlap.
"""

import concurrent.futures
import random
import re

import nbd
import pytest

from harness import CHECK_WITH, CLONE, SCAN, gate, nbdkit, pattern

WAITS = "scan: a write at offset [0-9]+ waits for a prefetch"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0"]
BLOCK = 65536


def zeros (count):
    return b"\0" * count


def ones (count):
    return b"\1" * count


# How a client changes a range, and what is there then.  The cow filter itself
# never offers zero; see test_a_zero_waits_too.
CHANGES = {
    "write": (lambda h, offset, count:
              h.aio_pwrite (bytearray (ones (count)), offset), ones),
    "trim": (lambda h, offset, count: h.aio_trim (count, offset), zeros),
}

# How to prefetch into cow's overlay.
METHODS = {
    "read": ["scan-method=read", "cow-on-read=true"],
    "cache": ["scan-method=cache", "cow-on-cache=true"],
}


def all_done (h):
    """Has everything that was sent been answered?  Doesn't wait."""
    while h.poll (0) > 0:
        pass
    return h.aio_in_flight () == 0


def change_during_prefetch (server, h, what, offset, count):
    """Hold a prefetch in the source, change a range of the disk, let both go on,
    and check the result.

    What a change does that isn't kept waiting: it is done at once, or asks the
    source for the rest of its block.  It then gets ahead of the prefetch here.
    """
    start, expected = CHANGES[what]
    prefetch = server.next_call ("read")
    start (h, offset, count)

    def waits ():
        return any (re.search (WAITS, line) for line in list (server.log))

    server.poll (lambda: waits () or all_done (h)
                 or len (server.calls ("read")) > 1, "the change to do something")
    server.send ("hold read 0")
    if not waits ():
        for call in server.calls ("read")[1:]:
            server.release (call)
        server.poll (lambda: all_done (h), "the change")
    server.release (prefetch)
    server.poll (lambda: all_done (h), "the change")
    server.release_all ()
    server.disconnect (h)               # which ends the scan
    server.wait_line ("gate: close 1")
    h = server.connect ()
    assert h.pread (count, offset) == expected (count)
    if offset > 0:
        assert h.pread (offset, 0) == pattern (0, offset)


@pytest.mark.parametrize ("what", CHANGES)
@pytest.mark.parametrize ("method", METHODS)
def test_a_change_during_a_prefetch_of_its_block (method, what):
    with nbdkit ([SCAN, "cow"], gate ("size=1M", "hold=read", "cache=none"),
                 [f"scan-size={BLOCK}", *METHODS[method]], VERBOSE) as server:
        change_during_prefetch (server, server.connect (), what, 0, BLOCK)


@pytest.mark.parametrize ("what", CHANGES)
def test_a_change_that_shares_a_block_with_a_prefetch (what):
    """They do not overlap, but cow's block holds both."""
    with nbdkit ([SCAN, "cow"], gate ("size=4M", "hold=read", "cache=none"),
                 [f"scan-size={BLOCK}", "cow-block-size=1M", *METHODS["read"]],
                 VERBOSE) as server:
        change_during_prefetch (server, server.connect (), what,
                                512 * 1024, 4096)


def test_nothing_waits_over_the_clone_filter ():
    with nbdkit ([SCAN, CLONE], gate ("size=64K", "hold=read", "cache=none"),
                 ["scan-size=64K", "clone-commit=3600"], VERBOSE) as server:
        h = server.connect ()
        prefetch = server.next_call ("read")
        h.pwrite (ones (4096), 8192)        # answered while that is on its way
        server.release (prefetch)
        server.send ("hold read 0")
        expected = pattern (0, 8192) + ones (4096) + pattern (12288, 65536 - 12288)
        assert h.pread (65536, 0) == expected


def test_a_zero_waits_too ():
    with nbdkit ([SCAN], gate ("size=64K", "write=true", "hold=read", "log=zero"),
                 ["scan-size=64K", "scan-method=read"], VERBOSE) as server:
        h = server.connect ()
        prefetch = server.next_call ("read")
        h.aio_zero (512, 512)
        server.wait_line (WAITS)
        assert server.calls ("zero") == []
        server.release (prefetch)
        server.next_call ("zero")


@pytest.mark.parametrize ("what", ["write", "zero", "trim"])
def test_a_change_waits_for_no_prefetch_that_is_only_cached (what):
    """Over a layer that loses nothing there is nothing to guard."""
    with nbdkit ([SCAN], gate ("size=64K", "write=true", "hold=cache"),
                 ["scan-size=64K"]) as server:
        h = server.connect ()
        server.next_call ("cache")
        {"write": lambda: h.pwrite (ones (512), 0),
         "zero": lambda: h.zero (512, 0),
         "trim": lambda: h.trim (512, 0)}[what] ()
        assert server.calls ("cache")[0].offset == 0
        assert not any (line.startswith ("gate: end 1 ") for line in server.log)


def test_a_change_of_an_export_that_is_not_scanned_waits_too ():
    """The cow filter has one overlay for all exports."""
    with nbdkit ([SCAN, "cow"], gate ("size=1M", "hold=read", "cache=none",
                                      "exports=,other"),
                 [f"scan-size={BLOCK}", *METHODS["read"]], VERBOSE) as server:
        server.connect ()
        prefetch = server.next_call ("read")
        h = server.connect ("other")
        h.aio_pwrite (bytearray (ones (BLOCK)), 0)
        server.wait_line (WAITS)
        server.send ("hold read 0")
        server.release (prefetch)
        server.poll (lambda: all_done (h), "the write")
        assert h.pread (BLOCK, 0) == ones (BLOCK)


def test_blocks_that_a_filter_in_between_has_shifted (tmp_path):
    """At 32K in cow, its blocks end at 32K for us."""
    policy = tmp_path / "second.lua"
    policy.write_text ("return function (disk) disk:prefetch (32768) end")
    with nbdkit ([SCAN, "offset", "cow"],
                 gate ("size=1M", "hold=read", "cache=none"),
                 ["offset=32768", "scan-size=32768", f"scan-policy={policy}",
                  *METHODS["read"]], VERBOSE) as server:
        h = server.connect ()
        prefetch = server.next_call ("read")
        assert prefetch.offset == 65536 and prefetch.count == 65536
        h.aio_pwrite (bytearray (ones (32768)), 65536)
        server.wait_line (WAITS)
        server.release_all ()
        server.disconnect (h)
        server.wait_line ("gate: close 1")


def test_a_prefetch_skips_what_is_being_written (tmp_path):
    """And the policy is told; reads don't wait for either."""
    policy = tmp_path / "after-read.lua"
    policy.write_text ("""
        return function (disk)
          while not disk:reads () () do disk:wait () end
          disk:prefetch (0)
          for offset, count, err in disk:failures () do
            print (offset, count, err)
          end
          print (disk:pread (512, 512))
        end""")
    with nbdkit ([SCAN, "cow"], gate ("size=1M", "hold=read", "cache=none"),
                 [f"scan-size={BLOCK}", f"scan-policy={policy}", "scan-pace=false",
                  *METHODS["read"]], VERBOSE) as server:
        h = server.connect ()
        h.aio_pwrite (bytearray (ones (4096)), 8192)
        rest_of_block = server.next_call ("read")
        h.aio_pread (nbd.Buffer (512), BLOCK)
        server.wait_line ("scan: policy: 0\t65536\tEBUSY")
        server.wait_line ("scan: policy: nil\tEBUSY")
        read = server.next_call ("read")
        assert read.offset == BLOCK
        server.release (read)
        server.poll (lambda: h.poll (0) == 0 and h.aio_in_flight () == 1, "the read")
        assert len (server.calls ("read")) == 2
        server.release (rest_of_block)


def test_several_writes_at_once_do_not_wait_for_each_other ():
    with nbdkit ([SCAN], gate ("size=64K", "write=true", "hold=write", "hold=cache"),
                 ["scan-size=64K"]) as server:
        h = server.connect ()
        prefetch = server.next_call ("cache")
        server.release (prefetch)
        for _ in range (8):
            h.aio_pwrite (bytearray (ones (512)), 0)
        for call in [server.next_call ("write") for _ in range (8)]:
            server.release (call)
        while h.aio_in_flight () > 0:
            h.poll (-1)


@pytest.mark.parametrize ("threads", [1, 8])
@pytest.mark.parametrize ("method", METHODS)
@pytest.mark.parametrize ("cow_block", [4096, 65536])
def test_thousands_of_writes_and_prefetches (method, threads, cow_block):
    """Four clients, each with blocks of its own, against a scan that goes round."""
    clients, rounds, size = 4, (5 if CHECK_WITH else 25), 256 * cow_block
    writes_per_round = 10
    rng = random.Random (cow_block * 100 + threads)
    expected = bytearray (pattern (0, size))
    plans = [[] for _ in range (clients)]
    for client, plan in enumerate (plans):
        for _ in range (rounds * writes_per_round):
            block = rng.randrange (0, 256 // clients) * clients + client
            at = rng.randrange (0, cow_block // 512) * 512
            count = rng.choice ([512, cow_block - at])
            what = rng.choice (["write", "write", "trim"])
            offset = block * cow_block + at
            plan.append ((what, offset, count, rng.randrange (1, 256)))

    def work (h, plan):
        for what, offset, count, byte in plan:
            if what == "write":
                h.pwrite (bytes ([byte]) * count, offset)
            else:
                h.trim (count, offset)

    for plan in plans:
        for what, offset, count, byte in plan:
            expected[offset:offset + count] = \
                bytes ([byte if what == "write" else 0]) * count

    with nbdkit ([SCAN, "cow"], gate (f"size={size}", "cache=none", "delay=read:1"),
                 [f"scan-size={cow_block}", f"scan-threads={threads}",
                  "scan-forever=true", "scan-clock=false",
                  f"cow-block-size={cow_block}", *METHODS[method]]) as server:
        handles = [server.connect () for _ in range (clients)]
        with concurrent.futures.ThreadPoolExecutor (clients) as pool:
            list (pool.map (work, handles, plans))      # raises what one of them did
        for h in handles:
            server.disconnect (h)
        h = server.connect ()
        for offset in range (0, size, 1 << 20):
            count = min (1 << 20, size - offset)
            assert h.pread (count, offset) == expected[offset:offset + count]
