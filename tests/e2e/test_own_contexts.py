# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Plugins that take one request at a time on each handle: every scan thread has a
context of its own.

The gate plugin aborts the server if two requests are at one handle.
"""

import concurrent.futures
import os
import resource
import threading

import nbd
import pytest

from harness import CHECK_WITH, CLONE, SCAN, gate, nbdkit, pattern

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
MODEL = "model=serialize_requests"
BLOCK = 4096


no_shell = pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                               reason="the shell of the eval plugin dies under it")


def opened (server):
    return sum ("gate: open " in line for line in list (server.log))


# Here it is meant.
HINT = "scan: warning: scan-method=read, and no cow-on-read=true"


def our_errors (server):
    """Without what nbdkit says because the gate plugin asks for an export name
    where there is none (it can do without)."""
    return [e for e in server.errors () if e.startswith ("scan: ")
            and not e.startswith (HINT)]


def closed (server):
    return sum ("gate: close " in line for line in list (server.log))


@pytest.mark.parametrize ("threads", [1, 4])
def test_each_thread_has_its_own_handle (threads):
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "hold=cache"),
                 [f"scan-size={BLOCK}", f"scan-threads={threads}"]) as server:
        h = server.connect ()
        held = [server.next_call ("cache") for _ in range (threads)]
        users = {call.connection for call in held}
        assert len (users) == threads and 1 not in users
        assert h.pread (1000, 30000) == pattern (30000, 1000)
        server.send ("hold cache 0")
        for call in held:
            server.release (call)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert opened (server) == closed (server)
        assert our_errors (server) == []


@pytest.mark.parametrize ("method", ["cache", "read"])
def test_busy_clients_and_scans (method):
    """The plugin would abort; and every scan fetches what it is to fetch."""
    clients, blocks = 3, 64
    with nbdkit ([SCAN], gate (f"size={BLOCK * blocks}", MODEL, "log=read"),
                 [f"scan-size={BLOCK}", "scan-threads=4", f"scan-method={method}",
                  "scan-ahead=false", "scan-clock=false"], VERBOSE) as server:
        def work (h):
            for i in range (300):
                at = i * 7919 % (BLOCK * blocks - 512)
                assert h.pread (512, at) == pattern (at, 512)

        handles = [server.connect () for _ in range (clients)]
        with concurrent.futures.ThreadPoolExecutor (clients) as pool:
            list (pool.map (work, handles))     # raises what one of them did
        start = 0
        for _ in range (clients):
            _, start = server.wait_line (FINISHED, start)
        for h in handles:
            server.disconnect (h)
        server.poll (lambda: opened (server) == closed (server), "all to close")
        calls = [c.offset for c in server.calls ("cache" if method == "cache"
                                                 else "read") if c.count == BLOCK]
        assert sorted (calls) == \
            sorted (list (range (0, BLOCK * blocks, BLOCK)) * clients)
        assert our_errors (server) == []


def test_another_export ():
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "exports=a,b"),
                 [f"scan-size={BLOCK}", "scan-exports=b"],
                 ["-e", "b", *VERBOSE]) as server:
        h = server.connect ("b")
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert len (server.calls ("cache")) == 16
        assert our_errors (server) == []


def test_the_split_plugin (tmp_path):
    parts = []
    for i in range (3):
        part = tmp_path / str (i)
        part.write_bytes (bytes ([i]) * 100_000)
        parts.append (str (part))
    with nbdkit ([SCAN, "log"], ["split", *parts],
                 [f"scan-size={BLOCK}", "scan-threads=3", "scan-method=read",
                  f"logfile={tmp_path}/log"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        assert h.pread (200_000, 50_000) == \
            b"\0" * 50_000 + b"\1" * 100_000 + b"\2" * 50_000
        assert our_errors (server) == []
    log = (tmp_path / "log").read_text ()
    assert log.count (f"count={hex (BLOCK)} ...") == 300_000 // BLOCK


def test_the_split_plugin_is_not_asked_for_extents (tmp_path):
    """The server would die of a range that ends within a file, such as the cow filter
    asks for beside what it has."""
    part = tmp_path / "part"
    part.write_bytes (b"x" * (1 << 20))
    policy = tmp_path / "policy.lua"
    policy.write_text ("return function (disk)\n"
                       "  disk:prefetch (512 * 1024)\n"
                       "  disk:settle ()\n"
                       "  local data = disk:next_data (0)\n"
                       "  print ('data at', data)\n"
                       "end\n")
    with nbdkit ([SCAN, "cow"], ["split", str (part), str (part)],
                 ["cow-on-read=true", "scan-method=read", f"scan-policy={policy}",
                  "scan-size=64K"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line ("scan: policy: data at\t0$")
        server.wait_line (FINISHED)
        assert h.pread (3, 5) == b"xxx"
        assert our_errors (server) == []


def test_the_split_plugin_is_not_asked_to_cache (tmp_path):
    """Its .cache never comes back, and no client could be disconnected."""
    part = tmp_path / "part"
    part.write_bytes (b"x" * 100_000)
    with nbdkit ([SCAN], ["split", str (part)]) as server:
        h = server.connect ()
        assert h.pread (3, 5) == b"xxx"
        assert len (server.errors ()) == 1
        assert "clone-file=FILE" in server.errors ()[0]


def test_the_split_plugin_below_the_clone_filter (tmp_path):
    """That reads, whoever prefetches, and asks for no extents: the server would die."""
    part = tmp_path / "part"
    part.write_bytes (b"x" * (1 << 20))
    with nbdkit ([SCAN, CLONE], ["split", str (part), str (part)],
                 [f"clone-file={tmp_path}/disk", "scan-size=64K"],
                 VERBOSE) as server:
        h = server.connect (prepare=lambda h: h.add_meta_context (nbd.CONTEXT_BASE_ALLOCATION))
        server.wait_line (FINISHED)
        h.cache (4096, 4096)
        h.block_status (4096, 0, lambda *_: 0)
        assert h.pread (3, 5) == b"xxx"
        assert our_errors (server) == []
    assert (tmp_path / "disk").read_bytes () == part.read_bytes () * 2


def test_a_client_that_prefetches_over_clone_and_split (tmp_path):
    part = tmp_path / "part"
    part.write_bytes (b"x" * (1 << 20))
    with nbdkit ([CLONE], ["split", str (part), str (part)]) as server:
        h = server.connect (prepare=lambda h: h.add_meta_context (nbd.CONTEXT_BASE_ALLOCATION))
        h.block_status (4096, 0, lambda *_: 0)
        h.cache (4096, 0)
        assert h.pread (3, 5) == b"xxx"


def test_threads_that_cannot_open_the_source ():
    """The first open is the client's, the next the first thread's.  The others carry on
    without those that fail."""
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "fail=open:3-4"),
                 [f"scan-size={BLOCK}", "scan-threads=8"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        assert h.pread (512, 512) == pattern (512, 512)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert sorted (c.offset for c in server.calls ("cache")) == \
            list (range (0, 65536, BLOCK))
        warnings = our_errors (server)
        assert len (warnings) <= 1 and all ("for a scan thread" in w for w in warnings)


def test_a_thread_that_can_open_the_source_later ():
    """All threads are of use then."""
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "hold=cache", "fail=open:3-4"),
                 [f"scan-size={BLOCK}", "scan-threads=3"], VERBOSE) as server:
        server.connect ()
        held = [server.next_call ("cache") for _ in range (3)]
        assert len ({call.connection for call in held}) == 3
        assert len (our_errors (server)) == 1


def scan_threads (server):
    names = []
    for task in server.threads ():
        with open (f"/proc/{server.pid}/task/{task}/comm") as f:
            names.append (f.read ().strip ())
    return names.count ("nbdkit-scan")


def test_a_source_that_takes_no_more_connections ():
    """It is not asked by each of the others."""
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "hold=cache", "fail=open:4-99"),
                 [f"scan-size={BLOCK}", "scan-threads=8"], VERBOSE) as server:
        server.connect ()
        held = [server.next_call ("cache") for _ in range (2)]
        server.wait_line ("scan: warning: could not open the layer below")
        for _ in range (10):
            server.release (held.pop (0))
            held.append (server.next_call ("cache"))
        assert len ({call.connection for call in held}) == 2
        # Those two, and one that tries again.
        assert scan_threads (server) == 3


def test_no_thread_can_open_the_source ():
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "fail=open:2-99"),
                 [f"scan-size={BLOCK}", "scan-threads=8"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line ("scan: warning: could not open the layer below")
        assert h.pread (512, 512) == pattern (512, 512)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert server.calls ("cache") == []
        assert len (our_errors (server)) == 1


def test_the_source_is_down_for_a_moment_when_a_client_connects (tmp_path):
    """Its scan begins when it can, and not before: as the counters say."""
    stats = tmp_path / "stats"
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "fail=open:2-2"),
                 [f"scan-size={BLOCK}", f"scan-stats={stats}"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        lines = list (server.log)
        at = [next (i for i, line in enumerate (lines) if what in line)
              for what in ("could not open the layer below", "gate: open 3 ", "gate: begin")]
        assert at == sorted (at)
        assert [c.offset for c in server.calls ("cache")] == list (range (0, 65536, BLOCK))
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert len (our_errors (server)) == 1
    assert 'state{export="",state="finished"} 1' in stats.read_text ()


def test_a_client_connects_while_the_source_is_slow_to_open_again ():
    """Connecting waits for the client's own open, and for no other."""
    with nbdkit ([SCAN], gate ("size=64K", MODEL, "log=read"),
                 [f"scan-size={BLOCK}"], VERBOSE) as server:
        # The connection's own open is let through, the scan thread's is held.
        server.send ("hold open 1")
        connected = threading.Thread (target=server.connect)
        connected.start ()
        server.release (server.next_call ("open"))
        second = server.next_call ("open")
        connected.join ()
        h = server.connections[0]
        assert h.pread (512, 512) == pattern (512, 512)
        server.release (second)
        server.wait_line (FINISHED)


