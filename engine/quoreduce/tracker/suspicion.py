"""Whom to suspect (R11): from tasks won and lost, and from tests whose right answers are known beforehand.

Losing votes alone makes nobody a suspect: transient faults strike healthy domains too, and if all of them are struck
often, then nobody is worse than the others. There are three ways to be *named*:

- ``test``: the domain failed a known-answer test. It is asked for one when its answers contradict others', on its
  first, fourth, sixteenth... such task: as many as the logarithm of their number, and none in a job without faults.
- ``votes``: it lost so much more often than all others together that chance explains it with a probability below
  CHANCE_MOST. Like is compared with like: votes of the same kind of task and the same number of replica, of the first
  plan only, on the same type of CPU. Who is asked for a third opinion is asked because somebody else was wrong, faults
  may strike maps and not reduces, and a job that depends on the CPU makes the rarer type lose.
- ``probation``: it lost a vote, or failed a test, though it was let back on probation; ``record``: it begins as a
  suspect.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quoreduce.tracker.messages import Kind

Work = Kind | Literal["check"]
Group = tuple[Work, int, str]
Known = Literal["quarantined", "probation"]
Why = Literal["", "test", "votes", "probation", "record"]

TASKS_LEAST = 3
CHANCE_MOST = 1e-9  # a job with a million lost votes names a healthy domain once in a thousand such jobs, at most


@dataclass(slots=True)
class Standing:
    """What was seen of a domain in one job.

    Attributes:
        judged: tasks that it voted on and that were won.
        lost: those of them on which a vote of its was lost.
        disputed: tasks on which its answer contradicted another's.
        tallies: (kind of task, or check, number of replica or check, type of CPU) -> judged, lost; of the first plan.
        passed, failed: known-answer tests.
        probation: one lost vote or failed test is enough to be named.
        why: how it came to be named; empty if it is not.
    """

    judged: int = 0
    lost: int = 0
    disputed: int = 0
    tallies: dict[Group, list[int]] = field(default_factory=dict)
    passed: int = 0
    failed: int = 0
    probation: bool = False
    why: Why = ""

    def plus(self, other: Standing) -> Standing:
        """Of two domains together, which are made of the same."""
        tallies = {group: list(tally) for group, tally in self.tallies.items()}
        for group, (judged, lost) in other.tallies.items():
            mine = tallies.setdefault(group, [0, 0])
            mine[:] = mine[0] + judged, mine[1] + lost
        why = self.why if self.why not in ("", "record") else other.why or self.why
        return Standing(
            self.judged + other.judged, self.lost + other.lost, self.disputed + other.disputed, tallies,
            self.passed + other.passed, self.failed + other.failed, self.probation or other.probation, why,
        )  # fmt: skip


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
    return (lost * math.log(lost / judged / rate) if lost else 0.0) + (
        won * math.log(won / judged / (1 - rate)) if won else 0.0
    )


def stands_out(lost: int, judged: int, others_lost: int, others_judged: int) -> bool:
    """Whether one domain lost so much more than all others that chance is no explanation."""
    return lost >= TASKS_LEAST and chance(lost, judged, others_lost, others_judged) < CHANCE_MOST


class Suspicion:
    """The standings of all domains, dead ones too.

    Attributes:
        standings: domain -> what was seen of it.
        named: the suspects, in the order in which they were named.
    """

    def __init__(self, known: Mapping[str, Known]) -> None:
        """Begin with what is ``known`` from earlier jobs."""
        self.standings: dict[str, Standing] = {}
        self.named: dict[str, None] = {}
        self._tallies: dict[Group, list[int]] = {}  # over all domains
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
        """Count a task that was judged, or lost, for the first time, or both; whether the suspects are to be
        reviewed.
        """
        standing = self.of(name)
        standing.judged += judged
        standing.lost += lost
        return lost and (bool(standing.why) or (standing.probation and self._name(name, "probation")))

    def compare(self, name: str, group: Group, lost: bool) -> bool:
        """Count a vote of the first plan, now that its task is won; whether the suspects are to be reviewed."""
        standing = self.of(name)
        mine, all_ = standing.tallies.setdefault(group, [0, 0]), self._tallies.setdefault(group, [0, 0])
        for tally in (mine, all_):
            tally[0] += 1
            tally[1] += lost
        if not lost or standing.why or not stands_out(mine[1], mine[0], all_[1] - mine[1], all_[0] - mine[0]):
            return False
        return self._name(name, "votes")

    def dispute(self, name: str) -> bool:
        """Count a task on which a domain contradicts others; whether that is a reason to test it."""
        standing = self.of(name)
        standing.disputed += 1
        power_of_four = standing.disputed.bit_count() == 1 and standing.disputed.bit_length() % 2 == 1
        return standing.why != "test" and power_of_four

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
