"""Calls on files that fail: a run ends, and its output is right or not there. CI does a sample of the campaign's cases."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from environment import EVER, Case, Rig, cases

SAMPLE = (
    "worker:pread:EIO:1:ever", "worker:mmap:EMFILE:1:ever", "worker:fallocate:ENOSPC:1:ever", "worker:open:ESTALE:3:ever",
    "driver:rename:EIO:1:1", "driver:fsync:ENOSPC:1:ever",
)  # fmt: skip


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, kjv: Path) -> Rig:
    if shutil.which("gcc") is None:
        pytest.skip("the calls are made to fail by a library that gcc compiles: there is no gcc")
    return Rig(tmp_path_factory.mktemp("environment"), kjv.read_bytes()[:60_000])


def test_all_calls_of_a_run_are_known_to_the_campaign(rig: Rig) -> None:
    calls = rig.calls()
    assert {"open", "mmap", "fallocate", "write", "close", "pread"} <= {call for role, call in calls if role == "worker"}
    assert {"open", "stat", "rename", "fsync", "flock", "write", "unlink"} <= {call for role, call in calls if role == "driver"}
    assert {one.error for one in cases(calls)} == {"EIO", "ENOSPC", "EMFILE", "EINTR", "ESTALE"}


@pytest.mark.parametrize("case", SAMPLE)
def test_a_call_that_fails_ends_the_run_right_or_with_an_error(case: str, rig: Rig) -> None:
    assert rig.wrong(Case.parse(case)) == ""


def test_a_case_is_what_it_is_written_as() -> None:
    case = Case("worker", "pread", "EIO", 2, EVER)
    assert str(case) == "worker:pread:EIO:2:ever"
    assert Case.parse(str(case)) == case
