# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-record, scan-trace and the policy learn: what is in the file, and what the
next start makes of it."""

import contextlib
import os
import pwd
import re
import subprocess
import time

import pytest

from harness import (CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, file_limit, gate, kill_at_once,
                     nbdkit, refused)

BLOCK = 4096
SIZE = 64 * BLOCK
FINISHED = "scan: finished scanning the plugin"
LEARNT = r"^scan: \S*trace: learnt (\d+) blocks of 4K: (.*)"


def contents (path):
    """The ranges of a trace in blocks, each with the runs that read it."""
    lines = path.read_text ().splitlines ()
    assert lines[0].startswith ("# nbdkit scan trace: ")
    words = [line.split () for line in lines[1:]]
    assert all (w[2] == "#" for w in words)
    return [(int (w[0]) / BLOCK, int (w[1]) / BLOCK, w[3]) for w in words]


def recorded (*args, policy="reverse", options=()):
    return nbdkit ([SCAN], gate (f"size={SIZE}"),
                   [f"scan-policy={policy}", f"scan-size={BLOCK}", *args],
                   ["-v", *options])


def test_second_start_replays_the_first (tmp_path):
    trace = tmp_path / "trace"
    args = [f"scan-trace={trace}", "scan-arg-then=reverse"]
    with recorded (*args, policy="learn") as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        # As reverse does.
        assert server.calls ("cache")[0].offset == SIZE - BLOCK
        for block in 40, 7, 8, 40, 3:
            h.pread (BLOCK, block * BLOCK)
    assert contents (trace) == [(40, 1, "1"), (7, 2, "1"), (3, 1, "1")]
    assert os.listdir (tmp_path) == ["trace"]

    with recorded (*args, "scan-arg-gap=0", policy="learn") as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        calls = [c.offset // BLOCK for c in server.calls ("cache")]
        assert calls[:5] == [40, 7, 8, 3, 63]
        assert sorted (calls) == list (range (64))
        for block in 8, 50, 40:
            h.pread (BLOCK, block * BLOCK)
    # What both read comes first.
    assert contents (trace) == [(8, 1, "11"), (40, 1, "11"), (50, 1, "10"),
                                (7, 1, "01"), (3, 1, "01")]


def test_a_link_stays_one (tmp_path):
    """The file that it leads to is put in place anew."""
    (tmp_path / "real").mkdir ()
    real, link = tmp_path / "real" / "trace", tmp_path / "link"
    real.touch ()
    link.symlink_to ("real/trace")
    with recorded (f"scan-record={link}") as server:
        server.connect ().pread (BLOCK, 0)
    assert contents (real) == [(0, 1, "1")]
    assert os.readlink (link) == "real/trace"


def test_any_policy_and_its_client (tmp_path):
    """While the scan waits for its first prefetch, after it is over, and from the
    first connection and the second."""
    trace = tmp_path / "trace"
    with nbdkit ([SCAN], gate (f"size={SIZE}", "hold=cache"),
                 ["scan-policy=reverse", f"scan-size={BLOCK}",
                  f"scan-record={trace}"], ["-v"]) as server:
        h = server.connect ()
        first = server.next_call ("cache")
        h.pread (512, 30 * BLOCK + 512)
        server.send ("hold cache 0")
        server.release (first)
        server.wait_line (FINISHED)
        h.pread (BLOCK, 20 * BLOCK)
        server.disconnect (h)
        server.wait_line ("debug: scan: close")
        h = server.connect ()
        h.pread (3 * BLOCK, 10 * BLOCK - 1)
    assert [(o, c) for o, c, _ in contents (trace)] == [(30, 1), (20, 1), (9, 4)]


@pytest.mark.parametrize ("policy", ["reverse", "readahead"])
def test_background (policy, tmp_path):
    trace = tmp_path / "trace"
    with recorded (f"scan-record={trace}", "scan-background=true",
                   policy=policy) as server:
        if policy == "reverse":
            server.wait_line (FINISHED)
        for block in 5, 60:
            server.connect ().pread (BLOCK, block * BLOCK)
    assert contents (trace) == [(5, 1, "1"), (60, 1, "1")]


def test_killed (tmp_path):
    """What was written is there, and what was not is not missed by anybody."""
    trace = tmp_path / "trace"
    trace.write_text ("0 4096\n")
    with recorded (f"scan-record={trace}") as server:
        h = server.connect ()
        h.pread (BLOCK, 9 * BLOCK)
        server.poll (lambda: trace.read_text () != "0 4096\n", "the file")
        server.process.kill ()
        server.process.wait ()
        server.stop = server.kill
    assert contents (trace) == [(9, 1, "10"), (0, 1, "01")]
    assert os.listdir (tmp_path) == ["trace"]


@pytest.mark.parametrize ("before", ["0 4096\n", None], ids=["there", "not-there"])
def test_two_servers (before, tmp_path):
    """The file is one server's: that which has it, or that which makes it."""
    trace = tmp_path / "trace"
    what = "another server records in it" if before else \
        "somebody else has put a file there"
    other = f"scan: warning: scan-trace={trace}: {what}; this server leaves it alone"
    if before:
        trace.write_text (before)
    args = [f"scan-trace={trace}"]
    with recorded (*args) as first, recorded (*args) as second:
        first.connect ().pread (BLOCK, 9 * BLOCK)
        first.poll (lambda: trace.exists () and trace.read_text () != before, "the file")
        second.connect ().pread (BLOCK, 5 * BLOCK)
        second.wait_line (re.escape (other))
    assert first.errors () == [] and second.errors () == [other]
    assert (9, 1, "10" if before else "1") in contents (trace)
    assert 5 not in [offset for offset, _, _ in contents (trace)]
    assert os.listdir (tmp_path) == ["trace"]
    # Neither has left it locked.
    with recorded (*args) as third:
        third.connect ().pread (BLOCK, 5 * BLOCK)
    assert contents (trace)[0][0] in (5, 9) and third.errors () == []


