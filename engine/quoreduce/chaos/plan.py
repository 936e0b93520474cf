"""Which faults strike which job of a campaign: a function of the seed, the stage and the job's number. Pure."""

from __future__ import annotations

import random
import re
from collections.abc import Collection
from dataclasses import dataclass

from quoreduce.arguments import unknown_name
from quoreduce.errors import UsageError

REDUCERS = 4
MAPS_LEAST = 20  # of every job; no fault on demand asks for more victims
DEADLINE_S = 20.0
DEADLINE_SHORT_S = 5.0  # where somebody hangs or is frozen for longer than that
QUIET_EVERY = 12  # one job in so many has no fault: what the others' times are compared with


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of fault. ``specs``: what asks the engine for it; empty if the campaign itself does it from outside."""

    name: str
    text: str
    stages: tuple[str, ...]
    specs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Stage:
    """A place where jobs run. ``share`` of the campaign's time; ``around``: kinds that are in the air all the time.

    ``jobs_least``: so many jobs run in any case, however slow the machine is. ``quiet_at_first``: jobs can run there
    before any fault is in the air.
    """

    name: str
    text: str
    share: float
    domains: int
    jobs: tuple[str, ...]
    jobs_least: int
    around: tuple[str, ...] = ()
    quiet_at_first: bool = True


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault from outside: once the share ``at`` of the planned executions was launched (0: before the job begins).

    ``pick`` chooses the victim among those that there are.
    """

    kind: str
    at: float
    pick: int


@dataclass(frozen=True, slots=True)
class JobPlan:
    """One job and what is to happen to it. ``faults``: as in the engine's options, but that ``stuck:#N`` is the N-th
    domain.
    """

    stage: str
    number: int
    job: str
    f: int
    kinds: tuple[str, ...]
    faults: tuple[str, ...]
    strikes: tuple[Strike, ...]
    deadline_s: float
    fault_seed: int

    @property
    def name(self) -> str:
        """The argument of ``--job`` that runs this one again."""
        return f"{self.stage}:{self.number}"


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            "local", "five processes of this machine, one domain each", 0.50, 5,
            ("wordcount", "sort", "scan", "python", "stream"), 16,
        ),
        Stage(
            "ray", "four actors on a Ray of one machine, one domain each", 0.15, 4,
            ("wordcount", "sort", "python"), 4,
        ),
        Stage(
            "rpc", "the same, on a Ray that loses requests and replies", 0.12, 4,
            ("wordcount", "sort"), 1, ("rpc",), False,
        ),
        Stage(
            "cluster", "four Ray nodes, one domain each, with full object stores", 0.23, 4, ("sort", "wordcount"), 3,
            ("starve", "clock"),
        ),
    )
}  # fmt: skip
_ALL, _RAY = tuple(STAGES), ("ray", "cluster")
KINDS = {
    kind.name: kind
    for kind in (
        Kind("flip", "a bit of an output flips before its digest is taken", _ALL, ("flip:map:14", "flip:reduce:3")),
        Kind("wrong", "a wrong but well-formed output", ("local", "ray"), ("wrong:map:14", "wrong:reduce:3")),
        Kind("lie", "a false digest of a right output", ("local", "ray"), ("lie:map:14", "lie:reduce:3")),
        Kind(
            "swap", "stored data is altered after its digest was taken", ("local", *_RAY),
            ("swap:map:10", "swap:reduce:2"),
        ),
        Kind("crash", "a worker dies in the middle of an execution", _ALL, ("crash:map:1", "crash:reduce:1")),
        Kind("hang", "a worker never answers", ("local", "ray"), ("hang:map:1",)),
        Kind("lose", "stored output is lost", ("local", *_RAY), ("lose:map:10", "lose:reduce:2")),
        Kind("late", "an answer arrives twice", ("local", "ray"), ("late:map:18", "late:reduce:4")),
        Kind("wire", "a bit flips while a reduce fetches a block", ("local", *_RAY), ("wire:reduce:4",)),
        Kind("stuck", "one domain gives the same wrong output every time", ("local", "ray"), ("stuck:#",)),
        Kind("kill", "SIGKILL of a worker's process", _ALL),
        Kind("freeze", "SIGSTOP of a worker, for a while or for good", ("local", "ray")),
        Kind("slow", "a worker runs a tenth of the time (SIGSTOP, SIGCONT)", ("local", "ray")),
        Kind("rot", "a bit flips in a stored block, on disk", ("local", *_RAY)),
        Kind("part", "a bit flips in a part that is not published yet", ("local", *_RAY)),
        Kind("fill", "the disk of blocks and output is filled to the last byte", ("local",)),
        Kind("clock", "a worker, or a node, whose clock is hours or years off, and fast or slow", ("local", "cluster")),
        Kind("driver", "SIGKILL of the whole command; then it is run again", ("local",)),
        Kind("rpc", "a request or reply of Ray is lost (RAY_testing_rpc_failure)", ("rpc",)),
        Kind("starve", "an object store without space: a block in flight is spilled to disk", ("cluster",)),
        Kind("spill", "a bit flips in a spilled file of a block", ("cluster",)),
        Kind("node", "SIGKILL of a node's raylet: the node is gone", ("cluster",)),
        Kind("nodestop", "SIGSTOP of a node's raylet until it is held for dead", ("cluster",)),
    )
}  # fmt: skip
COLLUSION = "collusion"
_BLOCKS_IN_FLIGHT = ("starve", "spill")  # need blocks that are too large for Ray to pass by value
_JOBS_OF_THE_COMMAND = ("wordcount", "sort", "scan")  # quoreduce run knows these by name
_ALONE_ONLY = ("driver",)
_RARE = ("hang", "freeze", "node", "nodestop", "fill")  # take seconds, or end the job: at most one of them in a job
_STRIKES = {  # of the kinds from outside, in one job
    "kill": 2, "freeze": 1, "slow": 2, "rot": 24, "part": 4, "fill": 1, "clock": 1, "driver": 1, "spill": 1, "node": 1,
    "nodestop": 1,
}  # fmt: skip


