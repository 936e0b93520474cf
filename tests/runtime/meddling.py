"""An inline executor between whose workers and driver a test can meddle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from quoreduce import Session
from quoreduce.runtime import session as session_module
from quoreduce.runtime import wire
from quoreduce.runtime.inline import InlineExecutor
from quoreduce.runtime.options import Place
from quoreduce.runtime.port import Arrival

Replies = Callable[[str, wire.Reply], "bytes | wire.Reply | None"]
Requests = Callable[[str, wire.Request], bool]
_decoder = msgspec.msgpack.Decoder(wire.Reply)


class Meddler(InlineExecutor):
    """``replies(worker, reply)`` gives what arrives in its stead (None: nothing); ``requests`` says what gets through."""

    replies: Replies = staticmethod(lambda worker, reply: reply)  # type: ignore[assignment]
    requests: Requests = staticmethod(lambda worker, request: True)  # type: ignore[assignment]

    def submit(self, worker: str, raw: bytes) -> None:
        if self.requests(worker, wire.decode_request(raw)):
            super().submit(worker, raw)

    def wait(self, timeout_s: float) -> list[Arrival]:
        arrivals = []
        for arrival in super().wait(timeout_s):
            if arrival.raw is None:
                arrivals.append(arrival)
                continue
            given = self.replies(arrival.worker, _decoder.decode(arrival.raw))
            if given is not None:
                raw = given if isinstance(given, bytes) else wire.encode(given)
                arrivals.append(Arrival(arrival.worker, raw))
        return arrivals


@contextmanager
def meddled_session(workers: int = 3) -> Iterator[tuple[Session, Meddler]]:
    """A session on an executor to meddle with."""
    meddler = Meddler(workers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_module, "_executor", lambda on, place: meddler)
        with Session(Place("inline", workers, "worker")) as session:
            yield session, meddler
