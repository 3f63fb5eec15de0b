# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Random schedules of connections, reads and disconnects, made exact.

A schedule is made from a seed and run against a filter; what comes out is the
list of everything that the filter prefetched, and when.  Run against two
filters that do the same, the lists are equal.

What makes it exact: the gate plugin holds every prefetch, so at each step of a
schedule every scan thread is held in one, or has ended.  A step lets at most one
of them go on, and waits until that one is held again or has ended.  So:

- a read is sent while all are held, and its reply is waited for; by then the
  filter has seen it;
- a new connection's scan starts while all others are held; its first prefetch,
  or the line that says that it has finished, is waited for;
- a client that leaves is seen by the filter before its scan goes on: see
  Server.wait_joined.
"""

import collections
import random

from harness import gate, nbdkit

SLOTS = 3               # connections at a time
MAX_READ_BYTES = 2048

Schedule = collections.namedtuple (
    "Schedule", "seed size block ahead clock forever args options steps")


def _random_size (rng, block, forever):
    blocks = rng.choice ([1, 2, 3, 4, 6, 10, 24])
    size = rng.choice ([
        0, 1, block, blocks * block, blocks * block,
        blocks * block + 1, blocks * block - 1,
        rng.randint (1, blocks * block), rng.randint (1, blocks * block),
    ])
    # The stock filter never comes back from an empty disk with scan-forever;
    # test_stock_faults.py has this case for ours.
    return size or 1 if forever else size


def _random_read (rng, size, block):
    """A range; as often as not it ends at or beside a block or the end."""
    end = rng.choice ([
        rng.randint (1, size),
        rng.randint (1, size),
        size,
        rng.randint (0, size // block) * block + rng.choice ([-1, 0, 0, 1]),
    ])
    end = min (max (end, 1), size)
    count = min (rng.choice ([1, 512, rng.randint (1, MAX_READ_BYTES)]), end)
    return end - count, count


def make (seed):
    """The schedule of a seed."""
    rng = random.Random (seed)
    # Every eight seeds in a row are all eight settings.
    ahead, clock, forever = (bool (seed & bit) for bit in (1, 2, 4))
    block = rng.choice ([512, 512, 1024, 4096, 65536, 2 << 20, 32 << 20])
    size = _random_size (rng, block, forever)

    args = []
    for name, value, default in [("ahead", ahead, True), ("clock", clock, True),
                                 ("forever", forever, False)]:
        if value != default or rng.random () < 0.5:
            args.append (f"scan-{name}={'true' if value else 'false'}")
    if block != 2 << 20 or rng.random () < 0.5:
        args.append (f"scan-size={block}")

    steps, connected, used = [("connect", 0)], [0], [0]
    for _ in range (rng.randint (5, 40)):
        kind = rng.choices (["read", "go", "connect", "leave"],
                            [40, 40, 20, 10])[0]
        if kind == "connect":
            slot = rng.randrange (SLOTS)
            if slot not in connected:
                connected.append (slot)
                used.append (slot)
                steps.append (("connect", slot))
        elif kind == "go":          # one that is leaving may have to go, too
            steps.append (("go", rng.choice (used),
                           rng.choice ([1, 1, 1, 2, 5, 30])))
        elif connected and kind == "leave":
            slot = rng.choice (connected)
            connected.remove (slot)
            steps.append (("leave", slot))
        elif connected and size > 0:
            slot = rng.choice (connected)
            for _ in range (rng.choice ([1, 1, 2, 5])):
                steps.append (("read", slot, *_random_read (rng, size, block)))
    # nbdkit handles a connection differently with one thread and with many.
    options = rng.choice ([["-t", "1"], ["-t", "1"], ["-t", "4"]])
    return Schedule (seed, size, block, ahead, clock, forever, args, options, steps)


class _Connection:
    """A client; call is its scan's held prefetch, None once the scan ended."""

    def __init__ (self, run, number):
        self.run, self.number = run, number
        self.h = run.server.connect ()
        self.call = None
        self.leaving = False
        self.follow ()

    def follow (self):
        """See what this connection's scan thread does next."""
        end = f"gate: close {self.number}$" if self.leaving \
            else "scan: finished scanning the plugin"
        match, self.run.cursor = self.run.server.wait_line (
            rf"gate: begin \d+ cache {self.number} |{end}", self.run.cursor)
        if "begin" in match[0]:
            self.call = self.run.server.next_call ("cache", self.number)
            self.run.note (f"{self.number} prefetches {self.call.count} bytes at "
                           f"{self.call.offset}")
        else:
            self.call = None
            self.run.note (f"{self.number} is "
                           + ("gone" if self.leaving else "at the end"))

    def go (self):
        self.run.server.release (self.call)
        self.follow ()

    def leave (self):
        self.run.note (f"{self.number} leaves")
        self.run.server.disconnect (self.h)
        self.leaving = True
        if self.call:
            self.run.server.wait_joined (self.call.tid)
        else:
            self.follow ()


class _Run:
    def __init__ (self, server):
        self.server = server
        self.cursor = 0         # the line of the server's log that we are at
        self.story = []
        self.slots = [None] * SLOTS
        self.connected = 0

    def note (self, text):
        self.story.append (text)

    def step (self, kind, slot, *numbers):
        c = self.slots[slot]
        if kind == "connect":
            self.empty (slot)
            self.connected += 1
            self.note (f"{self.connected} connects")
            self.slots[slot] = _Connection (self, self.connected)
        elif kind == "leave":
            c.leave ()
        elif kind == "read":
            offset, count = numbers
            self.note (f"{c.number} reads {count} bytes at {offset}")
            c.h.pread (count, offset)
        elif kind == "go":
            for _ in range (numbers[0]):
                if c and c.call:
                    c.go ()

    def empty (self, slot):
        """Make a client leave if it hasn't, and wait until it is gone."""
        c = self.slots[slot]
        if c and not c.leaving:
            c.leave ()
        while c and c.call:
            c.go ()

    def finish (self):
        for slot in range (SLOTS):
            self.empty (slot)


def run (schedule, scan_filter, args=None):
    """Run a schedule; args replaces its parameters.  Returns what happened, as a
    list of sentences; the prefetches are in it twice, as they were waited for and
    as the plugin saw them."""
    with nbdkit ([scan_filter],
                 gate (f"size={schedule.size}", "hold=cache"),
                 schedule.args if args is None else args,
                 [*schedule.options, "-v", "-D", "nbdkit.backend.controlpath=0",
                  "-D", "nbdkit.backend.datapath=0"]) as server:
        r = _Run (server)
        for step in schedule.steps:
            r.step (*step)
        r.finish ()
        return r.story + [f"{c.connection} prefetched {c.count} bytes at {c.offset}"
                          for c in server.calls ("cache")]