def parse_kinds(text: str) -> tuple[str, ...]:
    """Parse ``--faults``: ``all``, or names with commas between; raise UsageError."""
    if text == "all":
        return tuple(KINDS)
    names = tuple(filter(None, text.replace(" ", "").split(",")))
    unknown = [name for name in names if name not in KINDS]
    if unknown:
        raise UsageError(f"--faults: {unknown_name(unknown[0], (*KINDS, 'all'))}")
    if not names:
        raise UsageError(f"--faults {text!r}: use all, or some of {', '.join(KINDS)}")
    return names


def kinds_of(stage: str, allowed: Collection[str]) -> list[str]:
    """The kinds of ``allowed`` that a stage has, in the order of the table."""
    return [kind.name for kind in KINDS.values() if stage in kind.stages and kind.name in allowed]


def plan_job(seed: int, stage: str, number: int, allowed: Collection[str]) -> JobPlan:
    """Plan job ``number`` of a stage.

    The first jobs take the stage's kinds one at a time, so that a short campaign has them all; then one job in three
    has one kind and the others have three to five, but one in QUIET_EVERY has none. Inside the model: at most one
    domain is stuck, and no two faults of a job make the same wrong output of the same task on two domains.
    """
    rng = random.Random(f"quoreduce chaos {seed} {stage} {number}")
    where = STAGES[stage]
    kinds = _draw(rng, _order(seed, stage, allowed), number)
    wanted = (
        _JOBS_OF_THE_COMMAND if "driver" in kinds else ("sort",) if set(kinds) & set(_BLOCKS_IN_FLIGHT) else where.jobs
    )
    jobs = [job for job in where.jobs if job in wanted]
    long = {"hang", "freeze"} & set(kinds)
    fault_seed = rng.randrange(1 << 30)
    specs = tuple(spec.replace("#", f"#{rng.randrange(where.domains)}") for kind in kinds for spec in KINDS[kind].specs)
    strikes = tuple(_strike(rng, kind) for kind in kinds for _ in range(_STRIKES.get(kind, 0)))
    f = 2 if rng.random() < 0.15 and "driver" not in kinds else 1
    return JobPlan(
        stage, number, rng.choice(jobs), f, tuple(kinds), specs, strikes, DEADLINE_SHORT_S if long else DEADLINE_S,
        fault_seed
    )  # fmt: skip


def _order(seed: int, stage: str, allowed: Collection[str]) -> list[str]:
    """The stage's kinds, shuffled; first those from outside, which only this stage may have."""
    kinds = kinds_of(stage, allowed)
    random.Random(f"quoreduce chaos {seed} {stage}").shuffle(kinds)
    return sorted(kinds, key=lambda kind: bool(KINDS[kind].specs))


def _draw(rng: random.Random, order: list[str], number: int) -> list[str]:
    if not order or number % QUIET_EVERY == QUIET_EVERY - 1:
        return []
    number -= number // QUIET_EVERY
    if number < len(order):
        return [order[number]]
    if number % 3 == 0:
        return [order[number // 3 % len(order)]]
    several = [kind for kind in order if kind not in _ALONE_ONLY]
    drawn = rng.sample(several, min(len(several), rng.randint(3, 5)))
    rare = [kind for kind in drawn if kind in _RARE]
    return [kind for kind in drawn if kind not in rare[1:]]


def _strike(rng: random.Random, kind: str) -> Strike:
    """Draw when a fault strikes, and which process. Part files appear late, and a timer of its own kills a driver."""
    at = (
        0.0
        if kind in ("spill", "driver")
        else rng.uniform(0.7, 0.95)
        if kind == "part"
        else max(0.0, rng.uniform(-0.1, 0.9))
    )
    return Strike(kind, at, rng.randrange(1 << 30))


def parse_job(text: str) -> tuple[str, int]:
    """Parse ``--job STAGE:NUMBER``; raise UsageError."""
    stage, _, number = text.partition(":")
    if stage not in STAGES or not re.fullmatch("[0-9]{1,9}", number):
        raise UsageError(f"--job {text!r}: use STAGE:NUMBER, with STAGE one of {', '.join(STAGES)}")
    return stage, int(number)


def chosen_by(on: str, stage: str) -> bool:
    """Whether ``--on`` asks for a stage."""
    return on == "all" or (on == "local") == (stage == "local")
