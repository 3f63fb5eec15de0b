# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Parameters: values are read as nbdkit reads them, and what is wrong with one is
said in one message that names it."""

import subprocess

import pytest

from harness import CHECK_WITH, CLONE, SCAN, command, nbdkit, refused, stock_filter

pytestmark = pytest.mark.skipif (
    CHECK_WITH != "", reason="it starts servers of its own, and is about start-up")

SIZES = ["4096S", "4096s", "8s", "4K", "4k", "1M", "512", "512b", " 4096", "0004096",
         " +4096", "+-4096", "+", "32M", "33554432B", "511", "4096X", "4096SS", "4KiB", "0x1000", "-4096", "1e",
         "1E", "99999999999E", "9223372036854775808", "K", "", "4096 ", "1.5M"]
BOOLEANS = ["1", "0", "true", "FALSE", "t", "f", "Yes", "no", "y", "n", "on", "off", "2",
            "maybe", "", "tr", "yess"]


def accepts (scan, arg):
    run = subprocess.run ([*command ([scan], ["null"], [arg]), "-U", "-", "--run", ":"],
                          stderr=subprocess.PIPE, text=True)
    return run.returncode == 0


@pytest.mark.parametrize ("arg", [f"scan-size={v}" for v in SIZES] + [
    f"scan-ahead={v}" for v in BOOLEANS])
def test_values_are_taken_as_the_stock_filter_takes_them (arg):
    assert accepts (SCAN, arg) == accepts (stock_filter (), arg)


@pytest.mark.parametrize ("arg, allowed", [
    *((f"scan-size={v}", "[512..32M]") for v in ("4096X", "511", "1e", "99999999999E")),
    *((f"scan-ahead={v}", "true or false") for v in ("2", "maybe", "")),
    *((f"scan-background={v}", "true or false") for v in ("2", "")),
    *((f"scan-threads={v}", "a number from 1 to 64")
      for v in ("0", "65", "-1", "x", "", "3x", "99999999999", "1.5")),
    *((f"scan-{name}={v}", "like") for name in ("rate", "limit")
      for v in ("0", "10Q", "-1", "10MB", "9999999999G", "")),
    ("scan-method=both", "cache or read"),
    *((f"scan-policy-memory={v}", "at least 1M") for v in ("1023K", "1W")),
    *((f"scan-policy-timeout={v}", "0.1 to 3600") for v in ("0", "1h", "nan")),
    *((f"scan-{name}=", "a path") for name in ("stats", "record", "trace")),
])
def test_a_bad_value_is_one_message (arg, allowed):
    name, value = arg.split ("=")
    errors = refused ([SCAN], ["null"], [arg])
    assert len (errors) == 1
    assert name in errors[0] and value in errors[0] and allowed in errors[0]


@pytest.mark.parametrize ("wrong, said", [
    ("scan-polcy", "did you mean scan-policy?"),
    ("scan-thread", "did you mean scan-threads?"),
    ("scan-policytimeout", "did you mean scan-policy-timeout?"),
    ("scan-background-", "did you mean scan-background?"),
    ("scan-arg-", "scan-stats, scan-arg-NAME, scan-file-NAME"),
    ("scan-file-", "it has: scan-ahead, scan-clock, "),
    ("scan-file", "scan-stats, scan-arg-NAME, scan-file-NAME"),
    ("scan-" + 100 * "x", "it has: scan-ahead, scan-clock, "),
])
def test_a_parameter_that_we_do_not_have (wrong, said):
    errors = refused ([SCAN], ["null"], [f"{wrong}=1"])
    assert len (errors) == 1
    assert errors[0].startswith (f"{wrong}: the scan filter has no such parameter; ")
    assert said in errors[0]


def test_what_begins_as_ours_may_be_the_plugin_s ():
    for name in "scanner", "cloned", "clone":
        assert refused ([SCAN, CLONE], ["null"], [f"{name}=1"]) == [
            f"unknown parameter '{name}'"]


@pytest.mark.parametrize ("args, said", [
    (["scan-file-x=/dev/null", "scan-file-x=NOWHERE"],
     "scan-file-x: there is a file of this name already; give each one of its own"),
    (["scan-file-trace=/dev/null", "scan-trace=TRACE"], "scan-trace and scan-file-trace"),
    (["scan-trace=TRACE", "scan-file-trace=/dev/null"], "scan-trace and scan-file-trace"),
    (["scan-trace=NOWHERE", "scan-file-trace=TRACE"], "scan-trace and scan-file-trace"),
])
def test_no_file_hides_another (args, said, tmp_path):
    (tmp_path / "trace").write_text ("0 4096\n")
    [error] = refused ([SCAN], ["null"],
                       [arg.replace ("NOWHERE", f"{tmp_path}/nowhere")
                           .replace ("TRACE", f"{tmp_path}/trace") for arg in args])
    assert said in error


def test_a_file_has_256M_at_most (tmp_path):
    large = tmp_path / "large"
    with large.open ("wb") as f:
        f.truncate (257 << 20)
    assert refused ([SCAN], ["null"], [f"scan-file-x={large}"]) == [
        f"scan-file-x: {large}: larger than 256M, the most that is read"]


def test_parameters_of_layers_below_are_not_ours ():
    with nbdkit ([SCAN, "cow", "cache"], ["memory", "1M"],
                 ["cow-on-read=true", "cache-on-read=true"]) as server:
        assert server.errors () == []
    # Nor is what nobody has.
    [error] = refused ([SCAN], ["memory", "1M"], ["scam-size=1"])
    assert "scan filter" not in error
