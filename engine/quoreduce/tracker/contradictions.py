"""What a map's vote takes back that reduces have done on another output of it (R5, slide 20)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from quoreduce.tracker.copies import Copies
from quoreduce.tracker.executions import Executions
from quoreduce.tracker.messages import Output
from quoreduce.tracker.schedule import Schedule
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState
from quoreduce.tracker.vote import Candidate


class Contradictions:
    """Restarts reduces that have read a partition which lost its vote."""

    def __init__(self, shared: Shared, copies: Copies, executions: Executions, schedule: Schedule) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._attempts = shared.attempts
        self._copies = copies
        self._executions = executions
        self._schedule = schedule

    def contradict(self, state: TaskState, shown: Candidate, output: Output, reduces: Sequence[TaskState]) -> None:
        """A map's vote went against what reduces have read: restart those that read a losing partition (R5)."""
        m, read = state.task.index, shown.output
        assert read is not None, "only outputs are shown to reduces"
        for r, reduce in enumerate(reduces):
            if read.parts[r].digest != output.parts[r].digest:
                self._restart(reduce, m, shown)
                continue
            # This partition is right, though others of the same copy are not: let its readers finish.
            self._copies.hold(shown, m, [*reduce.running.values(), *reduce.checking.values()])

    def _restart(self, reduce: TaskState, m: int, lost: Candidate) -> None:
        """Withdraw what a reduce has done on a losing partition of map `m`: running, voted and stored (R5)."""

        def stale(attempt: Attempt) -> bool:
            return any(source.attempt in lost.attempts for source in attempt.sources[m])

        votes = [self._attempts[id_] for candidate in reduce.ballot.candidates for id_ in candidate.attempts]
        withdrawn = [attempt.id for attempt in votes if stale(attempt)]
        # Its checks have read what it has read, for no other output of the map was shown.
        reduce.verdicts = [check for check in reduce.verdicts if check.checks not in withdrawn]
        checking = [check for check in reduce.checking.values() if check.checks in withdrawn]
        for attempt in [a for a in reduce.running.values() if stale(a)] + checking:
            self._executions.cancel(attempt)
        for id_ in withdrawn:
            self._copies.discard(self._attempts[id_])
        reduce.ballot.withdraw(withdrawn)
        self._shared.ledger.withdrawn_votes += len(withdrawn)
        # What is left are the executions that count; the task begins anew with them (R1, R3).
        left = [a for a in votes if a.id not in withdrawn] + list(reduce.running.values())
        reduce.asked = dict(Counter(attempt.domain for attempt in left))
        reduce.tries = len(left)
        if self._plan.upfront:
            reduce.owed = max(0, self._plan.first - len(left))
        self._schedule.top_up(reduce)
