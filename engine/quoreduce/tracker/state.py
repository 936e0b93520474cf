"""What is planned, and what the tracker remembers of one attempt and of one task. No decisions are made here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from quoreduce.tracker.messages import Kind, Reason, Source, Task
from quoreduce.tracker.vote import Ballot, Candidate

Mode = Literal["original", "basic", "bft"]
MODES: tuple[Mode, ...] = get_args(Mode)
Status = Literal["running", "cancelled", "over"]


def domains_needed(f: int, mode: Mode) -> int:
    """Distinct failure domains that must agree on a task: f+1 (R1)."""
    return 1 if mode == "original" else f + 1


def planned_upfront(mode: Mode, deferred: bool) -> bool:
    """Whether 2f+1 replicas are always executed, rather than f+1 and more on demand (R2, slide 19)."""
    return mode == "basic" or (mode == "bft" and not deferred)


def replicas_planned(f: int, mode: Mode, deferred: bool) -> int:
    """Replicas of a task in the first plan: f+1 or 2f+1."""
    return 2 * f + 1 if planned_upfront(mode, deferred) else domains_needed(f, mode)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be executed and how (slides 11-22).

    Attributes:
        maps, reduces: number of tasks. Without maps, reduces start at once and read nothing.
        f: wrong replicas of a task that are outvoted for certain; taken as 0 in mode `original`.
        mode: `original` (one execution, crash recovery), `basic` (2f+1 up front, reduces read all copies of voted
            maps), or `bft`, whose four modifications (slide 18) can be switched off one by one: deferred: f+1 replicas
            first, more when they disagree (slide 19); else 2f+1 up front.
        tentative: reduces start on unvoted map outputs (slide 20); else when every map has won its vote.
        digest_outputs: one replica stores, the others only compute digests (slide 21); else all store, reduces read all
            copies.
        tight_storage: one copy of the agreed output (slide 22). For the driver; the tracker does not care.
        sample: a task whose agreed output is needed before anything else starts.
        confirm: the job is done when the driver has `Published` every reduce, not already when all are agreed on.
        checked: kinds of tasks that are executed once and checked f times (R13), in mode `bft` with its modifications.
        first_attempt: number of the first attempt; in a later run of a job it is beyond those of all earlier ones.
        max_attempts: bound on executions of one task until it wins its vote, and as many more until the job is done,
            for copies that are lost (R3); None: 4(f+1)+8.

    Raises:
        ValueError: for counts that make no sense.
    """

    maps: int
    reduces: int
    f: int
    mode: Mode
    sample: bool = False
    deferred: bool = True
    tentative: bool = True
    digest_outputs: bool = True
    tight_storage: bool = True
    max_attempts: int | None = None
    confirm: bool = False
    checked: frozenset[Kind] = frozenset()
    first_attempt: int = 0

    def __post_init__(self) -> None:
        if self.maps < 0 or self.reduces < 1 or self.f < 0:
            raise ValueError(f"a job has 0 or more maps, 1 or more reduces and f >= 0, not {self}")
        if self.checked and (self.mode != "bft" or not self.deferred or not self.digest_outputs):
            raise ValueError("tasks are checked in mode bft only, with deferred execution and digest outputs")
        if self.max_attempts is not None and self.max_attempts < self.first:
            raise ValueError(f"max_attempts is {self.max_attempts}, but {self.first} replicas are planned per task")

    @property
    def need(self) -> int:
        """Distinct domains that must agree: f+1."""
        return domains_needed(self.f, self.mode)

    @property
    def upfront(self) -> bool:
        """Whether 2f+1 replicas are always executed."""
        return planned_upfront(self.mode, self.deferred)

    @property
    def first(self) -> int:
        """Replicas of a task in the first plan."""
        return replicas_planned(self.f, self.mode, self.deferred)

    def planned(self, kind: Kind) -> int:
        """Executions of a task of a kind in the first plan: one if it is checked (R13)."""
        return 1 if self.is_checked(kind) else self.first

    def is_checked(self, kind: Kind) -> bool:
        """Whether tasks of a kind are checked, as long as nothing disagrees."""
        return kind in self.checked and self.need > 1

    @property
    def eager(self) -> bool:
        """Whether reduces may read unvoted map outputs (slide 20)."""
        return self.mode == "bft" and self.tentative

    @property
    def stores_all(self) -> bool:
        """Whether every replica stores its output, rather than one alone (slide 21)."""
        return self.mode != "bft" or not self.digest_outputs

    @property
    def bound(self) -> int:
        """Executions of one task after which the job fails: until its vote is won, and again from then on (R3)."""
        return 4 * self.need + 8 if self.max_attempts is None else self.max_attempts


