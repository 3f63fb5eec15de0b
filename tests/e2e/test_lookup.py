# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Where a policy is looked for: what nobody named is not looked for on disk, and
what somebody named is found once, at start-up."""

import os
import subprocess
import threading

import pytest

from harness import (CHECK_WITH, PATIENCE_SECS, SCAN, command, gate, nbdkit, refused)

FINISHED = "scan: finished scanning"
SIZE = 16384
ARGS = ["scan-size=4096"]

ONE_BLOCK = "return function (disk) disk:prefetch (8192) end\n"


def offsets (server):
    return [c.offset for c in server.calls ("cache")]


@pytest.mark.parametrize ("what", ["directory", "file"])
def test_nobody_asked_for_what_is_called_default (what, tmp_path, monkeypatch):
    if what == "directory":
        (tmp_path / "default").mkdir ()
    else:
        (tmp_path / "default").write_text ("error ('not asked for')\n")
    monkeypatch.chdir (tmp_path)
    with nbdkit ([SCAN], gate (f"size={SIZE}"), ARGS, ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
        assert offsets (server) == [0, 4096, 8192, 12288]
        assert server.errors () == []


def test_no_scan_waits_for_a_pipe (tmp_path):
    """It would hold the policy's lock, and the server could not end."""
    os.mkfifo (tmp_path / "fifo")
    (tmp_path / "mine.lua").write_text (
        "local args = ...\n"
        "return function (disk) scan.policy (args['then']) (disk) end\n")
    with nbdkit ([SCAN], gate (f"size={SIZE}"),
                 [*ARGS, f"scan-policy={tmp_path}/mine.lua",
                  f"scan-arg-then={tmp_path}/fifo"]) as server:
        server.connect ()
        server.wait_line ("not a regular file")


@pytest.mark.skipif (CHECK_WITH != "", reason="it is started by a shell")
@pytest.mark.parametrize ("parameters", ["scan-policy=<({})",
                                         "scan-policy=regions scan-file-regions=<({})"])
def test_what_a_command_prints_is_a_file (parameters):
    text = " ".join (command ([SCAN], ["null"],
                              [parameters.format ("echo 'error (\"no list\")'")]))
    run = subprocess.run (["bash", "-c", f"{text} -U - --run true"],
                          stderr=subprocess.PIPE, text=True, timeout=PATIENCE_SECS)
    assert run.returncode == 1
    assert "no list" in run.stderr


def test_a_fifo_is_read_to_its_end (tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo (fifo)

    def write ():
        with open (fifo, "w") as f:     # comes back when the server reads
            f.write ("-- " + "x" * 100000 + "\n")
            f.flush ()
            f.write ("error ('to its end')")

    writer = threading.Thread (target=write)
    writer.start ()
    errors = refused ([SCAN], ["null"], [f"scan-policy={fifo}"])
    writer.join ()
    assert len (errors) == 1 and f"{fifo}:2: to its end" in errors[0]


@pytest.mark.parametrize ("parameter", ["scan-policy", "scan-file-regions"])
def test_no_start_waits_for_a_fifo_that_nobody_writes_to (parameter, tmp_path):
    os.mkfifo (tmp_path / "fifo")
    errors = refused ([SCAN], ["null"], [f"{parameter}={tmp_path}/fifo"])
    assert len (errors) == 1
    assert f"{tmp_path}/fifo: a fifo that nobody writes to" in errors[0]


def test_a_name_is_a_built_in_first_and_a_path_is_a_file (tmp_path, monkeypatch):
    (tmp_path / "ahead.lua").write_text (ONE_BLOCK)
    (tmp_path / "mine.lua").write_text (ONE_BLOCK)
    monkeypatch.chdir (tmp_path)
    for name, found, warnings in (("ahead", [0, 4096, 8192, 12288], 0),
                                  ("ahead.lua", [0, 4096, 8192, 12288], 1),
                                  ("./ahead.lua", [8192], 0), ("mine.lua", [8192], 0)):
        with nbdkit ([SCAN], gate (f"size={SIZE}"), [*ARGS, f"scan-policy={name}"],
                     ["-v"]) as server:
            server.connect ()
            server.wait_line (FINISHED)
            assert offsets (server) == found
            assert len (server.errors ()) == warnings
            if warnings:
                assert "scan-policy=./ahead.lua" in server.errors ()[0]


@pytest.mark.parametrize ("mark", [b"", b"\xef\xbb\xbf"])
def test_what_is_not_lua_is_skipped (tmp_path, mark):
    """As by the lua command; the lines' numbers stay."""
    path = tmp_path / "mine.lua"
    for text, line in (b"#!/usr/bin/lua\nerror 'here'\n", 2), (b"error 'here'", 1):
        path.write_bytes (mark + text)
        [error] = refused ([SCAN], ["null"], [f"scan-policy={path}"])
        assert f"mine.lua:{line}: here" in error
    for text in b"", b"#", b"# only that":
        path.write_bytes (mark + text)
        [error] = refused ([SCAN], ["null"], [f"scan-policy={path}"])
        assert "but it returned nothing" in error


def test_a_policy_is_found_once (tmp_path, monkeypatch):
    """Not again by each export's state, when its name may mean something else."""
    monkeypatch.chdir (tmp_path)
    (tmp_path / "mine.lua").write_text (ONE_BLOCK)
    with nbdkit ([SCAN], gate (f"size={SIZE}", "exports=a,b"),
                 [*ARGS, "scan-exports=*", "scan-policy=mine.lua"], ["-v"]) as server:
        server.connect ("a")
        _, line = server.wait_line (FINISHED)
        (tmp_path / "mine.lua").write_text ("error ()\n")
        os.rename (tmp_path / "mine.lua", tmp_path / "moved")
        server.connect ("b")
        server.wait_line (FINISHED, line)
        assert offsets (server) == [8192, 8192]
        assert server.errors () == []


def test_a_policy_asks_for_a_built_in_first (tmp_path):
    (tmp_path / "first.lua").write_text ("return scan.policy ('reverse')\n")
    (tmp_path / "reverse.lua").write_text (ONE_BLOCK)
    with nbdkit ([SCAN], gate (f"size={SIZE}"),
                 [*ARGS, f"scan-policy={tmp_path}/first.lua"], ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
        assert offsets (server) == [12288, 8192, 4096, 0]


def test_a_policy_that_is_nowhere (tmp_path):
    (tmp_path / "first.lua").write_text ("return scan.policy ('second')\n")
    errors = refused ([SCAN], gate (), [f"scan-policy={tmp_path}/first.lua"])
    assert len (errors) == 1
    assert "there is no file 'second' and no built-in policy" in errors[0]
