"""How a job is to be run."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, TypedDict, TypeVar, get_args

from quoreduce.data.digest import ALGORITHMS, Algorithm
from quoreduce.errors import UsageError
from quoreduce.limits import check_fields, check_switches
from quoreduce.protocol.faults import parse_fault
from quoreduce.protocol.port import DOMAINS, Domain
from quoreduce.tracker import MODES, Mode, domains_needed, replicas_planned

T = TypeVar("T")
On = Literal["inline", "local", "ray"]
Assurance = Literal["strict", "checked"]
ASSURANCES: tuple[Assurance, ...] = get_args(Assurance)
NUMBERS = ("f", "reducers", "split_mb", "fault_seed", "seed", "deadline_s", "attempts_max")
SWITCHES = (
    "overwrite", "sync", "strict", "deferred", "tentative", "digest_outputs", "tight_storage", "speculation", "durable",
    "diagnose",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attest:
    """How a job is attested, see ARCHITECTURE, "Attested jobs".

    Attributes:
        backend: the TPM that vouches for the workers of a node: ``swtpm``, or ``utpm`` (none: the root is software
            only); None: that of the policy.
        batch: how executions are quoted together: ``none``, ``aggregate`` or ``merkle``.
        batch_size: executions in a batch at most.
        batch_ms: how long a batch may wait, in milliseconds.
        scheme: of the µTPMs' keys: ``ecdsa`` or ``rsassa``.
        nonce: of a challenger, 32 bytes in hex; None: a random one.
        policy: the policy's file; None: the policy of ``quoreduce attest setup``.
        state: the folder of ``quoreduce attest setup``; None: QUOREDUCE_ATTEST, else
            ``~/.local/state/quoreduce/attest``.
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


def _renamed(old: str, new: str) -> Callable[[type[T]], type[T]]:
    """A class that still takes the keyword ``old``, with a warning, for what is called ``new`` now."""

    def rename(cls: type[T]) -> type[T]:
        init: Callable[..., None] = cls.__init__

        @wraps(init)
        def take(self: T, *args: Any, **said: Any) -> None:
            if old in said:
                warnings.warn(f"the option {old} is called {new} now", DeprecationWarning, stacklevel=2)
                said.setdefault(new, said.pop(old))
            init(self, *args, **said)

        cls.__init__ = take  # type: ignore[method-assign, assignment]
        return cls

    return rename


@_renamed("spares", "speculation")
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
        assurance: ``strict`` (f+1 executions of each task must agree) or ``checked`` (each is executed once and
            checked f times, in other domains, where the job has a check; R13, docs/guide/assurance.md).
        strict: masked faults are an error (the output is published all the same).
        faults: faults to inject, as for ``--fault``.
        fault_seed: decides which executions and bits the faults strike.
        seed: of the job's own randomness.
        deferred: f+1 replicas first, more when they disagree; else 2f+1 at once.
        tentative: reduces start on the first copies of the map outputs; else after the votes of all maps.
        digest_outputs: one replica stores its output, the others only digest theirs.
        tight_storage: write the output once; else three times.
        speculation: overtake slow executions by speculative attempts on idle workers.
        deadline_s: kill a worker that takes longer over one task; None: adapts to the tasks seen so far.
        attempts_max: bound on executions of one task; None: 4(f+1)+8.
        attest: how the job is attested; None: it is not.
        durable: keep a journal beside the output, so that the job can be resumed if its driver is killed
            (docs/guide/durable.md).
        diagnose: find out what masked faults were (docs/guide/diagnosis.md); costs nothing where there are none.
        direct_input: all replicas of a map but the first f read local inputs past the page cache (R6,
            docs/guide/inputs.md), where domains share a machine: what has rotted there is outvoted. It costs the time
            to read the disk.
        suspects: heed and update the record of suspect cores and nodes (docs/guide/suspects.md); None: if no faults are
            injected.
    """

    f: int = 1
    mode: Mode = "bft"
    digest: Algorithm | None = None
    reducers: int | None = None
    split_mb: float = 64.0
    overwrite: bool = False
    sync: bool = False
    assurance: Assurance = "strict"
    strict: bool = False
    faults: tuple[str, ...] = ()
    fault_seed: int = 0
    seed: int = 0
    deferred: bool = True
    tentative: bool = True
    digest_outputs: bool = True
    tight_storage: bool = True
    speculation: bool = True
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
            raise UsageError(
                f"at least {self.replicas_first} attempts of a task are planned, so {self.attempts_max} is too few"
            )
        if self.attest is not None and self.algorithm != "blake3":
            raise UsageError(f"digest {self.algorithm} is for accidental faults only: an attested job needs blake3")
        if self.assurance not in ASSURANCES:
            raise UsageError(f"unknown assurance {self.assurance!r}: use one of {', '.join(ASSURANCES)}")
        if self.assurance == "checked" and (self.mode != "bft" or not self.deferred or not self.digest_outputs):
            raise UsageError(
                "checked execution is for mode bft, with deferred execution and digest outputs; or use assurance strict"
            )
        if self.assurance == "checked" and self.attest is not None:
            raise UsageError("an attested job is voted on: there is no evidence for checks; use assurance strict")
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
        return domains_needed(self.f, self.mode)

    @property
    def replicas_first(self) -> int:
        """Executions of a task that are planned before anything goes wrong."""
        return replicas_planned(self.f, self.mode, self.deferred)

    @property
    def algorithm(self) -> Algorithm:
        """The digest in use."""
        return self.digest or ("checksum" if self.mode == "original" else "blake3")


class OptionsGiven(TypedDict, total=False):
    """The fields of :class:`Options` as keywords, so that a type checker finds a wrong keyword in a call of ``run``."""

    f: int
    mode: Mode
    digest: Algorithm | None
    reducers: int | None
    split_mb: float
    overwrite: bool
    sync: bool
    assurance: Assurance
    strict: bool
    faults: tuple[str, ...]
    fault_seed: int
    seed: int
    deferred: bool
    tentative: bool
    digest_outputs: bool
    tight_storage: bool
    speculation: bool
    deadline_s: float | None
    attempts_max: int | None
    attest: Attest | None
    durable: bool
    diagnose: bool
    suspects: bool | None
    direct_input: bool


@dataclass(frozen=True, slots=True)
class Place:
    """Where a job is to be run.

    Attributes:
        on: ``local`` (processes), ``ray`` (actors), ``inline`` (this process); None: ray if there is an address, else
            local.
        workers: how many; None: one a core, on a cluster one a node, inline 3.
        domain: what fails together: ``core``, ``worker``, ``node`` or ``rack``; None: core on one machine, node on a
            cluster.
        address: of a Ray cluster; None: RAY_ADDRESS.
        store: folder for map outputs; None: shared memory.
    """

    on: On | None = None
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
