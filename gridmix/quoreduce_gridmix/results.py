"""The results of runs, as JSON and back, and the figures made of them: medians, spreads, ratios.

A ratio is the median of the ratios of pairs: the plain and the voted run of one repetition follow each other, so that
what disturbs the machine for a while disturbs both. Dirty runs (see ``noise``), and pairs with one, are dropped, unless
the clean ones are fewer than half of those asked for: then all are used, and the number of clean ones, which is always
shown, tells. Figures of different settings (executor, workers, machine, data) never mix.

The fields of the JSON are described in docs/guide/gridmix.md, too, for readers of the file. Format 2 added
``extra`` and sizes ``parts:N``; files of format 1 are read too.
"""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, TypedDict, TypeVar

import msgspec

from quoreduce.errors import InputError, UsageError, one_line
from quoreduce.machine import cpu_model
from quoreduce.reading import open_regular
from quoreduce_gridmix.data import parts_in
from quoreduce_gridmix.noise import Noise

T = TypeVar("T")
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=1e9)]
RESULTS_BYTES_MAX = 64 << 20
SECONDS_LEAST = 1e-9
FORMAT = 2
FORMATS_READ = (1, 2)
PLAIN = "plain"
MODIFICATIONS = ("deferred", "tentative", "digest_outputs", "tight_storage")
_PACKAGES = ("quoreduce", "numba", "numpy", "ray", "blake3")


class Amounts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes read, written as output, stored for the shuffle and as output, and shipped between workers."""

    read: Count = msgspec.field(name="in")
    written: Count = msgspec.field(name="out")
    stored: Count
    shipped: Count


class JobStage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One job of an application; ``reexecutions`` are executions that were not planned."""

    job: str
    wall_s: Seconds
    cpu_s: Seconds
    bytes: Amounts
    executions: dict[str, Count]
    counters: dict[str, Count]
    splits: Count
    parts: Count
    reexecutions: Count
    faults_detected: Count


class Run(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One run of an application: the sum of its stages. ``digest`` is of the last stage's part files.

    ``size`` is small, medium, large, or ``parts:N``: the first N part files. ``variant`` names mode, f and ``off``, the
    modifications of ``bft`` that were switched off. ``extra``: of a repetition that makes up for one that was
    disturbed.
    """

    app: str
    size: str
    variant: str
    mode: str
    f: Count
    off: list[str]
    repetition: Count
    wall_s: Seconds
    cpu_s: Seconds
    bytes: Amounts
    executions: dict[str, Count]
    counters: dict[str, Count]
    digest: str
    splits: Count
    noise: Noise
    stages: list[JobStage]
    extra: bool = False


class Machine(TypedDict):
    """Where it ran."""

    cpu: str
    cores: Count
    cores_used: Count
    memory_gb: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    kernel: str
    architecture: str


class DataUsed(TypedDict):
    """A set of data: bytes of its keys and values, its part files, its seed."""

    nbytes: Count
    parts: Count
    seed: int


class StudySetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The setting, which must be the same for figures to be compared."""

    on: str
    workers: Count
    domains: Count
    machine: Machine
    data: dict[str, DataUsed]
    split_mb: Annotated[float, msgspec.Meta(gt=0, le=1e9)]
    digest: str


class StudyResults(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All runs of one command."""

    format: int
    date: str
    versions: dict[str, str]
    setting: StudySetting
    runs: list[Run]

    def encode(self) -> bytes:
        """Return JSON."""
        return msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n"


def read_results(path: str | os.PathLike[str]) -> StudyResults:
    """Read what :meth:`StudyResults.encode` wrote; raise InputError if the file is missing or says something else."""
    try:
        with open(open_regular(path), "rb") as file:
            raw = file.read(RESULTS_BYTES_MAX + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    if len(raw) > RESULTS_BYTES_MAX:
        raise InputError(f"{path} has over {RESULTS_BYTES_MAX} bytes: it is no result of quoreduce gridmix run")
    try:
        results = msgspec.json.decode(raw, type=StudyResults)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path} is no result of quoreduce gridmix run: {one_line(error)}") from error
    if results.format not in FORMATS_READ:
        raise InputError(
            f"{path} has format {results.format}, this version reads {FORMATS_READ[0]} to {FORMAT}: run it again"
        )
    if not results.runs or not all(run.stages for run in results.runs):
        raise InputError(f"{path} has no runs, or one without stages")
    try:
        for run in results.runs:
            parts_in(run.size)
    except UsageError as error:
        raise InputError(f"{path}: {error}") from error
    if any(run.wall_s < SECONDS_LEAST or 0 < run.cpu_s < SECONDS_LEAST for run in results.runs):
        raise InputError(f"{path} has a run that took no time: it was not measured")
    return results


def now() -> str:
    """Date and time, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> Machine:
    """Describe the machine."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": cpu_model() or platform.processor() or "unknown", "cores": os.cpu_count() or 1,
        "cores_used": len(os.sched_getaffinity(0)), "memory_gb": round(memory / 1e9, 1),
        "kernel": platform.release(), "architecture": platform.machine(),
    }  # fmt: skip


def versions() -> dict[str, str]:
    """Versions of Python and of what does the work."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


@dataclass(frozen=True, slots=True)
class MedianFigure:
    """A median with its quartiles and its least."""

    median: float
    low: float
    high: float
    least: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> MedianFigure:
        """Make it of at least one value."""
        if len(values) == 1:
            return cls(values[0], values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, min(values), len(values))

    def __str__(self) -> str:
        """The median ± half the distance of the quartiles, in the median's digits."""
        digits = max(0, 2 - math.floor(math.log10(self.median))) if self.median > 0 else 2
        return f"{self.median:.{digits}f}" + (f" ± {(self.high - self.low) / 2:.{digits}f}" if self.count > 1 else "")


@dataclass(frozen=True, slots=True)
class Cell:
    """All runs of one application, size and variant."""

    app: str
    size: str
    variant: str
    runs: tuple[Run, ...]

    @property
    def kept(self) -> list[Run]:
        """The runs that figures are made of."""
        return undisturbed(self.runs, lambda run: not run.noise.dirty, sum(not run.extra for run in self.runs))

    @property
    def clean(self) -> int:
        """How many runs were not disturbed."""
        return sum(not run.noise.dirty for run in self.runs)

    @property
    def wall(self) -> MedianFigure:
        """Seconds."""
        return MedianFigure.of([run.wall_s for run in self.kept])

    @property
    def cpu(self) -> MedianFigure:
        """Seconds of all processes."""
        return MedianFigure.of([run.cpu_s for run in self.kept])

    @property
    def splits(self) -> int:
        """Of all stages."""
        return self.runs[0].splits

    @property
    def first_splits(self) -> int:
        """Of the first stage: of the set's part files."""
        return self.runs[0].stages[0].splits

    def amount(self, figure: Callable[[Run], float]) -> float:
        """Median of another figure."""
        return statistics.median(map(figure, self.kept))


@dataclass(frozen=True, slots=True)
class Comparison:
    """A variant against another one, for one application and size."""

    base: Cell
    other: Cell
    wall: MedianFigure
    cpu: MedianFigure
    pairs: int
    clean: int

    @property
    def least(self) -> float:
        """Ratio of the shortest runs: what is left of the ratio without noise."""
        return self.other.wall.least / self.base.wall.least


def cells(runs: Iterable[Run]) -> dict[tuple[str, str, str], Cell]:
    """Group runs by (app, size, variant), in order of appearance."""
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.app, run.size, run.variant), []).append(run)
    return {key: Cell(*key, tuple(group)) for key, group in groups.items()}


