"""The closed form against the simulator: the same jobs on many clusters. docs/design/simulator.md states the
tolerances.
"""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.sim import USUAL, Load, Outcome, Shape, parse_fault, simulate
from quoreduce.sim.model import Estimate, estimate

CASES = 120
TIME, CPU, BYTES = 0.35, 0.08, 0.04
WHOLE_MACHINE = replace(
    USUAL, check_s=1e-4, map_part_s=2e-5, reduce_part_s=4e-5, driver_part_s=4e-6, driver_s=1e-4, latency_s=1e-4
)


def pair(
    shape: Shape, job: str, maps: int, reduces: int, mb: float, f: int, mode: str, wrong: float = 0.0
) -> tuple[Estimate, Outcome]:
    load = Load(job, replace(WHOLE_MACHINE.job(job), stages=1), maps, reduces, mb * 1e6)
    faults = [parse_fault(f"wrong-map:{wrong * 100:g}%")] if wrong else []
    out = simulate(shape, load, WHOLE_MACHINE, f, mode, faults)
    assert out.end == "done"
    return estimate(shape, load, WHOLE_MACHINE, f, mode, wrong), out


def random_case(rng: Random) -> tuple[Estimate, Outcome]:
    mode = rng.choice(["original", "bft", "bft"])
    f = 0 if mode == "original" else rng.choice([0, 1, 2])
    shape = Shape(nodes=rng.choice([4, 6, 10, 20, 50]), slots=rng.choice([1, 2, 4]), spread=rng.choice([0, 0.1]))
    wrong = rng.choice([0, 0.02]) if f and shape.nodes >= 10 else 0
    job, maps, reduces = rng.choice(list(USUAL.jobs)), rng.choice([10, 40, 100, 400]), rng.choice([1, 2, 5, 15, 40])
    return pair(shape, job, maps, reduces, rng.choice([8, 64]), f, mode, wrong)


def test_on_clusters_it_is_near_the_simulator() -> None:
    """There what is read is near or far by chance, and lines form: times differ more than the rest."""
    rng = Random(5)
    found = [random_case(rng) for _ in range(CASES)]
    times = [closed.time_s / out.makespan_s for closed, out in found]
    assert statistics.median(times) == pytest.approx(1, rel=0.05)
    assert all(1 - TIME < ratio < 1 + TIME for ratio in times), (min(times), max(times))
    for closed, out in found:
        assert closed.cpu_s == pytest.approx(out.cpu_s, rel=CPU)
        assert closed.executions == pytest.approx(sum(out.executions.values()), rel=0.01)
        assert closed.stored_bytes == pytest.approx(out.bytes_stored, rel=BYTES)
        assert closed.shipped_bytes == pytest.approx(out.bytes_shipped, rel=BYTES)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(list(USUAL.jobs)), st.integers(2, 16), st.integers(1, 100), st.integers(1, 16),
    st.sampled_from([1, 8, 32]), st.sampled_from(["original", "bft", "basic"]),
)  # fmt: skip
def test_on_one_machine_of_cores_without_spread_it_is_nearer(
    job: str, cores: int, maps: int, reduces: int, mb: float, mode: str
) -> None:
    shape = replace(Shape.machine(cores, WHOLE_MACHINE), spread=0)
    closed, out = pair(shape, job, maps, reduces, mb, 0 if mode == "original" else 1, mode)
    assert closed.executions == sum(out.executions.values())
    assert closed.cpu_s == pytest.approx(out.cpu_s, rel=1e-3)
    if mode != "basic":  # whose last replicas nobody waits for
        assert closed.time_s == pytest.approx(out.makespan_s, rel=0.35)


def test_it_says_what_it_should_of_the_factors() -> None:
    shape, load = Shape(nodes=10), Load("sort", USUAL.job("sort"), 400, 20)
    plain = estimate(shape, load, USUAL, mode="original")
    by_f = [estimate(shape, load, USUAL, f=f) for f in (0, 1, 2, 3)]
    assert [round(one.executions) for one in by_f] == [420, 840, 1260, 1680]
    assert [one.stored_bytes for one in by_f] == [plain.stored_bytes] * 4  # R6
    assert all(a.time_s < b.time_s for a, b in pairwise(by_f))
    assert 1.9 < by_f[1].cpu_s / plain.cpu_s < 2.5
    assert estimate(replace(shape, nodes=40), load, USUAL).time_s < 0.4 * by_f[1].time_s
    assert estimate(shape, load, USUAL, wrong=0.25).executions == by_f[1].executions + 100


def test_a_driver_that_is_too_slow_bounds_the_job() -> None:
    slow = replace(USUAL, driver_s=1.0)
    load = Load("scan", USUAL.job("scan"), 100, 1, 1e6)
    assert estimate(Shape(nodes=50), load, slow).time_s > 200
