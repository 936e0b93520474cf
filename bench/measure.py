"""How the benchmarks measure: interleaved pairs, what others did to the machine meanwhile, memory, and the figures made
of it.

The rule for noise. A run is *dirty* if, on the cores it may use, other processes were busy for more than 5 % of the
time, or the hypervisor took more than 5 % (steal), each with 30 ms of tolerance, for the kernel counts in ticks of 10
ms. "Others" is what /proc/stat counts less what the run itself used; the pressure of /proc/pressure/cpu is recorded
beside it but decides nothing, because a driver and workers on the same cores make pressure of their own. A pair with a
dirty run is dropped and tried again, at most as often as pairs are wanted. If fewer than half of the pairs wanted are
clean in the end, all are used, and the number of clean ones, which is always reported, tells.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from quoreduce.machine import core_times, cpu_model, is_dirty, waited_s

QUIET_SHARE = 0.15
QUIET_WAIT_S = 2.0
QUIET_LOOK_S = 0.1
SAMPLE_S = 0.02
KERNEL_SAMPLE_S = 0.05
KERNEL_SAMPLES = 7
Cell = dict[str, float]
Cells = dict[str, Cell]


@dataclass(frozen=True, slots=True)
class Noise:
    """What happened on our cores during a run, in core-seconds; pressure in seconds in which some task waited."""

    wall_s: float
    cores: int
    others_s: float
    steal_s: float
    pressure_s: float

    @property
    def dirty(self) -> bool:
        """Whether the run is to be dropped, see the module."""
        return is_dirty(self.wall_s * self.cores, self.others_s, self.steal_s)


@dataclass(slots=True)
class Run:
    """One execution; ``job_s``: what the engine itself says it took, without starting a process; ``detail``: whatever
    more.
    """

    wall_s: float
    cpu_s: float
    noise: Noise
    job_s: float = 0.0
    detail: Any = None


@dataclass(frozen=True, slots=True)
class Counts:
    """Counts of a run: executions of tasks; bytes stored (map outputs, and the output); bytes shipped among workers."""

    executions: int
    bytes_stored: int
    bytes_shipped: int


class Window:
    """A stretch of time that is watched, from its making to :meth:`close`."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._busy, self._steal = core_times(self._cores)
        self._pressure = waited_s()
        self._start = time.perf_counter()

    def close(self, own_cpu_s: float) -> Noise:
        """End it; ``own_cpu_s`` is what the run itself used."""
        wall = time.perf_counter() - self._start
        busy, steal = core_times(self._cores)
        others = max(0.0, busy - self._busy - own_cpu_s)
        return Noise(wall, len(self._cores), others, steal - self._steal, waited_s() - self._pressure)


def two_cores() -> list[int]:
    """Keep this process, and those it starts, to two cores: what "saturated" means here does not depend on the
    machine.
    """
    chosen = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, chosen)
    return chosen


def wait_for_quiet(limit_s: float = QUIET_WAIT_S) -> None:
    """Wait until others leave our cores alone, but not for long."""
    cores = sorted(os.sched_getaffinity(0))
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before, _ = core_times(cores)
        time.sleep(QUIET_LOOK_S)
        if core_times(cores)[0] - before <= QUIET_SHARE * QUIET_LOOK_S * len(cores) + 0.01:
            return


@dataclass(slots=True)
class Pairs:
    """Runs of two kinds, in turn; ``kept`` are those that figures are made of."""

    kept: list[tuple[Run, Run]] = field(default_factory=list)
    clean: int = 0
    tried: int = 0

    @classmethod
    def of(cls, pairs: Iterable[tuple[Run, Run]], wanted: int) -> Pairs:
        """Keep the clean ones; if they are fewer than half of those wanted, all."""
        tried = list(pairs)
        clean = [(a, b) for a, b in tried if not (a.noise.dirty or b.noise.dirty)]
        return cls(clean if 2 * len(clean) >= wanted else tried, len(clean), len(tried))

    def ratios(self, figure: Callable[[Run], float]) -> list[float]:
        """Second over first, pair by pair."""
        return [divide(figure(b), figure(a)) for a, b in self.kept]


