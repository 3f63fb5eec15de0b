# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What `make bench-truth` makes of its results; the runs themselves take too long
here."""

import json
import os
import sys

import pytest

from harness import CHECK_WITH, TOP

sys.path.insert (0, os.path.join (TOP, "tests/bench"))

import truth            # noqa: E402

pytestmark = pytest.mark.skipif (CHECK_WITH != "", reason="not about the filter")

CELLS = [truth.Cell ("random 4K", 300, 20, 400, "none", 1),
         truth.Cell ("64 in flight", 0, 80, 100, "data", 16)]
NAMES = [truth.name_of (cell) for cell in CELLS]


@pytest.fixture
def runs (tmp_path, monkeypatch):
    """The cells that are run, each of which takes as many seconds as runs there are."""
    ran = []

    def run (cell, _):
        ran.append (cell)
        return float (len (ran))
    monkeypatch.setattr (truth, "RESULTS", str (tmp_path / "results.jsonl"))
    monkeypatch.setattr (truth, "ask", lambda cell: cell.workload)
    monkeypatch.setattr (truth, "version_of", lambda reads: "of " + reads)
    monkeypatch.setattr (truth, "run", run)
    return ran


def test_a_run_that_was_cut_goes_on (runs):
    truth.measure (CELLS[:1], 1)
    with open (truth.RESULTS, "a") as f:
        f.write ('\n{"cell": "rand')
    truth.measure (CELLS, 2)
    assert runs == [CELLS[0], CELLS[1], CELLS[0], CELLS[1]]
    truth.measure (CELLS, 2)
    assert len (runs) == 4
    assert truth.load ()[NAMES[1], "of 64 in flight"] == [2, 4]


def test_results_of_another_filter_do_not_count (runs):
    with open (truth.RESULTS, "w") as f:
        f.write (json.dumps ({"cell": NAMES[0], "version": "older", "seconds": 9}) + "\n")
    truth.measure (CELLS[:1], 1)
    assert len (runs) == 1


def test_what_is_far_apart_is_bold ():
    lines = truth.table ([(CELLS[0], [14, 10, 9], [11, 13, 11.5]),
                          (CELLS[1], [4, 4, 4], [3])]).splitlines ()
    assert ("| random 4K, 300 reads | 20 ms, 400 Mbit/s | none | 10.00 s (9.00-14.00) "
            "| 11.50 s (11.00-13.00) | 3 | 1.15 |") in lines
    assert ("| 64 in flight | 80 ms, 100 Mbit/s | data, 16 threads | 4.00 s "
            "| 3.00 s | 1 | **0.75** |") in lines
    assert lines[-1] == ("Of 2 cells, 1 agree to 15 %, by the medians. "
                         "The others are **bold**.")


def test_there_is_a_place_for_the_table ():
    with open (os.path.join (TOP, "docs/performance.md")) as f:
        text = f.read ()
    assert text.count (truth.BEGIN) == text.count (truth.END) == 1


def test_cells_have_names_of_their_own ():
    assert len (set (map (truth.name_of, truth.CELLS))) == len (truth.CELLS) == 20
