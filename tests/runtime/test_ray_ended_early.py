"""A Ray of ours that is told to end while it starts: neither folders of its actors nor processes of it stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from runs import left_in

from quoreduce import interrupts, scratch
from quoreduce.protocol.options import Place
from quoreduce.runtime.connecting import _without_sigterm
from quoreduce.runtime.ray import RayExecutor
from quoreduce.strays import end_strays, strays

KILLED = """
import os, sys
from pathlib import Path
from quoreduce.scratch import make_folder
print(make_folder(Path(sys.argv[1]), "ray").path, flush=True)
os._exit(1)
"""


def test_starting_actors_leave_no_folder(ray_cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C when they have made their folder, and their answer is not there yet."""
    started: list[int] = []

    def interrupted(self: RayExecutor, actor: Any, end: float) -> Any:
        ray_cluster.get(actor.handle.info.remote())
        started.extend(len(left_in(folder)) for folder in tmp_path.glob("quoreduce-*"))
        raise KeyboardInterrupt

    monkeypatch.setattr(RayExecutor, "_settled", interrupted)
    executor = RayExecutor(Place("ray", 2, "worker", store=str(tmp_path)))
    with pytest.raises(KeyboardInterrupt):
        executor.start()
    executor.close()
    assert started == [1]
    assert left_in(tmp_path) == []


def test_sigterm_waits_while_ray_has_it_for_itself() -> None:
    """Between Ray's C++ taking it, to crash with a stack, and our taking it again."""
    crashed: list[int] = []

    def connect() -> None:
        signal.signal(signal.SIGTERM, lambda number, frame: crashed.append(number))
        signal.raise_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    interrupts.take()
    try:
        with pytest.raises(interrupts.Terminated), interrupts.scope():
            _without_sigterm(connect)()
        assert crashed == []
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        interrupts.give_back()
        signal.signal(signal.SIGTERM, before)


def test_the_next_session_ends_what_a_killed_ray_left(tmp_path: Path) -> None:
    """The process that started Ray was killed; its folder is dead, and an agent writes there still."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, text=True, check=False)
    folder = Path(done.stdout.strip())
    with open(folder / "agent.err", "wb") as file:
        agent = subprocess.Popen(["sleep", "100"], stderr=file)
    try:
        scratch.sweep(tmp_path)
        assert agent.wait(10) == -9
        assert left_in(tmp_path) == []
    finally:
        agent.kill()


def test_what_writes_into_the_folder_of_a_dead_ray_is_ended(tmp_path: Path) -> None:
    """Its agents, which have its log files open; not what merely reads them."""
    log = tmp_path / "ray" / "logs" / "raylet.err"
    log.parent.mkdir(parents=True)
    with open(log, "wb") as file:
        agent = subprocess.Popen(["sleep", "100"], stderr=subprocess.DEVNULL, pass_fds=[file.fileno()])
    with open(log, "rb") as file, subprocess.Popen(["sleep", "100"], stdin=file, stderr=subprocess.DEVNULL) as reader:
        try:
            assert list(strays(tmp_path / "ray")) == [agent.pid]
            end_strays(tmp_path / "ra")
            assert agent.poll() is None, "another folder"
            end_strays(tmp_path / "ray")
            assert agent.wait(10) == -9
            assert reader.poll() is None
            assert list(strays(tmp_path / "ray")) == []
        finally:
            reader.kill()
            agent.kill()
