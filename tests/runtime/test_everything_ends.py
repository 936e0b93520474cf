"""What can never be read back ends the job, with an error that says so; nothing goes round for ever (R3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from meddling import Said, meddled_session
from runs import WORDCOUNT, left_in

from quoreduce import Options
from quoreduce.errors import HostError
from quoreduce.runtime import wire
from quoreduce.runtime.checkers import CHECKS_MAX


def test_a_part_that_can_never_be_read_ends_the_job(verses: Path, tmp_path: Path) -> None:
    def unreadable(worker: str, reply: wire.Reply) -> list[Said]:
        if reply.status == "checked":
            error = "OSError: [Errno 5] Input/output error"
            return [wire.Reply(reply.attempt, "failed", error=error, generation=reply.generation)]
        return [reply]

    checks = 0

    def count(worker: str, request: wire.Request) -> bool:
        nonlocal checks
        checks += isinstance(request, wire.CheckTask)
        assert checks < 1000, "it goes round for ever"
        return True

    with meddled_session(3) as (session, meddler):
        meddler.replies, meddler.requests = unreadable, count
        with pytest.raises(HostError, match=r"reduce 0: what was agreed on cannot be read back: .*Input/output error"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), Options(reducers=1, diagnose=False))
    assert checks == 17  # of the first copy, and of those of the 16 executions that R3 allows beyond the vote
    assert left_in(tmp_path / "outputs") == []


def test_a_part_whose_check_kills_whoever_makes_it_ends_the_job(verses: Path, tmp_path: Path) -> None:
    checks = 0
    options = Options(reducers=1, attempts_max=4, diagnose=False)

    with meddled_session(2) as (session, meddler):

        def deadly(worker: str, request: wire.Request) -> bool:
            nonlocal checks
            if isinstance(request, wire.CheckTask):
                checks += 1
                assert checks < 1000, "it goes round for ever"
                meddler.kill(worker)
            return True

        meddler.requests = deadly
        with pytest.raises(HostError, match="reduce 0: what was agreed on cannot be read back: 5 stored copies were lost"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), options)
    assert checks == 5 * CHECKS_MAX
    assert left_in(tmp_path / "outputs") == []


def test_a_map_whose_copies_can_never_be_read_ends_the_job(verses: Path, tmp_path: Path) -> None:
    def refused(worker: str, reply: wire.Reply) -> list[Said]:
        task = reduces.get(reply.attempt)
        if task is None:
            return [reply]
        return [wire.Reply(reply.attempt, "refused", bad=(task.sources[0][0].attempt,), generation=reply.generation)]

    reduces: dict[int, wire.ReduceTask] = {}

    def note(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.ReduceTask):
            reduces[request.attempt] = request
            assert len(reduces) < 1000, "it goes round for ever"
        return True

    with meddled_session(3) as (session, meddler):
        meddler.replies, meddler.requests = refused, note
        with pytest.raises(HostError, match=r"reduce 0: what it reads cannot be read"):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), Options(reducers=1, diagnose=False))
    assert left_in(tmp_path / "outputs") == []
