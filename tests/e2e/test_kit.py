# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What a policy sees and is told is the same under the kit as in the server."""

import os
import subprocess

from harness import SCAN, TOP, gate, nbdkit

SIZE, BLOCK = 65536, 4096
ENDED = "scan: finished scanning the plugin|error: scan: "
LUA_PATH = ";".join (f"{TOP}/lua/{d}/?.lua" for d in ("library", "runtime", "kit"))


def by_kit (policy, files):
    """What it prints there, and its prefetches."""
    script = f"""
        local files = {{}}
        for name, path in pairs {{ {", ".join (f"['{n}'] = '{p}'"
                                              for n, p in files.items ())} }} do
          files[name] = assert (io.open (path, "rb")):read "a"
        end
        local result = require "scan.testing".run {{
          policy = "{policy}", size = {SIZE}, block = {BLOCK}, files = files,
          print = print }}
        for _, p in ipairs (result.prefetches) do print (p[1], p[2]) end"""
    run = subprocess.run (["lua5.4", "-e", script], check=True, text=True,
                          env={**os.environ, "LUA_PATH": LUA_PATH + ";;"},
                          stdout=subprocess.PIPE)
    return run.stdout.splitlines ()


def by_filter (policy, files):
    with nbdkit ([SCAN], gate (f"size={SIZE}"),
                 [f"scan-size={BLOCK}", "scan-pace=false", f"scan-policy={policy}",
                  *(f"scan-file-{name}={path}" for name, path in files.items ())],
                 ["-v"]) as server:
        server.connect ()
        server.wait_line (ENDED)
        said = [line.split ("scan: policy: ")[1] for line in server.log
                if "scan: policy: " in line]
        return said + [f"{c.offset}\t{c.count}" for c in server.calls ("cache")]


def said_by_both (directory, text, **files):
    """What a policy of this text prints, and its prefetches, a line each."""
    policy = directory / "said.lua"
    policy.write_text (text)
    kit = by_kit (policy, files)
    assert by_filter (policy, files) == kit
    return kit


def test_ranges (tmp_path):
    said = said_by_both (tmp_path, """\
local odd = { false, -1, 0, 1, 4096, 65535, 65536, 1.5, 2^10, 2^70, 0/0, 1/0, "4096",
              "x", true, math.mininteger, math.maxinteger }
return function (disk)
  for i = 1, #odd do
    for j = 1, #odd do
      print (i, j, pcall (disk.prefetch, disk, odd[i] or nil, odd[j] or nil))
    end
  end
end
""")
    assert sum ("true" in line for line in said) > 20


def test_a_dot_for_a_colon (tmp_path):
    said = said_by_both (tmp_path, """\
return function (disk)
  for _, name in ipairs { "prefetch", "wait", "next_data", "pread", "missing" } do
    print (pcall (disk[name]))
    print (pcall (disk[name], 0, 4096))
    print (pcall (disk[name], "disk", 0, 4096))
  end
  pcall (disk.prefetch, {}, 8192)
end
""")
    assert said.pop () == "8192\t4096" and len (said) == 15
    assert all ("call it with a colon" in line for line in said)


def test_a_disk_that_was_written_to (tmp_path):
    said = said_by_both (tmp_path, """\
return function (disk)
  disk.block, disk.size = 512, 1 << 20
  disk:prefetch (0)
  print (pcall (disk.prefetch, disk, 65536))
end
""")
    assert "offset 65536 is outside the disk (size 65536)" in said[0]
    assert said[1:] == ["0\t4096"]


def test_names_that_are_none (tmp_path):
    said = said_by_both (tmp_path, """\
for _, name in ipairs { 5, false, true, {} } do
  print (pcall (scan.open, name or nil))
  print (pcall (scan.policy, name or nil))
end
return function () end
""")
    assert "false\tscan.open: a file's name should be a string, got number" in said
    assert "false\tscan.policy: a policy's name should be a string, got nil" in said


def test_the_words_of_what_is_no_text (tmp_path):
    said = said_by_both (tmp_path, """\
for _, value in ipairs { 5, false, {} } do print (pcall (scan.words, value)) end
return function () end
""")
    assert said == [f"false\tscan.words: a string expected, got {kind}"
                    for kind in ("number", "boolean", "table")]


def test_what_is_not_there (tmp_path):
    (tmp_path / "lib.lua").mkdir ()
    said = said_by_both (tmp_path, """\
local function try (f, name) print ((select (2, pcall (f, name)))) end
for _, name in ipairs { "nothere", "lib", "/etc/passwd", "no/such" } do
  try (scan.policy, name)
end
for _, name in ipairs { "nothere", "lib", "scan.testing", "scan.host", "../x" } do
  try (require, name)
end
return function () end
""")
    assert said[0].startswith ("there is no file 'nothere' and no built-in policy of that")
    assert said[1] == f"{tmp_path}/lib.lua: Is a directory"


TIME = "2026-01-31 23:59:59.999000 connection=1 "
ROWS = ["0 512", "", " # a comment", "4K 0x10 7 # three", "1 2 -3", "1 2 3.5", "1 2 3 4",
        "1", "x 1", "1.5 1", "1 0", "0x 1", "0x1b 0X1B", "8s 1S", "1Q 1", "7E 1", "8E 1",
        "9223372036854775807 1", "9223372036854775806 1", "0x8000000000000000 1",
        "1 2 -9223372036854775808", "1 2 9223372036854775808", "1 2 0x3", "-1 1",
        "00000000000000000000004 1", "! connection=1 Read id=5 offset=0x400 count=0x200",
        TIME + "Read id=1 offset=0x200 count=0x400 ...", TIME + "Read id=1 offset=12",
        TIME + "Write id=2 offset=0x1000 count=0x200 fua=0 ...",
        TIME + "...Read id=1 return=0 Read offset=0x0 count=0x1", "2\t3\r", "\xa0 1",
        TIME + "Read id=1 offset=0x8000000000000000 count=0x1", "5 6"]


def test_rows (tmp_path):
    (tmp_path / "rows").write_text ("\n".join (ROWS), encoding="latin-1")
    said = said_by_both (tmp_path, """\
for columns = 2, 3 do
  for _, log in ipairs { true, false } do
    local function parse (number, line) print ("left", number, #line) end
    for offset, count, third in scan.open "rows":rows (columns, log, parse) do
      print (columns, log, offset, count, third)
    end
  end
end
return function () end
""", rows=tmp_path / "rows")
    assert "3\ttrue\t4096\t16\t7" in said and "2\ttrue\t512\t1024\tnil" in said
    assert "left\t8\t1" in said and "left\t1\t5" not in said


def test_no_request_in_the_last_turn (tmp_path):
    """tests/spec/testing_spec.lua has the kit."""
    policy = tmp_path / "last.lua"
    policy.write_text ("""\
return function (disk)
  print "waits"
  repeat disk:wait () until disk:closed ()
  coroutine.yield ("nonsense")
end
""")
    with nbdkit ([SCAN], gate (f"size={SIZE}"), [f"scan-policy={policy}"],
                 ["-v"]) as server:
        h = server.connect ()
        server.wait_line ("scan: policy: waits")
        server.disconnect (h)
        server.wait_line ("error: scan: .*last.lua:4: the policy yielded something that")
