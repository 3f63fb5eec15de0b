# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""docs/fleet.md, from the first command to the last, run as they stand."""

import os
import re
import shutil
import socket
import stat
import subprocess
import sys

import pytest

from harness import CHECK_WITH, PATIENCE_SECS, SCAN, TOP

CLONE = os.path.join (TOP, "build/nbdkit-clone-filter.so")
TOOLS = ["nbdsh", "mke2fs", "debugfs", "qemu-img"]

pytestmark = pytest.mark.skipif (CHECK_WITH != "",
                                 reason="the servers are started by a shell")


def commands (text):
    return "".join (re.findall (r"^```sh\n(.*?)^```$", text, re.M | re.S))


def script (path, text):
    path.write_text ("#!/bin/bash\n" + text)
    path.chmod (path.stat ().st_mode | stat.S_IXUSR)


def free_port ():
    with socket.socket () as s:
        s.bind (("localhost", 0))
        return s.getsockname ()[1]


@pytest.fixture (name="path")
def make_path (tmp_path):
    """A PATH where the filters under test and the tool are the installed ones."""
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    for tool in TOOLS:
        if not shutil.which (tool, path=path):
            pytest.skip (f"no {tool}")
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir ()
    script (bin_dir / "nbdkit", f"""
        for word; do
          case $word in
            --filter=scan) word=--filter={SCAN};;
            --filter=clone) word=--filter={CLONE};;
          esac
          words+=("$word")
        done
        exec {shutil.which ("nbdkit")} "${{words[@]}}"
        """)
    # nbdsh looks for it, and this one has libnbd.
    (bin_dir / "python3").symlink_to (sys.executable)
    script (bin_dir / "scan-policy",
            f'exec lua5.4 {TOP}/lua/bin/scan-policy "$@"\n')
    return f"{bin_dir}:{path}"


def test_commands (path, tmp_path):
    with open (os.path.join (TOP, "docs/fleet.md")) as page:
        text = commands (page.read ())
    assert text.count ("nbdkit -") == 4
    port = str (free_port ())
    text = text.replace ("10899", port)
    here = tmp_path / "here"
    here.mkdir ()
    # Whatever goes wrong, no server stays.
    kill = 'trap \'kill $(cat *.pid) 2>/dev/null || true\' EXIT\n'
    run = subprocess.run (["bash", "-eu", "-c", kill + text], cwd=here, text=True,
                          env={**os.environ, "PATH": path}, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=2 * PATIENCE_SECS)
    said = run.stdout + run.stderr
    assert run.returncode == 0, said
    assert "error:" not in said, said

    # 3: it has learnt what was read.
    assert (here / "boot.trace").read_text ().startswith (
        "# nbdkit scan trace: 1 run\n")
    # 4: and to know that is worth something.
    faster = dict (re.findall (r"^boot +(\S+) .*? ([\d.]+) x", run.stdout, re.M))
    assert float (faster["replay"]) > 1.5, said
    assert float (faster["replay"]) > float (faster["adaptive"]), said
    # 5: most of it is found in the next image.
    found = re.search (r"blocks of 4K: ([\d.]+) % found by content", said)
    assert float (found[1]) > 80, said
    # 6: and what the machine reads of that is in the new trace.  (Whether it was there
    # in time is a race here.)
    trace = [line.split () for line in (here / "tuesday.trace").read_text ().splitlines ()]
    fetched = {block for offset, count in trace
               for block in range (int (offset) // 4096,
                                   (int (offset) + int (count)) // 4096)}
    blocks = [int (word) for word in (here / "blocks").read_text ().split ()]
    assert len (fetched.intersection (blocks)) > 0.8 * len (blocks) > 400
    assert f'nbdkit_scan_reads_total{{export=""}} {len (blocks)}\n' in run.stdout, said