def compare(table: dict[tuple[str, str, str], Cell], base: str, variant: str) -> list[Comparison]:
    """Compare ``variant`` with ``base`` wherever both have been run."""
    found = []
    for (app, size, name), cell in table.items():
        other = table.get((app, size, variant))
        if name == base and other is not None:
            all_pairs = list(zip(cell.runs, other.runs, strict=False))
            wanted = sum(not (a.extra or b.extra) for a, b in all_pairs)
            pairs = undisturbed(all_pairs, lambda pair: not (pair[0].noise.dirty or pair[1].noise.dirty), wanted)
            clean = sum(not (a.noise.dirty or b.noise.dirty) for a, b in all_pairs)
            wall = MedianFigure.of([b.wall_s / a.wall_s for a, b in pairs])
            cpu = MedianFigure.of([b.cpu_s / a.cpu_s if a.cpu_s and b.cpu_s else 1.0 for a, b in pairs])
            found.append(Comparison(cell, other, wall, cpu, len(all_pairs), clean))
    return found


def undisturbed(items: Sequence[T], clean: Callable[[T], bool], wanted: int) -> list[T]:
    """Return those that are clean if they are half of ``wanted`` or more, else all."""
    kept = [item for item in items if clean(item)]
    return kept if kept and 2 * len(kept) >= wanted else list(items)


def variants(runs: Iterable[Run]) -> list[str]:
    """Names of variants, in order of appearance."""
    return list(dict.fromkeys(run.variant for run in runs))


def geometric_mean(values: Iterable[float]) -> float:
    """Geometric mean of positive numbers."""
    return statistics.geometric_mean(values)


def by_setting(all_results: Sequence[StudyResults]) -> list[tuple[StudySetting, list[StudyResults]]]:
    """Group results whose settings are the same."""
    groups: dict[bytes, tuple[StudySetting, list[StudyResults]]] = {}
    for results in all_results:
        key = msgspec.json.encode(results.setting, order="deterministic")
        groups.setdefault(key, (results.setting, []))[1].append(results)
    return list(groups.values())


def as_json(results: StudyResults) -> Any:
    """Plain objects, for tests and for other programs."""
    return msgspec.to_builtins(results)
