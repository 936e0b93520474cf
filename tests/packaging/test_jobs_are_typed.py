"""A type checker sees what is wrong in a user's call, from the installed wheel."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from quoreduce import Options
from quoreduce.protocol.options import OptionsGiven

RIGHT = """
from collections.abc import Iterator

from quoreduce import Job, Options, Result, Session, run


def words(record: bytes) -> Iterator[tuple[bytes, int]]:
    for word in record.split():
        yield word, 1


def total(key: bytes, values: list[int]) -> Iterator[tuple[bytes, int]]:
    yield key, sum(values)


job = Job("count", map=words, reduce=total)
result: Result = run(job, ["in.txt"], "out", f=2, mode="bft", on="local", faults=("flip:map:1",))
with Session() as session:
    session.run(job, ["in.txt"], "more", Options(reducers=4))
"""
WRONG = {
    "reducer=4": ("f=2", 'Unexpected keyword argument "reducer"'),
    "f='2'": ("f=2", 'has incompatible type "str"; expected "int"'),
    "mode='voted'": ('mode="bft"', "expected \"Literal['original', 'basic', 'bft']\""),
    "on='cluster'": ('on="local"', "expected \"Literal['inline', 'local', 'ray'] | None\""),
}
"""What is written -> instead of what, and what is said."""
NO_SUCH_NAME = "from quoreduce import runn\n"


def test_keywords_of_run_are_the_fields_of_options() -> None:
    assert get_type_hints(OptionsGiven) == get_type_hints(Options)
    assert not OptionsGiven.__required_keys__, "each has a default"
    assert list(OptionsGiven.__annotations__) == [field.name for field in fields(Options)]


@pytest.fixture(scope="module")
def said(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """File -> what ``mypy --strict`` says of it, for one right job and several wrong ones."""
    folder = tmp_path_factory.mktemp("jobs")
    jobs = {"right.py": RIGHT, "name.py": NO_SUCH_NAME}
    jobs |= {f"wrong{n}.py": RIGHT.replace(right, wrong) for n, (wrong, (right, _)) in enumerate(WRONG.items())}
    for name, text in jobs.items():
        (folder / name).write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--python-executable={installed}", *jobs]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    return {name: "\n".join(line for line in lines if line.startswith(f"{name}:")) for name in jobs}


def test_a_right_job_passes_mypy_strict(said: dict[str, str]) -> None:
    assert said["right.py"] == ""


@pytest.mark.parametrize(("number", "reason"), [(n, reason) for n, (_, reason) in enumerate(WRONG.values())], ids=WRONG)
def test_a_wrong_option_fails_mypy(said: dict[str, str], number: int, reason: str) -> None:
    assert reason in said[f"wrong{number}.py"]


def test_a_name_that_is_not_there_fails_mypy(said: dict[str, str]) -> None:
    assert 'has no attribute "runn"' in said["name.py"]
