# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What an operator sees: scan-stats, scan-progress, and nbdkit's debug flags."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import termios

import nbd
import pytest

from harness import (CHECK_WITH, CLONE, SCAN, TOP, file_limit, gate, nbdkit, needs,
                     pattern, refused)

BLOCK = 4096
FINISHED = "scan: finished scanning the plugin"


def counters (path):
    """The samples of a file in the Prometheus text format."""
    with open (path) as f:
        text = f.read ()
    samples = re.findall (r'^nbdkit_scan_(\w+)\{(.*)\} (\S+)$', text, re.M)
    return {(name, labels): float (value) for name, labels, value in samples}


def scanned (tmp_path, args=()):
    """A server whose scan of 16 blocks is held at the first."""
    stats = tmp_path / "scan.prom"
    return stats, nbdkit ([SCAN], gate (f"size={16 * BLOCK}", "hold=cache"),
                          [f"scan-size={BLOCK}", f"scan-stats={stats}", *args],
                          ["-v"])


def test_counters (tmp_path):
    stats, server_of = scanned (tmp_path, ["scan-ahead=false"])
    with server_of as server:
        # It is there without anyone who connects.
        server.poll (stats.exists, "the counters")
        assert counters (stats)["prefetches_total", 'export=""'] == 0
        h = server.connect ()
        first = server.next_call ("cache")
        h.pread (BLOCK, 0)                      # late
        h.pread (512, 8 * BLOCK)                # missed
        server.send ("hold cache 0")
        server.release (first)
        server.wait_line (FINISHED)
        h.pread (2 * BLOCK, BLOCK)              # hit
    seen = counters (stats)
    expected = {
        "size_bytes": 16 * BLOCK, "position_bytes": 16 * BLOCK,
        "prefetches_total": 16, "prefetched_bytes_total": 16 * BLOCK,
        "prefetch_failures_total": 0, "prefetches_skipped_total": 0,
        "covered_bytes": 16 * BLOCK, "unread_bytes": 12 * BLOCK, "hole_bytes": 0,
        "reads_total": 3, "read_bytes_total": 3 * BLOCK + 512,
        "decisions_total": 17,
    }
    for name, value in expected.items ():
        assert seen[name, 'export=""'] == value, name
    for result in "hit", "late", "miss":
        assert seen["reads_by_result_total", f'export="",result="{result}"'] == 1
    states = {state: seen["state", f'export="",state="{state}"']
              for state in ("waiting", "running", "finished", "failed")}
    assert states == {"waiting": 0, "running": 0, "finished": 1, "failed": 0}
    assert seen["policy_info", 'export="",policy="default",error=""'] == 1
    assert seen["policy_seconds_total", 'export=""'] > 0
    assert os.listdir (tmp_path) == ["scan.prom"]       # no half-written file


@needs ("promtool")
def test_counters_are_what_prometheus_reads (tmp_path):
    stats, server_of = scanned (tmp_path)
    with server_of as server:
        server.connect ()
        server.next_call ("cache")
    check = subprocess.run (["promtool", "check", "metrics"], text=True,
                            stdin=open (stats), stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)
    assert check.returncode == 0 and check.stdout == ""


def test_a_failed_policy_says_why (tmp_path):
    policy = tmp_path / "bad.lua"
    policy.write_text ('return function () error ("a \\"quoted\\" reason") end')
    stats, server_of = scanned (tmp_path, [f"scan-policy={policy}"])
    with server_of as server:
        server.connect ()
        server.wait_line ("quoted")
    seen = counters (stats)
    assert seen["state", 'export="",state="failed"'] == 1
    [labels] = [labels for name, labels in seen if name == "policy_info"]
    assert f'policy="{policy}"' in labels
    assert labels.endswith ('bad.lua:1: a \\"quoted\\" reason"')


