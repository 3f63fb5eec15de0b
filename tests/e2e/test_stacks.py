# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The filters and the ways to run nbdkit that the filter works with.

Each is tried with a file of random data: a client reads what is in the file, the
filter prefetches all of the disk (the log filter below it has written every
prefetch down), no error is printed, and the server ends with status 0.

docs/compatibility.md has a row for each; the last test tells what to put there.
"""

import collections
import gzip
import lzma
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time

import nbd
import pytest

from harness import CHECK_WITH, PATIENCE_SECS, SCAN, TOP, nbdkit

SIZE = 5 * 1024 * 1024 + 512        # blocks of 1M, the last one short
BLOCK = 1024 * 1024
DATA = random.Random (6).randbytes (SIZE)
SECTOR = 512
PARTITION = (2048 * SECTOR, 4096 * SECTOR)          # offset and count
# Under a checker one of each kind is enough.
CHECKED = ("cache", "retry", "cow, by reading")

# The filters in order, the plugin and what follows it; the part of DATA that a
# client sees and the part that the filter sees, as offset and count; and what to say
# of it in the table.
Stack = collections.namedtuple ("Stack", "filters plugin client scan remark")


def stack (filters, plugin="file disk.img", client=(0, SIZE), scan=(0, SIZE),
           remark=""):
    return Stack (filters, plugin, client, scan, remark)


EMULATED = "the cache filter between them, as {} can't prefetch"
STACKS = {
    "no other filter": stack ("scan", remark="the plugin prefetches, as file does"),
    "cache": stack ("scan cache"),
    "cache, of reads too": stack ("scan cache", "file disk.img cache-on-read=true"),
    "cow": stack ("scan cow", "file disk.img cow-on-cache=true"),
    "cow, by reading": stack (
        "scan cow", "file disk.img cow-on-read=true scan-method=read",
        remark="the one to use with scan-threads"),
    "retry": stack ("scan cache retry",
                    remark="requests are serialized, so each scan opens a context of "
                    "its own"),
    "retry, above": stack ("retry scan cache", remark="as before"),
    "multi-conn": stack ("scan cache multi-conn"),
    "multi-conn, above": stack ("multi-conn scan cache"),
    "partition": stack ("scan cache partition", "file mbr.img partition=1",
                        PARTITION, PARTITION, "the partition is scanned"),
    "partition, above": stack ("partition scan cache", "file mbr.img partition=1",
                               PARTITION, remark="all of the disk is scanned"),
    "offset": stack ("scan cache offset", "file disk.img offset=1M range=2M",
                     (BLOCK, 2 * BLOCK), (BLOCK, 2 * BLOCK), "the range is scanned"),
    "offset, above": stack ("offset scan cache", "file disk.img offset=1M range=2M",
                            (BLOCK, 2 * BLOCK), remark="all of the disk is scanned"),
    "xz": stack ("scan cache xz", "file disk.img.xz", remark=EMULATED.format ("xz")),
    "gzip": stack ("scan cache gzip", "file disk.img.gz",
                   remark=EMULATED.format ("gzip")),
    "exportname": stack (
        "scan exportname", "file dir=. exportname-list=explicit exportname=disk.img "
        "default-export=disk.img"),
    "exportname, above": stack (
        "exportname scan", "file dir=. exportname-list=explicit exportname=disk.img "
        "default-export=disk.img scan-exports=disk.img",
        remark="`scan-exports`, as the filter gets the changed name"),
    "exitlast": stack ("exitlast scan cache"),
}


@pytest.fixture (scope="module", name="images")
def make_images (tmp_path_factory):
    """A directory with disk.img, mbr.img, disk.img.xz and disk.img.gz."""
    directory = tmp_path_factory.mktemp ("images")
    (directory / "disk.img").write_bytes (DATA)
    (directory / "disk.img.gz").write_bytes (gzip.compress (DATA, 1))
    # xz's own program divides a file into blocks, which the filter wants.
    with open (directory / "disk.img.xz", "wb") as out:
        subprocess.run (["xz", "-0", "--block-size=1MiB", "--stdout",
                         directory / "disk.img"], check=True, stdout=out)
    assert lzma.open (directory / "disk.img.xz").read () == DATA

    # The same data, but for the boot sector with one primary partition.
    entry = bytes ([0, 0, 2, 0, 0x83, 0, 0, 0]) + b"".join (
        (n // SECTOR).to_bytes (4, "little") for n in PARTITION)
    mbr = bytes (446) + entry + bytes (48) + b"\x55\xaa"
    (directory / "mbr.img").write_bytes (mbr + DATA[SECTOR:])
    return directory


def part (offset, count):
    return DATA[offset : offset + count]


def read_all (h):
    size = h.get_size ()
    return b"".join (bytes (h.pread (min (BLOCK, size - offset), offset))
                     for offset in range (0, size, BLOCK))


def prefetched (log):
    """The bytes that requests in a file of the log filter cover."""
    done = set ()
    if not log.exists ():
        return 0
    request = re.compile (r" (?:Cache|Read) id=\d+ offset=(\w+) count=(\w+)")
    for line in log.read_text ().splitlines ():
        match = request.search (line)
        if match:
            done.add ((int (match[1], 16), int (match[2], 16)))
    return sum (count for _, count in done)


def command_line (tried, scan="scan", log=None):
    """Filters, and the plugin with its parameters, of a stack as lists of words."""
    filters = []
    for name in tried.filters.split ():
        filters.append (scan if name == "scan" else name)
        if name == "scan" and log:
            filters.append ("log")
    plugin = tried.plugin.split ()
    return filters, plugin + ([f"logfile={log}", f"scan-size={BLOCK}"] if log else [])


@pytest.mark.parametrize ("name", STACKS)
def test_stack (name, images, tmp_path, monkeypatch):
    if CHECK_WITH and name not in CHECKED:
        pytest.skip ("others are enough for a checker")
    tried = STACKS[name]
    log = tmp_path / "log"
    filters, plugin = command_line (tried, SCAN, log)
    monkeypatch.chdir (images)
    with nbdkit (filters, plugin) as server:
        h = server.connect ()
        # The client's own reads would be in the log, too, but these are none yet.
        server.poll (lambda: prefetched (log) == tried.scan[1], "all to be prefetched")
        assert read_all (h) == part (*tried.client)
        assert server.errors () == []
        if "exitlast" in filters:
            server.disconnect (h)
            server.process.wait (PATIENCE_SECS)
            server.terminated = True


# -- ways to run nbdkit --------------------------------------------------------

# The options of nbdkit that the tests below are about, for the table.
WAYS = {}


def way (options, remark=""):
    """Note what a test is about."""
    def note (test):
        WAYS[options] = remark
        return test
    return note


needs_plain_nbdkit = pytest.mark.skipif (
    CHECK_WITH != "", reason="other programs can't run under the checker")


def argv (log, *options):
    return ["nbdkit", *options, "--filter=" + SCAN, "--filter=log", "--filter=cache",
            "file", "disk.img", f"logfile={log}", f"scan-size={BLOCK}"]


def options_for_harness (log):
    return {"filters": [SCAN, "log", "cache"],
            "plugin": ["file", "disk.img", f"logfile={log}", f"scan-size={BLOCK}"]}


@way ("-r")
def test_read_only (images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log = tmp_path / "log"
    with nbdkit (options=["-r"], **options_for_harness (log)) as server:
        h = server.connect ()
        server.poll (lambda: prefetched (log) == SIZE, "all to be prefetched")
        assert h.is_read_only ()
        assert read_all (h) == DATA
        assert server.errors () == []


@needs_plain_nbdkit
@way ("--run COMMAND")
def test_run (images, tmp_path):
    copy, log = tmp_path / "copy", tmp_path / "log"
    run = subprocess.run (
        argv (log, "-U", "-", "--run", f'nbdcopy "$uri" {copy}'), cwd=images,
        stderr=subprocess.PIPE, text=True, timeout=PATIENCE_SECS)
    assert (run.returncode, run.stderr) == (0, "")
    assert copy.read_bytes () == DATA
    assert prefetched (log) > 0


def wait_for (condition):
    deadline = time.monotonic () + PATIENCE_SECS
    while not condition ():
        assert time.monotonic () < deadline, "waited in vain"
        time.sleep (0.001)


@needs_plain_nbdkit
@way ("-s", "one client, on standard input and output")
def test_single (images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log, errors, pid = tmp_path / "log", tmp_path / "errors", tmp_path / "pid"
    h = nbd.NBD ()
    h.connect_command (["sh", "-c", f'echo $$ > {pid}; exec "$@" 2> {errors}', "sh",
                        *argv (log, "-s")])
    wait_for (lambda: prefetched (log) == SIZE)
    assert read_all (h) == DATA
    h.shutdown ()
    del h                               # waits for the server
    assert errors.read_text () == ""
    assert not os.path.exists (f"/proc/{pid.read_text ().strip ()}")


@needs_plain_nbdkit
@way ("socket activation", "as under systemd, with `LISTEN_FDS`")
def test_socket_activation (images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log = tmp_path / "log"
    path = str (tmp_path / "sock")
    with socket.socket (socket.AF_UNIX) as listener:
        listener.bind (path)
        listener.listen ()
        # File descriptor 3 and the process's own id, as systemd passes them.
        server = subprocess.Popen (
            ["bash", "-c", f'exec 3<&{listener.fileno ()}; '
             'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"', "bash", *argv (log, "-f")],
            pass_fds=[listener.fileno ()], stderr=subprocess.PIPE, text=True)
    try:
        h = nbd.NBD ()
        h.connect_unix (path)
        wait_for (lambda: prefetched (log) == SIZE)
        assert read_all (h) == DATA
        h.shutdown ()
        server.send_signal (signal.SIGTERM)
        assert server.communicate (timeout=PATIENCE_SECS)[1] == ""
        assert server.returncode == 0
    finally:
        server.kill ()
        server.wait ()


def run_tls (images, log, options, prepare, monkeypatch):
    monkeypatch.chdir (images)
    with nbdkit (options=["--tls=require", *options],
                 **options_for_harness (log)) as server:
        h = server.connect (prepare=prepare)
        assert h.get_tls_negotiated ()
        server.poll (lambda: prefetched (log) == SIZE, "all to be prefetched")
        assert read_all (h) == DATA
        assert server.errors () == []


@needs_plain_nbdkit
@way ("--tls=require --tls-psk=FILE")
def test_tls_psk (images, tmp_path, monkeypatch):
    psk = tmp_path / "psk"
    psk.write_text ("guest:" + "0123456789abcdef" * 4 + "\n")

    def prepare (h):
        h.set_tls (nbd.TLS_REQUIRE)
        h.set_tls_username ("guest")
        h.set_tls_psk_file (str (psk))
    run_tls (images, tmp_path / "log", [f"--tls-psk={psk}"], prepare, monkeypatch)


@needs_plain_nbdkit
@pytest.mark.skipif (not shutil.which ("certtool"), reason="certtool is not installed")
@way ("--tls=require --tls-certificates=DIR")
def test_tls_certificates (images, tmp_path, monkeypatch):
    def certtool (*words):
        subprocess.run (["certtool", *words], cwd=tmp_path, check=True,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for who, template in [
            ("ca", 'cn = "authority"\nca\ncert_signing_key\n'),
            ("server", 'cn = "localhost"\ndns_name = "localhost"\n'
                       "tls_www_server\nencryption_key\nsigning_key\n")]:
        (tmp_path / f"{who}.info").write_text (template)
        certtool ("--generate-privkey", "--key-type=ecdsa", f"--outfile={who}-key.pem")
    certtool ("--generate-self-signed", "--load-privkey=ca-key.pem",
              "--template=ca.info", "--outfile=ca-cert.pem")
    certtool ("--generate-certificate", "--load-privkey=server-key.pem",
              "--load-ca-certificate=ca-cert.pem", "--load-ca-privkey=ca-key.pem",
              "--template=server.info", "--outfile=server-cert.pem")
    client = tmp_path / "client"
    client.mkdir ()
    shutil.copy (tmp_path / "ca-cert.pem", client)

    def prepare (h):
        h.set_tls (nbd.TLS_REQUIRE)
        h.set_tls_certificates (str (client))
        # A unix socket has no host name for the certificate to be checked with.
        h.set_tls_verify_peer (False)
    run_tls (images, tmp_path / "log", [f"--tls-certificates={tmp_path}"], prepare,
             monkeypatch)


# -- the table -----------------------------------------------------------------

def test_table ():
    """docs/compatibility.md has exactly what is tried here."""
    rows = []
    for name, tried in STACKS.items ():
        filters, plugin = command_line (tried)
        line = " ".join (["--filter=" + f for f in filters] + plugin)
        rows.append (f"| {name} | `{line}` | {tried.remark} |")
    rows += [f"| `{options}` | {remark} |" for options, remark in WAYS.items ()]
    with open (os.path.join (TOP, "docs/compatibility.md")) as f:
        lines = [line.rstrip ("\n") for line in f]
    missing = [row for row in rows if row not in lines]
    assert not missing, "\n".join (["add to docs/compatibility.md:", *missing])
    more = [line for line in lines if line.startswith ("| ") and "`" in line
            and line not in rows]
    assert not more, "\n".join (["not tried by any test:", *more])
