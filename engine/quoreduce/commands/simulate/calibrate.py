"""``quoreduce simulate calibrate``: what executions cost on this machine, from jobs on a warm local session.

Jobs of all kinds run plain and voted, of several numbers of splits and reducers, in turn, and again in further rounds;
each execution's own CPU seconds and bytes are known from its request and reply. Costs are a fit through means of
executions that are alike; what is small is measured with jobs of next to nothing.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations
from random import Random
from typing import TypeAlias, TypeVar

import numpy as np

from quoreduce.commands.simulate.rig import MeasuredRun, Rig, Say, Subject, TimedExecution, rig
from quoreduce.data.digest import Digester
from quoreduce.jobs.wordcount import JOB as WORDCOUNT
from quoreduce.protocol.options import Options
from quoreduce.sim import Calibration, Curve, JobCost, Load, Rate, Shape, Work, simulate

WARM = 3  # rounds for nothing: the host of a virtual machine gives memory when it is first touched, and takes its time
ROUNDS = 3
FITS = 4
ALIKE_LEAST = 8
SMALL_SHARE = 4
SHAPES = ((2, 2), (8, 2), (8, 6), (16, 3))  # splits and reducers of a job on all data
SHAPES_SMALL = ((4, 2), (1, 3))  # and on a quarter of it
TINY = ((64, 1), (192, 1), (64, 16), (16, 48))
TINY_TIMES = 2  # in a round
ONE_TIMES = 4
PLAIN = Options(mode="original", f=0)
VOTED = Options(mode="bft", f=1)
K = TypeVar("K", bound=Hashable)
T = TypeVar("T")
FloatArray: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"


def calibrate(mb: int, say: Say) -> Calibration:
    """Measure this machine with about ``mb`` MB of data for each kind of job; they are deleted again."""
    with rig(say) as r:
        calibrating = Calibrating(r, mb)
        for n in range(WARM + ROUNDS):
            say(f"calibrate: round {n + 1} of {WARM + ROUNDS}")
            for step in shuffled(calibrating.steps(), n):
                step()
        return calibrating.result()


def shuffled(steps: Sequence[T], seed: int) -> list[T]:
    """In an order that has no reason, so that what ran before a job (caches, memory at hand) is as good for one as for
    others.
    """
    return Random(seed).sample(steps, len(steps))


class Calibrating:
    """Measures a machine in rounds, of which the first do not count. All kinds of jobs are in each round, so that a
    minute in which the machine is faster is one for all of them.
    """

    def __init__(self, r: Rig, mb: float) -> None:
        r.say("calibrate: making data")
        self._where = f"measured on {platform.machine()}, {r.workers} cores, with {mb:g} MB"
        self._workers = r.workers
        self._rounds = 0
        self._fixed = _Fixed(r)
        small = r.subjects("small", mb / SMALL_SHARE, seed=2)
        self._kinds = [_Kind(r, *pair) for pair in zip(r.subjects("big", mb, seed=1), small, strict=True)]

    def steps(self) -> list[Callable[[], None]]:
        """The runs of the next round, in any order."""
        n, self._rounds = self._rounds, self._rounds + 1
        numbers = range(len(SHAPES + SHAPES_SMALL) * 2)
        return [*self._fixed.steps(n), *(partial(kind.run, number, n) for kind in self._kinds for number in numbers)]

    def result(self) -> Calibration:
        """The results of the rounds; there are more than ``WARM``."""
        found = self._fixed.result(
            Calibration(self._where, {}, _digest_s(), 0.0, 0.0, latency_s=0.0, spread=0.0), self._workers
        )
        spreads = [spread for kind in self._kinds for spread in kind.spreads()]
        jobs = {kind.name: kind.cost(found) for kind in self._kinds}
        return replace(found, jobs=jobs, spread=min(0.9, statistics.median(spreads)))


def _digest_s() -> float:
    """Seconds that a digest takes for a byte, of 16 MB."""
    data, digester, times = np.arange(2_000_000, dtype=np.uint64).view(np.uint8), Digester("blake3"), []
    for _ in range(1 + ROUNDS):
        start = time.thread_time()
        digester.of(data)
        times.append(time.thread_time() - start)
    return min(times[1:]) / data.nbytes


class _Fixed:
    """Costs of partitions, checks, messages, the driver, and the start of a job: from jobs of next to nothing."""

    def __init__(self, r: Rig) -> None:
        self._run = r.run
        self._tiny, self._one = r.folder / "tiny", r.folder / "one"
        self._tiny.write_bytes(b"a b\n" * 8 * max(splits for splits, _ in TINY))
        self._one.write_bytes(b"a b\n")
        size = self._tiny.stat().st_size / 1e6
        todo = [replace(o, reducers=n, split_mb=size / splits) for splits, n in TINY for o in (PLAIN, VOTED)]
        self._todo = todo * TINY_TIMES
        self._runs: list[MeasuredRun] = []
        self._walls: list[float] = []

    def steps(self, n: int) -> list[Callable[[], None]]:
        return [
            *(partial(self._tiny_run, n, options) for options in self._todo),
            *[partial(self._one_run, n)] * ONE_TIMES,
        ]

    def _tiny_run(self, n: int, options: Options) -> None:
        run = self._run(WORDCOUNT, self._tiny, options)
        self._runs += [run] * (n >= WARM)

    def _one_run(self, n: int) -> None:
        run = self._run(WORDCOUNT, self._one, replace(PLAIN, reducers=1))
        self._walls += [run.result.wall_s] * (n >= WARM)

    def result(self, found: Calibration, workers: int) -> Calibration:
        """Add what is fixed to what was found."""
        seen = [one for run in self._runs for one in run.seen]
        by_parts = (_medians((one.parts, one.cpu_s) for one in seen if one.kind == kind) for kind in ("map", "reduce"))
        (map_s, map_part_s), (reduce_s, reduce_part_s) = (
            fit([(1.0, float(n)) for n in medians], list(medians.values())) for medians in by_parts
        )
        tasks = [(float(len(run.seen)), float(sum(one.parts for one in run.seen)), run.driver_s) for run in self._runs]
        alike = _medians(((asked, parts), driver_s) for asked, parts, driver_s in tasks)
        _, driver_s, driver_part_s = fit([(1.0, *key) for key in alike], list(alike.values()))
        found = replace(
            found, map_part_s=map_part_s, reduce_part_s=reduce_part_s, driver_s=driver_s, driver_part_s=driver_part_s,
            check_s=statistics.median(one.cpu_s for one in seen if one.kind == "check"),
            latency_s=statistics.median(max(0.0, one.took_s - one.cpu_s) for one in seen if one.kind == "map") / 2,
        )  # fmt: skip
        return replace(found, startup_s=self._startup_s(found, workers, Rate(map_s, 0.0), Rate(reduce_s, 0.0)))

    def _startup_s(self, found: Calibration, workers: int, map_: Rate, reduce_: Rate) -> float:
        """Seconds that a job of one empty map and reduce takes beyond the simulated ones without a start."""
        cost = JobCost(
            Work(map_, map_, map_), Work(reduce_, reduce_, reduce_), Curve(((1.0, 1.0),)), Curve(((1.0, 1.0),))
        )
        known = simulate(Shape.machine(workers, found), Load("one", cost, 1, 1, 1.0), found, f=0, mode="original")
        return max(0.0, statistics.median(self._walls) - known.makespan_s)


class _Kind:
    """The costs of one kind of job."""

    def __init__(self, r: Rig, big: Subject, small: Subject) -> None:
        self.name, self._stages, self._run = big.name, big.stages, r.run
        self._todo = [
            (subject, replace(options, reducers=reducers, split_mb=subject.split_mb(splits)))
            for subject, shapes in ((big, SHAPES), (small, SHAPES_SMALL)) for splits, reducers in shapes
            for options in (PLAIN, VOTED)
        ]  # fmt: skip
        self._seen: list[_Noted] = []
        self._outs: dict[float, float] = {}

    def run(self, number: int, round_: int) -> None:
        """Run the job of a number; in the first rounds for nothing."""
        subject, options = self._todo[number]
        run = self._run(subject.job, subject.source, options)
        self._outs[subject.nbytes] = float(max(1, run.result.bytes_out))
        if round_ >= WARM:
            self._seen += [_Noted(number, one) for one in run.seen]

    def spreads(self) -> list[float]:
        """By how much executions that are alike differ."""
        return _spreads(self._seen)

    def cost(self, found: Calibration) -> JobCost:
        """Fit the costs."""
        works: list[Work] = []
        for kind, part_s in (("map", found.map_part_s), ("reduce", found.reduce_part_s)):
            rates = [
                _rate(
                    [x for x in self._seen if (x.one.kind, x.one.store, x.job % 2 == 1) == (kind, store, voted)], part_s
                )
                for voted, store in ((False, True), (True, True), (True, False))
            ]
            works.append(Work(*rates))
        maps = [[x.one for x in self._seen if x.one.kind == "map" and x.job == job] for job in range(len(self._todo))]
        mapped = [(_mean(alike, "read"), _mean(alike, "made")) for alike in maps]
        samples = [x.one.cpu_s for x in self._seen if x.one.kind == "sample"]
        out = curve(self._outs.items())
        map_, reduce_ = works
        return JobCost(map_, reduce_, curve(mapped), out, self._stages, statistics.median(samples or [0.0]))


@dataclass(frozen=True, slots=True)
class _Noted:
    """An execution in the job of that number."""

    job: int
    one: TimedExecution


def _rate(seen: Sequence[_Noted], part_s: float) -> Rate:
    """Fixed cost, and seconds for bytes read and made: a fit through each job's mean execution."""
    sizes, cpu = [], []
    for job in sorted({x.job for x in seen}):
        alike = [x.one for x in seen if x.job == job]
        sizes.append((1.0, _mean(alike, "read"), _mean(alike, "made")))
        cpu.append(max(1e-6, _mean(alike, "cpu_s") - part_s * _mean(alike, "parts")))
    return Rate(*fit(sizes, cpu))


