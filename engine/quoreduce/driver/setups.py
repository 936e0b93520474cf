"""How workers begin a job: what they are told, and what if they cannot."""

from __future__ import annotations

from collections.abc import Callable

from quoreduce import errors
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate, Pump
from quoreduce.driver.underway import DEADLINE_FIRST_S, DEADLINE_START_S
from quoreduce.protocol import wire
from quoreduce.protocol.port import WorkerInfo

ADMIT_S = 5.0


class Setups:
    """The workers that were told to begin the job and have not answered. Times in seconds of the driver's clock.

    ``newcomers``: workers that were started during the job, in the place of dead ones.
    """

    def __init__(self, state: JobState, gate: OpenGate) -> None:
        self._state = state
        self._gate = gate
        self._deadlines: dict[str, float] = {}
        self._unloadable: set[str] = set()  # domains that cannot load the job
        self.newcomers: set[str] = set()

    def __contains__(self, worker: str) -> bool:
        """Whether a worker has yet to begin."""
        return worker in self._deadlines

    def __len__(self) -> int:
        """How many have yet to begin."""
        return len(self._deadlines)

    def begin(self, worker: str, now: float) -> None:
        """Tell a worker to begin."""
        self._deadlines[worker] = now + DEADLINE_START_S
        self._state.send(worker, self._gate.setup(self._state.setup, self._state.workers[worker].domain))

    def answered(self, worker: str, reply: wire.SetupReply | wire.EvidenceReply) -> wire.Ready | None:
        """A worker says that it has begun, or that it cannot, which f+1 domains must say; None if it was killed."""
        del self._deadlines[worker]
        if isinstance(reply, wire.Ready):
            return reply
        self._unloadable.add(self._state.workers[worker].domain)
        error = reply.error if isinstance(reply, wire.NotReady) else "what it answered is something else"
        if len(self._unloadable) >= self._state.options.replicas_needed:
            kind = errors.HostError if isinstance(reply, wire.NotReady) and reply.host else errors.JobError
            raise kind(f"job {self._state.job.name} cannot be loaded by workers: {error}")
        self._state.kill(worker, f"it could not begin, so it was killed: {error}", hung=False)
        return None

    def admit_all(self, pump: Pump, clock: Callable[[], float]) -> None:
        """Wait until all workers have said what they are made of, for some seconds if enough have; the others may join
        later. Those that may not vote do not join.
        """
        start, state = clock(), self._state

        def all_said() -> bool:
            here = [w for w in state.workers.values() if w.name not in self._gate.barred and w.name not in self]
            enough = len({info.domain for info in here}) >= state.options.replicas_needed
            return not self or clock() - start > (ADMIT_S if enough else DEADLINE_START_S)

        pump(all_said)
        state.events.clear()  # nobody has joined yet
        self._gate.open()

    def lost(self, worker: str) -> bool:
        """A worker is gone; whether it came in the place of a dead one, and had not begun."""
        return self._deadlines.pop(worker, None) is not None and worker in self.newcomers

    def replace(self, worker: str, now: float) -> WorkerInfo | None:
        """Start a worker in the place of a dead one and tell it to begin; None if there is no place."""
        replacement = self._state.executor.replace(worker)
        if replacement is not None:
            self._state.workers[replacement.name] = replacement
            self.newcomers.add(replacement.name)
            self.begin(replacement.name, now)
        return replacement

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""
        self._deadlines = {worker: deadline + away_s for worker, deadline in self._deadlines.items()}

    def late(self, now: float) -> list[str]:
        """Workers that are past their deadline, which is reported once: the next is far away."""
        late = [worker for worker, deadline in self._deadlines.items() if deadline <= now]
        self._deadlines |= dict.fromkeys(late, now + DEADLINE_FIRST_S)
        return late
