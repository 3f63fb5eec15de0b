# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Warnings at start-up of settings that can't help over the layers below, as far
as these have parameters that pass by; and none over sensible ones."""

import pytest

from harness import CHECK_WITH, CLONE, SCAN, gate, nbdkit, stock_filter

pytestmark = pytest.mark.skipif (
    CHECK_WITH == "tsan", reason="at start-up there is one thread, and it is slow")

# Filters from the outside in, parameters, and the warnings, each by words that it
# must have.
MIN_BLOCK = "cache-min-block-size=64K"
READ_TWICE = ["scan-method=read", "--filter=scan first", "--filter=clone"]
CASES = {
    "the stock way": ([SCAN, "cache"], [], []),
    "threads over cache":
        ([SCAN, "cache"], ["scan-threads=2", MIN_BLOCK],
         [["scan-threads=2", "--filter=clone"]]),
    "threads over a cache further down":
        ([SCAN, "delay", "cache"], ["scan-threads=64", MIN_BLOCK],
         [["scan-threads=64"]]),
    "threads below cache": (["cache", SCAN], ["scan-threads=2", MIN_BLOCK], []),
    "threads over cow's .cache":
        ([SCAN, "cow"], ["scan-threads=2", "cow-on-cache=true"],
         [["scan-threads=2", "--filter=clone", "cow-on-read=true",
           "scan-method=read"]]),
    "threads over clone": ([SCAN, CLONE], ["scan-threads=2", "clone-commit=5"], []),
    "reading over clone":
        ([SCAN, CLONE], ["scan-method=read", "clone-commit=5"],
         [["scan-method=read", "leave it out"]]),
    "threads over the plugin": ([SCAN], ["scan-threads=2"], []),
    "reading over the plugin":
        ([SCAN], ["scan-threads=2", "scan-method=read"], [READ_TWICE]),
    "reading over a cow that forgets":
        ([SCAN, "cow"], ["scan-method=read"], [READ_TWICE]),
    "reading over a cow told to forget":
        ([SCAN, "cow"], ["scan-method=read", "cow-on-read=no"], [READ_TWICE]),
    "reading over a cache that forgets":
        ([SCAN, "cache"], ["scan-method=read"], [["cache-on-read=true"]]),
    "reading below a cow": (["cow", SCAN], ["scan-method=read"], [READ_TWICE]),
    "reading below a cow that keeps":
        (["cow", SCAN], ["scan-method=read", "cow-on-read=true"], [READ_TWICE]),
    "reading over a cow that keeps":
        ([SCAN, "cow"], ["scan-method=read", "cow-on-read=true", "scan-threads=8"], []),
    "reading over a cow that keeps while a file exists":
        ([SCAN, "cow"], ["scan-method=read", "cow-on-read=/nonexistent"], []),
    "reading over a cache that keeps":
        ([SCAN, "cache"], ["scan-method=read", "cache-on-read=true"], []),
}


@pytest.mark.parametrize ("case", CASES)
def test_hints (case):
    filters, args, warnings = CASES[case]
    with nbdkit (filters, ["memory", "1M"], args) as server:
        for _ in range (2):
            server.connect ().pread (512, 0)
        errors = server.errors ()
        assert len (errors) == len (warnings)
        for error, words in zip (errors, warnings):
            assert error.startswith ("scan: warning: ")
            assert all (word in error for word in words)


def test_the_stock_filter_over_cache_is_silent_too ():
    """Else the first case above would ask for less than there is."""
    with nbdkit ([stock_filter (), "cache"], ["memory", "1M"]) as server:
        server.connect ().pread (512, 0)
        assert server.errors () == []


@pytest.mark.parametrize ("layers", [[SCAN], [SCAN, CLONE]])
@pytest.mark.parametrize ("background", ["true", "false"])
def test_the_split_plugin (layers, background, tmp_path):
    """Its .cache hangs; of clone nothing is known if it has no parameter."""
    (tmp_path / "a").write_bytes (b"x" * 100000)
    with nbdkit (layers, ["split", str (tmp_path / "a")],
                 [f"scan-background={background}"]) as server:
        server.connect ().pread (512, 0)
        server.poll (server.errors, "a warning")
        [error] = server.errors ()
        assert "split" in error and "--filter=clone after this" in error \
            and "clone-file=FILE" in error


@pytest.mark.parametrize ("args, piece", [
    (["cache-on-read=true"], 65536), (["cache-min-block-size=1M"], 1048576),
    (["cache-min-block-size=2M"], None), (["scan-size=64K", MIN_BLOCK], None)])
def test_pieces_of_a_block_are_a_debug_message (args, piece):
    with nbdkit ([SCAN, "cache"], ["memory", "1M"], args, ["-v"]) as server:
        server.wait_line ("scan: after_fork")       # it would have come by now
        said = [line for line in server.log if "in pieces of" in line]
        assert len (said) == (piece is not None)
        if piece:
            assert f"pieces of {piece} bytes" in said[0]
            assert "cache-min-block-size=2097152" in said[0]


@pytest.mark.parametrize ("policy, name, text, said", [
    ("replay", "trace", "# nothing\n", "scan-file-trace: there are no reads in it"),
    ("regions", "regions", "", "scan-file-regions: there are no regions in it"),
    ("replay", "trace", "2M 4K\n0 4K\n4M 4K\n",
     "scan-file-trace: of 3 ranges, 2 lie beyond the end of the disk (1048576 bytes); "),
    ("regions", "regions", "0 4K\n2M 4K 5\n",
     "scan-file-regions: of 2 ranges, 1 lie beyond the end of the disk"),
])
def test_what_a_policy_warns_of (policy, name, text, said, tmp_path):
    """Once, however many clients and exports there are."""
    (tmp_path / "lines").write_text (text)
    with nbdkit ([SCAN], gate ("size=1M", "exports=a"),
                 [f"scan-policy={policy}", f"scan-file-{name}={tmp_path}/lines",
                  "scan-exports=*"], ["-v"]) as server:
        line = 0
        for _ in range (2):
            server.connect ()
            _, line = server.wait_line ("finished scanning", line)
        [error] = server.errors ()
        assert error.startswith ("scan: warning: " + said)
        if "there are no" in said:
            server.connect ("a")        # which loads the policy anew
            server.wait_line ("finished scanning", line)
            assert len (server.errors ()) == 1
