# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The scripts of tests/upstream: each can tell whether nbdkit has its fault, and no
script says of our scan filter that it has."""

import concurrent.futures
import os
import subprocess

import pytest

from harness import CHECK_WITH, SCAN, TOP, dump_config

HERE = os.path.join (TOP, "tests/upstream")
SCRIPTS = sorted (name for name in os.listdir (HERE)
                  if name != "run" and "." not in name)

# Takes longest, and test_stock_faults.py has the like of it for our filter.
QUICK = [name for name in SCRIPTS if name != "scan-read-growth"]
OF_SCAN = [name for name in QUICK if name.startswith ("scan-")]

# What is known of a version: the faults that are mended.
MENDED = {"1.32.5": set (), "1.42.3": {"server-hangup-abort"}}

# One worker runs the scripts for all of the tests.
pytestmark = [
    pytest.mark.skipif (CHECK_WITH != "", reason="about nbdkit's own layers"),
    pytest.mark.xdist_group ("upstream"),
]


def run (script, env):
    return subprocess.run ([os.path.join (HERE, script)], stdout=subprocess.PIPE,
                           text=True, timeout=180, env={**os.environ, **env})


@pytest.fixture (scope="module")
def verdict ():
    """Of a script, perhaps about our filter.  Most of them wait for what does not come,
    so they do it side by side."""
    jobs = [(script, {}) for script in QUICK] + \
        [(script, {"STOCK_FILTER": SCAN}) for script in OF_SCAN]
    with concurrent.futures.ThreadPoolExecutor (6) as pool:
        runs = list (pool.map (lambda job: run (*job), jobs))

    def get (script, env):
        found = runs[jobs.index ((script, env))]
        assert found.returncode == 0, found.stdout
        return found.stdout.split (":")[0]
    return get


def test_there_are_scripts ():
    assert len (SCRIPTS) >= 10


@pytest.mark.parametrize ("script", QUICK)
def test_a_script_tells (script, verdict):
    found = verdict (script, {})
    assert found in ("present", "mended")
    version = dump_config ("version")
    if version in MENDED:
        assert found == ("mended" if script in MENDED[version] else "present")


@pytest.mark.parametrize ("script", OF_SCAN)
def test_ours_has_none_of_the_stock_filters_faults (script, verdict):
    """So a script can say that a fault is mended, too."""
    assert verdict (script, {"STOCK_FILTER": SCAN}) == "mended"


@pytest.mark.parametrize ("script", SCRIPTS)
def test_the_page_tells_of_each_script (script):
    with open (os.path.join (TOP, "docs/upstream.md")) as page:
        assert f"## {script}\n" in page.read ()
