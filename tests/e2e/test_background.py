# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-background: one scan from server start to server end."""

import os
import re
import socket
import subprocess
import threading
import time

import nbd
import pytest

from harness import CHECK_WITH, CLONE, SCAN, gate, nbdkit, pattern

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
    return [e for e in server.errors () if e.startswith (("scan: ", "clone: "))]


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


# A default export with a name: the server tells it to a client that asks, and to nobody
# before that; layers below know the export by it.

NAMED = ["size=64K", "default=x", "log=read", "model=parallel"]


def offsets (server, op):
    return sorted (c.offset for c in server.calls (op))


def test_a_default_export_with_a_name_joins_it (tmp_path):
    policy = tmp_path / "observer.lua"
    policy.write_text (OBSERVER)
    with nbdkit ([SCAN], gate (*NAMED), [BACKGROUND, f"scan-policy={policy}"],
                 VERBOSE) as server:
        for _ in range (2):
            h = server.connect ()
            start = len (server.log)
            h.pread (512, 4096)
            server.wait_line ("policy: read 4096$", start)
        assert our_errors (server) == []


def test_a_clone_of_a_default_export_with_a_name (tmp_path):
    """It is begun before a client has asked for the name, by which the plugin tells no
    exports."""
    disk = tmp_path / "disk.img"
    args = [f"clone-file={disk}", f"scan-size={BLOCK}"]
    with nbdkit ([SCAN, CLONE], gate (*NAMED), [*args, BACKGROUND], VERBOSE) as server:
        server.wait_line (FINISHED)
        h = server.connect ()
        assert h.pread (65536, 0) == pattern (0, 65536)
        assert offsets (server, "read") == list (range (0, 65536, BLOCK))
        assert our_errors (server) == []
    for background in [], [BACKGROUND]:
        with nbdkit ([SCAN, CLONE], gate (*NAMED), args + background) as server:
            h = server.connect ()
            assert h.pread (65536, 0) == pattern (0, 65536)
            assert server.calls ("read") == our_errors (server) == []


@pytest.mark.parametrize ("background_first", [True, False])
def test_a_clone_under_another_name (tmp_path, background_first):
    """A client may ask for the disk by any name, over a plugin that ignores it; and a clone
    that was begun under a name is that of the scan in the background, too."""
    args = [f"clone-file={tmp_path}/disk.img", f"scan-size={BLOCK}"]
    plugin = gate ("size=64K", "log=read")
    for background in [background_first, True]:
        with nbdkit ([SCAN, CLONE], plugin,
                     [*args, f"scan-background={background}"], VERBOSE) as server:
            if background:
                server.wait_line (FINISHED)
            h = server.connect ("any")
            assert h.pread (65536, 0) == pattern (0, 65536)
            assert len (server.connections) == 1
            assert not [e for e in our_errors (server) if e.startswith ("clone: ")]
    assert server.calls ("read") == []


def eval_plugin (calls, *more):
    """Its exports are full of the first letter of their names."""
    return ["eval", "thread_model=echo parallel", "get_size=echo 65536",
            "can_cache=echo native", f"open=echo ${{3:-none}} | tee -a {calls}",
            "pread=head -c $3 /dev/zero | tr '\\0' $2", *more]


no_shell = pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                               reason="the shell of the eval plugin dies under it")


@no_shell
def test_no_other_disk_for_a_default_export_with_a_name (tmp_path):
    """The plugin can't be told that name when a scan opens it, so what that opens may be
    another disk: each client's connection is scanned instead."""
    calls, disk = tmp_path / "calls", tmp_path / "disk.img"
    with nbdkit ([SCAN, CLONE], eval_plugin (calls, "default_export=echo disk"),
                 [BACKGROUND, f"scan-size={BLOCK}", f"clone-file={disk}"],
                 VERBOSE) as server:
        assert not calls.exists ()
        h = server.connect ()
        server.wait_line (FINISHED)
        assert h.pread (65536, 0) == b"d" * 65536
        [warning] = our_errors (server)
        assert "there is no scan in the background" in warning
    assert calls.read_text () == "disk\n"


