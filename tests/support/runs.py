"""What the tests of the engine share: executors, jobs, expected outputs, and a look at what a run left behind."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from threading import Event

import pytest

from quoreduce import Job, Options, Result, Session
from quoreduce.jobs.sort import JOB as SORT
from quoreduce.jobs.wordcount import JOB as WORDCOUNT

__all__ = [
    "EXECUTORS", "SORT", "WORDCOUNT", "Runner", "Sessions", "beginning", "coreutils", "counted", "left_in", "parts_of",
    "poll", "running",
]  # fmt: skip

EXECUTORS = ("inline", "local", pytest.param("ray", marks=pytest.mark.ray))
POLL_S = 0.02
POLL_MAX = 3000  # a bound on waiting, not an expectation: 60 s

Sessions = Callable[..., Session]


def parts_of(output: Path) -> list[bytes]:
    """The bytes of all parts, in order."""
    return [path.read_bytes() for path in sorted(output.glob("part-*"))]


def beginning(text: Path, megabytes: float, folder: Path) -> Path:
    """The first megabytes of a text, as a file in ``folder``."""
    path = folder / "beginning.txt"
    path.write_bytes(text.read_bytes()[: int(megabytes * 1e6)])
    return path


class Runner:
    """Runs jobs in the shared sessions, each into a folder of its own, which holds nothing but the output
    afterwards.
    """

    def __init__(self, sessions: Sessions, folder: Path) -> None:
        self._sessions = sessions
        self._folder = folder
        self._runs = 0

    def __call__(
        self, on: str, job: Job, inputs: Path | str | Sequence[str], *, workers: int = 2, **options: object
    ) -> tuple[Result, list[bytes]]:
        self._runs += 1
        parent = self._folder / f"run{self._runs}"
        output = parent / "out"
        sources = [str(inputs)] if isinstance(inputs, Path | str) else list(inputs)
        try:
            result = self._sessions(on, workers).run(job, sources, str(output), Options(**options))  # type: ignore[arg-type]
        except BaseException:
            assert left_in(parent) == [], "a job that failed leaves nothing (R8)"
            raise
        assert left_in(parent) == ["out"], "a job leaves its output and nothing else (R8)"
        return result, parts_of(output)


def coreutils(text: bytes) -> list[tuple[bytes, int]]:
    """What ``tr -s | sort | uniq -c`` count: (word, count) in the order of the words' bytes."""
    command = r"tr -s ' \t\n\r\f' '\n' | sort | uniq -c"
    done = subprocess.run(
        ["sh", "-c", command], input=text, capture_output=True, check=True, env={**os.environ, "LC_ALL": "C"}
    )
    lines = [line.lstrip(b" ").partition(b" ") for line in done.stdout.split(b"\n")[:-1]]
    return [(word, int(count)) for count, _, word in lines if word]


def counted(parts: Iterable[bytes]) -> list[tuple[bytes, int]]:
    """The counts in the parts of a word count's output, sorted by word."""
    lines = [line.split(b"\t") for part in parts for line in part.split(b"\n")[:-1]]
    return sorted((word, int(count)) for word, count in lines)


def left_in(folder: Path) -> list[str]:
    """Names in a folder, hidden ones too; [] if there is no such folder."""
    return sorted(os.listdir(folder)) if folder.is_dir() else []


def poll(condition: Callable[[], object], what: str) -> None:
    """Wait until ``condition`` holds; fail after a bounded number of looks."""
    pause = Event()
    for _ in range(POLL_MAX):
        if condition():
            return
        pause.wait(POLL_S)
    pytest.fail(f"waited in vain: {what}")


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")
