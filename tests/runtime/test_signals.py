"""Signals, forks and the ends of processes: whatever comes, nothing of ours stays, and the exit status says what it
was.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import library_script
import pytest
from blocking import Command, Gate
from runs import WORDCOUNT, left_in, parts_of, poll, running

from quoreduce import Options, Session, interrupts
from quoreduce.errors import HostError, UsageError
from quoreduce.interrupts import Terminated, held, scope
from quoreduce.protocol.options import Place

TIMEOUT_S = 120
INT, TERM, HUP = signal.SIGINT, signal.SIGTERM, signal.SIGHUP


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    gate = Gate(tmp_path / "gate")
    yield gate
    gate.close()


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Signals as the system has them, whatever sessions and clusters other tests have open in this process."""
    before = {number: signal.getsignal(number) for number in interrupts.SIGNALS}
    monkeypatch.setattr(interrupts, "_state", interrupts._State())
    for number, handler in interrupts._DEFAULTS.items():
        signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def taken(untouched: None) -> Iterator[None]:
    """Our handlers, in this process."""
    interrupts.take()
    yield
    interrupts.give_back()


def send(number: int) -> None:
    signal.raise_signal(number)  # to this thread: another one of this process would take it later


def test_the_first_signal_is_raised_and_the_rest_ignored_until_all_is_left(taken: None) -> None:
    def interrupted(first: int) -> None:
        with scope():
            try:
                send(first)
            finally:
                send(INT)
                send(HUP)

    with pytest.raises(Terminated) as caught:
        interrupted(TERM)
    assert caught.value.code == 143
    with pytest.raises(KeyboardInterrupt):
        interrupted(INT)


