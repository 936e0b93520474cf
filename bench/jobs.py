"""Jobs, plain and voted in turn in one process, on warm local workers: what voting costs, as ratios and in seconds.

Two rooms. ``saturated``: plain and voted on the same two workers, each on a core of its own, so that a vote doubles the work of
full cores. ``core to spare``: plain on one worker, voted (f=1) on two: each replica has a core of its own. Plain is
``--mode original`` with its block checksums, as fast as we can make it. The outputs of both are compared, byte by byte.
"""

from __future__ import annotations

import argparse
import filecmp
import json
import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Options, Session

JOBS = {
    "wordcount": ("wordcount", "blake3"), "sort": ("sort", "blake3"), "sort, fast digest": ("sort", "fast"),
    "scan": ("scan", "blake3"),
}  # fmt: skip
ROOMS = {"saturated": (2, 2), "core to spare": (1, 2)}
PAIRS = {"quick": 5, "full": 9}
Cell = dict[str, float]
Cells = dict[str, Cell]


class Bench:
    """Runs jobs in sessions of one and of two workers."""

    def __init__(self, inputs: dict[str, Path], folder: Path) -> None:
        self._inputs = inputs
        self._folder = folder

    def cell(self, job: str, digest: str, workers: tuple[int, int], pairs_wanted: int) -> Cell:
        """Measure plain against voted: memory, each in a session of its own, then time, in turn, in sessions that are warm."""
        from quoreduce import Options, Place, Session

        options = (Options(mode="original"), Options(f=1, digest=digest))  # type: ignore[arg-type]
        memory = [self._memory(job, n, o, self._folder / str(i)) for i, (n, o) in enumerate(zip(workers, options, strict=True))]
        self._compare(self._folder / "0", self._folder / "1")
        with ExitStack() as stack:
            sessions = {n: stack.enter_context(Session(Place("local", n))) for n in set(workers)}
            plain, voted = (partial(self._run, job, sessions[n], o) for n, o in zip(workers, options, strict=True))
            plain()
            voted()
            return _figures(measure.interleave(plain, voted, pairs_wanted), memory)

    def _memory(self, job: str, workers: int, options: Options, output: Path) -> tuple[int, int]:
        """Bytes: the peak of the largest worker, and the peak of all memory of workers together; not timed."""
        from quoreduce import Place, Session

        with Session(Place("local", workers)) as session:
            pids = [info.pid for info in session.workers]
            with measure.watch_memory(lambda: pids) as peak:
                self._run(job, session, options, output)
            return measure.peak_rss(pids), peak.nbytes

    def _run(self, job: str, session: Session, options: Options, output: Path | None = None) -> measure.Run:
        """Run a job once, to the folder given, or to one that is deleted at once."""
        from quoreduce.jobs.find import find_job
        from quoreduce.jobs.scan import scan_job

        target = output or self._folder / "out"
        window = measure.Window()
        result = session.run(scan_job(b"~") if job == "scan" else find_job(job), [str(self._inputs[job])], str(target), options)
        noise = window.close(result.cpu_s)
        if result.reexecutions or result.faults.detected:
            raise RuntimeError(f"{job}: a run without injected faults had {result.faults.detected}: not a benchmark")
        if output is None:
            shutil.rmtree(target)
        return measure.Run(noise.wall_s, result.cpu_s, noise, result.wall_s, result)

    def _compare(self, plain: Path, voted: Path) -> None:
        """Compare the parts of two outputs, and delete both."""
        names = {path.name for output in (plain, voted) for path in output.glob("part-*")}
        _, differ, missing = filecmp.cmpfiles(plain, voted, names, shallow=False)
        shutil.rmtree(plain)
        shutil.rmtree(voted)
        if differ or missing or not names:
            raise RuntimeError(f"plain and voted outputs differ in {differ or missing or 'everything'}")


def _figures(pairs: measure.Pairs, memory: Sequence[tuple[int, int]]) -> Cell:
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
        "peak_rss_plain": memory[0][0],
        "peak_rss_voted": memory[1][0],
        "peak_memory_plain": memory[0][1],
        "peak_memory_voted": memory[1][1],
        "pairs_clean": pairs.clean,
        "pairs_tried": pairs.tried,
        "pressure": statistics.median(r.noise.pressure_s / r.noise.wall_s for r in plain + voted),
        "steal": max(r.noise.steal_s / r.noise.wall_s / r.noise.cores for r in plain + voted),
    }


def measure_all() -> Cells:
    """All cells, kept to two cores."""
    data.prepare()
    inputs = {"wordcount": data.text(), "sort": data.records(), "scan": data.records()}
    if len(measure.two_cores()) < 2:
        raise RuntimeError("voting with f=1 needs two cores")
    folder = Path(tempfile.mkdtemp(prefix="out-", dir=os.environ.get("QUOREDUCE_BENCH_OUT") or data.folder()))
    bench = Bench(inputs, folder)
    try:
        return {
            _name(name, room): bench.cell(job, digest, workers, PAIRS[data.size()])
            for name, (job, digest) in JOBS.items()
            for room, workers in ROOMS.items()
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _name(job: str, room: str) -> str:
    return f"{job}, {room}"


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


# ---- python -m bench.jobs


def markdown(cells: Cells) -> str:
    """A table with a row for each cell."""
    lines = [
        "| job, room | plain s | voted s | time ratio (min/min; quartiles) | CPU ratio | peak GB plain, voted | clean pairs |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, c in cells.items():
        ratio = f"{c['time_ratio']:.2f} ({c['time_ratio_min']:.2f}; {c['time_ratio_spread']:.2f})"
        memory = f"{c['peak_memory_plain'] / 1e9:.2f}, {c['peak_memory_voted'] / 1e9:.2f}"
        clean = f"{c['pairs_clean']:.0f} of {c['pairs_tried']:.0f}"
        seconds = f"{c['plain_s']:.3f} | {c['voted_s']:.3f}"
        lines.append(f"| {name} | {seconds} | {ratio} | {c['cpu_ratio']:.2f} | {memory} | {clean} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.jobs", description="Measure jobs plain and voted; print one table.")
    parser.add_argument("--size", choices=list(data.SIZES), default=data.size(), help="quick: 256 MB each; full: 1 GiB and 1 GB")
    parser.add_argument("--json", metavar="FILE", help="write all figures, too")
    a = parser.parse_args()
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    cells = measure_all()
    about = measure.about()
    print(f"{measure.headline(about)}\n\n{markdown(cells)}")
    if a.json:
        Path(a.json).write_text(json.dumps({**about, "size": a.size, "cells": cells}, indent=1) + "\n")


if __name__ == "__main__":
    main()
