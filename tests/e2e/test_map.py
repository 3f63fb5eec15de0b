# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""scan-policy map and maps that the clone filter made: what it reads is what the
filter itself would (build/tests/map-dump), whole, of a server that was killed, and
damaged."""

import os
import random
import shutil
import subprocess

import pytest

from harness import CHECK_WITH, CLONE, PLUGINS, SCAN, TOP, nbdkit

PAGE = 4096
BLOCK = 512
SIZE = 40 * 1024 * 1024 + 512           # three pages of bits, for blocks of 512
LATER = "clone-commit=3600"             # only when a client flushes

pytestmark = pytest.mark.skipif (CHECK_WITH != "", reason="about a program in Lua")

# The same lines as map-dump, with what scan-policy reads maps with.
READER = """
package.path = arg[1] .. "/lua/kit/?.lua;" .. package.path
local clonemap = require "scan.clonemap"
for path in io.lines () do
  local map, why = clonemap.load (path)
  if not map then
    print (why == "unborn" and why or "refused: " .. why)
  else
    io.write (map.lost and "repaired " or "ok ", map.written and "written " or
              "unwritten ")
    for first, last in map:runs () do io.write (first, "-", last, ",") end
    io.write ("\\n")
  end
end
"""


def lines (command, paths):
    return subprocess.run (command, input="".join (f"{path}\n" for path in paths),
                           stdout=subprocess.PIPE, check=True, text=True,
                           timeout=60).stdout.splitlines ()


def agree (tmp_path, paths):
    """What both programs say of each map."""
    reader = tmp_path / "reader.lua"
    reader.write_text (READER)
    ours = lines (["lua5.4", reader, TOP], paths)
    filters = lines ([os.path.join (PLUGINS, "map-dump")], paths)
    assert ours == filters
    assert len (ours) == len (paths)
    return ours


def shown (path, *args):
    return subprocess.run (["lua5.4", os.path.join (TOP, "lua/bin/scan-policy"), "map",
                            path, *args], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, timeout=60)


def make (directory, seed, writes):
    """Maps of a clone after several commits: as a server that is killed leaves it, and
    as one that ends does."""
    dice = random.Random (seed)
    disk = directory / f"{seed}.img"
    maps = [disk.with_name (disk.name + end) for end in (".killed", ".map")]
    for _ in range (2):
        with nbdkit ([CLONE], ["memory", str (SIZE)],
                     [f"clone-file={disk}", f"clone-block-size={BLOCK}", LATER]
                     ) as server:
            h = server.connect ()
            for _ in range (6):
                # A page of the map is for 16M here; clients like some places.
                offset = dice.choice ([0, 16 << 20, SIZE - (1 << 20)])
                offset += BLOCK * dice.randrange (1000)
                if writes and dice.random () < 0.3:
                    h.pwrite (b"w" * 1000, offset)
                else:
                    h.pread (dice.randrange (1, 20000), offset)
                if dice.random () < 0.6:
                    h.flush ()
            shutil.copy (maps[1], maps[0])
    return maps


def damage (path, copy, dice):
    """A copy of a map to which something has happened."""
    text = bytearray (path.read_bytes ())
    pages = len (text) // PAGE
    for _ in range (dice.choice ([1, 1, 2])):
        at = dice.randrange (pages) * PAGE
        what = dice.randrange (4)
        if what == 0:                       # a bit, mostly where something is told
            at += dice.randrange (dice.choice ([48, PAGE]))
            text[at] ^= 1 << dice.randrange (8)
        elif what == 1:
            text[at:at + PAGE] = bytes (PAGE)
        elif what == 2:                     # a page of another place
            there = dice.randrange (pages) * PAGE
            text[at:at + PAGE] = text[there:there + PAGE]
        elif dice.random () < 0.2:
            del text[at:]
            break
    copy.write_bytes (text)


@pytest.mark.parametrize ("writes", [False, True])
def test_it_reads_what_the_filter_does (writes, tmp_path):
    whole = [path for seed in range (4) for path in make (tmp_path, seed, writes)]
    for said in agree (tmp_path, whole):
        assert said.startswith ("ok ") and said.endswith (",")
    dice = random.Random (11)
    copies = [tmp_path / f"copy{n}" for n in range (300)]
    for copy in copies:
        damage (dice.choice (whole), copy, dice)
    said = agree (tmp_path, copies)
    kinds = {line.split ()[0] for line in said}
    assert kinds >= ({"ok", "refused:"} if writes else {"ok", "repaired", "refused:"})


def test_what_is_shown (tmp_path):
    disk, svg = tmp_path / "disk.img", tmp_path / "map.svg"
    with nbdkit ([SCAN, CLONE], ["memory", "64M"],
                 [f"clone-file={disk}", LATER, "scan-exports=none"]) as server:
        h = server.connect ()
        h.pread (1 << 20, 16 << 20)
        h.flush ()
        # Also while the server has it open.
        said = shown (f"{disk}.map")
        assert said.returncode == 0, said.stdout
        lines_ = said.stdout.splitlines ()
        assert lines_[0].startswith ("1 MiB of 64 MiB present, 1.6 %, in one run")
        assert lines_[2] == "no client has written"
        assert len (lines_[3]) == 80 and lines_[3].count (".") >= 75
        h.pwrite (b"w" * 4096, 0)
        h.flush ()
    said = shown (f"{disk}.map", "-o", svg)
    assert "in 2 runs" in said.stdout and "clients have written" in said.stdout
    assert ">disk.img</text>" in svg.read_text ()


def test_what_is_not_a_map (tmp_path):
    (tmp_path / "new.map").write_bytes (b"")
    for path, why in [(tmp_path / "none", "cannot be opened: No such file"),
                      (tmp_path / "new.map", "is still being made"),
                      (CLONE, "is not a map of a clone")]:
        said = shown (path)
        assert said.returncode == 1
        assert said.stdout.startswith (f"scan-policy: {path} {why}")


def test_a_map_of_another_image (tmp_path):
    """All of what it says could be read, and the filter refuses it as well."""
    disk = tmp_path / "disk.img"
    with nbdkit ([CLONE], ["memory", "64M"], [f"clone-file={disk}"]) as server:
        server.connect ()
    os.truncate (disk, 1 << 20)
    said = shown (f"{disk}.map")
    assert said.returncode == 1
    assert said.stdout.startswith (f"scan-policy: {disk}.map is of 67108864 bytes, and its "
                                   "image has 1048576; put back a copy of both files")
    disk.unlink ()
    assert shown (f"{disk}.map").stdout.startswith ("0 bytes of 64 MiB present")


def test_the_image_is_not_its_map (tmp_path):
    disk = tmp_path / "disk.img"
    with nbdkit ([CLONE], ["memory", str (SIZE)], [f"clone-file={disk}"]) as server:
        server.connect ()
    run = shown (disk)
    assert run.returncode == 1
    assert run.stdout == f"scan-policy: {disk} is the image; its map is {disk}.map\n"
