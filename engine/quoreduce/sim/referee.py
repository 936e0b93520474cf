"""A referee that checks the rules from outside: it sees only messages, and counts votes itself."""

from __future__ import annotations

from collections import Counter

from quoreduce.tracker import Agreed, Launch, Plan, Task

VIOLATIONS_MAX = 20


class Referee:
    """Notes what is against the rules (ARCHITECTURE, R1-R11); a right tracker leaves `violations` empty."""

    def __init__(self, plan: Plan) -> None:
        self.violations: list[str] = []
        self._plan = plan
        self._slots: Counter[str] = Counter()
        self._domain: dict[str, str] = {}
        self._attempts: set[int] = set()
        self._votes: dict[tuple[Task, bytes], set[str]] = {}
        self._agreed: dict[Task, bytes] = {}
        self._maps = 0  # agreed on
        self._gone: set[int] = set()
        self._published: set[int] = set()
        self._asked: dict[Task, set[str]] = {}  # domains that a task was launched in
        self._spares: Counter[Task] = Counter()

    def joined(self, worker: str, domain: str) -> None:
        """A worker of one slot is there."""
        self._slots[worker], self._domain[worker] = 1, domain

    def lost(self, worker: str) -> None:
        """A worker is gone."""
        self._slots.pop(worker, None)

    def launched(self, c: Launch, executions: int, spare: bool = False) -> None:
        """A launch: on a worker that is free, numbered, on votes that allow it, of sources that are there.

        ``spare``: it answers the word that an execution of its task is overdue.
        """
        if self._slots[c.worker] < 1:
            self.note(f"{c.task}: attempt {c.attempt} on {c.worker}, which is not free")
        if c.attempt in self._attempts:
            self.note(f"attempt {c.attempt} is launched twice")
        if executions > 64 * self._plan.need + 128:
            self.note(f"{c.task} was executed {executions} times (R3)")
        if self._gone and any(s.attempt in self._gone for copies in c.sources for s in copies):
            self.note(f"{c.task}: attempt {c.attempt} is to read what is gone")
        asked = self._asked.setdefault(c.task, set())
        if spare:
            self._spares[c.task] += 1
            if (
                self._domain[c.worker] in asked and c.task.kind != "reduce"
            ):  # a reduce that begins anew (R5) has asked nobody
                self.note(f"{c.task}: a spare on {c.worker}, in a domain that was asked before (R9)")
            if self._spares[c.task] > self._plan.need:
                self.note(f"{c.task} has {self._spares[c.task]} spares (R9)")
        asked.add(self._domain[c.worker])
        self._slots[c.worker] -= 1
        self._attempts.add(c.attempt)

    def answered(self, c: Launch, digest: bytes | None) -> None:
        """The first answer to a launch; ``digest`` is None if it is no vote."""
        self._slots[c.worker] += c.worker in self._slots
        if digest is not None and c.task not in self._agreed:
            self._votes.setdefault((c.task, digest), set()).add(self._domain[c.worker])

    def missing(self, attempt: int) -> None:
        """The tracker was told that what an attempt stored is gone."""
        self._gone.add(attempt)

    def published(self, attempt: int) -> None:
        """The output of a reduce is part of the job's."""
        self._published.add(attempt)

    def agreed(self, c: Agreed) -> None:
        """A vote is won: by f+1 domains, once, a reduce's after all maps' (R1, R5)."""
        before = self._agreed.get(c.task)
        if before is not None and before != c.output.digest:
            self.note(f"{c.task} has two winners")
        voters = self._votes.get((c.task, c.output.digest), set())
        if before is None and len(voters) < self._plan.need:
            self.note(f"{c.task} is won with the votes of {len(voters)} domains (R1)")
        if c.task.kind == "reduce" and before is None and self._maps < self._plan.maps:
            self.note(f"{c.task} is won before its inputs are (R5)")
        self._maps += before is None and c.task.kind == "map"
        self._agreed[c.task] = c.output.digest

    def done(self, planned: int | None, executed: int) -> None:
        """The job is done; ``planned`` executions, besides spares, are right if nothing went wrong (R2, R9)."""
        if len(self._published) < self._plan.reduces:
            self.note(f"done with {len(self._published)} of {self._plan.reduces} outputs published (R8)")
        spares = self._spares.total()
        if planned is not None and planned + spares != executed:
            self.note(
                f"{executed} executions without a fault, {planned} were planned, and {spares} spares launched (R2)"
            )

    def note(self, what: str) -> None:
        """Add a violation."""
        if len(self.violations) < VIOLATIONS_MAX:
            self.violations.append(what)