@dataclass(slots=True, eq=False)
class Attempt:
    """One execution of a task (a replica, R1), or one check of what another has stored (R13).

    Attributes:
        replica: running number of the execution, or of the check, of the task.
        sources: what it was told to read; the tuple is shared by all reduces launched on the same copies.
        candidate: where its vote went, once it has voted; of a check, what it is about.
        stored: its output was stored and is not known to be lost.
        seated: it occupies a slot of its worker; false once it is executed and only its answer is awaited.
        slow: it is overdue, says the driver.
        speculative: it was launched to overtake one that is.
        checks: the attempt whose stored output is checked; None for an execution.
        approved: the check found the output right.
    """

    id: int
    state: TaskState
    worker: str
    domain: str
    replica: int
    store: bool
    sources: tuple[tuple[Source, ...], ...]
    status: Status = "running"
    candidate: Candidate | None = None
    stored: bool = False
    seated: bool = True
    slow: bool = False
    speculative: bool = False
    checks: int | None = None
    approved: bool = False

    @property
    def siblings(self) -> dict[int, Attempt]:
        """The running executions, or checks, of its task."""
        return self.state.running if self.checks is None else self.state.checking


@dataclass(slots=True, eq=False)
class TaskState:
    """All that is known of one task.

    Attributes:
        running: attempts that may still vote.
        asked: domain -> times it was asked; what R1 chooses by.
        executions: launched so far; the next replica's number.
        tries: launched until the vote was won, then since: what R3 bounds.
        wanted: replicas to launch when there are slots; kept by the tracker so that waiting tasks cost little.
        speculative: attempts launched to overtake slow ones; not among the tries.
        owed: replicas of an up-front plan (2f+1) still to be launched, whatever the vote says.
        strict: executions alone are voted on; else one is executed and checked, until something disagrees (R13).
        checking: checks that have yet to answer.
        checks: launched until now; what R3 bounds.
        checks_wanted: checks to launch when there are slots.
        speculative_checks: checks launched to overtake slow ones.
        verdicts: checks that have answered, right or wrong.
        winner: the candidate that won, for good.
        shown: a map's candidate that reduces were given to read before the vote was won (R5).
        offered: a map's copies that a reduce launched now would read; empty while there are none or a dispute.
        published: a sample's or reduce's stored attempt that was announced by `Agreed`.
        confirmed: the driver has published that attempt, so its loss matters no more.
    """

    task: Task
    owed: int
    strict: bool = True
    wanted: int = 0
    ballot: Ballot = field(default_factory=Ballot)
    running: dict[int, Attempt] = field(default_factory=dict)
    asked: dict[str, int] = field(default_factory=dict)
    executions: int = 0
    tries: int = 0
    speculative: int = 0
    crashed: int = 0
    refused: int = 0
    winner: Candidate | None = None
    shown: Candidate | None = None
    offered: tuple[Source, ...] = ()
    published: int | None = None
    confirmed: bool = False
    checking: dict[int, Attempt] = field(default_factory=dict)
    checks: int = 0
    checks_wanted: int = 0
    speculative_checks: int = 0
    verdicts: list[Attempt] = field(default_factory=list)

    def running_domains(self) -> set[str]:
        """Domains of the replicas that have yet to answer."""
        return {attempt.domain for attempt in self.running.values()}

    def in_time(self) -> list[Attempt]:
        """Running replicas that are not overdue."""
        return [attempt for attempt in self.running.values() if not attempt.slow]

    def fruitless(self) -> Reason:
        """Why the bound was reached (R3).

        Stored copies are lost: the task's own, after its vote, or those that it reads. Else there is no quorum: the
        job's fault, if outputs differ within domains and agree across none (R11).
        """
        if self.winner is not None or (not self.ballot.candidates and self.refused > self.crashed):
            return "copies_lost"
        alone = all(len(candidate.domains) < 2 for candidate in self.ballot.candidates)
        return "not_deterministic" if alone and self.ballot.wavering() > 1 else "no_quorum"

    def story(self) -> str:
        """What was seen, for the message of a job that failed."""
        seen = [
            f"{', '.join(candidate.domains)} {'raised ' + candidate.error if candidate.output is None else 'produced'}"
            f" {candidate.digest.hex()[:12]} ({len(candidate.attempts)}x)"
            for candidate in self.ballot.candidates[:8]
        ]
        if len(self.ballot.candidates) > 8:
            seen.append(f"{len(self.ballot.candidates) - 8} more results")
        if self.crashed:
            seen.append(f"{self.crashed} crashed")
        if rejected := sum(not check.approved for check in self.verdicts):
            seen.append(f"{rejected} checks rejected it")
        if self.refused:
            seen.append(f"{self.refused} could not read their sources")
        return f"{self.task} after {self.executions} executions: {'; '.join(seen) or 'no results'}"
