"""The executions and checks of a job: where they run, and which answers are still to come (R6, R9, R10, R13)."""

from __future__ import annotations

from collections.abc import Iterable

from quoreduce.tracker.copies import Copies
from quoreduce.tracker.messages import Cancel, Check, Discard, Launch, Source
from quoreduce.tracker.placement import Domain
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState


class Executions:
    """Launches attempts, and takes note of how they end.

    ``awaited``: worker -> attempts that were executed there, whose answers are to come.
    """

    def __init__(self, shared: Shared, copies: Copies) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._pool = shared.pool
        self._ledger = shared.ledger
        self._attempts = shared.attempts
        self._copies = copies
        self._next = shared.plan.first_attempt
        self.awaited: dict[str, dict[int, None]] = {}

    def launch(self, state: TaskState, domain: Domain, speculative: bool = False) -> None:
        """Have a task executed in a domain that has a free slot."""
        id_, task, replica = self._next, state.task, state.executions
        self._next += 1
        store = self._stores(state)
        sources: tuple[tuple[Source, ...], ...] = ()
        if task.kind == "reduce":
            sources = self._copies.gather()
            self._ledger.shipped_nbytes += self._copies.offered_nbytes[task.index]
        worker = self._pool.take(domain, id_)
        attempt = Attempt(id_, state, worker, domain.name, replica, store, sources, speculative=speculative)
        self._attempts[id_] = state.running[id_] = attempt
        state.asked[domain.name] = state.asked.get(domain.name, 0) + 1
        state.executions += 1
        state.tries += not speculative
        state.speculative += speculative
        state.owed = max(0, state.owed - 1)
        self._ledger.launch(task.kind, replica < self._plan.planned(task.kind), speculative)
        self._shared.emit(Launch(id_, task, replica, worker, store, sources))

    def check(self, state: TaskState, domain: Domain, stored: Attempt, speculative: bool = False) -> None:
        """Have a stored output checked in a domain that has a free slot (R13)."""
        id_, task, number = self._next, state.task, state.checks
        self._next += 1
        sources: tuple[tuple[Source, ...], ...] = ()
        if task.kind == "reduce":
            sources = self._copies.gather()
            self._ledger.shipped_nbytes += self._copies.offered_nbytes[task.index]
        worker = self._pool.take(domain, id_)
        attempt = Attempt(
            id_, state, worker, domain.name, number, False, sources, candidate=stored.candidate,
            speculative=speculative, checks=stored.id,
        )  # fmt: skip
        self._attempts[id_] = state.checking[id_] = attempt
        state.checks += 1
        state.speculative_checks += speculative
        self._ledger.checks[task.kind] += 1
        self._shared.emit(Check(id_, task, number, worker, stored.id, sources))

    def _stores(self, state: TaskState) -> bool:
        """Whether the next replica stores its output (R6): one does, and a speculative attempt if that one is slow.

        In a dispute all further ones do too, for the storing replica may be the one that is wrong.
        """
        if self._plan.stores_all or state.ballot.disputed:
            return True
        stored = any(candidate.copies for candidate in state.ballot.candidates)
        return not stored and not any(attempt.store for attempt in state.in_time())

    def seated(self, id_: int) -> Attempt | None:
        """The attempt of this number, if it occupies a slot; None, and the event is ignored, if it does not (R10)."""
        attempt = self._attempts.get(id_)
        if attempt is None or attempt.status == "over" or not attempt.seated:
            self._ledger.ignored += 1
            return None
        return attempt

    def executed(self, attempt: Attempt) -> None:
        """The worker is free; until the answer comes the attempt counts as running."""
        attempt.seated = False
        self._pool.release(attempt.worker, attempt.id)
        self.awaited.setdefault(attempt.worker, {})[attempt.id] = None

    def end(self, id_: int) -> Attempt | None:
        """Take an answer for an attempt: free its slot. None if the answer is not to be used (R10)."""
        attempt = self._attempts.get(id_)
        if attempt is None or attempt.status == "over":
            self._ledger.ignored += 1
            return None
        cancelled = attempt.status == "cancelled"
        attempt.status = "over"
        if attempt.seated:
            self._pool.release(attempt.worker, id_)
        else:
            del self.awaited[attempt.worker][id_]
        if cancelled:
            self._ledger.ignored += 1
            if attempt.store:
                self._shared.emit(Discard(id_))
            return None
        del attempt.siblings[id_]
        self._copies.let_go(attempt)
        return attempt

    def lost(self, worker: str, occupants: Iterable[int]) -> list[Attempt]:
        """A worker is gone; return the attempts that have crashed with it, of which `occupants` had a slot."""
        unanswered = [*self.awaited.pop(worker, ()), *occupants]
        crashed = [self._attempts[a] for a in unanswered if self._attempts[a].status == "running"]
        for id_ in unanswered:
            self._attempts[id_].status = "over"
        return crashed

    def crash(self, attempt: Attempt) -> None:
        """An execution, or a check, is lost without an answer that counts (R9)."""
        self._ledger.crashed += 1
        attempt.state.crashed += 1
        if attempt.siblings.pop(attempt.id, None) is not None:
            self._copies.let_go(attempt)

    def cancel(self, attempt: Attempt) -> None:
        """An execution, or a check, is no longer wanted."""
        attempt.status = "cancelled"
        del attempt.siblings[attempt.id]
        self._ledger.cancelled += 1
        self._shared.emit(Cancel(attempt.id))
        self._copies.let_go(attempt)
