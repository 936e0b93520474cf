"""Whom to suspect (R11): from tasks won and lost, and from tests whose right answers are known beforehand.

Losing votes alone makes nobody a suspect: transient faults strike healthy domains too, and if all of them are struck often,
then nobody is worse than the others. There are three ways to be *named*:

- ``test``: the domain failed a known-answer test. It is asked for one when its answers contradict others', on its first,
  second, fourth, eighth... such task: log2 of them at most, and none in a job without faults.
- ``votes``: it lost so much more often than all others together that chance explains it with a probability below CHANCE_MOST.
- ``probation``: it lost a vote, or failed a test, though it was let back on probation; ``record``: it begins as a suspect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Known = Literal["quarantined", "probation"]
Why = Literal["", "test", "votes", "probation", "record"]

TASKS_LEAST = 3
CHANCE_MOST = 1e-9  # a job with a million lost votes names a healthy domain once in a thousand such jobs, at most


@dataclass(slots=True)
class Standing:
    """What was seen of a domain in one job.

    Attributes:
        judged: tasks that it voted on and that were won. lost: those of them on which a vote of its was lost.
        disputed: tasks on which its answer contradicted another's.
        passed, failed: known-answer tests.
        probation: one lost vote or failed test is enough to be named.
        why: how it came to be named; empty if it is not.
    """

    judged: int = 0
    lost: int = 0
    disputed: int = 0
    passed: int = 0
    failed: int = 0
    probation: bool = False
    why: Why = ""


def chance(lost: int, judged: int, others_lost: int, others_judged: int) -> float:
    """Return an upper bound on the probability that one domain loses so many tasks while all others lose so few.

    That is if all lose with the same probability, whatever it is: Chernoff's bound for both counts at once,
    exp(-n KL(k/n || q) - N KL(K/N || q)), is largest where q is the rate of all together. It costs four logarithms.
    """
    if not judged or lost * others_judged <= others_lost * judged:
        return 1.0
    rate = (lost + others_lost) / (judged + others_judged)
    return math.exp(-_distance(lost, judged, rate) - _distance(others_lost, others_judged, rate))


def _distance(lost: int, judged: int, rate: float) -> float:
    """The relative entropy of lost/judged to the rate, times judged."""
    won = judged - lost
    return (lost * math.log(lost / judged / rate) if lost else 0.0) + (won * math.log(won / judged / (1 - rate)) if won else 0.0)


def stands_out(lost: int, judged: int, others_lost: int, others_judged: int) -> bool:
    """Whether one domain lost so much more than all others that chance is no explanation."""
    return lost >= TASKS_LEAST and chance(lost, judged, others_lost, others_judged) < CHANCE_MOST


class Suspicion:
    """The standings of all domains, dead ones too.

    Attributes:
        standings: domain -> what was seen of it. named: the suspects, in the order in which they were named.
    """

    def __init__(self, known: Mapping[str, Known]) -> None:
        """Begin with what is ``known`` from earlier jobs."""
        self.standings: dict[str, Standing] = {}
        self.named: dict[str, None] = {}
        self._judged = self._lost = 0  # over all domains
        for name, state in known.items():
            self.of(name).probation = state == "probation"
            if state == "quarantined":
                self._name(name, "record")

    def of(self, name: str) -> Standing:
        """The standing of a domain."""
        standing = self.standings.get(name)
        if standing is None:
            standing = self.standings[name] = Standing()
        return standing

    def judge(self, name: str, judged: bool, lost: bool) -> bool:
        """Count a task that was judged for the first time, or lost for the first time, or both; whether the suspects are to be reviewed."""
        standing = self.of(name)
        standing.judged += judged
        standing.lost += lost
        self._judged += judged
        self._lost += lost
        if not lost or standing.why:
            return lost
        if standing.probation:
            return self._name(name, "probation")
        others = self._lost - standing.lost, self._judged - standing.judged
        return stands_out(standing.lost, standing.judged, *others) and self._name(name, "votes")

    def dispute(self, name: str) -> bool:
        """Count a task on which a domain contradicts others; whether that is a reason to test it."""
        standing = self.of(name)
        standing.disputed += 1
        return standing.why != "test" and standing.disputed & (standing.disputed - 1) == 0

    def tested(self, name: str, passed: bool) -> bool:
        """Count a test; whether the suspects are to be reviewed."""
        standing = self.of(name)
        standing.passed += passed
        standing.failed += not passed
        return not passed and self._name(name, "test")

    def weight(self, name: str) -> tuple[int, int]:
        """How bad a suspect is; who is worse is quarantined first, and called back last."""
        standing = self.standings[name]
        return standing.failed, standing.lost

    def _name(self, name: str, why: Why) -> bool:
        self.of(name).why = why
        self.named[name] = None
        return True