def test_not_over_a_clone (tmp_path):
    """Which is made after the file was looked for; it is not said to be a server's."""
    disk = tmp_path / "disk"
    with nbdkit ([SCAN, CLONE], gate (f"size={SIZE}"),
                 [f"clone-file={disk}", f"scan-record={disk}"]) as server:
        server.connect ().pread (BLOCK, 0)
    assert server.errors () == [
        f"scan: warning: scan-record={disk}: somebody else has put a file there; "
        "this server leaves it alone"]
    assert disk.stat ().st_size == SIZE
    assert start_fails (f"scan-record={disk}").startswith (
        f"scan-record={disk}: line 1 is none of a trace")


def test_says_what_it_has_learnt (tmp_path):
    trace = tmp_path / "trace"
    with recorded (f"scan-record={trace}") as server:
        server.connect ().pread (3 * BLOCK, 0)
    found = [re.search (LEARNT, line) for line in server.log]
    assert [m.groups () for m in found if m] == [("3", "the server ends")]


def test_one_export (tmp_path):
    trace = tmp_path / "trace"
    with recorded (f"scan-record={trace}", "scan-exports=*") as server:
        server.connect ("a").pread (BLOCK, 0)
        server.connect ("b").pread (BLOCK, BLOCK)
        server.connect ("a").pread (BLOCK, 2 * BLOCK)
        assert [e for e in server.errors () if "records" in e] == [
            f"scan: warning: scan-record={trace} records the export 'a', not 'b'"]
    assert sorted (contents (trace)) == [(0, 1, "1"), (2, 1, "1")]


def test_nothing_read (tmp_path):
    trace = tmp_path / "trace"
    with recorded (f"scan-record={trace}") as server:
        server.connect ()
    assert os.listdir (tmp_path) == []


def start_fails (*args, options=()):
    errors = refused ([SCAN], ["memory", "1M"], args, options)
    assert len (errors) == 1, errors
    return errors[0]


def test_refused (tmp_path):
    here, nowhere = tmp_path / "trace", tmp_path / "none" / "trace"
    assert start_fails (f"scan-record={nowhere}") == (
        f"scan-record={nowhere}: no file can be made beside it: "
        "No such file or directory")
    assert start_fails (f"scan-trace={nowhere}").startswith ("scan-trace=")
    assert start_fails (f"scan-record={tmp_path}") == (
        f"scan-record={tmp_path}: this is no regular file")
    fifo = tmp_path / "fifo"
    os.mkfifo (fifo)
    for other in tmp_path, fifo:
        assert start_fails (f"scan-trace={other}") == (
            f"scan-trace={other}: this is no regular file")
    here.write_text ("0 1\nsomething else\n")
    assert start_fails (f"scan-record={here}").startswith (
        f"scan-record={here}: line 2 is none of a trace that can be added to")
    assert here.read_text () == "0 1\nsomething else\n"
    assert start_fails (f"scan-record={tmp_path}/a", f"scan-trace={here}") == (
        "scan-trace: there is one file to record to, and "
        f"scan-record={tmp_path}/a was given; scan-trace records as well")
    for args in ([f"scan-stats={tmp_path}/a", f"scan-record={tmp_path}/a"],
                 [f"scan-record={tmp_path}/a", f"scan-stats={tmp_path}/a"]):
        assert start_fails (*args) == (f"scan-stats and scan-record both write "
                                       f"{tmp_path}/a; give each a file of its own")
    for args in (["learn"], ["learn.lua"], ["learn", f"scan-record={tmp_path}/a"]):
        assert start_fails (f"scan-policy={args[0]}", *args[1:]) == (
            "scan-policy=learn needs scan-trace=FILE, where to keep what it learns")


