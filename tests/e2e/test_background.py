# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-background: one scan from server start to server end."""

import threading

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit, pattern

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BACKGROUND = "scan-background=true"
BLOCK = 4096
OBSERVER = """
    -- Prefetches nothing and prints the offsets of reads.
    return function (disk)
      while not disk:closed () do
        for offset in disk:reads () do print ("read " .. offset) end
        disk:wait ()
      end
    end"""


def our_errors (server):
    return [e for e in server.errors () if e.startswith ("scan: ")]


@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
@pytest.mark.parametrize ("threads", [1, 8])
def test_before_the_first_client (model, threads):
    with nbdkit ([SCAN], gate ("size=64K", f"model={model}"),
                 [BACKGROUND, f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        server.wait_line (FINISHED)
        server.poll (lambda: len (server.calls ("cache")) == 16, "all blocks")
        offsets = [c.offset for c in server.calls ("cache")]
        assert sorted (offsets) == list (range (0, 65536, BLOCK))
        if threads == 1:
            assert offsets == sorted (offsets)
        h = server.connect ()
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        assert len (server.calls ("cache")) == 16
        assert our_errors (server) == []


@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
def test_eight_clients_share_one_scan (model):
    """The stock filter, like one scan per connection, fetches everything 8 times."""
    blocks = 64
    with nbdkit ([SCAN], gate (f"size={BLOCK * blocks}", "hold=cache",
                               f"model={model}"),
                 [BACKGROUND, f"scan-size={BLOCK}", "scan-threads=4",
                  "scan-ahead=false"], VERBOSE) as server:
        held = [server.next_call ("cache") for _ in range (4)]
        handles = [server.connect () for _ in range (8)]

        def work (h, seed):
            for i in range (50):
                at = (seed + i * 7919) % (BLOCK * blocks - 512)
                assert h.pread (512, at) == pattern (at, 512)

        threads = [threading.Thread (target=work, args=(h, i * 1000))
                   for i, h in enumerate (handles)]
        for t in threads:
            t.start ()
        server.send ("hold cache 0")
        for call in held:
            server.release (call)
        for t in threads:
            t.join ()
        for h in handles[:4]:
            server.disconnect (h)
        server.wait_line (FINISHED)
        server.poll (lambda: len (server.calls ("cache")) >= blocks, "all blocks")
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, BLOCK * blocks, BLOCK))
        assert our_errors (server) == []


def test_reads_of_all_clients_reach_the_policy (tmp_path):
    policy = tmp_path / "observer.lua"
    policy.write_text (OBSERVER)
    with nbdkit ([SCAN], gate ("size=1M"), [BACKGROUND, f"scan-policy={policy}"],
                 VERBOSE) as server:
        server.wait_line ("gate: open 1 ")  # the scan's
        handles = [server.connect () for _ in range (8)]
        for i, h in enumerate (handles):
            h.pread (512, i * 1024)
            server.wait_line (f"policy: read {i * 1024}$")
        for h in handles:
            server.disconnect (h)
        for i in range (1, 9):
            server.wait_line (f"gate: close {i + 1}$")
        h = server.connect ()               # between clients it has gone on
        h.pread (512, 999_936)
        server.wait_line ("policy: read 999936$")


@pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                     reason="the shell of the eval plugin dies under it")
def test_a_default_export_with_a_name_joins_it (tmp_path):
    policy = tmp_path / "observer.lua"
    policy.write_text (OBSERVER)
    plugin = ["eval", "thread_model=echo parallel", "get_size=echo 65536",
              "can_cache=echo native", "cache=:",
              "default_export=echo disk", "list_exports=echo NAMES; echo disk",
              "open=:", "pread=head -c $3 /dev/zero"]
    with nbdkit ([SCAN], plugin, [BACKGROUND, f"scan-policy={policy}"],
                 VERBOSE) as server:
        for name in "", "disk":
            h = server.connect (name)
            start = len (server.log)
            h.pread (512, 4096)
            server.wait_line ("policy: read 4096$", start)
        assert our_errors (server) == []


