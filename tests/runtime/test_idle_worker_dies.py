"""A worker that dies while it has nothing to do, in the same moment as others answer, is replaced like any other
(R9).
"""

from pathlib import Path

import pytest
from runs import WORDCOUNT

from quoreduce import Options, Session
from quoreduce.errors import HostError
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import Arrival
from quoreduce.runtime import session as session_module
from quoreduce.runtime.inline import InlineExecutor


class Batching(InlineExecutor):
    """Delivers all replies that there are at once, and at the end of each of the first batches the death of an idle
    worker.
    """

    deaths = 3

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while batch := super().wait(timeout_s):
            arrivals += batch
        attempted = [one for one in arrivals if isinstance(wire.decode_reply(one.raw or b""), wire.Attempted)]
        worked = {one.worker for one in attempted}
        idle = [name for name in self._workers if name not in worked]
        if worked and idle and self.deaths:
            self.deaths -= 1
            del self._workers[idle[0]]
            arrivals.append(Arrival(idle[0], None))
        return arrivals


@pytest.mark.parametrize("workers", [3, 4, 5])
def test_death_of_an_idle_worker_beside_replies_is_masked(
    workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = Batching(workers)
    monkeypatch.setattr(session_module, "_executor", lambda on, place: executor)
    (tmp_path / "text").write_bytes(b"to be or not to be\n" * 50)
    with Session(Place(on="inline", workers=workers)) as session:
        result = session.run(
            WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / "out"), Options(reducers=2, split_mb=0.0005)
        )
    assert executor.deaths < 3
    words = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").glob("part-*")))
    assert sorted(words.split(b"\n")) == [b"", b"be\t100", b"not\t50", b"or\t50", b"to\t100"]
    assert result.reexecutions == result.faults.detected


class Massacre(InlineExecutor):
    """Reports ``first`` workers as dead before any has begun the job, and then ``more`` of those that come in their
    place.
    """

    first, more = 3, 0

    def wait(self, timeout_s: float) -> list[Arrival]:
        doomed = list(self._workers)[: self.first] if self.first else []
        self.first = 0
        if not doomed and self.more:
            doomed = [name for name in self._workers if int(name.rpartition(".")[2]) >= WORKERS][:1]
            self.more -= len(doomed)
        for name in doomed:
            del self._workers[name]
        return [Arrival(name, None) for name in doomed] or super().wait(timeout_s)


WORKERS = 4


def massacre(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: int) -> bytes:
    executor = Massacre(WORKERS)
    executor.more = more
    monkeypatch.setattr(session_module, "_executor", lambda on, place: executor)
    (tmp_path / "text").write_bytes(b"to be or not to be\n")
    with Session(Place(on="inline", workers=WORKERS)) as session:
        session.run(WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / "out"), Options(reducers=1))
    return (tmp_path / "out" / "part-r-00000").read_bytes()


def test_idle_workers_that_die_all_at_once_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That workers of earlier jobs die says nothing about whether new ones can begin."""
    assert massacre(tmp_path, monkeypatch, more=2) == b"be\t2\nnot\t1\nor\t1\nto\t2\n"


def test_workers_that_never_begin_end_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(HostError, match="die before they begin"):
        massacre(tmp_path, monkeypatch, more=1000)
    assert not (tmp_path / "out").exists()
