"""R2 and R9 in the simulator: without faults exactly the planned executions run, and spare ones are counted apart."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.sim import USUAL, Calibration, Curve, JobCost, Load, Rate, Shape, Work, simulate
from quoreduce.sim.referee import Referee
from quoreduce.sim.slides import APPS, ratios
from quoreduce.tracker import Launch, Plan, Task

SECONDS = st.floats(1e-4, 30.0)
BYTE_S = st.floats(0, 3e-7)


@st.composite
def calibrations(draw: st.DrawFn) -> Calibration:
    """Any machine: one job whose executions take from nothing to half a minute."""
    works = [Work(*(Rate(draw(SECONDS), draw(BYTE_S), draw(BYTE_S)) for _ in range(3))) for _ in ("map", "reduce")]
    curves = [Curve(((1.0, draw(st.floats(1e-3, 2.0))),)) for _ in ("mapped", "out")]
    cost = JobCost(*works, *curves, stages=draw(st.integers(1, 2)), sample_s=draw(st.sampled_from([0.0, 0.1, 5.0])))
    return replace(USUAL, jobs={"any": cost}, driver_s=draw(st.floats(0, 0.1)), check_s=draw(st.floats(0, 5.0)))


@settings(max_examples=300, deadline=None)
@given(
    calibrations(), st.sampled_from([4, 7, 10]), st.lists(st.floats(0.02, 1.0), min_size=1, max_size=4),
    st.floats(0, 0.95), st.sampled_from([("original", 0), ("bft", 1), ("basic", 1)]), st.integers(1, 24),
    st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip
def test_spares_on_any_machine_are_no_violation(
    calibration: Calibration, nodes: int, speeds: list[float], spread: float, vote: tuple[str, int], maps: int,
    reduces: int, seed: int,
) -> None:  # fmt: skip
    """Nodes of random speeds and executions of random lengths: some are overtaken, and nothing else runs once too
    often.
    """
    mode, f = vote
    shape = Shape(nodes=nodes, speeds=tuple(speeds), spread=spread)
    load = Load("any", calibration.job("any"), maps, reduces, 64e6)
    out = simulate(shape, load, calibration, f, mode, seed=seed)
    assert (out.end, out.violations, out.wrong_outputs, out.reexecutions) == ("done", [], 0, 0)


def test_slow_types_of_cpu_are_overtaken_and_the_referee_agrees() -> None:
    load = Load("wordcount", USUAL.job("wordcount"), 60, 6, 640e6)
    out = simulate(Shape(speeds=(1.0, 1.0, 1.0, 1.0, 0.1)), load, USUAL)
    assert (out.end, out.violations, out.reexecutions) == ("done", [], 0)
    assert out.spares > 0
    assert sum(out.executions.values()) == 2 * (60 + 6) + out.spares


def test_slides_are_drawn_of_a_calibration_whose_maps_make_more_than_they_read() -> None:
    """Replicas that store wait for the disk, and are overtaken by spares: that is no broken rule."""
    jobs = {
        name: replace(cost, mapped=Curve(tuple((read, 3 * made) for read, made in cost.mapped.points)))
        for name, cost in USUAL.jobs.items()
    }
    assert len(ratios(replace(USUAL, jobs=jobs))) == 2 * len(APPS)


def overtaken(spares: int, planned: int, executed: int, domains: tuple[str, ...] = ("b", "c", "d", "e")) -> list[str]:
    """What a referee says of a task of two replicas (f=1) and so many spares."""
    task, referee = Task("map", 0), Referee(Plan(1, 1, 1, "bft", confirm=True))
    referee.published(0)
    for domain in ("a", *domains):
        referee.joined(domain, domain)
    for n, domain in enumerate(("a", *domains)[: 1 + spares]):
        referee.launched(Launch(n, task, n, domain, False, ()), 1 + n, spare=n > 0)
    referee.done(planned, executed)
    return referee.violations


@pytest.mark.parametrize(
    ("spares", "planned", "executed", "wrong"),
    [(2, 1, 3, ""), (0, 1, 1, ""), (3, 1, 4, "3 spares (R9)"), (1, 1, 1, "R2"), (1, 1, 3, "R2"), (0, 1, 2, "R2")],
)
def test_the_referee_counts_spares_itself(spares: int, planned: int, executed: int, wrong: str) -> None:
    said = overtaken(spares, planned, executed)
    assert (len(said) == 1 and wrong in said[0]) if wrong else said == []


def test_a_spare_goes_to_a_domain_that_is_new_to_its_task() -> None:
    referee, task = Referee(Plan(1, 1, 1, "bft", confirm=True)), Task("map", 0)
    for worker in ("a1", "a2"):
        referee.joined(worker, "a")
        referee.launched(Launch(int(worker[1]), task, 0, worker, False, ()), 1, spare=worker == "a2")
    assert referee.violations == ["map 0: a spare on a2, in a domain that was asked before (R9)"]
