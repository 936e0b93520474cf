"""A worker that dies while it has nothing to do, in the same moment as others answer, is replaced like any other (R9)."""

from pathlib import Path

import pytest
from runs import WORDCOUNT

from quoreduce import Options, Session
from quoreduce.runtime import session as session_module
from quoreduce.runtime import wire
from quoreduce.runtime.inline import InlineExecutor
from quoreduce.runtime.options import Place
from quoreduce.runtime.port import Arrival


class Batching(InlineExecutor):
    """Delivers all replies that there are at once, and at the end of each of the first batches the death of an idle worker."""

    deaths = 3

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals: list[Arrival] = []
        while batch := super().wait(timeout_s):
            arrivals += batch
        worked = {arrival.worker for arrival in arrivals if wire.decode_reply(arrival.raw or b"").attempt >= 0}
        idle = [name for name in self._workers if name not in worked]
        if worked and idle and self.deaths:
            self.deaths -= 1
            del self._workers[idle[0]]
            arrivals.append(Arrival(idle[0], None))
        return arrivals


@pytest.mark.parametrize("workers", [3, 4, 5])
def test_death_of_an_idle_worker_beside_replies_is_masked(workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    executor = Batching(workers)
    monkeypatch.setattr(session_module, "_executor", lambda on, place: executor)
    (tmp_path / "text").write_bytes(b"to be or not to be\n" * 50)
    with Session(Place(on="inline", workers=workers)) as session:
        result = session.run(WORDCOUNT, [str(tmp_path / "text")], str(tmp_path / "out"), Options(reducers=2, split_mb=0.0005))
    assert executor.deaths < 3
    words = b"".join(path.read_bytes() for path in sorted((tmp_path / "out").glob("part-*")))
    assert sorted(words.split(b"\n")) == [b"", b"be\t100", b"not\t50", b"or\t50", b"to\t100"]
    assert result.reexecutions == result.faults.detected
