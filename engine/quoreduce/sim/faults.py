"""Faults, with their times and places: hashes of the seed decide, so that a fault leaves everything else as it was."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from quoreduce.errors import UsageError
from quoreduce.sim.cluster import Shape
from quoreduce.tracker import Launch, Plan

KINDS = {
    "wrong-map": "N or P% of the map tasks are wrong in one of their first executions, each in a way of its own",
    "wrong-reduce": "the same of reduces",
    "bad": "N nodes give a wrong answer with probability DETAIL (1), always the same one to the same task",
    "collude": "N nodes give the same wrong answer as each other with probability DETAIL (1): "
    "more than f break the model",
    "crash": "N or P% of the map tasks kill a worker in one of their first executions; "
    "what it stored stays on its node",
    "node": "N nodes are lost for good at some moment, with what they stored",
    "rack": "N racks are lost in the same way",
    "slow": "N nodes are DETAIL (4) times slower",
    "rot": "N or P% of the map tasks' stored outputs change on their disk without notice",
    "lose": "a message is lost with probability P%",
    "duplicate": "an answer comes twice with probability P%",
    "delay": "a message is late by up to DETAIL (5) seconds with probability P%",
    "reorder": "a message waits until others have overtaken it with probability P%",
}
PROBABILITIES = ("lose", "duplicate", "delay", "reorder")
DETAIL_USUAL = {"bad": 1.0, "collude": 1.0, "slow": 4.0, "delay": 5.0}
WRONG_KINDS = ("wrong-map", "wrong-reduce", "bad", "collude")
NODE_KINDS = ("bad", "collude", "node", "rack", "slow")
TEST_RUNS = 16  # of the one kernel that is wrong; the engine's test runs each kernel as often
_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class SimulatedFault:
    """One kind of fault: ``amount`` of tasks or nodes, or, if ``share``, a share of them from 0 to 1."""

    kind: str
    amount: float
    share: bool
    detail: float

    def __str__(self) -> str:
        amount = f"{self.amount * 100:g}%" if self.share else f"{self.amount:g}"
        return f"{self.kind}:{amount}" + (f":{self.detail:g}" if self.kind in DETAIL_USUAL else "")


def parse_fault(text: str) -> SimulatedFault:
    """Parse ``KIND:AMOUNT[%][:DETAIL]``; raise UsageError."""
    match = re.fullmatch(r"([a-z-]+):(\d{1,9}(?:\.\d{1,9})?)(%?)(?::(\d{1,6}(?:\.\d{1,9})?))?", text)
    if match is None or match[1] not in KINDS:
        raise UsageError(f"{text!r} is no fault: use KIND:AMOUNT[%][:DETAIL]; kinds: {', '.join(KINDS)}")
    kind, share = match[1], bool(match[3])
    amount = float(match[2]) / (100 if share else 1)
    if (share and amount > 1) or (not share and not amount.is_integer()):
        raise UsageError(f"{text!r}: an amount is a whole number, or 0% to 100%")
    if share != (kind in PROBABILITIES) and (kind in PROBABILITIES or kind in NODE_KINDS):
        raise UsageError(
            f"{text!r}: the amount of {kind} is a {'share, with %' if kind in PROBABILITIES else 'number of them'}"
        )
    if match[4] is not None and kind not in DETAIL_USUAL:
        raise UsageError(f"{text!r}: {kind} has no detail")
    detail = float(match[4]) if match[4] is not None else DETAIL_USUAL.get(kind, 0.0)
    if kind in ("bad", "collude") and detail > 1:
        raise UsageError(f"{text!r}: a probability is from 0 to 1")
    if kind == "slow" and detail < 1:
        raise UsageError(f"{text!r}: slower means by a factor of 1 or more")
    return SimulatedFault(kind, amount, share, detail)


def draw(seed: int, stream: int, a: int = 0, b: int = 0) -> float:
    """A number from 0 to less than 1 that depends on nothing but its arguments (splitmix64)."""
    x = (
        seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03 + a * 0x8CB92BA72F3D8DD7 + b * 0xABC98388FB8FAC03 + 1
    ) & _MASK
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK
    return ((x ^ (x >> 31)) >> 11) / (1 << 53)


class Faults:
    """All faults of a run, chosen beforehand; ``injected`` counts those that struck.

    Attributes:
        messages: whether any of them may strike a message.
        slow: node -> factor.
        bad_nodes: their numbers.
        lost_nodes: node -> when, as a share of the time that the job should take.
        beyond: why no promise is made of the result, or empty.
    """

    def __init__(self, faults: Sequence[SimulatedFault], shape: Shape, plan: Plan, seed: int) -> None:
        self.injected: Counter[str] = Counter()
        self._seed, self._plan = seed, plan
        self._tasks: dict[str, dict[int, int]] = {}  # kind -> task -> replica that it strikes
        self._nodes: dict[str, dict[int, float]] = {}
        self._chances: dict[str, SimulatedFault] = {
            fault.kind: fault for fault in faults if fault.kind in PROBABILITIES
        }
        self.lost_nodes: dict[int, float] = {}
        self.messages = bool(self._chances)
        for fault in faults:
            rng = Random(f"{seed} {fault.kind}")
            if fault.kind in ("node", "rack"):
                self._lose_nodes(fault, shape, rng)
            elif fault.kind in NODE_KINDS:
                chosen = rng.sample(range(shape.nodes), min(int(fault.amount), shape.nodes))
                self._nodes[fault.kind] = dict.fromkeys(chosen, fault.detail)
            elif fault.kind not in PROBABILITIES:
                self._choose_tasks(fault, rng)
        self.slow = self._nodes.get("slow", {})
        self.bad_nodes = sorted(self._nodes.get("bad", {}))
        self.injected["slow"] += len(self.slow)
        gang = {n // shape.rack if shape.domain == "rack" else n for n in self._nodes.get("collude", {})}
        domains = len(gang) * (shape.slots if shape.domain == "core" else 1)
        self.beyond = f"{domains} domains collude, and f={plan.need - 1}" if domains > plan.need - 1 else ""
        if plan.need == 1 and any(fault.kind in WRONG_KINDS for fault in faults):
            self.beyond = "there are wrong answers, and one wins"

    def _lose_nodes(self, fault: SimulatedFault, shape: Shape, rng: Random) -> None:
        size = shape.rack if fault.kind == "rack" else 1
        units = -(-shape.nodes // size)
        for unit in rng.sample(range(units), min(int(fault.amount), units)):
            moment = rng.random()
            for n in range(unit * size, min((unit + 1) * size, shape.nodes)):
                self.lost_nodes[n] = min(moment, self.lost_nodes.get(n, 1.0))

    def _choose_tasks(self, fault: SimulatedFault, rng: Random) -> None:
        tasks = self._plan.reduces if fault.kind == "wrong-reduce" else self._plan.maps
        count = round(fault.amount * tasks) if fault.share else min(int(fault.amount), tasks)
        self._tasks[fault.kind] = {t: rng.randrange(self._plan.first) for t in rng.sample(range(tasks), count)}

    def _strikes(self, kind: str, c: Launch) -> bool:
        struck = self._tasks.get(kind, {}).get(c.task.index) == c.replica
        self.injected[kind] += struck
        return struck

    def wrong(self, c: Launch, node: int) -> bytes:
        """The name of the error in the output of this execution; empty if it is right."""
        number = c.task.index * 3 + ("sample", "map", "reduce").index(c.task.kind)
        for kind, stream in (("collude", 1), ("bad", 2)):
            chance = self._nodes.get(kind, {}).get(node) if self._nodes else None
            if chance is not None and draw(self._seed, stream, number, 0 if kind == "collude" else node) < chance:
                self.injected[kind] += 1
                return b"gang" if kind == "collude" else b"n%d" % node
        return b"a%d" % c.attempt if self._strikes(f"wrong-{c.task.kind}", c) else b""

    def passes(self, test: int, node: int) -> bool:
        """Whether a node passes a known-answer test of TEST_RUNS kernel runs: bad nodes pass only if none is wrong.

        Others always do: transient faults are over, and who colludes knows a test when it sees one.
        """
        p = self._nodes.get("bad", {}).get(node, 0.0)
        return draw(self._seed, 30, test, node) < (1 - p) ** TEST_RUNS

    def crashes(self, c: Launch) -> bool:
        """Whether this execution kills its worker."""
        return c.task.kind == "map" and self._strikes("crash", c)

    def rots(self, c: Launch) -> bool:
        """Whether the stored output of this execution changes on its disk; it strikes the first that is stored."""
        struck = c.task.kind == "map" and c.task.index in self._tasks.get("rot", {})
        if struck:
            del self._tasks["rot"][c.task.index]
            self.injected["rot"] += 1
        return struck

    def chance(self, kind: str, message: int) -> bool:
        """Whether a message is lost, duplicated, delayed or reordered."""
        fault = self._chances.get(kind)
        struck = fault is not None and draw(self._seed, 10 + PROBABILITIES.index(kind), message) < fault.amount
        self.injected[kind] += struck
        return struck

    def late_s(self, message: int) -> float:
        """How many seconds later than usual a message is."""
        late = draw(self._seed, 20, message) * self._chances["delay"].detail if self.chance("delay", message) else 0.0
        return late + (0.2 * draw(self._seed, 21, message) if self.chance("reorder", message) else 0.0)
