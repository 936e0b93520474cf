"""The schedules are worth what they catch: plant bugs in the tracker, one by one, and each must be caught.

A mutant is the tracker's source with one passage replaced, loaded under another name beside the real one; the messages
are shared, since they are the language that both speak.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from planting import load, weed
from schedule import run

SCHEDULES_MAX = 3000

MUTANTS = {
    "f equal outputs win, not f+1": ("vote", "len(leader.backers) >= need", "len(leader.backers) >= need - 1"),
    "a domain counts as often as it votes": (
        "vote",
        "candidate.domains[domain] = self.votes",
        'candidate.domains[f"{domain} {attempt}"] = self.votes',
    ),
    "a digest is believed, whoever raised or produced it": (
        "vote",
        "return mine is output and self.digest == digest",
        "return True",
    ),
    "votes on losing partitions stay": (
        "contradictions",
        "reduce.ballot.withdraw(withdrawn)",
        "pass",
    ),
    "nothing is restarted on a contradiction": (
        "tracker",
        "self._contradictions.contradict(state, state.shown, output, self._reduces)",
        "pass",
    ),
    "only running reduces are restarted": (
        "contradictions",
        "withdrawn = [attempt.id for attempt in votes if stale(attempt)]",
        "withdrawn = []",
    ),
    "only voted reduces are restarted": (
        "contradictions",
        "for attempt in [a for a in reduce.running.values() if stale(a)] + checking:",
        "for attempt in ():",
    ),
    "a reduce wins before its inputs": (
        "tracker",
        'if state.task.kind == "reduce" and self._maps_unwon:',
        "if False:",
    ),
    "a lost block is still read": ("copies", "attempt.candidate.copies.remove(attempt.id)", "pass"),
    "a copy is discarded while it is read": ("copies", "if source.attempt in shown.copies:", "if False:"),
    "a duplicate counts as a vote": (
        "executions",
        'if attempt is None or attempt.status == "over":',
        "if attempt is None:",
    ),
    "the answer of a cancelled replica counts": ("executions", "        if cancelled:\n", "        if False:\n"),
    "a cancelled replica's slot is free at once": (
        "executions",
        "self._shared.emit(Cancel(attempt.id))",
        "self._shared.emit(Cancel(attempt.id)); self._pool.release(attempt.worker, attempt.id)",
    ),
    "deferred starts too many": (
        "schedule",
        "return state.ballot.missing({attempt.domain for attempt in running}, self._plan.need)",
        "return state.ballot.missing(set(), self._plan.need) - len(running) // 2",
    ),
    "a crash is not replaced": (
        "tracker",
        "        self._replace(attempt.state)\n\n    def _replace",
        "\n    def _replace",
    ),
    "reduces read disputed outputs": ("copies", "len(state.ballot.candidates) == 1:", "state.ballot.candidates:"),
    "replicas share a domain": ("placement", "if name not in asked:", "if True:"),
    "what is lost whenever it is made is made without end": (
        "tracker",
        "        state.published = winner.copies[0]\n",
        "        state.published = winner.copies[0]; state.tries = 0\n",
    ),
    "the bound is forgotten": ("schedule", "if state.tries < self._plan.bound:", "if True:"),
    "an error is the job's own at once": (
        "tracker",
        "        winner = state.ballot.winner(self.plan.need)\n",
        "        winner = state.ballot.winner(self.plan.need) or next("
        "(c for c in state.ballot.candidates if c.output is None), None)\n",
    ),
    "an answer that a dead worker owed is not missed": (
        "executions",
        "unanswered = [*self.awaited.pop(worker, ()), *occupants]",
        "unanswered = [*occupants]",
    ),
    "a slot is freed when the work ends, and again when the answer comes": (
        "executions",
        "        if attempt.seated:\n",
        "        if True:\n",
    ),
    "a job is done before its outputs are published": (
        "tracker",
        "count = self._reduces_confirmed if self.plan.confirm else self._reduces_agreed",
        "count = self._reduces_agreed",
    ),
    "an output that was lost before it was published counts": (
        "tracker",
        "or attempt.state.published != attempt.id or attempt.state.confirmed",
        "or attempt.state.confirmed",
    ),
    "a publication counts twice": (
        "tracker",
        "or attempt.state.published != attempt.id or attempt.state.confirmed",
        "or attempt.state.published != attempt.id",
    ),
    "what is published is missed when it is lost": (
        "tracker",
        'state.task.kind == "reduce" and not state.confirmed:',
        'state.task.kind == "reduce":',
    ),
    "a speculative attempt in a domain that has run the task": (
        "speculation",
        "domain = self._pool.fresh(state.asked)",
        "domain = self._pool.fresh(())",
    ),
    "speculative attempts without end": ("speculation", "if state.speculative >= self._plan.need or", "if"),
    "a speculative attempt for one that the vote can do without": (
        "speculation",
        "if not self._schedule.lacking(state, state.in_time()):",
        "if False:",
    ),
    "a speculative attempt reads what is not there": (
        "speculation",
        'not (state.task.kind == "reduce" and self._copies.maps_unready):\n            self._executions.launch',
        "True:\n            self._executions.launch",
    ),
    "a speculative attempt for a storing replica does not store": (
        "executions",
        "any(attempt.store for attempt in state.in_time())",
        "any(attempt.store for attempt in state.running.values())",
    ),
    "what was agreed on in an earlier life is planned again": (
        "tracker",
        "state.owed, state.executions, state.winner = 0, self.plan.planned(event.task.kind), attempt.candidate",
        "state.executions, state.winner = self.plan.planned(event.task.kind), attempt.candidate",
    ),
    "copies of an earlier life are not used": ("tracker", "        if event.stored:\n", "        if False:\n"),
    "copies of an earlier life are there even if they are lost": (
        "tracker",
        "        if event.stored:\n",
        "        if True:\n",
    ),
    "a vote of an earlier life counts for one domain": (
        "tracker",
        "for domain in event.domains:",
        "for domain in event.domains[:1]:",
    ),
    "numbers of attempts begin anew in each life": (
        "executions",
        "self._next = shared.plan.first_attempt",
        "self._next = 0",
    ),
    "a job ends while a test is under way": (
        "tracker",
        "if self._all_published() and not self._schedule.owing() and not self._accusations.tests:",
        "if self._all_published() and not self._schedule.owing():",
    ),
    "the test of a worker that died is waited for": (
        "accusations",
        "if one.worker != worker}",
        "}",
    ),
    "the outcome of a test counts twice": (
        "accusations",
        "self.tests.pop(event.test, None)",
        "self.tests.get(event.test)",
    ),
    "sums that differ are taken for equal": ("tracker", "!= claimed or event.given != event.found:", "!= claimed:"),
    "a check of other bytes counts": (
        "tracker",
        "if [part.digest for part in event.output.parts] != [part.digest for part in claimed.parts]:",
        "if False:",
    ),
    "a rejection is forgotten": ("tracker", "        self._schedule.vote(state)\n        if check", "        if check"),
    "what was rejected is still read": (
        "tracker",
        "if check.checks is not None and self._attempts[check.checks].stored:",
        "if False:",
    ),
    "checks stand beside the executions that they were to replace": ("schedule", "candidate.vouchers.clear()", "pass"),
    "a checker counts as often as it approves": (
        "vote",
        "self.domains.keys() | self.vouchers.values()",
        "self.domains.keys() | set(map(str, self.vouchers))",
    ),
    "a task is checked where it was executed": (
        "schedule",
        "taken = candidate.backers | {check.domain for check in state.checking.values()}",
        "taken = {check.domain for check in state.checking.values()}",
    ),
    "two checks of a task in one domain": (
        "schedule",
        "taken = candidate.backers | {check.domain for check in state.checking.values()}",
        "taken = candidate.backers",
    ),
    "f - 1 checks are enough": (
        "schedule",
        "return max(0, self._plan.need - len(candidate.backers | {check.domain for check in running}))",
        "return max(0, self._plan.need - 1 - len(candidate.backers | {check.domain for check in running}))",
    ),
    "one check too many": (
        "schedule",
        "return max(0, self._plan.need - len(candidate.backers | {check.domain for check in running}))",
        "return max(0, self._plan.need + (not running) - len(candidate.backers | {check.domain for check in running}))",
    ),
    "checks without end": ("schedule", "if state.checks_wanted and state.checks >= self._plan.bound:", "if False:"),
    "checks of what was withdrawn go on": ("contradictions", "if stale(a)] + checking:", "if stale(a)]:"),
    "what checks said of what was withdrawn stays": (
        "contradictions",
        "[check for check in reduce.verdicts if check.checks not in withdrawn]",
        "reduce.verdicts",
    ),
    "a dispute is left to the checks": ("tracker", "if not state.strict and state.winner is None and", "if False and"),
    "checks go on when the task is won": (
        "tracker",
        "for attempt in [*surplus, *state.checking.values()]:",
        "for attempt in surplus:",
    ),
    "a checker that was right is accused": (
        "accusations",
        "if check.approved != (check.candidate is winner)]",
        "if not check.approved]",
    ),
    "who checked in an earlier life is forgotten": (
        "tracker",
        "{-1 - n: domain for n, domain in enumerate(event.checkers)}",
        "{}",
    ),
    "a storing replica that died is not missed": (
        "schedule",
        "return needed and not state.winner.copies and",
        "return False and needed and not state.winner.copies and",
    ),
}


@pytest.fixture(autouse=True)
def _weeded() -> Iterator[None]:
    yield
    weed()


def caught_after(make: Any, schedules: int) -> int | None:
    for seed in range(schedules):
        try:
            run(seed, make)
        except AssertionError:
            return seed
    return None


def test_the_tracker_itself_passes() -> None:
    assert caught_after(load({}), 400) is None


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_caught(bug: str) -> None:
    module, passage, replacement = MUTANTS[bug]
    assert caught_after(load({module: (passage, replacement)}), SCHEDULES_MAX) is not None