def test_failures_and_holes_are_counted (tmp_path):
    stats = tmp_path / "scan.prom"
    with nbdkit ([SCAN], gate (f"size={16 * BLOCK}", f"data={4 * BLOCK}+{2 * BLOCK}",
                               "fail=cache:/2"),
                 [f"scan-size={BLOCK}", f"scan-stats={stats}", "scan-policy=data"],
                 ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
    seen = counters (stats)
    assert seen["prefetches_total", 'export=""'] == 2
    assert seen["prefetch_failures_total", 'export=""'] == 1
    assert seen["hole_bytes", 'export=""'] == 14 * BLOCK


def test_a_file_that_cannot_be_written_is_refused ():
    [error] = refused ([SCAN], ["memory", "1M"], ["scan-stats=/nonexistent/x"])
    assert error.startswith ("scan-stats=/nonexistent/x cannot be written: ")


def test_progress_without_a_terminal ():
    with nbdkit ([SCAN], gate (f"size={16 * BLOCK}", f"data=0+{12 * BLOCK}"),
                 [f"scan-size={BLOCK}", "scan-progress=true", "scan-policy=data"],
                 ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
    last = [line for line in server.log if line.startswith ("scan: ")][-1]
    assert last == "scan: 100% 64K of 64K, 16K of holes skipped"


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit by itself")
def test_progress_on_a_terminal ():
    ours, theirs = pty.openpty ()
    subprocess.run (["nbdkit", "-U", "-", f"--filter={SCAN}", "memory", "1M",
                     "scan-progress=true", "--run", 'nbdinfo --size "$uri"'],
                    check=True, stdout=subprocess.PIPE, stderr=theirs)
    os.close (theirs)                       # the last one
    shown = b""
    with contextlib.suppress (OSError):     # EIO: that was all
        while more := os.read (ours, 10000):
            shown += more
    os.close (ours)
    shown = shown.decode ()
    assert re.fullmatch (r"(\rscan: +\d+% \S+ of 1\.0M[^\r\n]*)+\r?\n", shown)


def test_silence_when_all_is_well ():
    with nbdkit ([SCAN], ["memory", "1M"]) as server:
        server.connect ().pread (512, 0)
    assert server.log == []


def test_totals_are_in_the_debug_log (tmp_path):
    _, server_of = scanned (tmp_path)
    with server_of as server:
        server.connect ()
        server.next_call ("cache")
    totals = [line for line in server.log if "scan: export ''" in line]
    assert len (totals) == 1
    assert re.search (r": \d+ prefetches, \d+ bytes, 0 failed, 0 skipped; "
                      r"\d+ decisions$", totals[0])


@pytest.mark.parametrize ("flag, line", [
    ("decisions", "scan: policy: prefetch offset=0x1000 count=0x1000"),
    ("reads", "scan: read offset=0x200 count=0x100")])
@pytest.mark.parametrize ("on", [True, False])
def test_debug_flags (flag, line, on):
    with nbdkit ([SCAN], gate (f"size={4 * BLOCK}", "hold=cache"),
                 [f"scan-size={BLOCK}", "scan-ahead=true"],
                 ["-v", *(["-D", f"scan.{flag}=1"] if on else [])]) as server:
        h = server.connect ()
        call = server.next_call ("cache")
        if flag == "reads":
            h.pread (0x100, 0x200)
        server.send ("hold cache 0")
        server.release (call)
        server.wait_line (FINISHED)
        found = [seen for seen in server.log
                 if re.search (r"scan: (policy: |read )", seen)]
        assert any (line in seen for seen in found) == (
            on and (flag == "reads" or "0x1000" in line))
        assert bool (found) == on


def shown_on_terminal (command, rows, columns):
    """What a command writes to a terminal of this size, which is its only one."""
    pid, ours = pty.fork ()
    if pid == 0:
        fcntl.ioctl (0, termios.TIOCSWINSZ, struct.pack ("4H", rows, columns, 0, 0))
        os.execvp (command[0], command)
    shown = b""
    with contextlib.suppress (OSError):     # as its end is told
        while True:
            shown += os.read (ours, 65536)
    os.close (ours)
    assert os.waitpid (pid, 0)[1] == 0
    return shown.decode ()


@pytest.mark.skipif (CHECK_WITH != "", reason="of a command in Lua")
@pytest.mark.parametrize ("rows, columns", [(0, 0), (24, 80)])
def test_watch_on_a_terminal (tmp_path, rows, columns):
    """Also on one that has been told no size."""
    stats = tmp_path / "stats"
    with nbdkit ([SCAN], ["memory", "1M"], [f"scan-stats={stats}"]) as server:
        server.connect ()
    shown = shown_on_terminal ([os.path.join (TOP, "lua/bin/scan-policy"), "watch",
                                "--count", "1", str (stats)], rows, columns)
    assert "(default export)" in shown
    assert "of 1 MiB" in shown


@pytest.mark.skipif (CHECK_WITH != "", reason="of a command in Lua")
def test_watch_shows_the_pace (tmp_path):
    stats = tmp_path / "stats"
    with nbdkit ([SCAN, CLONE, "delay"], ["pattern", "1M"],
                 ["scan-policy=data", "scan-size=64K", f"scan-stats={stats}",
                  f"clone-file={tmp_path}/disk.img", "rdelay=5ms"], ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
    shown = subprocess.run ([os.path.join (TOP, "lua/bin/scan-policy"), "watch",
                             "--count", "1", stats], check=True,
                            stdout=subprocess.PIPE, text=True).stdout
    assert re.search (r"pace: .*pieces of .*, latency \d+", shown), shown


@pytest.mark.skipif (CHECK_WITH != "", reason="runs nbdkit by itself")
def test_progress_is_no_wider_than_the_terminal ():
    """Else each second leaves a line behind."""
    shown = shown_on_terminal (
        ["nbdkit", "-U", "-", f"--filter={SCAN}", "memory", "1M", "scan-progress=true",
         "--run", 'nbdcopy "$uri" null:; nbdinfo --size "$uri" > /dev/null'], 24, 20)
    lines = [line for line in re.split ("[\r\n]", shown) if line.startswith ("scan: ")]
    moving = [line for line in lines if "%" in line]
    assert moving and all (len (line) < 20 for line in moving), lines


# -- what can't be written ------------------------------------------------------

def fifo (path):
    os.mkfifo (path)
    return path


@pytest.mark.parametrize ("make", [fifo, os.mkdir], ids=["fifo", "directory"])
def test_what_is_no_file_is_refused (tmp_path, make):
    """At once: nobody reads the fifo."""
    stats = tmp_path / "stats"
    make (stats)
    [error] = refused ([SCAN], ["memory", "1M"], [f"scan-stats={stats}"])
    assert error.startswith (f"scan-stats={stats} cannot be written: ")
    assert error.endswith ("is not a regular file")


@pytest.mark.parametrize ("clone", [[], [CLONE]], ids=["disk", "clone"])
def test_a_disk_is_not_replaced (tmp_path, clone):
    """By a slip its name may be given: here that of the source, or of its clone."""
    disk = tmp_path / "disk"
    args = [f"clone-file={disk}"] if clone else []
    disk.write_bytes (b"a disk" * 1000)
    if clone:
        disk.unlink ()
        with nbdkit (clone, ["memory", "64K"], args) as server:
            server.connect ().pwrite (b"a disk" * 1000, 0, nbd.CMD_FLAG_FUA)
    before = disk.read_bytes ()
    plugin = ["memory", "64K"] if clone else ["file", str (disk)]
    errors = refused ([SCAN, *clone], plugin, [*args, f"scan-stats={disk}"])
    assert errors == [f"scan-stats={disk} cannot be written: it is there and holds "
                      "something else than these counters"]
    assert disk.read_bytes () == before


def put_fifo (path):
    """In place of the server's file, which may come between."""
    while not path.is_fifo ():
        path.unlink (missing_ok=True)
        with contextlib.suppress (FileExistsError):
            os.mkfifo (path)


def test_a_fifo_in_the_way_holds_up_nobody (tmp_path):
    """It comes when the server runs: neither clients nor the end wait for it."""
    stats, server_of = scanned (tmp_path)
    with server_of as server:
        def is_noticed ():
            # What is being written may still be put in its place.
            put_fifo (stats)
            return any (re.search ("warning: scan-stats=.* cannot be written: ", e)
                        for e in server.errors ())
        server.poll (is_noticed, "a warning of the fifo")
        server.connect ().pread (512, 0)
        server.connect ()
    assert len ([e for e in server.errors () if "cannot be written" in e]) == 1


@pytest.mark.skipif (CHECK_WITH != "", reason="reports are larger")
def test_a_limit_for_files_that_the_counters_exceed (tmp_path):
    """As on a disk that is full, the server starts and serves.  The signal of a limit
    would end it without a word; the command of --run gets it."""
    stats = tmp_path / "scan.prom"
    with contextlib.ExitStack () as stack:
        with file_limit (512):
            server = stack.enter_context (nbdkit ([SCAN], gate (),
                                                  [f"scan-stats={stats}"]))
        assert server.connect ().pread (512, 0) == pattern (0, 512)
    assert server.errors () == [
        f"scan: warning: scan-stats={stats} cannot be written: File too large"]
    assert os.listdir (tmp_path) == []
    run = subprocess.run (["nbdkit", "-U", "-", f"--filter={SCAN}", "null",
                           f"scan-stats={stats}", "--run", "cat /proc/self/status"],
                          check=True, text=True, stdout=subprocess.PIPE)
    ignored = int (re.search (r"^SigIgn:\s*(\w+)", run.stdout, re.M)[1], 16)
    assert not ignored & 1 << (signal.SIGXFSZ - 1)


@pytest.mark.skipif (os.geteuid () != 0 or CHECK_WITH != "",
                     reason="only root can become another user")
@pytest.mark.parametrize ("may", [True, False])
def test_another_user (tmp_path, may):
    """Who may write the file is seen when the server has become that user."""
    os.chmod (tmp_path, 0o777 if may else 0o755)
    for parent in tmp_path.parents:
        if parent.stat ().st_uid == 0 and str (parent).startswith ("/tmp/"):
            os.chmod (parent, 0o755)
    stats = tmp_path / "stats"
    run = subprocess.run (["nbdkit", "-U", "-", "--user=nobody", f"--filter={SCAN}",
                           "--filter=cache", "memory", "1M", f"scan-stats={stats}",
                           "--run", 'nbdinfo --size "$uri"'], check=True, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    warnings = [line for line in run.stderr.splitlines () if "scan-stats" in line]
    if may:
        assert warnings == []
        assert counters (stats)["size_bytes", 'export=""'] == 1 << 20
        assert stats.owner () == "nobody"
    else:
        assert len (warnings) == 1
        assert warnings[0].endswith (f"scan-stats={stats} cannot be written: "
                                     "Permission denied")


# -- progress -------------------------------------------------------------------

def progress (server):
    return [line for line in server.log if line.startswith ("scan: ")]


def test_reads_are_no_progress ():
    """An empty trace: nothing is scanned, whatever the client reads."""
    with nbdkit ([SCAN, "cache"], ["memory", "1M"],
                 ["scan-progress=true", "scan-policy=replay",
                  f"scan-file-trace={os.devnull}"], ["-v"]) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        h.pread (1 << 20, 0)
    assert progress (server)[0] == "scan:   0% 0B of 1.0M, 0 of 1 reads found prefetched"
    assert not any ("100%" in line for line in progress (server))


def test_progress_tells_of_hits ():
    """At the end: what it was good for, and 100 % once."""
    with nbdkit ([SCAN], gate (f"size={16 * BLOCK}", "hold=cache"),
                 [f"scan-size={BLOCK}", "scan-progress=true", "scan-ahead=false"],
                 ["-v"]) as server:
        h = server.connect ()
        call = server.next_call ("cache")
        h.pread (512, 0)                        # late
        h.pread (512, 8 * BLOCK)                # missed
        server.send ("hold cache 0")
        server.release (call)
        server.wait_line (FINISHED)
        server.wait_line ("^scan: 100% ")       # within a second
        h.pread (2 * BLOCK, BLOCK)              # hit
    lines = progress (server)
    assert sum ("100%" in line for line in lines) == 1
    assert lines[-1] == ("scan: of 3 reads 1 found what they wanted prefetched and 1 "
                         "came late; 64K prefetched, 48K of it never read")


def test_the_sum_at_the_end_is_of_all_exports ():
    """Also of those that were let go."""
    with nbdkit ([SCAN], gate ("size=64K"),
                 ["scan-exports=*", "scan-progress=true", "scan-policy=replay",
                  f"scan-file-trace={os.devnull}"], ["-v"]) as server:
        for number in range (40):
            start = len (server.log)
            h = server.connect (f"export{number}")
            server.wait_line (FINISHED, start)
            h.pread (4096, 0)
            server.disconnect (h)
            server.wait_line ("scan: close", start)
    assert progress (server)[-1].startswith ("scan: of 40 reads 0 found")


@pytest.mark.parametrize ("policy, read, advice", [
    # A .cache that does nothing.
    ("default", range (0, 200), "the source answers within a millisecond"),
    # What nobody wants.
    ("elsewhere", range (0, 200), "few reads found what they wanted")])
def test_advice (tmp_path, policy, read, advice):
    elsewhere = tmp_path / "elsewhere.lua"
    elsewhere.write_text ("""
        return function (disk) disk:prefetch (disk.size // 2, disk.size // 2) end""")
    if policy == "elsewhere":
        policy = elsewhere
    with nbdkit ([SCAN], gate ("size=16M", "quiet=cache"),
                 [f"scan-policy={policy}", "scan-progress=true", "scan-pace=false",
                  "scan-size=32K" if policy == "default" else "scan-size=2M"],
                 ["-v"]) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        for i in read:
            h.pread (4096, i * 4096)
    assert advice in progress (server)[-1]


def test_a_client_that_leaves_in_a_prefetch ():
    """What fails then is no fault, and no scan goes on."""
    with nbdkit ([SCAN], gate (f"size={16 * BLOCK}", "hold=cache"),
                 [f"scan-size={BLOCK}"], ["-v"]) as server:
        h = server.connect ()
        call = server.next_call ("cache")
        server.disconnect (h)
        server.wait_joined (call.tid)
        server.release (call, 5)
        server.wait_line ("prefetch of 4096 bytes at offset 0 failed at the end of "
                          "the scan: Input/output error")
    assert server.errors () == []


def test_a_scan_that_stalls_shows (tmp_path):
    """A prefetch that doesn't come back: something is in flight, and all is quiet."""
    stats, server_of = scanned (tmp_path)
    with server_of as server:
        server.connect ()
        server.next_call ("cache")
        server.poll (lambda: counters (stats)["quiet_seconds", 'export=""'] > 0,
                     "the file to tell")
        assert counters (stats)["prefetches_in_flight", 'export=""'] == 1
        server.release_all ()
        server.wait_line (FINISHED)
    assert counters (stats)["quiet_seconds", 'export=""'] == 0
    assert counters (stats)["prefetches_in_flight", 'export=""'] == 0
