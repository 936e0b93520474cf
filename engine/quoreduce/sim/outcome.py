"""The outcome of a simulated job, and the sum of those of its stages."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

_SUMS = (
    "makespan_s", "cpu_s", "reexecutions", "spares", "lost_votes", "tests", "wrong_outputs", "bytes_stored",
    "bytes_shipped", "events",
)  # fmt: skip


@dataclass(slots=True)
class Outcome:
    """The outcome of a simulated job. Times are virtual seconds; ``simulated`` says so wherever this is printed.

    ``end``: ``done``, or the tracker's reason. ``wrong_outputs``: tasks whose agreed output is not the true one.
    ``beyond_model``: why that may be. ``violations``: what no tracker may do. ``transcript``: hash of all events and
    commands.
    """

    simulated: bool
    job: str
    nodes: int
    maps: int
    reduces: int
    f: int
    mode: str
    seed: int
    faults: list[str]
    end: str = ""
    message: str = ""
    makespan_s: float = 0.0
    cpu_s: float = 0.0
    executions: dict[str, int] = field(default_factory=dict)
    reexecutions: int = 0
    spares: int = 0
    injected: dict[str, int] = field(default_factory=dict)
    lost_votes: int = 0
    tests: int = 0
    suspects: dict[str, str] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    wrong_outputs: int = 0
    beyond_model: str = ""
    violations: list[str] = field(default_factory=list)
    bytes_stored: int = 0
    bytes_shipped: int = 0
    events: int = 0
    transcript: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


def added(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a job from those of its stages, one or more; the first is changed."""
    first, last = outcomes[0], outcomes[-1]
    if len(outcomes) == 1:
        return first
    for other in outcomes[1:]:
        for name in _SUMS:
            setattr(first, name, getattr(first, name) + getattr(other, name))
        for counts, more in ((first.executions, other.executions), (first.injected, other.injected)):
            for kind, n in more.items():
                counts[kind] = counts.get(kind, 0) + n
        first.suspects |= other.suspects
        first.quarantined = list(dict.fromkeys(first.quarantined + other.quarantined))
        first.violations += other.violations
        first.transcript += other.transcript
    first.transcript = hashlib.blake2b(first.transcript.encode(), digest_size=16).hexdigest()
    first.end, first.message = last.end, last.message
    return first