# What a background scan may be doing when the server is told to exit, apart from
# waiting for the layer below.
BUSY = {
    "waiting for reads": (OBSERVER, []),
    "waiting for its turn": ("return function (disk) disk:prefetch (0) end",
                             ["scan-rate=1"]),
    "thinking": ("return function (disk) print 'thinking'; while true do end end",
                 ["scan-policy-timeout=3600"]),
    "going round": ("""return function (disk)
                         while not disk:closed () do disk:prefetch (0) end
                       end""", []),
    "finished": ("return function () end", []),
    "failed": ("return function () error 'oh' end", []),
}


@pytest.mark.parametrize ("clients", [0, 2])
@pytest.mark.parametrize ("case", BUSY)
def test_exit_at_any_moment (tmp_path, case, clients):
    if clients and CHECK_WITH in ("asan", "valgrind"):
        pytest.skip ("nbdkit leaks the handles of clients that are there at a signal")
    text, args = BUSY[case]
    policy = tmp_path / "policy.lua"
    policy.write_text (text)
    with nbdkit ([SCAN], gate ("size=64K", "quiet=cache"),
                 [BACKGROUND, f"scan-policy={policy}", *args], VERBOSE) as server:
        if case == "thinking":
            server.wait_line ("policy: thinking")
        for _ in range (clients):
            server.connect ().pread (512, 0)
        server.terminate ()             # and it must exit, see harness.stop


@pytest.mark.parametrize ("threads", [1, 8])
@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
def test_exit_while_the_source_hangs (model, threads):
    """As soon as it comes back, and with nothing more asked of it."""
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache", f"model={model}"),
                 [BACKGROUND, f"scan-size={BLOCK}",
                  f"scan-threads={threads}"]) as server:
        held = [server.next_call ("cache") for _ in range (threads)]
        server.terminate ()
        server.wait_joined (held[0].tid)
        for call in held:
            server.release (call)
        server.process.wait ()
        assert len (server.calls ("cache")) == threads


def test_exit_while_the_source_is_being_opened ():
    with nbdkit ([SCAN], gate ("size=64K", "hold=open"), [BACKGROUND]) as server:
        opening = server.next_call ("open")
        server.terminate ()
        server.wait_joined (opening.tid)
        server.release (opening)
        server.process.wait ()
        assert server.calls ("cache") == []


def test_a_source_that_cannot_be_opened ():
    """Later clients are served if they can open it; there is no scan."""
    with nbdkit ([SCAN], gate ("size=64K", "fail=open:1-1"),
                 [BACKGROUND]) as server:
        server.wait_line ("scan: warning: could not open the layer below.*"
                          "not scanning")
        h = server.connect ()
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        assert len (our_errors (server)) == 1
        assert server.calls ("cache") == []


def test_a_source_that_dies ():
    with nbdkit ([SCAN], gate ("size=64K"),
                 [BACKGROUND, "scan-forever=true", f"scan-size={BLOCK}"]) as server:
        server.wait_line ("gate: begin")
        server.send ("fail cache 5")
        server.wait_line ("scan: warning: prefetch of")
        server.send ("fail read 5")
        server.terminate ()


@pytest.mark.parametrize ("model", ["serialize_all_requests", "serialize_connections"])
def test_a_plugin_that_takes_one_request_at_a_time (model):
    with nbdkit ([SCAN], gate ("size=64K", f"model={model}"),
                 [BACKGROUND]) as server:
        h = server.connect ()
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        assert all ("thread model" in e for e in our_errors (server))
        assert len (our_errors (server)) >= 1
        assert server.calls ("cache") == []


@pytest.mark.parametrize ("params, why", [(["size=0"], None),
                                          (["cache=none"], "NBD_CMD_CACHE")])
def test_nothing_to_scan (params, why):
    with nbdkit ([SCAN], gate (*params), [BACKGROUND], VERBOSE) as server:
        if why:
            server.wait_line (f"scan: warning: .*{why}")
            assert len (our_errors (server)) == 1
        else:
            server.wait_line (FINISHED)
            assert our_errors (server) == []
        assert server.calls ("cache") == []
