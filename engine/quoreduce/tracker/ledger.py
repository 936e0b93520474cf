"""What a job cost: executions, votes and bytes, the figures behind every ratio (slides 23-26)."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from quoreduce.tracker.messages import Kind, Output


def _per_kind() -> dict[Kind, int]:
    return {"sample": 0, "map": 0, "reduce": 0}


@dataclass(slots=True)
class Ledger:
    """Running totals. Only the tracker writes them.

    Attributes:
        launched: executions, by kind of task.
        first_plan: those that belong to the task's first f+1 (or 1, or 2f+1) replicas.
        speculative: those that were to overtake a slow one (R9).
        checks: checks of outputs, by kind of task, which are no executions (R13).
        rejected: checks that disagreed with what they checked.
        votes: results that were counted, errors among them.
        errors: votes that were errors of the user's code.
        lost_votes: votes against the agreed output: the faults that were detected.
        withdrawn_votes: votes of reduces that rested on a partition which lost its own vote (R5).
        crashed: executions that died with their worker (R9).
        malformed: replies without the right number of partitions, treated as crashes (R10).
        refused: launches of reduces that could not use a source (R6); nothing was executed: not part of `launched`.
        lost_blocks: stored outputs that were lost or refused.
        cancelled: executions whose result was no longer wanted.
        discarded: stored outputs that were given up.
        ignored: late, duplicate, stale and unknown messages (R10).
        stored_nbytes: written by finished executions that stored their output.
        shipped_nbytes: handed to reduces as sources, over all copies they read.
        tests: known-answer tests that were asked for (R11).
        suspicion: domain -> number of tasks on which it lost a vote (R11).
        suspects: domain -> why it was named: test, votes, probation or record; `suspicion` of the tracker says what
            that means.
        quarantined: domains that are quarantined at the end: suspects, while f+1 others are there.
    """

    launched: dict[Kind, int] = field(default_factory=_per_kind)
    first_plan: dict[Kind, int] = field(default_factory=_per_kind)
    speculative: int = 0
    checks: dict[Kind, int] = field(default_factory=_per_kind)
    rejected: int = 0
    votes: int = 0
    errors: int = 0
    lost_votes: int = 0
    withdrawn_votes: int = 0
    crashed: int = 0
    malformed: int = 0
    refused: int = 0
    lost_blocks: int = 0
    cancelled: int = 0
    discarded: int = 0
    ignored: int = 0
    stored_nbytes: int = 0
    shipped_nbytes: int = 0
    tests: int = 0
    suspicion: dict[str, int] = field(default_factory=dict)
    suspects: dict[str, str] = field(default_factory=dict)
    quarantined: tuple[str, ...] = ()

    @property
    def executions(self) -> int:
        """Executions of all kinds."""
        return sum(self.launched.values())

    @property
    def re_executions(self) -> int:
        """Executions beyond the first plan, without speculative ones: what faults have cost."""
        return max(0, self.executions - self.speculative - sum(self.first_plan.values()))

    def launch(self, kind: Kind, first: bool, speculative: bool) -> None:
        """Count one execution; `first` if it belongs to the first plan."""
        self.launched[kind] += 1
        self.first_plan[kind] += first
        self.speculative += speculative

    def refuse(self, kind: Kind, speculative: bool) -> None:
        """Take back a launch whose sources were refused: the task's function never ran."""
        self.launched[kind] -= 1
        self.speculative -= speculative
        self.refused += 1

    def store(self, output: Output) -> None:
        """Count an output that was written."""
        self.stored_nbytes += sum([part.nbytes for part in output.parts])  # a list: faster, and there may be thousands

    def as_dict(self) -> dict[str, Any]:
        """All figures, for JSON."""
        return asdict(self) | {"executions": self.executions, "re_executions": self.re_executions}
