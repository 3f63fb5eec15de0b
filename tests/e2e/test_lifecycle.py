# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""How the filter and its scans begin and end, also where nobody says goodbye."""

from harness import SCAN, gate, refused


def test_the_filter_is_given_twice ():
    """Both would be one object with one set of variables."""
    assert refused ([SCAN, SCAN], gate ("size=64K")) == \
        ["--filter=scan is given 2 times; it can be used once"]
