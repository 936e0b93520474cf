"""Threads that share one session: they take turns, one job each. Closing the session ends their turns."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from quoreduce.errors import QuoreduceError, UsageError

CLOSE_S = 30.0  # how long a close waits for a job that runs in another thread

NOT_OPEN = "use a Session as a context manager: with Session(...) as session"
OPEN = "this Session is open already: use it as it is, or another one"
NESTED = "this Session is running a job, and its report callback began another: use a Session of its own for that"
CLOSED = "this Session is closed: open another one"
STOPPED = "this Session was closed while the job ran: nothing was published"


class Turns:
    """One thread at a time uses a session; the others wait, in the order in which they came.

    :meth:`close` sends away those that wait and stops the job that runs: it ends with UsageError at its next report.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads: list[int] = []  # the first one has its turn
        self._refusal: str | None = NOT_OPEN  # what a thread is told that comes now; None: it may wait for its turn

    @contextmanager
    def first(self) -> Iterator[None]:
        """Open the session, under a turn of its own; raise UsageError if it is open. If this fails, it is closed."""
        with self._changed:
            if self._refusal is None:
                raise UsageError(OPEN)
            self._refusal = None
        try:
            with self.take():
                yield
            if self._refusal is not None:  # another thread closed it meanwhile
                raise UsageError(self._refusal)
        except BaseException:
            self._refuse(CLOSED)
            raise

    @contextmanager
    def take(self) -> Iterator[None]:
        """Wait for a turn and hold it; raise UsageError if the session is closed, or this thread has a turn already."""
        me = threading.get_ident()
        with self._changed:
            if me in self._threads:
                raise UsageError(NESTED)
            self._threads.append(me)
        try:
            with self._changed:
                self._changed.wait_for(lambda: self._threads[0] == me or self._refusal is not None)
                if self._refusal is not None:
                    raise UsageError(self._refusal)
            yield
        except QuoreduceError:
            raise
        except Exception as error:
            if self._refusal is not None:  # its workers were taken away
                raise UsageError(STOPPED) from error
            raise
        finally:
            with self._changed:
                self._threads.remove(me)
                self._changed.notify_all()

    def heed(self, report: Callable[[Any], None]) -> Callable[[Any], None]:
        """Return ``report``, changed so that the job ends with UsageError once its session is closed."""

        def told(progress: Any) -> None:
            report(progress)
            if self._refusal is not None:
                raise UsageError(STOPPED)

        return told

    def close(self) -> None:
        """Stop what runs, send away who waits, and return when no other thread uses it, or after CLOSE_S seconds.

        A thread that has its turn may close too: from a report callback or a signal's handler.
        """
        me = threading.get_ident()
        self._refuse(CLOSED)
        with self._changed:
            self._changed.wait_for(lambda: not self._threads or self._threads[0] == me, CLOSE_S)

    def _refuse(self, why: str) -> None:
        """Let nobody have a turn any more."""
        with self._changed:
            self._refusal = why
            self._changed.notify_all()
