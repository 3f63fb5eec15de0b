# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""The client of the demo: reads files of an ext4 disk over NBD and takes notes in one.

    client.py read URI FILES            read, one request after the other
    client.py use URI FILES NOTES       read, and write a note after each file
    client.py expect IMAGE NOTES        write the same notes into an image

FILES has a line for each file, NOTES a line for the one that is written to: the 4K
blocks that it is in, in order.  If the server goes away, the client waits until it is
back and does again what had no answer.  It says what it has done in one line.
"""

import sys
import time

import nbd

BLOCK = 4096
READ_BLOCKS = 16            # at most, for one request
PATIENCE_SECS = 60
THINK_SECS = 0.02           # after each file: a machine that starts is busy, too


def lines (path):
    with open (path) as f:
        return [[int (word) for word in line.split ()] for line in f]


def runs (blocks):
    """Neighbouring blocks together, as offsets and counts."""
    ranges = []
    for block in blocks:
        if ranges and block == sum (ranges[-1]) and ranges[-1][1] < READ_BLOCKS:
            ranges[-1][1] += 1
        else:
            ranges.append ([block, 1])
    return [(first * BLOCK, count * BLOCK) for first, count in ranges]


def note (n):
    text = f"{n}: written by a client while the clone was not half there\n"
    return text.encode ().ljust (BLOCK, b"\n")


class Client:
    def __init__ (self, uri):
        self.uri, self.away_secs = uri, 0
        self.h = None
        self.connect ()

    def connect (self):
        deadline = time.monotonic () + PATIENCE_SECS
        while True:
            h = nbd.NBD ()
            try:
                h.connect_uri (self.uri)
                self.h = h
                return
            except nbd.Error:
                if time.monotonic () > deadline:
                    raise
                time.sleep (0.05)

    def do (self, request):
        """Until it is answered."""
        while True:
            try:
                return request (self.h)
            except nbd.Error:
                lost = time.monotonic ()
                self.connect ()
                self.away_secs += time.monotonic () - lost

    def read (self, blocks):
        for offset, count in runs (blocks):
            self.do (lambda h: h.pread (count, offset))

    def write (self, n, block):
        def request (h):
            h.pwrite (note (n), block * BLOCK)
            h.flush ()
        self.do (request)


def main ():
    what, where, *paths = sys.argv[1:]
    if what == "expect":
        with open (where, "r+b") as image:
            for n, block in enumerate (lines (paths[0])[0]):
                image.seek (block * BLOCK)
                image.write (note (n))
        return
    files = lines (paths[0])
    notes = lines (paths[1])[0] if what == "use" else []
    begin = time.monotonic ()
    client = Client (where)
    first = None
    for n, blocks in enumerate (files):
        client.read (blocks)
        first = first or time.monotonic () - begin
        if n < len (notes):
            client.write (n, notes[n])
        time.sleep (THINK_SECS)
    for n in range (len (files), len (notes)):
        client.write (n, notes[n])
    mib = sum (map (len, files)) * BLOCK / 2**20
    said = f"{len (files)} files, {mib:.0f} MB, in {time.monotonic () - begin:.1f} s"
    said += f"; the first after {first:.2f} s"
    if client.away_secs:
        said += f"; the server was away for {client.away_secs:.1f} s of it"
    print (said)


main ()
