# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Every command that a page shows is run: as it stands but for the places in it, in the
order of the page, in a directory of the page's own.  Of make's, what make says that it
would do.

A command is a line of a block that begins with a program, or a text between backticks
that does.  Those that are not run page by page are in ELSEWHERE, with what runs them or
why nothing does.
"""

import functools
import glob
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import nbd
import pytest

from harness import (CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, TOP, dump_config,
                     needs, stock_filter)

pytestmark = pytest.mark.skipif (CHECK_WITH != "",
                                 reason="the servers are started by a shell")

DISK = os.urandom (4 << 20)

PAGES = ["README.md", "CONTRIBUTING.md",
         *sorted (os.path.relpath (path, TOP)
                  for kind in ("md", "pod") for path in glob.glob (f"{TOP}/docs/*.{kind}"))]

PROGRAMS = {"busted", "dd", "debugfs", "export", "filefrag", "for", "gdb",
            "lua5.4", "make", "mkdir", "nbdfuse", "nbdkit", "nbdsh",
            "qemu-system-x86_64", "rm", "scan-policy", "stat", "truncate"}
# No command, though a line begins with it: a variable, and a trace's name in a table.
NO_PROGRAMS = {"size", "blkid"}

# Page, command, and what runs it or why nothing does.
ELSEWHERE = [
    ("docs/.*pod", "nbdkit .*PLUGIN", "a synopsis"),
    ("docs/scan-policy.pod", "scan-policy .*[A-Z]|scan-policy list",
     "a synopsis; tests/spec/command_spec.lua"),
    ("docs/nbdkit-scan-policy.pod", "for offset", "Lua"),
    ("docs/nbdkit-scan-policy.pod", "debugfs|filefrag", "test_lists_of_regions"),
    ("docs/troubleshooting.md", "export|nbdkit .* eval ", "test_sources.py"),
    ("docs/tutorial.md", r"\$ ", "tests/spec/tutorial_spec.lua"),
    ("docs/tutorial.md", "nbdfuse", "needs FUSE and a mount"),
    ("docs/restore.md", "mkdir|nbdkit|qemu|rm|scan-policy map", "test_restore"),
    ("docs/performance(-parts)?.md", "for part|lua5.4", "takes minutes to hours"),
    ("docs/upstream.md", "tests/upstream/", "test_upstream.py"),
    ("docs/upstream.md", "nbdkit .*(h.cache|error-pread|4098M|ext2file)",
     "hangs, fails, is refused, or needs a file system; test_upstream.py"),
    ("docs/upstream.md", "nbdkit -fv split|nbdsh", "ends with SIGSEGV; test_upstream.py"),
]


# -- what a page shows ---------------------------------------------------------

BLOCK = r"^```(\w*)\n(.*?)^```$|((?:^    [^\n]*\n)+)"
# The rest of a line is a remark after two spaces or a #.
COMMAND = re.compile (r"""(?:[^\s"']|"[^"]*"|'[^']*'|\s(?![\s#]))+""")


@functools.cache
def read (page):
    with open (os.path.join (TOP, page)) as f:
        return f.read ()


def blocks (page):
    """Those of a page, as language and text."""
    if page.endswith (".pod"):
        return [("", re.sub (r"^ ", "", text, flags=re.M))
                for text in re.findall (r"(?:^ [^\n]*\n)+", read (page), re.M)]
    return [(m[1] or "", m[2] or re.sub (r"^    ", "", m[3], flags=re.M))
            for m in re.finditer (BLOCK, read (page), re.M | re.S)]


def program (line):
    return re.match (r"(?:\$ |sudo |[A-Z]+=\S+ )*(\S*)", line)[1]


def is_command (line):
    return program (line) in PROGRAMS or program (line).startswith ("tests/")


def in_block (text):
    lines = text.splitlines ()
    while lines:
        line = lines.pop (0)
        if is_command (line):
            while True:
                command = COMMAND.match (line)[0]
                if not (line[len (command):][:1] in ("'", '"')
                        or command.endswith (("\\", "|"))):
                    break
                line = line.rstrip ("\\") + " " + lines.pop (0).lstrip ()
                line = re.sub (r"  +", " ", line)
            yield command.strip ().replace (" …", "")


def shown (page):
    """The commands of a page; scripts have a language, and a test of their own."""
    found = [command for language, text in blocks (page) if language == ""
             for command in in_block (text)]
    if not page.endswith (".pod"):
        text = re.sub (BLOCK, "", read (page), flags=re.M | re.S)
        found += re.findall (r"`((?:make|lsof|scan-policy [^\s`]+) [^`…\n]+)`", text)
    return found


def elsewhere (page, command):
    return [row for row in ELSEWHERE
            if re.fullmatch (row[0], page) and re.match (row[1], command)]


# -- where it is run -----------------------------------------------------------

# Opens what QEMU is told to as a disk, and does to it what standard input says.
GUEST = """#!/bin/bash
until [[ $1 = -blockdev || $1 = -drive ]]; do shift || exit; done
disk=${2/#file=/driver=raw,file.driver=file,file.filename=}
exec qemu-io --image-opts "${disk%,format=raw,if=virtio}"
"""


class Place:
    """A directory that has what a page takes for granted, and a PATH where everything
    is installed."""

    def __init__ (self, path, scan=SCAN):
        self.path, self.scan = path, scan
        self.running = []
        for name in "build", "lua", "tests", "policies":
            (path / name).symlink_to (os.path.join (TOP, name))
        for name in "bin", "run", "var/lib/clones":
            (path / name).mkdir (parents=True)
        (path / "bin/scan-policy").symlink_to (os.path.join (TOP, "lua/bin/scan-policy"))
        # nbdsh looks for it, and this one has libnbd.
        (path / "bin/python3").symlink_to (sys.executable)
        (path / "bin/qemu-system-x86_64").write_text (GUEST)
        (path / "bin/qemu-system-x86_64").chmod (0o755)
        (path / "far.img").write_bytes (DISK)
        self.env = {**os.environ,
                    "PATH": f"{path}/bin:{os.environ['PATH']}:/usr/sbin:/sbin"}

    def local (self, text):
        """The same with places that are here."""
        for regex, new in (
                (r"(?<![\w/.])(?=/(?:run|var/lib)/)", str (self.path)),
                (r"/a/small/file/system", str (self.path)),
                # A web server is for test_sources.py.
                (r"curl (?:url=)?https://(?:[\w.]+/disk\.img|…)",
                 f"curl file://{self.path}/far.img" if has_plugin ("curl")
                 else f"file {self.path}/far.img"),
                (r"nbd://example\.com", f"socket={self.path}/origin"),
                (r"hostname=example\.com", f"socket={self.path}/origin"),
                (r"PLUGIN…", f"file {self.path}/far.img"),
                (r"--filter=scan\b", f"--filter={self.scan}"),
                (r"--filter=clone\b", f"--filter={CLONE}"),
                (r"scan-policy watch", "scan-policy watch --count 1"),
                # Not of all that runs here, and something that it finds.
                (r"lsof ", "exec 9> gone; rm gone; lsof -a -p $$ "),
                (r"(?:sudo )?\bmake(?= |$)", f"make -n -C {TOP} MAKE=:")):
            text = re.sub (regex, new, text)
        return text

    def shell (self, text, patience_secs=PATIENCE_SECS):
        """Run a command; returns what it printed."""
        # A server goes on in the background, and would keep a pipe open.
        with open (self.path / "said", "w+") as said:
            done = subprocess.run (["bash", "-c", self.local (text)], stdout=said,
                                   stderr=said, stdin=subprocess.DEVNULL, cwd=self.path,
                                   env=self.env, timeout=patience_secs)
            said.seek (0)
            printed = said.read ()
        assert done.returncode == 0, f"{text}\n{printed}"
        return printed

    def start (self, text):
        """Run an nbdkit; returns its process number, and where it listens."""
        own = re.search (r" -U (\S+)", text)
        path = self.local (own[1]) if own else f"{self.path}/sock"
        pid_file = self.path / "pid"
        for name in [pid_file] if own else [pid_file, path]:
            if os.path.exists (name):
                os.unlink (name)
        text = re.sub (r"\bnbdkit ", f"nbdkit -P {pid_file} " +
                       ("" if own else f"-U {path} "), text, 1)
        foreground = re.search (r" -f\b", text)
        # In the foreground nbdkit ends with its parent: the shell that waits for it.
        self.shell (f"( {text}; : ) &" if foreground else text)
        wait_until (lambda: pid_file.exists () and pid_file.read_text (),
                    lambda: f"{text}\n{(self.path / 'said').read_text ()}")
        self.running.append (int (pid_file.read_text ()))
        return self.running[-1], path

    def end (self, pid, number=signal.SIGTERM):
        os.kill (pid, number)
        wait_until (lambda: has_ended (pid), lambda: "it to end")
        self.running.remove (pid)

    def serve (self, text):
        """Run an nbdkit, read all that it serves, and end it."""
        pid, path = self.start (text)
        # Not of the source: it is a file here.
        said = (self.path / "said").read_text ()
        assert "scan: warning:" not in said, f"{text}\n{said}"
        h = nbd.NBD ()
        h.connect_unix (path)
        if "memory" not in text:
            assert h.pread (h.get_size (), 0) == DISK, text
        h.shutdown ()
        self.end (pid)
        for name in re.findall (r"clone-file=(\S+)", self.local (text)):
            assert (self.path / name).read_bytes () == DISK, text


def wait_until (condition, what):
    deadline = time.monotonic () + PATIENCE_SECS
    while not condition ():
        assert time.monotonic () < deadline, f"waited in vain for {what ()}"
        time.sleep (0.01)


def has_ended (pid):
    """Also where nobody has buried it so far."""
    try:
        with open (f"/proc/{pid}/stat") as f:
            return f.read ().rpartition (") ")[2].startswith ("Z") \
                and os.listdir (f"/proc/{pid}/task") == [str (pid)]
    except (FileNotFoundError, ProcessLookupError):
        return True


def has_plugin (name):
    return os.path.exists (os.path.join (dump_config ("plugindir"),
                                         f"nbdkit-{name}-plugin.so"))


@pytest.fixture (name="here")
def make_here (tmp_path):
    place = Place (tmp_path)
    yield place
    for pid in place.running:
        os.kill (pid, signal.SIGKILL)


# -- the tests -----------------------------------------------------------------

def test_a_page_has_no_other_commands ():
    for page in PAGES:
        for language, text in blocks (page):
            if language in ("lua", "sh") or re.match (r"--|.*\n?.*\blocal ", text):
                continue
            for line in text.splitlines ():
                word = program (line)
                assert is_command (line) or word in NO_PROGRAMS \
                    or not word or shutil.which (word) is None, f"{page}: {line}"


def test_no_row_of_elsewhere_is_left_over ():
    used = [row for page in PAGES for command in shown (page)
            for row in elsewhere (page, command)]
    assert [row for row in ELSEWHERE if row not in used] == []


def test_no_page_has_a_cache_that_makes_it_slower ():
    """With its own size of blocks the cache filter is the usual reason for that."""
    for page in PAGES:
        # Whether it works together is all that these are about.
        if page in ("docs/compatibility.md", "docs/upstream.md"):
            continue
        for command in shown (page):
            assert "--filter=cache" not in command \
                or "cache-min-block-size" in command, f"{page}: {command}"


@functools.cache
def check_make (text):
    """make knows the target, and a bench what is to be measured."""
    printed = subprocess.run (["bash", "-c", text], stdout=subprocess.PIPE, check=True,
                              text=True, timeout=PATIENCE_SECS).stdout
    for bench in re.findall (r"^.*tests/bench/(?:bench|boot/boot)\.py.*$", printed, re.M):
        subprocess.run (bench + " --list", shell=True, check=True, cwd=TOP,
                        stdout=subprocess.DEVNULL, timeout=PATIENCE_SECS)


def prepare (page, here):
    """What a page takes to be there."""
    some = "for offset = 0, disk.size - 1, disk.block do disk:prefetch (offset) end"
    (here.path / "mine.lua").write_text (f"return function (disk) {some} end\n")
    for _, text in blocks (page):
        name = re.match (r"-- (\w+)(?:\.lua)?: ", text)
        if name:
            (here.path / (name[1] + ".lua")).write_text (text)
    if re.search (r"scan-policy (?:watch|map)", read (page)):
        here.serve ("nbdkit --filter=scan --filter=clone file far.img clone-file=disk.img "
                    "scan-stats=scan.prom clone-stats=clone.prom")
        if "FILE.map" in read (page):
            shutil.copy (here.path / "disk.img.map", here.path / "FILE.map")
        else:
            shutil.copy (here.path / "scan.prom", here.path / "FILE")


@pytest.mark.parametrize ("page", PAGES)
def test_page (page, here):
    todo = [c for c in shown (page) if not elsewhere (page, c)]
    if page == "docs/upstream.md":
        here.scan = stock_filter ()
    prepare (page, here)
    if any ("example.com" in c and " nbd " in c for c in todo):
        _, path = here.start ("nbdkit file far.img")
        os.rename (path, here.path / "origin")
    for command in todo:
        if command.startswith (("make", "sudo make")):
            check_make (here.local (command))
        elif command.startswith ("export "):
            here.shell (command + "; scan-policy list")
        elif program (command) != "nbdkit" or "--run" in command:
            here.shell (command.replace ("nbdkit ", "nbdkit -U - "))
        elif page == "docs/upstream.md":
            # It is for the scripts to use it; some would not survive that.
            here.end (here.start (command)[0], signal.SIGKILL)
        else:
            if "file disk.img" in command:
                (here.path / "disk.img").write_bytes (DISK)
            here.serve (command)


# -- what takes more than one line ---------------------------------------------

@needs ("nbdsh", "mke2fs", "debugfs", "qemu-img")
def test_fleet (here):
    """docs/fleet.md, from the first command to the last."""
    text = "".join (text for language, text in blocks ("docs/fleet.md")
                    if language == "sh")
    assert text.count ("nbdkit -") == 6
    with socket.socket () as s:
        s.bind (("localhost", 0))
        text = text.replace ("10899", str (s.getsockname ()[1]))
    # Whatever goes wrong, no server stays.
    said = here.shell ("set -eu; trap 'kill $(cat *.pid) 2>/dev/null || true' EXIT\n"
                       + text, 5 * PATIENCE_SECS)
    assert "error:" not in said, said       # of what begins; a daemon's go nowhere

    # 3: it has learnt what was read.
    assert (here.path / "boot.trace").read_text ().startswith (
        "# nbdkit scan trace: 1 run\n")
    # 4: and to know that is worth something.
    faster = dict (re.findall (r"^boot +(\S+) .*? ([\d.]+) x", said, re.M))
    assert float (faster["replay"]) > 1.5, said
    assert float (faster["replay"]) > float (faster["adaptive"]), said
    # 5: most of it is found in the next image.
    found = re.search (r"blocks of 4K: ([\d.]+) % found by content", said)
    assert float (found[1]) > 80, said
    # 6: and what the machine reads of that is in the new trace.  (Whether it was there
    # in time is a race here.)
    trace = [line.split () for line in
             (here.path / "tuesday.trace").read_text ().splitlines ()]
    fetched = {block for offset, count in trace
               for block in range (int (offset) // 4096,
                                   (int (offset) + int (count)) // 4096)}
    read_blocks = [int (word) for word in (here.path / "blocks").read_text ().split ()]
    assert len (fetched.intersection (read_blocks)) > 0.8 * len (read_blocks) > 400
    assert f'nbdkit_scan_reads_total{{export=""}} {len (read_blocks)}\n' in said, said


@needs ("qemu-io")
def test_restore (here):
    """docs/restore.md, with QEMU's block layer in the place of a guest: nbdkit is killed
    under it, the disk becomes whole, the source goes away."""
    make_room, serve, boot, make_way, show, alone = [
        c for c in shown ("docs/restore.md") if elsewhere ("docs/restore.md", c)]
    written = bytes ([87]) * 65536

    def guest (text):
        return subprocess.Popen (["bash", "-c", here.local (text)], text=True,
                                 stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                 stderr=subprocess.STDOUT, cwd=here.path, env=here.env)

    def tell (line, answer):
        machine.stdin.write (line + "\n")
        machine.stdin.flush ()
        said = machine.stdout.readline ()
        while answer not in said:
            assert said and "failed" not in said, (line, said)
            said = machine.stdout.readline ()

    here.shell (make_room)
    pid, _ = here.start (serve)
    machine = guest (boot)
    try:
        # With FUA, as flush says nothing when it is done.
        tell ("write -f -P 87 64k 64k", "wrote 65536/65536")
        here.end (pid, signal.SIGKILL)
        here.shell (make_way)
        pid, _ = here.start (serve)
        tell ("read -P 87 64k 64k", "read 65536/65536")
        wait_until (lambda: "100 %" in here.shell (show), lambda: "all of the disk")

        (here.path / "far.img").unlink ()
        here.end (pid, signal.SIGKILL)
        here.shell (make_way)
        pid, _ = here.start (serve)
        tell (f"read 0 {len (DISK)}", f"read {len (DISK)}/{len (DISK)}")
        machine.communicate ("quit\n", timeout=PATIENCE_SECS)
        here.end (pid)
        machine = guest (alone)
        tell ("read -P 87 64k 64k", "read 65536/65536")
        machine.communicate ("quit\n", timeout=PATIENCE_SECS)
    finally:
        machine.kill ()
        machine.wait ()
    assert (here.path / "var/lib/restore/disk.img").read_bytes () == \
        DISK[:65536] + written + DISK[131072:]


@needs ("mke2fs", "debugfs", "filefrag")
def test_lists_of_regions (here):
    """nbdkit-scan-policy(3) shows how to make one of where a file is."""
    of_image, of_mount = [c for c in shown ("docs/nbdkit-scan-policy.pod")
                          if program (c) in ("debugfs", "filefrag")]
    kernel = DISK[:300001]
    (here.path / "mnt/boot").mkdir (parents=True)
    (here.path / "mnt/boot/vmlinuz").write_bytes (kernel)
    here.shell ("sync mnt/boot/vmlinuz; mke2fs -q -t ext4 -b 4096 -d mnt "
                "-E offset=1048576 disk.img 16M")

    def regions ():
        with open (here.path / "regions") as f:
            rows = [tuple (map (int, line.split ())) for line in f]
        here.shell ("scan-policy check regions --file regions=regions")
        return rows

    here.shell (of_image)
    disk = (here.path / "disk.img").read_bytes ()
    found = b"".join (disk[offset:offset + count] for offset, count in regions ())
    # What tells where they are may be among the blocks.
    assert all (kernel[i:i + 4096] in found for i in range (0, len (kernel), 4096))

    if "0:" not in here.shell ("filefrag -b1 -e mnt/boot/vmlinuz || true"):
        pytest.skip ("a file system that does not tell where its files are")
    here.shell (of_mount.replace ("/mnt", f"{here.path}/mnt"))
    assert sum (count for _, count in regions ()) >= len (kernel)
