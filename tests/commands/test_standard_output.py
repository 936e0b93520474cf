"""Standard output that is full, closed, or read no further: one line or none, and an exit code that the docs name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TIMEOUT_S = 120
COMMANDS = (
    ("--help",), ("run", "--help"), ("chaos", "--plan"), ("suspects",), ("suspects", "--json"), ("verify", "OUT"),
    ("verify", "OUT", "--json"), ("run", "wordcount", "TEXT", "NEW", "--inline"),
    ("simulate", "run", "--maps", "4", "--reduces", "1"),
    ("vm", "list"), ("gridmix", "--help"),
)  # fmt: skip


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("stdout")
    (folder / "text").write_text("to be or not to be\n" * 50)
    found = {"OUT": str(folder / "out"), "TEXT": str(folder / "text"), "NEW": str(folder / "new")}
    assert start(("run", "wordcount", found["TEXT"], found["OUT"], "--inline"), subprocess.DEVNULL)[0] == 0
    return found


def start(words: tuple[str, ...], stdout: int, **more: object) -> tuple[int, str]:
    command = [sys.executable, "-m", "quoreduce.cli", *words]
    environment = {**os.environ, "QUOREDUCE_VM": "/nonexistent/vm"} if words[0] == "vm" else None
    done = subprocess.run(  # type: ignore[call-overload]
        command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=TIMEOUT_S,
        check=False, env=environment, **more,
    )  # fmt: skip
    return done.returncode, done.stderr


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "vm"], ids=" ".join)
def test_a_full_disk_is_one_line_and_exit_4(words: tuple[str, ...], places: dict[str, str], tmp_path: Path) -> None:
    named = tuple({**places, "NEW": str(tmp_path / "new")}.get(word, word) for word in words)
    with open("/dev/full", "wb") as full:
        code, said = start(named, full.fileno())
    assert (code, said) == (4, "quoreduce: cannot write to standard output: No space left on device\n")
    if "NEW" in words:
        assert (tmp_path / "new" / "_SUCCESS").exists(), "the job was done, and its output is published"


@pytest.mark.parametrize("words", [("chaos", "--plan"), ("verify", "OUT"), ("run", "--help")], ids=" ".join)
def test_a_pipe_that_nobody_reads_is_exit_141_and_no_word(words: tuple[str, ...], places: dict[str, str]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        assert start(tuple(places.get(word, word) for word in words), writing) == (141, "")
    finally:
        os.close(writing)


def test_a_closed_standard_output_harms_nobody(places: dict[str, str], tmp_path: Path) -> None:
    """No file of ours gets its number: what is printed would end up there."""
    script = 'exec "$0" -m quoreduce.cli run wordcount "$1" "$2" --inline >&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, sys.executable, places["TEXT"], str(tmp_path / "new")], timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0
    parts = b"".join(path.read_bytes() for path in (tmp_path / "new").glob("part-*"))
    assert b"executions" not in parts
    assert json.loads((tmp_path / "new" / "_SUCCESS").read_text())["job"] == "wordcount"


def test_a_standard_error_that_cannot_be_written_changes_no_exit_code(tmp_path: Path) -> None:
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "quoreduce.cli", "verify", str(tmp_path / "missing")]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=full, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_terminal_without_utf8_shows_names_in_ascii(places: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "ausg\u00e4be"
    command = [sys.executable, "-m", "quoreduce.cli", "run", "wordcount", places["TEXT"], str(out), "--inline"]
    done = subprocess.run(
        command, capture_output=True, timeout=TIMEOUT_S, check=False, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"ausg\\xe4be: 1 parts" in done.stdout
