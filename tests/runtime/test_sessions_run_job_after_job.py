"""One session, many jobs: what is left of one, above all of one that failed, must not disturb the next (R10)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from meddling import Said, attempt_of, meddled_session
from runs import EXECUTORS, SORT, WORDCOUNT, Runner, counted, parts_of

from quoreduce import Job, Options, Session
from quoreduce.errors import (
    HostError,
    InputError,
    JobError,
    NoQuorum,
    NotDeterministic,
    QuoreduceError,
    TooFewDomains,
    UsageError,
)
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place
from quoreduce.tracker import messages as m

Counts = list[tuple[bytes, int]]


def raise_at(line: bytes) -> Iterator[tuple[bytes, int]]:
    if b"Ge1:20 " in line:
        raise KeyError("no such verse")
    yield line, 1


def toss(line: bytes) -> Iterator[tuple[bytes, float]]:
    yield line, random.random()


def gather(key: bytes, values: list[object]) -> Iterator[tuple[bytes, object]]:
    yield key, values


RAISES = Job("raises", raise_at, gather)
TOSSES = Job("tosses", toss, gather)
FAILURES: list[tuple[Job, dict[str, object], type[QuoreduceError]]] = [
    (RAISES, {}, JobError),
    (TOSSES, {}, NotDeterministic),
    (WORDCOUNT, {"faults": ("stuck:worker0",)}, NoQuorum),
    (WORDCOUNT, {"f": 3}, TooFewDomains),
    (SORT, {}, InputError),
]


@pytest.mark.parametrize(("job", "options", "error"), FAILURES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("on", EXECUTORS)
def test_a_job_after_a_failed_one_is_right(
    on: str, job: Job, options: dict[str, object], error: type[QuoreduceError], run: Runner, verses: Path,
    verses_counted: Counts,
) -> None:  # fmt: skip
    """Requests of the failed job are still queued, and their replies carry attempt numbers that the next job has
    too.
    """
    for _ in range(3):
        with pytest.raises(error) as caught:
            run(on, job, verses, reducers=3, split_mb=0.003, **options)
        assert caught.type is error
        result, parts = run(on, WORDCOUNT, verses, reducers=3, split_mb=0.003)
        assert counted(parts) == verses_counted
        assert result.reexecutions == 0
        assert result.faults.detected == 0


@pytest.mark.parametrize("on", EXECUTORS)
def test_different_jobs_in_one_session(
    on: str, run: Runner, verses: Path, verses_counted: Counts, records: Path, records_sorted: bytes
) -> None:
    """Their segments are used again: what a block does not fill must not shine through."""
    for i in range(4):
        digest = ("blake3", "fast")[i % 2]
        _, parts = run(on, WORDCOUNT, verses, reducers=2 + i, split_mb=0.004, digest=digest, f=i % 2)
        assert counted(parts) == verses_counted
        _, parts = run(on, SORT, records, reducers=2 + i, split_mb=0.03, digest=digest, f=(i + 1) % 2)
        assert b"".join(parts) == records_sorted


def test_a_late_reply_of_an_earlier_job_is_not_a_vote(verses: Path, verses_counted: Counts, tmp_path: Path) -> None:
    """The same attempt number, the same worker, another job: only the generation tells them apart."""
    old: dict[str, wire.Reply] = {}

    def keep(worker: str, reply: wire.Reply) -> list[Said]:
        if isinstance(reply, wire.Done):
            old.setdefault(worker, reply)
        return [reply]

    def replay(worker: str, reply: wire.Reply) -> list[Said]:
        return [old[worker], reply] if attempt_of(reply) >= 0 else [reply]

    (tmp_path / "other").write_text("other words\n" * 2000)
    options = Options(reducers=3, split_mb=0.004)
    with meddled_session(2) as (session, meddler):
        meddler.replies = keep
        session.run(WORDCOUNT, [str(tmp_path / "other")], str(tmp_path / "first"), options)
        meddler.replies = replay
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "second"), options)
    assert counted(parts_of(tmp_path / "second")) == verses_counted
    assert result.faults.detected == 0
    assert result.reexecutions == 0


def test_a_session_goes_on_after_its_workers_died_while_a_job_failed(
    verses: Path, verses_counted: Counts, tmp_path: Path
) -> None:
    with Session(Place("local", 2, "worker")) as session:
        for i in range(3):
            with pytest.raises(JobError):
                session.run(
                    RAISES, [str(verses)], str(tmp_path / f"bad{i}"),
                    Options(split_mb=0.002, faults=("crash:map:2", "lie:map:1")),
                )  # fmt: skip
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / f"good{i}"), Options(split_mb=0.002, reducers=2))
            assert counted(parts_of(tmp_path / f"good{i}")) == verses_counted


def test_a_job_that_one_worker_cannot_load_is_not_the_jobs_fault(
    verses: Path, verses_counted: Counts, tmp_path: Path
) -> None:
    """One worker says so: it is replaced. f+1 domains say so: it is the job's own error."""
    said: list[str] = []

    def once(worker: str, reply: wire.Reply) -> list[Said]:
        if isinstance(reply, wire.Ready) and not said:
            said.append(worker)
            return [wire.NotReady("no module named foo", generation=reply.generation)]
        return [reply]

    def always(worker: str, reply: wire.Reply) -> list[Said]:
        return [wire.NotReady("no module named foo", generation=reply.generation)]

    with meddled_session(3) as (session, meddler):
        meddler.replies = once
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(reducers=2))
        assert counted(parts_of(tmp_path / "out")) == verses_counted
        meddler.replies = always
        with pytest.raises(JobError, match="cannot be loaded by workers: no module named foo"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "again"), Options(reducers=2))


def test_a_machine_that_fails_again_and_again_ends_the_job(verses: Path, tmp_path: Path) -> None:
    def no_space(worker: str, reply: wire.Reply) -> list[Said]:
        if attempt_of(reply) < 0:
            return [reply]
        return [wire.HostFailed(attempt_of(reply), "no space left on device: /shm", generation=reply.generation)]

    with meddled_session(2) as (session, meddler):
        meddler.replies = no_space
        with pytest.raises(HostError, match="no space left on device"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options())
    assert not (tmp_path / "out").exists()


def test_a_session_is_a_context_manager(verses: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="context manager"):
        Session(Place("inline")).run(WORDCOUNT, [str(verses)], str(tmp_path / "out"))


def test_the_transcript_of_the_tracker_has_no_event_of_another_job(
    verses: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attempts count from 0 in each job: every event is about one that this job has launched."""
    from quoreduce.tracker.tracker import JobTracker

    handle = JobTracker.handle
    launched: dict[int, set[int]] = {}

    def watched(self: JobTracker, event: m.Event) -> list[m.Command]:
        attempt = getattr(event, "attempt", None)
        assert attempt is None or attempt in launched.get(id(self), set())
        commands = handle(self, event)
        launched.setdefault(id(self), set()).update(c.attempt for c in commands if isinstance(c, m.Launch))
        return commands

    start = JobTracker.start

    def started(self: JobTracker) -> list[m.Command]:
        commands = start(self)
        launched[id(self)] = {c.attempt for c in commands if isinstance(c, m.Launch)}
        return commands

    monkeypatch.setattr(JobTracker, "handle", watched)
    monkeypatch.setattr(JobTracker, "start", started)
    with Session(Place("local", 2, "worker")) as session:
        for i in range(4):
            with pytest.raises(JobError):
                session.run(RAISES, [str(verses)], str(tmp_path / f"bad{i}"), Options(split_mb=0.001))
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / f"good{i}"), Options(split_mb=0.003))