@no_shell
@pytest.mark.parametrize ("default", [[], ["default_export="]])
def test_a_default_export_that_has_no_name (tmp_path, default):
    with nbdkit ([SCAN, CLONE], eval_plugin (tmp_path / "calls", *default),
                 [BACKGROUND, f"scan-size={BLOCK}"], VERBOSE) as server:
        if default:
            server.connect ()
        server.wait_line (FINISHED)
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
    policy.write_text (text.replace ("function (disk)", "function (disk) print 'here'")
                       .replace ("function ()", "function () print 'here'"))
    with nbdkit ([SCAN], gate ("size=64K", "quiet=cache"),
                 [BACKGROUND, f"scan-policy={policy}", *args], VERBOSE) as server:
        server.wait_line ("policy: here")
        if case == "thinking":
            server.wait_line ("policy: thinking")
        elif case in ("finished", "failed"):
            server.wait_line (FINISHED + "|error: scan: ")
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
        server.wait_joined (*(call.tid for call in held))
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


@pytest.mark.parametrize ("threads", [1, 4])
def test_a_source_that_cannot_be_opened (threads):
    """It says so once, and tries again: at the latest when a client could."""
    with nbdkit ([SCAN], gate ("size=64K", "fail=open:all"),
                 [BACKGROUND, f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        server.wait_line ("scan: warning: could not open the layer below")
        assert server.calls ("cache") == []
        server.send ("fail open 0")
        h = server.connect ()
        server.wait_line (FINISHED)
        assert h.pread (1000, 1000) == pattern (1000, 1000)
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, 65536, BLOCK))
        assert len (our_errors (server)) == 1


def test_a_layer_that_can_t_be_prepared (tmp_path):
    """Those below it have been, and have to learn that it was in vain: multi-conn
    would end the server."""
    args = [f"clone-file={tmp_path}/disk"]
    with nbdkit ([CLONE], gate ("size=1M"), args) as server:
        server.connect ()
    with nbdkit ([SCAN, CLONE, "multi-conn"], gate ("size=2M"),
                 ["scan-background=true", *args]) as server:
        server.wait_line ("could not open the layer below")


@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
@pytest.mark.parametrize ("threads", [1, 4])
def test_a_source_that_goes_away_and_comes_back (model, threads):
    """What was in flight is fetched again; nothing is missed."""
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache", f"model={model}"),
                 [BACKGROUND, f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        held = [server.next_call ("cache") for _ in range (threads)]
        server.send ("fail open 107")       # ENOTCONN
        server.send ("fail cache 107")
        server.send ("hold cache 0")
        for call in held:
            server.release (call, 107)
        server.wait_line ("scan: warning: could not open the layer below")
        server.send ("fail cache 0")
        server.send ("fail open 0")
        server.connect ()
        server.wait_line (FINISHED)
        assert {c.offset for c in server.calls ("cache")} == \
            set (range (0, 65536, BLOCK))
        offsets = [c.offset for c in server.calls ("cache")]
        assert all (offsets.count (call.offset) >= 2 for call in held)
        assert len (our_errors (server)) == 1


def test_threads_that_fail_together_do_not_put_off_the_next_attempt ():
    """One can open the source, and the others, which try at once, can't yet."""
    threads = 8
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache"),
                 [BACKGROUND, f"scan-size={BLOCK}", f"scan-threads={threads}"],
                 VERBOSE) as server:
        held = [server.next_call ("cache") for _ in range (threads)]
        server.send ("hold open 1")
        for call in held:
            server.release (call, 107)
        # All of them, so that nobody tries a second time before the last did once.
        for call in [server.next_call ("open") for _ in range (threads)]:
            server.release (call, 107)
        server.release (server.next_call ("open"))
        server.next_call ("cache")
        for _ in range (threads - 1):
            server.release (server.next_call ("open"), 107)
        # Not when all of them have doubled the time, one after the other.
        server.release (server.next_call ("open"))
        server.next_call ("cache")


def test_a_source_that_is_there_again_at_once ():
    """Its handle was of no use any more, as after a restart."""
    with nbdkit ([SCAN], gate ("size=64K", "hold=cache"),
                 [BACKGROUND, f"scan-size={BLOCK}"], VERBOSE) as server:
        call = server.next_call ("cache")
        server.send ("hold cache 0")
        server.release (call, 107)
        server.wait_line (FINISHED)
        offsets = [c.offset for c in server.calls ("cache")]
        assert offsets == [0] + list (range (0, 65536, BLOCK))
        assert server.calls ("cache")[1].connection == 2
        assert our_errors (server) == []


def test_a_bad_block_is_not_an_outage ():
    """It is opened again once, and left alone after that."""
    with nbdkit ([SCAN], gate (f"size={2 * BLOCK}", "fail=cache:all"),
                 [BACKGROUND, f"scan-size={BLOCK}"], VERBOSE) as server:
        server.wait_line (FINISHED)
        assert [c.offset for c in server.calls ("cache")] == [0, 0, BLOCK]
        assert sum ("gate: open" in line for line in server.log) == 2
        assert len (our_errors (server)) == 1


