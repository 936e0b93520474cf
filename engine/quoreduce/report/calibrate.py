"""``quoreduce simulate calibrate``: what a byte costs on this machine, from small jobs on a warm local session.

Jobs run plain and voted, and each execution's own CPU seconds and bytes are taken from its reply. The fixed cost of an execution
is that of one over next to nothing; rates are of what it takes beyond that.
"""

from __future__ import annotations

import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from quoreduce.data.digest import Digester
from quoreduce.job import Job
from quoreduce.jobs.scan import scan_job
from quoreduce.jobs.sort import JOB as SORT
from quoreduce.jobs.wordcount import JOB as WORDCOUNT
from quoreduce.report.generate import record_chunks, text_chunks, write_file
from quoreduce.runtime import wire
from quoreduce.runtime.options import Options, Place
from quoreduce.runtime.port import Arrival, Executor
from quoreduce.runtime.session import Session
from quoreduce.sim.calibration import Calibration, JobCost

SPLITS = 4
REDUCERS = 2
SMALL_TASKS = 200
ROUNDS = 3
Say = Callable[[str], None]


class Watched:
    """An executor that remembers what was asked and answered."""

    def __init__(self, inner: Executor) -> None:
        self._inner = inner
        self._kinds: dict[int, str] = {}
        self.replies: list[tuple[str, wire.Reply]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def submit(self, worker: str, raw: bytes) -> None:
        """Pass a request on."""
        request = wire.decode_request(raw)
        if isinstance(request, wire.MapTask | wire.ReduceTask):
            self._kinds[request.attempt] = "map" if isinstance(request, wire.MapTask) else "reduce"
        self._inner.submit(worker, raw)

    def wait(self, timeout_s: float) -> list[Arrival]:
        """Pass replies on."""
        arrivals = self._inner.wait(timeout_s)
        for arrival in arrivals:
            if arrival.raw is not None:
                reply = wire.decode_reply(arrival.raw)
                if reply.status == "ok" and reply.attempt in self._kinds:
                    self.replies.append((self._kinds[reply.attempt], reply))
        return arrivals

    def take(self) -> list[tuple[str, wire.Reply]]:
        """Return what was answered since, and forget it."""
        replies, self.replies = self.replies, []
        self._kinds.clear()
        return replies


def calibrate(mb: int, say: Say) -> Calibration:
    """Measure this machine with ``mb`` MB of data, which are deleted again."""
    with tempfile.TemporaryDirectory(prefix="quoreduce-calibrate-") as name, Session(Place(on="local"), say) as session:
        folder = Path(name)
        assert session._executor is not None, "a session in use has workers"
        watched = Watched(session._executor)
        session._executor = watched  # the rest of an executor it passes on
        todo = _jobs(folder, mb, say)
        task_s, driver_s, startup_s = _fixed(session, watched, folder, len(session.workers))
        costs: dict[str, JobCost] = {}
        for kind, job, source, stages in todo:
            say(f"calibrate: {kind}")
            costs[kind] = _cost(session, watched, job, source, folder, stages, task_s)
    where = f"measured on {platform.machine()}, {len(session.workers)} cores, with {mb} MB"
    return Calibration(where, costs, _digest_s(), task_s, driver_s, startup_s)


def _jobs(folder: Path, mb: int, say: Say) -> list[tuple[str, Job, Path, int]]:
    """The engine's jobs and GridMix's with data for each: (name, job, input, stages)."""
    from quoreduce_gridmix import apps, data

    say("calibrate: making data")
    write_file(folder / "text", text_chunks(mb * 1_000_000, 0))
    write_file(folder / "records", record_chunks("binary", 0, mb * 10_000))
    kinds = sorted(set(apps.KINDS.values()))
    sets = {kind: data.generate(kind, folder / kind, mb * 1_000_000, SPLITS, workers=1) for kind in kinds}
    records = folder / "records"
    found = [("wordcount", WORDCOUNT, folder / "text", 1), ("sort", SORT, records, 1), ("scan", scan_job(b"a"), records, 1)]
    for name in apps.NAMES:
        jobs = apps.jobs_of(name)
        found.append((name, jobs[0], sets[apps.KINDS[name]].path, len(jobs)))
    return found


def _fixed(session: Session, watched: Watched, folder: Path, workers: int) -> tuple[float, float, float]:
    """Seconds of an execution of next to nothing, of the driver for each, and of a job before its first."""
    tiny = folder / "tiny"
    tiny.write_bytes(b"a b\n" * (8 * SMALL_TASKS))
    options = Options(mode="original", f=0, reducers=1, split_mb=32 / 1e6, overwrite=True)
    walls, cpus = [], []
    for _ in range(ROUNDS):
        whole = session.run(WORDCOUNT, [str(tiny)], str(folder / "out"), options)
        cpus += [reply.cpu_s for kind, reply in watched.take() if kind == "map"]
        one = session.run(WORDCOUNT, [str(tiny)], str(folder / "out"), Options(mode="original", f=0, reducers=1, overwrite=True))
        watched.take()
        walls.append((one.wall_s, (whole.wall_s - one.wall_s) / max(1, whole.splits - 1)))
    task_s = statistics.median(cpus)
    startup_s = statistics.median(wall for wall, _ in walls)
    return task_s, max(0.0, statistics.median(each for _, each in walls) - task_s / workers), startup_s


def _cost(session: Session, watched: Watched, job: Job, source: Path, folder: Path, stages: int, task_s: float) -> JobCost:
    """Rates of one job, plain and voted."""
    size = sum(path.stat().st_size for path in ([source] if source.is_file() else source.glob("part-*")))
    split_mb = max(0.1, size / SPLITS / 1e6)
    plain = Options(mode="original", f=0, reducers=REDUCERS, split_mb=split_mb, overwrite=True)
    both: list[tuple[Options, list[tuple[str, wire.Reply]]]] = [(plain, []), (replace(plain, mode="bft", f=1), [])]
    for n in range(1 + ROUNDS):  # in turn, and the first does not count
        for options, seen in both:
            session.run(job, [str(source)], str(folder / "out"), options)
            replies = watched.take()
            seen += replies if n else []
    rates = []
    for _, seen in both:
        maps = [(r.cpu_s, r.bytes_in, sum(p.nbytes for p in r.parts)) for kind, r in seen if kind == "map"]
        made = _mean_out(maps) * len(maps) / sum(kind == "reduce" for kind, _ in seen)  # what each reduce reads
        reduces = [(r.cpu_s, made, sum(p.nbytes for p in r.parts)) for kind, r in seen if kind == "reduce"]
        rates.append((_rate(maps, task_s), _ratio(maps), _rate(reduces, task_s), _ratio(reduces)))
    (map_s, map_out, reduce_s, reduce_out), (map_voted_s, _, reduce_voted_s, _) = rates
    return JobCost(map_s, map_voted_s, map_out, reduce_s, reduce_voted_s, reduce_out, stages)


def _mean_out(seen: Sequence[tuple[float, float, int]]) -> float:
    return statistics.fmean(out for _, _, out in seen)


def _rate(seen: Sequence[tuple[float, float, int]], task_s: float) -> float:
    """Seconds a byte: all that executions took, but for their fixed cost, by all bytes."""
    return max(0.0, sum(cpu_s - task_s for cpu_s, _, _ in seen)) / max(1.0, sum(nbytes for _, nbytes, _ in seen))


def _ratio(seen: Sequence[tuple[float, float, int]]) -> float:
    return sum(out for _, _, out in seen) / max(1.0, sum(nbytes for _, nbytes, _ in seen))


def _digest_s() -> float:
    """Seconds that a digest takes for a byte, of 16 MB."""
    data, digester, times = np.arange(2_000_000, dtype=np.uint64).view(np.uint8), Digester("blake3"), []
    for _ in range(1 + ROUNDS):
        start = time.perf_counter()
        digester.of(data)
        times.append(time.perf_counter() - start)
    return min(times[1:]) / data.nbytes
