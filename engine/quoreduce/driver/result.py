"""What a job did, and what it cost."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from quoreduce.driver.diagnosis import Diagnosis


@dataclass(slots=True)
class FaultCount:
    """Faults: put in on purpose, noticed, and made harmless."""

    injected: int = 0
    detected: int = 0
    masked: int = 0


@dataclass(frozen=True, slots=True)
class Suspect:
    """A domain that is not trusted, and why.

    Attributes:
        why: ``test`` (it failed a known-answer test), ``votes`` (it lost far more votes than others), ``probation`` (it
            lost a vote while on probation), ``record`` (an earlier job quarantined it).
        lost, judged: tasks on which it lost a vote, of all that it voted on.
        passed, failed: known-answer tests.
        wrong: kernel -> how often its answer was wrong in these tests.
        quarantined: it got no more work, because enough other domains were there.
        asked, answered: executions that it began, and those that it answered with a vote.
    """

    why: str
    lost: int
    judged: int
    passed: int
    failed: int
    wrong: dict[str, int]
    quarantined: bool
    asked: int = 0
    answered: int = 0

    def __str__(self) -> str:
        """For people."""
        record = {"record": "quarantined by an earlier job", "probation": "was on probation"}.get(self.why)
        tests = f"failed {self.failed} of {self.failed + self.passed} tests" if self.failed + self.passed else None
        kernels = f"wrong in {', '.join(self.wrong)}" if self.wrong else None
        return "; ".join(
            filter(None, (record, self._votes(), tests, kernels, "quarantined" if self.quarantined else None))
        )

    def _votes(self) -> str:
        if self.judged:
            return f"lost {self.lost} of {self.judged} tasks"
        if self.answered:
            return f"gave {self.answered} answer{'s' * (self.answered > 1)}, to tasks that were not agreed on"
        if self.asked:
            return f"gave no answer to {self.asked} execution{'s' * (self.asked > 1)}"
        return "no task was asked of it"


@dataclass(slots=True)
class Result:
    """What a job did and cost. Times are in seconds, sizes in bytes.

    Attributes:
        job: its name.
        mode: as in :class:`Options`.
        f: as in :class:`Options`.
        on: the executor.
        output: where the output is.
        algorithm: of the digests.
        digest: of the whole output, in hex.
        records_in: records read by the maps.
        records_out: records of the output.
        bytes_in: bytes of the input.
        bytes_out: bytes of the output.
        bytes_stored: bytes that replicas stored: map outputs and parts.
        bytes_shipped: bytes that reduces read from other workers.
        splits: number of map tasks.
        parts: number of reduce tasks.
        wall_s: time until the output is published; diagnosis comes after that.
        cpu_s: CPU time of all processes, diagnosis included.
        executions: all of them, by kind of task.
        assurance: as in :class:`Options`.
        checks: of outputs, by kind of task; they are no executions (R13).
        rejected: checks that disagreed with what they checked.
        checked: tasks that were agreed on by one execution and f checks; the others by f+1 executions.
        counters: Hadoop's and those of the job, summed over one agreed attempt of each task: replicas do not double
            them. Counters that the engine takes from votes are as sure as the output; those of the job are one
            replica's.
        reexecutions: executions that faults have cost.
        spares: speculative attempts, which were to overtake slow executions.
        faults: how many were injected, detected and masked.
        domains: the failure domains of the job's workers.
        lost_votes: domain -> tasks on which it lost a vote.
        suspects: domains that are no longer trusted (R11).
        diagnoses: of masked faults, up to 64.
        diagnoses_more: how many masked faults have no diagnosis.
        probes: executions that the diagnoses took.
        attestation: of an attested job: backend, nonce (hex), environments (hex), µTPMs, leaves, batches, bytes of the
            receipt.
        recovered: tasks that a resumed job took over from earlier drivers; all other figures are of its last driver.
    """

    job: str
    mode: str
    f: int
    on: str
    output: str
    algorithm: str
    digest: str = ""
    records_in: int = 0
    records_out: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    bytes_stored: int = 0
    bytes_shipped: int = 0
    splits: int = 0
    parts: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    executions: dict[str, int] = field(default_factory=dict)
    assurance: str = "strict"
    checks: dict[str, int] = field(default_factory=dict)
    rejected: int = 0
    checked: int = 0
    counters: dict[str, int] = field(default_factory=dict)
    reexecutions: int = 0
    spares: int = 0
    faults: FaultCount = field(default_factory=FaultCount)
    domains: list[str] = field(default_factory=list)
    lost_votes: dict[str, int] = field(default_factory=dict)
    suspects: dict[str, Suspect] = field(default_factory=dict)
    diagnoses: list[Diagnosis] = field(default_factory=list)
    diagnoses_more: int = 0
    probes: int = 0
    attestation: dict[str, Any] | None = None
    recovered: int = 0

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)