def interleave(first: Callable[[], Run], second: Callable[[], Run], wanted: int) -> Pairs:
    """Run ``first`` and ``second`` in turn (which goes first changes each time) until enough pairs are clean;
    bounded.
    """
    pairs: list[tuple[Run, Run]] = []
    clean = 0
    while clean < wanted and len(pairs) < 2 * wanted:
        wait_for_quiet()
        if len(pairs) % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        pairs.append((a, b))
        clean += not (a.noise.dirty or b.noise.dirty)
    return Pairs.of(pairs, wanted)


def divide(a: float, b: float) -> float:
    """a / b; NaN if there is nothing to divide by."""
    return a / b if b else float("nan")


def spread(values: Sequence[float]) -> float:
    """Distance from the lower to the upper quartile."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


def ms_per_gb(function: Callable[[], object], nbytes: float, prepare: Callable[[], object] | None = None) -> float:
    """Milliseconds for 10**9 bytes (1000 / it = GB/s), of a function that takes ``nbytes``; less is better, as asv has
    it.
    """
    return rounded(1e12 * seconds(function, prepare) / nbytes)


def ns_per_key(function: Callable[[], object], keys: float, prepare: Callable[[], object] | None = None) -> float:
    """Nanoseconds for each of ``keys`` (1000 / it = Mkeys/s)."""
    return rounded(1e9 * seconds(function, prepare) / keys)


def seconds(function: Callable[[], object], prepare: Callable[[], object] | None = None) -> float:
    """CPU seconds of one call in this thread: the median of several samples.

    Short functions are called several times a sample, unless each call needs ``prepare`` (which is not timed).
    """
    calls = 1
    if prepare is None:
        function()
        first = _timed(function, 1)
        calls = max(1, int(KERNEL_SAMPLE_S / max(first, 1e-9)))
    samples = []
    for _ in range(KERNEL_SAMPLES + (prepare is not None)):
        if prepare is not None:
            prepare()
        samples.append(_timed(function, calls) / calls)
    return statistics.median(samples[prepare is not None :])  # with prepare, the first one warms up


def rounded(value: float) -> float:
    """Four digits: more than the noise leaves."""
    return float(f"{value:.4g}")


def _timed(function: Callable[[], object], calls: int) -> float:
    """Seconds of CPU of this thread: what others run on its core meanwhile does not count."""
    start = time.thread_time()
    for _ in range(calls):
        function()
    return time.thread_time() - start


def peak_rss(pids: Sequence[int]) -> int:
    """Peak of resident memory of the largest of these processes, in bytes; mapped files count."""
    return max((_status(pid, "VmHWM:") for pid in pids), default=0)


def _status(pid: int, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


class MemoryPeak:
    """Peak, in bytes, of the memory of processes together: anonymous and shared, shared pages once."""

    def __init__(self) -> None:
        self.nbytes = 0

    def look(self, pids: Iterable[int]) -> None:
        """Take one sample."""
        self.nbytes = max(self.nbytes, sum(_memory(pid) for pid in pids))


@contextmanager
def watch_memory(pids: Callable[[], Iterable[int]]) -> Iterator[MemoryPeak]:
    """Sample the memory of processes meanwhile. It disturbs what is measured: not for runs that are timed."""
    peak, stop = MemoryPeak(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak.look(pids())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def processes_below(pid: int) -> set[int]:
    """Processes that ``pid`` started, and that those started."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        with suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                children = {int(child) for child in (task / "children").read_text().split()} - found
                found |= children
                todo += children
    return found


def _memory(pid: int) -> int:
    kilobytes = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


