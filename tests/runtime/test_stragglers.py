"""Speculative attempts overtake slow executions (R9), on idle workers only; without slow ones there are none (R2)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from meddling import Meddler, meddled_session
from runs import SORT, WORDCOUNT, Runner, parts_of
from stopping import stopping_job

from quoreduce import Job, Options, Result, Session
from quoreduce.driver import underway
from quoreduce.jobs.scan import scan_job
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import Arrival
from quoreduce.tracker.pace import FLOOR_S

FAR_S = 600.0


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.parametrize(("mode", "role"), [("bft", "map"), ("bft", "reduce"), ("original", "map")])
def test_a_stopped_worker_is_overtaken_long_before_its_deadline(mode: str, role: str, tmp_path: Path) -> None:
    """Mode original too: that is Hadoop's speculative execution."""
    (tmp_path / "text").write_bytes(b"".join(b"word%d\n" % (i % 7) for i in range(40)))
    with Session(Place("local", 3, "worker")) as session:
        job = stopping_job(str(tmp_path), role)
        options = Options(mode=mode, reducers=5, split_mb=30e-6, deadline_s=FAR_S)  # type: ignore[arg-type]
        result = session.run(job, [str(tmp_path / "text")], str(tmp_path / "out"), options)
        assert stopped(int((tmp_path / "pid").read_text())), "nobody killed it: its deadline is far away"
    counts = {f"word{i}": 6 if i < 5 else 5 for i in range(7)}
    assert sorted(b"".join(parts_of(tmp_path / "out")).decode().split()) == sorted(
        [*counts, *map(str, counts.values())]
    )
    replicas = 1 if mode == "original" else 2
    assert result.executions == {
        "map": replicas * result.splits + (role == "map"),
        "reduce": replicas * 5 + (role == "reduce"),
    }
    assert (result.spares, result.reexecutions, result.faults.detected) == (1, 0, 0)


@pytest.mark.parametrize(
    ("on", "kind"), [("local", "slow"), ("local", "hang"), pytest.param("ray", "slow", marks=pytest.mark.ray)]
)
def test_an_injected_delay_is_overtaken_and_counted_and_the_next_job_does_not_suffer(
    on: str, kind: str, verses: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    with Session(Place(on, 3, "worker")) as session:  # type: ignore[arg-type]
        before = {info.name for info in session.workers}
        options = Options(split_mb=0.005, reducers=2, faults=(f"{kind}:map:1",), deadline_s=FAR_S)
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), options)
        assert (result.spares, result.reexecutions) == (1, 0)
        assert (result.faults.injected, result.faults.detected, result.faults.masked) == (1, 1, 1)
        assert {info.name for info in session.workers} == before
        again = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "again"), Options(f=2, split_mb=0.005, reducers=2))
        assert len(before & {info.name for info in session.workers}) == 2, (
            "who was busy with the first job was replaced"
        )
    assert (again.spares, again.reexecutions, again.faults.detected) == (0, 0, 0)
    assert again.digest == result.digest


def late(verses: Path, out: Path, **options: Any) -> tuple[Result, float]:
    """A job one of whose requests gets lost; what came of it, and how many seconds of the driver's clock it took."""
    with meddled_session(3) as (session, meddler):
        session.on = "local"  # as far as the driver knows
        lost: list[str] = []

        def lose_one(worker: str, request: wire.Request) -> bool:
            if isinstance(request, wire.MapTask) and request.index == 3 and request.store and not lost:
                lost.append(worker)
                return False
            return True

        meddler.requests = lose_one
        begun = meddler.clock.now
        return session.run(
            WORDCOUNT, [str(verses)], str(out), Options(split_mb=0.005, **options)
        ), meddler.clock.now - begun


def test_the_reduces_go_on_without_a_storing_replica_that_is_late(verses: Path, tmp_path: Path) -> None:
    result, took_s = late(verses, tmp_path / "out")
    assert (result.spares, result.reexecutions) == (1, 0)
    assert FLOOR_S < took_s < underway.DEADLINE_LEAST_S


def test_without_spares_it_is_waited_for_until_its_deadline(verses: Path, tmp_path: Path) -> None:
    result, took_s = late(verses, tmp_path / "out", speculation=False)
    assert (result.spares, result.reexecutions) == (0, 1)
    assert took_s >= underway.DEADLINE_LEAST_S


def test_a_worker_that_starts_late_is_not_slow(verses: Path, tmp_path: Path) -> None:
    """What it is given meanwhile counts from when it has begun the job."""
    with meddled_session(3) as (session, meddler):
        session.on = "local"
        _start_late(meddler, session.workers[2].name, underway.PATIENCE_START_S - 1)
        begun = meddler.clock.now
        result = session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), Options(split_mb=0.005))
        assert meddler.clock.now - begun >= underway.PATIENCE_START_S - 1
    assert (result.spares, result.reexecutions) == (0, 0)


def _start_late(meddler: Meddler, late: str, after_s: float) -> None:
    """Keep all requests from one worker for some time."""
    kept: list[bytes] = []
    end, wait = meddler.clock.now + after_s, meddler.wait

    def keep(worker: str, request: wire.Request) -> bool:
        if worker != late or meddler.clock.now >= end:
            return True
        kept.append(wire.encode(request))
        return False

    def deliver(timeout_s: float) -> list[Arrival]:
        if meddler.clock.now >= end:
            for raw in kept:
                meddler.submit(late, raw)
            kept.clear()
        return wait(timeout_s)

    meddler.requests = keep
    meddler.wait = deliver  # type: ignore[method-assign]


@pytest.mark.parametrize("mode", ["original", "bft"])
@pytest.mark.parametrize("job", ["wordcount", "sort", "scan"])
def test_without_a_straggler_there_are_no_speculative_attempts(
    job: str, mode: str, run: Runner, verses: Path, records: Path
) -> None:
    """R2: the benchmarks' jobs, with a domain to spare."""
    jobs: dict[str, Callable[[], Job]] = {
        "wordcount": lambda: WORDCOUNT,
        "sort": lambda: SORT,
        "scan": lambda: scan_job(b"~"),
    }
    result, _ = run(
        "local", jobs[job](), verses if job == "wordcount" else records, workers=3, mode=mode, reducers=3, split_mb=0.02
    )
    replicas = 1 if mode == "original" else 2
    planned = {"map": replicas * result.splits, "reduce": replicas * 3} | (
        {"sample": replicas} if job == "sort" else {}
    )
    assert (result.executions, result.spares) == (planned, 0)
