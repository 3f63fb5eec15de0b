# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The kit's runner prefetches what the real filter prefetches.

For the same schedule, exact on both sides: each read comes while a certain
prefetch is in flight.  Only policies that never wait and don't look at the clock
are here; for the others there is no one order.
"""

import random
import re
import subprocess

import pytest

from harness import SCAN, TOP, gate, nbdkit

BLOCK = 4096


def random_schedule (rng):
    """A size in bytes, reads as (during which prefetch, offset, count), and during
    which prefetch the client goes."""
    size = rng.choice ([1, BLOCK, 5 * BLOCK + 17, 24 * BLOCK, 40 * BLOCK - 512])
    reads = []
    for _ in range (rng.choice ([0, 3, 12])):
        offset = rng.randrange (size)
        reads.append ((rng.randint (1, 12), offset,
                       rng.randint (1, min (size - offset, 3 * BLOCK))))
    return size, sorted (reads), rng.randint (2, 45)


def kit (policy, size, reads, close, files):
    """What the runner in Lua does."""
    words = [f"{TOP}/lua/bin/scan-policy", "run", policy, "--size", str (size),
             "--block", str (BLOCK), "--close", str (close)]
    for after, offset, count in reads:
        words += ["--read", f"{after}:{offset}:{count}"]
    for name, path in files:
        words += ["--file", f"{name}={path}"]
    text = subprocess.run (words, check=True, stdout=subprocess.PIPE,
                           text=True).stdout
    return [(int (m[1]), int (m[2]))
            for m in re.finditer (r"^ *\d+ +(\d+) +(\d+) ", text, re.M)]


def real (policy, size, reads, close, files):
    """What the filter does."""
    seen = []
    with nbdkit ([SCAN], gate (f"size={size}", "hold=cache"),
                 [f"scan-policy={policy}", f"scan-size={BLOCK}",
                  *(f"scan-file-{name}={path}" for name, path in files)],
                 ["-v"]) as server:
        h = server.connect ()
        cursor = 0
        while True:
            match, cursor = server.wait_line (
                r"gate: begin \d+ cache|gate: close 1$|"
                "scan: finished scanning the plugin", cursor)
            if "begin" not in match[0]:
                return seen
            call = server.next_call ("cache")
            seen.append ((call.offset, call.count))
            for after, offset, count in reads:
                if after == len (seen):
                    h.pread (count, offset)
            if close == len (seen):
                server.disconnect (h)
                server.wait_joined (call.tid)
            server.release (call)


POLICIES = ["default", "ahead", "clock", "forever", "reverse", "shuffle",
            "data", "regions", "replay"]


@pytest.mark.parametrize ("policy", POLICIES)
def test_kit_is_like_the_filter (policy, tmp_path):
    regions = tmp_path / "regions"
    regions.write_text (f"{3 * BLOCK} {2 * BLOCK} 1\n0 {BLOCK} 5\n# no more\n")
    trace = tmp_path / "trace"
    trace.write_text (f"{7 * BLOCK} 512\n100 {BLOCK}\n{7 * BLOCK + 512} 512\n")
    files = {"regions": [("regions", regions)],
             "replay": [("trace", trace)]}.get (policy, [])
    for seed in range (8):
        size, reads, close = random_schedule (random.Random (f"{policy}{seed}"))
        assert kit (policy, size, reads, close, files) == \
            real (policy, size, reads, close, files), f"{policy}, seed {seed}"
