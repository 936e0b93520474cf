"""Jobs, plain and voted in turn in one process, on warm local workers: what voting costs, as ratios and in seconds.

Two rooms. ``saturated``: plain and voted on the same two workers, each on a core of its own, so that a vote doubles the work of
full cores. ``core to spare``: plain on one worker, voted (f=1) on two: each replica has a core of its own. Plain is
``--mode original`` with its block checksums, as fast as we can make it. The outputs of both are compared, byte by byte.
"""

from __future__ import annotations

import filecmp
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Options, Session

JOBS = {"wordcount": ("wordcount", "blake3"), "sort": ("sort", "blake3"), "sort, fast digest": ("sort", "fast")}
ROOMS = {"saturated": (2, 2), "core to spare": (1, 2)}
PAIRS = {"quick": 5, "full": 9}
Cell = dict[str, float]
Cells = dict[str, Cell]


class Bench:
    """Runs jobs in sessions of one and two workers that are started once."""

    def __init__(self, sessions: dict[int, Session], inputs: dict[str, Path], folder: Path) -> None:
        self._sessions = sessions
        self._inputs = inputs
        self._folder = folder

    def cell(self, job: str, digest: str, workers: tuple[int, int], pairs_wanted: int) -> Cell:
        """Measure plain against voted."""
        from quoreduce import Options

        plain = self._runner(job, workers[0], Options(mode="original"))
        voted = self._runner(job, workers[1], Options(f=1, digest=digest))  # type: ignore[arg-type]
        self._compare(plain, voted)
        memory = {"plain": self._memory(plain, workers[0]), "voted": self._memory(voted, workers[1])}
        pairs = measure.interleave(lambda: plain(None), lambda: voted(None), pairs_wanted)
        return _figures(pairs, memory)

    def _runner(self, job: str, workers: int, options: Options) -> Callable[[Path | None], measure.Run]:
        """Return what runs the job once, to the folder given, or to one that is deleted at once."""
        from quoreduce.jobs.find import find_job

        session, found, path = self._sessions[workers], find_job(job), str(self._inputs[job])

        def run(output: Path | None) -> measure.Run:
            target = output or self._folder / "out"
            window = measure.Window()
            start = time.perf_counter()
            result = session.run(found, [path], str(target), options)
            wall = time.perf_counter() - start
            noise = window.close(result.cpu_s)
            if result.reexecutions or result.faults.detected:
                raise RuntimeError(f"{job}: a run without injected faults had {result.faults.detected}: not a benchmark")
            if output is None:
                shutil.rmtree(target)
            return measure.Run(wall, result.cpu_s, noise, result.wall_s, result)

        return run

    def _compare(self, plain: Callable[[Path], measure.Run], voted: Callable[[Path], measure.Run]) -> None:
        """Run both once, which warms them up, and compare the outputs."""
        a, b = self._folder / "plain", self._folder / "voted"
        names = [f"part-r-{i:05d}" for i in range(plain(a).detail.parts)]
        voted(b)
        _, differ, missing = filecmp.cmpfiles(a, b, names, shallow=False)
        shutil.rmtree(a)
        shutil.rmtree(b)
        if differ or missing:
            raise RuntimeError(f"plain and voted outputs differ in {differ or missing}")

    def _memory(self, run: Callable[[None], measure.Run], workers: int) -> tuple[int, int]:
        """Bytes: the peak of the largest worker, and the peak of all memory of workers together; not timed."""
        pids = [info.pid for info in self._sessions[workers].workers]
        measure.reset_peak_rss(pids)
        with measure.watch_memory(lambda: pids) as peak:
            run(None)
        return measure.peak_rss(pids), peak.nbytes


