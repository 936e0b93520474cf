"""R9, R10 and R12, one behaviour each: workers that die or are slow, answers that come late, and an earlier life."""

from __future__ import annotations

from driver_referee import output_of
from play import Play

from quoreduce.tracker import (
    BlockLost,
    Cancel,
    Discard,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobTracker,
    Launch,
    Plan,
    Recovered,
    Refused,
    Slow,
    Source,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)


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
