"""A user's script that opens a session and does not close it: ``STORE WHAT``. It goes on when a line comes on stdin."""

from __future__ import annotations

import os
import signal
import sys

from quoreduce import Place, Session


def main(store: str, what: str) -> None:
    if what == "handler":
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
    session = Session(Place("local", 2, "worker", store=store))
    session.__enter__()
    child = os.fork() if what == "fork" else 0  # one that is forked while the session is open, and lives on
    if what == "fork" and child == 0:
        sys.stdin.readline()
        os._exit(0)
    print(*(info.pid for info in session.workers), child, flush=True)
    sys.stdin.readline()
    if what == "raises":
        raise ValueError("a script that fails")


if __name__ == "__main__":
    main(*sys.argv[1:])