def eval_plugin (*, names, sizes, model, default=None, cache=""):
    """An eval plugin whose exports have names."""
    case = " ".join (f"*:{name}) echo {size};;" for name, size in sizes.items ())
    plugin = ["eval",
              "open=echo h:$3",
              f"get_size=case $2 in {case} *) echo {sizes[default or '']};; esac",
              f"thread_model=echo {model}",
              "can_cache=echo native",
              f"cache={cache or ':'}",
              "list_exports=echo NAMES; " + "; ".join (f"echo {n}" for n in names),
              "pread=head -c $3 /dev/zero"]
    return plugin + ([f"default_export=echo {default}"] if default else [])


@no_shell
def test_never_the_wrong_disk (tmp_path):
    """nbdkit can't tell the plugin the name of the export when a scan thread opens
    it; this plugin would open its default export then."""
    calls = tmp_path / "calls"
    plugin = eval_plugin (names=["", "small"], sizes={"": 65536, "small": 8192},
                          model="serialize_requests",
                          cache=f"echo $2 $3 $4 >> {calls}")
    with nbdkit ([SCAN], plugin, [f"scan-size={BLOCK}", "scan-exports=*"],
                 VERBOSE) as server:
        h = server.connect ("small")
        assert h.get_size () == 8192
        server.wait_line ("scan: warning: the eval plugin.*not scanning")
    assert not calls.exists ()


