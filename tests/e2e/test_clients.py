"""Real clients over the filter, as in the stock project's own two tests."""

import subprocess

import pytest

from harness import SCAN, nbdkit


def run_client (server, *words):
    """Run a libnbd tool with {uri} filled in; returns what it printed."""
    uri = f"nbd+unix://?socket={server.socket}"
    return subprocess.run ([w.format (uri=uri) for w in words], check=True,
                           stdout=subprocess.PIPE, text=True).stdout


@pytest.mark.parametrize ("size", ["1M", "1G"])
def test_copy (size):
    """The sparse-random plugin compares: it refuses a write of anything but what
    is read from it."""
    with nbdkit ([SCAN], ["sparse-random", size, "seed=7", "percent=50"]) as server:
        run_client (server, "nbdcopy", "{uri}", "{uri}")
        assert server.errors () == []


@pytest.mark.parametrize ("size", ["1", "1M", "1G"])
def test_info (size):
    with nbdkit ([SCAN], ["memory", size]) as server:
        assert run_client (server, "nbdinfo", "--size", "{uri}").strip () == \
            {"1": "1", "1M": "1048576", "1G": "1073741824"}[size]
        assert "can_cache: true" in run_client (server, "nbdinfo", "{uri}")
        assert server.errors () == []


def test_info_of_another_export ():
    with nbdkit ([SCAN], ["memory", "1M"], options=["-e", "test"]) as server:
        uri = f"nbd+unix:///test?socket={server.socket}"
        assert "1048576" in run_client (server, "nbdinfo", uri)
        assert len (server.errors ()) >= 1
        assert all ("not the default export" in e for e in server.errors ())
