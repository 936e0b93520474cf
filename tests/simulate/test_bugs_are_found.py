"""Simulation finds bugs: the tracker with one planted, on nodes that fail, is caught by the referee or hangs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib.resources import files
from types import ModuleType
from typing import Any

import pytest

from quoreduce.sim import USUAL, Load, Shape, Simulation, parse_fault
from quoreduce.tracker import JobTracker, Plan

ORDER = ("vote", "placement", "ledger", "state", "invariants", "tracker")
FAULTS = ("wrong-map:30%", "wrong-reduce:30%", "bad:1:0.3", "crash:10%", "node:1", "rot:10%", "duplicate:10%",
          "delay:10%:9", "slow:1:3")  # fmt: skip
STUCK = ("bad:1:0.1",), 2, ("done", "no_quorum")  # two domains: one is asked again and again, and stays wrong
BUGS = {
    "f equal outputs win, not f+1": ("vote", "len(leader.domains) >= need", "len(leader.domains) >= need - 1"),
    "a domain counts as often as it votes": (
        "vote",
        "camp.domains[domain] = self.votes",
        'camp.domains[f"{domain} {attempt}"] = self.votes',
    ),
    "votes on losing partitions stay": ("tracker", "reduce.ballot.withdraw(withdrawn)", "pass"),
    "a reduce wins before its inputs": ("tracker", 'if state.task.kind == "reduce" and self._maps_unwon:', "if False:"),
    "a crash is not replaced": ("tracker", "        self._replace(attempt.state)\n\n    def _replace", "\n    def _replace"),
    "a lost block is still read": ("tracker", "attempt.camp.copies.remove(attempt.id)", "pass"),
    "a duplicate counts as a vote": ("tracker", 'if attempt is None or attempt.status == "over":', "if attempt is None:"),
    "a job is done before its outputs are published": (
        "tracker",
        "count = self._reduces_confirmed if self.plan.confirm else self._reduces_agreed",
        "count = self._reduces_agreed",
    ),
    "deferred starts too many": (
        "tracker",
        "return state.ballot.missing({attempt.domain for attempt in running}, self.plan.need)",
        "return state.ballot.missing(set(), self.plan.need) - len(running) // 2",
    ),
}
SEEDS = 400
Make = Callable[[Plan], JobTracker]


@pytest.fixture
def planted() -> Iterator[Callable[[str, str, str], Make]]:
    def plant(module: str, passage: str, replacement: str) -> Make:
        """The tracker with one passage replaced, loaded beside the real one."""
        for name in ORDER:
            source = files("quoreduce.tracker").joinpath(f"{name}.py").read_text()
            if name == module:
                assert source.count(passage) == 1
                source = source.replace(passage, replacement)
            for other in ORDER:
                source = source.replace(f"from quoreduce.tracker.{other} import", f"from planted_{other} import")
            source = source.replace("from quoreduce.tracker import invariants", "import planted_invariants as invariants")
            loaded = sys.modules[f"planted_{name}"] = ModuleType(f"planted_{name}")
            exec(compile(source, f"planted_{name}.py", "exec"), loaded.__dict__)
        make: Make = loaded.__dict__["JobTracker"]
        return make

    yield plant
    for name in ORDER:
        sys.modules.pop(f"planted_{name}", None)


def caught(make: Any, faults: tuple[str, ...], nodes: int = 6, ends: tuple[str, ...] = ("done",)) -> bool:
    for seed in range(SEEDS):
        plan = Plan(12, 3, 1, "bft", confirm=True)
        load = Load("sort", USUAL.job("sort"), 12, 3, split_bytes=4e6)  # so that answers are late, compared with them
        try:
            out = Simulation(Shape(nodes=nodes), load, plan, USUAL, [parse_fault(text) for text in faults], seed, make).run()
        except (AssertionError, KeyError):  # the tracker itself stumbled
            return True
        if out.violations or out.end not in ends:
            return True
    return False


def test_the_tracker_itself_is_not_caught() -> None:
    assert not caught(JobTracker, FAULTS)
    assert not caught(JobTracker, ())
    assert not caught(JobTracker, *STUCK)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str, planted: Callable[[str, str, str], Make]) -> None:
    make = planted(*BUGS[bug])
    assert caught(make, FAULTS) or caught(make, ()) or caught(make, *STUCK)
