# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Boot the guest of make-guest in QEMU, from its disk or over NBD, and time it."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time

import stacks

OUT = os.path.join (stacks.TOP, "build/boot")
DISK = os.path.join (OUT, "disk.img")
FILTERS = {stacks.OURS: os.path.join (stacks.TOP, "build/nbdkit-scan-filter.so"),
           stacks.CLONE: os.path.join (stacks.TOP, "build/nbdkit-clone-filter.so")}

# Only how long to wait before it is called a failure.
START_SECS = 30
BOOT_SECS = 3600
PROBE_SECS = 20

# Long enough that the guest's work needs no swap, short of what caches the disk.
MEMORY_MIB = 512


class Failed (Exception):
    pass


def stock (name):
    """nbdkit's own filter, also where ours has taken its place."""
    text = subprocess.run (["nbdkit", "--dump-config"], check=True,
                           stdout=subprocess.PIPE, text=True).stdout
    filterdir = re.search (r"^filterdir=(.*)$", text, re.M)[1]
    path = f"{filterdir}/nbdkit-{name}-filter.so"
    return path + ".distrib" if os.path.exists (path + ".distrib") else path


def wait_until (condition, seconds, what):
    deadline = time.monotonic () + seconds
    while not condition ():
        if time.monotonic () > deadline:
            raise Failed (f"waited in vain for {what}")
        time.sleep (0.005)


class Server:
    """nbdkit with the disk behind a line; made by `server`."""

    def __init__ (self, stack, line, disk, directory, trace, writable):
        self.dir = tempfile.mkdtemp (prefix="scan-boot-")
        self.socket = os.path.join (self.dir, "sock")
        filters = [FILTERS.get (f) or stock (f) for f in stack.filters]
        args = [a.replace ("=TRACE", "=" + trace).replace ("=DIR", "=" + directory)
                for a in stack.args]
        filters.append ("stats")
        args.append (f"statsfile={self.dir}/stats")
        if line:
            filters += ["rate", "delay"]
            args += [f"rate={line.rate_mbit}M", "burstiness=0.05",
                     f"rdelay={line.latency_ms}ms", f"wdelay={line.latency_ms}ms"]
        self.command = ["nbdkit", "-f", "-U", self.socket, "-P", self.dir + "/pid",
                        *([] if writable else ["-r"]),
                        *("--filter=" + f for f in filters), "file", disk, *args]
        self.log = open (self.dir + "/log", "w+")
        self.process = subprocess.Popen (self.command, stdin=subprocess.DEVNULL,
                                         stderr=self.log)

    def said (self):
        self.log.seek (0)
        return " ".join (self.command) + "\n" + self.log.read ()

    def wait_ready (self):
        wait_until (lambda: self.process.poll () is not None
                    or os.path.exists (self.dir + "/pid"), START_SECS, "nbdkit")
        if self.process.poll () is not None:
            raise Failed ("nbdkit does not start: " + self.said ())

    def stop (self):
        """Returns the bytes that were read from the source."""
        self.process.send_signal (signal.SIGTERM)
        self.process.wait (START_SECS)
        read_bytes = 0
        with contextlib.suppress (FileNotFoundError), \
             open (self.dir + "/stats") as stats:
            m = re.search (r"^read: \d+ ops, [\d.]+ s, ([\d.]+) (\w+)",
                           stats.read (), re.M)
            if m:
                unit = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
                read_bytes = float (m[1]) * unit[m[2]]
        return read_bytes

    def clean (self):
        if self.process.poll () is None:
            self.process.kill ()
            self.process.wait ()
        self.log.close ()
        shutil.rmtree (self.dir)


@contextlib.contextmanager
def server (*args):
    s = Server (*args)
    try:
        s.wait_ready ()
        yield s
    finally:
        s.clean ()


def qmp (path, *commands):
    """Have QEMU do some things, one after the other."""
    with socket.socket (socket.AF_UNIX) as s:
        s.connect (path)
        with s.makefile ("rw") as stream:
            stream.readline ()          # it greets
            for command in ({"execute": "qmp_capabilities"}, *commands):
                stream.write (json.dumps (command) + "\n")
                stream.flush ()
                answer = json.loads (stream.readline ())
                while "event" in answer:
                    answer = json.loads (stream.readline ())
                if "error" in answer:
                    raise Failed (f"QEMU: {command}: {answer['error']['desc']}")