@contextmanager
def outputs(data_folder: Path) -> Iterator[Path]:
    """A folder for outputs, beside the data or where QUOREDUCE_BENCH_OUT says; deleted in the end."""
    folder = Path(tempfile.mkdtemp(prefix="out-", dir=os.environ.get("QUOREDUCE_BENCH_OUT") or data_folder))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def costs(pairs: Pairs, memory: Sequence[tuple[int, int]]) -> Cell:
    """Figures of plain and voted runs, whose ``detail`` are :class:`Counts`; ``memory``: of both, the largest worker
    and all.
    """
    plain, voted = ([pair[i] for pair in pairs.kept] for i in (0, 1))
    a, b = plain[0].detail, voted[0].detail
    ratios = pairs.ratios(lambda run: run.wall_s)
    return {
        "time_ratio": statistics.median(ratios),
        "time_ratio_spread": spread(ratios),
        "time_ratio_min": divide(min(r.wall_s for r in voted), min(r.wall_s for r in plain)),
        "cpu_ratio": statistics.median(pairs.ratios(lambda run: run.cpu_s)),
        "cpu_ratio_spread": spread(pairs.ratios(lambda run: run.cpu_s)),
        "bytes_stored_ratio": divide(b.bytes_stored, a.bytes_stored),
        "bytes_shipped_ratio": divide(b.bytes_shipped, a.bytes_shipped),
        "bytes_stored_plain": a.bytes_stored,
        "bytes_stored_voted": b.bytes_stored,
        "bytes_shipped_plain": statistics.median(r.detail.bytes_shipped for r in plain),
        "bytes_shipped_voted": statistics.median(r.detail.bytes_shipped for r in voted),
        "executions_plain": a.executions,
        "executions_voted": b.executions,
        "plain_s": statistics.median(r.wall_s for r in plain),
        "voted_s": statistics.median(r.wall_s for r in voted),
        "plain_cpu_s": statistics.median(r.cpu_s for r in plain),
        "voted_cpu_s": statistics.median(r.cpu_s for r in voted),
        "peak_rss_plain": memory[0][0],
        "peak_rss_voted": memory[1][0],
        "peak_memory_plain": memory[0][1],
        "peak_memory_voted": memory[1][1],
        "pairs_clean": pairs.clean,
        "pairs_tried": pairs.tried,
        "pairs_disturbed": pairs.tried - pairs.clean,
        "pressure": statistics.median(r.noise.pressure_s / r.noise.wall_s for r in plain + voted),
        "steal": max(r.noise.steal_s / r.noise.wall_s / r.noise.cores for r in plain + voted),
    }


COSTS = (
    ("time_ratio", "voted/plain", "Median of the ratios of pairs."),
    ("time_ratio_spread", "voted/plain", "Lower to upper quartile of the ratios of pairs."),
    ("time_ratio_min", "voted/plain", "Fastest voted run over the fastest plain run."),
    ("cpu_ratio", "voted/plain", "CPU time of driver and workers: median of the ratios of pairs."),
    ("cpu_ratio_spread", "voted/plain", "Lower to upper quartile of the ratios of pairs."),
    ("bytes_stored_ratio", "voted/plain", "Map outputs, and the output, as workers wrote them."),
    ("bytes_shipped_ratio", "voted/plain", "Map outputs read by another worker than the one that made them."),
    ("bytes_stored_plain", "bytes", "Map outputs, and the output, as workers wrote them."),
    ("bytes_stored_voted", "bytes", "Map outputs, and the output, as workers wrote them."),
    ("bytes_shipped_plain", "bytes", "Map outputs read by another worker than the one that made them, median."),
    ("bytes_shipped_voted", "bytes", "Map outputs read by another worker than the one that made them, median."),
    ("executions_plain", "tasks", "M + R, and one sample for the sort."),
    ("executions_voted", "tasks", "(f+1)(M + R), and f+1 samples for the sort."),
    ("plain_s", "seconds", "Median."),
    ("voted_s", "seconds", "Median."),
    ("plain_cpu_s", "seconds", "Median."),
    ("voted_cpu_s", "seconds", "Median."),
    ("peak_rss_plain", "bytes", "Resident memory of the largest worker, mapped files included."),
    ("peak_rss_voted", "bytes", "Resident memory of the largest worker, mapped files included."),
    ("peak_memory_plain", "bytes", "Anonymous and shared memory of all workers together, sampled."),
    ("peak_memory_voted", "bytes", "Anonymous and shared memory of all workers together, sampled."),
    (
        "pairs_disturbed",
        "pairs",
        "Pairs that others disturbed; with fewer clean than half of those wanted, figures are of all.",
    ),
    ("pairs_tried", "pairs", "Pairs run."),
    ("pressure", "of wall time", "Some task waited for a core (median over runs); much of it is our own."),
    ("steal", "of core time", "Taken by the hypervisor (the worst run)."),
)
"""What :func:`costs` returns: figure, unit, what it is."""


