# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""What all benchmarks do with their results: keep them so that a run that was cut goes
on, choose what to run by name, and show them on a page."""

import fnmatch
import json
import os
import re
import sys


def load (path):
    """The results in a file, one a line; none if it isn't there.  A line that was cut
    counts for nothing."""
    if not os.path.exists (path):
        return
    with open (path) as f:
        for line in f:
            try:
                yield json.loads (line)
            except json.JSONDecodeError:
                continue


def append (path, result):
    """Add one, but not to the end of a line that was cut."""
    with open (path, "a") as f:
        f.write ("\n" + json.dumps (result))


def choose (rows, patterns, name=lambda row: row.name):
    """Those whose name fits one of the shell patterns; all if there are none.  Ends the
    program if a pattern fits nothing."""
    for p in patterns or []:
        if not any (fnmatch.fnmatchcase (name (r), p) for r in rows):
            sys.exit (f"{program ()}: '{p}' is none of these:\n  "
                      + "\n  ".join (map (name, rows)))
    return [r for r in rows if not patterns
            or any (fnmatch.fnmatchcase (name (r), p) for p in patterns)]


def write_between (path, begin, end, text):
    """Put this between the two marks on a page, in place of what was there."""
    with open (path) as f:
        old = f.read ()
    if begin not in old:
        sys.exit (f"{program ()}: {path} has no {begin}")
    with open (path, "w") as f:
        f.write (re.sub (f"{re.escape (begin)}.*{re.escape (end)}",
                         lambda _: f"{begin}\n{text}\n{end}", old, flags=re.S))


def program ():
    return os.path.basename (sys.argv[0]).removesuffix (".py")
