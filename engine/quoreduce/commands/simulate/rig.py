"""The rig of `simulate calibrate` and `simulate validate`: jobs of all kinds with data, on warm local workers,
watched.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quoreduce import machine
from quoreduce.commands.generate.generate import record_chunks, text_chunks, write_file
from quoreduce.data.formats import parse_format
from quoreduce.data.splits import Split, plan_splits
from quoreduce.driver.result import Result
from quoreduce.job import Job
from quoreduce.jobs.scan import scan_job
from quoreduce.jobs.sort import JOB as SORT
from quoreduce.jobs.wordcount import JOB as WORDCOUNT
from quoreduce.protocol import wire
from quoreduce.protocol.options import Options, Place
from quoreduce.protocol.port import Arrival, Executor, cores
from quoreduce.runtime.session import Session
from quoreduce.scratch import temporary_folder

PYTHON_SHARE = 16  # a job in Python has this part of the data that others have
Say = Callable[[str], None]


def _first_letters(record: bytes) -> Iterator[tuple[str, int]]:
    for word in record.split():
        yield word[:1].decode("latin-1"), len(word)


def _total(key: str, values: list[int]) -> Iterator[tuple[str, int]]:
    yield key, sum(values)


PYTHON = Job("python", _first_letters, _total, combine=_total)


@dataclass(frozen=True, slots=True)
class Subject:
    """A kind of job with data for it: its first stage, of ``stages``."""

    name: str
    job: Job
    source: Path
    nbytes: int
    stages: int = 1

    def splits(self, count: int) -> Sequence[Split]:
        """Cut the data into about so many splits, as a session does with :meth:`split_mb`."""
        return plan_splits([str(self.source)], parse_format(self.job.input), round(self.split_mb(count) * 1e6))

    def split_mb(self, count: int) -> float:
        """Size of a split of so many, as an option; a multiple of 100 bytes, for records are not cut."""
        return -(-self.nbytes // (100 * count)) * 100 / 1e6


@dataclass(frozen=True, slots=True)
class TimedExecution:
    """An execution, or the check of a part: seconds, and bytes read, made; partitions made by a map, or read by a
    reduce.
    """

    kind: str
    store: bool
    cpu_s: float
    took_s: float
    read: int
    made: int
    parts: int


@dataclass(slots=True)
class Watched:
    """An executor that remembers what was asked and answered."""

    inner: Executor
    seen: list[TimedExecution] = field(default_factory=list)
    _asked: dict[tuple[int, bool], tuple[float, wire.Request]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def submit(self, worker: str, raw: bytes) -> None:
        """Pass a request on."""
        self.inner.submit(worker, raw)
        request = wire.decode_request(raw)
        if isinstance(request, wire.SampleTask | wire.MapTask | wire.ReduceTask | wire.RereadTask):
            self._asked[request.attempt, isinstance(request, wire.RereadTask)] = time.perf_counter(), request

    def wait(self, timeout_s: float) -> list[Arrival]:
        """Pass replies on."""
        arrivals, now = self.inner.wait(timeout_s), time.perf_counter()
        for arrival in arrivals:
            if arrival.raw is not None:
                reply = wire.decode_reply(arrival.raw)
                if not isinstance(reply, wire.Done | wire.Reread):
                    continue
                asked = self._asked.pop((reply.attempt, isinstance(reply, wire.Reread)), None)
                if asked is not None:
                    self.seen.append(_seen(asked[1], reply, now - asked[0]))
        return arrivals

    def take(self) -> list[TimedExecution]:
        """Return what was answered since, and forget it."""
        seen, self.seen = self.seen, []
        self._asked.clear()
        return seen


def _seen(request: wire.Request, reply: wire.Done | wire.Reread, took_s: float) -> TimedExecution:
    parts = reply.parts if isinstance(reply, wire.Done) else ()
    made = sum(part.nbytes for part in parts)
    match request:
        case wire.MapTask():
            return TimedExecution("map", request.store, reply.cpu_s, took_s, request.split.length, made, len(parts))
        case wire.ReduceTask():
            copies = [stored for copies in request.sources for stored in copies]
            return TimedExecution(
                "reduce", bool(request.paths), reply.cpu_s, took_s, sum(s.nbytes for s in copies), made, len(copies)
            )
        case wire.RereadTask():
            return TimedExecution("check", False, reply.cpu_s, took_s, 0, 0, 0)
    return TimedExecution("sample", False, reply.cpu_s, took_s, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """A job that ran: what the session says, what its executions were, the driver's CPU seconds, whether others
    disturbed it.
    """

    result: Result
    seen: list[TimedExecution]
    driver_s: float
    disturbed: bool


class Rig:
    """Warm local workers, a folder for data, and jobs that run there one after the other."""

    def __init__(self, session: Session, folder: Path, say: Say) -> None:
        assert session._executor is not None, "a session in use has workers"
        self.folder, self.say, self.workers = folder, say, len(session.workers)
        self._watched = Watched(session._executor)
        session._executor = self._watched  # the rest of an executor it passes on
        self._session = session

    def run(self, job: Job, source: Path, options: Options) -> MeasuredRun:
        """Run a job; its output is deleted again, which is not timed."""
        out = self.folder / "out"
        before_s, driver_s = _busy_s(), time.process_time()
        try:
            result = self._session.run(job, [str(source)], str(out), options)
        finally:
            driver_s = time.process_time() - driver_s
            others_s = _busy_s() - before_s
            shutil.rmtree(out, ignore_errors=True)
        dirty = machine.is_dirty(result.wall_s * len(cores()), others_s - result.cpu_s)
        return MeasuredRun(result, self._watched.take(), driver_s, dirty)

    def subjects(self, name: str, mb: float, seed: int, names: Sequence[str] = ()) -> list[Subject]:
        """Make data of about ``mb`` MB in a folder ``name`` for all kinds of jobs, or for those in ``names``."""
        from quoreduce_gridmix import apps, data

        folder = self.folder / name
        folder.mkdir()
        size = round(mb * 1e6)
        write_file(folder / "text", text_chunks(size, seed))
        write_file(folder / "short", text_chunks(size // PYTHON_SHARE, seed))
        write_file(folder / "records", record_chunks("binary", seed * 1_000_000, size // 100))
        kinds = [
            ("wordcount", (WORDCOUNT,), "text"), ("sort", (SORT,), "records"), ("scan", (scan_job(b"a"),), "records"),
            ("python", (PYTHON,), "short"), *((app, apps.jobs_of(app), apps.KINDS[app]) for app in apps.NAMES),
        ]  # fmt: skip
        found = []
        for kind, jobs, source in kinds:
            if names and kind not in names:
                continue
            if source in apps.KINDS.values() and not (folder / source).exists():
                data.generate(source, folder / source, size, 1, seed, workers=1)  # type: ignore[arg-type]
            path = folder / source if (folder / source).is_file() else folder / source / "part-00000"
            found.append(Subject(kind, jobs[0], path, path.stat().st_size, len(jobs)))
        return found


@contextmanager
def rig(say: Say) -> Iterator[Rig]:
    """A rig of as many workers as there are cores."""
    with temporary_folder("simulate") as folder, Session(Place(on="local"), say) as session:
        yield Rig(session, folder, say)


def _busy_s() -> float:
    """Seconds for which our cores were busy, or taken by a hypervisor."""
    return sum(machine.core_times(cores()))
