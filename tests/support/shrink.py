"""From a run that fails to the smallest one that does: fewer nodes, tasks, faults; a transcript that can be read.

``shrink`` searches with hypothesis below a scenario that fails; ``play`` runs one, and says what went wrong, and what
happened. To shrink a seed that failed somewhere: make it a Scenario, and print ``play(shrink(it, JobTracker),
JobTracker).text``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, find, settings
from hypothesis import strategies as st
from hypothesis.errors import NoSuchExample

from quoreduce.sim import USUAL, Load, Shape, Simulation, parse_fault
from quoreduce.sim.simulation import Tracker
from quoreduce.tracker import Command, Event, JobTracker, Plan

EXAMPLES = 500
EVENTS_MAX = 2000
SEARCH = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=(Phase.generate, Phase.shrink),
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
Make = Callable[[Plan], Tracker]


@dataclass(frozen=True, slots=True)
class Scenario:
    """A run of the simulator; faults as on the command line."""

    nodes: int
    maps: int
    reduces: int
    f: int
    faults: tuple[str, ...]
    seed: int

    def __str__(self) -> str:
        sizes = f"nodes {self.nodes}, maps {self.maps}, reduces {self.reduces}, f {self.f}, seed {self.seed}"
        return f"{sizes}, faults {' '.join(self.faults) or 'none'}"


class Played(NamedTuple):
    """What no tracker may do, or what it stumbled over; and all that happened, as text."""

    wrong: tuple[str, ...]
    text: str


class Bounded:
    """A tracker that stumbles if the job does not come to an end."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker, self._events = tracker, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tracker, name)

    def handle(self, event: Event) -> list[Command]:
        """Take an event."""
        self._events += 1
        assert self._events < EVENTS_MAX, "no end is in sight"
        return self._tracker.handle(event)


def play(scenario: Scenario, make: Make) -> Played:
    """Run a scenario. A job that fails is wrong, too, if the tracker itself brings it to an end."""
    run = _simulation(scenario, make)
    try:
        out = run.run()
        wrong = tuple(out.violations)
        if not wrong and out.end != "done" and _simulation(scenario, JobTracker).run().end == "done":
            wrong = (f"the job ends with {out.end}, and need not",)
    except (AssertionError, KeyError, ValueError) as error:
        wrong = (f"the tracker stumbled: {type(error).__name__} {error}".strip(),)
    lines = [f"# {scenario}", *(run.lines or ()), *(f"AGAINST THE RULES: {what}" for what in wrong)]
    return Played(wrong, "\n".join(lines) + "\n")


def _simulation(scenario: Scenario, make: Make) -> Simulation:
    plan = Plan(scenario.maps, scenario.reduces, scenario.f, "bft", confirm=True)
    load = Load("sort", USUAL.job("sort"), scenario.maps, scenario.reduces, split_bytes=4e6)
    faults = [parse_fault(text) for text in scenario.faults]

    def bounded(plan: Plan) -> Tracker:
        return Bounded(make(plan))

    return Simulation(Shape(scenario.nodes, slots=1), load, plan, USUAL, faults, scenario.seed, bounded, lines=True)


def below(scenario: Scenario) -> st.SearchStrategy[Scenario]:
    """All scenarios that are not larger: the simplest has one of everything, no fault, and seed 0."""
    kept = (
        st.lists(st.sampled_from(scenario.faults), unique=True, max_size=len(scenario.faults))
        if scenario.faults
        else st.just([])
    )
    return st.builds(
        Scenario, st.integers(1, scenario.nodes), st.integers(1, scenario.maps), st.integers(1, scenario.reduces),
        st.integers(0, scenario.f), kept.map(tuple), st.integers(0, scenario.seed),
    )  # fmt: skip


def shrink(scenario: Scenario, make: Make) -> Scenario:
    """The smallest scenario found below one that fails; itself if nothing smaller fails."""
    assert play(scenario, make).wrong, "this run does not fail"
    try:
        return find(below(scenario), lambda one: bool(play(one, make).wrong), settings=SEARCH, random=Random(0))
    except NoSuchExample:
        return scenario
