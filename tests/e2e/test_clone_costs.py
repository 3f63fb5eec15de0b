# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What a hit costs in the clone filter, as far as that can be counted."""

import os
import sys

import pytest

import harness

sys.path.insert (0, os.path.join (harness.TOP, "tests/bench"))
import measure  # noqa: E402

pytestmark = pytest.mark.skipif (
    harness.CHECK_WITH != "", reason="counts are of the program as it is shipped")

# All of the disk has been read by then.
ROUND = measure.DISK_BYTES // measure.READ_BYTES


def instructions_per_hit (filters, args=()):
    return measure.instructions_per_read (filters, args, before=2 * ROUND, reads=ROUND)


def test_a_hit_takes_fewer_instructions_than_in_cow ():
    ours = instructions_per_hit ([harness.CLONE])
    cow = instructions_per_hit (["cow"], ["cow-on-read=true"])
    print (f"clone {ours:.0f}, cow {cow:.0f}, cache",
           f"{instructions_per_hit (['cache'], ['cache-on-read=true']):.0f},",
           f"none {instructions_per_hit ([]):.0f}")
    assert ours < cow
