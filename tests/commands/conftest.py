"""The command line, called in this process: what it prints and returns is what its own process would."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from quoreduce.cli import main


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one line on stderr, with nothing on stdout."""
        assert self.stdout == ""
        assert self.stderr.count("\n") == 1
        assert self.stderr.startswith("quoreduce: ")
        assert "Traceback" not in self.stderr
        return self.stderr.removeprefix("quoreduce: ").rstrip("\n")


Command = Callable[..., Ended]


@pytest.fixture
def quoreduce(capsys: pytest.CaptureFixture[str]) -> Iterator[Command]:
    """``quoreduce("run", ...)``; ``run`` is inline unless it says where."""
    before = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> Ended:
        words = [str(argument) for argument in arguments]
        if words[0] == "run" and not {"--on", "--inline", "--help"} & set(words):
            words.append("--inline")
        capsys.readouterr()
        try:
            code = main(words)
        except SystemExit as leave:
            code = int(leave.code or 0)
        said = capsys.readouterr()
        return Ended(code, said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A small text in a folder of its own."""
    path = tmp_path / "in" / "text.txt"
    path.parent.mkdir()
    path.write_text("to be or not to be\n" * 200)
    return path


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output that does not exist; its parent exists and is empty."""
    (tmp_path / "outputs").mkdir()
    return tmp_path / "outputs" / "out"
