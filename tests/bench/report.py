# SPDX-License-Identifier: BSD-3-Clause
# Copyright (c) 2026, the authors of the scriptable nbdkit scan filter

"""Tables and plots of what bench.py measured."""

import math
import statistics

import matrix

NONE = "no filter"
NONE_NATIVE = "no filter, native"

# Above this, a stack is worse than none.
WORSE = 1.05


def escape (text):
    return text.replace ("&", "&amp;").replace ("<", "&lt;")


def baseline (stack):
    return NONE_NATIVE if stack.endswith ("native") or ", native" in stack else NONE


class Results:
    """Runs by source, workload and stack, each a list in order of rounds."""

    def __init__ (self, rows):
        self.sources = [s.name for s in matrix.SOURCES
                        if any (r["source"] == s.name for r in rows)]
        self.workloads = [w.name for w in matrix.WORKLOADS
                          if any (r["workload"] == w.name for r in rows)]
        self.stacks = [s.name for s in matrix.stacks ()
                       if any (r["stack"] == s.name for r in rows)]
        self.size_mib = max (r["size_mib"] for r in rows)
        self.rounds = 1 + max (r["round"] for r in rows)
        self.runs = {}
        for r in rows:
            if r["size_mib"] == self.size_mib:
                self.runs.setdefault (
                    (r["source"], r["workload"], r["stack"]), {})[r["round"]] = r

    def ratios (self, source, workload, stack, field="seconds"):
        """To no filter in the same round."""
        ours = self.runs.get ((source, workload, stack), {})
        none = self.runs.get ((source, workload, baseline (stack)), {})
        return [ours[n][field] / none[n][field] for n in sorted (ours)
                if n in none and none[n].get (field) and field in ours[n]]

    def median (self, source, workload, stack, field):
        values = [r[field] for r in
                  self.runs.get ((source, workload, stack), {}).values ()
                  if field in r]
        return statistics.median (values) if values else None


def spread (ratios):
    """The median, and the range if it is wider than what is printed."""
    if not ratios:
        return ""
    middle = f"{statistics.median (ratios):.2f}"
    low, high = f"{min (ratios):.2f}", f"{max (ratios):.2f}"
    if statistics.median (ratios) > WORSE:
        middle = f"**{middle}**"
    return middle if low == high else f"{middle} ({low}-{high})"


def number (value, form):
    return "" if value is None else format (value, form)


def table (out, heading, rows):
    out.append ("| " + " | ".join (heading) + " |")
    out.append ("|---" * len (heading) + "|")
    out.extend ("| " + " | ".join (row) + " |" for row in rows)
    out.append ("")


def summary (results, source, out):
    rows = []
    for stack in results.stacks:
        cells = [spread (results.ratios (source, w, stack))
                 for w in results.workloads]
        if any (cells):
            rows.append ([stack, *cells])
    table (out, ["stack", *results.workloads], rows)


def details (results, source, workload, out):
    kind = next (w for w in matrix.WORKLOADS if w.name == workload)
    disk_bytes = (kind.disk_mib or results.size_mib) * matrix.MIB
    limit = matrix.limit_seconds (
        next (s for s in matrix.SOURCES if s.name == source), kind, disk_bytes)
    rows = []
    for stack in results.stacks:
        def get (field):
            return results.median (source, workload, stack, field)
        seconds = get ("seconds")
        if seconds is None:
            continue
        p99 = results.ratios (source, workload, stack, "p99_ms")
        fetched = get ("source_read_bytes")
        if ", native" in stack:
            fetched = None      # counts those that were there already
        counts = [get (f) for f in ("hit", "late", "miss")]
        total = sum (c for c in counts if c is not None)
        rows.append ([
            stack, f"{seconds:.2f}", spread (results.ratios (source, workload, stack)),
            number (limit and seconds / limit, ".2f"),
            number (get ("p50_ms"), ".2f"), number (get ("p99_ms"), ".2f"),
            spread (p99), number (fetched and fetched / disk_bytes, ".2f"),
            " / ".join (f"{100 * c / total:.0f}" for c in counts) if total else "",
        ])
        crashes = sum (r["status"] != 0 for r in
                       results.runs[source, workload, stack].values ())
        if crashes:
            rows[-1][0] += f" (server crashed at the end of {crashes} runs)"
    if not rows:
        return
    out += [f"### {source}: {workload}", ""]
    if limit is not None:
        out += [f"The physical limit is {limit:.2f} s.", ""]
    table (out, ["stack", "seconds", "to no filter", "to limit", "median ms", "p99 ms",
                 "p99 to no filter", "fetched", "hit / late / miss %"], rows)