def qemu (accel, console="quiet"):
    return ["qemu-system-x86_64", "-accel", accel, "-m", str (MEMORY_MIB), "-smp", "1",
            "-display", "none", "-nodefaults", "-no-reboot", "-serial", "stdio",
            *(["-cpu", "max"] if accel != "kvm" else []),
            "-kernel", OUT + "/vmlinuz", "-initrd", OUT + "/initrd.img",
            "-append", f"root=/dev/vda console=ttyS0 {console} panic=-1 net.ifnames=0"]


def accelerator ():
    """kvm if a kernel says its first words with it, else tcg, and why."""
    if not os.access ("/dev/kvm", os.R_OK | os.W_OK):
        return "tcg", "there is no /dev/kvm"
    # No disk: it would panic, and reboot is off.
    process = subprocess.Popen (qemu ("kvm", console=""), stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    killer = threading.Timer (PROBE_SECS, process.kill)
    killer.start ()
    try:
        boots = any (b"Linux version" in line for line in process.stdout)
    finally:
        killer.cancel ()
        process.kill ()
        process.wait ()
        process.stdout.close ()
    return ("kvm", "") if boots else ("tcg", "/dev/kvm is there and does not work")


def drive (stack, uri_or_file, writable, directory):
    """Options for QEMU."""
    if stack.how != "stream":
        return ["-drive", f"file={uri_or_file},format=raw,if=virtio,snapshot="
                + ("off" if writable else "on")]
    overlay = os.path.join (directory, "overlay.qcow2")
    subprocess.run (["qemu-img", "create", "-q", "-f", "qcow2", overlay,
                     str (os.path.getsize (DISK))], check=True)
    return ["-S", "-qmp", f"unix:{directory}/qmp,server=on,wait=off",
            "-blockdev", "driver=nbd,node-name=source,read-only=on,server.type=unix,"
            f"server.path={uri_or_file}",
            "-blockdev", "driver=qcow2,node-name=top,file.driver=file,"
            f"file.filename={overlay},backing=source",
            "-blockdev", "driver=copy-on-read,node-name=keep,file=top",
            "-device", "virtio-blk-pci,drive=keep"]


def boot (command, on_start=None):
    """Run QEMU until the guest has done its work and is off; returns the seconds to
    the former."""
    start = time.monotonic ()
    process = subprocess.Popen (command, stdin=subprocess.DEVNULL,
                                stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    killer = threading.Timer (BOOT_SECS, process.kill)
    killer.start ()
    seconds, last = None, []
    try:
        if on_start:
            on_start ()
        for line in process.stdout:
            last = last[-20:] + [line.decode (errors="replace").rstrip ()]
            if b"boot: done" in line:
                seconds = time.monotonic () - start
        process.wait ()
    finally:
        killer.cancel ()
        process.kill ()
        process.wait ()
        process.stdout.close ()
    if seconds is None:
        raise Failed ("the guest does not get to its end:\n" + "\n".join (last))
    return seconds


def boot_over (stack, line, accel, directory, trace, writable):
    """Boot once; returns seconds, and bytes from the source."""
    disk = DISK
    if writable and stack.how != "stream":
        disk = os.path.join (directory, "disk.img")
        subprocess.run (["cp", "--sparse=always", "--reflink=auto", DISK, disk],
                        check=True)
    command = qemu (accel)
    if stack.how == "local":
        return boot (command + drive (stack, disk, writable, directory)), 0
    with server (stack, line, disk, directory, trace, writable) as s:
        try:
            if stack.how == "stream":
                def stream ():
                    path = directory + "/qmp"       # QEMU takes it away in the end
                    wait_until (lambda: os.path.exists (path), START_SECS, "QEMU")
                    qmp (path, {"execute": "block-stream",
                                "arguments": {"device": "top", "job-id": "stream"}},
                         {"execute": "cont"})
                seconds = boot (command + drive (stack, s.socket, writable, directory),
                                stream)
            else:
                seconds = boot (command + drive (
                    stack, f"nbd+unix:///?socket={s.socket}", writable, directory))
        except Failed as failure:
            raise Failed (f"{failure}\n{s.said ()}")
        return seconds, s.stop ()


def record_trace (accel, path):
    """What the guest reads, for the replay policy."""
    with tempfile.TemporaryDirectory (prefix="scan-boot-") as directory:
        stack = stacks.Stack ("record", "nbdkit", ["log"], [f"logfile={path}.new"])
        boot_over (stack, None, accel, directory, "", False)
    os.rename (path + ".new", path)