def start_origin (sock, log, size="64K"):
    """A plain nbdkit, whose log filter tells what is read."""
    process = subprocess.Popen (["nbdkit", "-f", "-U", sock, "--filter=log", "memory",
                                 size, f"logfile={log}", "logappend=true"])
    deadline = time.monotonic () + 60
    while True:
        assert process.poll () is None and time.monotonic () < deadline
        with socket.socket (socket.AF_UNIX) as client:
            if client.connect_ex (sock) == 0:
                return process
        time.sleep (0.001)


HALVES = """
    return function (disk)
      disk:prefetch (0)
      print "one"
      disk:wait ()
      for offset = disk.block, disk.size - 1, disk.block do
        disk:prefetch (offset)
      end
    end"""


def test_an_origin_that_comes_back_with_another_disk (tmp_path):
    """The scan ends, and clients of the new disk have scans of their own."""
    sock, log = str (tmp_path / "origin"), tmp_path / "log"
    policy = tmp_path / "halves.lua"
    policy.write_text (HALVES)
    origin = start_origin (sock, log)
    try:
        with nbdkit ([SCAN], ["nbd", f"socket={sock}"],
                     [BACKGROUND, "scan-method=read", f"scan-size={BLOCK}",
                      f"scan-policy={policy}"], VERBOSE) as server:
            server.wait_line ("policy: one")
            old = server.connect ()
            origin.kill ()
            origin.wait ()
            os.unlink (sock)
            origin = start_origin (sock, log, "128K")
            with pytest.raises (nbd.Error):
                old.pread (512, 0)          # which wakes the policy
            server.wait_line ("disk of another size now")
            server.connect ().pread (512, 100_000)
            server.wait_line (FINISHED)
    finally:
        origin.kill ()
        origin.wait ()


def test_an_origin_that_is_restarted (tmp_path):
    """As an edge server sees it, without the retry filter."""
    sock, log = str (tmp_path / "origin"), tmp_path / "log"
    policy = tmp_path / "halves.lua"
    policy.write_text (HALVES)
    origin = start_origin (sock, log)
    try:
        with nbdkit ([SCAN], ["nbd", f"socket={sock}"],
                     [BACKGROUND, "scan-method=read", f"scan-size={BLOCK}",
                      f"scan-policy={policy}"], VERBOSE) as server:
            server.wait_line ("policy: one")
            origin.kill ()
            origin.wait ()
            os.unlink (sock)
            origin = start_origin (sock, log)
            server.connect ().pread (512, 0)
            server.wait_line (FINISHED)
            assert not any ("failed" in e or "not open" in e
                            for e in our_errors (server))
        reads = re.findall (rf" Read .*offset=(\S+) count={BLOCK:#x} \.\.\.",
                            log.read_text ())
        assert {int (o, 0) for o in reads} == set (range (0, 65536, BLOCK))
    finally:
        origin.kill ()
        origin.wait ()


@pytest.mark.parametrize ("when", ["opening", "waiting"])
def test_exit_while_the_source_is_away (when):
    with nbdkit ([SCAN], gate ("size=64K", "fail=open:all"), [BACKGROUND]) as server:
        server.wait_line ("scan: warning: could not open the layer below")
        if when == "opening":
            server.send ("hold open 1")
            threading.Thread (target=lambda: pytest.raises (
                nbd.Error, server.connect), daemon=True).start ()
            server.next_call ("open")
        server.terminate ()


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


def test_a_default_export_that_is_not_wanted ():
    """As its clients' connections are not: neither before they come nor after."""
    with nbdkit ([SCAN], gate ("size=64K"), [BACKGROUND, "scan-exports=foo",
                                             f"scan-size={BLOCK}"], VERBOSE) as server:
        server.connect ().pread (BLOCK, 0)
        server.connect ("foo")
        server.wait_line (FINISHED)
        assert our_errors (server) == [
            "scan: warning: scan-background=true scans the default export, which is not "
            "one of scan-exports=foo by its empty name; there is no scan in the "
            "background, each connection to one of those is scanned by itself",
            "scan: warning: not one of scan-exports=foo, not scanning; scan-exports='' "
            "scans the export ''"]
        server.poll (lambda: len (server.calls ("cache")) >= 16, "all blocks")
    assert len (server.calls ("cache")) == 16


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
