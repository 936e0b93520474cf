"""What dead workers have stored is kept for the job that they died in, so that others can read it, and no longer."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from runs import WORDCOUNT, parts_of, poll, running

from quoreduce import Options, Session
from quoreduce.errors import HostError
from quoreduce.protocol.options import Place
from quoreduce.worker import store as store_module
from quoreduce.worker.store import SEGMENT_ALIGN, BlockStore

JOBS = 4


def count(session: Session, text: Path, output: Path, **options: object) -> None:
    session.run(WORDCOUNT, [str(text)], str(output), Options(reducers=2, split_mb=0.0002, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ["crash", pytest.param("kill", marks=pytest.mark.nightly)])
def test_folders_of_dead_workers_go_with_the_next_job(how: str, tmp_path: Path) -> None:
    text, store = tmp_path / "text", tmp_path / "store"
    text.write_bytes(b"to be or not to be\n" * 50)
    with Session(Place("local", 3, "worker", store=str(store))) as session:
        for i in range(JOBS):
            if how == "kill":
                victim = session.workers[i % 3].pid
                os.kill(victim, signal.SIGKILL)
                poll(lambda victim=victim: not running(victim), "its death")  # type: ignore[misc]
            count(session, text, tmp_path / f"out{i}", faults=("crash:map:2@first",) if how == "crash" else ())
        count(session, text, tmp_path / "out", faults=())
        names = {info.name for info in session.workers}
        (folder,) = store.glob("quoreduce-*/session-*")
        assert {path.name for path in folder.iterdir() if path.is_dir()} <= names
    assert len({tuple(parts_of(tmp_path / f"out{i}")) for i in range(JOBS)}) == 1


def test_free_segments_that_do_not_fit_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store on a small disk whose free segments are all too small: they go, and the job goes on."""
    space = 8 * SEGMENT_ALIGN
    monkeypatch.setattr(store_module.os, "posix_fallocate", limited(tmp_path, space))
    store = BlockStore(tmp_path / "w0")
    for attempt in range(6):
        store.allocate(attempt, SEGMENT_ALIGN)
    store.recycle()
    assert store.allocate(10, 7 * SEGMENT_ALIGN).size == 7 * SEGMENT_ALIGN
    with pytest.raises(HostError, match="no space"):
        store.allocate(11, 2 * SEGMENT_ALIGN)
    assert np.all(store.allocate(12, 10) == 0), "and what fits still does"


def limited(folder: Path, space: int) -> Callable[[int, int, int], None]:
    """A posix_fallocate on a disk of ``space`` bytes."""
    real = os.posix_fallocate

    def fallocate(fd: int, offset: int, size: int) -> None:
        used = sum(path.stat().st_size for path in folder.rglob("segment-*"))
        if used + size > space:
            raise OSError(28, "No space left on device")
        real(fd, offset, size)

    return fallocate
