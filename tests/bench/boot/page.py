# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""A table and a picture of what boot.py measured, in docs/performance.md."""

import math
import os
import statistics

import common
import stacks

BEGIN, END = "<!-- bench-boot: begin -->", "<!-- bench-boot: end -->"
DOCS = os.path.join (stacks.TOP, "docs")

# Above this, a stack is not worth having.
SLOW = 1.05


def modes (results):
    """Pairs of processor and kind of disk, each with tables of its own."""
    return sorted ({(r["accel"], r["writable"]) for r in results})


class Results:
    """Of one mode: ratios and bytes by stack and line."""

    def __init__ (self, results, mode):
        rows = [r for r in results if (r["accel"], r["writable"]) == mode]
        local = {r["round"]: r["seconds"] for r in rows if r["stack"] == stacks.LOCAL}
        self.local_seconds = statistics.median (local.values ()) if local else None
        self.rounds = len (local)
        known = [line.name for line in stacks.LINES]
        self.lines = [n for n in known if any (r["line"] == n for r in rows)]
        self.stacks = list (dict.fromkeys (
            stacks.run_name (s, run) for s in stacks.stacks () for run in range (s.runs)
            if s.name != stacks.LOCAL))
        self.runs = {}
        for r in rows:
            if r["line"] and r["round"] in local:
                self.runs.setdefault ((r["stack"], r["line"]), []).append (
                    (r["seconds"] / local[r["round"]], r["read_bytes"]))
        self.stacks = [s for s in self.stacks
                       if any ((s, n) in self.runs for n in self.lines)]

    def get (self, stack, line):
        """Medians of time over local and of bytes, or None."""
        runs = self.runs.get ((stack, line))
        return runs and tuple (map (statistics.median, zip (*runs)))


def tables (results):
    """As Markdown."""
    out = []
    for accel, writable in modes (results):
        r = Results (results, (accel, writable))
        if not r.stacks:
            continue
        what = "which writes over NBD" if writable else \
            "which writes to a local overlay"
        how = "on KVM" if accel == "kvm" else "emulated, as there is no KVM"
        out += [f"The guest, {what}, {how}; {r.local_seconds:.1f} s from a local disk, "
                f"{r.rounds} round{'s' if r.rounds > 1 else ''}:", "",
                "| time over local, MiB read | " + " | ".join (r.lines) + " |",
                "|---" * (len (r.lines) + 1) + "|"]
        for stack in r.stacks:
            cells = []
            for line in r.lines:
                found = r.get (stack, line)
                if found:
                    ratio = f"{found[0]:.2f}"
                    cells.append ((ratio if found[0] <= SLOW else f"**{ratio}**")
                                  + f", {found[1] / 2**20:.0f}")
                else:
                    cells.append ("")
            out.append (f"| {stack} | " + " | ".join (cells) + " |")
        out.append ("")
    return "\n".join (out)


def escape (text):
    return text.replace ("&", "&amp;").replace ("<", "&lt;")


def picture (results, mode):
    """A row a stack, for each line a panel of times and one of bytes."""
    r = Results (results, mode)
    row_px, panel_px, label_px, top_px, gap_px = 18, 210, 210, 76, 30
    most = max (v[0] for runs in r.runs.values () for v in runs)
    most_bytes = max (v[1] for runs in r.runs.values () for v in runs)
    panels = [(line, kind) for line in r.lines for kind in (0, 1)]
    width = label_px + len (panels) * (panel_px + gap_px)
    bottom = top_px + len (r.stacks) * row_px
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
           f'height="{bottom + 40}" font-family="sans-serif" font-size="11" '
           'fill="#222222">',
           '<rect width="100%" height="100%" fill="#ffffff"/>']

    def text (x, y, what, more=""):
        out.append (f'<text x="{x:.1f}" y="{y:.1f}"{more}>{escape (what)}</text>')

    def x_of (value, kind):
        if kind == 0:           # times, on a logarithmic scale from 1 on
            return math.log (max (value, 1)) / math.log (max (most, 1.1)) * panel_px
        return value / max (most_bytes, 1) * panel_px

    text (8, 22, "A guest boots: time over local disk, and MiB read from the source",
          ' font-size="15" font-weight="bold"')
    text (8, 40, f"local disk: {r.local_seconds:.1f} s; less is better")
    for n, (line, kind) in enumerate (panels):
        left = label_px + n * (panel_px + gap_px)
        text (left, top_px - 14, line + (": time" if kind == 0 else ": MiB"),
              ' font-weight="bold"')
        ticks = [t for t in (1, 1.05, 1.2, 1.5, 2, 3, 5, 10, 20) if t <= most] \
            if kind == 0 else [0, most_bytes / 2, most_bytes]
        seen = -99
        for tick in ticks:
            x = left + x_of (tick, kind)
            out.append (f'<path d="M{x:.1f} {top_px - 8} V{bottom}" stroke="#e6e6e6"/>')
            if x - seen > 24:
                text (x, bottom + 16,
                      f"{tick:g}" if kind == 0 else f"{tick / 2**20:.0f}",
                      ' text-anchor="middle" fill="#666666"')
                seen = x
        for i, stack in enumerate (r.stacks):
            y = top_px + i * row_px
            if n == 0:
                text (8, y + 11, stack)
            found = r.get (stack, line)
            if found:
                out.append (
                    f'<rect x="{left}" y="{y + 2}" height="{row_px - 5}" '
                    f'width="{max (x_of (found[kind], kind), 1):.1f}" '
                    f'fill="{"#0072b2" if kind == 0 else "#c3c9d1"}"/>')
                label = f"{found[0]:.2f}" if kind == 0 else f"{found[1] / 2**20:.0f}"
                text (left + x_of (found[kind], kind) + 4, y + 11, label)
    out.append ("</svg>")
    return "\n".join (out) + "\n"


def write (results):
    """Put both into docs/, in place of what was there."""
    shown = [m for m in modes (results) if Results (results, m).stacks]
    if not shown:
        raise SystemExit ("boot: nothing has been measured yet")
    text = tables (results)
    for accel, writable in shown:
        name = "boot-writable.svg" if writable else "boot.svg"
        with open (os.path.join (DOCS, name), "w") as f:
            f.write (picture (results, (accel, writable)))
        text += f"\n![the same as a picture]({name})\n"
    path = os.path.join (DOCS, "performance.md")
    common.write_between (path, BEGIN, END, text.rstrip ("\n"))
    print (f"boot: wrote the tables of {path} and {' and '.join ('boot-writable.svg' if w else 'boot.svg' for _, w in shown)}")
