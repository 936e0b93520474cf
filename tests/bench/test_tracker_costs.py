"""What the tracker does for an event, counted in function calls: equal on every machine, and gate.

A job's calls are a sum of so many for each map, each reduce, each node: equality, not about. Times are in
bench/tracker.py.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

import quoreduce.tracker

sys.path.insert(0, str(Path(__file__).parents[2]))  # whence asv imports it

from bench import tracker


def calls(maps: int, nodes: int, f: int = 1, reduces: int = 10) -> int:
    """Calls of the tracker's functions, and steps of its generators, that a whole job takes."""
    count, folder = 0, str(Path(quoreduce.tracker.__file__).parent)

    def profile(frame: Any, event: str, _arg: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_filename.startswith(folder)

    sys.setprofile(profile)
    try:
        tracker.run(maps, nodes, f, reduces)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.benchmark(group="tracker")
@pytest.mark.parametrize("f", [0, 1, 2])
def test_a_map_costs_the_same_in_a_job_of_any_size(benchmark: Any, f: int) -> None:
    tracker.run(10, 10)  # what is imported once
    small, double, four = (calls(maps, 20, f) for maps in (200, 400, 800))
    assert four - double == 2 * (double - small)
    benchmark.extra_info["calls_for_each_map"] = (double - small) / 200
    benchmark.pedantic(tracker.run, (200, 20, f), rounds=3)


def test_a_node_costs_the_same_in_a_cluster_of_any_size() -> None:
    small, double, four = (calls(600, nodes) for nodes in (50, 100, 200))
    assert four - double == 2 * (double - small)
    assert double - small < 50 * 5  # it joins, and that is all


def test_events_are_as_many_as_there_are_executions_and_parts_and_workers() -> None:
    assert tracker.run(100, 7, f=2, reduces=3) == 3 * (100 + 3) + 3 + 7


@pytest.mark.parametrize(("costs", "growth"), [([5, 5, 5], 0.0), ([1, 10, 100], 1.0), ([1, 100, 10_000], 2.0)])
def test_growth_is_the_exponent(costs: list[float], growth: float) -> None:
    assert tracker.exponent((10, 100, 1000), costs) == pytest.approx(growth)
