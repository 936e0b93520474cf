"""Tests of suspects within a job: what a worker says counts only if it was asked, and only its digests do (R10,
R11).
"""

from __future__ import annotations

from typing import Any, cast

import pytest

from quoreduce.driver.retests import LIMIT_S, Retests
from quoreduce.jobs.find import find_job
from quoreduce.protocol import wire
from quoreduce.protocol.faults import FaultPlan
from quoreduce.protocol.selftest import ANSWERS, ROUNDS, names_for, schedule
from quoreduce.tracker import Retest, Retested

JOB = find_job("wordcount")
TESTS = names_for(JOB)
RIGHT = b"".join(bytes.fromhex(ANSWERS[name]) for name in schedule(ROUNDS, TESTS))


class Sent(list[tuple[str, wire.Request]]):
    """An executor that only keeps what is submitted."""

    def submit(self, worker: str, raw: bytes) -> None:
        self.append((worker, wire.decode_request(raw)))


def begun(*faults: str) -> tuple[Retests, Sent]:
    plan, sent = FaultPlan(faults), Sent()
    plan.arm(1, 1, 1)
    retests = Retests(cast(Any, sent), plan, JOB)
    retests.begin(Retest(3, "core1", "w1"), ("core1", "w1", "1"), 100.0)
    return retests, sent


def said(data: bytes, test: int = 3) -> wire.Tested:
    return wire.Tested(test, data)


def test_right_answers_pass_and_one_wrong_bit_fails() -> None:
    for data, passed in (
        (RIGHT, True),
        (RIGHT[:-1] + bytes([RIGHT[-1] ^ 1]), False),
        (b"", False),
        (RIGHT[:-16], False),
    ):
        retests, _ = begun()
        assert retests.ended("w1", said(data)) == [Retested(3, passed)]
        assert not retests.waiting


def test_answers_of_others_to_other_tests_and_twice_are_ignored() -> None:
    retests, _ = begun()
    assert retests.ended("w2", said(RIGHT)) == []
    assert retests.ended("w1", said(RIGHT, 4)) == []
    assert retests.engage("w1")
    assert retests.ended("w1", said(RIGHT)) == [Retested(3, True)]
    assert retests.ended("w1", said(b"")) == []


def test_the_test_of_a_dead_worker_is_no_longer_awaited_and_a_late_one_has_a_deadline() -> None:
    retests, _ = begun()
    assert retests.late(100.0 + LIMIT_S - 1) == []
    assert retests.late(100.0 + LIMIT_S + 1) == ["w1"]
    retests.lost("w1")
    assert not retests.waiting


@pytest.mark.parametrize(
    ("fault", "percent"),
    [("bad:1:30%", 30), ("bad:core1:7%", 7), ("stuck:w1", 100), ("bad:0:30%", 0), ("flip:map:1", 0)],
)
def test_faults_on_demand_strike_the_tests_of_their_domain_too(fault: str, percent: int) -> None:
    _, ((worker, request),) = begun(fault)
    assert worker == "w1"
    assert isinstance(request, wire.SelfTest)
    assert (request.percent, request.fault is not None, request.rounds) == (percent, percent > 0, ROUNDS)


def test_executions_of_a_bad_domain_are_struck_with_its_probability_never_twice_alike() -> None:
    plan = FaultPlan(("bad:core1:30%",))
    plan.arm(1000, 1, 1)
    struck = [plan.strike("map", m, replica, False, ("core1", "w1", "1")) for m in range(1000) for replica in (0, 1)]
    seeds = [fault.seed for fault in struck if fault]
    assert 500 < len(seeds) < 700
    assert len(set(seeds)) == len(seeds)
    assert all(plan.strike("map", m, 0, False, ("core0", "w0", "0")) is None for m in range(1000))
