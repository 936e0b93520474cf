"""R5 to R7, one behaviour each: what reduces read and when, who stores, and copies that are lost or not wanted."""

from __future__ import annotations

import pytest
from play import Play

from quoreduce.tracker import Agreed, BlockLost, Cancel, Discard, JobDone, Launch, Refused, Task


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
