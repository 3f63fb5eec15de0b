# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Start a real nbdkit, talk to it with libnbd, and look at what it did.

    with nbdkit (filters=[SCAN], plugin=["memory", "64M"]) as server:
        h = server.connect ()
        h.pread (512, 0)
        assert server.errors () == []

Leaving the block stops the server with SIGTERM, and fails the test unless it
exits with status 0, in good time and with no report from a sanitizer.

With plugin=gate (...), a test can hold requests and let them go one by one; see
tests/plugins/gate.c.

The environment says what to test, and how:

    SCAN_FILTER     the filter under test (default build/nbdkit-scan-filter.so)
                    the clone filter is beside it
    STOCK_FILTER    the distribution's scan filter, to compare with
    TEST_BUILD    where the test plugins are  (default build/tests)
    CHECK_WITH      empty, asan, tsan or valgrind: what to run nbdkit under
"""

import collections
import contextlib
import os
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import nbd
import pytest

TOP = os.path.dirname (os.path.dirname (os.path.dirname (
    os.path.abspath (__file__))))
CHECK_WITH = os.environ.get ("CHECK_WITH", "")
PLUGINS = os.path.abspath (os.environ.get ("TEST_BUILD",
                                           os.path.join (TOP, "build/tests")))
GATE = os.path.join (PLUGINS, "nbdkit-gate-plugin.so")
SCAN = os.path.abspath (os.environ.get (
    "SCAN_FILTER", os.path.join (TOP, "build/nbdkit-scan-filter.so")))
CLONE = os.path.join (os.path.dirname (SCAN), "nbdkit-clone-filter.so")
OURS = {SCAN, CLONE}

# The number of this call on the machines that the tests know; see wait_joined.
FUTEX = {"x86_64": "202", "aarch64": "98"}.get (os.uname ().machine)

# Only how long to wait for what should happen before calling it a failure; no
# test measures time with it.
PATIENCE_SECS = 300 if CHECK_WITH else 60


def dump_config (key):
    """One value of `nbdkit --dump-config`."""
    text = subprocess.run (["nbdkit", "--dump-config"], check=True,
                           stdout=subprocess.PIPE, text=True).stdout
    return dict (line.split ("=", 1) for line in text.splitlines ())[key]


def stock_filter ():
    """The distribution's scan filter.

    Where `make install` has put ours in its place, the distribution's file is
    the one that was moved aside (see the Makefile).
    """
    path = os.path.join (dump_config ("filterdir"), "nbdkit-scan-filter.so")
    if os.path.exists (path + ".distrib"):
        path += ".distrib"
    return os.environ.get ("STOCK_FILTER", path)


def glibc ():
    """Its version, as two numbers."""
    name, version = os.confstr ("CS_GNU_LIBC_VERSION").split ()
    assert name == "glibc"
    return tuple (int (n) for n in version.split (".")[:2])


def runtime (name):
    """Where gcc keeps the library of a sanitizer."""
    path = subprocess.run (["gcc", "-print-file-name=" + name], check=True,
                           stdout=subprocess.PIPE, text=True).stdout.strip ()
    assert os.path.isabs (path), f"{name} is not installed"
    return os.path.realpath (path)


def checker (reports):
    """The command and environment to put around nbdkit, for CHECK_WITH.

    Reports go to files of their own, so that they can't be mixed up with what
    the server prints.

    nbdkit unloads filters and plugins before it exits.  valgrind copes; for the
    sanitizers keep.so keeps them loaded, else a report could not name their
    functions, and what plugins of nbdkit keep in variables would be a leak.  The
    price: what a variable of our filter still points to is a leak for valgrind
    only.  What a test preloads itself comes behind a sanitizer's library, which wants
    to be first.
    """
    suppressions = os.path.join (TOP, "tests/e2e/valgrind.supp")

    def preload (library):
        return ":".join ([runtime (library), os.path.join (PLUGINS, "keep.so"),
                          *os.environ.get ("LD_PRELOAD", "").split ()])
    log = os.path.join (reports, CHECK_WITH)
    if CHECK_WITH == "":
        return [], {}
    if CHECK_WITH == "asan":
        return [], {
            "LD_PRELOAD": preload ("libasan.so"),
            "ASAN_OPTIONS": f"detect_leaks=1:log_path={log}:"
                            "allocator_may_return_null=1:"
                            "detect_stack_use_after_return=1",
            "LSAN_OPTIONS": "exitcode=0",       # see only_nbdkit_leaked
            "UBSAN_OPTIONS": "print_stacktrace=1",
        }
    if CHECK_WITH == "tsan":
        return [], {
            "LD_PRELOAD": preload ("libtsan.so"),
            "TSAN_OPTIONS": "halt_on_error=0:exitcode=66:second_deadlock_stack=1:"
                            "allocator_may_return_null=1:"
                            f"log_path={log}",
        }
    if CHECK_WITH == "valgrind":
        return ["valgrind", "--quiet", "--error-exitcode=119",
                "--leak-check=full", "--show-leak-kinds=definite",
                "--errors-for-leak-kinds=definite",
                "--keep-debuginfo=yes", "--fair-sched=try",
                f"--suppressions={suppressions}", f"--log-file={log}.%p"], {}
    raise ValueError (f"CHECK_WITH={CHECK_WITH}: expected nothing, asan, tsan or "
                      "valgrind")


def only_nbdkit_leaked (report):
    """Is this a report of leaks, all of which hang off something that nbdkit itself
    allocated, or a filter of its own?  It calls no .close once it got SIGTERM, and loses
    the contexts of the clients that are connected, and with them every layer's handles;
    and its multi-conn filter forgets its list of them."""
    leaks = [part.lstrip () for part in report.split ("\n\n") if " leak of " in part]
    theirs = [leak for leak in leaks
              if re.search (r"#1 .*\(\S*/nbdkit(\+|/filters/)", leak)]
    direct = [leak for leak in leaks if leak.startswith ("Direct")]
    # None is direct where contexts point to each other.
    return len (theirs) > 0 and "ERROR: AddressSanitizer" not in report and all (
        leak in theirs for leak in direct)


def is_of_nbdkit_alone (report):
    """Is this a copy of a name that was freed with nobody but nbdkit, the sanitizer and the C
    library in all stacks?  The thread of a client that comes while the server ends takes
    the name of a plugin that nbdkit has let go of."""
    frames = re.findall (r"^ +#\d+ .*", report, re.M)
    return "heap-use-after-free" in report and "strdup" in "".join (frames[:1]) and all (
        re.search (r"\(\S*/nbdkit\+|libsanitizer/|nptl/|sysdeps/|csu/", frame)
        for frame in frames)


def reported (directory, lines):
    """What the checker wrote to its files there, and what the undefined behaviour
    sanitizer wrote among the lines of stderr, where it can't be sent elsewhere."""
    text = ""
    for name in sorted (os.listdir (directory)):
        if CHECK_WITH and name.startswith (CHECK_WITH + "."):
            with open (os.path.join (directory, name), errors="replace") as f:
                report = f.read ()
            if is_of_nbdkit_alone (report):
                pytest.skip ("nbdkit has used what it had freed")
            if not only_nbdkit_leaked (report):
                text += report
    if any (re.match (r"\S+:\d+:\d+: runtime error: ", line) for line in lines):
        text += "\n".join (lines)
    return text


