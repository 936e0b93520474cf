"""What is remembered of suspects from job to job (docs/guide/suspects.md): the rules, and the file."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.driver import suspects
from quoreduce.driver.suspects import FORGET_S, PLACES_MAX, PROBATION_JOBS, TERM_S, Book, Memory, Record, book
from quoreduce.errors import InputError
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import Standing

NOW = 1e9
WORKERS = [WorkerInfo(f"w{n}.0", f"core{n}", "local", n, 0, f"host/core{n}") for n in range(3)]
GOOD = Standing(judged=10, tallies={("map", 0, ""): [10, 0]})
LOST = Standing(judged=10, lost=1, tallies={("map", 0, ""): [10, 1]}, passed=1)
FAILED = Standing(judged=10, lost=1, failed=1, why="test")


def job(*standings: Standing, now: float = NOW, said: list[str] | None = None) -> dict[str, str]:
    """A job on as many cores; what it began with."""
    memory = Memory(WORKERS, True, (said if said is not None else []).append, now)
    known = memory.known()
    memory.note({f"core{n}": one for n, one in enumerate(standings)})
    return dict(known)


def state(core: int = 0) -> str:
    return book().read()[f"host/core{core}"].state


def test_jobs_without_faults_leave_no_trace() -> None:
    assert job(GOOD, GOOD) == {}
    assert not book().path.parent.exists()


def test_a_core_that_was_named_is_quarantined_in_the_next_job_and_others_are_not() -> None:
    job(FAILED, GOOD, LOST)
    assert [state(n) for n in range(3)] == ["quarantined", "ok", "suspect"]
    assert job(now=NOW + TERM_S - 1) == {"core0": "quarantined"}


def test_after_its_term_it_is_on_probation_and_after_clean_jobs_it_is_free() -> None:
    job(FAILED, GOOD)
    later = NOW + TERM_S + 1
    for n in range(PROBATION_JOBS):
        assert job(GOOD, GOOD, now=later + n) == {"core0": "probation"}
    assert job(now=later + 99) == {}
    assert state() == "ok"


def test_jobs_in_which_it_had_no_work_do_not_count() -> None:
    job(FAILED, GOOD)
    for n in range(2 * PROBATION_JOBS):
        job(Standing(), GOOD, now=NOW + TERM_S + 1 + n)
    assert job(now=NOW + TERM_S + 99) == {"core0": "probation"}


def test_a_second_quarantine_is_twice_as_long() -> None:
    for n in range(3):
        start = book().read()["host/core0"].until + 1 if n else NOW
        job(FAILED, GOOD, now=start)
        assert book().read()["host/core0"].until == start + TERM_S * 2**n


def test_a_passed_test_ends_a_quarantine_early_and_a_failed_one_begins_it() -> None:
    one = Record()
    one.tested(False, NOW)
    assert one.known(NOW) == "quarantined"
    one.tested(True, NOW)
    assert one.known(NOW) == "probation"
    one.tested(False, NOW)
    assert (one.known(NOW + 1.9 * TERM_S), one.times) == ("quarantined", 2)


def test_lost_votes_here_and_there_make_a_suspect_who_works_on_and_clean_jobs_clear_him() -> None:
    for n in range(5):
        assert job(LOST, LOST, LOST, now=NOW + n) == {}
    assert state() == "suspect"
    for n in range(PROBATION_JOBS):
        job(GOOD, GOOD, GOOD, now=NOW + 10 + n)
    assert state() == "ok"


def test_who_loses_a_vote_in_job_after_job_while_others_lose_none_is_quarantined_in_the_end() -> None:
    """Votes across jobs: no single job says enough."""
    jobs = 0
    while jobs < 100 and not job(LOST, GOOD, GOOD, now=NOW + jobs):
        jobs += 1
    assert 10 < jobs < 60
    assert state() == "quarantined"
    assert {state(1), state(2)} == {"ok"}


def test_two_domains_on_one_core_are_one_place() -> None:
    workers = [WorkerInfo(f"w{n}.0", f"worker{n}", "local", 0, 0, "host/core0") for n in range(2)]
    memory = Memory(workers, True, print, NOW)
    memory.note({"worker0": LOST, "worker1": FAILED})
    (record,) = book().read().values()
    assert (record.jobs, record.judged, record.lost, record.failed, record.state) == (1, 20, 2, 1, "quarantined")
    assert Memory(workers, True, print, NOW).known() == {"worker0": "quarantined", "worker1": "quarantined"}


def test_workers_without_a_place_and_jobs_that_want_no_record_have_none() -> None:
    for workers, wanted in (([WorkerInfo("w", "core0", "local")], True), (WORKERS, False)):
        memory = Memory(workers, wanted, print, NOW)
        memory.note({"core0": FAILED})
    assert not book().path.exists()


CORRUPT = (
    b"", b"{", b"[]", b"\xff" * 99,
    b'{"format": "other", "places": {}}', b'{"format": "quoreduce-suspects-1", "places": {"x": 7}}',
)  # fmt: skip


@pytest.mark.parametrize("raw", CORRUPT)
def test_a_corrupt_file_fails_no_job_is_reported_and_is_never_overwritten(raw: bytes) -> None:
    book().path.parent.mkdir(parents=True)
    book().path.write_bytes(raw)
    said: list[str] = []
    assert job(FAILED, GOOD, said=said) == {}
    assert book().path.read_bytes() == raw
    assert len(said) == 1
    assert "suspects --clear all" in said[0]
    with pytest.raises(InputError):
        book().read()
    assert book().clear() == book().path.with_name("suspects.json.unreadable")
    assert book().path.with_name("suspects.json.unreadable").read_bytes() == raw
    assert book().read() == {}


def test_a_file_that_breaks_while_the_job_runs_is_not_overwritten_either() -> None:
    job(FAILED)
    said: list[str] = []
    memory = Memory(WORKERS, True, said.append, NOW)
    book().path.write_bytes(b"broken")
    memory.note({"core1": FAILED})
    assert book().path.read_bytes() == b"broken"
    assert "not remembered" in said[0]


def test_a_state_folder_that_cannot_be_made_fails_no_job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QUOREDUCE_STATE", str(tmp_path / "file" / "state"))
    said: list[str] = []
    job(FAILED, said=said)
    assert said


def test_drivers_at_the_same_time_lose_nothing_of_each_other() -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: job(LOST, now=NOW + n), range(40)))
    record = book().read()["host/core0"]
    assert (record.jobs, record.lost) == (40, 40)
    assert sorted(os.listdir(book().path.parent)) == ["suspects.json", "suspects.lock"]


def test_the_file_is_bounded_and_forgets_who_has_long_been_without_blame() -> None:
    def many(places: dict[str, Record]) -> None:
        places |= {f"p{n}": Record(accused=NOW + n) for n in range(PLACES_MAX + 10)}
        places |= {"old": Record(accused=NOW - FORGET_S), "bad": Record("quarantined", accused=NOW - FORGET_S)}

    book().change(many, NOW)
    kept = book().read()
    assert len(kept) == PLACES_MAX
    assert "old" not in kept
    assert "bad" in kept
    assert "p0" not in kept


@given(st.lists(st.sampled_from((GOOD, LOST, FAILED, Standing())), max_size=60), st.integers(1, 10**6))
def test_whatever_happens_a_place_is_shut_out_for_a_bounded_time_only(standings: list[Standing], step: int) -> None:
    record, now = Record(), NOW
    for one in standings:
        now += step
        record.worked(one, now)
        assert record.state in ("ok", "suspect", "quarantined", "probation")
        assert record.until <= now + TERM_S * 2**suspects.TERM_DOUBLINGS_MAX
        assert record.lost <= record.judged
    assert record.known(record.until + 1) != "quarantined"


def test_the_file_is_plain_json_that_says_what_it_is() -> None:
    job(FAILED, GOOD)
    raw = json.loads(book().path.read_text())
    assert raw["format"] == "quoreduce-suspects-1"
    assert raw["places"]["host/core0"]["why"] == "test"
    assert Book(book().path).read() == book().read()
