"""Published experiments, repeated by simulation: slides 24-26, and FTMR's share of faulty map tasks. Every figure is
*simulated*.

The published figures are of other machines, programs and years; they stand beside ours, and are not fitted to.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from quoreduce.errors import QuoreduceError
from quoreduce.sim.calibration import Calibration
from quoreduce.sim.cluster import Shape
from quoreduce.sim.faults import parse_fault
from quoreduce.sim.load import Load
from quoreduce.sim.outcome import Outcome
from quoreduce.sim.simulation import simulate

APPS = ("streamSort", "javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort")
REDUCES = dict(zip(APPS, (15, 15, 10, 5, 15, 15), strict=True))  # GridMix 2, small jobs
APP_OF_TIMES, NODES_OF_TIMES = "webdataScan", 10  # slide 24
SPLITS = (10, 20, 40, 80, 160, 320)
SPLITS_OF_APPS = 20  # as many as 10 nodes have slots, and half of those of 20
SPLITS_FEW = 10  # half of the nodes of slide 26: each replica of a map has a node of its own
SPLITS_FTMR = 500
SHARES = (0, 6, 12, 25, 50, 100)
FTMR_S = {0: 414, 6: 450, 12: 470, 25: 520, 50: 620, 100: 810}
PUBLISHED_10_NODES = (1.5, 2.5)
PUBLISHED_20_NODES = "only slightly longer"
PUBLISHED_CPU = 2.0
PUBLISHED_TIMES_10_NODES = "around the double"
PUBLISHED_TWICE_THE_NODES = (1.02, 1.04)  # FTMR's logs: voted on twice the nodes of plain


class Broken(QuoreduceError):
    """A simulation that had to end well did not: exit code 1."""


@dataclass(frozen=True, slots=True)
class Point:
    """Slide 24: seconds of one job by number of splits, plain and voted."""

    nodes: int
    splits: int
    original_s: float
    bft_s: float


@dataclass(frozen=True, slots=True)
class Ratio:
    """Slides 25 and 26: voted by plain, for one application of SPLITS_OF_APPS splits on some nodes."""

    app: str
    nodes: int
    time_ratio: float
    cpu_ratio: float


@dataclass(frozen=True, slots=True)
class Other:
    """Voted by plain time of one application on 20 nodes under other assumptions than those of slide 26's bars.

    ``free_reading``: disks and networks take no time. ``few_splits``: of SPLITS_FEW splits. ``twice_nodes``: voted on
    20 nodes, plain on 10, as FTMR compared them.
    """

    app: str
    free_reading: float
    few_splits: float
    twice_nodes: float


@dataclass(frozen=True, slots=True)
class Share:
    """FTMR: seconds, and by those without faults, of a job of which some map tasks (in per cent) are wrong once."""

    percent: int
    time_s: float
    ratio: float
    published_ratio: float
    reexecutions: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class Slides:
    """All of it. ``simulated`` is always true; ``calibration``: where rates are from."""

    simulated: bool
    calibration: str
    seed: int
    points: tuple[Point, ...]
    ratios: tuple[Ratio, ...]
    others: tuple[Other, ...]
    shares: tuple[Share, ...]

    def as_dict(self) -> dict[str, Any]:
        """All figures, ours and published, for JSON."""
        published = {
            "time_ratio_10_nodes": PUBLISHED_10_NODES, "time_20_nodes": PUBLISHED_20_NODES, "cpu_ratio": PUBLISHED_CPU,
            "times_10_nodes": PUBLISHED_TIMES_10_NODES, "time_ratio_twice_the_nodes": PUBLISHED_TWICE_THE_NODES,
            "ftmr_s": FTMR_S,
        }  # fmt: skip
        return {**asdict(self), "published": published}


def slides(calibration: Calibration, seed: int = 0) -> Slides:
    """Simulate them all: a few seconds; raise Broken if a job does not end as it must."""
    c = calibration
    return Slides(True, c.source, seed, points(c, seed), ratios(c, seed), others(c, seed), shares(c, seed))


def points(calibration: Calibration, seed: int = 0) -> tuple[Point, ...]:
    """Job time against number of 64 MB splits (slide 24)."""
    found = []
    for splits in SPLITS:
        plain, voted = _pair(calibration, APP_OF_TIMES, Shape(nodes=NODES_OF_TIMES), splits, seed)
        found.append(Point(NODES_OF_TIMES, splits, plain.makespan_s, voted.makespan_s))
    return tuple(found)


def ratios(calibration: Calibration, seed: int = 0) -> tuple[Ratio, ...]:
    """The cost of voting for each application on 10 and on 20 nodes (slides 25 and 26): the same job, f=1."""
    found = []
    for app in APPS:
        for nodes in (10, 20):
            plain, voted = _pair(calibration, app, Shape(nodes=nodes), SPLITS_OF_APPS, seed)
            found.append(Ratio(app, nodes, voted.makespan_s / plain.makespan_s, voted.cpu_s / plain.cpu_s))
    return tuple(found)


def others(calibration: Calibration, seed: int = 0) -> tuple[Other, ...]:
    """Slide 26's ratio under other assumptions: see :class:`Other`."""
    found, ten, twenty = [], Shape(nodes=10), Shape(nodes=20)
    at_once = Shape(nodes=20, disk_bps=math.inf, net_bps=math.inf)
    for app in APPS:
        free, free_voted = _pair(calibration, app, at_once, SPLITS_OF_APPS, seed)
        few, few_voted = _pair(calibration, app, twenty, SPLITS_FEW, seed)
        half, _ = _pair(calibration, app, ten, SPLITS_OF_APPS, seed)
        _, voted = _pair(calibration, app, twenty, SPLITS_OF_APPS, seed)
        ratios = [b.makespan_s / a.makespan_s for a, b in ((free, free_voted), (few, few_voted), (half, voted))]
        found.append(Other(app, *ratios))
    return tuple(found)


def shares(calibration: Calibration, seed: int = 0, app: str = "javaSort") -> tuple[Share, ...]:
    """Time by share of map tasks that are wrong in one of their first executions (FTMR: 500 splits, f=1), on 20
    nodes.
    """
    load = Load(app, calibration.job(app), SPLITS_FTMR, REDUCES[app])
    found: list[Share] = []
    for percent in SHARES:
        faults = [parse_fault(f"wrong-map:{percent}%")] if percent else []
        out = _ended(simulate(Shape(nodes=20), load, calibration, faults=faults, seed=seed))
        base = found[0].time_s if found else out.makespan_s
        published = FTMR_S[percent] / FTMR_S[0]
        found.append(
            Share(percent, out.makespan_s, out.makespan_s / base, published, out.reexecutions, len(out.quarantined))
        )
    return tuple(found)


def mean(values: list[float]) -> float:
    """Geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def _pair(calibration: Calibration, app: str, shape: Shape, splits: int, seed: int) -> tuple[Outcome, Outcome]:
    """One job, plain and voted with f=1."""
    load = Load(app, calibration.job(app), splits, REDUCES[app])
    plain = _ended(simulate(shape, load, calibration, f=0, mode="original", seed=seed))
    return plain, _ended(simulate(shape, load, calibration, seed=seed))


def _ended(out: Outcome) -> Outcome:
    if out.end != "done" or out.violations or out.wrong_outputs:
        said = "; ".join([f"{out.end}, {out.wrong_outputs} wrong outputs", *out.violations, out.message]).rstrip("; ")
        raise Broken(f"{out.job}, {out.mode}, on {out.nodes} nodes, seed {out.seed}: {said}")
    return out
