"""One test per rule of execution (R1-R11, ARCHITECTURE.md) and per slide's claim; the names say what holds."""

from __future__ import annotations

import itertools

import pytest
from driver_referee import output_of
from play import Play

from quoreduce.tracker import (
    Agreed,
    BlockLost,
    Cancel,
    Discard,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Output,
    Part,
    Plan,
    Published,
    Recovered,
    Refused,
    Retest,
    Retested,
    Slow,
    Source,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)


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


@pytest.mark.parametrize(("f", "maps", "reduces"), [(0, 3, 2), (1, 6, 3), (2, 4, 1), (3, 2, 2)])
def test_r2_without_faults_there_are_exactly_f_plus_1_executions(f: int, maps: int, reduces: int) -> None:
    job = Play(domains=f + 3, f=f, maps=maps, reduces=reduces)
    assert job.done()
    assert job.ledger.executions == (f + 1) * (maps + reduces)
    assert job.ledger.re_executions == 0


@pytest.mark.parametrize("task", ["map 0", "reduce 0"])
def test_r2_one_fault_costs_one_execution(task: str) -> None:
    job = Play(maps=2, reduces=2)
    while not job.running(task):
        job.reply(min(c.attempt for c in job.cluster.flying))
    job.answer(task, 1, "alone")
    assert job.done()
    assert job.ledger.executions == 2 * 4 + 1
    assert job.ledger.lost_votes == 1


def test_r2_nothing_is_launched_while_those_running_may_still_agree() -> None:
    job = Play(f=2, domains=5, tentative=False)
    job.answer("map 0", 0)
    assert job.last == []
    job.answer("map 0", 1, "alone")
    assert [c.replica for c in job.running("map 0")] == [2, 3]  # 2 may agree with 0, so one more, not two
    assert job.done()


@pytest.mark.parametrize("plan", [{"deferred": False}, {"mode": "basic"}])
@pytest.mark.parametrize("domains", [3, 2])
def test_slide_18_up_front_plans_are_executed_2f_plus_1_times_in_full(plan: dict[str, object], domains: int) -> None:
    job = Play(maps=3, reduces=2, domains=domains, slots=1, **plan)
    assert job.done()
    assert job.ledger.executions == 3 * 5
    assert job.ledger.re_executions == 0


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


def test_r5_reduces_start_on_the_first_copy_of_every_map() -> None:
    job = Play(maps=2)
    job.answer("map 0", 0)
    assert job.of("reduce 0") == []
    job.answer("map 1", 0)
    assert [[s.attempt for (s,) in c.sources] for c in job.of("reduce 0")] == [[0, 2], [0, 2]]


def test_r5_a_reduce_wins_only_after_its_inputs() -> None:
    job = Play()
    job.answer("map 0", 0)
    job.answer("reduce 0", 0)
    job.answer("reduce 0", 1)
    assert not job.agreed("reduce 0")
    job.answer("map 0", 1)
    assert job.agreed("reduce 0")
    assert isinstance(job.result, JobDone)
    assert job.ledger.executions == 4


def test_r5_a_contradiction_restarts_only_reduces_that_read_a_losing_partition() -> None:
    job = Play(reduces=3, domains=5)
    job.answer("map 0", 0, "alone")  # wrong in partition 2
    stale = {c.attempt for c in job.of("reduce 2")}
    job.answer("reduce 2", 0)  # honest, on a wrong input
    job.answer("reduce 1", 0)
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    assert {c.attempt for c in job.last if isinstance(c, Cancel)} == {max(stale)}
    assert Discard(min(stale)) in job.last
    assert job.ledger.withdrawn_votes == 1
    assert {c.attempt for c in job.running("reduce 2")}.isdisjoint(stale)
    assert [len(job.of(f"reduce {r}")) for r in range(3)] == [2, 2, 4]
    assert job.done()
    assert job.ledger.executions == 3 + 2 + 2 + 4


def test_r5_votes_on_a_losing_partition_do_not_win_however_many_they_are() -> None:
    """f+1 honest reduces read the same wrong copy and agree: on the wrong output."""
    job = Play()
    job.answer("map 0", 0, "collude")
    job.answer("reduce 0", 0)
    job.answer("reduce 0", 1)
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    assert not job.agreed("reduce 0")
    assert job.ledger.withdrawn_votes == 2
    assert job.done()


def test_r5_the_ledger_adds_up_withdrawn_votes_over_tasks() -> None:
    job = Play(maps=2, reduces=2, domains=5)
    job.answer("map 0", 0, "stuck")  # wrong in partition 0
    job.answer("map 1", 0, "alone")  # wrong in partition 1
    for r in (0, 0, 1, 1):
        job.answer(f"reduce {r}")
    for m in (0, 0, 1, 1):
        job.answer(f"map {m}")
    assert job.ledger.withdrawn_votes == 4
    assert job.done()


def test_r5_a_copy_that_lost_elsewhere_is_kept_until_its_readers_are_done() -> None:
    job = Play(reduces=2)
    job.answer("map 0", 0, "alone")  # wrong in partition 1; reduce 0 reads partition 0, which is right
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    assert Discard(0) not in job.last
    job.answer("reduce 0", 0)
    assert Discard(0) not in job.last
    job.answer("reduce 0", 1)
    assert Discard(0) in job.last
    assert job.agreed("reduce 0")
    assert job.done()


def test_r5_a_copy_that_was_kept_for_its_readers_goes_with_the_last_of_them_even_if_that_dies() -> None:
    job = Play(reduces=2, domains=6)
    job.answer("map 0", 0, "alone")
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    job.answer("reduce 0", 0)
    (reader,) = job.running("reduce 0")
    assert reader.worker != job.of("map 0")[0].worker
    assert Discard(0) not in job.last
    job.cluster.crash(reader.worker, blocks_lost=True)
    assert Discard(0) in job.last
    assert job.done()


