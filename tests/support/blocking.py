"""A job whose reduces say where they run, and then wait until they are let go: so that a test can kill one in the
middle.

The test holds both ends of two fifos, so nobody blocks on opening them: a reduce writes its pid to ``started`` and
reads one byte from ``gate``. The command line runs the same job as ``blocking.py:JOB`` with BLOCKING_FOLDER set.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from quoreduce import Job

EXECUTIONS_MAX = 64
TIMEOUT_S = 120


def blocking_job(folder: str) -> Job:
    """Count equal lines. Key ``wait`` is in partition 0, and its reduces stop at the gate; other keys are in the last
    one.
    """

    def map_line(line: bytes) -> Iterator[tuple[str, int]]:
        yield line.decode(), 1

    def reduce_counts(key: str, values: list[int]) -> Iterator[tuple[str, int]]:
        if key == "wait":
            with open(f"{folder}/started", "wb", buffering=0) as started:
                started.write(b"%d\n" % os.getpid())
            with open(f"{folder}/gate", "rb", buffering=0) as gate:
                gate.read(1)
        yield key, sum(values)

    def partition(key: str, reducers: int) -> int:
        return 0 if key == "wait" else reducers - 1

    return Job("blocking", map_line, reduce_counts, partition=partition)


class Gate:
    """The test's ends of the fifos."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self._started = self._make("started")
        self._gate = self._make("gate")
        self.text = folder / "text"
        self.text.write_text("a\nb\nwait\na\nwait\nc\n" * 50)
        self.right = b"a\t100\nb\t50\nc\t50\nwait\t100\n"
        self._rest = b""

    def _make(self, name: str) -> int:
        os.mkfifo(self.folder / name)
        return os.open(self.folder / name, os.O_RDWR | os.O_CLOEXEC)

    def reached(self) -> int:
        """Wait until a reduce stands at the gate, and return the pid of its process."""
        while b"\n" not in self._rest:
            self._rest += os.read(self._started, 4096)
        pid, _, self._rest = self._rest.partition(b"\n")
        return int(pid)

    def open(self) -> None:
        """Let everybody go, now and later."""
        os.write(self._gate, b"." * EXECUTIONS_MAX)

    def close(self) -> None:
        os.close(self._started)
        os.close(self._gate)


class Command:
    """The command line in a process of its own, with the blocking job at the gate."""

    def __init__(self, gate: Gate, tmp_path: Path, on: str = "local") -> None:
        self.store, self.outputs = tmp_path / "store", tmp_path / "outputs"
        self.store.mkdir()
        self.outputs.mkdir()
        self.arguments = [
            "run", f"{__file__}:JOB", str(gate.text), str(self.outputs / "out"), "--on", on, "--workers", "2",
            "--domain", "worker", "--reducers", "1", "--store", str(self.store),
        ]  # fmt: skip
        environment = {**os.environ, "BLOCKING_FOLDER": str(gate.folder), "PYTHONPATH": str(Path(__file__).parent)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "quoreduce.cli", *self.arguments], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.workers = [gate.reached(), gate.reached()]

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        self.process.send_signal(number)
        stdout, stderr = self.process.communicate(timeout=TIMEOUT_S)
        return self.process.returncode, stdout, stderr


JOB = blocking_job(os.environ.get("BLOCKING_FOLDER", "."))
