"""How a job is to be run, and what came of it."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from quoreduce.data.digest import ALGORITHMS, Algorithm
from quoreduce.errors import UsageError
from quoreduce.limits import check_fields, check_switches
from quoreduce.runtime.diagnosis import Diagnosis
from quoreduce.runtime.faults import parse_fault
from quoreduce.runtime.port import DOMAINS, Domain

Mode = Literal["original", "basic", "bft"]
MODES: tuple[Mode, ...] = ("original", "basic", "bft")
NUMBERS = ("f", "reducers", "split_mb", "fault_seed", "seed", "deadline_s", "attempts_max")
SWITCHES = (
    "overwrite", "sync", "strict", "deferred", "tentative", "digest_outputs", "tight_storage", "spares", "durable", "diagnose",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attest:
    """How a job is attested, see ARCHITECTURE, "Attested jobs".

    Attributes:
        backend: the TPM that vouches for the workers of a node: ``swtpm``, or ``utpm`` (none: the root is software only);
            None: that of the policy.
        batch: ``none``, ``aggregate`` or ``merkle``; batch_size: executions in a batch at most; batch_ms: how long one waits.
        scheme: of the µTPMs' keys: ``ecdsa`` or ``rsassa``.
        nonce: a challenger's, 32 bytes in hex; None: a random one, of this run.
        policy: a file; None: the one that setup made.
        state: the folder of setup; None: QUOREDUCE_ATTEST, else ``~/.local/state/quoreduce/attest``.
    """

    backend: Literal["utpm", "swtpm"] | None = None
    batch: Literal["none", "aggregate", "merkle"] = "merkle"
    batch_size: int = 64
    batch_ms: int = 20
    scheme: Literal["ecdsa", "rsassa"] = "ecdsa"
    nonce: str | None = None
    policy: str | None = None
    state: str | None = None

    def __post_init__(self) -> None:
        if self.backend not in (None, "utpm", "swtpm"):
            raise UsageError(f"backend {self.backend!r} cannot attest a job: use swtpm or utpm")
        if self.batch not in ("none", "aggregate", "merkle"):
            raise UsageError(f"unknown batch mode {self.batch!r}: use none, aggregate or merkle")
        if self.scheme not in ("ecdsa", "rsassa"):
            raise UsageError(f"unknown scheme {self.scheme!r}: use ecdsa or rsassa")
        check_fields(self, ("batch_size", "batch_ms"))
        if self.nonce is not None and not re.fullmatch("[0-9a-fA-F]{64}", str(self.nonce)):
            raise UsageError("a nonce is 32 bytes, as 64 hexadecimal digits")


@dataclass(frozen=True, slots=True)
class Options:
    """Options of one job; the defaults are those of the command line.

    Attributes:
        f: faulty replicas to tolerate for each task.
        mode: ``original`` (no replication), ``basic`` (2f+1), ``bft`` (f+1 and more).
        digest: ``blake3``, ``fast`` or ``checksum``; None: blake3, and checksum in mode ``original``.
        reducers: number of parts; None: from the size of the input.
        split_mb: split size in MB (10**6 bytes, may be a fraction).
        overwrite: replace an output that exists.
        sync: force the output to disk before it is published, against loss of power.
        strict: masked faults are an error (the output is published all the same).
        faults, fault_seed: faults to inject. seed: for the job's own randomness.
        deferred, tentative, digest_outputs, tight_storage: the four modifications of ``bft``.
        spares: overtake slow executions by spare ones on idle workers.
        deadline_s: kill a worker that takes longer over one task; None: adapts to the tasks seen so far.
        attempts_max: bound on executions of one task; None: 4(f+1)+8.
        attest: how the job is attested; None: it is not.
        durable: keep a journal beside the output, so that the job can be resumed when its driver is killed (docs/durable.md).
        diagnose: find out what masked faults were (docs/diagnosis.md); costs nothing where there are none.
        direct_input: all replicas of a map but the first f read local inputs past the page cache (R6, docs/inputs.md), where
            domains share a machine: what has rotted there is outvoted. It costs the time to read the disk.
        suspects: heed and update the record of suspect cores and nodes (docs/suspects.md); None: unless faults are injected.
    """

    f: int = 1
    mode: Mode = "bft"
    digest: Algorithm | None = None
    reducers: int | None = None
    split_mb: float = 64.0
    overwrite: bool = False
    sync: bool = False
    strict: bool = False
    faults: tuple[str, ...] = ()
    fault_seed: int = 0
    seed: int = 0
    deferred: bool = True
    tentative: bool = True
    digest_outputs: bool = True
    tight_storage: bool = True
    spares: bool = True
    deadline_s: float | None = None
    attempts_max: int | None = None
    attest: Attest | None = None
    durable: bool = False
    diagnose: bool = True
    suspects: bool | None = None
    direct_input: bool = False

    def __post_init__(self) -> None:
        check_fields(self, NUMBERS)
        check_switches(self, SWITCHES)
        if self.suspects is not None:
            check_switches(self, ("suspects",))
        if self.mode not in MODES:
            raise UsageError(f"unknown mode {self.mode!r}: use one of {', '.join(MODES)}")
        if self.digest is not None and self.digest not in ALGORITHMS:
            raise UsageError(f"unknown digest {self.digest!r}: use one of {', '.join(ALGORITHMS)}")
        if self.mode != "original" and self.digest == "checksum":
            raise UsageError("votes need a digest: use blake3 or fast (checksum is for --mode original)")
        if self.attempts_max is not None and self.attempts_max < self.replicas_first:
            raise UsageError(f"at least {self.replicas_first} attempts of a task are planned, so {self.attempts_max} is too few")
        if self.attest is not None and self.algorithm != "blake3":
            raise UsageError(f"digest {self.algorithm} is for accidental faults only: an attested job needs blake3")
        if self.attest is not None and self.durable:
            raise UsageError("an attested job cannot be durable: there is no evidence of what an earlier driver saw")
        faults: object = self.faults
        if not isinstance(faults, tuple | list) or not all(isinstance(text, str) for text in faults):
            raise UsageError(f"faults: use a tuple of texts such as 'flip:map:2', not {faults!r}")
        object.__setattr__(self, "faults", tuple(self.faults))
        for text in self.faults:
            parse_fault(text)

    @property
    def split_bytes(self) -> int:
        """Split size in bytes."""
        return round(self.split_mb * 1_000_000)

    @property
    def replicas_needed(self) -> int:
        """Distinct failure domains that must agree."""
        return 1 if self.mode == "original" else self.f + 1

    @property
    def replicas_first(self) -> int:
        """Executions of a task that are planned before anything goes wrong."""
        upfront = self.mode == "basic" or (self.mode == "bft" and not self.deferred)
        return 2 * self.f + 1 if upfront else self.replicas_needed

    @property
    def algorithm(self) -> Algorithm:
        """The digest in use."""
        return self.digest or ("checksum" if self.mode == "original" else "blake3")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is to be run.

    Attributes:
        on: ``local`` (processes), ``ray`` (actors), ``inline`` (this process); None: ray if there is an address, else local.
        workers: how many; None: one a core, on a cluster one a node, inline 3.
        domain: what fails together: ``core``, ``worker``, ``node`` or ``rack``; None: core on one machine, node on a cluster.
        address: of a Ray cluster; None: RAY_ADDRESS. store: folder for map outputs; None: shared memory.
    """

    on: Literal["inline", "local", "ray"] | None = None
    workers: int | None = None
    domain: Domain | None = None
    address: str | None = None
    store: str | None = None

    def __post_init__(self) -> None:
        if self.on not in (None, "inline", "local", "ray"):
            raise UsageError(f"unknown executor {self.on!r}: use inline, local or ray")
        if self.domain is not None and self.domain not in DOMAINS:
            raise UsageError(f"unknown domain {self.domain!r}: use one of {', '.join(DOMAINS)}")
        check_fields(self, ("workers",))


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
        why: ``test`` (it failed a known-answer test), ``votes`` (it lost far more of them than others), ``probation`` (it lost a
            vote, and was on probation), ``record`` (an earlier job found it so).
        lost, judged: tasks on which it lost a vote, of all that it voted on.
        passed, failed: known-answer tests. wrong: kernel -> how often its answer was wrong in these tests.
        quarantined: it got no more work, for enough others were there.
        asked, answered: executions that it began, and those of them that it answered with a vote.
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
        return "; ".join(filter(None, (record, self._votes(), tests, kernels, "quarantined" if self.quarantined else None)))


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
    """What a job did and cost. Times in seconds, sizes in bytes; ``digest`` is that of the whole output, in hex.

    ``wall_s`` ends when the output is published; diagnosis comes after that. ``cpu_s`` is all, with diagnosis.

    ``executions`` are all; of them ``reexecutions`` are what faults have cost, and ``spares`` were to overtake slow ones.

    ``counters`` are Hadoop's and those of the job, summed over one agreed attempt of each task: replicas do not double them.
    Those that the engine takes from votes are as sure as the output; those that a job counts are what one replica said.
    ``recovered``: tasks that a resumed job took over from its earlier lives; all other figures are of its last life.
    ``diagnoses``: what each masked fault was, up to 64, and how many ``diagnoses_more`` there are; ``probes``: executions that
    this took.
    ``lost_votes``: domain -> tasks on which it lost a vote; ``suspects``: those domains that are not trusted any more (R11).
    ``attestation`` of an attested job: backend, nonce (hex), environments (hex), µTPMs, leaves, batches, bytes of the receipt.
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
