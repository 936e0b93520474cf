"""Faults on demand, seeded: which execution is struck (the driver decides), and how (the worker does it).

========= ==============================================================================================================
flip      one bit of the output, before its digest is taken: a corrupted computation
wrong     a wrong but well-formed output, before its digest is taken
lie       the digest is altered, the data is right
swap      the digest is right, the stored data is altered afterwards
crash     the worker process dies before it answers
hang      the worker never answers
lose      the stored output is lost after success
late      the reply arrives twice, the second time late
wire      one bit flips while a reduce fetches a block
slow      the execution takes 20 times as long, and at least 8 seconds longer: it is right, and late
stuck     every execution in one domain gives the same wrong output: a core that is broken for good
bad       in one domain, each execution has one bit of its output flipped with some probability: a core that errs
approve   a check finds right whatever it reads
reject    a check finds wrong whatever it reads
rot       one bit of the input flips while a check reads it
========= ==============================================================================================================
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from quoreduce.errors import UsageError
from quoreduce.protocol.wire import Fault

CHECK_KINDS = ("approve", "reject", "rot")
KINDS = ("flip", "wrong", "lie", "swap", "crash", "hang", "lose", "late", "wire", "slow", *CHECK_KINDS)
TARGETS = ("map", "reduce", "all")
STORED_ONLY = ("swap", "lose")
_BAD = re.compile(r"bad:(?P<domain>.+):(?P<percent>\d{1,3})%")
_SPEC = re.compile(
    r"(?P<kind>[a-z]+):(?P<target>[a-z]+):(?P<amount>[0-9]{1,9}%|[0-9]{1,9}|all)"
    r"(?:@(?P<replica>first|last|any|[0-9]{1,2}))?"
)


@dataclass(frozen=True, slots=True)
class FaultSpec:
    """``KIND:TARGET:AMOUNT[@REPLICA]``: amount is a count, a share of the tasks (``25%``) or ``all``.

    ``REPLICA`` says which of a task's first executions is struck: ``first`` (the storing replica), ``last`` (the
    default: number f), ``any`` (drawn) or a number. ``swap`` and ``lose`` strike what is stored, so they always take
    the storing replica. ``approve``, ``reject`` and ``rot`` strike checks, ``first``, ``last`` or a number of them.
    """

    kind: str
    target: str
    amount: str
    replica: str


def parse_fault(text: str) -> FaultSpec | str:
    """Parse ``--fault``. Raises UsageError. ``stuck:DOMAIN`` gives the domain's name or number as a string.

    Of ``bad:DOMAIN:PERCENT`` the target is the domain, and the amount the percentage.
    """
    kind, _, rest = text.partition(":")
    if kind == "stuck" and rest:
        return rest
    bad = _BAD.fullmatch(text)
    if bad and 0 < int(bad["percent"]) <= 100:
        return FaultSpec("bad", bad["domain"], bad["percent"], "any")
    match = _SPEC.fullmatch(text)
    if not match or match["kind"] not in KINDS or match["target"] not in TARGETS:
        raise UsageError(
            f"--fault {text!r}: use KIND:TARGET:COUNT[@REPLICA] with KIND one of {', '.join(KINDS)}; TARGET map, "
            "reduce or all; COUNT a number, a share like 25% or all; REPLICA first, last, any or a number; or "
            "stuck:DOMAIN; or bad:DOMAIN:PERCENT such as bad:0:30%"
        )
    if match["kind"] == "wire" and match["target"] == "map":
        raise UsageError("--fault wire strikes what a reduce fetches: use wire:reduce:COUNT")
    return FaultSpec(match["kind"], match["target"], match["amount"], match["replica"] or "last")


@dataclass(slots=True)
class FaultPlan:
    """Decides, from a seed, which executions are struck. A struck execution is struck once."""

    specs: Sequence[str]
    seed: int = 0
    _victims: dict[tuple[str, int, int], list[str]] = field(default_factory=dict)
    _stored: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    _stuck: list[str] = field(default_factory=list)
    _bad: dict[str, int] = field(default_factory=dict)
    injected: int = 0

    def arm(self, maps: int, reduces: int, f: int) -> None:
        """Draw the victims for a job of ``maps`` and ``reduces`` tasks; raise UsageError if there are too few tasks."""
        rng = random.Random(f"quoreduce faults {self.seed}")
        for text in self.specs:
            spec = parse_fault(text)
            if isinstance(spec, str):
                self._stuck.append(spec)
                continue
            if spec.kind == "bad":
                self._bad[spec.target] = int(spec.amount)
                continue
            tasks = [("map", i) for i in range(maps) if spec.target in ("map", "all") and spec.kind != "wire"]
            tasks += [("reduce", i) for i in range(reduces) if spec.target in ("reduce", "all")]
            for kind, index in rng.sample(tasks, _amount(spec, text, len(tasks))):
                self._add(spec, kind, index, f, rng)

    def _add(self, spec: FaultSpec, kind: str, index: int, f: int, rng: random.Random) -> None:
        if spec.kind in CHECK_KINDS:
            kind, f = f"check of {kind}", max(0, f - 1)
        if spec.kind in STORED_ONLY:
            self._stored.setdefault((kind, index), []).append(spec.kind)
            return
        replica = {"first": 0, "last": f, "any": rng.randint(0, f)}.get(spec.replica)
        victim = (kind, index, int(spec.replica) if replica is None else replica)
        self._victims.setdefault(victim, []).append(spec.kind)

    def strike(self, kind: str, index: int, replica: int, store: bool, domains: Sequence[str]) -> Fault | None:
        """The fault that strikes this execution, if there is one. ``domains``: all names of the worker's domain."""
        if (stuck := self.stuck(kind, index, domains)) is not None:
            self.injected += 1
            return stuck
        percent = next((self._bad[name] for name in domains if name in self._bad), 0)
        seed = _seed("bad", kind, index, replica, self.seed)
        if percent and random.Random(seed).random() * 100 < percent:
            self.injected += 1
            return Fault("bad", seed)
        waiting = self._victims.get((kind, index, replica)) or (self._stored.get((kind, index)) if store else None)
        if not waiting:
            return None
        fault = waiting.pop()
        self.injected += 1
        return Fault(fault, _seed(fault, kind, index, replica, self.seed))

    def strike_check(self, kind: str, index: int, replica: int, domains: Sequence[str]) -> Fault | None:
        """The fault that strikes this check. A domain that is stuck, or bad, finds wrong what it checks."""
        if (stuck := self.stuck(kind, index, domains)) is not None:
            self.injected += 1
            return Fault("reject", stuck.seed)
        fault = self.strike(f"check of {kind}", index, replica, False, domains)
        return Fault("reject", fault.seed) if fault is not None and fault.kind == "bad" else fault

    def strike_test(self, test: int, domains: Sequence[str]) -> tuple[Fault, int] | None:
        """What strikes the known-answer tests in a domain that is stuck or bad, and what percentage of their runs."""
        percent = (
            100 if any(name in self._stuck for name in domains) else max(self._bad.get(name, 0) for name in domains)
        )
        return (Fault("bad", _seed("test", test, *domains, self.seed)), percent) if percent else None

    def stuck(self, kind: str, index: int, domains: Sequence[str]) -> Fault | None:
        """The fault of a domain that is broken for good. It strikes probes, too, which are not counted."""
        if any(name in self._stuck for name in domains):
            return Fault("stuck", _seed("stuck", kind, index, 0, self.seed))
        return None


def _amount(spec: FaultSpec, text: str, tasks: int) -> int:
    if spec.amount == "all":
        return tasks
    if spec.amount.endswith("%"):
        share = int(spec.amount[:-1])
        if share > 100:
            raise UsageError(f"--fault {text!r}: a share is at most 100%")
        return round(tasks * share / 100)
    if int(spec.amount) > tasks:
        raise UsageError(f"--fault {text!r}: the job has only {tasks} such tasks")
    return int(spec.amount)


def _seed(*parts: object) -> int:
    return random.Random(" ".join(map(str, parts))).getrandbits(63)
