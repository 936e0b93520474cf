"""The results of ``quoreduce simulate slides`` as text, and as a page: one HTML file without dependencies."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from quoreduce.sim import Shape
from quoreduce.sim.slides import (
    APP_OF_TIMES,
    NODES_OF_TIMES,
    PUBLISHED_10_NODES,
    PUBLISHED_20_NODES,
    PUBLISHED_CPU,
    PUBLISHED_TIMES_10_NODES,
    PUBLISHED_TWICE_THE_NODES,
    SPLITS_FEW,
    SPLITS_OF_APPS,
    Slides,
    mean,
)
from quoreduce_gridmix import page as frame
from quoreduce_gridmix.figures import Band, Bar, Group, Line, bar_chart, line_chart


@dataclass(frozen=True, slots=True)
class Table:
    """A table: the first column is of text."""

    heads: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def text(self) -> str:
        """In columns, for a terminal."""
        lines = [self.heads, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        styles = ["<", *[">"] * (len(widths) - 1)]
        return "\n".join(
            "  ".join(f"{value:{style}{width}}" for value, style, width in zip(line, styles, widths, strict=True))
            for line in lines
        )


@dataclass(frozen=True, slots=True)
class Section:
    """A published figure and ours: charts, a table, and what is to be said."""

    title: str
    charts: tuple[str, ...]
    table: Table
    words: tuple[str, ...]


def page(found: Slides) -> str:
    """Draw all figures, each with its table and words."""
    body = [f"<h1>Simulated figures</h1>\n<p>{escape(_said_first(found))}</p>\n<p>{escape(_model())}</p>"]
    for section in _sections(found):
        body.append(f"<h2>{escape(section.title)}</h2>\n{frame.charts(section.charts)}")
        body += [f"<p>{escape(words)}</p>" for words in section.words]
        body.append(frame.html_table(section.table.heads, section.table.rows))
    return frame.page("quoreduce: simulated figures", "\n".join(body))


def table(found: Slides) -> str:
    """All figures as text."""
    blocks = ["\n".join([section.title, section.table.text(), *section.words]) for section in _sections(found)]
    return "\n\n".join([_said_first(found), _model(), *blocks])


def _said_first(found: Slides) -> str:
    return (
        "Times and ratios are simulated, around the tracker that runs real jobs, except those called published, which "
        f"are of other machines and programs (rates: {found.calibration}; seed {found.seed})."
    )


def _model() -> str:
    s = Shape()
    return (
        f"Each node has {s.slots} slots, a disk of {s.disk_bps / 1e6:g} MB/s and a network card of {s.net_bps / 1e6:g} "
        f"MB/s, which serve one request after the other. Each split of 64 MB lies on {s.copies} nodes, "
        "and maps are not placed there."
    )


def _sections(found: Slides) -> list[Section]:
    return [_times(found), _ten(found), _twenty(found), _sweep(found)]


def _times(found: Slides) -> Section:
    lines = [
        Line(name, tuple((p.splits, Bar(getattr(p, field))) for p in found.points))
        for name, field in (("original", "original_s"), ("bft, f=1", "bft_s"))
    ]
    title = f"Slide 24: time of {APP_OF_TIMES} on {NODES_OF_TIMES} nodes"
    ratios = [p.bft_s / p.original_s for p in found.points]
    rows = [
        (str(p.splits), f"{p.original_s:.1f}", f"{p.bft_s:.1f}", f"{ratio:.2f}")
        for p, ratio in zip(found.points, ratios, strict=True)
    ]
    words = (
        f"Published: bft took {PUBLISHED_TIMES_10_NODES} of the time. Here: "
        f"{min(ratios):.2f} to {max(ratios):.2f} times."
    )
    chart = line_chart(f"{title} (simulated)", "seconds", "splits of 64 MB", lines, 760)
    return Section(title, (chart,), Table(("splits", "original s", "bft s", "bft/original"), rows), (words,))


def _ten(found: Slides) -> Section:
    ratios = [r for r in found.ratios if r.nodes == 10]
    groups = [Group(r.app, (Bar(r.time_ratio), Bar(r.cpu_ratio))) for r in ratios]
    bands = [Band(*PUBLISHED_10_NODES, "published time"), Band(PUBLISHED_CPU, PUBLISHED_CPU, "published CPU")]
    title = "Slide 25: bft/original on 10 nodes, f=1"
    low, high = PUBLISHED_10_NODES
    words = (
        f"Published: {low:g} to {high:g} times the time, {PUBLISHED_CPU:g} times the CPU. Here, of {SPLITS_OF_APPS} "
        f"splits: {min(r.time_ratio for r in ratios):.2f} to {max(r.time_ratio for r in ratios):.2f} times the time."
    )
    rows = [(r.app, f"{r.time_ratio:.2f}", f"{r.cpu_ratio:.2f}") for r in ratios]
    chart = bar_chart(f"{title} (simulated)", "ratio", ("time", "CPU"), groups, bands)
    return Section(title, (chart,), Table(("application", "time", "CPU"), rows), (words,))


def _twenty(found: Slides) -> Section:
    ratios = {r.app: r for r in found.ratios if r.nodes == 20}
    others = {o.app: o for o in found.others}
    groups = []
    for app, o in others.items():
        bars = (ratios[app].time_ratio, o.free_reading, o.few_splits, ratios[app].cpu_ratio)
        groups.append(Group(app, tuple(map(Bar, bars))))
    series = ("time", "time, reading is free", f"time, {SPLITS_FEW} splits", "CPU")
    bands = [Band(1.0, 1.0, "even"), Band(PUBLISHED_CPU, PUBLISHED_CPU, "published CPU")]
    title = "Slide 26: bft/original on 20 nodes, f=1"
    rows = [
        (app, *(f"{x:.2f}" for x in (r.time_ratio, others[app].free_reading, others[app].few_splits,
                                     others[app].twice_nodes, r.cpu_ratio)))
        for app, r in ratios.items()
    ]  # fmt: skip
    heads = ("application", "time", "reading is free", f"{SPLITS_FEW} splits", "20 nodes by 10", "CPU")
    chart = bar_chart(f"{title} (simulated)", "ratio", series, groups, bands, group_px=150)
    return Section(title, (chart,), Table(heads, rows), _twenty_said(found))


def _twenty_said(found: Slides) -> tuple[str, ...]:
    """Why voting does not take "only slightly longer" here, in figures of this run; means are geometric."""
    time = mean([r.time_ratio for r in found.ratios if r.nodes == 20])
    free, few, twice = (
        mean([getattr(o, name) for o in found.others]) for name in ("free_reading", "few_splits", "twice_nodes")
    )
    low, high = PUBLISHED_TWICE_THE_NODES
    return (
        f"Published: bft takes {PUBLISHED_20_NODES}, and {PUBLISHED_CPU:g} times the CPU. Here the jobs of slide 25, "
        f"of {SPLITS_OF_APPS} splits, take {time:.2f} times as long (geometric mean). All replicas run at once, two on "
        "a node; but the voted job reads every split twice, mostly over the network, "
        "and two replicas on a node wait for one network card.",
        f"With disks and networks that take no time, voting takes {free:.2f} times as long; with {SPLITS_FEW} splits, "
        f"so that each replica of a map has a node of its own, {few:.2f} times. The talk does not say how many splits "
        "and slots its 20 nodes had, or how fast they read.",
        f"Voted on 20 nodes takes {twice:.2f} times as long as plain on 10: that is what FTMR's logs compare "
        f"(published: {low:g} to {high:g}).",
    )


def _sweep(found: Slides) -> Section:
    title = "FTMR: share of map tasks that are silently wrong once, 500 splits, f=1, 20 nodes"
    ours = Line("simulated", tuple((s.percent, Bar(s.ratio)) for s in found.shares))
    theirs = Line("FTMR, published", tuple((s.percent, Bar(s.published_ratio)) for s in found.shares))
    heads = ("share", "seconds", "ratio", "published", "re-executions", "quarantined")
    rows = [
        (
            f"{s.percent}%",
            f"{s.time_s:.1f}",
            f"{s.ratio:.2f}",
            f"{s.published_ratio:.2f}",
            str(s.reexecutions),
            str(s.quarantined),
        )
        for s in found.shares
    ]
    chart = line_chart("Time by share of wrong map tasks", "ratio to no faults", "per cent", [ours, theirs], 760)
    return Section(title, (chart,), Table(heads, rows), ())
