"""The plan of a campaign: a function of the seed, inside the model, and with every kind in it."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.chaos.plan import KINDS, MAPS_LEAST, REDUCERS, STAGES, kinds_of, parse_job, parse_kinds, plan_job
from quoreduce.errors import UsageError
from quoreduce.protocol.faults import FaultPlan, parse_fault

ALL = tuple(KINDS)
stages = st.sampled_from(sorted(STAGES))
numbers = st.integers(0, 500)
seeds = st.integers(0, 1 << 32)


@given(seeds, stages, numbers)
def test_same_seed_same_plan(seed: int, stage: str, number: int) -> None:
    assert plan_job(seed, stage, number, ALL) == plan_job(seed, stage, number, ALL)


@given(seeds, stages, numbers, st.sets(st.sampled_from(ALL)))
def test_a_plan_has_only_what_is_allowed_and_the_stage_can_do(
    seed: int, stage: str, number: int, allowed: set[str]
) -> None:
    plan = plan_job(seed, stage, number, allowed)
    assert set(plan.kinds) <= set(kinds_of(stage, allowed))
    assert plan.job in STAGES[stage].jobs
    assert {strike.kind for strike in plan.strikes} <= set(plan.kinds)
    assert all(0 <= strike.at < 1 for strike in plan.strikes)


@given(seeds, stages, numbers)
def test_no_two_faults_of_a_job_can_be_the_same_lie_about_a_task(seed: int, stage: str, number: int) -> None:
    """Inside the model: one domain is stuck at most, and each of the other kinds strikes a task on one replica only."""
    plan = plan_job(seed, stage, number, ALL)
    assert sum(spec.startswith("stuck") for spec in plan.faults) <= 1
    struck = Counter((spec.partition(":")[0], spec.split(":")[1]) for spec in plan.faults)
    assert max(struck.values(), default=0) <= 1


@given(seeds, stages, numbers)
def test_the_engine_takes_every_planned_fault(seed: int, stage: str, number: int) -> None:
    plan = plan_job(seed, stage, number, ALL)
    for spec in plan.faults:
        parse_fault(spec)
    FaultPlan(plan.faults, plan.fault_seed).arm(MAPS_LEAST, REDUCERS, plan.f)


@given(seeds, stages)
def test_the_first_jobs_of_a_stage_have_each_of_its_kinds_alone(seed: int, stage: str) -> None:
    alone = [plan.kinds for plan in (plan_job(seed, stage, i, ALL) for i in range(40)) if len(plan.kinds) == 1]
    assert {kinds[0] for kinds in alone} == set(kinds_of(stage, ALL))


@given(seeds, stages)
def test_some_jobs_have_several_kinds_and_some_have_none(seed: int, stage: str) -> None:
    sizes = Counter(len(plan_job(seed, stage, i, ALL).kinds) for i in range(120))
    assert sizes[0] == 10
    assert sum(count for size, count in sizes.items() if size >= 2) >= 30


def test_two_hundred_jobs_mean_two_thousand_faults() -> None:
    """The figure of the ten minutes is within reach: counted are faults on demand and strikes, for what they ask at
    most.
    """
    asked = 0
    for i in range(200):
        plan = plan_job(0, "local", i, ALL)
        asked += len(plan.strikes) + sum(int(spec.rpartition(":")[2]) for spec in plan.faults if "#" not in spec)
    assert asked >= 2000


def test_kinds_are_parsed() -> None:
    assert parse_kinds("all") == ALL
    assert parse_kinds("flip, kill") == ("flip", "kill")
    for text in ("", ","):
        with pytest.raises(UsageError, match="use all, or some of flip"):
            parse_kinds(text)
    with pytest.raises(UsageError, match=r"there is no 'kil': did you mean kill\? use flip, "):
        parse_kinds("flip,kil")


def test_jobs_are_named_by_stage_and_number() -> None:
    assert parse_job("cluster:12") == ("cluster", 12)
    assert parse_job(plan_job(1, "rpc", 7, ALL).name) == ("rpc", 7)
    for text in ("cluster", "moon:1", "local:x", "local:-1"):
        with pytest.raises(UsageError, match="STAGE:NUMBER"):
            parse_job(text)
