# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Sources as people have them: nginx, sshd, another nbdkit with TLS, compressed and
qcow2 images.

All on loopback, in directories of their own.  A test is skipped where its server is not
installed.  What goes wrong at a source is switched on and off by the test, and seen in
the source's log before it goes on.
"""

import contextlib
import getpass
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import time

import nbd
import pytest

from harness import CHECK_WITH, CLONE, PATIENCE_SECS, SCAN, TOP, nbdkit, needs

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK, BLOCKS = 65536, 16
DISK = random.Random (15).randbytes (BLOCK * BLOCKS)

# What keeps what is fetched: a filter, and what it and the scan need.
LAYERS = {
    "cow": ("cow", ["cow-on-read=true", "scan-method=read", "scan-threads=4"]),
    "cache": ("cache", ["cache-on-read=true"]),
    "clone": (CLONE, ["scan-threads=4"]),
}
each_layer = pytest.mark.parametrize ("layer", LAYERS)

# libcurl, libssh and GnuTLS have reports of their own under the checkers.
pytestmark = pytest.mark.skipif (CHECK_WITH != "", reason="about other's libraries")


def free_port ():
    with socket.socket () as s:
        s.bind (("127.0.0.1", 0))
        return s.getsockname ()[1]


def wait_until (condition, what):
    deadline = time.monotonic () + PATIENCE_SECS
    while not condition ():
        assert time.monotonic () < deadline, f"waited in vain for {what}"
        time.sleep (0.002)


def answers (port):
    with socket.socket () as s:
        return s.connect_ex (("127.0.0.1", port)) == 0


def answers_at (path):
    with socket.socket (socket.AF_UNIX) as s:
        return s.connect_ex (str (path)) == 0


@contextlib.contextmanager
def running (command, ready, log):
    """A program for the length of a with block."""
    with open (log, "w") as f:
        process = subprocess.Popen (command, stdin=subprocess.DEVNULL, stdout=f,
                                    stderr=f)
    try:
        wait_until (lambda: process.poll () is not None or ready (), command[0])
        with open (log) as f:
            assert process.poll () is None, f.read ()
        yield process
    finally:
        process.terminate ()
        process.wait (PATIENCE_SECS)


@pytest.fixture
def image (tmp_path):
    path = tmp_path / "disk.img"
    path.write_bytes (DISK)
    return path


def stack (log, layer, plugin, args=(), below=()):
    """A server that scans over a layer that keeps, with a log of what the source is
    asked for if that is said; other filters can be below that."""
    name, params = LAYERS[layer]
    return nbdkit ([SCAN, name, *(["log"] if log else []), *below], plugin,
                   [*([f"logfile={log}"] if log else []), f"scan-size={BLOCK}",
                    *params, *args], VERBOSE)


def count (log, word):
    with open (log) as f:
        return sum (f" {word} " in line for line in f)


def wrong (server):
    """What the scan filter said.  nbdkit's plugins say what they meet at the source, and
    that they can't know an export's name, which does no harm here."""
    return [e for e in server.errors () if e.startswith ("scan: ")]


def check_scan (tmp_path, layer, plugin, args=(), below=(), allowed=()):
    """A scan fetches all of the disk, which a client can then have from the layer."""
    log = tmp_path / "source.log"
    with stack (log, layer, plugin, ["scan-ahead=false", *args], below) as server:
        h = server.connect ()
        assert h.get_size () == len (DISK)
        assert h.pread (1000, 3 * BLOCK - 500) == DISK[3 * BLOCK - 500:][:1000]
        server.wait_line (FINISHED)
        # With it end the prefetches that are on their way, and their contexts.
        server.disconnect (h)
        wait_until (lambda: count (log, "Connect") == count (log, "Disconnect"),
                    "all to be closed")
        fetched = count (log, "Read")
        assert fetched >= BLOCKS
        h = server.connect ()       # its scan has nothing left to do
        for offset in range (0, len (DISK), 4 * BLOCK):
            assert h.pread (4 * BLOCK, offset) == DISK[offset:offset + 4 * BLOCK]
        assert count (log, "Read") == fetched
        assert [e for e in wrong (server) if not e.endswith (tuple (allowed))] == []


# -- nginx ---------------------------------------------------------------------

SIGNATURE = "X-Amz-Signature=4f0e3c"
SIGNED = "disk.img?X-Amz-Expires=600&" + SIGNATURE

NGINX = """
daemon off;
{user}
pid {dir}/nginx.pid;
error_log {dir}/error.log;
worker_processes 1;
events {{ worker_connections 100; }}
http {{
  access_log {dir}/access.log;
  client_body_temp_path {dir}/t1; proxy_temp_path {dir}/t2; fastcgi_temp_path {dir}/t3;
  uwsgi_temp_path {dir}/t4; scgi_temp_path {dir}/t5;
  limit_conn_zone $server_port zone=all:1m;
  server {{
    listen 127.0.0.1:{port};
    {tls}
    root {dir};
    location = /redirect {{ return 302 $scheme://$host:$server_port/disk.img; }}
    # One request at a time; one for much more than a block goes on and on.
    location = /limited {{
      alias {dir}/disk.img; limit_conn all 1; limit_rate_after 128k; limit_rate 1k;
    }}
    location = /disk.img {{
      if (-f {dir}/refuse) {{
        return 503 "<?xml version='1.0'?><Error><Code>SlowDown</Code></Error>";
      }}
      if (-f {dir}/hang-up) {{ return 444; }}
    }}
    # As S3 answers: URLs are signed, in one place for GET only; another region.
    location /bucket/ {{ if ($args !~ {signature}) {{ return 403; }} alias {dir}/; }}
    location /get-only/ {{
      if ($request_method != GET) {{ return 403; }}
      if ($args !~ {signature}) {{ return 403; }}
      alias {dir}/;
    }}
    location ~ ^/region/(?<key>.*) {{
      return 307 $scheme://127.0.0.1:$server_port/bucket/$key?$args;
    }}
  }}
}}
"""


class Nginx:
    def __init__ (self, directory, tls):
        self.dir, self.port = directory, free_port ()
        self.scheme = "https" if tls else "http"
        self.tls = f"ssl_certificate {directory}/cert.pem; " \
            f"ssl_certificate_key {directory}/key.pem;" if tls else ""
        if tls:
            make_certificate (directory)
        config = NGINX.replace ("{port};", "{port} ssl;") if tls else NGINX
        self.config = os.path.join (directory, "nginx.conf")
        with open (self.config, "w") as f:
            # Its workers would be of a user who may not see the directory.
            f.write (config.format (dir=directory, port=self.port, tls=self.tls,
                                    signature=SIGNATURE,
                                    user="user root;" if os.getuid () == 0 else ""))

    def url (self, path="/disk.img"):
        return f"url={self.scheme}://localhost:{self.port}{path}"

    def statuses (self):
        """Of the answers it has written of so far, which it does after it has given them."""
        try:
            with open (os.path.join (self.dir, "access.log")) as f:
                return [int (line.split ('"')[2].split ()[0]) for line in f
                        if line.endswith ("\n")]
        except FileNotFoundError:
            return []

    def has_answered (self, *expected):
        """All of these statuses, soon; only these so far."""
        wait_until (lambda: set (self.statuses ()) >= set (expected),
                    f"answers with {expected}")
        return set (self.statuses ()) == set (expected)

    def switch (self, name, on):
        path = os.path.join (self.dir, name)
        if on:
            with open (path, "w"):
                pass
        else:
            os.remove (path)


def make_certificate (directory):
    template = os.path.join (directory, "template")
    with open (template, "w") as f:
        f.write ("cn = localhost\ndns_name = localhost\nca\ntls_www_server\n"
                 "signing_key\nencryption_key\nexpiration_days = 2\n")
    for words in (["--generate-privkey", "--outfile", "key.pem"],
                  ["--generate-self-signed", "--load-privkey", "key.pem",
                   "--template", template, "--outfile", "cert.pem"]):
        subprocess.run (["certtool", *words], cwd=directory, check=True,
                        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@contextlib.contextmanager
def nginx (directory, tls=False):
    server = Nginx (str (directory), tls)
    with running (["/usr/sbin/nginx", "-p", str (directory), "-c", server.config],
                  lambda: answers (server.port), directory / "nginx.out"):
        yield server


@each_layer
@needs ("nginx")
def test_http_with_range_requests (tmp_path, image, layer):
    with nginx (tmp_path) as source:
        check_scan (tmp_path, layer, ["curl", source.url ()])
        assert source.has_answered (200, 206)


@needs ("nginx", "certtool")
def test_https (tmp_path, image):
    with nginx (tmp_path, tls=True) as source:
        check_scan (tmp_path, "cow", ["curl", source.url (), f"cainfo={tmp_path}/cert.pem"])


@needs ("nginx")
def test_a_redirect_is_followed (tmp_path, image):
    with nginx (tmp_path) as source:
        check_scan (tmp_path, "cow", ["curl", source.url ("/redirect")])
        assert source.has_answered (200, 206, 302)


RETRY = ["retry-request-delay=1", "retry-request-retries=50"]

# Its first prefetch shows that the scan is at work; the others come after a client's
# read, so a test can do something in between.
TWO_STEPS = """
return function (disk)
  disk:prefetch (0)
  while true do
    for _ in disk:reads () do
      for offset = disk.block, disk.size - 1, disk.block do disk:prefetch (offset) end
      return
    end
    disk:wait ()
  end
end
"""


@pytest.fixture
def two_steps (tmp_path):
    """A thread more would open the source for itself, perhaps in vain; and the first
    prefetch is one."""
    path = tmp_path / "two-steps.lua"
    path.write_text (TWO_STEPS)
    return [f"scan-policy={path}", "scan-threads=1", "scan-pace=false"]


@each_layer
@needs ("nginx")
@pytest.mark.parametrize ("trouble, status", [("refuse", 503), ("hang-up", 444)])
def test_an_outage_is_retried_below (tmp_path, image, two_steps, layer, trouble, status):
    """What meets it waits for its end: reads are answered, the scan goes on, and nothing
    is wrong."""
    log = tmp_path / "source.log"
    with nginx (tmp_path) as source, \
         stack (log, layer, ["curl", source.url ()], [*RETRY, *two_steps],
                ["retry-request"]) as server:
        h = server.connect ()
        wait_until (lambda: count (log, "...Read") == 1, "the first prefetch")
        source.switch (trouble, True)
        buffer = nbd.Buffer (BLOCK)
        cookie = h.aio_pread (buffer, 15 * BLOCK)

        def met ():
            h.poll (1)
            return status in source.statuses ()
        wait_until (met, status)
        source.switch (trouble, False)
        while not h.aio_command_completed (cookie):
            h.poll (-1)
        assert buffer.to_bytearray () == DISK[15 * BLOCK:]
        server.wait_line (FINISHED)
        assert h.pread (len (DISK), 0) == DISK
        assert wrong (server) == []


@needs ("nginx")
def test_an_outage_without_retry_only_warns (tmp_path, image, two_steps):
    """Prefetches fail and the scan goes on; a client reads when the outage is over."""
    log = tmp_path / "source.log"
    with nginx (tmp_path) as source, \
         stack (log, "cow", ["curl", source.url ()], two_steps) as server:
        h = server.connect ()
        wait_until (lambda: count (log, "...Read") == 1, "the first prefetch")
        source.switch ("refuse", True)
        assert h.pread (512, 0) == DISK[:512]       # is there already
        server.wait_line (FINISHED)
        source.switch ("refuse", False)
        assert h.pread (len (DISK), 0) == DISK
        assert len ([e for e in wrong (server) if "prefetch of" in e]) == 1


@needs ("nginx")
def test_a_server_that_limits_connections (tmp_path, image, two_steps):
    """Somebody else has the only one: all others are refused and tried again, by six
    threads, and all arrives."""
    log = tmp_path / "source.log"
    with nginx (tmp_path) as source, \
         stack (log, "cow", ["curl", source.url ("/limited")],
                [*RETRY, two_steps[0], "scan-pace=false", "scan-threads=6"],
                ["retry-request"]) as server:
        h = server.connect ()
        wait_until (lambda: count (log, "...Read") == 1, "the first prefetch")
        with contextlib.ExitStack () as stack_:
            # The server's threads open it by the way, and may be before us.
            while True:
                other = stack_.enter_context (
                    socket.create_connection (("127.0.0.1", source.port)))
                other.sendall (b"GET /limited HTTP/1.0\r\n\r\n")
                if b" 200 " in other.recv (15, socket.MSG_WAITALL):
                    break
            refused = source.statuses ().count (503)
            buffer = nbd.Buffer (BLOCK)
            cookie = h.aio_pread (buffer, 15 * BLOCK)

            def met ():
                h.poll (1)
                return source.statuses ().count (503) > refused + 1
            wait_until (met, 503)
        while not h.aio_command_completed (cookie):
            h.poll (-1)
        assert buffer.to_bytearray () == DISK[15 * BLOCK:]
        server.wait_line (FINISHED)
        assert h.pread (len (DISK), 0) == DISK
        assert [e for e in wrong (server) if "could not open the layer below" not in e] == []


# -- S3, as nginx plays it: see also SlowDown above ------------------------------

@pytest.mark.parametrize ("place", ["bucket", "region"])
@needs ("nginx")
def test_a_signed_url (tmp_path, image, place):
    """All of it goes to the server, also where that sends us to another one."""
    with nginx (tmp_path) as source:
        check_scan (tmp_path, "clone", ["curl", source.url (f"/{place}/{SIGNED}")], RETRY,
                    ["retry-request"])
        assert source.has_answered (200, 206, *([307] if place == "region" else []))


@needs ("nginx")
def test_a_signature_that_has_run_out (tmp_path, image):
    """What is there is served, and with a new URL the clone goes on."""
    clone, log = tmp_path / "clone.img", tmp_path / "source.log"
    args = [f"clone-file={clone}", "scan-policy=readahead"]
    with nginx (tmp_path) as source:
        with stack (log, "clone", ["curl", source.url ("/bucket/" + SIGNED)],
                    args) as server:
            assert server.connect ().pread (BLOCK, 0) == DISK[:BLOCK]
        # The log filter asks for the size as it is prepared, and so can't do without.
        with stack (None, "clone", ["curl", source.url ("/bucket/disk.img?X-Amz-Old")],
                    args) as server:
            h = server.connect ()
            assert h.pread (BLOCK, 0) == DISK[:BLOCK]
            with pytest.raises (nbd.Error):
                h.pread (len (DISK), 0)
            assert source.has_answered (200, 206, 403)
        os.unlink (log)
        with stack (log, "clone", ["curl", source.url ("/bucket/" + SIGNED)],
                    args) as server:
            h = server.connect ()
            assert h.pread (BLOCK, 0) == DISK[:BLOCK]
            assert count (log, "Read") == 0
            assert h.pread (len (DISK), 0) == DISK


@needs ("nginx")
def test_an_object_that_was_replaced_by_a_shorter_one (tmp_path, image, two_steps):
    """416 is an error for who asks behind its end, and for nobody else."""
    log = tmp_path / "source.log"
    with nginx (tmp_path) as source, \
         stack (log, "clone", ["curl", source.url ("/bucket/" + SIGNED)],
                two_steps) as server:
        h = server.connect ()
        wait_until (lambda: count (log, "...Read") == 1, "the first prefetch")
        os.truncate (image, 4 * BLOCK)
        with pytest.raises (nbd.Error):
            h.pread (BLOCK, 12 * BLOCK)
        server.wait_line (FINISHED)
        assert source.has_answered (200, 206, 416)
        assert h.pread (4 * BLOCK, 0) == DISK[:4 * BLOCK]
        assert len ([e for e in wrong (server) if "prefetch of" in e]) == 1


@needs ("nginx", "curl")
def test_a_url_that_is_signed_for_get_only (tmp_path, image, monkeypatch):
    """nbdkit's curl plugin begins with HEAD, and in some versions has no other way.  What
    docs/troubleshooting.md has for these does without."""
    with open (os.path.join (TOP, "docs/troubleshooting.md")) as page:
        command = re.search (r"^    nbdkit .* eval (?:.*\\\n)*.*$", page.read (), re.M)[0]
    words = [w for w in shlex.split (command.replace ("\\\n", " "))
             if w.startswith (("thread_model=", "get_size=", "pread="))]
    assert len (words) == 3
    with nginx (tmp_path) as source:
        url = source.url ("/get-only/" + SIGNED)
        log = tmp_path / "curl.log"
        with stack (log, "clone", ["curl", url]) as server:
            try:
                assert server.connect ().pread (len (DISK), 0) == DISK
            except nbd.Error:
                assert any ("HEAD" in e for e in server.errors ())
        monkeypatch.setenv ("URL", url.partition ("=")[2])
        check_scan (tmp_path, "clone", ["eval", *words], RETRY, ["retry-request"])


# -- sshd ----------------------------------------------------------------------

@pytest.fixture
def sshd (tmp_path, image):
    """The port and the private key of an ssh server for whoever runs this."""
    program, sftp = "/usr/sbin/sshd", "internal-sftp"
    if os.getuid () == 0:
        os.makedirs ("/run/sshd", 0o755, exist_ok=True)     # as Debian's unit does
    for name in "host", "user":
        subprocess.run (["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", name],
                        cwd=tmp_path, check=True)
    port = free_port ()
    shutil.copy (tmp_path / "user.pub", tmp_path / "authorized")
    (tmp_path / "sshd.conf").write_text (
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {tmp_path}/host\n"
        f"AuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nUsePAM no\n"
        f"PidFile none\nPermitRootLogin prohibit-password\nSubsystem sftp {sftp}\n")
    host_key = (tmp_path / "host.pub").read_text ()
    (tmp_path / "known").write_text (f"[127.0.0.1]:{port} {host_key}")
    with running ([program, "-D", "-e", "-f", str (tmp_path / "sshd.conf")],
                  lambda: answers (port), tmp_path / "sshd.out"):
        yield port


@each_layer
@needs ("sshd", "ssh-keygen")
def test_ssh (tmp_path, image, sshd, layer):
    check_scan (tmp_path, layer, ["ssh", "host=127.0.0.1", f"port={sshd}", f"path={image}",
                        f"user={getpass.getuser ()}", f"identity={tmp_path}/user",
                        f"known-hosts={tmp_path}/known"])


# -- another nbdkit ------------------------------------------------------------

@each_layer
@needs ("psktool")
def test_nbd_with_tls_over_tcp (tmp_path, image, layer):
    keys, port = tmp_path / "keys.psk", free_port ()
    subprocess.run (["psktool", "-u", "edge", "-p", str (keys)], check=True,
                    stdout=subprocess.DEVNULL)
    with running (["nbdkit", "-f", "-i", "127.0.0.1", "-p", str (port), "--tls=require",
                   f"--tls-psk={keys}", "file", str (image)], lambda: answers (port),
                  tmp_path / "origin.out"):
        check_scan (tmp_path, layer, ["nbd", "hostname=127.0.0.1", f"port={port}", "tls=require",
                            "tls-username=edge", f"tls-psk={keys}"])


# -- images that are not raw ---------------------------------------------------

@each_layer
@needs ("xz")
def test_an_image_in_xz (tmp_path, image, layer):
    subprocess.run (["xz", f"--block-size={BLOCK}", str (image)], check=True)
    check_scan (tmp_path, layer, ["file", f"{image}.xz"], below=["xz"])


@each_layer
@needs ("qemu-img", "qemu-nbd")
def test_an_image_in_qcow2 (tmp_path, image, layer):
    """nbdkit can't read it by itself in all versions; qemu-nbd can."""
    qcow2, path = tmp_path / "disk.qcow2", tmp_path / "qemu.sock"
    subprocess.run (["qemu-img", "convert", "-q", "-f", "raw", "-O", "qcow2", "-c",
                     str (image), str (qcow2)], check=True)
    with running (["qemu-nbd", "-f", "qcow2", "-r", "-t", "-e", "20", "-k", str (path),
                   str (qcow2)], lambda: answers_at (path), tmp_path / "qemu.out"):
        check_scan (tmp_path, layer, ["nbd", f"socket={path}"])