def _mean(alike: Sequence[TimedExecution], name: str) -> float:
    return statistics.fmean(getattr(one, name) for one in alike)


def _spreads(seen: Sequence[_Noted]) -> list[float]:
    """Half widths of even distributions with the variance of executions that are alike, by their mean."""
    found = []
    for key in {(x.job, x.one.kind, x.one.store) for x in seen}:
        alike = [x.one for x in seen if (x.job, x.one.kind, x.one.store) == key]
        if len(alike) >= ALIKE_LEAST and max(one.made for one in alike) < 1.05 * min(one.made for one in alike):
            found.append(3**0.5 * statistics.pstdev(one.cpu_s for one in alike) / _mean(alike, "cpu_s"))
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
    """Coefficients, none of them negative, with the least sum of squares of *relative* errors; ``values`` are more than
    0.

    Errors are relative to what was fitted before, at first to the values. (Relative to the values throughout, what was
    measured too low by chance would count for more than what was too high, and every cost come out too low.)
    """
    sizes = np.asarray(values, float)
    found = _least_squares(rows, values, sizes)
    for _ in range(FITS):
        fitted = np.asarray(rows) @ found
        sizes = np.maximum(fitted, np.asarray(values) / 1000)
        found = _least_squares(rows, values, sizes)
    return tuple(found)


def _least_squares(rows: Sequence[Sequence[float]], values: Sequence[float], sizes: FloatArray) -> list[float]:
    """Errors are divided by ``sizes``. Of few unknowns: all sets of those that are not 0 are tried."""
    width = len(rows[0])
    scaled, target = np.asarray(rows) / sizes[:, None], np.asarray(values) / sizes
    best, least = [0.0] * width, float(np.sum(target**2))
    for size in range(1, width + 1):
        for chosen in combinations(range(width), size):
            found, _, rank, _ = np.linalg.lstsq(scaled[:, chosen], target, rcond=None)
            error = float(np.sum((scaled[:, chosen] @ found - target) ** 2))
            if rank == size and found.min() >= 0 and error < 0.98 * least:  # more unknowns have to be worth it
                at = dict(zip(chosen, found.tolist(), strict=True))
                best, least = [at.get(i, 0.0) for i in range(width)], error
    return best
