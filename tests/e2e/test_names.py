# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Names that a client chooses, and bytes of files, can't be taken for something
else: not in the log, not in the counters."""

import re
import shutil
import socket
import struct
import subprocess

import pytest

from harness import SCAN, dump_config, gate, nbdkit, refused
from test_reports import FINISHED

VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]

# Names that a careless program takes for each other.
NAMES = [b"", b"a", b"a\nb", b"a\\nb", b"a\\", b'a"', b"a'b", b"\xff", b"\xfe",
         b"\\xff", "\N{REPLACEMENT CHARACTER}ff".encode (), b"\xed\xa0\x80",
         "\N{SNOWMAN}".encode (), b"\x1b[31mred", b"a\rb", b"a\tb", b"\xc3"]


def visit (server, name):
    """Connect to an export of any name, which libnbd's Python can't, and leave once
    the handshake is over."""
    with socket.socket (socket.AF_UNIX) as s:
        s.connect (server.socket)
        stream = s.makefile ("rwb")
        assert stream.read (16) == b"NBDMAGICIHAVEOPT"
        stream.read (2)
        go = struct.pack (">I", len (name)) + name + struct.pack (">H", 0)
        stream.write (struct.pack (">I", 3) + b"IHAVEOPT"
                      + struct.pack (">II", 7, len (go)) + go)
        stream.flush ()
        while True:
            _, _, reply, length = struct.unpack (">QIII", stream.read (20))
            stream.read (length)
            assert reply < 1 << 31, f"reply {reply:x}"
            if reply == 1:      # ACK
                return


def labels (path):
    """The exports of which a file of counters tells, and that each line is one."""
    with open (path, newline="") as f:
        text = f.read ()        # is UTF-8
    found = re.findall (r'^nbdkit_scan_size_bytes\{export="((?:[^"\\\n]|\\.)*)"\} \d+$',
                        text, re.M)
    lines = re.findall ("^nbdkit_scan_size_bytes", text, re.M)
    assert len (lines) == len (found)
    return found


def server_of (*args):
    return nbdkit ([SCAN], gate ("size=64K", "quiet=open", "quiet=cache"), args, VERBOSE)


def test_each_export_has_its_own_series (tmp_path):
    stats = tmp_path / "stats"
    with server_of ("scan-exports=*", f"scan-stats={stats}") as server:
        for name in NAMES:
            visit (server, name)
    found = labels (stats)
    assert len (set (found)) == len (found) == len (NAMES)
    for label in ("a", r"a\nb", r"a\\nb", r'a\"', "a'b", "\N{SNOWMAN}",
                  "\N{REPLACEMENT CHARACTER}ff", "\N{REPLACEMENT CHARACTER}fe",
                  r"\\xff"):
        assert label in found
    if shutil.which ("promtool"):
        check = subprocess.run (["promtool", "check", "metrics"], text=True,
                                stdin=open (stats), stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT)
        assert check.returncode == 0 and check.stdout == ""


@pytest.mark.parametrize ("name, shown", [
    (b"x\nnbdkit: error: all is lost", rb"'x\nnbdkit: error: all is lost'"),
    (b"\x1b[2J\xff\xc2\x9b", rb"'\x1b[2J\xff\xc2\x9b'"),
    (b"it's \\ and \xe2\x80\xae", rb"'it\'s \\ and \xe2\x80\xae'"),
    (b"n" * 4000, b"'" + b"n" * 506 + b"...'")],
    ids=["newline", "control", "quote", "long"])
def test_a_name_cannot_forge_a_message (name, shown):
    with nbdkit ([SCAN], gate ("size=64K", "quiet=open")) as server:
        visit (server, name)
        server.wait_line ("error: .*not scanning")
        [error] = [line for line in server.raw if b"error" in line]
        assert error.endswith (b"not the default export, not scanning; "
                               b"scan-exports=" + shown
                               + b" scans the export " + shown)


# Later nbdkits, such as 1.42, escape what they print themselves, and so a second time.
RAW = tuple (map (int, dump_config ("version").split (".")[:2])) < (1, 34)


def plain (line):
    return line if RAW else line.replace (b"\\\\", b"\\")


def test_totals_in_the_debug_log ():
    """One line for an export, whatever it is called."""
    with server_of ("scan-exports=*") as server:
        visit (server, b"a\nb")
    assert any (rb"scan: export 'a\nb': " in plain (line) for line in server.raw)


def test_bytes_of_a_trace_do_not_reach_the_terminal (tmp_path):
    trace = tmp_path / "trace"
    trace.write_bytes (b"\x1b[2J\x07\xff\xfe not a trace\n")
    [error, *_] = refused ([SCAN], ["memory", "1M"],
                           ["scan-policy=replay", f"scan-file-trace={trace}"])
    assert r"\x1b[2J\x07\xff\xfe not a trace" in error


def test_what_a_policy_prints (tmp_path):
    """Its lines are its own, but for what would move the cursor."""
    policy = tmp_path / "prints.lua"
    policy.write_text (r"""
        return function (disk) print ("\27[2J one\ntwo\t\\ \xff") end""")
    with server_of (f"scan-policy={policy}") as server:
        server.connect ()
        server.wait_line (FINISHED)
        text = b"\n".join (plain (line) for line in server.raw)
        assert rb"policy: \x1b[2J one" in text
        assert rb"two TAB\ \xff".replace (b" TAB", b"\t") in (
            text if RAW else text.replace (rb"\n", b"\n").replace (rb"\t", b"\t"))