def test_r5_reduces_wait_while_a_map_is_in_dispute() -> None:
    job = Play(maps=2)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")
    job.answer("map 1", 0)
    assert job.of("reduce 0") == []
    job.answer("map 0", 2)
    assert len(job.of("reduce 0")) == 2
    assert job.done()


@pytest.mark.parametrize("plan", [{"tentative": False}, {"mode": "basic"}, {"mode": "original"}])
def test_slide_20_switched_off_reduces_wait_for_every_vote(plan: dict[str, object]) -> None:
    job = Play(maps=2, **plan)
    job.answer("map 0", 0)
    job.answer("map 1", 0)
    assert bool(job.of("reduce 0")) == (job.plan.need == 1)
    assert job.done()


def test_r6_only_one_replica_stores() -> None:
    job = Play(maps=2, reduces=2)
    assert job.done()
    assert [c.store for c in job.cluster.launches.values()] == [c.replica == 0 for c in job.cluster.launches.values()]


def test_r6_in_a_dispute_the_replicas_that_follow_store_too() -> None:
    """The storing replica is wrong; the winner comes with a copy all the same, without an execution just for that."""
    job = Play(domains=5)
    job.answer("map 0", 0, "alone")
    job.answer("map 0", 1)
    assert [c.store for c in job.of("map 0")] == [True, False, True]
    assert job.done()
    assert len(job.of("map 0")) == 3


def test_r6_a_lost_copy_of_a_voted_map_is_executed_again() -> None:
    job = Play(domains=5)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.lose_block(0, told=True)
    again = job.running("map 0")
    assert [(c.replica, c.store) for c in again] == [(2, True)]
    assert job.done()
    assert job.ledger.lost_blocks == 1


def test_r6_another_copy_is_sought_where_the_winner_was_produced() -> None:
    """Not from who challenged it, whom a vote that is not won yet would ask again first (R1)."""
    job = Play(domains=3)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")
    job.answer("map 0", 2)
    assert job.domains("map 0") == ["d0", "d1", "d2"]
    job.cluster.lose_block(0, told=True)
    assert job.domains("map 0")[3:] == ["d2"]
    assert job.done()


def test_r6_an_execution_for_a_copy_must_give_the_winning_output() -> None:
    job = Play(domains=5)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.lose_block(0, told=True)
    job.answer("map 0", 2, "alone")
    assert [c.replica for c in job.running("map 0")] == [3]
    assert job.ledger.lost_votes == 1
    assert job.done()


def test_r6_a_reader_that_refuses_its_source_is_run_again_on_another_copy() -> None:
    job = Play(domains=5)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.blocks[0].spoilt = True  # flipped bits on disk, after the vote
    job.answer("reduce 0", 0)
    assert job.ledger.refused == 1
    assert [c.replica for c in job.running("map 0")] == [2]
    assert job.done()
    assert job.ledger.lost_votes == 0


def test_r6_a_reader_can_refuse_only_what_it_was_told_to_read() -> None:
    job = Play(maps=2, reduces=1, domains=5)
    job.answer("map 0", 0)
    job.answer("map 1", 0)
    reduce = job.running("reduce 0")[0]
    commands = job.tracker.handle(Refused(reduce.attempt, (1, 3, 99, reduce.attempt)))
    assert [type(c) for c in commands] == [Launch]
    assert job.ledger.lost_blocks == 0
    (again,) = commands
    job.tracker.handle(Refused(again.attempt, ()))
    assert job.tracker._reduces[0].refused == 2  # which a job that fails tells


def test_slide_21_switched_off_every_replica_stores_and_reduces_read_all_copies() -> None:
    job = Play(digest_outputs=False, tentative=False)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    assert all(c.store for c in job.cluster.launches.values())
    assert [s.attempt for s in job.of("reduce 0")[0].sources[0]] == [0, 1]
    assert job.done()


def test_slide_17_basic_reduces_read_every_copy() -> None:
    job = Play(mode="basic", domains=3, slots=1)
    for _ in range(3):
        job.answer("map 0")
    assert job.done()
    assert [s.attempt for s in job.of("reduce 0")[-1].sources[0]] == [0, 1, 2]


def test_the_output_to_publish_is_stored_and_executed_again_if_lost() -> None:
    job = Play(reduces=2)
    for task in ("map 0", "reduce 0"):
        job.answer(task, 0)
        job.answer(task, 1)
    assert job.agreed("reduce 0")
    storing = job.of("reduce 0")[0]
    job.cluster.lose_block(storing.attempt, told=True)
    assert [(c.replica, c.store) for c in job.running("reduce 0")] == [(2, True)]
    assert job.done()
    assert job.cluster.agreed[Task("reduce", 0)].attempt == job.of("reduce 0")[2].attempt


def test_r9_a_crash_is_replaced_and_is_no_vote() -> None:
    job = Play()
    job.cluster.crash(job.of("map 0")[0].worker, blocks_lost=True)
    assert [c.replica for c in job.running("map 0")] == [1, 2]
    assert [c.store for c in job.running("map 0")] == [
        False,
        True,
    ]  # the storing replica died, so another one is needed
    assert job.done()
    assert (job.ledger.crashed, job.ledger.lost_votes) == (1, 0)


def test_r9_the_votes_of_a_dead_worker_stand() -> None:
    job = Play()
    job.answer("map 0", 1)
    job.cluster.crash("w1", blocks_lost=True)
    job.answer("map 0", 0)
    assert job.agreed("map 0")
    assert job.done()


def test_r9_blocks_that_outlive_their_worker_are_still_read() -> None:
    job = Play(domains=5)
    job.answer("map 0", 0)
    job.cluster.crash(job.of("map 0")[0].worker, blocks_lost=False)
    assert job.done()
    assert len(job.of("map 0")) == 2


