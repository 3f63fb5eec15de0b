# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""disk:next_data and disk:pread, which the filter answers for a policy."""

import pytest

from harness import CHECK_WITH, SCAN, gate, nbdkit, pattern

FINISHED = "scan: finished scanning the plugin"
VERBOSE = ["-v", "-D", "nbdkit.backend.controlpath=0",
           "-D", "nbdkit.backend.datapath=0"]
BLOCK = 65536
WHOLE = "scan-pace=false"       # prefetches of a block
DATA_ONLY = """
    return function (disk)
      local offset = disk:next_data (0)
      while offset do
        offset = offset // disk.block * disk.block
        disk:prefetch (offset)
        offset = offset + disk.block
        if offset >= disk.size then break end
        offset = disk:next_data (offset)
      end
    end"""
# A policy that doesn't care for what was answered before.
DATA_ONLY_BACKWARDS = """
    return function (disk)
      for block = disk.blocks - 1, 0, -1 do
        local data = disk:next_data (block * disk.block)
        if data and data < (block + 1) * disk.block then
          disk:prefetch (block * disk.block)
        end
      end
    end"""


def write (tmp_path, text):
    path = tmp_path / "policy.lua"
    path.write_text (text)
    return f"scan-policy={path}"


@pytest.mark.parametrize ("text", [DATA_ONLY, DATA_ONLY_BACKWARDS],
                          ids=["up", "down"])
