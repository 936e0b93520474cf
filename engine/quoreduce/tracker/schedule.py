"""Which tasks want replicas, and when these are launched (R1-R3).

`Schedule.top_up` queues a task while it lacks replicas; `Schedule.schedule` finds slots for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection

from quoreduce.tracker import reasons
from quoreduce.tracker.copies import Copies
from quoreduce.tracker.executions import Executions
from quoreduce.tracker.messages import Kind
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState

# Tasks that cannot be launched now and are stepped over, per event, in search of one that can.
LOOK_AHEAD_TASKS = 64


class Schedule:
    """The tasks that wait for slots. ``queues``: for each kind, tasks that were begun come before fresh ones."""

    def __init__(self, shared: Shared, copies: Copies, executions: Executions) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._pool = shared.pool
        self._copies = copies
        self._executions = executions
        self.queues: dict[tuple[Kind, bool], OrderedDict[int, TaskState]] = {
            (kind, begun): OrderedDict() for kind in ("sample", "map", "reduce") for begun in (True, False)
        }

    def wanted(self, state: TaskState) -> int:
        """How many replicas to launch now: what the vote lacks, or what an up-front plan still owes (slide 18)."""
        return max(state.owed, self.lacking(state, state.running.values()))

    def lacking(self, state: TaskState, running: Collection[Attempt]) -> int:
        """How many replicas the task cannot do without (R2): as many as must agree, less those `running` that may."""
        if state.winner is None:
            return state.ballot.missing({attempt.domain for attempt in running}, self._plan.need)
        # Won. But a stored copy of what won is needed: a map's until the job is done, another's until published (R6).
        needed = state.task.kind == "map" or state.published is None
        return needed and not state.winner.copies and not any(attempt.store for attempt in running)

    def top_up(self, state: TaskState) -> None:
        """Queue a task if it wants replicas, take it off the queue if it does not, give up at the bound (R3)."""
        kind, index = state.task.kind, state.task.index
        queue = self.queues[kind, state.executions > 0]
        state.wanted = self.wanted(state)
        if state.wanted <= 0 or self._exhausted(state):
            queue.pop(index, None)
        elif index not in queue:
            queue[index] = state

    def _exhausted(self, state: TaskState) -> bool:
        """Whether a task that wants another replica is at its bound (R3); fails the job if it cannot do without."""
        if state.tries < self._plan.bound:
            return False
        if not self.lacking(state, state.running.values()):
            state.owed = 0
            return True
        reason, why = reasons.exhausted(state, self._plan.need, len(self._pool.domains))
        self._shared.fail(reason, state.task, why)
        return True

    def schedule(self) -> None:
        """Fill free slots: sample, maps, reduces; within a kind, tasks already begun first."""
        for (kind, begun), queue in self.queues.items():
            if not self._pool.free or (kind == "reduce" and self._copies.maps_unready):
                break
            if not queue:
                continue
            skipped = 0
            fed: list[int] = []
            for index, state in queue.items():
                if not self._pool.free or skipped >= LOOK_AHEAD_TASKS or self._shared.done:
                    break
                satisfied = self._feed(state)
                skipped += not satisfied
                if satisfied or (state.executions and not begun):
                    fed.append(index)
                    if not satisfied:
                        self.queues[kind, True][index] = state
            for index in fed:  # not before: a dict must not shrink while it is gone through
                del queue[index]

    def _feed(self, state: TaskState) -> bool:
        """Launch as many replicas as the task wants. False if it has to wait for slots or for more domains."""
        while state.wanted > 0:
            if self._exhausted(state):
                return True
            running = state.running_domains()
            if self._hopeless(state, running):
                return False
            domain = self._pool.choose(state.asked, running, state.ballot, state.winner)
            if domain is None:
                return False
            self._executions.launch(state, domain)
            state.wanted = self.wanted(state)
        return True

    def _hopeless(self, state: TaskState, running: set[str]) -> bool:
        """Whether even all live domains together could not win the vote, so that executions would be wasted."""
        if state.winner is not None or len(self._pool.domains) >= self._plan.need:
            return False
        return state.ballot.missing(running | self._pool.domains.keys(), self._plan.need) > 0

    def owing(self) -> bool:
        """Whether replicas of an up-front plan are still to be launched: it is executed in full (slide 18)."""
        if not self._plan.upfront or not self._pool.workers:
            return False
        return any(state.owed for queue in self.queues.values() for state in queue.values())

    def first(self) -> TaskState | None:
        """The first task that waits."""
        return next((state for queue in self.queues.values() for state in queue.values()), None)