def _figures(pairs: measure.Pairs, memory: dict[str, tuple[int, int]]) -> Cell:
    plain, voted = ([pair[i] for pair in pairs.kept] for i in (0, 1))
    a, b = plain[0].detail, voted[0].detail
    ratios = pairs.ratios(lambda run: run.wall_s)
    return {
        "time_ratio": statistics.median(ratios),
        "time_ratio_spread": measure.spread(ratios),
        "time_ratio_min": measure.divide(min(r.wall_s for r in voted), min(r.wall_s for r in plain)),
        "cpu_ratio": statistics.median(pairs.ratios(lambda run: run.cpu_s)),
        "bytes_stored_ratio": measure.divide(b.bytes_stored, a.bytes_stored),
        "bytes_shipped_ratio": measure.divide(b.bytes_shipped, a.bytes_shipped),
        "executions_plain": sum(a.executions.values()),
        "executions_voted": sum(b.executions.values()),
        "plain_s": statistics.median(r.wall_s for r in plain),
        "voted_s": statistics.median(r.wall_s for r in voted),
        "plain_cpu_s": statistics.median(r.cpu_s for r in plain),
        "voted_cpu_s": statistics.median(r.cpu_s for r in voted),
        "peak_rss_plain": memory["plain"][0],
        "peak_rss_voted": memory["voted"][0],
        "peak_memory_plain": memory["plain"][1],
        "peak_memory_voted": memory["voted"][1],
        "pairs_clean": pairs.clean,
        "pairs_tried": pairs.tried,
        "pressure": statistics.median(r.noise.pressure_s / r.noise.wall_s for r in plain + voted),
        "steal": max(r.noise.steal_s / r.noise.wall_s / r.noise.cores for r in plain + voted),
    }


@contextmanager
def opened() -> Iterator[Bench]:
    """Sessions of one and of two local workers, kept to two cores."""
    from quoreduce import Place, Session

    data.prepare()
    inputs = {"wordcount": data.text(), "sort": data.records()}
    if len(measure.two_cores()) < 2:
        raise RuntimeError("voting with f=1 needs two cores")
    folder = Path(tempfile.mkdtemp(prefix="out-", dir=os.environ.get("QUOREDUCE_BENCH_OUT") or data.folder()))
    try:
        with Session(Place("local", 1)) as one, Session(Place("local", 2)) as two:
            yield Bench({1: one, 2: two}, inputs, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(job: str, room: str) -> str:
    return f"{job}/{room}"


def measure_all() -> Cells:
    """All cells."""
    pairs = PAIRS[data.size()]
    with opened() as bench:
        return {
            _name(name, room): bench.cell(job, digest, workers, pairs)
            for name, (job, digest) in JOBS.items()
            for room, workers in ROOMS.items()
        }


class Voted:
    """Voted (f=1) against plain."""

    params = (list(JOBS), list(ROOMS))
    param_names = ("job", "room")
    timeout = 600

    def setup_cache(self) -> Cells:
        return measure_all()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


def _track(figure: str, unit: str, about: str) -> Callable[..., float]:
    def track(self: Any, cells: Cells, job: str, room: str) -> float:
        return measure.rounded(cells[_name(job, room)][figure])

    track.__doc__ = about
    track.unit = unit  # type: ignore[attr-defined]
    return track


for _figure, _unit, _about in (
    ("time_ratio", "voted/plain", "Median of the ratios of pairs."),
    ("time_ratio_spread", "voted/plain", "Lower to upper quartile of the ratios of pairs."),
    ("time_ratio_min", "voted/plain", "Fastest voted run over the fastest plain run."),
    ("cpu_ratio", "voted/plain", "CPU time of driver and workers: median of the ratios of pairs."),
    ("bytes_stored_ratio", "voted/plain", "Map outputs stored."),
    ("bytes_shipped_ratio", "voted/plain", "Map outputs read by another worker than the one that made them."),
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
    ("pairs_clean", "pairs", "Pairs that others did not disturb; of fewer than half of those wanted, figures are of all."),
    ("pairs_tried", "pairs", "Pairs run."),
    ("pressure", "of wall time", "Some task waited for a core (median over runs); much of it is our own."),
    ("steal", "of core time", "Taken by the hypervisor (the worst run)."),
):
    setattr(Voted, f"track_{_figure}", _track(_figure, _unit, _about))
