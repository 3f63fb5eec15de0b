# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Whatever a policy does, clients are served, the server ends when told to, and
the operator is told once what is wrong.

Each file of tests/fixtures/bad-load and bad-run says at its top what it does and
what to expect: a part of the message, after the policy's path if it begins with
a line number; "nothing" if the policy is odd but right; "either" if that is for
the interpreter to decide, and it only must do no harm.
"""

import contextlib
import glob
import os
import re
import socket
import subprocess

import pytest

from harness import (CHECK_WITH, PATIENCE_SECS, SCAN, TOP, command, gate, nbdkit, pattern,
                     refused, unescape)

SIZE, BLOCK = 65536, 4096
ARGS = ["scan-size=4096", "scan-policy-timeout=0.3", "scan-policy-memory=8M"]
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
ENDED = "scan: finished scanning the plugin|error: scan: "


def fixtures (kind):
    paths = sorted (glob.glob (os.path.join (TOP, "tests/fixtures", kind, "*.lua")))
    assert paths
    # A checker makes what is slow very slow.
    if CHECK_WITH:
        paths = [path for path in paths if not name_of (path).startswith ("slow-")]
    if CHECK_WITH == "valgrind":
        paths = paths[::6]
    return [os.path.relpath (path, TOP) for path in paths]


def name_of (path):
    return os.path.basename (path)[:-len (".lua")]


def expectation (path):
    with open (os.path.join (TOP, path)) as f:
        text = re.search (r"^-- Expect: (.*)$", f.read (), re.M).group (1)
    if re.match (r"\d+: ", text):
        return f"{path}:{text}"
    return text


def scan_args (policy, *more):
    args = list (ARGS)
    if name_of (policy).startswith (("slow-", "depth")):
        # What is said of depth is not to depend on how fast the machine is.
        seconds = 60 if name_of (policy).startswith ("depth") else 1
        args[1:] = [f"scan-policy-timeout={seconds}", "scan-policy-memory=256M"]
    elif name_of (policy).startswith ("memory"):
        args[1] = "scan-policy-timeout=60"
    if CHECK_WITH and "took longer" not in expectation (policy):
        args[1] = "scan-policy-timeout=300"
    return args + [f"scan-policy={policy}", *more]


def check_report (server, expected):
    """One error, with its place and a traceback; what was expected of it."""
    errors = server.errors ()
    assert len (errors) == 1
    assert expected in errors[0]
    assert "tests/fixtures/bad-run/" in errors[0]
    tracebacks = [i for i, line in enumerate (server.log)
                  if line == "stack traceback:"]
    assert len (tracebacks) == 1
    # The message or the traceback has the line too, whatever was raised, but for
    # a tail call, of which Lua keeps none.
    report = errors[0] + "\n".join (line for line in server.log[tracebacks[0]:]
                                    if line.startswith ("\t"))
    assert re.search (r"tests/fixtures/bad-run/[\w-]+\.lua:\d+: |tail calls", report)


@pytest.fixture (autouse=True)
def at_top (monkeypatch):
    monkeypatch.chdir (TOP)


@pytest.mark.parametrize ("policy", fixtures ("bad-run"), ids=name_of)
def test_a_running_policy_does_no_harm (policy):
    expected = expectation (policy)
    with nbdkit ([SCAN], gate (f"size={SIZE}"), scan_args (policy),
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (ENDED)
        calls, failed = server.calls ("cache"), server.errors ()
        for offset in (0, 4000, 60000):
            assert h.pread (4096, offset) == pattern (offset, 4096)
        # Another client of this export is served too, and hears nothing new.
        other = server.connect ()
        assert other.pread (512, 1000) == pattern (1000, 512)
        if failed:
            assert server.calls ("cache") == calls
            assert server.errors () == failed

        server.disconnect (h)
        server.wait_line ("gate: close 1")
        assert other.pread (512, 2000) == pattern (2000, 512)
        if not CHECK_WITH:      # nbdkit leaks the handle when it gets the signal
            server.terminate ()
            server.disconnect (other)     # nbdkit waits for clients
            server.process.wait (PATIENCE_SECS)
    # Not before: the lines of one message come one by one.
    if expected == "nothing":
        assert server.errors () == []
    elif expected != "either":
        check_report (server, expected)


@pytest.mark.parametrize ("policy", [p for p in fixtures ("bad-run") if name_of (
    p).startswith (("loop", "slow"))], ids=name_of)
def test_a_policy_that_loops_lets_its_client_go (policy):
    """Its time is not up for an hour, and what a test waits for has to come sooner."""
    args = scan_args (policy, "scan-policy-timeout=3600")
    with nbdkit ([SCAN], gate (f"size={SIZE}"), args, VERBOSE) as server:
        h = server.connect ()
        assert h.pread (512, 1000) == pattern (1000, 512)
        if "loop-in-table-form" not in policy and "loop-in-open" not in policy:
            server.next_call ("cache")   # the loop comes next
        server.disconnect (h)
        server.wait_line ("gate: close 1")
        # It was not the policy's fault.
        if expectation (policy) not in ("nothing", "either") and \
           "took longer" in expectation (policy):
            assert server.errors () == []


@pytest.mark.parametrize ("policy", fixtures ("bad-load"), ids=name_of)
def test_a_policy_that_cannot_be_loaded_stops_the_server (policy):
    more = ["scan-arg-depth=x"] if "argument" in policy else []
    errors = refused ([SCAN], gate (f"size={SIZE}"), scan_args (policy, *more))
    assert len (errors) == 1
    assert expectation (policy) in errors[0]
    assert policy in errors[0] or "syntax-error.lua" in errors[0]


def refused_policy (path, *more):
    errors = refused ([SCAN], gate (f"size={SIZE}"), [f"scan-policy={path}", *more])
    assert len (errors) == 1
    assert str (path) in errors[0]
    return errors[0]


def test_a_policy_file_that_is_not_there_stops_the_server (tmp_path):
    assert "No such file" in refused_policy (tmp_path / "nowhere.lua")
    # A bare name may be a built-in; the message lists them.
    message = refused_policy ("nowhere")
    assert "there is no file 'nowhere' and no built-in policy of that name" in message
    assert "default, forever" in message


def test_a_read_that_does_not_fit_is_told (tmp_path):
    policy = tmp_path / "large.lua"
    policy.write_text ("""
        return function (disk)
          print ("large", disk:pread (0, 1 << 20))
          print ("small", #disk:pread (0, 4096))
        end""")
    with nbdkit ([SCAN], ["pattern", "1M"],
                 ["scan-policy-memory=1M", f"scan-policy={policy}"], ["-v"]) as server:
        server.connect ()
        server.wait_line ("policy: large\tnil\tENOMEM$")
        server.wait_line ("policy: small\t4096$")


def test_the_time_to_load_is_said_in_few_digits (tmp_path):
    """Some comes on top for the files, a byte at a time."""
    (tmp_path / "loop.lua").write_text ("while true do end")
    (tmp_path / "file").write_text ("x")
    [error] = refused ([SCAN], ["null"],
                       [*ARGS, f"scan-policy={tmp_path}/loop.lua",
                        f"scan-file-x={tmp_path}/file"])
    assert "the policy took longer than 0.3 seconds over" in error


def test_a_directory_is_no_policy (tmp_path):
    assert "Is a directory" in refused_policy (tmp_path)


def test_an_unreadable_policy_stops_the_server (tmp_path):
    # What not even root may open.
    assert "No such device" in refused_policy (make_socket (tmp_path / "p.lua"))


def make_socket (path):
    with socket.socket (socket.AF_UNIX) as s:
        s.bind (str (path))
    return path


def test_bytecode_is_refused (tmp_path):
    policy = tmp_path / "binary.lua"
    with open (policy, "wb") as f:
        subprocess.run (["lua5.4", "-e", "io.write (string.dump (function () "
                         "return function () end end))"], check=True, stdout=f)
    assert "attempt to load a binary chunk (mode is 't')" in refused_policy (policy)


def test_a_module_must_be_a_regular_file (tmp_path):
    """A pipe would hold up the scan for ever."""
    policy = tmp_path / "p.lua"
    policy.write_text ("return function () require 'pipe' end\n")
    os.mkfifo (tmp_path / "pipe.lua")
    with nbdkit ([SCAN], gate (f"size={SIZE}"), [f"scan-policy={policy}"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (ENDED)
        assert f"{tmp_path}/pipe.lua: not a regular file" in server.errors ()[0]
        assert h.pread (512, 0) == pattern (0, 512)


def test_a_policy_beside_another_is_found_and_a_path_if_it_was_given (tmp_path):
    (tmp_path / "first.lua").write_text (
        "local args = ...\nreturn scan.policy (args.go or 'second')\n")
    (tmp_path / "second.lua").write_text (
        "return function (disk) disk:prefetch (4096) end\n")
    (tmp_path / "sub").mkdir ()
    (tmp_path / "sub/third.lua").write_text (
        "return function (disk) disk:prefetch (8192) end\n")
    for more, offset in ([], 4096), ([f"scan-arg-go={tmp_path}/sub/third.lua"], 8192):
        with nbdkit ([SCAN], gate (f"size={SIZE}"),
                     ["scan-size=4096", f"scan-policy={tmp_path}/first.lua", *more],
                     VERBOSE) as server:
            server.connect ()
            server.wait_line (ENDED)
            assert [c.offset for c in server.calls ("cache")] == [offset]
            assert server.errors () == []


# Lua cuts paths to 60 characters.
@pytest.mark.parametrize ("text, line", [
    ("error ('a fault')\n", 1), ("return function () error ('a fault') end\n", 1),
], ids=["load", "run"])
def test_a_long_path_is_named_in_full_and_once (tmp_path, text, line):
    directory = tmp_path / ("d" * 40) / ("e" * 40)
    directory.mkdir (parents=True)
    policy = directory / "policy.lua"
    policy.write_text (text)
    if text.startswith ("error"):
        messages = refused ([SCAN], gate (), [f"scan-policy={policy}"])
    else:
        with nbdkit ([SCAN], gate (), [f"scan-policy={policy}"], VERBOSE) as server:
            server.connect ()
            server.wait_line (ENDED)
            messages = server.errors ()
    assert len (messages) == 1
    first = messages[0].splitlines ()[0]
    assert first.endswith (f"scan: {policy}:{line}: a fault")


@pytest.mark.parametrize ("when", ["load", "run"])
def test_a_fault_in_our_own_code_is_told_with_the_users_line (when, tmp_path):
    policy = tmp_path / "own.lua"
    fault = "\nlocal found = require 'scan.partitions'.find (5)\n"
    policy.write_text (fault if when == "load" else f"return function () {fault} end")
    with contextlib.ExitStack () as stack:
        if when == "load":
            [error] = refused ([SCAN], gate (), [f"scan-policy={policy}"])
        else:
            server = stack.enter_context (nbdkit ([SCAN], gate (),
                                                  [f"scan-policy={policy}"], VERBOSE))
            server.connect ()
            server.wait_line (ENDED)
            [error] = server.errors ()
    assert f"scan: {policy}:2: attempt to index a number value" in error


TRACEBACK = "stack traceback:"


@pytest.mark.parametrize ("text, said", [
    ("x = = 1\n", "own.lua:1: unexpected symbol near '='"),
    ("return scan.policy 'replay'\n", "scan.open: no file 'trace' was given; use "),
], ids=["syntax", "a built-in's fault"])
def test_no_traceback_where_nothing_of_the_users_runs (text, said, tmp_path):
    (tmp_path / "own.lua").write_text (text)
    error, lines = refused_lines ([f"scan-policy={tmp_path}/own.lua"])
    assert said in error and TRACEBACK not in lines
    error, lines = refused_lines (["scan-policy=replay"])
    assert error == ("scan: policies/replay.lua:LINE: scan.open: no file 'trace' was "
                     "given; use scan-file-trace=FILE")
    assert TRACEBACK not in lines


def test_a_traceback_where_the_policy_is_the_users (tmp_path):
    (tmp_path / "own.lua").write_text (
        "local function f () require ('scan.args').size ({ x = 'y' }, 'x') end\nf ()\n")
    error, lines = refused_lines ([f"scan-policy={tmp_path}/own.lua"])
    assert "scan-arg-x: a size like 64K or 2M expected, got 'y'" in error
    assert TRACEBACK in lines and any ("own.lua:2: in " in line for line in lines)


def refused_lines (args):
    """The one error, its lines of the policy not counted, and all that was printed."""
    if CHECK_WITH:
        pytest.skip ("it starts a server of its own, and is about messages")
    run = subprocess.run ([*command ([SCAN], ["null"], args), "-U", "-", "--run", ":"],
                          stderr=subprocess.PIPE, text=True)
    assert run.returncode != 0
    lines = [unescape (line) for line in run.stderr.splitlines ()]
    [error] = [line.split ("error: ", 1)[1] for line in lines if "error: " in line]
    return re.sub (r"\.lua:(?!1:)\d+:", ".lua:LINE:", error), lines


# What a policy may not do to another scan of its export; the first connection runs
# the one function, the second the other.
TWO_SCANS = {
    "asks the disk of a scan that goes on":
        ("disk:wait ()", "kept:idle ()", "this disk belongs to another scan"),
    "asks what is missing of another scan":
        ("disk:wait ()", "kept:missing (0)", "LINE: this disk belongs to another scan"),
    "prefetches with the disk of another scan":
        ("disk:wait ()", "kept:prefetch (0)", "this disk belongs to another scan"),
    "may ask whether another scan's client has gone":
        ("disk:wait ()", "assert (not kept:closed ())", None),
    "asks the disk of a scan that has ended":
        ("return", "kept:reads ()", "this disk belongs to another scan"),
    "ends another scan":
        ("disk:wait ()", "coroutine.close (thread)", None),
    "runs another scan":
        ("disk:wait ()", "assert (coroutine.resume (thread))", None),
}


@pytest.mark.parametrize ("case", TWO_SCANS)
def test_scans_of_an_export_do_no_harm_to_each_other (case, tmp_path):
    first, second, expected = TWO_SCANS[case]
    policy = tmp_path / "two.lua"
    policy.write_text (f"""\
local kept, thread
return function (disk)
  if not kept then
    kept, thread = disk, coroutine.running ()
    print ("kept")
    {first}
  else
    {second}
  end
end
""")
    with nbdkit ([SCAN], gate (f"size={SIZE}"), [f"scan-policy={policy}"],
                 VERBOSE) as server:
        h = server.connect ()
        _, line = server.wait_line ("scan: policy: kept")
        other = server.connect ()
        server.wait_line (ENDED, line)
        if expected:
            server.wait_line ("error: scan: ")
            assert expected.replace ("LINE", f"{policy}:8") in server.errors ()[0]
        for client in h, other:
            assert client.pread (512, 1000) == pattern (1000, 512)
        server.disconnect (h)
        server.wait_line ("gate: close 1")


def test_what_a_scan_was_loading_when_its_client_left_is_loaded_anew (tmp_path):
    (tmp_path / "long.lua").write_text ("""\
begun = (begun or 0) + 1
print ("begun", begun)
while begun == 1 do end
return 5
""")
    (tmp_path / "late.lua").write_text (
        'return function (disk) assert (require "long" == 5) end')
    with nbdkit ([SCAN], gate (f"size={SIZE}"),
                 [f"scan-policy={tmp_path}/late.lua", "scan-policy-timeout=3600"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line ("scan: policy: begun\t1")
        server.disconnect (h)
        _, line = server.wait_line ("gate: close 1")
        server.connect ()
        server.wait_line (ENDED, line)
        assert server.errors () == []


def test_a_disk_is_empty_once_its_scan_has_ended (tmp_path):
    policy = tmp_path / "kept.lua"
    policy.write_text ("""\
local kept
return function (disk)
  if kept then
    assert (kept:closed ())
    kept:failures ()
  end
  kept = disk
end
""")
    with nbdkit ([SCAN], gate (f"size={SIZE}"), [f"scan-policy={policy}"],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (ENDED)
        server.disconnect (h)
        _, line = server.wait_line ("gate: close 1")
        server.connect ()
        server.wait_line ("error: scan: ", line)
        assert "kept.lua:5: this disk belongs to a scan that has ended" in \
            server.errors ()[0]


def test_one_export_with_a_bad_policy_leaves_the_others_alone (tmp_path):
    policy = tmp_path / "picky.lua"
    policy.write_text ("""\
return function (disk)
  disk:prefetch (0)
  if disk.export == "bad" then error ("not this one") end
  disk:prefetch (4096)
end
""")
    with nbdkit ([SCAN], gate (f"size={SIZE}", "exports=bad,good"),
                 ["scan-size=4096", "scan-exports=*", f"scan-policy={policy}"],
                 VERBOSE) as server:
        server.connect ("bad")
        _, line = server.wait_line ("error: scan: ")
        server.connect ("good")
        server.wait_line ("scan: finished scanning", line)
        assert [c.offset for c in server.calls ("cache")] == [0, 0, 4096]
        assert len (server.errors ()) == 1