def test_replay_needs_a_trace_that_is_there (tmp_path):
    trace = tmp_path / "trace"
    args = ["scan-policy=replay", f"scan-trace={trace}"]
    assert refused ([SCAN], gate (), args) == [
        f"scan-policy=replay needs a trace, and scan-trace={trace} is not there yet; "
        "scan-policy=learn begins without one"]
    assert not trace.exists ()
    trace.write_text ("0 4096\n")
    with recorded (f"scan-trace={trace}", policy="replay") as server:
        server.connect ()
        server.wait_line (FINISHED)
        assert [c.offset for c in server.calls ("cache")] == [0]


def test_learn_may_read_one_trace_and_record_another (tmp_path):
    before, trace = tmp_path / "before", tmp_path / "trace"
    before.write_text (f"{5 * BLOCK} {BLOCK}\n")
    with recorded (f"scan-file-trace={before}", f"scan-record={trace}",
                   "scan-arg-gap=0", policy="learn") as server:
        server.connect ().pread (BLOCK, 0)
        assert server.next_call ("cache").offset == 5 * BLOCK
    assert contents (trace) == [(0, 1, "1")]


@pytest.mark.skipif (CHECK_WITH == "valgrind", reason="its report is larger")
def test_a_limit_for_files_ends_no_server (tmp_path):
    trace = tmp_path / "trace"
    with contextlib.ExitStack () as stack:
        with file_limit (4096):
            server = stack.enter_context (nbdkit ([SCAN], ["memory", "4M"],
                                                  [f"scan-record={trace}"]))
        h = server.connect ()
        for offset in range (0, 4 << 20, 2 * BLOCK):
            h.pread (512, offset)
    assert server.errors () == [
        f"scan: warning: scan-record={trace} can't be written: File too large"]


@pytest.mark.skipif (CHECK_WITH == "valgrind", reason="its threads run in turn")
def test_idle_clients_wake_nobody (tmp_path):
    """Those that read too little for a recording to end."""
    def wakeups (task):
        with open (f"/proc/{server.pid}/task/{task}/status") as f:
            return int (re.search (r"^voluntary_ctxt_switches:\s*(\d+)", f.read (), re.M)[1])

    def named (task):
        try:
            with open (f"/proc/{server.pid}/task/{task}/comm") as f:
                return f.read ().strip ()
        except FileNotFoundError:       # it has ended
            return None

    def looking ():
        """Those that have given themselves their name."""
        return [t for t in os.listdir (f"/proc/{server.pid}/task") if named (t) == "nbdkit-look"]

    with nbdkit ([SCAN], ["null", "64M"], [f"scan-record={tmp_path}/trace"]) as server:
        clients = [server.connect () for _ in range (4)]
        for h in clients:
            h.pread (512, 0)
        server.poll (lambda: len (looking ()) == len (clients), "a thread for each of them")
        looks = looking ()
        before = [wakeups (task) for task in looks]
        time.sleep (1)          # each looks at its read, and that is all
        assert all (wakeups (task) - n < 20 for task, n in zip (looks, before))


@pytest.mark.skipif (os.geteuid () != 0, reason="nbdkit -u is for root")
def test_refused_as_another_user (tmp_path):
    try:
        pwd.getpwnam ("nobody")
    except KeyError:
        pytest.skip ("no user nobody")
    tmp_path.chmod (0o700)
    here = tmp_path / "trace"
    why = (f"scan-record={here}: no file can be made beside it: Permission denied "
           "(as the user that nbdkit has become)")
    assert start_fails (f"scan-record={here}", options=["-u", "nobody"]) == why
    if CHECK_WITH == "":        # a command would wait for a server that has ended
        run = subprocess.run (
            ["nbdkit", "-U", "-", "-u", "nobody", f"--filter={SCAN}", "null", "1M",
             f"scan-record={here}", "--run", 'nbdinfo --size "$uri"'],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_SECS)
        assert run.stdout == "1048576\n" and why in run.stderr


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit itself")
def test_a_server_that_is_killed_while_its_command_runs (tmp_path):
    """The command's process has what was open before it began."""
    trace = tmp_path / "trace"
    with recorded (f"scan-record={trace}") as server:
        server.connect ().pread (BLOCK, 0)
    run = subprocess.Popen (
        ["nbdkit", "-U", "-", "-P", tmp_path / "pid", f"--filter={SCAN}", "null", "1M",
         f"scan-record={trace}", "--run", 'nbdinfo --size "$uri"; cat'],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert run.stdout.readline () == "1048576\n"
        kill_at_once (int ((tmp_path / "pid").read_text ()))
        with recorded (f"scan-trace={trace}") as server:
            server.connect ().pread (BLOCK, 5 * BLOCK)
        assert server.errors () == []
    finally:
        run.communicate (timeout=PATIENCE_SECS)
