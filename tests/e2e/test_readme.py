# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Every command of the README, run as it stands: on a disk of the test's own where it
is a server's, and as far as make says what it would do where it is make's."""

import os
import re
import shlex
import shutil
import stat
import subprocess
import time

import nbd
import pytest

from harness import CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, TOP, dump_config

pytestmark = pytest.mark.skipif (CHECK_WITH != "",
                                 reason="the servers are started by a shell")

DISK = os.urandom (4 << 20)

with open (os.path.join (TOP, "README.md")) as readme:
    TEXT = readme.read ()


def blocks ():
    """The indented texts."""
    found = re.findall (r"(?:^    [^\n]*\n)+", TEXT, re.M)
    return [re.sub (r"^    ", "", text, flags=re.M) for text in found]


def commands ():
    """Those in blocks, and those in the text that begin like one."""
    shown = []
    for text in blocks ():
        if not text.startswith ("--"):              # Lua
            text = text.replace ("\\\n", " ")
            shown += [re.sub (r"\s+# .*", "", line) for line in text.splitlines ()]
    return shown + re.findall (r"`((?:make|scan-policy) [^`]+)`", TEXT)


COMMANDS = commands ()


@pytest.fixture (scope="module", name="here")
def make_here (tmp_path_factory):
    """A directory to run them in, with what is beside the README in the project and a
    PATH where everything is installed."""
    here = tmp_path_factory.mktemp ("readme")
    for name in "lua", "tests", "policies":
        (here / name).symlink_to (os.path.join (TOP, name))
    # A web server is for test_sources.py.
    (here / "far.img").write_bytes (DISK)
    (here / "bin").mkdir ()
    nbdkit = here / "bin/nbdkit"
    nbdkit.write_text (f"""#!/bin/bash
        for word; do
          case $word in
            --filter=scan) word=--filter={SCAN};;
            --filter=clone) word=--filter={CLONE};;
            https://example.com/disk.img) word=file://{here}/far.img;;
          esac
          words+=("$word")
        done
        exec {shutil.which ("nbdkit")} -U {here}/sock -P {here}/pid "${{words[@]}}"
        """)
    nbdkit.chmod (nbdkit.stat ().st_mode | stat.S_IXUSR)
    (here / "bin/scan-policy").symlink_to (os.path.join (TOP, "lua/bin/scan-policy"))
    for text in blocks ():
        if text.startswith ("-- edges.lua"):
            (here / "edges.lua").write_text (text)
    return here


def run (here, command):
    env = {**os.environ, "PATH": f"{here}/bin:{os.environ['PATH']}"}
    if command.startswith (("make", "sudo make")):
        target = command.split ()[-1]
        return subprocess.run (["make", "-n", "-C", TOP, target], text=True, env=env,
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               timeout=PATIENCE_SECS)
    # A server goes on in the background, and would keep a pipe open.
    with open (here / "said", "w+") as said:
        done = subprocess.run (["bash", "-c", command], stdout=said, stderr=said,
                               cwd=here, env=env, timeout=PATIENCE_SECS)
        said.seek (0)
        done.stdout = said.read ()
    return done


def use (here):
    """As the client of a server; and end that."""
    # The one that was started has gone, and the server is on its way.
    deadline = time.monotonic () + PATIENCE_SECS
    while not ((here / "pid").exists () and (here / "pid").read_text ()):
        assert time.monotonic () < deadline, "no server"
        time.sleep (0.01)
    pid = int ((here / "pid").read_text ())
    try:
        h = nbd.NBD ()
        h.connect_unix (str (here / "sock"))
        assert h.pread (h.get_size (), 0) == DISK
        h.shutdown ()
    finally:
        subprocess.run (["bash", "-c",
                         f"kill {pid}; tail --pid={pid} -f /dev/null"], check=True,
                        timeout=PATIENCE_SECS)
        for name in "sock", "pid":
            (here / name).unlink (missing_ok=True)


def test_there_are_commands ():
    for begin in "nbdkit", "make", "sudo make", "scan-policy", "lua/bin/scan-policy":
        assert any (c.startswith (begin + " ") for c in COMMANDS), begin


# In the order of the page.
@pytest.mark.parametrize ("command", COMMANDS)
def test_command (command, here):
    if command == "make":
        command = "make all"
    if "https://" in command and not os.path.exists (
            os.path.join (dump_config ("plugindir"), "nbdkit-curl-plugin.so")):
        pytest.skip ("no curl plugin")
    if command.startswith ("nbdkit ") and "file disk.img" in command:
        (here / "disk.img").write_bytes (DISK)
    done = run (here, command)
    assert done.returncode == 0, done.stdout
    if command.startswith ("nbdkit "):
        use (here)
    for word in shlex.split (command):
        if word.startswith ("clone-file="):
            assert (here / word.partition ("=")[2]).read_bytes () == DISK
