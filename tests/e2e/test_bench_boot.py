# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What `make bench-boot` makes of its results; booting itself takes too long here."""

import os
import sys
import xml.dom.minidom

import pytest

from harness import CHECK_WITH, TOP

sys.path[:0] = [os.path.join (TOP, "tests/bench/boot"), os.path.join (TOP, "tests/bench")]

import page             # noqa: E402
import stacks           # noqa: E402

pytestmark = pytest.mark.skipif (CHECK_WITH != "", reason="not about the filter")

NEAR, FAR = (line.name for line in stacks.LINES)


def result (stack, line, seconds, mib=0, round_=0, writable=False):
    return {"stack": stack, "line": line, "seconds": seconds, "round": round_,
            "read_bytes": mib * 2**20, "accel": "tcg", "writable": writable}


RESULTS = [
    result (stacks.LOCAL, None, 10), result (stacks.LOCAL, None, 20, round_=1),
    result (stacks.NONE, NEAR, 20, 100), result (stacks.NONE, NEAR, 60, 120, 1),
    result (stacks.NONE, FAR, 70, 100), result ("adaptive + clone", NEAR, 10.4, 500),
]


def test_a_ratio_is_to_the_local_disk_of_its_round ():
    lines = page.tables (RESULTS).splitlines ()
    assert f"| time over local, MiB read | {NEAR} | {FAR} |" in lines
    assert f"| {stacks.NONE} | **2.50**, 110 | **7.00**, 100 |" in lines
    assert "| adaptive + clone | 1.04, 500 |  |" in lines


def test_runs_that_write_are_apart ():
    text = page.tables (RESULTS + [result (stacks.LOCAL, None, 5, writable=True),
                                   result (stacks.NONE, FAR, 50, 9, writable=True)])
    assert text.count ("| time over local") == 2
    assert f"| {stacks.NONE} | **10.00**, 9 |" in text.splitlines ()


def test_the_picture_is_svg ():
    svg = page.picture (RESULTS, ("tcg", False))
    document = xml.dom.minidom.parseString (svg)
    assert document.documentElement.tagName == "svg"
    assert ">2.50<" in svg and ">500<" in svg


def test_there_is_a_place_for_the_table ():
    with open (os.path.join (TOP, "docs/performance.md")) as f:
        text = f.read ()
    assert text.count (page.BEGIN) == text.count (page.END) == 1


def test_stacks_have_names_of_their_own ():
    names = [stacks.run_name (s, run) for s in stacks.stacks () for run in range (s.runs)]
    assert len (set (names)) == len (names)
    assert {"learn + clone, first run", "learn + clone, second run"} <= set (names)
