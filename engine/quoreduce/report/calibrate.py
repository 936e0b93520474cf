"""``quoreduce simulate calibrate``: what executions cost on this machine, from jobs on a warm local session.

Jobs run plain and voted, of several numbers of splits and reducers, in turn; each execution's own CPU seconds and bytes are known
from its request and reply. Costs are a fit through the medians of executions that are alike; what is small is measured with jobs
of next to nothing.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TypeVar

import numpy as np

from quoreduce.data.digest import Digester
from quoreduce.jobs.wordcount import JOB as WORDCOUNT
from quoreduce.report.rig import Rig, Say, Seen, Subject, rig
from quoreduce.runtime.options import Options
from quoreduce.sim import Calibration, Curve, JobCost, Load, Rate, Shape, Work, simulate

ROUNDS = 3
ALIKE_LEAST = 8
SMALL_SHARE = 4
SHAPES = ((2, 2), (8, 2), (8, 6), (16, 3))  # splits and reducers of a job on all data
SHAPES_SMALL = ((4, 2), (1, 3))  # and on a quarter of it
TINY = ((64, 1), (192, 1), (64, 16), (16, 48))
TINY_ROUNDS = 5
PLAIN = Options(mode="original", f=0)
VOTED = Options(mode="bft", f=1)
K = TypeVar("K", bound=Hashable)


def calibrate(mb: int, say: Say) -> Calibration:
    """Measure this machine with about ``mb`` MB of data for each kind of job; they are deleted again."""
    with rig(say) as r:
        return calibrated(r, mb)


def calibrated(r: Rig, mb: int) -> Calibration:
    """Measure with a rig."""
    r.say("calibrate: making data")
    big, small = r.subjects("big", mb, seed=1), r.subjects("small", mb / SMALL_SHARE, seed=2)
    where = f"measured on {platform.machine()}, {r.workers} cores, with {mb} MB"
    found = _fixed(r, replace(_NOTHING, source=where, digest_s_per_byte=_digest_s()))
    spreads: list[float] = []
    for one, little in zip(big, small, strict=True):
        r.say(f"calibrate: {one.name}")
        found.jobs[one.name] = _cost(r, one, little, found, spreads)
    return replace(found, spread=min(0.9, statistics.median(spreads)))


_NOTHING = Calibration("", {}, 0.0, 0.0, 0.0, latency_s=0.0, spread=0.0)


# ---- what is small


def _fixed(r: Rig, found: Calibration) -> Calibration:
    """Costs of partitions, checks, messages, the driver, and the start of a job."""
    tiny = r.folder / "tiny"
    tiny.write_bytes(b"a b\n" * 8 * max(splits for splits, _ in TINY))
    todo = [
        (replace(o, reducers=n, split_mb=tiny.stat().st_size / splits / 1e6), n) for splits, n in TINY for o in (PLAIN, VOTED)
    ]
    runs = [(n, r.run(WORDCOUNT, tiny, options)) for _ in range(1 + TINY_ROUNDS) for options, n in todo][len(todo) :]
    seen = [one for _, run in runs for one in run.seen]
    by_parts = {
        kind: _medians((one.parts, one.cpu_s) for one in seen if one.kind == kind) for kind in ("map", "reduce")
    }  # fmt: skip
    (map_s, map_part_s), (reduce_s, reduce_part_s) = (
        fit([(1.0, float(n)) for n in medians], list(medians.values())) for medians in by_parts.values()
    )
    tasks = [(float(len(run.seen)), float(sum(one.parts for one in run.seen)), run.driver_s) for _, run in runs]
    alike = _medians(((asked, parts), driver_s) for asked, parts, driver_s in tasks)
    _, driver_s, driver_part_s = fit([(1.0, *key) for key in alike], list(alike.values()))
    found = replace(
        found, map_part_s=map_part_s, reduce_part_s=reduce_part_s, driver_s=driver_s, driver_part_s=driver_part_s,
        check_s=statistics.median(one.cpu_s for one in seen if one.kind == "check"),
        latency_s=statistics.quantiles([max(0.0, one.took_s - one.cpu_s) for one in seen if one.kind == "map"], n=4)[0] / 2,
    )  # fmt: skip
    return replace(found, startup_s=_startup_s(r, found, Rate(map_s, 0.0), Rate(reduce_s, 0.0)))


def _startup_s(r: Rig, found: Calibration, map_: Rate, reduce_: Rate) -> float:
    """What a job of one map and one reduce of nothing takes beyond what the simulator says without a start."""
    one = r.folder / "one"
    one.write_bytes(b"a b\n")
    walls = [r.run(WORDCOUNT, one, replace(PLAIN, reducers=1)).result.wall_s for _ in range(1 + 2 * TINY_ROUNDS)][1:]
    cost = JobCost(Work(map_, map_, map_), Work(reduce_, reduce_, reduce_), Curve(((1.0, 1.0),)), Curve(((1.0, 1.0),)))
    known = simulate(Shape.machine(r.workers, found), Load("one", cost, 1, 1, 1.0), found, f=0, mode="original").makespan_s
    return max(0.0, min(walls) - known)


def _digest_s() -> float:
    """Seconds that a digest takes for a byte, of 16 MB."""
    data, digester, times = np.arange(2_000_000, dtype=np.uint64).view(np.uint8), Digester("blake3"), []
    for _ in range(1 + ROUNDS):
        start = time.thread_time()
        digester.of(data)
        times.append(time.thread_time() - start)
    return min(times[1:]) / data.nbytes


# ---- one kind of job


def _cost(r: Rig, big: Subject, small: Subject, found: Calibration, spreads: list[float]) -> JobCost:
    """Fit the costs of one kind of job; how much executions that are alike differ is added to ``spreads``."""
    todo = [
        (subject, replace(options, reducers=reducers, split_mb=subject.split_mb(splits)))
        for subject, shapes in ((big, SHAPES), (small, SHAPES_SMALL)) for splits, reducers in shapes
        for options in (PLAIN, VOTED)
    ]  # fmt: skip
    seen: list[_Noted] = []
    outs: dict[float, float] = {}
    for n in range(1 + ROUNDS):  # in turn, and the first does not count
        for number, (subject, options) in enumerate(todo):
            run = r.run(subject.job, subject.source, options)
            outs[subject.nbytes] = float(max(1, run.result.bytes_out))
            seen += [_Noted(number, n, one) for one in run.seen if n]
    spreads += _spreads(seen)
    works: list[Work] = []
    for kind, part_s in (("map", found.map_part_s), ("reduce", found.reduce_part_s)):
        rates = [
            _rate([x for x in seen if (x.one.kind, x.one.store, x.job % 2 == 1) == (kind, store, voted)], part_s)
            for voted, store in ((False, True), (True, True), (True, False))
        ]
        works.append(Work(*rates))
    maps = [[x.one for x in seen if x.one.kind == "map" and x.job == job] for job in range(len(todo))]
    mapped = [(_mean(alike, "read"), _mean(alike, "made")) for alike in maps]
    samples = [x.one.cpu_s for x in seen if x.one.kind == "sample"]
    map_, reduce_ = works
    return JobCost(map_, reduce_, curve(mapped), curve(outs.items()), big.stages, statistics.median(samples or [0.0]))


@dataclass(frozen=True, slots=True)
class _Noted:
    """An execution in a round of the job of that number."""

    job: int
    round: int
    one: Seen


def _rate(seen: Sequence[_Noted], part_s: float) -> Rate:
    """Fixed cost, and seconds for bytes read and made: a fit through each job's mean execution, in the median of its rounds."""
    sizes, cpu = [], []
    for job in sorted({x.job for x in seen}):
        rounds = [[x.one for x in seen if (x.job, x.round) == (job, n)] for n in sorted({x.round for x in seen})]
        alike = rounds[0]
        sizes.append((1.0, _mean(alike, "read"), _mean(alike, "made")))
        cpu.append(max(1e-6, statistics.median(_mean(one, "cpu_s") for one in rounds) - part_s * _mean(alike, "parts")))
    return Rate(*fit(sizes, cpu))