def test_a_signal_raises_anew_if_the_first_one_was_lost(taken: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised in a ``__del__`` or a callback of C goes no further."""
    now = 0.0
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: now)

    def work() -> None:
        nonlocal now
        with scope():
            with contextlib.suppress(KeyboardInterrupt):
                send(INT)
            send(INT)  # wants the same
            now = interrupts.AGAIN_S
            with held():
                send(TERM)
                send(INT)

    with pytest.raises(Terminated) as caught:
        work()
    assert caught.value.code == 143


def test_in_a_section_that_is_held_a_signal_waits(taken: None) -> None:
    done = []

    def work(error: Exception | None) -> None:
        with scope(), held():
            with held():
                send(HUP)
                send(INT)
                done.append("inner")
            done.append("outer")
            if error is not None:
                raise error

    for error in (None, ValueError()):
        with pytest.raises(Terminated) as caught:
            work(error)
        assert caught.value.code == 129
    assert done == ["inner", "outer"] * 2


def test_a_signal_that_comes_while_the_process_forks_is_not_lost(monkeypatch: pytest.MonkeyPatch, taken: None) -> None:
    """What a hook raises that runs at a fork is printed and forgotten."""
    lock = logging._lock  # type: ignore[attr-defined]

    class Lock:
        """That of ``logging``, which a hook of its own lets go after a fork; a signal comes meanwhile."""

        def acquire(self) -> None:
            lock.acquire()

        def release(self) -> None:
            lock.release()
            send(HUP)

    def work() -> None:
        with scope():
            monkeypatch.setattr(logging, "_lock", Lock())
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            monkeypatch.setattr(logging, "_lock", lock)
            os.waitpid(pid, 0)
            poll(lambda: False, "the signal")

    with pytest.raises(Terminated) as caught:
        work()
    assert caught.value.code == 129


def test_what_a_library_makes_of_it_is_undone(taken: None) -> None:
    """Ray turns any SystemExit into one with status 1."""

    def work() -> None:
        with scope():
            try:
                send(TERM)
            except SystemExit:
                raise SystemExit(1) from None

    with pytest.raises(Terminated) as caught:
        work()
    assert caught.value.code == 143


def test_only_signals_that_nobody_handles_are_taken_and_they_are_given_back(untouched: None) -> None:
    def theirs(*_: object) -> None:
        heard.append(1)

    heard: list[int] = []
    signal.signal(TERM, theirs)
    signal.signal(HUP, signal.SIG_IGN)
    with Session(Place("inline")):
        send(TERM)
        send(HUP)
        assert heard == [1]
        assert signal.getsignal(INT) is interrupts._handle
        signal.signal(INT, theirs)
    assert signal.getsignal(INT) is theirs, "it was installed meanwhile"
    assert signal.getsignal(TERM) is theirs
    defaults = {INT: signal.default_int_handler, TERM: signal.SIG_DFL, HUP: signal.SIG_DFL}
    for number, handler in defaults.items():
        signal.signal(number, handler)
    with Session(Place("inline")):
        assert signal.getsignal(TERM) is interrupts._handle
    assert {number: signal.getsignal(number) for number in defaults} == defaults


class Script:
    """The script in a process of its own, with its session open."""

    def __init__(self, store: Path, what: str) -> None:
        command = [sys.executable, library_script.__file__, str(store), what]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        assert said, self.process.communicate()
        *self.workers, self.child = map(int, said.split())

    def end(self, number: int | None) -> tuple[int, str]:
        if number is not None:
            self.process.send_signal(number)
        _, said = self.process.communicate("" if number else "\n", timeout=TIMEOUT_S)
        return self.process.returncode, said


@pytest.mark.parametrize(
    ("what", "number", "code"),
    [
        ("ends", None, 0),
        ("raises", None, 1),
        ("ends", TERM, 143),
        ("ends", HUP, 129),
        ("ends", INT, -INT),
        ("handler", TERM, 7),
    ],
)
def test_a_script_that_does_not_close_its_session_leaves_nothing(
    what: str, number: int | None, code: int, tmp_path: Path
) -> None:
    script = Script(tmp_path / "store", what)
    assert left_in(tmp_path / "store") != []
    assert script.end(number)[0] == code
    assert left_in(tmp_path / "store") == []
    assert not any(map(running, script.workers))


def test_workers_end_with_their_driver_although_a_forked_process_lives_on(tmp_path: Path) -> None:
    script = Script(tmp_path / "store", "fork")
    script.process.kill()
    script.process.wait()
    poll(lambda: not any(map(running, script.workers)), "the workers to end")
    poll(lambda: left_in(tmp_path / "store") == [], "the store to go")
    assert running(script.child)
    script.process.communicate("\n", timeout=TIMEOUT_S)


def test_a_session_belongs_to_the_process_that_opened_it(untouched: None, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"to be or not to be\n" * 50)

    def count(session: Session, name: str) -> list[bytes]:
        session.run(WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / name), Options(reducers=1))
        return parts_of(tmp_path / name)

    with Session(Place("local", 2, "worker", store=str(tmp_path / "store"))) as session:
        child = os.fork()
        if child == 0:
            code = 9
            try:
                with pytest.raises(UsageError, match=f"this Session belongs to process {os.getppid()}"):
                    count(session, "theirs")
                session.close()
                assert signal.getsignal(TERM) is signal.SIG_DFL
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert left_in(tmp_path / "store") != []
        assert count(session, "out") == [b"be\t100\nnot\t50\nor\t50\nto\t100\n"]
    assert left_in(tmp_path / "store") == []


@pytest.mark.parametrize(
    "numbers",
    [(HUP,), (TERM, INT, HUP, TERM), (INT, INT), (HUP, TERM, INT)],
    ids=lambda numbers: "-".join(map(str, numbers)),
)
def test_a_command_that_hears_signals_leaves_nothing(numbers: tuple[int, ...], gate: Gate, tmp_path: Path) -> None:
    command = Command(gate, tmp_path)
    for number in numbers[:-1]:
        command.process.send_signal(number)
    returned, stdout, stderr = command.end(signal.Signals(numbers[-1]))
    firsts = {
        128 + number for number in numbers
    }  # which one is heard first is the system's choice, if several are waiting
    assert returned in firsts
    assert stdout == ""
    text = "interrupted" if returned == 130 else "terminated"
    assert stderr == f"quoreduce: {text}, nothing was published\n"
    assert left_in(command.outputs) == []
    assert left_in(command.store) == []
    assert not any(map(running, command.workers))


def test_a_command_that_is_to_outlive_its_terminal_does(gate: Gate, tmp_path: Path) -> None:
    before = signal.signal(HUP, signal.SIG_IGN)  # as nohup does: what is ignored stays so in what is started
    try:
        command = Command(gate, tmp_path)
    finally:
        signal.signal(HUP, before)
    command.process.send_signal(HUP)
    gate.open()
    _, stderr = command.process.communicate(timeout=TIMEOUT_S)
    assert command.process.returncode == 0, stderr
    assert parts_of(command.outputs / "out") == [gate.right]


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(TERM, 143), (HUP, 129)])
def test_a_command_on_ray_says_the_same(number: signal.Signals, code: int, gate: Gate, tmp_path: Path) -> None:
    command = Command(gate, tmp_path, "ray")
    returned, stdout, stderr = command.end(number)
    assert (returned, stdout) == (code, "")
    assert stderr.splitlines()[-1] == "quoreduce: terminated, nothing was published"
    assert left_in(command.outputs) == []
    assert left_in(command.store) == []
    poll(lambda: not any(map(running, command.workers)), "the actors to end")


@pytest.mark.parametrize("on", ["inline", "local"])
def test_a_store_that_was_deleted_between_jobs_is_the_environments_fault(on: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(b"to be or not to be\n" * 50)
    with Session(Place(on, 2, "worker", store=str(tmp_path / "store"))) as session:  # type: ignore[arg-type]
        session.run(WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / "outputs" / "out"), Options())
        (folder,) = (tmp_path / "store").glob("quoreduce-*/session-*")
        shutil.rmtree(folder)
        with pytest.raises(HostError, match=rf"the folder for blocks {folder}/.* is gone: something deleted it"):
            session.run(WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / "outputs" / "again"), Options())
    assert left_in(tmp_path / "outputs") == ["out"]


@pytest.mark.parametrize("what", ["store", "staging"])
def test_what_is_deleted_under_a_run_is_the_environments_fault(what: str, gate: Gate, tmp_path: Path) -> None:
    command = Command(gate, tmp_path)
    if what == "store":
        victims = list(command.store.glob("quoreduce-*/session-*"))
    else:
        victims = list(command.outputs.glob(".out.*.staging"))
    (victim,) = victims
    subprocess.run(["rm", "-rf", str(victim)], check=True)
    for pid in command.workers if what == "store" else ():
        os.kill(pid, signal.SIGKILL)  # so that what is gone is needed once more
    gate.open()
    _, stderr = command.process.communicate(timeout=TIMEOUT_S)
    assert command.process.returncode in (2, 4)
    assert "not deterministic" not in stderr
    assert str(victim) in stderr
    assert "is gone: something deleted it" in stderr
    assert stderr.count("\n") == 1
    assert left_in(command.outputs) == []
    assert left_in(command.store) == []
