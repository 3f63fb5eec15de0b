#!/usr/bin/python3
# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""A guest that runs from a remote disk until that disk is its own.

    tests/restore/restore.py

`make check-restore` runs it; docs/restore.md is about it.  A guest boots over scan and
clone from a disk behind a slow line, and works.  nbdkit is killed under it and started
again; all of the disk becomes local; the source goes away; nbdkit is killed and started
again without it.  In the end the clone has all that the guest has flushed, and its file
system is clean.
"""

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time

HERE = os.path.dirname (os.path.abspath (__file__))
sys.path.insert (0, os.path.join (HERE, "../bench/boot"))

import guest            # noqa: E402
import stacks           # noqa: E402

# Only how long to wait before it is called a failure.
STEP_SECS = 600
GUEST_SECS = 1500
# How long QEMU keeps a request of the guest until nbdkit is there again.
RECONNECT_SECS = 300

LINE = stacks.LINES[0]
CONSOLE = "quiet systemd.mask=serial-getty@ttyS0.service"


def say (text):
    print (f"{time.monotonic () - START:6.1f} s  {text}", flush=True)


def expect (condition, what):
    if not condition:
        raise guest.Failed (what)


class Process:
    """An nbdkit, with what it says in a file."""

    def __init__ (self, directory, name, words):
        self.socket = os.path.join (directory, name + ".sock")
        self.pid_file = os.path.join (directory, name + ".pid")
        self.log = os.path.join (directory, name + ".log")
        self.words = words
        self.process = None

    def start (self, *more):
        # What a killed one has left would be taken for a sign of the new one.
        for path in (self.pid_file, self.socket):
            if os.path.exists (path):
                os.remove (path)
        with open (self.log, "a") as log:
            self.process = subprocess.Popen (
                ["nbdkit", "-f", "-U", self.socket, "-P", self.pid_file, *self.words,
                 *more], stdin=subprocess.DEVNULL, stderr=log)
        guest.wait_until (lambda: os.path.exists (self.pid_file)
                          or self.process.poll () is not None,
                          guest.START_SECS, "nbdkit")
        expect (self.process.poll () is None, "nbdkit does not start: " + self.said ())

    def kill (self):
        if self.process:
            self.process.kill ()
            self.process.wait ()

    def stop (self):
        self.process.terminate ()
        expect (self.process.wait (STEP_SECS) == 0, "nbdkit failed: " + self.said ())

    def said (self):
        with open (self.log) as f:
            return "".join (f.readlines ()[-20:])


class Guest:
    """QEMU; what the guest prints is read by a thread."""

    def __init__ (self, accel, socket):
        drive = ("driver=nbd,node-name=disk,server.type=unix,"
                 f"server.path={socket},reconnect-delay={RECONNECT_SECS}")
        self.process = subprocess.Popen (
            guest.qemu (accel, CONSOLE)
            + ["-blockdev", drive, "-device", "virtio-blk-pci,drive=disk"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.killer = threading.Timer (GUEST_SECS, self.process.kill)
        self.killer.start ()
        self.lines = []
        self.ended = False
        self.changed = threading.Condition ()
        self.reader = threading.Thread (target=self._read, daemon=True)
        self.reader.start ()

    def _read (self):
        for line in self.process.stdout:
            with self.changed:
                self.lines.append (line.decode (errors="replace").strip ())
                self.changed.notify_all ()
        with self.changed:
            self.ended = True
            self.changed.notify_all ()

    def tell (self, text):
        # If QEMU has ended, what is waited for next tells.
        with contextlib.suppress (BrokenPipeError):
            self.process.stdin.write (text.encode () + b"\n")
            self.process.stdin.flush ()

    def wait (self, regex):
        """Wait until the guest prints that; returns the match."""
        def found ():
            matches = (re.search ("restore: " + regex, line) for line in self.lines)
            return next (filter (None, matches), None)
        with self.changed:
            self.changed.wait_for (lambda: found () or self.ended, STEP_SECS)
            match = found ()
        expect (match, f"the guest never says '{regex}':\n"
                + "\n".join (self.lines[-20:]))
        return match

    def kill (self):
        self.killer.cancel ()
        self.process.kill ()
        self.process.wait ()
        self.reader.join ()
        self.process.stdout.close ()


def source_disk (directory):
    """bench-boot's guest, with other work to do."""
    disk = os.path.join (directory, "source.img")
    subprocess.run (["cp", "--sparse=always", "--reflink=auto", guest.DISK, disk],
                    check=True)
    work = "/usr/local/bin/work"
    for command in (f"rm {work}", f"write {HERE}/guest-work {work}",
                    f"set_inode_field {work} mode 0100755"):
        subprocess.run (["debugfs", "-w", "-R", command, disk], check=True,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return disk


def counter (path, name):
    """A counter of the clone filter, -1 if there is none yet."""
    try:
        with open (path) as f:
            found = re.search (rf"^nbdkit_clone_{name}{{.*}} (\d+)$", f.read (), re.M)
    except FileNotFoundError:
        found = None
    return int (found[1]) if found else -1


def sum_of (image, directory, number):
    """Like `sum` in guest-work, of what the guest left in a round."""
    out = os.path.join (directory, f"round-{number}")
    os.mkdir (out)
    subprocess.run (["debugfs", "-R", f"rdump /var/lib/restore/{number} {out}", image],
                    check=True, stderr=subprocess.DEVNULL)
    # The names are part of the sum, so they are made to be what they were there.
    lines = []
    for where, _, names in os.walk (os.path.join (out, str (number))):
        for name in names:
            path = os.path.join (where, name)
            if os.path.islink (path):
                continue
            with open (path, "rb") as f:
                digest = hashlib.sha256 (f.read ()).hexdigest ()
            lines.append (f"{digest}  /var/lib/restore{path[len (out):]}\n")
    return hashlib.sha256 ("".join (sorted (lines)).encode ()).hexdigest ()


def restore (accel, directory):
    disk = source_disk (directory)
    size = os.path.getsize (disk)
    clone = os.path.join (directory, "clone.img")
    stats = os.path.join (directory, "clone.stats")

    origin = Process (directory, "origin", [
        "-r", "--filter=" + guest.stock ("rate"), "--filter=" + guest.stock ("delay"),
        "file", disk, f"rate={LINE.rate_mbit}M", f"rdelay={LINE.latency_ms}ms"])
    server = Process (directory, "server", [
        "--filter=" + guest.FILTERS[stacks.OURS], "--filter="
        + guest.FILTERS[stacks.CLONE], "nbd", "socket=" + origin.socket,
        f"clone-file={clone}", f"clone-stats={stats}",
        "scan-policy=adaptive", "scan-threads=8"])
    flushed, machine = {}, None

    def flush (number):
        flushed[number] = machine.wait (rf"flushed {number} (\w{{64}})")[1]
        say (f"round {number} is flushed")

    def begin (number):
        machine.tell (f"work {number}")
        machine.wait (f"begin {number}")

    try:
        origin.start ()
        # So that it is not all there before the first kill, and what survives that is
        # what the guest has flushed.
        server.start ("scan-limit=128M", "clone-commit=3600")
        machine = Guest (accel, server.socket)
        machine.wait ("up")
        say (f"the guest is up, over {LINE.name}")
        begin (1)
        flush (1)

        begin (2)
        server.kill ()
        say ("killed in the middle of round 2")
        server.start ("clone-commit=1")
        say ("started again")
        flush (2)

        begin (3)
        guest.wait_until (lambda: counter (stats, "present_bytes") == size, STEP_SECS,
                          "the whole disk to be there")
        say ("the whole disk is there")
        flush (3)
        origin.kill ()
        say ("the source is gone")

        begin (4)
        server.kill ()
        say ("killed in the middle of round 4")
        server.start ()
        say ("started again")
        flush (4)
        for number in flushed:
            machine.tell (f"verify {number}")
            found = machine.wait (rf"holds {number} (\w{{64}}) (\d+)")
            expect (found[1] == flushed[number], f"round {number} reads otherwise")
            expect (found[2] == "0", "files of the image have changed")
        say ("the guest reads all that it wrote, and the image's own files")
        machine.tell ("end")
        expect (machine.process.wait (STEP_SECS) == 0, "QEMU failed")
        server.stop ()
        say ("the guest is off")
    except guest.Failed as failure:
        raise guest.Failed (f"{failure}\nnbdkit said:\n{server.said ()}")
    finally:
        if machine:
            machine.kill ()
        for process in (server, origin):
            process.kill ()

    check = subprocess.run (["e2fsck", "-f", "-n", clone], stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)
    expect (check.returncode == 0, "e2fsck: " + check.stdout)
    for number, expected in flushed.items ():
        expect (sum_of (clone, directory, number) == expected,
                f"round {number} is not in the clone")
    say (f"the clone is clean, and has all {len (flushed)} rounds")


def main ():
    os.makedirs (guest.OUT, exist_ok=True)
    if subprocess.run ([HERE + "/../bench/boot/make-guest", guest.OUT]).returncode != 0:
        sys.exit (1)
    accel, why = guest.accelerator ()
    if why:
        say (f"the guest's processor is emulated: {why}")
    directory = tempfile.mkdtemp (prefix="scan-restore-", dir="/var/tmp")
    try:
        restore (accel, directory)
    except guest.Failed as failure:
        print (f"restore: {failure}\n0 passed, 1 failed")
        sys.exit (1)
    finally:
        shutil.rmtree (directory)
    print ("1 passed, 0 failed")


START = time.monotonic ()

if __name__ == "__main__":
    main ()