# A request that the gate plugin has printed; tid is its thread in the server.
Call = collections.namedtuple ("Call", "id op connection offset count tid")

BEGIN = re.compile (r"gate: begin (\d+) (\w+) (\d+) (\d+) (\d+) (\d+)$")


def gate (*args):
    """The gate plugin with these arguments, for plugin=."""
    return [GATE, *args]


def kill_at_once (pid):
    """kill -9, and wait until it has ended, whoever its parent is."""
    os.kill (pid, signal.SIGKILL)
    while True:
        with open (f"/proc/{pid}/stat") as f:
            if f.read ().rpartition (")")[2].split ()[0] == "Z":
                return


def pattern (offset, count):
    """What the gate plugin's disk holds where it wasn't written and has no
    holes."""
    return bytes (((o * 0x9e3779b97f4a7c15) & (2**64 - 1)) >> 56
                  for o in range (offset, offset + count))


def unescape (line):
    """A line as the filter has printed it: later nbdkits, such as 1.42, write tabs and
    what isn't ASCII as escapes."""
    if not line.startswith ("nbdkit: "):
        return line
    return re.sub (r"\\t", "\t", re.sub (
        r"(?:\\x[0-9a-f]{2})+",
        lambda m: bytes.fromhex (m[0].replace ("\\x", "")).decode (errors="replace"),
        line))


