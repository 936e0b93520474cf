"""R1, R3 and R4, one behaviour each: whose outputs agree, who is asked, and when a task is given up."""

from __future__ import annotations

import pytest
from driver_referee import output_of
from play import Play

from quoreduce.tracker import Agreed, Finished, JobFailed, JobTracker, Launch, Output, Part, Plan, Task, WorkerJoined


def test_r1_a_domain_that_repeats_itself_counts_once() -> None:
    job = Play(domains=2)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "stuck")
    job.answer("map 0", 2, "stuck")  # d1 again: twice the same wrong output from one bad core
    assert not job.agreed("map 0")
    assert job.domains("map 0")[2] == "d1"
    assert job.done()


def test_r1_replicas_go_to_unused_domains_and_wait_for_them() -> None:
    job = Play(domains=3, slots=1, maps=2)  # d0 and d1 have map 0, d2 has map 1, whose second replica waits
    assert job.domains("map 0") == ["d0", "d1"]
    assert job.domains("map 1") == ["d2"]
    job.answer("map 0", 0, "alone")
    assert job.domains("map 1") == ["d2", "d0"]
    job.answer("map 0", 1)
    assert job.running("map 0") == []  # a third opinion is due; d1 is free, but only d2 is new to the task
    job.answer("map 1", 0)
    assert job.domains("map 0") == ["d0", "d1", "d2"]
    assert job.done()


@pytest.mark.parametrize("first", [0, 1])
def test_r1_with_two_domains_a_transient_fault_costs_one_execution(first: int) -> None:
    job = Play(domains=2)
    for replica in (first, 1 - first):
        job.answer("map 0", replica, "alone" if replica == 1 else "")
    assert job.domains("map 0") == ["d0", "d1", "d1"]
    assert job.done()
    assert len(job.of("map 0")) == 3


def test_r1_with_two_domains_a_domain_that_is_always_wrong_ends_in_no_quorum() -> None:
    job = Play(domains=2)
    while job.result is None:
        c = job.cluster.flying[0]
        job.reply(c.attempt, "stuck" if c.worker == "w1" else "")
    assert isinstance(job.result, JobFailed)
    assert job.result.reason == "no_quorum"
    assert "one more domain would mask it" in job.result.message


def test_r1_fewer_domains_than_must_agree_are_refused() -> None:
    job = Play(domains=2, f=2)
    assert isinstance(job.result, JobFailed)
    assert job.result.reason == "too_few_domains"
    assert job.result.message == "3 domains must agree on every output (f=2), and only 2 are there."
    assert job.cluster.launches == {}


def test_r1_two_workers_of_one_domain_are_no_two_opinions() -> None:
    plan = Plan(maps=1, reduces=1, f=1, mode="bft")
    tracker = JobTracker(plan)
    for worker in ("a", "b", "c"):
        tracker.handle(WorkerJoined(worker, "one node", 4))
    assert [type(c) for c in tracker.start()] == [JobFailed]


def test_r3_more_than_f_faults_are_outvoted() -> None:
    """Slide 12: no cap of 2f+1. Four of six replicas are wrong, and f is 1."""
    job = Play(domains=6)
    for replica in range(4):
        job.answer("map 0", replica, "alone")
    assert job.done()
    assert len(job.of("map 0")) == 6


def test_r3_a_bound_on_attempts_ends_in_no_quorum_and_nothing_is_agreed() -> None:
    job = Play(domains=30, max_attempts=7)
    while job.result is None:
        job.answer("map 0", None, "alone")
    assert job.result.reason == "no_quorum"
    assert len(job.of("map 0")) == 7
    assert "7 executions" in job.result.message
    assert job.cluster.agreed == {}
    assert job.tracker.counters()["queued"] == 0


def test_r3_an_up_front_plan_is_not_completed_beyond_the_bound_if_those_left_may_agree() -> None:
    job = Play(domains=4, mode="basic", max_attempts=3)
    job.cluster.crash("w0", blocks_lost=True)
    assert len(job.of("map 0")) == 3
    job.answer("map 0", 1)
    assert not job.agreed("map 0")
    job.answer("map 0", 2)
    assert job.agreed("map 0")
    assert job.done()
    assert len(job.of("map 0")) == 3


def test_r4_outputs_that_differ_in_one_partition_do_not_agree() -> None:
    job = Play(reduces=3)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")  # differs in the last partition only
    assert not job.agreed("map 0")
    assert job.done()


def test_r4_a_right_digest_over_wrong_parts_is_another_output() -> None:
    """Readers go by the parts' digests, so a reply that contradicts itself must not win with the digest of others."""
    job = Play()
    first, second = job.of("map 0")
    honest = output_of((b"m0.0",))
    liar = Output(honest.digest, (Part(b"evil", 1, 4),))
    assert job.tracker.handle(Finished(first.attempt, liar))
    commands = job.tracker.handle(Finished(second.attempt, honest))
    assert not any(isinstance(c, Agreed) for c in commands)
    assert any(isinstance(c, Launch) and c.task == Task("map", 0) for c in commands)


def test_r1_a_task_with_a_vote_of_a_dead_domain_goes_on_in_a_live_one() -> None:
    """Fewer domains live than must agree, but with the vote that was cast they are enough."""
    job = Play(domains=2)
    job.cluster.join("spare", "d1", 1)
    job.answer("map 0", 0)
    job.cluster.crash("w0", blocks_lost=False)
    job.cluster.crash("w1", blocks_lost=False)
    assert [c.worker for c in job.running("map 0")] == ["spare"]


def test_r1_a_quarantined_domain_counts_as_asked_once_more_than_it_was() -> None:
    job = Play(domains=3, known={"d2": "quarantined"})
    while len(job.of("map 0")) < 9:
        job.answer("map 0", None, "alone")
    assert job.domains("map 0") == ["d0", "d1", "d1", "d2", "d0", "d1", "d2", "d0", "d1"]


def test_errors_are_voted_on_like_outputs() -> None:
    """A bad core can raise what a good one does not; f+1 equal errors are the job's own."""
    job = Play()
    job.answer("map 0", 0, error="KeyError: 'x'")
    assert job.result is None
    assert job.done()
    assert job.ledger.errors == job.ledger.lost_votes == 1

    job = Play()
    job.answer("map 0", 0, error="KeyError: 'x'")
    job.answer("map 0", 1, error="KeyError: 'x'")
    assert job.result == JobFailed("job_error", Task("map", 0), "KeyError: 'x'")


def test_errors_of_a_reduce_on_a_losing_input_are_withdrawn() -> None:
    job = Play()
    job.answer("map 0", 0, "collude")
    job.answer("reduce 0", 0, error="ValueError")
    job.answer("reduce 0", 1, error="ValueError")
    assert job.result is None  # f+1 agree, but their input is not voted yet
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    assert job.done()
