"""An inline executor between whose workers and driver a test can meddle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec
import pytest

from quoreduce import Session
from quoreduce.driver import driver as driver_module
from quoreduce.protocol import wire
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import Arrival
from quoreduce.runtime import session as session_module
from quoreduce.runtime.inline import InlineExecutor

Said = bytes | wire.Reply
Replies = Callable[[str, wire.Reply], "Sequence[Said]"]
Requests = Callable[[str, wire.Request], bool]
_decoder: msgspec.msgpack.Decoder[wire.Reply] = msgspec.msgpack.Decoder(wire.Reply)


def attempt_of(reply: wire.Reply) -> int:
    """The attempt that a reply is about; -1 if it is about none."""
    return reply.attempt if isinstance(reply, wire.Attempted) else -1


class Clock:
    """Stands in for the driver's module ``time``: it moves only when it is told to. In seconds."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Meddler(InlineExecutor):
    """``replies(worker, reply)`` gives what arrives in its stead; ``requests`` says what gets through."""

    replies: Replies = staticmethod(lambda worker, reply: [reply])  # type: ignore[assignment]
    requests: Requests = staticmethod(lambda worker, request: True)  # type: ignore[assignment]

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.clock = Clock()

    def submit(self, worker: str, raw: bytes) -> None:
        if self.requests(worker, wire.decode_request(raw)):
            super().submit(worker, raw)

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals = []
        for arrival in super().wait(timeout_s):
            if arrival.raw is None:
                arrivals.append(arrival)
                continue
            for said in self.replies(arrival.worker, _decoder.decode(arrival.raw)):
                raw = said if isinstance(said, bytes) else wire.encode(said)
                arrivals.append(Arrival(arrival.worker, raw))
        if not arrivals and not self._queue:
            self.clock.now += timeout_s + 0.001
        return arrivals


@contextmanager
def meddled_session(workers: int = 3) -> Iterator[tuple[Session, Meddler]]:
    """A session on an executor to meddle with; time passes only while the driver waits in vain."""
    meddler = Meddler(workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "_executor", lambda on, place: meddler)
        session = Session(Place("inline", workers, "worker")).__enter__()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(driver_module, "time", meddler.clock)
            yield session, meddler
    finally:
        session.close()
