"""Workers that hang: killed at their deadline and replaced (R9), whatever it was that they were asked to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from meddling import Said, meddled_session
from runs import WORDCOUNT, left_in, parts_of, poll, running
from stopping import stopping_job

from quoreduce import Options, Session
from quoreduce.driver import underway
from quoreduce.errors import HostError, NoQuorum
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place

DEADLINE_S = {"local": 2.0, "ray": 6.0}  # a new actor of Ray begins slowly on a busy machine


@pytest.mark.parametrize(
    ("on", "role"), [("local", "map"), ("local", "reduce"), pytest.param("ray", "reduce", marks=pytest.mark.ray)]
)
def test_a_worker_that_is_stopped_is_killed_and_replaced(
    on: str, role: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    (tmp_path / "text").write_bytes(b"a\nb\na\n")
    store, output = tmp_path / "store", tmp_path / "outputs" / "out"
    with Session(Place(on, 2, "worker", store=str(store))) as session:  # type: ignore[arg-type]
        job = stopping_job(str(tmp_path), role)
        options = Options(reducers=1, deadline_s=DEADLINE_S[on], speculation=False)  # else what is stopped is overtaken
        result = session.run(job, [str(tmp_path / "text")], str(output), options)
    assert parts_of(output) == [b"a\t2\nb\t1\n"]
    assert result.executions == {"map": 2 + (role == "map"), "reduce": 2 + (role == "reduce")}
    assert result.faults.detected == result.faults.masked == 1
    assert left_in(store) == []
    poll(lambda: not running(int((tmp_path / "pid").read_text())), "the stopped worker to end")


def test_a_worker_that_hangs_while_it_checks_a_part_is_replaced(verses: Path, tmp_path: Path) -> None:
    """The digest of a part is recomputed before it is published: that has a deadline too."""
    lost: list[str] = []

    def lose_first_check(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.RereadTask) and not lost:
            lost.append(worker)
            return False
        return True

    with meddled_session(2) as (session, meddler):
        meddler.requests = lose_first_check
        result = session.run(
            WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(reducers=1, deadline_s=30, split_mb=0.02)
        )
        assert lost[0] not in {info.name for info in session.workers}
    assert sum(part.count(b"\n") for part in parts_of(tmp_path / "out")) == result.records_out


def test_a_part_that_hangs_every_check_ends_the_job(verses: Path, tmp_path: Path) -> None:
    """R3 bounds checks, too: workers are killed and replaced, but not without end."""
    asked: list[str] = []

    def hang(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.RereadTask):
            asked.append(worker)
        return not isinstance(request, wire.RereadTask)

    with meddled_session(2) as (session, meddler):
        meddler.requests = hang
        options = Options(deadline_s=20, attempts_max=3, reducers=1)
        with pytest.raises(
            HostError, match=r"reduce 0: cannot read back what was written, after 3 attempts to read .*part-r-00000"
        ):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), options)
    assert len(asked) == 3
    assert left_in(tmp_path / "outputs") == []


def test_a_part_that_no_check_can_read_ends_the_job_and_the_reason_is_said(verses: Path, tmp_path: Path) -> None:
    """R3 bounds what is executed because a stored output cannot be read: it is written anew, but not without end."""
    reduces: list[int] = []

    def unreadable(worker: str, reply: wire.Reply) -> list[Said]:
        if isinstance(reply, wire.Reread):
            return [wire.HostFailed(reply.attempt, "Input/output error: part", generation=reply.generation)]
        return [reply]

    def note(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.ReduceTask):
            reduces.append(request.attempt)
        return True

    with meddled_session(2) as (session, meddler):
        meddler.replies, meddler.requests = unreadable, note
        options = Options(attempts_max=4, reducers=1)
        said = r"reduce 0: cannot read back what was written.*: Input/output error: part"
        with pytest.raises(HostError, match=said):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), options)
    assert len(reduces) <= 2 + 4
    assert left_in(tmp_path / "outputs") == []


def test_a_task_that_always_hangs_ends_in_no_quorum(verses: Path, tmp_path: Path) -> None:
    """R3: a bound on executions, not on time."""
    with meddled_session(2) as (session, meddler):
        meddler.requests = lambda worker, request: not (isinstance(request, wire.MapTask) and request.index == 0)
        options = Options(deadline_s=20, attempts_max=5)
        with pytest.raises(NoQuorum, match=r"map 0 after 5 executions: \d crashed"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), options)
    assert left_in(tmp_path / "outputs") == []


def test_a_deadline_counts_from_when_the_worker_has_begun(verses: Path, tmp_path: Path) -> None:
    """A deadline that is shorter than the start of a worker must not kill every replacement before it begins."""
    with meddled_session(1) as (session, meddler):

        def slow_start(worker: str, reply: wire.Reply) -> list[Said]:
            meddler.clock.now += 2.0 if isinstance(reply, wire.Ready) else 0.0
            return [reply]

        meddler.replies = slow_start
        options = Options(f=0, deadline_s=1.0, faults=("crash:map:1",), split_mb=0.01)
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), options)
    assert result.reexecutions == 1


def test_without_a_deadline_the_slowest_task_so_far_sets_it(verses: Path, tmp_path: Path) -> None:
    """Ten seconds at least, twenty times the slowest; so nobody has to know how long a task takes."""
    with meddled_session(2) as (session, meddler):
        begun = meddler.clock.now
        meddler.requests = lambda worker, request: (
            not (isinstance(request, wire.MapTask) and request.index == 2 and worker == session.workers[0].name)
        )
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(split_mb=0.01))
        assert underway.DEADLINE_LEAST_S <= meddler.clock.now - begun < underway.DEADLINE_FIRST_S


def test_a_worker_that_never_begins_is_replaced(verses: Path, tmp_path: Path) -> None:
    with meddled_session(2) as (session, meddler):
        silent = session.workers[1].name
        meddler.requests = lambda worker, request: worker != silent
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(split_mb=0.01, deadline_s=1.0))
        assert silent not in {info.name for info in session.workers}


@pytest.mark.parametrize("when", ["waiting", "working"])
def test_a_driver_that_was_stopped_blames_no_worker(when: str, verses: Path, tmp_path: Path) -> None:
    """25 s in which the driver is not there to listen are not the workers' time."""
    with meddled_session(2) as (session, meddler):
        stops = ["waiting", "working"]

        def stop(where: str) -> None:
            if where == when and where in stops and len(meddler._queue) >= 1:
                stops.clear()
                meddler.clock.now += 25.0

        def hear(worker: str, reply: wire.Reply) -> list[Said]:
            stop("waiting" if isinstance(reply, wire.Done) else "")
            return [reply]

        meddler.replies = hear
        options = Options(reducers=1, deadline_s=10, split_mb=0.05)
        before = {info.name for info in session.workers}
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), options, lambda progress: stop("working"))
        assert {info.name for info in session.workers} == before
    assert not stops, "the driver was stopped while something was under way"
    assert (result.diagnoses, result.reexecutions, result.faults.detected) == ([], 0, 0)


class Task:
    """Something with a deadline."""

    def __init__(self, deadline: float) -> None:
        self.deadline, self.waited, self.grace = deadline, 0.0, 0.0


def test_a_deadline_moves_by_the_time_without_a_core_and_not_for_ever() -> None:
    task, waited = Task(10.0), 0.0
    assert not underway.is_late(task, "w", 9.9, lambda worker: 1e9)
    waited = 4.0
    assert not underway.is_late(task, "w", 10.0, lambda worker: waited)
    assert task.deadline == 14.0
    assert underway.is_late(task, "w", 14.0, lambda worker: waited), "it waited no more: this is a hang"
    waited = 1e6
    assert not underway.is_late(task, "w", 14.0, lambda worker: waited)
    assert task.deadline == 10.0 + underway.GRACE_MAX_S
    waited = 2e6
    assert underway.is_late(task, "w", 10.0 + underway.GRACE_MAX_S, lambda worker: waited)
