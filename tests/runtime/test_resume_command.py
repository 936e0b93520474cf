"""A durable job whose driver is killed goes on by ``quoreduce resume``, which says what it did."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import blocking
import pytest
from blocking import Gate
from durables import agreed_in, journal_of, staging
from runs import left_in, parts_of, poll, running

import quoreduce
from quoreduce import Session
from quoreduce.cli import main
from quoreduce.protocol.options import Place

TIMEOUT_S = 120


class Command:
    """The command line in a process of its own, with the blocking job at the gate."""

    def __init__(self, gate: Gate, tmp_path: Path, out: Path) -> None:
        self.store = tmp_path / "store"
        self.environment = {**os.environ, "BLOCKING_FOLDER": str(gate.folder), "PYTHONPATH": os.pathsep.join(sys.path)}
        words = [
            "run", f"{blocking.__file__}:JOB", str(gate.text), str(out), "--on", "local", "--workers", "2", "--domain",
            "worker", "--reducers", "1", "--store", str(self.store), "--durable",
        ]  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quoreduce.cli", *words], env=self.environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.workers = [gate.reached(), gate.reached()]

    def end(self, number: signal.Signals) -> tuple[int, str]:
        self.process.send_signal(number)
        _, stderr = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, stderr


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path / "gate")


@pytest.mark.parametrize(
    ("number", "code", "says"),
    [(signal.SIGKILL, -9, ""),
     (signal.SIGINT, 130, "quoreduce: interrupted, nothing was published; what was agreed on is kept: "),
     (signal.SIGTERM, 143, "quoreduce: terminated, nothing was published; what was agreed on is kept: ")],
)  # fmt: skip
def test_a_driver_that_is_killed_while_workers_reduce(
    number: signal.Signals, code: int, says: str, gate: Gate, tmp_path: Path, out: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The maps were agreed on: resumed, the reduce is all that is executed; the job's code comes from the journal."""
    command = Command(gate, tmp_path, out)
    returned, stderr = command.end(number)
    assert returned == code
    assert stderr == (says and f"{says}quoreduce resume {out}\n")
    poll(lambda: not any(map(running, command.workers)), "the workers to end")
    assert left_in(out.parent) in ([staging(out).name], [staging(out).name, ".out.lock"])
    gate.open()
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert main(["resume", str(out), "--inline"]) == 0, capsys.readouterr().err
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "resumed: 1 tasks were agreed on before, and taken over"
    assert "on inline" in said[2]
    assert "executions: map 0 reduce 2 (0 more than planned)" in said[2]
    assert parts_of(out) == [gate.right]
    assert left_in(out.parent) == ["out"]
    gate.close()


def test_resume_is_public_and_goes_on_where_the_job_was(half_done: Session, out: Path, expected: list[bytes]) -> None:
    result = quoreduce.resume(str(out))
    assert (result.on, result.recovered > 0) == ("inline", True)
    assert parts_of(out) == expected


def test_resume_says_what_it_did_as_json(
    half_done: Session, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    taken = agreed_in(journal_of(out))
    assert main(["resume", str(out), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["recovered"] == len(taken)


def test_where_a_job_goes_on(half_done: Session, out: Path) -> None:
    from quoreduce.driver.durable import reopen

    with reopen(str(out)) as life:
        before = life.where()
        assert before.on == "inline"
        assert life.where(workers=7).workers == 7
        assert life.where(on="local") == Place("local")
