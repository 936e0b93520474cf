"""Machines that fail us: one of them is masked as a wrong core is; where too few are left the job ends, and says
why.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from meddling import Said, meddled_session
from runs import WORDCOUNT, left_in, parts_of

from quoreduce import Options
from quoreduce.errors import HostError, host_errors
from quoreduce.protocol import wire

WHY = "cannot write a part: Input/output error"


def failing(reply: wire.Reply) -> list[Said]:
    """A host error in the place of a result."""
    if not isinstance(reply, wire.Done):
        return [reply]
    return [wire.HostFailed(reply.attempt, WHY, generation=reply.generation)]


def test_a_domain_whose_machine_fails_again_and_again_is_masked(verses: Path, tmp_path: Path) -> None:
    struck: list[str] = []

    def replies(worker: str, reply: wire.Reply) -> list[Said]:
        if worker.startswith("worker0") and isinstance(reply, wire.Done):
            struck.append(worker)
            return failing(reply)
        return [reply]

    with meddled_session(3) as (session, meddler):
        options = Options(reducers=2, split_mb=0.02)
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "right"), options)
        meddler.replies = replies
        session.run(WORDCOUNT, [str(verses)], str(tmp_path / "out"), options)
    assert len(struck) > 3
    assert parts_of(tmp_path / "out") == parts_of(tmp_path / "right")


def test_where_too_few_domains_are_left_the_job_ends_and_says_why(verses: Path, tmp_path: Path) -> None:
    with meddled_session(2) as (session, meddler):
        meddler.replies = lambda worker, reply: failing(reply) if worker.startswith("worker0") else [reply]
        with pytest.raises(HostError, match=WHY):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), Options(split_mb=0.02))
    assert left_in(tmp_path / "outputs") == []


def test_an_error_of_a_file_call_is_one_typed_line() -> None:
    with (
        pytest.raises(HostError, match=r"^the machine failed: /a b: Stale file handle$"),
        host_errors("the machine failed"),
    ):
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), "/a b")
    with (
        pytest.raises(HostError, match=r"^the machine failed: Too many open files$"),
        host_errors("the machine failed"),
    ):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    with pytest.raises(BrokenPipeError), host_errors("the machine failed"):
        raise BrokenPipeError