def test_r9_too_few_domains_are_given_a_chance_and_then_reported() -> None:
    job = Play(domains=2)
    job.cluster.crash("w1", blocks_lost=True)
    assert job.result is None
    job.answer("map 0", 0)
    assert job.cluster.flying == []  # the job waits for a replacement
    job.cluster.join("w9", "d9")
    assert job.domains("map 0")[-1] == "d9"
    job.cluster.crash("w9", blocks_lost=True)
    job.finish()
    job.cluster.send(Stalled())
    assert job.result.reason == "too_few_domains"


def test_r10_late_duplicate_and_unknown_replies_are_ignored() -> None:
    job = Play(f=2, domains=6)
    job.answer("map 0", 0)
    for event in (
        job.cluster.replies[0],
        Failed(0, "late", b"late"),
        Refused(0, (0,)),
        Finished(10_000, output_of((b"x",))),
        BlockLost(10_000),
        WorkerLost("nobody", True),
        WorkerJoined("w0", "d5", 3),
    ):
        before = job.ledger.ignored
        assert job.tracker.handle(event) == []
        assert job.ledger.ignored == before + 1
    assert job.done()
    assert job.ledger.executions == 3 * 2


def test_r10_the_answer_of_a_cancelled_replica_only_frees_its_slot() -> None:
    job = Play(domains=2, slots=2)
    job.answer("map 0", 0, "alone")
    job.answer("map 0", 1)  # a third opinion, and then a fourth, since each domain must be asked anew
    stale = [c.attempt for c in job.of("reduce 0")]
    while not job.agreed("map 0"):
        job.answer("map 0")
    assert {c.attempt for c in job.last if isinstance(c, Cancel)} == set(stale)
    votes = job.ledger.votes
    job.reply(stale[0])
    assert Discard(stale[0]) in job.last  # what it has stored in vain
    assert (job.ledger.votes, job.ledger.ignored) == (votes, 1)
    assert job.done()


def test_r10_what_a_dead_worker_still_says_is_ignored() -> None:
    job = Play()
    late = job.running("map 0")[0]
    job.cluster.crash(late.worker, blocks_lost=True)
    before = job.ledger.ignored
    assert job.tracker.handle(Finished(late.attempt, output_of((b"late",)))) == []
    assert job.tracker.handle(Executed(late.attempt)) == []
    assert job.ledger.ignored == before + 2
    assert job.done()


def test_r10_a_reply_with_the_wrong_number_of_partitions_is_no_vote() -> None:
    job = Play(reduces=2)
    job.tracker.handle(Finished(0, output_of((b"one part where two are due",))))
    assert (job.ledger.malformed, job.ledger.votes, job.ledger.crashed) == (1, 0, 1)
    job.tracker.handle(Finished(1, output_of((b"and another",))))
    assert (job.ledger.malformed, job.ledger.crashed, job.tracker._maps[0].crashed) == (2, 2, 2)
    job.tracker.check()


def test_r12_an_earlier_life_is_told_before_the_start_once_and_its_attempts_are_over() -> None:
    tracker, task, output = JobTracker(Plan(1, 1, 1, "bft", first_attempt=100)), Task("map", 0), output_of((b"m",))
    for name in ("a", "b"):
        assert tracker.handle(WorkerJoined(f"w{name}", name, 1)) == []
    for attempt in (7, 8, 9):
        assert tracker.handle(Recovered(task, attempt, output, ("a", "b"), True)) == []
    assert tracker.ledger.ignored == 2
    launches = [command for command in tracker.start() if isinstance(command, Launch)]
    assert [(one.attempt, str(one.task), one.sources) for one in launches] == [
        (100, "reduce 0", ((Source(0, 7, ""),),)), (101, "reduce 0", ((Source(0, 7, ""),),)),
    ]  # fmt: skip
    assert tracker.handle(Recovered(Task("reduce", 0), 9, output, ("a", "b"), True)) == []
    assert tracker.handle(Finished(7, output)) == []
    assert tracker.ledger.ignored == 4
    tracker.check()


def test_a_job_whose_driver_waits_for_nothing_has_failed() -> None:
    """The reduce is agreed on, and the driver neither publishes it nor says that it is gone."""
    job = Play(domains=1, f=0, confirm=True)
    job.finish()
    assert job.tracker.handle(Stalled()) == [
        JobFailed("no_quorum", None, "no worker is left that could help with anything.")
    ]


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


def test_what_was_begun_comes_before_what_was_not() -> None:
    job = Play(domains=1, slots=1, maps=3, mode="original", f=0)
    job.cluster.crash("w0", blocks_lost=False, replacement="again")
    assert [str(c.task) for c in job.cluster.flying] == ["map 0"]


def test_whether_a_job_has_started_is_known() -> None:
    tracker = JobTracker(Plan(1, 1, 0, "original"))
    assert tracker.started is False
    tracker.handle(WorkerJoined("w", "d", 1))
    tracker.start()
    assert tracker.started is True


def test_nothing_follows_the_end() -> None:
    job = Play()
    assert job.done()
    assert job.tracker.done
    assert job.tracker.handle(WorkerLost("w0", True)) == []


def wrong_domain(job: Play, worker: str) -> None:
    while job.result is None:
        c = min(job.cluster.flying, key=lambda c: c.attempt)
        job.reply(c.attempt, "stuck" if c.worker == worker else "")


def executed_on(job: Play, worker: str) -> int:
    return sum(c.worker == worker for c in job.cluster.launches.values())


def test_r11_a_domain_that_fails_a_test_is_named_and_quarantined_at_once() -> None:
    job = Play(maps=30, domains=4, slots=1, broken=("d1",))
    wrong_domain(job, "w1")
    assert isinstance(job.result, JobDone)
    assert job.ledger.suspects == {"d1": "test"}
    assert job.ledger.quarantined == ("d1",)
    assert job.tracker.quarantined == ["d1"]
    assert executed_on(job, "w1") <= 2  # the second was on its way
    job.cluster.expect_truth()


