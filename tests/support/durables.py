"""What the tests of durable jobs share: jobs that are cut short at a moment, and what lies there then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from runs import WORDCOUNT

from quoreduce import Job, Options, Result, Session
from quoreduce.data.commit import OutputDir
from quoreduce.data.journal import Decided, Record, decode

SPLIT_MB = 0.006  # five splits or so of the small text
MOMENTS: dict[str, int] = {}


def staging(out: Path) -> Path:
    """The staging directory of an output that is not there yet."""
    (found,) = out.parent.glob(f".{out.name}.*.staging")
    return found


def journal_of(out: Path) -> list[Record]:
    """What its journal says."""
    return decode((staging(out) / "journal").read_bytes())[0]


def agreed_in(records: list[Record]) -> set[tuple[str, int]]:
    """Tasks that are agreed on: (kind, index)."""
    return {(one.kind, one.index) for one in records if isinstance(one, Decided)}


def cut_short(
    session: Session, job: Job, source: Path, out: Path, at: int, life: int = 0, **options: object
) -> Result | None:
    """Run or resume a durable job, and interrupt it when it has reported progress ``at`` times; None if that was so."""
    reports = 0

    def report(progress: object) -> None:
        nonlocal reports
        reports += 1
        if reports > at:
            raise KeyboardInterrupt

    try:
        if life:
            return session.resume(str(out), report)
        chosen = Options(**({"durable": True, "reducers": 3, "split_mb": SPLIT_MB} | options))  # type: ignore[arg-type]
        return session.run(job, [str(source)], str(out), chosen, report)
    except KeyboardInterrupt as error:
        notes = error.__notes__
    assert notes == [f"what was agreed on is kept: quoreduce resume {out}"]
    return None


def interrupted(
    name: str, session: Session, verses: Path, out: Path, when: Callable[[set[tuple[str, int]]], bool]
) -> Session:
    """A session, and a durable word count that was interrupted as soon as ``when`` held of what was agreed on.

    ``name`` is that of the moment, which is looked for once.
    """
    for at in range(MOMENTS.get(name, 2), 1000, 2):
        if cut_short(session, WORDCOUNT, verses, out, at) is not None:
            pytest.fail("no such moment")
        if when(agreed_in(journal_of(out))):
            MOMENTS[name] = at  # there is no other order of events in one process
            return session
        OutputDir(str(out), True, [], "sweeps").abort()
    raise AssertionError
