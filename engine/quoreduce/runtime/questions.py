"""Questions to workers when a job is done, one at a time, for its diagnosis."""

from __future__ import annotations

from collections.abc import Callable, Collection

from quoreduce import errors
from quoreduce.runtime import wire
from quoreduce.runtime.port import Arrival, Executor

LOOK_S = 0.2
DEATH_S = 2.0


class Questions:
    """Asks workers, and waits for what they answer.

    Args:
        workers: those that are alive, by name; the driver's own. arrive: takes what arrives meanwhile and is no answer, and so
            takes the dead out of ``workers``. clock: in seconds.
    """

    def __init__(
        self, executor: Executor, workers: Collection[str], arrive: Callable[[Arrival], None], clock: Callable[[], float]
    ) -> None:
        self.cpu_s = 0.0  # that the answers took
        self._executor = executor
        self._workers = workers
        self._arrive = arrive
        self._clock = clock

    def ask(self, worker: str, request: wire.InspectTask | wire.InputTask | wire.ProbeTask, limit_s: float) -> wire.Reply | None:
        """Put a request to a worker and wait for its answer; None if it dies, or takes longer, for which it is killed."""
        self._executor.submit(worker, wire.encode(request))
        end = self._clock() + limit_s
        while worker in self._workers and (now := self._clock()) < end + DEATH_S:
            if now >= end:
                self._executor.kill(worker)
            answers = []
            for arrival in self._executor.wait(LOOK_S if now >= end else min(LOOK_S, end - now)):
                reply = _answer_of(arrival, worker, request.attempt)
                if reply is None:
                    self._arrive(arrival)
                else:
                    answers.append(reply)
            if answers:
                self.cpu_s += answers[0].cpu_s
                return answers[0]
        return None


def _answer_of(arrival: Arrival, worker: str, attempt: int) -> wire.Reply | None:
    """The answer of a worker to one request, if that is what arrived."""
    if arrival.worker != worker or arrival.raw is None:
        return None
    try:
        reply = wire.decode_reply(arrival.raw)
    except errors.HostError:
        return None
    return reply if reply.attempt == attempt else None