def test_r11_a_domain_that_loses_far_more_than_the_others_is_named_though_it_passes_tests() -> None:
    job = Play(maps=80, domains=4, slots=1)
    wrong_domain(job, "w1")
    assert isinstance(job.result, JobDone)
    assert job.ledger.suspects == {"d1": "votes"}
    assert job.ledger.suspicion["d1"] >= 3
    assert job.ledger.quarantined == ("d1",)
    assert executed_on(job, "w1") <= 40
    assert job.tracker.standings["d1"].passed >= 2
    assert job.tracker.standings["d0"].why == ""


def test_r11_faults_that_strike_everybody_alike_name_nobody() -> None:
    """Every map is wrong once, in one domain after the other: all lose, nobody is worse than the rest."""
    job = Play(maps=60, domains=4, slots=1)
    while job.result is None:
        c = min(job.cluster.flying, key=lambda c: c.attempt)
        job.reply(c.attempt, "alone" if c.task.kind == "map" and c.replica == c.task.index % 2 else "")
    assert isinstance(job.result, JobDone)
    assert min(job.ledger.suspicion.values()) >= 10
    assert len(job.ledger.suspicion) == 4
    assert job.ledger.suspects == {}
    assert job.ledger.quarantined == ()
    assert job.ledger.re_executions == 60


