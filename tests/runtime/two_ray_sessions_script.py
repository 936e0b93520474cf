"""Two sessions in two threads that start one Ray, and close one after the other. Run by test_threads_and_sessions.py.

A process of its own, because it must be the sessions that start Ray. Prints one JSON object: what was seen.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path

from runs import WORDCOUNT
from test_threads_and_sessions import Threads

import quoreduce.runtime.ray  # noqa: F401 - sets Ray's environment, which counts only before Ray is imported
from quoreduce import Options, Session
from quoreduce.errors import QuoreduceError
from quoreduce.protocol.options import Place

TIMEOUT_S = 120.0
OPTIONS = Options(reducers=2, split_mb=0.01)


def main(text: str, folder: Path) -> None:
    import ray

    both, first_closed = threading.Barrier(2, timeout=TIMEOUT_S), threading.Event()
    seen: dict[str, object] = {}

    def first() -> None:
        with Session(Place("ray", 2, "worker")) as session:
            both.wait()
            session.run(WORDCOUNT, [text], str(folder / "first"), OPTIONS)
            try:
                Session(Place("ray", 2, "worker", address="127.0.0.1:9")).__enter__()
            except QuoreduceError as error:
                seen["refused"] = type(error).__name__
        first_closed.set()

    def second() -> None:
        with Session(Place("ray", 2, "worker")) as session:
            both.wait()
            session.run(WORDCOUNT, [text], str(folder / "second"), OPTIONS)
            first_closed.wait(TIMEOUT_S)
            seen["after_first"] = ray.is_initialized()
            session.run(WORDCOUNT, [text], str(folder / "later"), OPTIONS)
        seen["after_last"] = ray.is_initialized()

    for end in Threads(first, second).end():
        if isinstance(end, BaseException):
            raise end
    print(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