@no_shell
def test_a_default_export_with_a_name (tmp_path):
    calls = tmp_path / "calls"
    plugin = eval_plugin (names=["disk"], sizes={"disk": 16384}, default="disk",
                          model="parallel", cache=f"echo $2 $3 $4 >> {calls}")
    with nbdkit ([SCAN], plugin, [f"scan-size={BLOCK}"], VERBOSE) as server:
        server.connect ()
        server.wait_line (FINISHED)
        assert our_errors (server) == []
    assert calls.read_text ().split ("\n")[:4] == \
        [f"h:disk {BLOCK} {BLOCK * i}" for i in range (4)]


@pytest.mark.parametrize ("background", [False, True])
def test_descriptors_are_left_for_clients (background):
    """nbdkit can't accept a client without, nor say so less than a million times."""
    most = 64
    with nbdkit ([SCAN], gate ("size=16M", "model=serialize_requests",
                               "descriptors=true", "hold=cache",
                               *(["hold=open"] if background else [])),
                 [f"scan-size={BLOCK}", "scan-threads=64",
                  f"scan-background={background}"]) as server:
        before = len (os.listdir (f"/proc/{server.pid}/fd"))
        resource.prlimit (server.pid, resource.RLIMIT_NOFILE, (most, most))
        if background:
            first = server.next_call ("open")
            server.send ("hold open 0")
            server.release (first)
        server.connect ()
        server.wait_line (f"half of the {most} file descriptors.*are in use")
        # Two or three for each client.
        assert len (os.listdir (f"/proc/{server.pid}/fd")) <= before + 3 + most / 2
        for _ in range (4):
            server.connect ().pread (512, 0)
        assert len (server.calls ("cache")) > 4
