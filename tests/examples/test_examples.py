"""The examples: those of README and docs as scripts, by the command line, and voted on with faults; and
SequenceFiles.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quoreduce import run
from quoreduce.jobs.find import find_job

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FAULTS = ("flip:map:2", "wrong:reduce:1", "lie:map:1", "swap:map:1", "swap:reduce:1", "late:all:2")
SPLIT_MB = 0.05
LINES = 2500
TIMEOUT_S = 180


def longest_verses(text: bytes) -> dict[str, list[Any]]:
    longest: dict[str, list[Any]] = {}
    for line in text.decode().splitlines():
        place, _, verse = line.partition(" ")
        book = place.rpartition(":")[0].rstrip("0123456789")
        if book:
            longest[book] = max(longest.get(book, [-1, ""]), [len(verse), place])
    return longest


def python_output(parts: bytes) -> dict[str, list[Any]]:
    return {key: json.loads(value) for key, _, value in (line.partition("\t") for line in parts.decode().splitlines())}


def kernel_output(parts: bytes) -> dict[int, int]:
    return {int(key): int(value) for key, value in (line.split(b"\t") for line in parts.splitlines())}


CASES = [("python_job", python_output, longest_verses), ("kernel_job", kernel_output, lambda text: dict(Counter(text)))]


@pytest.fixture(scope="module")
def text(kjv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("examples") / "text"
    path.write_bytes(b"\n".join(kjv.read_bytes().split(b"\n")[:LINES]) + b"\n")
    return path


def read_output(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob("part-*")))


@pytest.mark.parametrize("name", [case[0] for case in CASES])
def test_it_is_about_twenty_lines_and_needs_two_names(name: str) -> None:
    code = [line for line in (EXAMPLES / f"{name}.py").read_text().splitlines() if line.strip()]
    assert len(code) <= 32
    assert "from quoreduce import Job, run" in code
    assert not [line for line in code if "import" in line and "quoreduce." in line]


@pytest.mark.parametrize(("name", "read", "expect"), CASES)
def test_as_a_script(
    name: str, read: Callable[..., Any], expect: Callable[..., Any], text: Path, tmp_path: Path
) -> None:
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(text), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    assert "executions: {'map': 2, 'reduce': 2}" in done.stdout
    assert read(read_output(tmp_path / "out")) == expect(text.read_bytes())


@pytest.mark.parametrize(("name", "read", "expect"), CASES)
def test_by_the_command_line(
    name: str, read: Callable[..., Any], expect: Callable[..., Any], text: Path, tmp_path: Path, cli: Callable[..., Any]
) -> None:
    done = cli(
        "run", f"{EXAMPLES / name}.py:job", text, tmp_path / "out", "--domain", "worker", "--workers", 2, "--json",
        "--reducers", 2, "--split-mb", SPLIT_MB, "--fault", "flip:map:1",
    )  # fmt: skip
    assert done.code == 0, done.stderr
    assert json.loads(done.stdout)["faults"]["injected"] == 1
    assert read(read_output(tmp_path / "out")) == expect(text.read_bytes())


@pytest.mark.parametrize(("name", "read", "expect"), CASES)
@pytest.mark.parametrize("on", ["local", pytest.param("ray", marks=pytest.mark.ray)])
def test_voted_with_faults(
    on: str, name: str, read: Callable[..., Any], expect: Callable[..., Any], text: Path, tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    if on == "ray":
        request.getfixturevalue("ray_cluster")
    job = find_job(f"{EXAMPLES / name}.py:job")
    result = run(
        job, str(text), str(tmp_path / "out"), on=on, workers=3, domain="worker", f=1, reducers=3, split_mb=SPLIT_MB,
        faults=FAULTS, fault_seed=1,
    )  # fmt: skip
    assert read(read_output(tmp_path / "out")) == expect(text.read_bytes())
    assert result.faults.injected == 8
    assert result.faults.masked == result.faults.detected > 0


@pytest.mark.parametrize("arguments", [(), ("one", "two")])
def test_sequence_files_without_a_folder_says_how_it_is_used(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "sequence_files.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("usage: ")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("page", "name"), [("README.md", "python_job"), ("docs/guide/batch-jobs.md", "kernel_job")])
def test_the_documents_show_the_example(page: str, name: str) -> None:
    text = (EXAMPLES.parents[1] / page).read_text()
    assert f"```python\n{(EXAMPLES / f'{name}.py').read_text()}```" in text


def test_sequence_files_are_written_and_read(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "sequence_files.py"), str(tmp_path / "new")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    expected = Counter(f"key {i * i % 7}" for i in range(1000))
    assert done.stdout.splitlines() == [f"{key} {count}" for key, count in sorted(expected.items())]
