# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The filters and the ways to run nbdkit that the filter works with.

Each is tried with a file of random data: a client reads what is in the file, the
filter prefetches all of the disk (the log filter below it has written every
prefetch down), no error is printed, and the server ends with status 0.

docs/compatibility.md has a row for each; the last test tells what to put there.
"""

import collections
import contextlib
import gzip
import lzma
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import nbd
import pytest

from harness import CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, TOP, nbdkit, needs

SIZE = 5 * 1024 * 1024 + 512        # blocks of 1M, the last one short
BLOCK = 1024 * 1024
DATA = random.Random (6).randbytes (SIZE)
SECTOR = 512
PARTITION = (2048 * SECTOR, 4096 * SECTOR)          # offset and count
# Under a checker one of each kind is enough.
CHECKED = ("cache", "retry", "cow, by reading", "clone", "clone over retry")

# The filters in order, the plugin and what follows it; the part of DATA that a
# client sees and the part that the filter sees, as offset and count; and what to say
# of it in the table.
Stack = collections.namedtuple ("Stack", "filters plugin client scan remark")


def stack (filters, plugin="file disk.img", client=(0, SIZE), scan=(0, SIZE),
           remark=""):
    return Stack (filters, plugin, client, scan, remark)


KEPT = " clone-file=clone.img"
EMULATED = "the cache filter between them, as {} can't prefetch"
STACKS = {
    "no other filter": stack ("scan", remark="the plugin prefetches, as file does"),
    "cache": stack ("scan cache"),
    "cache, of reads too": stack ("scan cache", "file disk.img cache-on-read=true"),
    "cow": stack ("scan cow", "file disk.img cow-on-cache=true"),
    "cow, by reading": stack (
        "scan cow", "file disk.img cow-on-read=true scan-method=read",
        remark="for clients that only read; see the manual, \"Writing clients\""),
    "clone": stack ("scan clone", "file disk.img" + KEPT,
                    remark="the one to use for most purposes"),
    "clone, for a while": stack ("scan clone", remark="in a temporary file, as cow's"),
    "clone, as a cache": stack (
        "scan clone", "file disk.img" + KEPT + " clone-write=through",
        remark="what clients write goes to the plugin, too"),
    "clone over retry": stack (
        "scan clone retry", "file disk.img" + KEPT,
        remark="requests are serialized, so each scan opens a context of its own"),
    "clone over retry-request": stack (
        "scan clone retry-request", "file disk.img" + KEPT,
        remark="requests are not serialized, so for curl and the like rather than retry"),
    "retry over clone": stack ("retry scan clone", "file disk.img" + KEPT),
    "clone over noparallel": stack (
        "scan clone noparallel", "file disk.img serialize=requests" + KEPT,
        remark="as before, for plugins that are like that: ssh, curl of nbdkit 1.32"),
    "clone over partition": stack (
        "scan clone partition", "file mbr.img partition=1" + KEPT, PARTITION, PARTITION,
        "the clone is of the partition"),
    "partition over clone": stack (
        "partition scan clone", "file mbr.img partition=1" + KEPT, PARTITION,
        remark="the clone is of all of the disk"),
    "clone over offset": stack (
        "scan clone offset", "file disk.img offset=1M range=2M" + KEPT,
        (BLOCK, 2 * BLOCK), (BLOCK, 2 * BLOCK), "the clone is of the range"),
    "offset over clone": stack (
        "offset scan clone", "file disk.img offset=1M range=2M" + KEPT,
        (BLOCK, 2 * BLOCK), remark="the clone is of all of the disk"),
    "clone over truncate": stack (
        "scan clone truncate", "file disk.img truncate=3M" + KEPT,
        (0, 3 * BLOCK), (0, 3 * BLOCK), "the clone is of what is left"),
    "truncate over clone": stack (
        "truncate scan clone", "file disk.img truncate=3M" + KEPT, (0, 3 * BLOCK),
        remark="the clone is of all of the disk"),
    "clone over xz": stack ("scan clone xz", "file disk.img.xz" + KEPT,
                            remark="the clone is not compressed"),
    "clone over gzip": stack ("scan clone gzip", "file disk.img.gz" + KEPT,
                              remark="the clone is not compressed"),
    "clone over blocksize-policy": stack (
        "scan clone blocksize-policy truncate", "file disk.img blocksize-minimum=4096 "
        "blocksize-maximum=256K blocksize-error-policy=error truncate=5M" + KEPT,
        (0, 5 * BLOCK), (0, 5 * BLOCK), "the plugin is asked as it wants to be"),
    "blocksize-policy over clone": stack (
        "blocksize-policy scan clone", "file disk.img blocksize-minimum=1 "
        "blocksize-error-policy=error" + KEPT),
    "clone over the nbd plugin": stack (
        "scan clone", "nbd socket=SOCKET" + KEPT,
        remark="the other server may be far away"),
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


def command_line (tried, directory=None):
    """Filters, and the plugin with its parameters, of a stack as lists of words: as the
    page has them, or to be run with files in a directory."""
    filters, plugin = tried.filters.split (), tried.plugin.split ()
    if directory is None:
        return filters, plugin
    ours = {"scan": [SCAN, "log"], "clone": [CLONE]}
    places = {"clone-file=clone.img": f"clone-file={directory}/clone.img",
              "socket=SOCKET": f"socket={directory}/other/sock"}
    return ([word for name in filters for word in ours.get (name, [name])],
            [places.get (word, word) for word in plugin]
            + [f"logfile={directory}/log", f"scan-size={BLOCK}"])


@pytest.mark.parametrize ("name", STACKS)
def test_stack (name, images, tmp_path, monkeypatch):
    if CHECK_WITH and name not in CHECKED:
        pytest.skip ("others are enough for a checker")
    tried = STACKS[name]
    log = tmp_path / "log"
    filters, plugin = command_line (tried, tmp_path)
    monkeypatch.chdir (images)
    with contextlib.ExitStack () as others:
        if "socket=SOCKET" in tried.plugin:
            other = others.enter_context (nbdkit ([], ["file", "disk.img"]))
            (tmp_path / "other").symlink_to (other.dir)
        with nbdkit (filters, plugin) as server:
            h = server.connect ()
            # The client's own reads would be in the log, too, but these are none yet.
            server.poll (lambda: prefetched (log) == tried.scan[1],
                         "all to be prefetched")
            assert read_all (h) == part (*tried.client)
            assert server.errors () == []
            if "exitlast" in filters:
                server.disconnect (h)
                server.process.wait (PATIENCE_SECS)
                server.terminated = True
    if "clone.img" in tried.plugin:
        # A disk by itself, with nothing of nbdkit.
        clone = (tmp_path / "clone.img").read_bytes ()
        assert sector (clone) == sector (part (*tried.scan))


def sector (data):
    """Of the partition table, only what test data are made of is compared."""
    return data[SECTOR:]


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


@pytest.fixture (name="layer", params=["cache", "clone"])
def each_layer (request):
    """The filter that keeps what is fetched."""
    return {"cache": "cache", "clone": CLONE}[request.param]


def argv (layer, log, *options):
    return ["nbdkit", *options, "--filter=" + SCAN, "--filter=log", "--filter=" + layer,
            "file", "disk.img", f"logfile={log}", f"scan-size={BLOCK}"]


def options_for_harness (layer, log):
    return {"filters": [SCAN, "log", layer],
            "plugin": ["file", "disk.img", f"logfile={log}", f"scan-size={BLOCK}"]}


@way ("-r")
def test_read_only (layer, images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log = tmp_path / "log"
    with nbdkit (options=["-r"], **options_for_harness (layer, log)) as server:
        h = server.connect ()
        server.poll (lambda: prefetched (log) == SIZE, "all to be prefetched")
        assert h.is_read_only ()
        assert read_all (h) == DATA
        assert server.errors () == []


@way ("-e NAME", "with `scan-exports=NAME`")
def test_default_export (layer, images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log = tmp_path / "log"
    stack_ = options_for_harness (layer, log)
    stack_["plugin"].append ("scan-exports=disk")
    if layer == CLONE:
        stack_["plugin"].append (f"clone-dir={tmp_path}")
    with nbdkit (options=["-e", "disk"], **stack_) as server:
        h = server.connect ("disk")
        server.poll (lambda: prefetched (log) == SIZE, "all to be prefetched")
        assert read_all (h) == DATA
        assert server.errors () == []
    if layer == CLONE:
        assert (tmp_path / "disk.img").read_bytes () == DATA


@needs_plain_nbdkit
@way ("--run COMMAND")
def test_run (layer, images, tmp_path):
    copy, log = tmp_path / "copy", tmp_path / "log"
    # The copy could be over before the scan has begun.
    first = f"""timeout 30 {sys.executable} -m nbd -u "$uri" -c 'import time' -c """ \
        f""""while ' Cache ' not in open ('{log}').read (): time.sleep (0.01)" """
    run = subprocess.run (
        argv (layer, log, "-U", "-", "--run", f'{first}; nbdcopy "$uri" {copy}'), cwd=images,
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
def test_single (layer, images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log, errors, pid = tmp_path / "log", tmp_path / "errors", tmp_path / "pid"
    h = nbd.NBD ()
    h.connect_command (["sh", "-c", f'echo $$ > {pid}; exec "$@" 2> {errors}', "sh",
                        *argv (layer, log, "-s")])
    wait_for (lambda: prefetched (log) == SIZE)
    assert read_all (h) == DATA
    h.shutdown ()
    del h                               # waits for the server
    assert errors.read_text () == ""
    assert not os.path.exists (f"/proc/{pid.read_text ().strip ()}")


@needs_plain_nbdkit
@way ("socket activation", "as under systemd, with `LISTEN_FDS`")
def test_socket_activation (layer, images, tmp_path, monkeypatch):
    monkeypatch.chdir (images)
    log = tmp_path / "log"
    path = str (tmp_path / "sock")
    with socket.socket (socket.AF_UNIX) as listener:
        listener.bind (path)
        listener.listen ()
        # File descriptor 3 and the process's own id, as systemd passes them.
        server = subprocess.Popen (
            ["bash", "-c", f'exec 3<&{listener.fileno ()}; '
             'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@"', "bash", *argv (layer, log, "-f")],
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


def run_tls (layer, images, log, options, prepare, monkeypatch):
    monkeypatch.chdir (images)
    with nbdkit (options=["--tls=require", *options],
                 **options_for_harness (layer, log)) as server:
        h = server.connect (prepare=prepare)
        assert h.get_tls_negotiated ()
        server.poll (lambda: prefetched (log) == SIZE, "all to be prefetched")
        assert read_all (h) == DATA
        assert server.errors () == []


@needs_plain_nbdkit
@way ("--tls=require --tls-psk=FILE")
def test_tls_psk (layer, images, tmp_path, monkeypatch):
    psk = tmp_path / "psk"
    psk.write_text ("guest:" + "0123456789abcdef" * 4 + "\n")

    def prepare (h):
        h.set_tls (nbd.TLS_REQUIRE)
        h.set_tls_username ("guest")
        h.set_tls_psk_file (str (psk))
    run_tls (layer, images, tmp_path / "log", [f"--tls-psk={psk}"], prepare, monkeypatch)


@needs_plain_nbdkit
@needs ("certtool")
@way ("--tls=require --tls-certificates=DIR")
def test_tls_certificates (layer, images, tmp_path, monkeypatch):
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
    run_tls (layer, images, tmp_path / "log", [f"--tls-certificates={tmp_path}"],
             prepare, monkeypatch)


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
