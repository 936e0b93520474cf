"""Questions to workers when a job is done, one at a time, for its diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Collection

from quoreduce.protocol import wire
from quoreduce.protocol.port import Executor

LOOK_S = 0.2
DEATH_S = 2.0


class Questions:
    """Asks workers, and waits for what they answer.

    Args:
        workers: those that are alive, by name; the driver's own, who takes the dead out of it.
        pump: takes what arrives until something is so, and waits for at most as long as its second argument says.
        clock: in seconds.

    Attributes:
        cpu_s: that the answers took.
    """

    def __init__(
        self, executor: Executor, workers: Collection[str], clock: Callable[[], float],
        pump: Callable[[Callable[[], bool], Callable[[], float]], None],
    ) -> None:  # fmt: skip
        self.cpu_s = 0.0
        self._executor = executor
        self._workers = workers
        self._clock = clock
        self._pump = pump
        self._asked: tuple[str, int] | None = None
        self._answer: wire.Attempted | None = None

    def ask(
        self, worker: str, request: wire.InspectTask | wire.InputTask | wire.ProbeTask, limit_s: float
    ) -> wire.Attempted | None:
        """Put a request to a worker and wait for its answer; None if it dies, or takes longer, for which it is
        killed.
        """
        self._asked, self._answer = (worker, request.attempt), None
        self._executor.submit(worker, wire.encode(request))
        end = self._clock() + limit_s
        answer = self._wait(worker, end)
        if answer is None and worker in self._workers:
            self._executor.kill(worker)
            answer = self._wait(worker, end + DEATH_S)
        self._asked = None
        if answer is not None:
            self.cpu_s += answer.cpu_s
        return answer

    def take(self, worker: str, reply: wire.Attempted) -> bool:
        """Take the answer to the question that is asked, if that is what a worker said."""
        if self._asked != (worker, reply.attempt) or self._answer is not None:
            return False
        self._answer = reply
        return True

    def _wait(self, worker: str, end: float) -> wire.Attempted | None:
        self._pump(
            lambda: self._answer is not None or worker not in self._workers or self._clock() >= end,
            lambda: max(0.0, min(LOOK_S, end - self._clock())),
        )
        return self._answer
