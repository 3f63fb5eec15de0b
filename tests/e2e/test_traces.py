# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Traces and lists of regions: a million lines load within the default limits, and
what the filter reads by itself is what policies would read."""

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit, refused

FINISHED = "scan: finished scanning"

# Fewer where each step is a hundred times slower.
MILLION = 10_000 if CHECK_WITH else 1_000_000
LOG = ("2026-11-22 07:17:15.169758 connection=1 Read id=1 offset=0x%x count=0x1000 ...\n"
       "2026-11-22 07:17:15.179758 connection=1 ...Read id=1 return=0 (Success)\n")


def write_lines (path, number, form):
    """Reads all over a disk of 8 TiB, so that hardly any two touch."""
    place = 1
    with open (path, "w") as f:
        for _ in range (number):
            place = (place * 1103515245 + 12345) % 2147483648
            f.write (form (place * 4096))


@pytest.mark.parametrize ("policy, name, number, form", [
    ("replay", "trace", MILLION, lambda offset: f"{offset} 4096\n"),
    ("replay", "trace", MILLION // 10, lambda offset: LOG % offset),
    ("regions", "regions", MILLION, lambda offset: f"{offset} 4096 {offset % 7}\n"),
], ids=["a trace", "a log", "regions"])
def test_a_million_lines (policy, name, number, form, tmp_path):
    write_lines (tmp_path / "lines", number, form)
    with nbdkit ([SCAN], gate ("size=8T", "hold=cache"),
                 [f"scan-policy={policy}", f"scan-file-{name}={tmp_path}/lines"],
                 ["-v"]) as server:
        h = server.connect ()
        call = server.next_call ("cache")
        assert call.offset > 0 and server.errors () == []
        server.disconnect (h)
        server.release (call)


LIST = """\
0 512
# a comment

4K 0x10  # and one here
 1m\t2k
3G 1b
0x1b 0x1B
8s 1S
0 0
! connection=1 Read id=5 offset=0x400 count=0x200 ...
2026-01-31 23:59:59.950000 connection=1 Connect export="" tls=0 size=0x800000 write=1
2026-01-31 23:59:59.999000 connection=1 Read id=1 offset=0x0 count=0x200 ...
2026-01-31 23:59:59.999900 connection=1 ...Read id=1 return=0 (Success)
2026-02-01 00:00:00.001500 connection=1 Write id=2 offset=0x1000 count=0x200 fua=0 ...
9223372036854775806 1"""


def test_the_filter_reads_what_a_policy_reads (tmp_path):
    policy = tmp_path / "both.lua"
    policy.write_text ("""\
local trace = require "scan.trace"
for what, each in pairs { lua = trace.each, c = trace.ranges } do
  for offset, count in each (scan.open "trace") do print (what, offset, count) end
end
-- Lines, rows and bytes may be read in turn.
local file = scan.open "trace"
local lines = file:lines ()
print ("first", lines (file))
for offset in trace.ranges (file) do print ("second", offset) break end
print ("third", lines (file))
print ("rest", #file:read ())
return function () end
""")
    (tmp_path / "trace").write_text (LIST)
    with nbdkit ([SCAN], gate ("size=64K"), [
            f"scan-policy={policy}", f"scan-file-trace={tmp_path}/trace"],
                 ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
        said = [line.split ("scan: policy: ")[1].split ("\t") for line in server.log
                if "scan: policy: " in line]
    by_lua = [line[1:] for line in said if line[0] == "lua"]
    by_c = [line[1:] for line in said if line[0] == "c"]
    assert by_lua == by_c and len (by_c) == 9
    assert ["first", "0 512"] in said and ["second", "4096"] in said
    assert ["third", " 1m", "2k"] in said
    assert ["rest", str (len (LIST) - LIST.index ("3G"))] in said


@pytest.mark.parametrize ("policy, name", [("replay", "trace"), ("regions", "regions")])
@pytest.mark.parametrize ("bad", ["x 1", "1", "1 2 3 4", "8E 1", "1.5 1"])
def test_a_line_that_is_wrong_is_named (policy, name, bad, tmp_path):
    (tmp_path / "lines").write_text (f"# one\n4096 4096\n\n{bad}\n8192 4096\n")
    [error] = refused ([SCAN], ["null"], [f"scan-policy={policy}",
                                          f"scan-file-{name}={tmp_path}/lines"])
    assert "line 4: " in error and f"got '{bad}'" in error