def add_tracks(suite: type, cell: Callable[..., Cell], figures: Iterable[tuple[str, str, str]]) -> None:
    """Give a suite a ``track_*`` for each of (figure, unit, what it is); ``cell`` finds the figures by what asv
    passes.
    """
    for figure, unit, what in figures:
        setattr(suite, f"track_{figure}", _track(cell, figure, unit, what))


def _track(cell: Callable[..., Cell], figure: str, unit: str, what: str) -> Callable[..., float]:
    def track(self: Any, *parameters: Any) -> float:
        return rounded(cell(*parameters)[figure])

    track.__doc__ = what
    track.unit = unit  # type: ignore[attr-defined]
    return track


HEAD = """\
| {} | plain s | voted s | time ratio (min/min; quartiles) | CPU ratio | {}peak GB plain, voted | clean pairs |
|---|---|---|---|---|{}---|---|"""


def row(name: str, c: Cell, more: Sequence[str] = ()) -> str:
    """A row of a table in Markdown below ``HEAD``; ``more`` columns stand after the ratios."""
    ratio = f"{c['time_ratio']:.2f} ({c['time_ratio_min']:.2f}; {c['time_ratio_spread']:.2f})"
    memory = f"{c['peak_memory_plain'] / 1e9:.2f}, {c['peak_memory_voted'] / 1e9:.2f}"
    clean = f"{c['pairs_clean']:.0f} of {c['pairs_tried']:.0f}"
    columns = (name, f"{c['plain_s']:.3f}", f"{c['voted_s']:.3f}", ratio, f"{c['cpu_ratio']:.2f}", *more, memory, clean)
    return f"| {' | '.join(columns)} |"


def head(name: str, more: Sequence[str] = ()) -> str:
    """The head of a table of such rows."""
    return HEAD.format(name, "".join(f"{column} | " for column in more), "---|" * len(more))


def print_cells(
    parser: argparse.ArgumentParser, measure_all: Callable[[], Cells], markdown: Callable[[Cells], str]
) -> tuple[Cells, argparse.Namespace]:
    """Read the command line, measure, print a table in Markdown, write JSON if asked to; return figures and
    arguments.
    """
    parser.add_argument("--size", choices=("quick", "full"), default=os.environ.get("QUOREDUCE_BENCH_SIZE", "quick"))
    parser.add_argument("--json", metavar="FILE", help="write all figures, too")
    a = parser.parse_args()
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    cells = measure_all()
    machine = about()
    print(f"{headline(machine)}\n\n{markdown(cells)}")
    if a.json:
        Path(a.json).write_text(json.dumps({**machine, "size": a.size, "cells": cells}, indent=1) + "\n")
    return cells, a


def about() -> dict[str, Any]:
    """Date, machine and versions: what figures depend on, for reports."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = {
        "cpu": cpu_model(), "cores": os.cpu_count(), "cores_used": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory / 1e9, 1), "kernel": os.uname().release, "architecture": os.uname().machine,
    }  # fmt: skip
    versions = {"python": platform.python_version()}
    for name in ("quoreduce", "numba", "ray", "pyspark", "dask", "duckdb", "polars"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "versions": versions}


def headline(about: dict[str, Any]) -> str:
    """The same in one line."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{about['date']}; {machine['cpu']}, {machine['cores_used']} of {machine['cores']} cores; {versions}"