def command (filters, plugin, args=(), options=()):
    """The nbdkit command line, without where to listen."""
    return ["nbdkit", "-f", *options, *("--filter=" + f for f in filters),
            *plugin, *args]


class Server:
    """A running nbdkit; made by `nbdkit`."""

    def __init__ (self, filters, plugin, args, options, under_check):
        self.dir = tempfile.mkdtemp (prefix="scan-e2e-")
        self.socket = os.path.join (self.dir, "sock")
        self.lines = []         # what log returns
        self.raw = []           # the same, as bytes, before unescape
        self.partial = b""      # of the next line
        self.ended = False      # no more lines will come
        self.changed = threading.Condition ()
        self.connections = []
        self.client_threads = set ()
        self.terminated = False
        self.control = None
        self.begun = []         # requests that the gate plugin printed
        self.untaken = []       # those that next_call has not returned

        plugin, pass_fds = list (plugin), []
        if plugin[0] == GATE:
            self.control, theirs = socket.socketpair ()
            plugin.append (f"control={theirs.fileno ()}")
            pass_fds = [theirs.fileno ()]

        prefix, env = checker (self.dir) if under_check else ([], {})
        pid_file = os.path.join (self.dir, "pid")
        options = [*options, "-U", self.socket, "-P", pid_file]
        self.process = subprocess.Popen (
            prefix + command (filters, plugin, args, options),
            pass_fds=pass_fds, stdin=subprocess.DEVNULL,
            stderr=subprocess.PIPE, env={**os.environ, "MALLOC_PERTURB_": "113", **env})
        os.set_blocking (self.process.stderr.fileno (), False)
        if self.control:
            theirs.close ()
        self.reader = threading.Thread (target=self._read_log, daemon=True)
        self.reader.start ()
        try:
            self.poll (lambda: os.path.exists (pid_file), "nbdkit to start")
            if self.control:
                self.wait_line ("gate: ready$")
        except BaseException:
            self.kill ()
            raise

    @property
    def pid (self):
        return self.process.pid

    @property
    def log (self):
        """The lines of stderr so far, also what was written just now: what the
        server says before it answers a client is in it once the answer is here."""
        self._drain ()
        return self.lines

    def _read_log (self):
        """Wait for lines, so that the server never waits for us."""
        ready = select.poll ()
        ready.register (self.process.stderr.fileno (), select.POLLIN)
        while not self.ended:
            ready.poll ()
            self._drain ()

    def _drain (self):
        """Take in what the server has written."""
        with self.changed:
            while not self.ended:
                try:
                    some = os.read (self.process.stderr.fileno (), 65536)
                except BlockingIOError:
                    break
                self.ended = some == b""
                *lines, self.partial = (self.partial + some).split (b"\n")
                self.raw += lines
                for line in lines:
                    self._take (unescape (line.decode (errors="replace")))
                self.changed.notify_all ()

    def _take (self, line):
        self.lines.append (line)
        m = BEGIN.match (line)
        if m:
            call = Call (int (m[1]), m[2], *map (int, m.groups ()[2:]))
            self.begun.append (call)
            self.untaken.append (call)

    def _tail (self):
        return "\n".join (["its last lines:"] + self.log[-40:])

    def poll (self, condition, what):
        """Wait until a condition is true of which no line of the log tells."""
        deadline = time.monotonic () + PATIENCE_SECS
        while not condition ():
            if self.process.poll () is not None:
                self.reader.join ()
                raise AssertionError (
                    f"nbdkit ended with {self.process.returncode} while waiting "
                    f"for {what}; {self._tail ()}")
            if time.monotonic () > deadline:
                raise AssertionError (f"waited in vain for {what}; "
                                      + self._tail ())
            time.sleep (0.0005)

    def _wait (self, find, what):
        """Wait until find () returns something true; called with the lock held,
        after each line of the log."""
        deadline = time.monotonic () + PATIENCE_SECS
        with self.changed:
            while True:
                found = find ()
                if found:
                    return found
                if self.ended or not self.changed.wait (
                        deadline - time.monotonic ()):
                    raise AssertionError (f"waited in vain for {what}; "
                                          + self._tail ())

    def wait_line (self, regex, start=0):
        """Wait for a line of the log, from number start on, in which the regular
        expression is found.  Returns the match and the number of the next line."""
        search = re.compile (regex).search

        def find ():
            nonlocal start
            while start < len (self.lines):
                start += 1
                match = search (self.lines[start - 1])
                if match:
                    return match, start
            return None
        return self._wait (find, f"/{regex}/")

    def errors (self):
        """The messages of nbdkit_error so far, with neither prefix nor the lines
        that follow in the same message."""
        found = (re.match (r"nbdkit: (?:\S+ )?error: (.*)", line)
                 for line in list (self.log))
        return [match.group (1) for match in found if match]

    def connect (self, export="", prepare=None):
        """A libnbd handle connected to an export; prepare (h) can set it up."""
        h = nbd.NBD ()
        h.set_export_name (export)
        if prepare:
            prepare (h)
        before = self.threads ()
        h.connect_unix (self.socket)
        self.connections.append (h)
        self.client_threads |= self.threads () - before
        return h

    def run (self, *words, export=""):
        """Run a libnbd tool, with {uri} filled in; returns what it printed."""
        uri = f"nbd+unix:///{export}?socket={self.socket}"
        before = self.threads ()
        text = subprocess.run ([w.format (uri=uri) for w in words], check=True,
                               stdout=subprocess.PIPE, text=True).stdout
        self.client_threads |= self.threads () - before
        return text

    def disconnect (self, h):
        """Close a client's connection without a word, as when it dies.

        Not left to the garbage collector, which is all that libnbd's Python
        binding has.
        """
        self.connections.remove (h)
        try:
            fd = os.dup (h.aio_get_fd ())
        except nbd.Error:
            return              # the server has closed it already
        with socket.socket (fileno=fd) as connection:
            connection.shutdown (socket.SHUT_RDWR)

    def rss_bytes (self):
        with open (f"/proc/{self.pid}/status") as status:
            for line in status:
                if line.startswith ("VmRSS:"):
                    return int (line.split ()[1]) * 1024
        raise AssertionError ("no VmRSS")

    def threads (self):
        """The server's threads, as a set of numbers."""
        return {int (t) for t in os.listdir (f"/proc/{self.pid}/task")}

    # With the gate plugin only:

    def calls (self, op=None, connection=None):
        """The requests that have begun so far, in order."""
        self._drain ()
        return [c for c in list (self.begun) if op in (None, c.op)
                and connection in (None, c.connection)]

    def next_call (self, op=None, connection=None):
        """Wait for a request to begin, and return it; each is returned once."""
        def find ():
            for call in self.untaken:
                if op in (None, call.op) and connection in (None, call.connection):
                    self.untaken.remove (call)
                    return call
            return None
        return self._wait (find, f"{op or 'a request'} to begin")

    def _command (self, text):
        self.control.sendall (text.encode () + b"\n")

    def send (self, text):
        """A hold or fail command for the gate plugin; it holds from here on."""
        start = len (self.log)
        self._command (text)
        self.wait_line (f"gate: done {text}$", start)

    def release (self, call, errno=0):
        """Let a held request go, with success or with an errno."""
        self._command (f"release {call.id} {errno}")

    def wait_joined (self, *tids):
        """Wait until some thread of the server waits for one of these to end.

        pthread_join waits on a word of the other thread's struct pthread, with a
        FUTEX_WAIT or its _BITSET form that is not private, as the kernel may be
        the one to wake it.  Nothing else does that, so what the joining thread
        did before it is certain to have happened.  Until glibc 2.42 the word
        holds the id of the other thread.  Later it doesn't, but the struct lies
        at the top of that thread's stack.
        """
        def joining ():
            stacks, waits = {}, []
            for task in self.threads ():
                try:
                    with open (f"/proc/{self.pid}/task/{task}/syscall") as f:
                        words = f.read ().split ()
                except OSError:
                    continue        # it has ended
                if words == ["running"]:
                    return False    # its stack pointer isn't told: look again
                if len (words) > 4:
                    stacks[int (words[-2], 16)] = task
                    if words[0] == FUTEX and int (words[2], 16) & 0xff in (0, 9):
                        waits.append ((task, int (words[1], 16),
                                       int (words[3], 16)))
            for task, address, value in waits:
                if value in tids:
                    return True
                # A thread that has just ended has no stack pointer, and its address
                # would be taken for one of the stack below.
                if glibc () < (2, 42):
                    continue
                below = [sp for sp in stacks if sp <= address]
                if below and value not in stacks.values () \
                   and task != stacks[max (below)] in tids:
                    return True
            return False
        self.poll (joining, "a pthread_join of a thread of " + str (tids))

    # Ending:

    def release_all (self):
        """From now on the gate plugin holds nothing."""
        if self.control:
            self.control.close ()
            self.control = None

    def kill (self):
        self.process.kill ()
        self.process.wait ()
        self.reader.join (PATIENCE_SECS)
        self.process.stderr.close ()
        self.release_all ()
        shutil.rmtree (self.dir)

    def terminate (self):
        """Send SIGTERM now, whatever clients and requests there are."""
        self.process.send_signal (signal.SIGTERM)
        self.terminated = True

    def wait_ending (self):
        """Wait until the server knows that it is to end: the signal may come later than
        what is sent after it.  Some client must be there yet.

        The main thread polls for connections until then, and waits for the clients'
        threads on a futex afterwards.
        """
        def is_past_poll ():
            with open (f"/proc/{self.pid}/task/{self.pid}/syscall") as f:
                return f.read ().split ()[0] == FUTEX
        self.poll (is_past_poll, "the server to wait for its clients")

    def stop (self):
        """Stop the server and check how it ended."""
        self.release_all ()
        for h in list (self.connections):
            self.disconnect (h)
        if not self.terminated:
            # nbdkit calls no .close once it got the signal, and unloads plugins under
            # threads of theirs (the nbd plugin has some): let it finish with the
            # clients first, so that what .close forgets is seen as leaked.  A thread
            # that is not a client's can be among these if it started just then, so
            # this is not waited for without end.
            # The thread sanitizer's own thread always is, and it sees no leaks.
            patience = 10 if CHECK_WITH in ("asan", "valgrind") else 1
            deadline = time.monotonic () + patience
            while self.client_threads & self.threads () and time.monotonic () < deadline:
                time.sleep (0.001)
            self.terminate ()
        try:
            status = self.process.wait (PATIENCE_SECS)
        except subprocess.TimeoutExpired:
            self.kill ()
            raise AssertionError ("nbdkit did not stop; " + self._tail ())
        self.reader.join (PATIENCE_SECS)
        self.process.stderr.close ()
        reports = reported (self.dir, self.log)
        shutil.rmtree (self.dir)
        assert not reports, reports
        assert status == 0, f"nbdkit ended with {status}; {self._tail ()}"


