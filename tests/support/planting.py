"""The tracker with a bug in it: one passage replaced, loaded beside the real one."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from importlib.resources import files
from types import ModuleType

from quoreduce.tracker import JobTracker, Plan

ORDER = (
    "suspicion", "vote", "placement", "ledger", "state", "shared", "copies", "executions", "accusations", "reasons",
    "schedule", "contradictions", "speculation", "invariants", "tracker",
)  # fmt: skip
"""Who imports whom; the messages are shared, for they are the language that both speak."""
Make = Callable[[Plan], JobTracker]
BUGS = {
    "f equal outputs win, not f+1": ("vote", "len(leader.backers) >= need", "len(leader.backers) >= need - 1"),
    "a domain counts as often as it votes": (
        "vote",
        "candidate.domains[domain] = self.votes",
        'candidate.domains[f"{domain} {attempt}"] = self.votes',
    ),
    "votes on losing partitions stay": (
        "contradictions",
        "reduce.ballot.withdraw(withdrawn)",
        "pass",
    ),
    "a reduce wins before its inputs": ("tracker", 'if state.task.kind == "reduce" and self._maps_unwon:', "if False:"),
    "a crash is not replaced": (
        "tracker",
        "        self._replace(attempt.state)\n\n    def _replace",
        "\n    def _replace",
    ),
    "a lost block is still read": ("copies", "attempt.candidate.copies.remove(attempt.id)", "pass"),
    "a duplicate counts as a vote": (
        "executions",
        'if attempt is None or attempt.status == "over":',
        "if attempt is None:",
    ),
    "a job is done before its outputs are published": (
        "tracker",
        "count = self._reduces_confirmed if self.plan.confirm else self._reduces_agreed",
        "count = self._reduces_agreed",
    ),
    "deferred starts too many": (
        "schedule",
        "return state.ballot.missing({attempt.domain for attempt in running}, self._plan.need)",
        "return state.ballot.missing(set(), self._plan.need) - len(running) // 2",
    ),
}
"""What is wrong: module, passage, what stands there instead."""


def plant(bug: str) -> Make:
    """Load the tracker with a bug."""
    module, passage, replacement = BUGS[bug]
    return load({module: (passage, replacement)})


def load(edits: Mapping[str, tuple[str, str]]) -> Make:
    """Load a copy of the tracker, changed by `edits`: module -> (passage, replacement)."""
    for name in ORDER:
        source = files("quoreduce.tracker").joinpath(f"{name}.py").read_text()
        if name in edits:
            passage, replacement = edits[name]
            assert source.count(passage) == 1, f"{passage!r} is there {source.count(passage)} times in {name}.py"
            source = source.replace(passage, replacement)
        for other in ORDER:
            source = source.replace(f"from quoreduce.tracker.{other} import", f"from planted_{other} import")
        source = re.sub(r"^from quoreduce\.tracker import (.*)", _planted, source, flags=re.MULTILINE)
        loaded = sys.modules[f"planted_{name}"] = ModuleType(f"planted_{name}")
        exec(compile(source, f"planted_{name}.py", "exec"), loaded.__dict__)
    make: Make = loaded.__dict__["JobTracker"]
    return make


def _planted(line: re.Match[str]) -> str:
    return "; ".join(f"import planted_{name} as {name}" for name in line[1].split(", "))


def weed() -> None:
    """Forget it."""
    for name in ORDER:
        sys.modules.pop(f"planted_{name}", None)
