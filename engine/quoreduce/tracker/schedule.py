"""Which tasks want replicas or checks, and when these are launched (R1-R3, R13).

`Schedule.top_up` queues a task while it lacks replicas or checks; `Schedule.schedule` finds slots for them.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection

from quoreduce.tracker import reasons
from quoreduce.tracker.copies import Copies
from quoreduce.tracker.executions import Executions
from quoreduce.tracker.messages import Kind
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState

# Tasks that cannot be launched now and are stepped over, per event, in search of one that can.
LOOK_AHEAD_TASKS = 64


class Schedule:
    """The tasks that wait for slots.

    Attributes:
        queues: for each kind, tasks that were begun come before fresh ones.
        checks: for each kind, tasks of which an output is to be checked. They come before executions of their kind:
            what a check reads was read or written a moment ago.
    """

    def __init__(self, shared: Shared, copies: Copies, executions: Executions) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._pool = shared.pool
        self._copies = copies
        self._executions = executions
        self.queues: dict[tuple[Kind, bool], OrderedDict[int, TaskState]] = {
            (kind, begun): OrderedDict() for kind in ("sample", "map", "reduce") for begun in (True, False)
        }
        self.checks: dict[Kind, OrderedDict[int, TaskState]] = {kind: OrderedDict() for kind in shared.plan.checked}
        self._lanes: list[tuple[Kind, OrderedDict[int, TaskState], Callable[[TaskState], bool]]] = []
        for (kind, begun), queue in self.queues.items():
            if begun and kind in self.checks:
                self._lanes.append((kind, self.checks[kind], self._feed_checks))
            self._lanes.append((kind, queue, self._feed))

    def wanted(self, state: TaskState) -> int:
        """How many replicas to launch now: what the vote lacks, or what an up-front plan still owes (slide 18)."""
        return max(state.owed, self.lacking(state, state.running.values()))

    def lacking(self, state: TaskState, running: Collection[Attempt]) -> int:
        """How many replicas the task cannot do without (R2): as many as must agree, less those `running` that may.

        What is checked (R13) needs one, whose output can be read; an error is none.
        """
        if state.winner is None and not state.strict:
            if not state.ballot.candidates:
                return not running
            return not state.ballot.candidates[0].copies and not any(attempt.store for attempt in running)
        if state.winner is None:
            return state.ballot.missing({attempt.domain for attempt in running}, self._plan.need)
        # Won. But a stored copy of what won is needed: a map's until the job is done, another's until published (R6).
        needed = state.task.kind == "map" or state.published is None
        return needed and not state.winner.copies and not any(attempt.store for attempt in running)

    def checks_lacking(self, state: TaskState, running: Collection[Attempt]) -> int:
        """How many checks the task cannot do without, besides those `running`: as many domains as must stand behind its
        output (R13).
        """
        if state.strict or state.winner is not None or not state.ballot.candidates:
            return 0
        (candidate,) = state.ballot.candidates
        if not candidate.copies:
            return 0
        return max(0, self._plan.need - len(candidate.backers | {check.domain for check in running}))

    def top_up(self, state: TaskState) -> None:
        """Queue a task if it wants replicas or checks, take it off the queue if it does not, give up at the bound
        (R3).
        """
        if not state.strict:
            self._top_up_checks(state)
        kind, index = state.task.kind, state.task.index
        queue = self.queues[kind, state.executions > 0]
        state.wanted = self.wanted(state)
        if state.wanted <= 0 or self._exhausted(state):
            queue.pop(index, None)
        elif index not in queue:
            queue[index] = state

    def _top_up_checks(self, state: TaskState) -> None:
        queue, index = self.checks[state.task.kind], state.task.index
        state.checks_wanted = self.checks_lacking(state, state.checking.values())
        if state.checks_wanted and state.checks >= self._plan.bound:
            self.vote(state)
        if not state.checks_wanted:
            queue.pop(index, None)
        elif index not in queue:
            queue[index] = state

    def vote(self, state: TaskState) -> None:
        """From now on executions alone decide about a task (R13): what its checks said is void."""
        state.strict = True
        state.checks_wanted = 0
        self.checks[state.task.kind].pop(state.task.index, None)
        for candidate in state.ballot.candidates:
            candidate.vouchers.clear()
        for check in list(state.checking.values()):
            self._executions.cancel(check)

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
        """Fill free slots: sample, maps, reduces; within a kind checks first, then tasks already begun."""
        for kind, queue, feed in self._lanes:
            if not self._pool.free or (kind == "reduce" and self._copies.maps_unready):
                break
            if not queue:
                continue
            skipped = 0
            fed: list[int] = []
            for index, state in queue.items():
                if not self._pool.free or skipped >= LOOK_AHEAD_TASKS or self._shared.done:
                    break
                satisfied = feed(state)
                skipped += not satisfied
                if satisfied:
                    fed.append(index)
                elif state.executions and queue is self.queues[kind, False]:
                    fed.append(index)
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

    def _feed_checks(self, state: TaskState) -> bool:
        """Launch as many checks as the task wants. False if it has to wait for slots or for more domains."""
        while state.checks_wanted > 0:
            (candidate,) = state.ballot.candidates
            taken = candidate.backers | {check.domain for check in state.checking.values()}
            domain = self._pool.fresh(taken)
            if domain is None:
                return False
            self._executions.check(state, domain, self._shared.attempts[candidate.copies[0]])
            state.checks_wanted = self.checks_lacking(state, state.checking.values())
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
        return next((state for _, queue, _ in self._lanes for state in queue.values()), None)
