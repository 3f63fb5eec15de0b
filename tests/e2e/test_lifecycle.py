# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""How the filter and its scans begin and end, also where nobody says goodbye."""

import socket
import struct
import threading

import pytest

from harness import PATIENCE_SECS, SCAN, gate, nbdkit, refused

VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK = 4096
SERIALIZED = "model=serialize_requests"


def test_the_filter_is_given_twice ():
    """Both would be one object with one set of variables."""
    assert refused ([SCAN, SCAN], gate ("size=64K")) == \
        ["--filter=scan is given 2 times; it can be used once"]


def connect_with_a_scan_that_opens (server):
    """A client whose scan is opening the plugin: the call that is held."""
    connected = threading.Thread (target=server.connect)
    connected.start ()
    server.release (server.next_call ("open"))
    connected.join ()
    return server.connections[-1], server.next_call ("open")


def test_a_disconnect_does_not_wait_for_a_scan_that_opens ():
    with nbdkit ([SCAN], gate ("size=64K", SERIALIZED, "hold=open"),
                 [f"scan-size={BLOCK}", "scan-threads=4"], VERBOSE) as server:
        h, opening = connect_with_a_scan_that_opens (server)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        server.release (opening)
        server.wait_line ("gate: close 2$")     # and nothing was fetched
        assert server.calls ("cache") == []
        assert not any (e.startswith ("scan: ") for e in server.errors ())


def test_the_server_ends_while_a_scan_without_a_client_opens ():
    with nbdkit ([SCAN], gate ("size=64K", SERIALIZED, "hold=open"),
                 [f"scan-size={BLOCK}"]) as server:
        h, opening = connect_with_a_scan_that_opens (server)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        server.terminate ()
        server.wait_joined (opening.tid)
        server.release (opening)
        server.process.wait ()
        assert server.calls ("cache") == []


def test_only_so_many_scans_are_left_to_themselves ():
    """Else a client that comes and goes could have any number of threads."""
    most = 16                           # SCANS_LEFT_MAX
    with nbdkit ([SCAN], gate ("size=64K", SERIALIZED, "hold=open"),
                 [f"scan-size={BLOCK}"]) as server:
        opening = []
        for i in range (most + 1):
            h, call = connect_with_a_scan_that_opens (server)
            opening.append (call)
            server.disconnect (h)
            if i < most:
                server.wait_line (f"gate: close {call.connection - 1}$")
        server.wait_joined (opening[-1].tid)
        for call in opening:
            server.release (call)
        server.wait_line (f"gate: close {opening[-1].connection - 1}$")


def vanish_in_the_handshake (server):
    """A client that asks for the default export and is gone before the answer."""
    client = socket.socket (socket.AF_UNIX)
    client.connect (server.socket)
    assert client.recv (18, socket.MSG_WAITALL)[:8] == b"NBDMAGIC"
    client.sendall (struct.pack (">I", 3))              # fixed newstyle, no zeroes
    client.sendall (b"IHAVEOPT" + struct.pack (">IIIH", 7, 6, 0, 0))    # GO
    call = server.next_call ("can_fua")
    client.close ()
    return call


@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
@pytest.mark.parametrize ("clients", [1, 12])
def test_clients_that_vanish_in_the_handshake (model, clients):
    """Their scans run by then.  nbdkit, told to end, closes none of them, and the
    filter must not be unloaded before they have ended."""
    with nbdkit ([SCAN], gate ("size=1M", "write=true", f"model={model}",
                               "hold=cache", "hold=can_fua"),
                 [f"scan-size={BLOCK}", "scan-threads=8",
                  "scan-forever=true"]) as server:
        held = [vanish_in_the_handshake (server) for _ in range (clients)]
        fetching = [server.next_call ("cache") for _ in range (clients * 8)]
        server.terminate ()
        server.wait_ending ()
        for call in held:
            server.release (call)
        server.wait_joined (*(call.tid for call in fetching))
        for call in fetching:
            server.release (call)
        server.process.wait (PATIENCE_SECS)
        assert len (server.calls ("cache")) == len (fetching)