def plot (results, source, path):
    """A panel a workload, a row a stack: the median of the ratios and their range."""
    row_px, panel_px, label_px, top_px, gap_px = 16, 190, 230, 60, 24
    low, high = 0.03, 8
    stacks = [s for s in results.stacks if s not in (NONE, NONE_NATIVE) and
              any (results.ratios (source, w, s) for w in results.workloads)]
    width = label_px + len (results.workloads) * (panel_px + gap_px)
    height = top_px + len (stacks) * row_px + 30

    def x_of (ratio, panel):
        at = math.log (min (max (ratio, low), high) / low) / math.log (high / low)
        return label_px + panel * (panel_px + gap_px) + at * panel_px

    def text (x, y, what, style=""):
        out.append (f'<text x="{x:.0f}" y="{y:.0f}" {style}>{escape (what)}</text>')

    def line (x1, y1, x2, y2, colour):
        out.append (f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
                    f'stroke="{colour}"/>')

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" '
           f'height="{height}" font-family="sans-serif" font-size="11">',
           f'<rect width="{width}" height="{height}" fill="#fff"/>']
    text (8, 18, f"Time against no filter, source: {source} (log scale; left of 1 is "
          "faster; bars: all rounds)", 'font-size="13" font-weight="bold"')
    bottom = top_px + len (stacks) * row_px
    for panel, workload in enumerate (results.workloads):
        text (x_of (low, panel), 40, workload, 'font-weight="bold"')
        for tick in 0.05, 0.1, 0.2, 0.5, 1, 2, 5:
            x = x_of (tick, panel)
            line (x, top_px - 8, x, bottom, "#444" if tick == 1 else "#ddd")
            text (x, bottom + 14, f"{tick:g}", 'text-anchor="middle" fill="#666"')
        for i, stack in enumerate (stacks):
            y = top_px + i * row_px
            if panel == 0:
                text (8, y + 4, stack)
            ratios = results.ratios (source, workload, stack)
            if ratios:
                middle = statistics.median (ratios)
                colour = "#b03020" if middle > WORSE else "#1f6f8b"
                line (x_of (min (ratios), panel), y, x_of (max (ratios), panel), y,
                      colour)
                out.append (f'<circle cx="{x_of (middle, panel):.1f}" cy="{y}" r="3.5" '
                            f'fill="{colour}"/>')
    out.append ("</svg>")
    with open (path, "w") as f:
        f.write ("\n".join (out) + "\n")


def write (rows, path):
    """Write PATH.md and a plot a source beside it."""
    if not rows:
        print ("bench: nothing has been measured yet")
        return
    results = Results (rows)
    out = [
        "# Time against no filter", "",
        f"A disk of {results.size_mib} MiB, {results.rounds} rounds; the median of the "
        "ratios to no filter in the same round, and in brackets the range.  Less is "
        f"better; **bold** is above {WORSE}.", ""]
    for n, source in enumerate (results.sources):
        out += [f"## {source}", ""]
        summary (results, source, out)
        svg = f"{path}-{n + 1}.svg"
        plot (results, source, svg)
        out += [f"![plot]({svg.rsplit ('/', 1)[1]})", ""]
    out += ["# In detail", "",
            "\"Fetched\" is bytes read from the source per byte of disk; hit, late and "
            "miss: the whole read had been prefetched before, was being prefetched, or "
            "neither.", ""]
    for source in results.sources:
        for workload in results.workloads:
            details (results, source, workload, out)
    with open (path + ".md", "w") as f:
        f.write ("\n".join (out))
    print ("\n".join (out[:out.index ("# In detail")]))
    print (f"Details: {path}.md, plots: {path}-*.svg")