def _mean(alike: Sequence[Seen], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in alike)


def _spreads(seen: Sequence[_Noted]) -> list[float]:
    """Distances of the quartiles by the median, which is the half width of an even distribution; of executions that are alike."""
    found = []
    for key in {(x.job, x.one.kind, x.one.store) for x in seen}:
        alike = [x.one for x in seen if (x.job, x.one.kind, x.one.store) == key]
        if len(alike) >= ALIKE_LEAST and max(one.made for one in alike) < 1.05 * min(one.made for one in alike):
            low, middle, high = statistics.quantiles([one.cpu_s for one in alike], n=4)
            found.append((high - low) / middle)
    return found


def _medians(pairs: Iterable[tuple[K, float]]) -> dict[K, float]:
    """The median of the values of each key."""
    groups: dict[K, list[float]] = {}
    for key, value in pairs:
        groups.setdefault(key, []).append(value)
    return {key: statistics.median(values) for key, values in groups.items()}


def curve(points: Iterable[tuple[float, float]]) -> Curve:
    """Through points, of which those that are almost at the same place are one."""
    kept: list[tuple[float, float]] = []
    for x, y in sorted((max(1.0, float(x)), max(1.0, float(y))) for x, y in points):
        if not kept or x > 1.1 * kept[-1][0]:
            kept.append((x, y))
    return Curve(tuple(kept))


def fit(rows: Sequence[Sequence[float]], values: Sequence[float]) -> tuple[float, ...]:
    """Coefficients, none of them negative, with the least sum of squares of *relative* errors; ``values`` are more than 0.

    Of few unknowns: all sets of those that are not 0 are tried.
    """
    width = len(rows[0])
    scaled = np.asarray(rows) / np.asarray(values)[:, None]
    best, least = (0.0,) * width, float(len(values))
    for size in range(1, width + 1):
        for chosen in combinations(range(width), size):
            found, _, rank, _ = np.linalg.lstsq(scaled[:, chosen], np.ones(len(values)), rcond=None)
            error = float(np.sum((scaled[:, chosen] @ found - 1) ** 2))
            if rank == size and found.min() >= 0 and error < 0.98 * least:  # more unknowns have to be worth it
                at = dict(zip(chosen, found.tolist(), strict=True))
                best, least = tuple(at.get(i, 0.0) for i in range(width)), error
    return best
