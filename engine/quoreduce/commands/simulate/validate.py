"""``quoreduce simulate validate``: simulated and measured times of the same jobs, on this machine.

Rates are calibrated here, on other data, other numbers of splits and reducers than those of the jobs measured beside
them. Nothing of what is measured flows back. All of them run in rounds, shuffled; runs that others disturbed are
repeated.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from quoreduce.commands.simulate.calibrate import PLAIN, VOTED, WARM, Calibrating, shuffled
from quoreduce.commands.simulate.rig import MeasuredRun, Rig, Say, Subject, rig
from quoreduce.protocol.options import Options
from quoreduce.sim import Calibration, Load, Shape, simulate
from quoreduce.sim.model import estimate

BAR = 0.15
MB_SHARE = 0.8  # of the data of validation to those of calibration
SEED = 7
REPEATS, TRIES_MAX = 9, 21
SEEDS = 9  # of simulations, of which the median counts
ALONE = replace(VOTED, f=0)
JOBS: tuple[tuple[str, Options, int, int], ...] = (  # splits and reducers that calibrations do not have
    ("wordcount", PLAIN, 10, 4), ("wordcount", VOTED, 6, 3), ("sort", PLAIN, 12, 5), ("sort", ALONE, 5, 4),
    ("sort", VOTED, 20, 3), ("scan", VOTED, 24, 2), ("python", VOTED, 6, 3), ("streamSort", PLAIN, 12, 4),
    ("javaSort", VOTED, 10, 4), ("combiner", PLAIN, 14, 2), ("webdataScan", VOTED, 6, 4), ("webdataSort", VOTED, 10, 3),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Compared:
    """One job: what it is; seconds simulated, estimated in closed form, and measured (the median); CPU seconds of the
    same.

    ``clean`` of ``runs`` were not disturbed; figures are of those, if they are at least two, and else of all.
    """

    job: str
    mode: str
    f: int
    maps: int
    reduces: int
    mb: float
    simulated_s: float
    estimated_s: float
    measured_s: float
    spread: float
    simulated_cpu_s: float
    measured_cpu_s: float
    clean: int
    runs: int

    @property
    def ratio(self) -> float:
        """Simulated by measured."""
        return self.simulated_s / self.measured_s

    @property
    def holds(self) -> bool:
        """Whether they agree within the bar."""
        return abs(self.ratio - 1) <= BAR

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return {**asdict(self), "ratio": self.ratio, "holds": self.holds}


@dataclass(frozen=True, slots=True)
class Validation:
    """All of it."""

    calibration: Calibration
    jobs: tuple[Compared, ...]

    @property
    def holds(self) -> bool:
        """Whether all jobs do."""
        return all(one.holds for one in self.jobs)

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        jobs = [one.as_dict() for one in self.jobs]
        return {"calibration": self.calibration.source, "bar": BAR, "holds": self.holds, "jobs": jobs}


def validate(mb: int, say: Say) -> Validation:
    """Calibrate with ``mb`` MB of data, and compare: some minutes. Both go on in turn, for a machine has slower
    minutes.
    """
    with rig(say) as r:
        calibrating = Calibrating(r, mb)
        subjects = {one.name: one for one in r.subjects("other", mb * MB_SHARE, SEED, [name for name, *_ in JOBS])}
        todo = [
            (subjects[name], replace(options, reducers=reducers, split_mb=subjects[name].split_mb(splits)), splits)
            for name, options, splits, reducers in JOBS
        ]
        runs = in_turn([_runner(r, subject, options) for subject, options, _ in todo], say, calibrating.steps)
        calibration = calibrating.result()
        return Validation(calibration, tuple(
            compared(subject, options, len(subject.splits(splits)), calibration, r.workers, found)
            for (subject, options, splits), found in zip(todo, runs, strict=True)
        ))  # fmt: skip


def _runner(r: Rig, subject: Subject, options: Options) -> Callable[[], MeasuredRun]:
    return lambda: r.run(subject.job, subject.source, options)


def in_turn(
    jobs: Sequence[Callable[[], MeasuredRun]], say: Say, others: Callable[[], list[Callable[[], None]]]
) -> list[list[MeasuredRun]]:
    """Run each several times, in rounds, until each has enough runs that nobody disturbed; bounded. The first are for
    nothing.

    Between them, in any order, the steps of a round of ``others``, while all jobs run.
    """
    runs: list[list[MeasuredRun]] = [[] for _ in jobs]

    def one(n: int, i: int) -> None:
        run = jobs[i]()
        runs[i].extend([run] * (n >= WARM))

    for n in range(WARM + TRIES_MAX):
        owing = [i for i, found in enumerate(runs) if sum(not run.disturbed for run in found) < REPEATS]
        if not owing:
            break
        say(f"validate: round {n + 1}, {len(owing)} jobs")
        steps: list[Callable[[], None]] = [partial(one, n, i) for i in owing]
        for step in shuffled(steps + others() if n < WARM + REPEATS else steps, n):
            step()
    return runs


def compared(
    subject: Subject, options: Options, maps: int, calibration: Calibration, cores: int, runs: Sequence[MeasuredRun]
) -> Compared:
    """Set a job's runs beside simulations of it."""
    load = Load(
        subject.name,
        replace(calibration.job(subject.name), stages=1),
        maps,
        options.reducers or 1,
        subject.nbytes / maps,
    )
    shape = Shape.machine(cores, calibration)
    outs = [simulate(shape, load, calibration, options.f, options.mode, seed=seed) for seed in range(SEEDS)]
    clean = [run for run in runs if not run.disturbed]
    kept = clean if len(clean) > 1 else runs
    walls = [run.result.wall_s for run in kept]
    low, middle, high = statistics.quantiles(walls, n=4, method="inclusive") if len(walls) > 1 else walls * 3
    return Compared(
        subject.name, options.mode, options.f, maps, load.reduces, round(subject.nbytes / 1e6, 1),
        statistics.median(out.makespan_s for out in outs),
        estimate(shape, load, calibration, options.f, options.mode).time_s, middle, (high - low) / middle,
        statistics.median(out.cpu_s for out in outs),
        statistics.median(run.result.cpu_s - run.driver_s for run in kept), len(clean), len(runs),
    )  # fmt: skip


def table(found: Validation) -> str:
    """All figures as text."""
    lines = [
        f"Rates: {found.calibration.source}. Times in ms; measured: medians (and distance of quartiles).", "",
        "job          mode      f  maps  reduces     MB  simulated  measured          ratio  estimated  "
        "CPU ratio  undisturbed",
    ]  # fmt: skip
    for one in found.jobs:
        measured = f"{1e3 * one.measured_s:.1f} ({one.spread:.0%})"
        cpu = one.simulated_cpu_s / one.measured_cpu_s
        lines.append(
            f"{one.job:11}  {one.mode:8}  {one.f}  {one.maps:4}  {one.reduces:7}  {one.mb:5.1f}  "
            f"{1e3 * one.simulated_s:9.1f}  {measured:14}  {one.ratio:7.2f}{' ' if one.holds else '*'} "
            f"{1e3 * one.estimated_s:9.1f}  {cpu:9.2f}  {one.clean} of {one.runs}"
        )
    within = sum(one.holds for one in found.jobs)
    lines += ["", f"{within} of {len(found.jobs)} jobs: simulated and measured time agree within {BAR:.0%}"]
    return "\n".join(lines)
