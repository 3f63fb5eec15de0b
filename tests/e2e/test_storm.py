# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Clients that leave, and servers that are stopped, at any moment of a scan."""

import concurrent.futures
import os

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit, pattern

CLIENTS = 24 if CHECK_WITH else 200
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]

# What a scan can be in the middle of: a policy, and the line of the log that says
# that it is there.
STATES = {
    "a decision": ("""return function (disk)
                        print "here"
                        while true do end
                      end""", "scan: policy: here"),
    "a prefetch": ("""return function (disk)
                        disk:prefetch (0)
                        disk:wait ()
                      end""", r"gate: begin \d+ cache"),
    "a wait": ("""return function (disk)
                    while not disk:closed () do
                      print "here"
                      disk:wait ()
                    end
                  end""", "scan: policy: here"),
    "a long wait": ("""return function (disk)
                         print "here"
                         disk:wait (1000000)
                       end""", "scan: policy: here"),
    "settling": ("""return function (disk)
                      disk:prefetch (0)
                      disk:settle ()
                    end""", r"gate: begin \d+ cache"),
    "reading for the policy": ("""return function (disk)
                                    disk:pread (0, 1)
                                    disk:wait ()
                                  end""", r"gate: begin \d+ read"),
}


def server_in (state, tmp_path, *args):
    """A server whose scans get into this state and stay."""
    text, _ = STATES[state]
    policy = tmp_path / "policy.lua"
    policy.write_text (text)
    return nbdkit ([SCAN], gate ("size=64K", "hold=cache", "hold=read"),
                   [f"scan-policy={policy}", "scan-size=4096", "scan-threads=4",
                    "scan-policy-timeout=1000", *args], VERBOSE)


def descriptors (server):
    return len (os.listdir (f"/proc/{server.pid}/fd"))


def is_as_before (server, threads, fds):
    """No thread and no descriptor is left of what has come and gone."""
    return len (server.threads ()) <= threads and descriptors (server) <= fds


@pytest.mark.parametrize ("state", STATES)
def test_a_client_leaves_during (state, tmp_path):
    with server_in (state, tmp_path) as server:
        threads, fds = len (server.threads ()), descriptors (server)
        h = server.connect ()
        server.wait_line (STATES[state][1])
        server.disconnect (h)
        for op in "cache", "read":
            server.send (f"hold {op} 0")
        for call in server.calls ():
            server.release (call)
        server.wait_line ("gate: close 1$")
        assert server.errors () == []           # it is nobody's fault
        second = server.connect ()
        assert second.pread (512, 1024) == pattern (1024, 512)
        server.disconnect (second)
        server.wait_line ("gate: close 2$")
        server.poll (lambda: is_as_before (server, threads, fds),
                     "threads and descriptors to go")


@pytest.mark.parametrize ("state", STATES)
def test_the_server_is_stopped_during (state, tmp_path):
    """Leaving the block checks that it ends well, and in time."""
    with server_in (state, tmp_path) as server:
        server.connect ()
        server.wait_line (STATES[state][1])
        server.terminate ()


@pytest.mark.parametrize ("state", STATES)
def test_the_server_is_stopped_during_a_background_scan (state, tmp_path):
    with server_in (state, tmp_path, "scan-background=true") as server:
        server.wait_line (STATES[state][1])
        server.terminate ()


def test_clients_leave_while_another_has_the_policy_lock (tmp_path):
    """All scans of an export share it; a client that leaves waits for none."""
    with server_in ("a decision", tmp_path) as server:
        server.connect ()
        server.wait_line (STATES["a decision"][1])
        for op in "cache", "read":
            server.send (f"hold {op} 0")
        for number in range (2, 6):
            h = server.connect ()
            assert h.pread (512, 1024) == pattern (1024, 512)
            server.disconnect (h)
            server.wait_line (f"gate: close {number}$")
        assert server.errors () == []


WAITER = """
return function (disk)
  while not disk:closed () do
    for _ in disk:reads () do end
    disk:wait (0.001)
  end
end
"""


@pytest.mark.parametrize ("policy", ["default", "adaptive", WAITER],
                          ids=["default", "adaptive", "a waiting one"])
def test_storm (policy, tmp_path):
    if policy == WAITER:
        policy = tmp_path / "waiter.lua"
        policy.write_text (WAITER)
    with nbdkit ([SCAN], gate ("size=256K", "quiet=read", "quiet=cache"),
                 [f"scan-policy={policy}", "scan-size=4096",
                  "scan-threads=3"]) as server:
        server.disconnect (server.connect ())
        threads, fds = len (server.threads ()), descriptors (server)

        def client (number):
            h = server.connect ()
            offset = number * 977 % 200000
            for i in range (number % 4):
                at = offset + i * 4096
                assert h.pread (100, at) == pattern (at, 100)
            server.disconnect (h)

        with concurrent.futures.ThreadPoolExecutor (16) as pool:
            for _ in pool.map (client, range (CLIENTS)):
                pass
        server.poll (lambda: is_as_before (server, threads, fds),
                     "threads and descriptors to go")
        assert server.errors () == []