@contextlib.contextmanager
def nbdkit (filters, plugin, args=(), options=()):
    """A server for the length of a with block.

    filters and plugin[0] are names or paths, the outermost filter first; args
    are parameters, options nbdkit's own.  Only a server with a filter under test
    runs under CHECK_WITH.  If the block raises, that is what the test shows,
    and with it what the server printed.
    """
    server = Server (filters, plugin, args, options, not OURS.isdisjoint (filters))
    try:
        yield server
    except BaseException:
        for line in server.log[-100:]:
            print (line, file=sys.stderr)
        server.kill ()
        raise
    server.stop ()


def needs (*programs):
    """A mark: skip a test where one of these is missing."""
    missing = [p for p in programs if not shutil.which (p, path=os.environ["PATH"]
                                                        + ":/usr/sbin:/sbin")]
    return pytest.mark.skipif (missing != [], reason=f"no {', '.join (missing)}")


def fails (err, call, *args):
    """A client's request fails with this errno."""
    try:
        call (*args)
    except nbd.Error as error:
        assert error.errnum == err, error
    else:
        raise AssertionError (f"it did not fail: {os.strerror (err)}")


def refused (filters, plugin, args=(), options=()):
    """Run an nbdkit that should not start; returns its error messages."""
    with tempfile.TemporaryDirectory (prefix="scan-e2e-") as reports:
        prefix, env = checker (reports) if not OURS.isdisjoint (filters) \
            else ([], {})
        options = [*options, "-U", os.path.join (reports, "sock")]
        run = subprocess.run (
            prefix + command (filters, plugin, args, options),
            stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            timeout=PATIENCE_SECS, env={**os.environ, **env})
        found = reported (reports, run.stderr.splitlines ())
    assert not found, found
    assert run.returncode == 1, f"status {run.returncode}: {run.stderr}"
    return re.findall (r"^nbdkit: (?:\S+ )?error: (.*)$", run.stderr, re.M)


@contextlib.contextmanager
def file_limit (nbytes):
    """What is started meanwhile can make no file larger than that."""
    before = resource.getrlimit (resource.RLIMIT_FSIZE)
    resource.setrlimit (resource.RLIMIT_FSIZE, (nbytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit (resource.RLIMIT_FSIZE, before)
