"""What is held against domains (R11): votes that they lost, answers that contradict others', and tests that they fail.

Nobody is accused before a task has a winner: until then it may be the job that is wrong, not the domain.
"""

from __future__ import annotations

from quoreduce.tracker.messages import Accused, Retest, Retested
from quoreduce.tracker.shared import Shared
from quoreduce.tracker.state import Attempt, TaskState
from quoreduce.tracker.suspicion import Work
from quoreduce.tracker.vote import Candidate


class Accusations:
    """Notes who lost a vote, and has domains tested. ``tests``: those that are under way."""

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._plan = shared.plan
        self._pool = shared.pool
        self._attempts = shared.attempts
        self.tests: dict[int, Retest] = {}

    def won(self, state: TaskState, winner: Candidate) -> None:
        """A task is won: whoever voted for something else has lost."""
        lost = {
            id_: domain
            for candidate in state.ballot.candidates
            if candidate is not winner
            for id_, domain in candidate.attempts.items()
        }
        unsound = [check for check in state.verdicts if check.approved != (check.candidate is winner)]
        losers = {*lost.values(), *(check.domain for check in unsound)}
        voters = [domain for candidate in state.ballot.candidates for domain in candidate.attempts.values()]
        for domain in dict.fromkeys([*voters, *(check.domain for check in state.verdicts)]):
            self._pool.judge(domain, True, domain in losers)
        for check in state.verdicts:
            self._compare(check, check in unsound)
        for candidate in state.ballot.candidates:
            for id_ in candidate.attempts:
                self._compare(self._attempts[id_], candidate is not winner)
        for id_, domain in [*lost.items(), *((check.id, check.domain) for check in unsound)]:
            self._accuse(state, id_, domain)

    def late(self, attempt: Attempt, lost: bool) -> None:
        """A vote came after the task was won. Several votes of a domain on one task, in this run, count once."""
        state, domain = attempt.state, attempt.domain
        before = [
            candidate is not state.winner
            for candidate in state.ballot.candidates
            for id_, other in candidate.attempts.items()
            if other == domain and id_ != attempt.id and id_ >= self._plan.first_attempt
        ]
        self._pool.judge(domain, not before, lost and not any(before))
        self._compare(attempt, lost)
        if lost:
            self._accuse(state, attempt.id, domain)

    def doubt(self, attempt: Attempt) -> None:
        """An answer contradicts those before it: it is time to test who gave it, and who gave the first that is
        contradicted.

        Nobody is accused by that. But with f+1 domains, of which one is broken for good, no vote is ever won, and only
        a test tells who it is; with more of them a test comes sooner than the vote.
        """
        candidates, attempts = attempt.state.ballot.candidates, self._attempts
        first = {attempts[id_].domain: attempts[id_] for id_ in candidates[0].attempts} if len(candidates) == 2 else {}
        self._test({attempt.domain: attempt} | first)

    def contest(self, check: Attempt, candidate: Candidate) -> None:
        """A check disagrees with what it checked (R13): as :meth:`doubt` between the two."""
        executed = [self._attempts[id_] for id_ in candidate.attempts]
        self._test({check.domain: check} | {attempt.domain: attempt for attempt in executed})

    def _test(self, answered: dict[str, Attempt]) -> None:
        """Have domains whose answers contradict each other tested, those whose turn it is."""
        for name, one in answered.items():
            domain = self._pool.domains.get(name)
            if domain is None or not self._pool.suspicion.dispute(name):
                continue
            if all(test.domain != name for test in self.tests.values()):  # else it is being tested just now
                worker = one.worker if one.worker in domain.workers else next(iter(domain.workers))
                ledger = self._shared.ledger
                test = self.tests[ledger.tests] = Retest(ledger.tests, name, worker)
                ledger.tests += 1
                self._shared.emit(test)

    def tested(self, event: Retested) -> None:
        """The outcome of a test; of one that was asked for."""
        test = self.tests.pop(event.test, None)
        if test is None:
            self._shared.ledger.ignored += 1
        else:
            self._pool.tested(test.domain, event.passed)

    def lost(self, worker: str) -> None:
        """A worker is gone, and with it its test."""
        self.tests = {number: one for number, one in self.tests.items() if one.worker != worker}

    def _accuse(self, state: TaskState, id_: int, domain: str) -> None:
        self._shared.ledger.lost_votes += 1
        self._shared.emit(Accused(state.task, id_, domain))

    def _compare(self, attempt: Attempt, lost: bool) -> None:
        kind, planned = attempt.state.task.kind, self._plan.planned(attempt.state.task.kind)
        work: Work = kind if attempt.checks is None else "check"
        if attempt.replica < (planned if attempt.checks is None else self._plan.need - 1):
            group = work, attempt.replica, self._pool.types[attempt.domain]
            self._pool.compare(attempt.domain, group, lost)
