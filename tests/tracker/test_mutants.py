"""The schedules are worth what they catch: plant bugs in the tracker, one by one, and each must be caught.

A mutant is the tracker's source with one passage replaced, loaded under another name beside the real one; the messages
are shared, since they are the language that both speak.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest
from simulator import run

ORDER = ("suspicion", "vote", "placement", "ledger", "state", "invariants", "tracker")  # who imports whom; messages stay
SCHEDULES_MAX = 3000

MUTANTS = {
    "f equal outputs win, not f+1": ("vote", "len(leader.domains) >= need", "len(leader.domains) >= need - 1"),
    "a domain counts as often as it votes": (
        "vote",
        "camp.domains[domain] = self.votes",
        'camp.domains[f"{domain} {attempt}"] = self.votes',
    ),
    "a digest is believed, whoever raised or produced it": (
        "vote",
        "return mine is output and self.digest == digest",
        "return True",
    ),
    "votes on losing partitions stay": ("tracker", "reduce.ballot.withdraw(withdrawn)", "pass"),
    "nothing is restarted on a contradiction": ("tracker", "self._contradict(state, state.shown, output)", "pass"),
    "only running reduces are restarted": (
        "tracker",
        "withdrawn = [attempt.id for attempt in votes if stale(attempt)]",
        "withdrawn = []",
    ),
    "only voted reduces are restarted": (
        "tracker",
        "for attempt in [a for a in reduce.running.values() if stale(a)]:",
        "for attempt in ():",
    ),
    "a reduce wins before its inputs": (
        "tracker",
        'if state.task.kind == "reduce" and self._maps_unwon:',
        "if False:",
    ),
    "a lost block is still read": ("tracker", "attempt.camp.copies.remove(attempt.id)", "pass"),
    "a copy is discarded while it is read": ("tracker", "if source.attempt in shown.copies:", "if False:"),
    "a duplicate counts as a vote": (
        "tracker",
        'if attempt is None or attempt.status == "over":',
        "if attempt is None:",
    ),
    "the answer of a cancelled replica counts": ("tracker", "        if cancelled:\n", "        if False:\n"),
    "a cancelled replica's slot is free at once": (
        "tracker",
        "self._emit(Cancel(attempt.id))",
        "self._emit(Cancel(attempt.id)); self._pool.release(attempt.worker, attempt.id)",
    ),
    "deferred starts too many": (
        "tracker",
        "return state.ballot.missing({attempt.domain for attempt in running}, self.plan.need)",
        "return state.ballot.missing(set(), self.plan.need) - len(running) // 2",
    ),
    "a crash is not replaced": (
        "tracker",
        "        self._replace(attempt.state)\n\n    def _replace",
        "\n    def _replace",
    ),
    "reduces read disputed outputs": ("tracker", "len(state.ballot.camps) == 1:", "state.ballot.camps:"),
    "replicas share a domain": ("placement", "if name not in asked:", "if True:"),
    "the bound is forgotten": ("tracker", "if state.tries < self.plan.bound:", "if True:"),
    "the bound begins anew with every copy of a part": (
        "tracker",
        "state.published = winner.copies[0]",
        "state.published = winner.copies[0]; state.tries = 0",
    ),
    "an error is the job's own at once": (
        "tracker",
        "        winner = state.ballot.winner(self.plan.need)\n",
        "        winner = state.ballot.winner(self.plan.need) or next("
        "(c for c in state.ballot.camps if c.output is None), None)\n",
    ),
    "an answer that a dead worker owed is not missed": (
        "tracker",
        "unanswered = [*self._awaited.pop(event.worker, ()), *(occupants or ())]",
        "unanswered = [*(occupants or ())]",
    ),
    "a slot is freed when the work ends, and again when the answer comes": (
        "tracker",
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
    "a spare in a domain that has run the task": (
        "tracker",
        "domain = self._pool.fresh(state.asked)",
        "domain = self._pool.fresh(())",
    ),
    "spares without end": ("tracker", "if state.spares >= self.plan.need or", "if"),
    "a spare for one that the vote can do without": (
        "tracker",
        "or not self._lacking(state, state.in_time()):",
        "or False:",
    ),
    "a spare reads what is not there": (
        "tracker",
        'not (state.task.kind == "reduce" and self._maps_unready):',
        "True:",
    ),
    "a spare for a carrier does not store": (
        "tracker",
        "any(attempt.store for attempt in state.in_time())",
        "any(attempt.store for attempt in state.running.values())",
    ),
    "what was agreed on in an earlier life is planned again": (
        "tracker",
        "state.owed, state.executions, state.winner = 0, self.plan.first, attempt.camp",
        "state.executions, state.winner = self.plan.first, attempt.camp",
    ),
    "copies of an earlier life are not used": ("tracker", "        if event.stored:\n", "        if False:\n"),
    "copies of an earlier life are there even if they are lost": ("tracker", "        if event.stored:\n", "        if True:\n"),
    "a vote of an earlier life counts for one domain": (
        "tracker",
        "for domain in event.domains:",
        "for domain in event.domains[:1]:",
    ),
    "numbers of attempts begin anew in each life": ("tracker", "self._next = plan.first_attempt", "self._next = 0"),
    "a job ends while a test is under way": (
        "tracker",
        "if self._all_published() and not self._owing() and not self._tests:",
        "if self._all_published() and not self._owing():",
    ),
    "the test of a worker that died is waited for": (
        "tracker",
        "if one.worker != event.worker}",
        "}",
    ),
    "the outcome of a test counts twice": ("tracker", "self._tests.pop(event.test, None)", "self._tests.get(event.test)"),
    "a carrier that died is not missed": (
        "tracker",
        "return needed and not state.winner.copies and",
        "return False and needed and not state.winner.copies and",
    ),
}


@pytest.fixture
def load() -> Iterator[Any]:
    names: list[str] = []

    def load(edits: dict[str, tuple[str, str]]) -> Any:
        """Load a copy of the tracker, changed by `edits`: module -> (passage, replacement)."""
        for name in ORDER:
            source = files("quoreduce.tracker").joinpath(f"{name}.py").read_text()
            if name in edits:
                passage, replacement = edits[name]
                assert source.count(passage) == 1, f"{passage!r} is there {source.count(passage)} times in {name}.py"
                source = source.replace(passage, replacement)
            for other in ORDER:
                source = source.replace(f"from quoreduce.tracker.{other} import", f"from mutant_{other} import")
            source = source.replace("from quoreduce.tracker import invariants", "import mutant_invariants as invariants")
            module = sys.modules[f"mutant_{name}"] = ModuleType(f"mutant_{name}")
            names.append(f"mutant_{name}")
            exec(compile(source, f"mutant_{name}.py", "exec"), module.__dict__)
        return sys.modules["mutant_tracker"].JobTracker  # type: ignore[attr-defined]

    yield load
    for name in names:
        sys.modules.pop(name, None)


def caught_after(make: Any, schedules: int) -> int | None:
    for seed in range(schedules):
        try:
            run(seed, make)
        except AssertionError:
            return seed
    return None


def test_the_tracker_itself_passes(load: Any) -> None:
    assert caught_after(load({}), 400) is None


@pytest.mark.parametrize("bug", MUTANTS)
def test_a_planted_bug_is_caught(bug: str, load: Any) -> None:
    module, passage, replacement = MUTANTS[bug]
    assert caught_after(load({module: (passage, replacement)}), SCHEDULES_MAX) is not None
