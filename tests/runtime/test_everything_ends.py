"""What can never be read back ends the job, with an error that says so; nothing goes round for ever (R3)."""

from __future__ import annotations

from pathlib import Path

import pytest
from meddling import Said, attempt_of, meddled_session
from runs import WORDCOUNT, left_in

from quoreduce import Options
from quoreduce.errors import HostError
from quoreduce.protocol import wire


def test_a_part_whose_check_kills_whoever_makes_it_ends_the_job(verses: Path, tmp_path: Path) -> None:
    checks = 0
    options = Options(reducers=1, attempts_max=4, diagnose=False)

    with meddled_session(2) as (session, meddler):

        def deadly(worker: str, request: wire.Request) -> bool:
            nonlocal checks
            if isinstance(request, wire.RereadTask):
                checks += 1
                assert checks < 1000, "it goes round for ever"
                meddler.kill(worker)
            return True

        meddler.requests = deadly
        said = (
            r"^reduce 0: cannot read back what was written, after 4 attempts to read .*part-r-00000.*: "
            r"workers that were to read it"
        )
        with pytest.raises(HostError, match=said):
            session.run(WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), options)
    assert checks == 4
    assert left_in(tmp_path / "outputs") == []


def test_a_map_whose_copies_can_never_be_read_ends_the_job(verses: Path, tmp_path: Path) -> None:
    reduces: dict[int, wire.ReduceTask] = {}

    def note(worker: str, request: wire.Request) -> bool:
        if isinstance(request, wire.ReduceTask):
            reduces[request.attempt] = request
            assert len(reduces) < 1000, "it goes round for ever"
        return True

    def refused(worker: str, reply: wire.Reply) -> list[Said]:
        task = reduces.get(attempt_of(reply))
        if task is None:
            return [reply]
        bad = (task.sources[0][0].attempt,)
        return [wire.InputsRefused(task.attempt, bad, "Stale file handle: f", generation=reply.generation)]

    with meddled_session(3) as (session, meddler):
        meddler.replies, meddler.requests = refused, note
        said = r"^(map|reduce) 0: cannot read back what was written: Stale file handle: f; "
        with pytest.raises(HostError, match=said):
            session.run(
                WORDCOUNT, [str(verses)], str(tmp_path / "outputs" / "out"), Options(reducers=1, diagnose=False)
            )
    assert left_in(tmp_path / "outputs") == []