@pytest.mark.parametrize ("threads", [1, 8])
@pytest.mark.parametrize ("model", ["parallel", "serialize_requests"])
def test_only_data_is_fetched (tmp_path, text, threads, model):
    data = {0: 1, 3 * BLOCK + 5: 10, 10 * BLOCK: 2 * BLOCK, 16 * BLOCK - 1: 1}
    with nbdkit ([SCAN], gate (f"size={16 * BLOCK}", "log=extents", f"model={model}",
                               *(f"data={o}+{c}" for o, c in data.items ())),
                 [write (tmp_path, text), f"scan-size={BLOCK}", WHOLE,
                  f"scan-threads={threads}"], VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert sorted (c.offset // BLOCK for c in server.calls ("cache")) == \
            [0, 3, 10, 11, 15]
        if text == DATA_ONLY:
            assert len (server.calls ("extents")) == 1


@pytest.mark.parametrize ("filters", [["noextents"], []])
def test_a_source_without_extents (tmp_path, filters):
    """All of it is data."""
    plugin = gate (f"size={4 * BLOCK}", "log=extents",
                   *(["data=0+1"] if filters else []))
    with nbdkit ([SCAN, *filters], plugin,
                 [write (tmp_path, DATA_ONLY), f"scan-size={BLOCK}", WHOLE],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        assert [c.offset for c in server.calls ("cache")] == \
            [BLOCK * i for i in range (4)]
        assert server.calls ("extents") == []


def test_extents_that_fail (tmp_path):
    """That is no reason to skip anything."""
    with nbdkit ([SCAN], gate (f"size={4 * BLOCK}", "data=0+1", "fail=extents:1-2"),
                 [write (tmp_path, DATA_ONLY), f"scan-size={BLOCK}", WHOLE],
                 VERBOSE) as server:
        h = server.connect ()
        server.wait_line (FINISHED)
        server.disconnect (h)
        server.wait_line ("gate: close 1$")
        # Asked at 0 and at 1: failed.  At 2: nothing but a hole.
        assert [c.offset for c in server.calls ("cache")] == [0, BLOCK]


@pytest.mark.skipif (CHECK_WITH in ("asan", "tsan"),
                     reason="the shell of the eval plugin dies under it")
def test_a_layer_that_tells_of_less_than_one_of_its_blocks (tmp_path):
    """What it doesn't tell of is data, and nobody's fault."""
    policy = write (tmp_path, """
        return function (disk)
          for _, offset in ipairs { 33000, 100 } do
            print ("data at " .. tostring (disk:next_data (offset)))
          end
        end""")
    with nbdkit ([SCAN], ["eval", "thread_model=echo parallel", "get_size=echo 128K",
                          "can_cache=echo native", "cache=:",
                          f"block_size=echo {BLOCK} {BLOCK} {BLOCK}",
                          "can_extents=:", "extents=echo $4 32768 hole",
                          "pread=head -c $3 /dev/zero"], [policy], ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
        found = [line.split ()[-1] for line in server.log if "data at" in line]
        assert found == ["33000", "32768"]
        assert server.errors () == []


@pytest.mark.parametrize ("how", ["plugin", "filter"])
def test_a_layer_that_takes_only_whole_blocks (tmp_path, how):
    """It is asked from the beginning of one on, wherever the policy is in it."""
    data = 3 * BLOCK + 5
    filters, params = (["blocksize-policy"], [
        "blocksize-minimum=4096", "blocksize-preferred=64K",
        "blocksize-error-policy=error"]) if how == "filter" else ([], [])
    with nbdkit ([SCAN, *filters],
                 gate (f"size={4 * BLOCK}", "log=extents", "data=0+1", f"data={data}+10",
                       *([] if filters else ["blocks=4096-65536"])),
                 [*params, write (tmp_path, """
                     return function (disk)
                       for _, offset in ipairs { 5000, 100, 0, 3 * 65536 + 7, 250000 } do
                         print ("data at " .. tostring (disk:next_data (offset)))
                       end
                     end""")], ["-v"]) as server:
        server.connect ()
        server.wait_line (FINISHED)
        found = [line.split ()[-1] for line in server.log if "data at" in line]
        assert found == [str (data), str (data), "0", str (data + 2), "nil"]
        assert all (call.offset % 4096 == 0 for call in server.calls ("extents"))


def test_a_sparse_tebibyte (tmp_path):
    """10 MiB of data, in ten places, the last one at the end, through the file
    plugin.  (It knows how far a hole goes if data follows; where none follows, it
    takes one call for every 4 GiB.)"""
    disk, log = tmp_path / "disk", tmp_path / "log"
    size, places = 1 << 40, 10
    with open (disk, "wb") as f:
        f.truncate (size)
        for i in range (places):
            f.seek (i * (size - (1 << 20)) // (places - 1) >> 20 << 20)
            f.write (b"x" * (1 << 20))
    with nbdkit ([SCAN, "log"], ["file", str (disk)],
                 [write (tmp_path, DATA_ONLY), f"logfile={log}", "scan-size=1M",
                  "scan-pace=false"],
                 VERBOSE) as server:
        server.connect ()
        server.wait_line (FINISHED)
    lines = log.read_text ().splitlines ()
    assert sum (" Cache " in line for line in lines) == places
    assert 1 <= sum (" Extents " in line for line in lines) <= places + 1


def test_a_tebibyte_of_nothing (tmp_path):
    disk, log = tmp_path / "disk", tmp_path / "log"
    with open (disk, "wb") as f:
        f.truncate (1 << 40)
    with nbdkit ([SCAN, "log"], ["file", str (disk)],
                 [write (tmp_path, DATA_ONLY), f"logfile={log}"], VERBOSE) as server:
        server.connect ()
        server.wait_line (FINISHED)
    lines = log.read_text ().splitlines ()
    assert sum (" Cache " in line for line in lines) == 0
    assert 1 <= sum (" Extents " in line for line in lines) <= 260


def test_a_walk_over_a_vast_hole_comes_back (tmp_path):
    """To a policy that asks for that, at least after each 64 calls; it sees reads
    long before the end."""
    policy = write (tmp_path, """
        return function (disk)
          local offset, more, turns = 4096, nil, 0
          repeat
            offset, more = disk:next_data (offset, true)
            turns = turns + 1
            for at in disk:reads () do print ("read", at, more) end
          until not more
          print (offset, turns >= 1024 // 64, disk:next_data (4096))
        end""")
    with nbdkit ([SCAN, "cow"], gate ("size=4T", "data=0+1", "hold=extents"),
                 [policy, "cow-block-size=1M"], VERBOSE) as server:
        h = server.connect ()
        first = server.next_call ("extents")
        h.pread (512, 8192)
        server.send ("hold extents 0")
        server.release (first)
        server.wait_line ("scan: policy: read\t8192\ttrue")
        # All of it again, for who does not ask.
        server.wait_line ("scan: policy: nil\ttrue\tnil")


def test_a_disconnect_in_the_middle_of_many_extents (tmp_path):
    """The scan would ask 512 times; it stops after the one it is in."""
    with nbdkit ([SCAN, "cow"], gate ("size=1T", "data=0+1", "hold=extents"),
                 [write (tmp_path, "return function (disk) "
                         "disk:next_data (65536) end"),
                  "cow-block-size=1M"], VERBOSE) as server:
        h = server.connect ()
        first = server.next_call ("extents")
        server.disconnect (h)
        server.wait_joined (first.tid)
        server.send ("hold extents 0")
        server.release (first)
        server.wait_line ("gate: close 1$")
        assert len (server.calls ("extents")) == 1


def test_pread (tmp_path):
    """Bytes, cut at the end of the disk; or nil and the name of the errno."""
    text = """
        return function (disk)
          local s = disk:pread (1000, 16)
          print (#s, s:byte (1, -1))
          print (#disk:pread (disk.size - 10, 100))
          print (#disk:pread (0, 1048576))
          print (pcall (disk.pread, disk, 0, 1048577))
          print (pcall (disk.pread, disk, disk.size, 1))
          print (disk:pread (0, 1))
        end"""
    with nbdkit ([SCAN], gate ("size=2M", "fail=read:4-4"),
                 [write (tmp_path, text)], VERBOSE) as server:
        server.connect ()
        server.wait_line (FINISHED)
        printed = [line.split ("scan: policy: ")[1].split ("\t")
                   for line in server.log if "scan: policy: " in line]
        assert printed[0] == [str (n) for n in (16, *pattern (1000, 16))]
        assert printed[1] == ["10"] and printed[2] == ["1048576"]
        assert printed[3][0] == "false" and "at most 1048576" in printed[3][1]
        assert printed[4][0] == "false" and "outside the disk" in printed[4][1]
        assert printed[5] == ["nil", "EIO"]


def test_reads_do_not_wait_for_a_policy_that_preads (tmp_path):
    """No lock is held, neither the policy's nor any other."""
    with nbdkit ([SCAN], gate ("size=64K", "hold=read"),
                 [write (tmp_path, "return function (disk) disk:pread (0, 1) end"),
                  "scan-pace=false"], VERBOSE) as server:
        first = server.connect ()
        policys = server.next_call ("read")
        server.send ("hold read 0")
        assert first.pread (1000, 1000) == pattern (1000, 1000)
        second = server.connect ()
        server.wait_line (FINISHED)             # of the second one's scan
        assert second.pread (1000, 1000) == pattern (1000, 1000)
        server.release (policys)


def test_a_reader_in_a_vast_hole_is_followed_at_once ():
    """What lies ahead of it is asked about, and not where the hole ends: that would be a
    thousand calls here."""
    with nbdkit ([SCAN, "cow"], gate ("size=4T", "data=0+1", "log=extents"),
                 ["scan-policy=readahead", "cow-block-size=1M"],
                 [*VERBOSE, "-D", "scan.decisions=1"]) as server:
        h = server.connect ()
        at = 1 << 40
        for i in range (8):
            h.pread (4096, at + i * 4096)
        server.wait_line ("scan: policy: wait",
                          server.wait_line ("next_data offset=0x1")[1])
        assert len (server.calls ("extents")) <= 64
