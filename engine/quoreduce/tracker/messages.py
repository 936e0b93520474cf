"""What goes into the tracker (events) and what comes out of it (commands), and nothing else.

Both are frozen values: the driver turns replies of workers into events and commands into calls, and a
transcript of the two is a complete account of a job (the golden scenarios of the tests are just that).

What a worker says about itself is a claim, never a fact: `Finished`, `Failed` and `Refused` carry only what is voted
on, or checked against what the tracker itself has launched (R10, R12).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

Kind = Literal["sample", "map", "reduce"]
Reason = Literal["no_quorum", "not_deterministic", "job_error", "too_few_domains", "copies_lost"]


@dataclass(frozen=True, slots=True)
class Task:
    """One unit of work: it is executed by several replicas, and has one agreed output at most."""

    kind: Kind
    index: int

    def __str__(self) -> str:
        return f"{self.kind} {self.index}"


@dataclass(frozen=True, slots=True)
class Part:
    """One partition of an output: the digest over its canonical bytes, and its size."""

    digest: bytes
    records: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Output:
    """What a replica produced.

    Attributes:
        digest: over the digests and record counts of all parts; this is what is voted on (R4).
        parts: one per reduce for a map, exactly one for a reduce or a sample.
    """

    digest: bytes
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Source:
    """A stored copy of a map's output that a reduce is told to read."""

    map: int
    attempt: int
    worker: str


@dataclass(frozen=True, slots=True)
class WorkerJoined:
    """A worker is ready for `slots` executions at a time. Its domain is what fails together (R1).

    `cpu`: its type of CPU, on which the output of a job that is not deterministic may depend (R11); empty: not known.
    """

    worker: str
    domain: str
    slots: int = 1
    cpu: str = ""


@dataclass(frozen=True, slots=True)
class WorkerLost:
    """A worker died, or was killed because it hung past its deadline (R9). Its stored blocks may have gone with it."""

    worker: str
    blocks_lost: bool


@dataclass(frozen=True, slots=True)
class Executed:
    """An attempt has ended and its worker is free; its answer follows when there is evidence for it (attested jobs)."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Finished:
    """An attempt produced an output: one vote."""

    attempt: int
    output: Output


@dataclass(frozen=True, slots=True)
class Checked:
    """A checker has summed up a task's input and a stored output of it (R13). It does not say whether they agree.

    Attributes:
        attempt: of the `Check`.
        output: the digests and sizes of the bytes that it summed.
        given, found: what the input and the output add up to under the key of this check, in one encoding.
    """

    attempt: int
    output: Output
    given: bytes
    found: bytes


@dataclass(frozen=True, slots=True)
class Failed:
    """The user's code raised. That is a result too, and voted on: only f+1 equal errors are the job's own.

    Of a check it is a rejection: what cannot be summed up is not confirmed (R13).
    """

    attempt: int
    error: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A reduce, or a check, could not use the stored outputs of the attempts `bad` (R6): no vote, for nothing was
    computed.
    """

    attempt: int
    bad: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockLost:
    """The stored output of an attempt is gone. Its vote stands."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Published:
    """From the driver: the stored output of this reduce attempt was checked and made part of the job's output (R8)."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Slow:
    """From the driver: an attempt, wanted or cancelled, is overdue, and there are idle workers (R9). It may say so
    repeatedly.
    """

    attempt: int


@dataclass(frozen=True, slots=True)
class Retested:
    """From the driver: the known-answer test of a `Retest` is over, and the worker's answers were right, or not
    (R11).
    """

    test: int
    passed: bool


@dataclass(frozen=True, slots=True)
class Recovered:
    """From the driver, before the start: this was agreed on in an earlier run of the job, by these domains of then, of
    which `checkers` checked and the others executed it.

    `attempt` is the number it had, below the plan's `first_attempt`. If it is `stored`, its output can still be read:
    from where no worker of this run keeps it, so that it goes with none of them. Reduces are recovered after all maps.
    """

    task: Task
    attempt: int
    output: Output
    domains: tuple[str, ...]
    stored: bool
    checkers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stalled:
    """From the driver: nothing runs, nothing was launched, and there will be no more workers."""


Event: TypeAlias = (
    WorkerJoined
    | WorkerLost
    | Executed
    | Finished
    | Checked
    | Failed
    | Refused
    | BlockLost
    | Published
    | Slow
    | Retested
    | Recovered
    | Stalled
)


@dataclass(frozen=True, slots=True)
class Launch:
    """Execute a task on a worker.

    Attributes:
        attempt: unique in the job.
        replica: running number of the execution of this task: 0, 1, 2...
        store: keep the output for readers (the storing replica, R6), or compute it for its digest only.
        sources: for a reduce, the copies to read of each map: one, or all there are without digest outputs.
    """

    attempt: int
    task: Task
    replica: int
    worker: str
    store: bool
    sources: tuple[tuple[Source, ...], ...] = ()

    @property
    def work(self) -> str:
        """What takes about as long as what."""
        return self.task.kind


@dataclass(frozen=True, slots=True)
class Check:
    """Check on a worker what another domain has stored (R13). The driver draws a key for it.

    Attributes:
        attempt: numbered with the executions, unique in the job.
        replica: running number of the check of this task: 0, 1, 2...
        stored: the copy to be summed up.
        sources: for a reduce, the copies to read of each map, as in `Launch`.
    """

    attempt: int
    task: Task
    replica: int
    worker: str
    stored: int
    sources: tuple[tuple[Source, ...], ...] = ()

    @property
    def work(self) -> str:
        """What takes about as long as what."""
        return f"check of {self.task.kind}"

    @property
    def store(self) -> bool:
        """A check stores nothing."""
        return False


@dataclass(frozen=True, slots=True)
class Cancel:
    """The result is no longer wanted. The slot counts as busy until a reply comes or the worker is lost."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Discard:
    """Nobody will read the stored output of this attempt again."""

    attempt: int


@dataclass(frozen=True, slots=True)
class Agreed:
    """A task's vote is won.

    `domains` are those that executed it, `checkers` those that checked it: none if f+1 domains executed it; else both
    together are f+1 (R13).

    For a sample or a reduce `attempt` is stored and is the one to publish. Should its block be lost before the job
    is done, `Agreed` comes again, with the same output and another attempt.
    """

    task: Task
    attempt: int
    output: Output
    domains: tuple[str, ...]
    checkers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accused:
    """An attempt's vote is lost against the agreed output of its task, or its check was wrong about it (R11). A stored
    copy of it is discarded after this.
    """

    task: Task
    attempt: int
    domain: str


@dataclass(frozen=True, slots=True)
class Retest:
    """Give a worker a known-answer test, between two tasks: its domain contradicts others (R11). `Retested` is to
    follow.

    Tests of a job are numbered: 0, 1, 2...
    """

    test: int
    domain: str
    worker: str


@dataclass(frozen=True, slots=True)
class JobDone:
    """Every reduce is agreed on and stored, and no test is under way. Nothing follows."""


@dataclass(frozen=True, slots=True)
class JobFailed:
    """The job cannot end well; nothing may be published (R3). Nothing follows."""

    reason: Reason
    task: Task | None
    message: str


Assignment: TypeAlias = Launch | Check
"""What occupies a slot of a worker until it is answered."""
Command: TypeAlias = Launch | Check | Cancel | Discard | Agreed | Accused | Retest | JobDone | JobFailed
