"""Processes that are killed in the middle of a reduce: the right output or none, and nothing left behind (R8, R9)."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from blocking import TIMEOUT_S, Command, Gate, blocking_job
from runs import left_in, parts_of, poll, running

from quoreduce import Options, Result, Session
from quoreduce.cli import main
from quoreduce.protocol.options import Place


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


class Running(threading.Thread):
    """Runs the blocking job in another thread."""

    def __init__(self, session: Session, gate: Gate, output: Path, **options: object) -> None:
        super().__init__(daemon=True)
        self._call = lambda: session.run(
            blocking_job(str(gate.folder)), [str(gate.text)], str(output), Options(**{"reducers": 1, **options})  # type: ignore[arg-type]
        )  # fmt: skip
        self._result: Result | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - raised again by whoever asks for the result
            self._error = error

    def result(self) -> Result:
        self.join(TIMEOUT_S)
        assert not self.is_alive(), "the job did not end"
        if self._error is not None:
            raise self._error
        assert self._result is not None
        return self._result


@pytest.mark.parametrize(
    ("mode", "victim"), [("original", 0), ("bft", 1), pytest.param("bft", 0, marks=pytest.mark.nightly)]
)
@pytest.mark.parametrize("on", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_worker_is_killed_while_it_reduces(
    on: str, mode: str, victim: int, gate: Gate, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """kill -9, nothing simulated: a replacement executes the reduce once more."""
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    store, output = tmp_path / "store", tmp_path / "outputs" / "out"
    replicas = 1 if mode == "original" else 2
    with Session(Place(on, 2, "worker", store=str(store))) as session:  # type: ignore[arg-type]
        job = Running(session, gate, output, mode=mode)
        pids = [gate.reached() for _ in range(replicas)]
        assert set(pids) <= {info.pid for info in session.workers}
        os.kill(pids[victim], signal.SIGKILL)
        gate.open()
        result = job.result()
        workers = {info.pid for info in session.workers}
        assert len(workers) == 2
    assert parts_of(output) == [gate.right]
    assert result.executions == {"map": replicas, "reduce": replicas + 1}
    assert result.faults.detected == result.faults.masked == 1
    assert left_in(output.parent) == ["out"]
    assert left_in(store) == []
    poll(lambda: not any(map(running, workers | set(pids))), "the workers to end")


def test_both_workers_are_killed_while_they_reduce(gate: Gate, tmp_path: Path) -> None:
    """What the first replicas stored survives them: the maps are not executed again."""
    store, output = tmp_path / "store", tmp_path / "outputs" / "out"
    with Session(Place("local", 2, "worker", store=str(store))) as session:
        job = Running(session, gate, output)
        for pid in [gate.reached(), gate.reached()]:
            os.kill(pid, signal.SIGKILL)
        gate.open()
        result = job.result()
    assert parts_of(output) == [gate.right]
    assert result.executions == {"map": 2, "reduce": 4}
    assert left_in(store) == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_command_leaves_nothing(number: signal.Signals, code: int, gate: Gate, tmp_path: Path) -> None:
    command = Command(gate, tmp_path)
    returned, stdout, stderr = command.end(number)
    assert (returned, stdout) == (code, "")
    assert stderr == f"quoreduce: {'interrupted' if code == 130 else 'terminated'}, nothing was published\n"
    assert left_in(command.outputs) == []
    assert left_in(command.store) == []
    assert not any(map(running, command.workers))


def test_workers_of_a_killed_driver_end_by_themselves(
    gate: Gate, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """They delete the store. What the driver kept beside the output is swept by the next run that writes there."""
    command = Command(gate, tmp_path)
    assert left_in(command.store) != []
    assert command.end(signal.SIGKILL)[0] == -signal.SIGKILL
    poll(lambda: not any(map(running, command.workers)), "the workers to end")
    poll(lambda: left_in(command.store) == [], "the store to be deleted")
    assert "out" not in left_in(command.outputs)
    gate.open()
    monkeypatch.setenv("BLOCKING_FOLDER", str(gate.folder))
    arguments = [a if a != "local" else "inline" for a in command.arguments]
    assert main(arguments) == 0, capsys.readouterr().err
    assert parts_of(command.outputs / "out") == [gate.right]
    assert left_in(command.outputs) == ["out"]


@pytest.mark.slow
def test_interrupted_command_on_ray_leaves_nothing(gate: Gate, tmp_path: Path) -> None:
    """A local Ray of its own goes with the command, and so do its actors."""
    command = Command(gate, tmp_path, "ray")
    returned, stdout, stderr = command.end(signal.SIGINT)
    assert (returned, stdout) == (130, "")
    assert "Traceback" not in stderr
    assert stderr.splitlines()[-1] == "quoreduce: interrupted, nothing was published"
    assert left_in(command.outputs) == []
    assert left_in(command.store) == []
    poll(lambda: not any(map(running, command.workers)), "the actors to end")


def test_a_session_with_nothing_to_do_leaves_nothing(tmp_path: Path) -> None:
    with Session(Place("local", 2, "worker", store=str(tmp_path / "store"))) as session:
        pids = [info.pid for info in session.workers]
        assert all(map(running, pids))
    assert left_in(tmp_path / "store") == []
    assert not any(map(running, pids))
