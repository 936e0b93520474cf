"""What ``quoreduce simulate slides`` prints, and its page: one HTML file that needs nothing else."""

from __future__ import annotations

from html import escape

from quoreduce.sim.slides import APPS, PUBLISHED_10_NODES, PUBLISHED_CPU, Slides
from quoreduce_gridmix.figures import Band, Bar, Group, Line, bar_chart, line_chart


def page(found: Slides) -> str:
    """Draw all figures, and put the table below them."""
    charts = [_splits(found), _apps(found, 10), _apps(found, 20), _sweep(found)]
    body = "\n".join(f"<figure>{chart}</figure>" for chart in charts)
    return (
        '<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>quoreduce: simulated figures</title>\n'
        "<style>body{font-family:system-ui,sans-serif;max-width:60em;margin:2em auto}figure{margin:1.5em 0}</style>\n"
        "<h1>Simulated figures</h1>\n<p>Made by a simulator around the tracker that runs real jobs. Rates of bytes: "
        f"({escape(found.calibration)}). What is called published is of other machines and programs.</p>\n"
        f"{body}\n<pre>{escape(table(found))}</pre></html>\n"
    )


def table(found: Slides) -> str:
    """All figures as text."""
    lines = [f"Times and ratios are simulated, but for those called published (rates: {found.calibration}).", ""]
    lines += ["slide 24: seconds of webdataSort by number of 64 MB splits", "nodes  splits  original     bft  bft/original"]
    for p in found.points:
        lines.append(f"{p.nodes:5}  {p.splits:6}  {p.original_s:8.1f}  {p.bft_s:6.1f}  {p.bft_s / p.original_s:12.2f}")
    lines += ["", "slides 25, 26: bft/original, f=1 (published: 10 nodes 1.5-2.5, 20 nodes only slightly longer, CPU 2)"]
    lines.append("application   nodes  time   CPU")
    lines += [f"{r.app:12}  {r.nodes:5}  {r.time_ratio:4.2f}  {r.cpu_ratio:4.2f}" for r in found.ratios]
    lines += ["", "FTMR: 500 splits, f=1, 20 nodes: share of map tasks that are silently wrong once"]
    lines.append("share  seconds  ratio  published  re-executions  quarantined")
    for s in found.shares:
        lines.append(
            f"{s.percent:4}%  {s.time_s:7.1f}  {s.ratio:5.2f}  {s.published_ratio:9.2f}  {s.reexecutions:13}  {s.quarantined:11}"
        )
    return "\n".join(lines)


def _splits(found: Slides) -> str:
    lines = [
        Line(f"{name}, {nodes} nodes", tuple((p.splits, Bar(getattr(p, field))) for p in found.points if p.nodes == nodes))
        for nodes in (10, 20)
        for name, field in (("original", "original_s"), ("bft", "bft_s"))
    ]
    return line_chart("Slide 24: time of webdataSort (simulated)", "seconds", "splits of 64 MB", lines, 760)


def _apps(found: Slides, nodes: int) -> str:
    bars = {r.app: (Bar(r.time_ratio), Bar(r.cpu_ratio)) for r in found.ratios if r.nodes == nodes}
    bands = [Band(*PUBLISHED_10_NODES, "published time")] if nodes == 10 else []
    bands.append(Band(PUBLISHED_CPU, PUBLISHED_CPU, "published CPU"))
    title = f"Slide {25 if nodes == 10 else 26}: bft / original on {nodes} nodes, f=1 (simulated)"
    return bar_chart(title, "ratio", ("time", "CPU"), [Group(app, bars[app]) for app in APPS], bands)


def _sweep(found: Slides) -> str:
    ours = Line("simulated", tuple((s.percent, Bar(s.ratio)) for s in found.shares))
    theirs = Line("FTMR, published", tuple((s.percent, Bar(s.published_ratio)) for s in found.shares))
    return line_chart("Time by share of wrong map tasks, 500 splits, f=1", "ratio to no faults", "per cent", [ours, theirs], 760)
