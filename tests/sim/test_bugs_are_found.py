"""Simulation finds bugs: the tracker with one planted, on nodes that fail, is caught by the referee or hangs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from planting import BUGS, plant, weed

from quoreduce.sim import USUAL, Load, Shape, Simulation, parse_fault
from quoreduce.tracker import JobTracker, Plan

FAULTS = ("wrong-map:30%", "wrong-reduce:30%", "bad:1:0.3", "crash:10%", "node:1", "rot:10%", "duplicate:10%",
          "delay:10%:9", "slow:1:3")  # fmt: skip
FEW = ("wrong-map:60%", "collude:1:0.5")  # on so few nodes that one which is wrong is asked again
SEEDS = 400

pytestmark = pytest.mark.nightly  # tests/tracker plants the same bugs


@pytest.fixture(autouse=True)
def no_weeds() -> Iterator[None]:
    yield
    weed()


def caught(make: Any, faults: tuple[str, ...], nodes: int = 6) -> bool:
    for seed in range(SEEDS):
        plan = Plan(12, 3, 1, "bft", confirm=True)
        load = Load("sort", USUAL.job("sort"), 12, 3, split_bytes=4e6)  # so that answers are late, compared with them
        try:
            out = Simulation(
                Shape(nodes=nodes), load, plan, USUAL, [parse_fault(text) for text in faults], seed, make
            ).run()
        except (AssertionError, KeyError):  # the tracker itself stumbled
            return True
        if out.violations or out.end != "done":
            return True
    return False


def test_the_tracker_itself_is_not_caught() -> None:
    assert not caught(JobTracker, FAULTS)
    assert not caught(JobTracker, ())
    assert not caught(JobTracker, FEW, 3)


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_found(bug: str) -> None:
    make = plant(bug)
    assert caught(make, FAULTS) or caught(make, ()) or caught(make, FEW, 3)
