"""Attempts that overtake slow ones (R9): executions and checks, where they are in nobody's way."""

from __future__ import annotations

from quoreduce.tracker.copies import Copies
from quoreduce.tracker.executions import Executions
from quoreduce.tracker.schedule import Schedule
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState


class Speculation:
    """Launches speculative attempts, ``need`` at most for the executions of a task, and as many for its checks."""

    def __init__(self, shared: Shared, copies: Copies, executions: Executions, schedule: Schedule) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._pool = shared.pool
        self._copies = copies
        self._executions = executions
        self._schedule = schedule

    def slow(self, attempt: Attempt) -> None:
        """An attempt is overdue, and so are those whose answers its worker still owes."""
        for id_ in (attempt.id, *self._executions.awaited.get(attempt.worker, ())):
            if self._shared.attempts[id_].status == "running":
                self._overtake(self._shared.attempts[id_])

    def _overtake(self, attempt: Attempt) -> None:
        """Launch one speculative attempt, if those in time cannot do without.

        Only where it is in nobody's way: now, on a free slot of a domain that is new to the task. The slow one goes on,
        and if it is the first to answer, so much the better.
        """
        attempt.slow, state = True, attempt.state
        if attempt.checks is not None:
            self._overtake_check(state)
            return
        if state.speculative >= self._plan.need or self._schedule.wanted(state):
            return
        if not self._schedule.lacking(state, state.in_time()):
            return
        domain = self._pool.fresh(state.asked)
        if domain is not None and not (state.task.kind == "reduce" and self._copies.maps_unready):
            self._executions.launch(state, domain, speculative=True)

    def _overtake_check(self, state: TaskState) -> None:
        in_time = [check for check in state.checking.values() if not check.slow]
        wanted = state.speculative_checks < self._plan.need and not state.checks_wanted
        if not wanted or not self._schedule.checks_lacking(state, in_time):
            return
        (candidate,) = state.ballot.candidates
        domain = self._pool.fresh(candidate.backers | {check.domain for check in state.checking.values()})
        if domain is not None and not (state.task.kind == "reduce" and self._copies.maps_unready):
            stored = self._shared.attempts[candidate.copies[0]]
            self._executions.check(state, domain, stored, speculative=True)
