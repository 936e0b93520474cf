"""The executions of a job that are under way: how long each may take, and which are overdue.

This module has no clock: ``now`` and all deadlines are in seconds of the driver's clock. A deadline counts the worker's
own time: it moves by the time in which the driver did not listen (:class:`Attention`), and by the time in which the
worker waited for a core.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from quoreduce.driver.stragglers import Watch
from quoreduce.protocol import wire
from quoreduce.tracker import messages as m

DEADLINE_FIRST_S = 600.0
DEADLINE_LEAST_S = 10.0
DEADLINE_FACTOR = 20.0
DEADLINE_START_S = 60.0
PATIENCE_START_S = 20.0
LAPSE_S = 1.0
GRACE_MAX_S = 600.0
Waited = Callable[[str], float]
"""Seconds for which a worker has waited for a core since it began."""


class Timed(Protocol):
    """Something that a worker is to do before a ``deadline``.

    ``waited``: see :data:`Waited`, when it was looked at last. ``grace``: what was added to the deadline for it.
    """

    deadline: float
    waited: float
    grace: float


@dataclass(slots=True)
class Running:
    """An execution or a check under way; it reads ``nbytes``. ``deadline`` in seconds of the monotonic clock."""

    launch: m.Assignment
    deadline: float
    started: float
    fault: wire.Fault | None
    nbytes: int
    waited: float = 0.0
    grace: float = 0.0


class Attention:
    """Notices when the driver itself was not there: stopped by a signal, starved, or busy with a slow disk."""

    def __init__(self, now: float) -> None:
        self._last = now

    def away_s(self, now: float, asked_s: float = 0.0) -> float:
        """Seconds since the last look beyond the ``asked_s`` that the driver meant to wait; 0 if they are few."""
        away, self._last = now - self._last - asked_s, now
        return away if away > LAPSE_S else 0.0


def is_late(one: Timed, worker: str, now: float, waited: Waited) -> bool:
    """Whether a worker is past a deadline, after moving it by the time that the worker waited for a core (GRACE_MAX_S
    at most).
    """
    if one.deadline > now:
        return False
    total = waited(worker)
    more = min(total - one.waited, GRACE_MAX_S - one.grace)
    one.waited = total
    if more > 0:
        one.deadline += more
        one.grace += more
    return one.deadline <= now


class UnderWay:
    """The executions that have not ended, by attempt: ``running``, and ``cancelled`` ones, whose answers are still of
    use.

    Args:
        deadline_s: of every execution; None: it follows from how long such tasks take.
        f: faulty replicas to tolerate.
        watch: finds overdue executions; None if none is to be overtaken.
        waited: how long a worker has waited for a core.
    """

    def __init__(
        self, deadline_s: float | None, f: int, watch: Watch | None, waited: Waited = lambda worker: 0.0
    ) -> None:
        self.running: dict[int, Running] = {}
        self.cancelled: dict[int, Running] = {}
        self._fixed_s = deadline_s
        self._f = f
        self._watch = watch
        self._waited = waited
        self._slowest: dict[str, float] = {}  # work -> seconds

    def __iter__(self) -> Iterator[Running]:
        """All of them, the running ones first."""
        yield from self.running.values()
        yield from self.cancelled.values()

    def __len__(self) -> int:
        """How many there are."""
        return len(self.running) + len(self.cancelled)

    def find(self, worker: str, attempt: int) -> Running | None:
        """The execution of an attempt, if ``worker`` was to execute it."""
        known = self.running.get(attempt) or self.cancelled.get(attempt)
        return known if known is not None and known.launch.worker == worker else None

    def workers(self) -> set[str]:
        """Workers that have something under way."""
        return {one.launch.worker for one in self}

    def free_at(self, worker: str, now: float) -> float:
        """By when a worker has executed what it was sent."""
        return max((one.deadline for one in self.running.values() if one.launch.worker == worker), default=now)

    def begin(
        self, launch: m.Assignment, fault: wire.Fault | None, nbytes: int, now: float, pending: bool, engaged: bool
    ) -> None:
        """Note a launch. ``pending``: its worker has yet to begin the job; ``engaged``: it has a known-answer test to
        do first.
        """
        limit_s = max(self._deadline(launch), DEADLINE_START_S if pending or engaged else 0.0)
        waited = self._waited(launch.worker)
        self.running[launch.attempt] = Running(
            launch, now + limit_s, now + PATIENCE_START_S * pending, fault, nbytes, waited
        )

    def cancel(self, attempt: int) -> Running | None:
        """The tracker no longer wants an attempt; None if it is not running."""
        one = self.running.pop(attempt, None)
        if one is not None:
            self.cancelled[attempt] = one
        return one

    def finished(self, one: Running, now: float, engaged: Callable[[str], bool]) -> None:
        """Learn how long such tasks take, and move deadlines closer that were set before anything was known.

        The deadline of a worker that is ``engaged`` in a known-answer test stays.
        """
        del self.running[one.launch.attempt]
        work = one.launch.work
        if self._watch is not None:
            self._watch.finished(one, now)
        self._slowest[work] = max(self._slowest.get(work, 0.0), now - one.started)
        for running in self.running.values():
            if running.launch.work == work and not engaged(running.launch.worker):
                running.deadline = min(
                    running.deadline, running.started + self._deadline(running.launch) + running.grace
                )

    def lost(self, worker: str) -> list[Running]:
        """A worker is gone; return what it had under way."""
        gone = [one for one in self if one.launch.worker == worker]
        for one in gone:
            self.running.pop(one.launch.attempt, None)
            self.cancelled.pop(one.launch.attempt, None)
        return gone

    def next_due(self) -> float:
        """The first deadline; infinity if nothing is under way."""
        return min((one.deadline for one in self), default=float("inf"))

    def restart(self, worker: str, now: float) -> None:
        """What was sent to a worker begins only now: it was busy with something else than a task."""
        for running in self.running.values():
            if running.launch.worker == worker:
                running.started, running.deadline = now, now + self._deadline(running.launch)
                running.waited, running.grace = self._waited(worker), 0.0

    def postpone(self, away_s: float) -> None:
        """The driver was away: that time is not the workers'."""
        for one in self:
            one.started += away_s
            one.deadline += away_s

    def expired(self, now: float) -> list[Running]:
        """Executions that are past their deadline. Each is reported once: its deadline moves far into the future."""
        late = [one for one in self if is_late(one, one.launch.worker, now, self._waited)]
        for one in late:
            one.deadline = now + DEADLINE_FIRST_S
        return late

    def _deadline(self, launch: m.Assignment) -> float:
        """A fixed deadline, or one far above the slowest task so far, doubled at every retry."""
        if self._fixed_s is not None:
            return self._fixed_s
        slowest = self._slowest.get(launch.work)
        if slowest is None:
            return DEADLINE_FIRST_S
        return float(max(DEADLINE_LEAST_S, DEADLINE_FACTOR * slowest) * 2 ** min(max(0, launch.replica - self._f), 10))

    def overdue(self, now: float) -> list[int]:
        """Attempts that take too long; empty between two looks."""
        return self._watch.overdue(list(self), now) if self._watch is not None else []

    def was_late(self, attempt: int) -> bool:
        """Whether an attempt was overdue once."""
        return self._watch is not None and attempt in self._watch.late

    def left_behind(self) -> set[str]:
        """Workers that are still busy with what was overdue."""
        return {one.launch.worker for one in self if self.was_late(one.launch.attempt)}
