"""Real clients over the filter, as in the stock project's own two tests."""

import pytest

from harness import SCAN, nbdkit


@pytest.mark.parametrize ("size", ["1M", "1G"])
def test_copy (size):
    """The sparse-random plugin compares: it refuses a write of anything but what
    is read from it."""
    # With these, about half of it is data; with the default runlength, no byte of
    # the small one.
    with nbdkit ([SCAN], ["sparse-random", size, "seed=7", "percent=50",
                          "runlength=16384"]) as server:
        server.run ("nbdcopy", "{uri}", "{uri}")
        assert server.errors () == []


@pytest.mark.parametrize ("size", ["1", "1M", "1G"])
def test_info (size):
    with nbdkit ([SCAN], ["memory", size]) as server:
        assert server.run ("nbdinfo", "--size", "{uri}").strip () == \
            {"1": "1", "1M": "1048576", "1G": "1073741824"}[size]
        assert "can_cache: true" in server.run ("nbdinfo", "{uri}")
        assert server.errors () == []


def test_info_of_another_export ():
    with nbdkit ([SCAN], ["memory", "1M"], options=["-e", "test"]) as server:
        assert "1048576" in server.run ("nbdinfo", "{uri}", export="test")
        assert len (server.errors ()) >= 1
        assert all ("not the default export" in e for e in server.errors ())
