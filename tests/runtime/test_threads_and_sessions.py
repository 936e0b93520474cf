"""Threads that share a session take turns; sessions of their own run at once; a close stops what runs."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import cloudpickle
import pytest
from blocking import Gate
from runs import SORT, WORDCOUNT, counted, left_in, parts_of, poll
from test_killed_in_the_middle import Running

from quoreduce import Job, Options, Session
from quoreduce.driver.figures import Progress
from quoreduce.errors import UsageError
from quoreduce.protocol.options import Place
from quoreduce.runtime import session as session_module
from quoreduce.runtime.session import pickle_job

Counts = list[tuple[bytes, int]]
TIMEOUT_S = 120.0  # a bound, not an expectation
SCRIPT_TIMEOUT_S = 240.0
JOBS = 4


class Threads:
    """Calls in threads of their own; ``end`` waits for all and gives what each of them returned or raised."""

    def __init__(self, *calls: Callable[[], object]) -> None:
        self._ends: list[object] = [None] * len(calls)
        self._threads = [
            threading.Thread(target=self._run, args=(i, call), daemon=True) for i, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, i: int, call: Callable[[], object]) -> None:
        try:
            self._ends[i] = call()
        except BaseException as error:  # noqa: BLE001 - it is looked at by the test
            self._ends[i] = error

    def end(self) -> list[object]:
        for thread in self._threads:
            thread.join(TIMEOUT_S)
            assert not thread.is_alive(), "a thread hangs"
        return self._ends


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.open()
    gate.close()


def run_many(session: Session, job: Job, text: Path, folder: Path, **options: object) -> list[list[bytes]]:
    """Run a job several times, and return the parts of each."""
    found = []
    for i in range(JOBS):
        output = folder / f"{job.name}{i}" / "out"
        output.parent.mkdir(parents=True)
        session.run(job, [str(text)], str(output), Options(reducers=2, **options))  # type: ignore[arg-type]
        found.append(parts_of(output))
    return found


def check_both(ends: list[object], verses_counted: Counts, records_sorted: bytes, folder: Path) -> None:
    errors = [end for end in ends if isinstance(end, BaseException)]
    assert errors == []
    words, sorts = ends
    assert [counted(parts) for parts in words] == [verses_counted] * JOBS  # type: ignore[attr-defined]
    assert [b"".join(parts) for parts in sorts] == [records_sorted] * JOBS  # type: ignore[attr-defined]
    assert all(left_in(one) == ["out"] for one in folder.glob("*[0-9]"))


@pytest.mark.parametrize("on", ["inline", "local"])
def test_threads_that_share_a_session_take_turns(
    on: str, verses: Path, verses_counted: Counts, records: Path, records_sorted: bytes, tmp_path: Path
) -> None:
    with Session(Place(on, 2, "worker")) as session:  # type: ignore[arg-type]
        threads = Threads(
            lambda: run_many(session, WORDCOUNT, verses, tmp_path, split_mb=0.004),
            lambda: run_many(session, SORT, records, tmp_path, split_mb=0.03),
        )
        check_both(threads.end(), verses_counted, records_sorted, tmp_path)


@pytest.mark.parametrize("on", ["inline", "local"])
def test_sessions_in_threads_run_at_once(
    on: str, verses: Path, verses_counted: Counts, records: Path, records_sorted: bytes, tmp_path: Path
) -> None:
    def run(job: Job, text: Path, split_mb: float) -> list[list[bytes]]:
        with Session(Place(on, 2, "worker")) as session:  # type: ignore[arg-type]
            return run_many(session, job, text, tmp_path, split_mb=split_mb)

    threads = Threads(lambda: run(WORDCOUNT, verses, 0.004), lambda: run(SORT, records, 0.03))
    check_both(threads.end(), verses_counted, records_sorted, tmp_path)


@pytest.mark.ray
@pytest.mark.nightly
def test_sessions_on_one_ray_of_their_own(verses: Path, verses_counted: Counts, tmp_path: Path) -> None:
    """The first of them to close leaves Ray to the others; the last one stops it. Another Ray is refused meanwhile."""
    script = Path(__file__).parent / "two_ray_sessions_script.py"
    done = subprocess.run(
        [sys.executable, str(script), str(verses), str(tmp_path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=SCRIPT_TIMEOUT_S, check=False, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert seen["refused"] == "UsageError"
    assert (seen["after_first"], seen["after_last"]) == (True, False)
    for name in ("first", "second", "later"):
        assert counted(parts_of(tmp_path / name)) == verses_counted


def test_close_stops_the_job_of_another_thread(gate: Gate, tmp_path: Path) -> None:
    session = Session(Place("local", 2, "worker")).__enter__()
    (tmp_path / "it").mkdir()
    job = Running(session, gate, tmp_path / "it" / "out", deadline_s=TIMEOUT_S)
    gate.reached()
    session.close()
    with pytest.raises(UsageError, match="closed while the job ran"):
        job.result()
    assert left_in(tmp_path / "it") == []
    assert session.domains
    session.close()  # a second time: nothing


def test_close_sends_away_who_waits(gate: Gate, verses: Path, tmp_path: Path) -> None:
    session = Session(Place("local", 2, "worker")).__enter__()
    job = Running(session, gate, tmp_path / "out", deadline_s=TIMEOUT_S)
    gate.reached()
    waiting = Threads(lambda: session.run(WORDCOUNT, [str(verses)], str(tmp_path / "other")))
    poll(lambda: len(session._turns._threads) == 2, "the second thread's turn to be asked for")
    session.close()
    (end,) = waiting.end()
    assert isinstance(end, UsageError)
    assert "closed" in str(end)
    with pytest.raises(UsageError):
        job.result()
    assert not (tmp_path / "other").exists()


def test_a_closed_session_says_so_and_can_be_entered_again(
    verses: Path, verses_counted: Counts, tmp_path: Path
) -> None:
    session = Session(Place("inline", 2, "worker"))
    for name in ("first", "second"):
        with session:
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / name))
        assert counted(parts_of(tmp_path / name)) == verses_counted
        with pytest.raises(UsageError, match="closed"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "other"))


def test_a_session_is_entered_once_at_a_time(verses: Path, verses_counted: Counts, tmp_path: Path) -> None:
    with Session(Place("inline", 2, "worker")) as session:
        with pytest.raises(UsageError, match="open already"), session:
            pass
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"))
    assert counted(parts_of(tmp_path / "out")) == verses_counted


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_report_cannot_begin_another_job(on: str, verses: Path, verses_counted: Counts, tmp_path: Path) -> None:
    refused: list[str] = []

    def report(progress: Progress) -> None:
        if not refused:
            with pytest.raises(UsageError) as caught:
                session.run(WORDCOUNT, [str(verses)], str(tmp_path / "nested"))
            refused.append(str(caught.value))

    with Session(Place(on, 2, "worker")) as session:  # type: ignore[arg-type]
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), report=report)
    assert "report callback" in refused[0]
    assert counted(parts_of(tmp_path / "out")) == verses_counted
    assert not (tmp_path / "nested").exists()


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_report_that_closes_its_session_ends_the_job(on: str, verses: Path, tmp_path: Path) -> None:
    (tmp_path / "it").mkdir()
    session = Session(Place(on, 2, "worker")).__enter__()  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="closed while the job ran"):
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "it" / "out"), report=lambda progress: session.close())
    assert left_in(tmp_path / "it") == []


def test_a_session_that_cannot_start_is_closed(monkeypatch: pytest.MonkeyPatch, verses: Path, tmp_path: Path) -> None:
    session = Session(Place("inline", 2, "node"))
    with pytest.raises(UsageError, match="domains in name only"):
        session.__enter__()
    with pytest.raises(UsageError, match="closed"):
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"))


@pytest.fixture
def script(tmp_path: Path) -> Iterator[ModuleType]:
    """A module that is not installed, with a job."""
    path = tmp_path / "script_of_a_user.py"
    path.write_text(
        "from quoreduce import Job\ndef m(line):\n    yield line, 1\n"
        "def r(k, v):\n    yield k, sum(v)\nJOB = Job('j', m, r)\n"
    )
    spec = importlib.util.spec_from_file_location("script_of_a_user", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["script_of_a_user"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["script_of_a_user"]


def test_jobs_of_one_script_are_pickled_in_two_threads(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one thread pickles the other may not take the module from the register."""
    dumps, first, second = cloudpickle.dumps, threading.Event(), threading.Event()
    alone = pickle_job(script.JOB)

    def slow(job: Job) -> bytes:
        """The first thread is in here until the other is done, or waits for its turn."""
        if not first.is_set():
            first.set()
            poll(lambda: second.is_set() or session_module._PICKLING.locked(), "the other thread")
        return bytes(dumps(job))

    def other() -> bytes:
        first.wait(TIMEOUT_S)
        raw = pickle_job(script.JOB)
        second.set()
        return raw

    monkeypatch.setattr(session_module.cloudpickle, "dumps", slow)
    assert Threads(lambda: pickle_job(script.JOB), other).end() == [alone, alone]
    assert cloudpickle.list_registry_pickle_by_value() == set()


def test_modules_that_the_user_registered_stay_registered(script: ModuleType) -> None:
    cloudpickle.register_pickle_by_value(script)
    try:
        pickle_job(script.JOB)
        assert cloudpickle.list_registry_pickle_by_value() == {"script_of_a_user"}
    finally:
        cloudpickle.unregister_pickle_by_value(script)


def test_a_process_that_was_forked_from_one_with_ray_is_told_so() -> None:
    """The connection does not work there: it waited for ever."""
    code = (
        "import os, quoreduce.runtime.ray as r; from quoreduce import Session\n"
        "from quoreduce.protocol.options import Place\n"
        "r._CONNECTION.users, r._CONNECTION.address = 1, r.LOCAL\n"
        "if os.fork() == 0:\n"
        "    try: Session(Place('ray')).__enter__()\n"
        "    except Exception as error: print(type(error).__name__, error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait(); print(r._CONNECTION.users)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"UsageError this process was forked from one that uses Ray, .*\n1\n", done.stdout), done.stdout