def test_r11_tests_are_few() -> None:
    """On the first, second, fourth, eighth... contradiction of a domain."""
    job = Play(maps=64, domains=4, slots=1)
    while job.result is None:
        c = min(job.cluster.flying, key=lambda c: c.attempt)
        job.reply(c.attempt, "alone" if c.task.kind == "map" and c.replica == c.task.index % 2 else "")
    disputed = [standing.disputed for standing in job.tracker.standings.values()]
    assert job.ledger.tests == sum((n.bit_length() + 1) // 2 for n in disputed)  # the 1st, 4th, 16th...
    assert min(disputed) > 16


def test_r11_without_a_contradiction_nobody_is_tested() -> None:
    job = Play(maps=10)
    assert job.done()
    assert job.ledger.tests == 0


def test_r11_both_sides_of_a_contradiction_are_tested_before_the_vote() -> None:
    job = Play(domains=3)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")
    assert [c for c in job.last if isinstance(c, Retest)] == [Retest(0, "d1", "w1"), Retest(1, "d0", "w0")]
    assert not job.agreed("map 0")
    assert job.ledger.suspicion == {}


def test_r11_with_two_domains_the_broken_one_is_named_though_no_vote_is_won() -> None:
    """f+1 domains: nobody can be quarantined, nor outvoted. The test tells who it is all the same."""
    job = Play(domains=2, broken=("d1",))
    wrong_domain(job, "w1")
    assert job.result.reason == "no_quorum"
    assert job.ledger.suspects == {"d1": "test"}
    assert job.ledger.quarantined == ()


def test_r11_quarantine_leaves_f_plus_1_domains_the_least_suspect() -> None:
    job = Play(maps=20, domains=4, slots=1, broken=("d1", "d2", "d3"))
    for _ in range(12):
        if job.result is None:
            c = min(job.cluster.flying, key=lambda c: c.attempt)
            job.reply(c.attempt, "" if c.worker == "w0" else "alone")
    assert job.ledger.quarantined == ()  # until the job is done
    assert job.tracker.counters()["quarantined"] == 2
    assert job.tracker.standings["d0"].why == ""


def test_r11_a_quarantined_domain_is_called_back_when_others_die() -> None:
    job = Play(maps=4, domains=3, slots=1, known={"d2": "quarantined"})
    assert job.tracker.counters()["quarantined"] == 1
    job.cluster.crash("w1", blocks_lost=True)
    assert job.tracker.counters()["quarantined"] == 0
    assert job.done()


def test_r11_a_domain_that_an_earlier_job_quarantined_gets_no_work() -> None:
    job = Play(maps=10, domains=3, slots=1, known={"d1": "quarantined"})
    assert job.done()
    assert executed_on(job, "w1") == 0
    assert job.ledger.suspects == {"d1": "record"}


def test_r11_a_worse_suspect_takes_the_place_of_one_that_was_quarantined_before() -> None:
    """Three domains, f+1 = 2 must stay: d1 is back as soon as d2 fails its test."""
    job = Play(maps=10, domains=3, slots=1, known={"d1": "quarantined"}, broken=("d2",))
    wrong_domain(job, "w2")
    assert isinstance(job.result, JobDone)
    assert job.ledger.quarantined == ("d2",)
    assert executed_on(job, "w1") > 0


@pytest.mark.parametrize(("known", "suspects"), [({}, {}), ({"d1": "probation"}, {"d1": "probation"})])
def test_r11_on_probation_one_lost_vote_is_enough(known: dict[str, str], suspects: dict[str, str]) -> None:
    job = Play(maps=4, domains=4, known=known)
    job.answer("map 0", 1, "alone")
    assert job.done()
    assert job.ledger.suspicion == {"d1": 1}
    assert job.ledger.suspects == suspects


def test_r11_several_lost_votes_on_one_task_count_once() -> None:
    job = Play(domains=2)
    for replica, how in ((0, ""), (1, "alone"), (2, "alone")):
        job.answer("map 0", replica, how)
    assert job.done()
    assert job.ledger.lost_votes == 2
    assert job.ledger.suspicion == {"d1": 1}
    assert (job.tracker.standings["d1"].judged, job.tracker.standings["d0"].judged) == (2, 2)


def test_r11_late_votes_are_judged_too() -> None:
    job = Play(domains=3, mode="basic", maps=1)
    for replica, how in ((0, ""), (1, ""), (2, "alone")):
        job.answer("map 0", replica, how)
    assert job.ledger.lost_votes == 1
    assert {name: one.judged for name, one in job.tracker.standings.items()} == {"d0": 1, "d1": 1, "d2": 1}
    assert job.tracker.standings["d2"].lost == 1


def test_r11_a_job_waits_for_its_tests_and_not_for_those_of_dead_workers() -> None:
    for dies in (False, True):
        job = Play(domains=3)
        job.cluster.tests_at_once = False
        job.answer("map 0", 1, "alone")
        job.finish()
        assert job.result is None
        assert job.cluster.testing == {0: Retest(0, "d0", "w0"), 1: Retest(1, "d1", "w1")}
        job.cluster.send(Stalled())
        assert job.result is None
        job.cluster.test()
        if dies:
            job.cluster.crash("w1", blocks_lost=False)
        else:
            job.cluster.test()
        assert isinstance(job.result, JobDone)
        assert job.tracker.standings["d1"].passed == (not dies)


def test_r11_an_outcome_that_was_not_asked_for_is_ignored() -> None:
    job = Play(domains=3)
    job.cluster.send(Retested(0, False))
    assert job.ledger.ignored == 1
    assert job.ledger.suspects == {}
    assert job.done()


def test_r11_a_task_that_contradicts_itself_everywhere_is_not_deterministic() -> None:
    job = Play(domains=2)
    while job.result is None:
        job.answer("map 0", None, "alone")
    assert job.result.reason == "not_deterministic"
    assert "(quoreduce check looks for the cause)" in job.result.message
    assert job.ledger.suspicion == {}  # nobody is accused


def types_of(*types: str) -> Play:
    """A job with f=2 on as many domains, which begins when all have joined."""
    job = Play(domains=0, f=2, maps=1, types=types)
    assert len(job.of("map 0")) == 3
    return job


def test_r11_a_job_whose_output_depends_on_the_type_of_cpu_is_not_deterministic() -> None:
    job = types_of("old", "old", "new", "new", "new")
    while job.result is None:
        c = job.running("map 0")[0]
        job.answer("map 0", c.replica, "collude" if c.worker in ("w0", "w1") else "")
    assert job.result.reason == "not_deterministic"
    assert "(quoreduce check --settings cpu looks for the cause)" in job.result.message
    assert "(old and new)" in job.result.message
    assert job.result.task == Task("map", 0)
    assert job.ledger.lost_votes == 0
    assert job.ledger.suspects == {}


@pytest.mark.parametrize("types", [("old", "new", "new", "new", "new"), ("", "", "new", "new", "new"), ("x",) * 5])
def test_r11_wrong_answers_that_do_not_follow_the_types_are_outvoted(types: tuple[str, ...]) -> None:
    """One of the wrong is of the type of the right; a type is not known; there is only one type."""
    job = types_of(*types)
    while job.running("map 0"):
        c = job.running("map 0")[0]
        job.answer("map 0", c.replica, "collude" if c.worker in ("w0", "w1") else "")
    assert job.done()
    assert job.ledger.suspicion == {"d0": 1, "d1": 1}


def test_r11_types_are_not_to_blame_while_one_domain_stands_alone() -> None:
    job = types_of("old", "new", "new", "new")
    job.answer("map 0", 0, "alone")
    assert job.done()
    assert job.ledger.suspicion == {"d0": 1}


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


def test_slides_15_and_16_original_executes_once_and_recovers_from_crashes() -> None:
    job = Play(mode="original", f=1, maps=3, reduces=2, domains=1, slots=1)
    assert job.done()
    assert job.ledger.executions == 5
    job = Play(mode="original", maps=3, reduces=2, domains=2)
    job.cluster.crash("w0", blocks_lost=True)
    assert job.done()


def test_the_sample_is_agreed_on_before_anything_else_starts() -> None:
    job = Play(sample=True, maps=2)
    assert {c.task.kind for c in job.cluster.launches.values()} == {"sample"}
    job.answer("sample 0", 1)
    job.answer("sample 0", 0)
    assert [type(c) for c in job.last][:2] == [Agreed, Launch]
    job.cluster.lose_block(0, told=True)  # the driver could not read it after all
    assert job.running("sample 0")
    assert job.done()


def test_without_maps_reduces_start_at_once_and_read_nothing() -> None:
    job = Play(maps=0, reduces=2)
    assert [c.sources for c in job.cluster.launches.values()] == [()] * 4
    assert job.done()


def test_a_job_that_is_to_be_confirmed_ends_when_its_outputs_are_published() -> None:
    """R8: until then a lost output is executed again; from then on its loss does not matter."""
    job = Play(confirm=True, reduces=2)
    job.finish()
    assert job.result is None
    first, second = (job.cluster.agreed[Task("reduce", r)].attempt for r in (0, 1))
    job.cluster.send(Published(first))
    job.cluster.lose_block(first, told=True)
    assert job.running("reduce 0") == []
    job.cluster.lose_block(second, told=True)
    job.finish()
    assert job.result is None
    job.cluster.send(Published(second))  # stale: another attempt has taken its place
    assert job.result is None
    job.cluster.send(Published(job.cluster.agreed[Task("reduce", 1)].attempt))
    assert isinstance(job.result, JobDone)


def test_nonsense_plans_are_refused() -> None:
    for plan in ({"maps": -1}, {"reduces": 0}, {"f": -1}, {"max_attempts": 1}):
        with pytest.raises(ValueError):
            Plan(**({"maps": 1, "reduces": 1, "f": 1, "mode": "bft"} | plan))  # type: ignore[arg-type]


def test_every_mode_and_switch_ends_right() -> None:
    switches = itertools.product((True, False), repeat=3)
    for deferred, tentative, digest_outputs in switches:
        job = Play(maps=3, reduces=2, deferred=deferred, tentative=tentative, digest_outputs=digest_outputs)
        job.answer("map 1", 0, "alone")
        assert job.done()


def test_the_ledger_counts_bytes_and_votes() -> None:
    job = Play(maps=2, reduces=2)
    assert job.done()
    figures = job.ledger.as_dict()
    assert figures["votes"] == figures["executions"] == 8
    assert figures["first_plan"] == {"sample": 0, "map": 4, "reduce": 4}
    maps = 2 * 2 * len("m0.0")
    assert figures["stored_nbytes"] == maps + 2 * len("r0<m0.0,m1.0>")  # one copy of each (slides 21, 22)
    assert figures["shipped_nbytes"] == 2 * maps  # each of two replicas of each reduce reads its partition


def test_a_worker_goes_on_while_its_answer_waits_for_evidence() -> None:
    """Attested jobs: a slot is freed by Executed, a vote is cast by Finished, and the domain counts as asked in
    between.
    """
    job = Play(domains=2, slots=1, maps=2, reduces=1)
    launched = len(job.cluster.launches)
    job.execute("map 0", 0)
    assert len(job.cluster.launches) == launched + 1
    assert job.ledger.votes == 0
    job.answer("map 0", 0)
    assert job.ledger.votes == 1
    assert job.done()
    assert job.ledger.re_executions == 0


def test_what_a_dead_worker_executed_without_evidence_is_executed_again() -> None:
    """The commit rule: no evidence, no vote."""
    job = Play(domains=3, slots=1, maps=1, reduces=1)
    job.execute("map 0", 0)
    worker = job.of("map 0")[0].worker
    job.cluster.crash(worker, blocks_lost=True)
    assert len(job.of("map 0")) == 3
    assert job.done()


def test_r9_a_slow_replica_is_overtaken_by_one_spare_and_cancelled() -> None:
    job = Play(domains=4)
    job.answer("map 0", 1)
    job.slow("map 0", 0)
    (spare,) = job.last
    assert (spare.task, spare.replica, spare.worker, spare.store) == (Task("map", 0), 2, "w2", True)
    job.slow("map 0", 0)
    assert job.last == []  # it has its speculative attempt
    job.answer("map 0", 2)
    assert job.agreed("map 0")
    assert Cancel(0) in job.last
    assert job.done()
    assert (job.ledger.speculative, job.ledger.executions, job.ledger.re_executions) == (1, 5, 0)


def test_r9_who_answers_first_wins_be_it_the_slow_one() -> None:
    job = Play(domains=4)
    job.slow("map 0", 0)
    job.answer("map 0", 1)
    job.answer("map 0", 0)
    assert job.agreed("map 0")
    assert Cancel(2) in job.last
    assert job.done()


def test_r9_a_slow_replica_that_was_cancelled_occupies_its_slot() -> None:
    job = Play(domains=3, slots=1, maps=2)  # d2 has map 1, whose second replica waits for d0 or d1
    job.answer("map 0", 1)
    assert job.domains("map 1") == ["d2", "d1"]
    job.answer("map 1", 0)
    job.slow("map 0", 0)
    assert job.domains("map 0") == ["d0", "d1", "d2"]
    job.answer("map 0", 2)
    assert job.agreed("map 0")
    job.answer("map 1", 1)
    while job.cluster.flying != [job.of("map 0")[0]]:
        job.reply(next(c.attempt for c in job.cluster.flying if c.attempt != 0))
        assert all(c.worker != "w0" for c in job.running("reduce 0"))
    assert isinstance(job.result, JobDone)  # without the slow one


def test_r9_a_spare_does_not_take_the_place_of_anything_that_is_wanted() -> None:
    job = Play(domains=3, slots=1, maps=3)
    job.slow("map 0", 0)
    assert job.last == []  # d2 is at work
    job = Play(domains=2)
    job.slow("map 0", 0)
    assert job.last == []  # no domain is new to the task, and asking one again would prove nothing
    job = Play(domains=4, f=1, mode="basic")
    job.slow("map 0", 0)
    assert job.last == []  # two others are on their way, and two are enough


def test_r9_spares_are_bounded_and_are_no_tries() -> None:
    """However slow everybody is: as many speculative attempts as replicas, and the job does not fail of them (R3)."""
    job = Play(domains=9, max_attempts=2)
    for _ in range(3):
        for c in list(job.running("map 0")):
            job.cluster.lag(c)
    assert len(job.of("map 0")) == 4
    assert job.done()


def test_r9_a_spare_that_crashes_is_replaced_as_long_as_the_slow_one_is_slow() -> None:
    job = Play(domains=4)
    job.answer("map 0", 1)
    job.slow("map 0", 0)
    job.cluster.crash("w2", blocks_lost=True)
    assert len(job.running("map 0")) == 1  # the slow one may still answer
    job.slow("map 0", 0)
    assert job.domains("map 0") == ["d0", "d1", "d2", "d3"]
    assert job.done()


def test_r9_what_a_slow_worker_owes_is_overtaken_too_even_when_nobody_wants_what_it_does() -> None:
    """Attested: the evidence for what it has executed waits behind what it is executing."""
    job = Play(domains=3, slots=1, maps=2)
    job.execute("map 0", 0)
    assert job.domains("map 1") == ["d2", "d0"]
    job.answer("map 0", 1)
    job.answer("map 1", 0)
    job.slow("map 1", 1)  # d0, which owes map 0 as well; d1 is idle, d2 too
    assert job.domains("map 1") == ["d2", "d0", "d1"]
    assert job.domains("map 0") == ["d0", "d1", "d2"]
    assert job.done()


def test_r9_a_spare_that_refuses_its_sources_executed_nothing() -> None:
    job = Play(domains=4)
    job.answer("map 0", 0)
    job.slow("reduce 0", 0)
    (spare,) = job.last
    assert job.ledger.speculative == 1
    job.tracker.handle(Refused(spare.attempt, ()))
    assert (job.ledger.speculative, job.ledger.refused) == (0, 1)


def test_r9_the_original_mode_has_speculative_execution() -> None:
    job = Play(domains=2, mode="original", f=0)
    job.slow("map 0", 0)
    assert job.domains("map 0") == ["d0", "d1"]
    job.answer("map 0", 1)
    assert job.agreed("map 0")
    assert job.done()
    assert (job.ledger.speculative, job.ledger.re_executions) == (1, 0)


def test_r9_nobody_is_slow_who_has_answered_or_is_unknown() -> None:
    job = Play(domains=4)
    job.answer("map 0", 0)
    for attempt in (0, 99):
        job.cluster.send(Slow(attempt))
        assert job.last == []
    job.execute("map 0", 1)
    job.cluster.send(Slow(1))  # its evidence is awaited
    assert job.last == []
    assert job.ledger.ignored == 3
    assert job.done()
    assert job.ledger.speculative == 0


def test_r9_a_spare_reduce_does_not_start_on_a_map_that_nobody_can_read() -> None:
    job = Play(domains=4)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.lose_block(0, told=True)
    job.slow("reduce 0", 0)
    assert job.last == []
    assert job.done()


def test_an_up_front_plan_replaces_each_crash_by_one_execution() -> None:
    """Slide 18: 2f+1 are executed, whatever the vote says; here one of the three still waits for a slot when another
    crashes.
    """
    for domains, slots in ((4, 9), (2, 1)):
        job = Play(domains=domains, slots=slots, mode="basic")
        job.cluster.crash("w0", blocks_lost=False, replacement="again")
        assert job.done()
        assert len(job.of("map 0")) == 4


def test_an_up_front_plan_begins_anew_after_a_contradiction() -> None:
    job = Play(domains=5, deferred=False)
    job.answer("map 0", 0, "alone")
    assert len(job.of("reduce 0")) == 3
    assert job.done()
    assert len(job.of("reduce 0")) == 6


def test_all_reduces_that_have_read_a_losing_output_are_restarted() -> None:
    job = Play(domains=5, reduces=3)
    c = job.running("map 0")[0]
    job.cluster.reply(job.cluster.flying.index(c), lambda _, parts: (parts[0], parts[1] + b"!", parts[2] + b"!"))
    readers = [c.attempt for r in (1, 2) for c in job.running(f"reduce {r}")]
    job.answer("map 0", 1)
    commands = job.answer("map 0", 2)
    assert sorted(command.attempt for command in commands if isinstance(command, Cancel)) == sorted(readers)
    assert job.done()


def test_a_copy_that_was_kept_for_a_reader_goes_with_it() -> None:
    """The map's vote goes against the copy, but not against the partition that the reader reads; then the reader is
    cancelled.
    """
    job = Play(domains=5, reduces=2)
    job.answer("map 0", 0, "alone")  # wrong in the last partition
    job.answer("map 0", 1)
    assert Discard(0) not in job.answer("map 0", 2)
    job.answer("reduce 0", 0)
    job.slow("reduce 0", 1)
    commands = job.answer("reduce 0", 2)
    assert {type(command) for command in commands} >= {Agreed, Cancel}
    assert Discard(0) in commands
    assert job.done()


def test_a_losing_copy_that_comes_late_is_discarded() -> None:
    job = Play(domains=3, mode="basic")
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    assert Discard(2) in job.answer("map 0", 2, "alone")
    job.cluster.send(BlockLost(2))
    assert job.ledger.ignored == 1


def test_who_stores_is_let_finish_while_the_winner_has_no_copy() -> None:
    job = Play(domains=4)
    job.slow("map 0", 0)
    job.answer("map 0", 2)  # the speculative one, whose copy is lost
    job.cluster.lose_block(job.of("map 0")[2].attempt, told=True)
    commands = job.answer("map 0", 1)
    assert job.agreed("map 0")
    assert [c.replica for c in job.running("map 0")] == [0]
    assert not any(isinstance(command, Cancel) for command in commands)
    assert job.done()


def test_a_reduce_that_wins_by_its_maps_vote_without_a_copy_is_made_again() -> None:
    job = Play(domains=4)
    job.answer("map 0", 0)
    stored = job.running("reduce 0")[0].attempt
    job.answer("reduce 0", 0)
    job.answer("reduce 0", 1)
    job.cluster.lose_block(stored, told=True)
    job.answer("map 0", 1)
    assert [c.replica for c in job.running("reduce 0")] == [2]
    assert job.done()


def test_answers_that_were_cancelled_are_counted_and_nothing_else() -> None:
    job = Play(domains=5, f=2)
    for replica in (0, 1):
        job.slow("map 0", replica)
    for replica in (2, 3, 4):
        job.answer("map 0", replica)
    late = [c.attempt for c in job.of("map 0")[:2]]
    for n, attempt in enumerate(late, 1):
        job.reply(attempt)
        assert job.ledger.ignored == n


@pytest.mark.parametrize("lost", ["map 0", "reduce 0"])
def test_r3_what_is_stored_and_lost_whenever_it_is_made_is_given_up(lost: str) -> None:
    """The bound holds until the vote is won, and once more for copies: however often one was made, and was there for a
    while.
    """
    job = Play(domains=4, max_attempts=3, confirm=True)
    while job.result is None:
        kept = [id_ for id_ in job.cluster.blocks if not job.cluster.blocks[id_].gone and job.agreed(lost)]
        stored = [id_ for id_ in kept if str(job.cluster.launches[id_].task) == lost]
        if stored:
            job.cluster.lose_block(stored[0], told=True)
        else:
            job.reply(min(c.attempt for c in job.running(lost) or job.cluster.flying))
    assert job.result.reason == "copies_lost"
    assert str(job.result.task) == lost
    assert f"no copy of it could be made and read back: {lost} after 5 executions" in job.result.message
    assert len(job.of(lost)) == 2 + 3


def test_r3_a_reduce_that_nobody_can_feed_is_given_up_and_it_is_not_said_that_domains_disagreed() -> None:
    job = Play(domains=4, max_attempts=3)
    while job.result is None:
        refusing = [k for k, c in enumerate(job.cluster.flying) if c.task.kind == "reduce"]
        if refusing:
            job.cluster.refuse(refusing[0], ())
        else:
            job.reply(min(c.attempt for c in job.cluster.flying))
    assert job.result.reason == "copies_lost"
    assert "nobody could read its inputs: reduce 0 after 3 executions: 2 could not read" in job.result.message


@pytest.mark.parametrize("lost", ["map 0", "reduce 0"])
def test_r3_what_was_made_and_lost_is_no_attempt_without_success(lost: str) -> None:
    """The bound begins anew when the vote is won, and here it is one."""
    job = Play(domains=2, f=0, mode="original", max_attempts=1, confirm=True)
    job.answer("map 0", 0)
    if lost == "reduce 0":
        job.answer("reduce 0", 0)
    job.cluster.lose_block(job.of(lost)[0].attempt, told=True)
    assert [c.replica for c in job.running(lost)] == [1]


def test_r11_votes_are_compared_by_replica_and_only_those_of_the_first_plan() -> None:
    job = Play(domains=4)
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")
    job.answer("map 0", 2)
    tallies = {name: standing.tallies for name, standing in job.tracker.standings.items()}
    assert tallies == {"d0": {("map", 0, ""): [1, 0]}, "d1": {("map", 1, ""): [1, 1]}, "d2": {}}


def test_r11_a_domain_that_loses_a_second_vote_of_a_task_late_is_judged_once() -> None:
    job = Play(domains=2, mode="basic")
    again = job.domains("map 0")[2]
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.answer("map 0", 2, "alone")
    standing = job.tracker.standings[again]
    assert (standing.judged, standing.lost, standing.tallies[("map", 2, "")]) == (1, 1, [1, 1])


def test_r11_votes_of_a_domain_on_a_task_that_an_earlier_life_won_count_once_in_this_life() -> None:
    """A vote of an earlier life says nothing of a domain now: its first vote of this life is judged, and no later
    one.
    """
    tracker, output = JobTracker(Plan(1, 1, 1, "bft", first_attempt=100)), output_of((b"m",))
    for name in ("a", "b"):
        tracker.handle(WorkerJoined(f"w{name}", name, 1))
    tracker.handle(Recovered(Task("map", 0), 7, output, ("a", "b"), stored=False))
    seen = []
    commands = tracker.start()
    for wrong in (b"w", b"x", b"y", b"z"):  # the copy is gone, so the map is executed again: its votes come late
        (launch,) = [command for command in commands if isinstance(command, Launch)]
        commands = tracker.handle(Finished(launch.attempt, output_of((wrong,))))
        domain = launch.worker.removeprefix("w")
        standing = tracker.standings[domain]
        seen.append((launch.attempt, domain, standing.judged, standing.lost))
        tracker.check()
    assert seen == [(100, "a", 1, 1), (101, "b", 1, 1), (102, "b", 1, 1), (103, "a", 1, 1)]
    assert tracker.ledger.lost_votes == 4


def retests(commands: list[object]) -> list[tuple[str, str]]:
    return [(command.domain, command.worker) for command in commands if isinstance(command, Retest)]


@pytest.mark.parametrize(("dead", "expected"), [(False, "b2"), (True, "b1")])
def test_r11_the_worker_that_gave_a_disputed_answer_is_tested_or_another_of_its_domain(
    dead: bool, expected: str
) -> None:
    tracker = JobTracker(Plan(2, 1, 1, "bft"))
    for worker in ("a", "b1", "b2", "c"):
        tracker.handle(WorkerJoined(worker, worker[0].upper(), 1))
    launched = {command.worker: command for command in tracker.start() if isinstance(command, Launch)}
    assert [str(launched[worker].task) for worker in ("b2", "c")] == ["map 1", "map 1"]
    tracker.handle(Finished(launched["b2"].attempt, output_of((b"right",))))
    if dead:
        tracker.handle(WorkerLost("b2", False))
    commands = tracker.handle(Finished(launched["c"].attempt, output_of((b"wrong",))))
    assert retests(commands) == [("C", "c"), ("B", expected)]


def test_r11_of_a_contradiction_both_sides_are_tested() -> None:
    job = Play(domains=3)
    job.answer("map 0", 0)
    assert retests(job.answer("map 0", 1, "alone")) == [("d1", "w1"), ("d0", "w0")]


def test_r11_who_is_not_to_be_tested_again_does_not_keep_others_from_it() -> None:
    """A domain contradicts a second one: no reason to test it again, but the other is tested."""
    job = Play(domains=3, slots=1, maps=2)
    assert (job.domains("map 0"), job.domains("map 1")) == (["d0", "d1"], ["d2"])
    job.answer("map 0", 0)
    assert retests(job.answer("map 0", 1, "alone")) == [("d1", "w1"), ("d0", "w0")]
    job.answer("map 1", 0)
    assert job.domains("map 1")[1] in ("d0", "d1")  # whoever of those two that were tested
    assert retests(job.answer("map 1", 1, "alone")) == [("d2", "w2")]


@pytest.mark.parametrize("all_die", [False, True])
def test_an_up_front_plan_is_executed_in_full_while_there_is_anybody(all_die: bool) -> None:
    """Slide 18: everything is agreed on, but a last replica waits for the one domain that is new to its task."""
    job = Play(domains=3, slots=1, mode="basic", maps=0, reduces=2)
    for task, replica in (("reduce 0", 0), ("reduce 0", 1), ("reduce 1", 0), ("reduce 1", 1)):
        job.answer(task, replica)
    assert job.agreed("reduce 1")
    assert job.result is None
    if all_die:
        for worker in ("w0", "w1", "w2"):
            job.cluster.crash(worker, blocks_lost=False)
    else:
        job.answer("reduce 0", 2)
        assert job.domains("reduce 1") == ["d0", "d1", "d2"]
    assert isinstance(job.result, JobDone)
