"""What holds of a tracker between any two events. Tests call it after each; it costs O(tasks)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from quoreduce.tracker.state import Attempt, TaskState

if TYPE_CHECKING:
    from quoreduce.tracker.tracker import JobTracker


def check(tracker: JobTracker) -> None:
    """Raise AssertionError, with what is wrong, if the tracker's state contradicts itself."""
    _check_slots(tracker)
    for state in [*tracker._maps, *tracker._reduces]:
        _check_task(tracker, state)
    _check_counters(tracker)
    for state in tracker._reduces:
        _check_inputs(tracker, state)


def _check_slots(tracker: JobTracker) -> None:
    pool = tracker._pool
    for worker in pool.workers.values():
        assert 0 <= len(worker.busy) <= worker.slots, f"{worker.name} runs more than it has slots for"
        assert (worker.name in worker.domain.idle) == (len(worker.busy) < worker.slots), f"{worker.name}: idle or not?"
        for id_ in worker.busy:
            assert tracker._attempts[id_].status != "over", f"attempt {id_} is over but occupies {worker.name}"
    assert pool.busy == sum(len(worker.busy) for worker in pool.workers.values()), "busy slots are miscounted"
    assert set(pool.free) == {d.name for d in pool.open.values() if d.idle}, "free domains are wrong"
    assert pool.suspicion.named.keys() >= set(pool.quarantined), "quarantined without being named (R11)"
    assert all(one.lost <= one.judged for one in tracker.standings.values()), "more tasks lost than judged (R11)"
    assert {test.worker for test in tracker._accusations.tests.values()} <= pool.workers.keys(), (
        "a test of a dead worker is awaited"
    )
    assert len(pool.open) >= min(tracker.plan.need, len(pool.domains)), "quarantine left too few domains"


def _check_task(tracker: JobTracker, state: TaskState) -> None:
    task, plan = state.task, tracker.plan
    assert state.tries <= plan.bound, f"{task} was tried beyond its bound (R3)"
    assert state.speculative <= plan.need, f"{task} has more speculative attempts than replicas (R9)"
    assert not (state.strict and state.checking), f"{task} is voted on and checked"
    agreed = state.strict or state.winner is not None or len(state.ballot.candidates) <= 1
    assert agreed, f"{task} is disputed and not voted on (R13)"
    assert state.checks <= plan.bound + plan.need, f"{task} was checked beyond its bound (R3)"
    for attempt in [*state.running.values(), *state.checking.values()]:
        assert attempt.status == "running", f"attempt {attempt.id} of {task} does not run"
        place = (
            tracker._pool.workers[attempt.worker].busy
            if attempt.seated
            else tracker._executions.awaited[attempt.worker]
        )
        assert attempt.id in place, f"attempt {attempt.id} has no slot, nor is its answer awaited"
    for candidate in state.ballot.candidates:
        voters = set(candidate.attempts.values())
        recovered = any(id_ < plan.first_attempt for id_ in candidate.attempts)  # one stands for all domains of then
        assert voters <= set(candidate.domains) if recovered else voters == set(candidate.domains), (
            f"{task} miscounts domains (R1)"
        )
        for id_ in candidate.copies:
            assert tracker._attempts[id_].stored, f"{task} offers attempt {id_}, which is not stored"
    if state.winner is not None:
        assert state.winner in state.ballot.candidates, f"{task}: the winner's votes were withdrawn"
        assert len(state.winner.backers) >= plan.need, f"{task} won without f+1 domains (R1)"
        if not plan.stores_all:
            assert len(state.winner.copies) <= 1, f"{task} keeps surplus copies"
    waiting = tracker._opened and not tracker.done and tracker._schedule.wanted(state) > 0
    assert not waiting or state.wanted == tracker._schedule.wanted(state), (
        f"{task} wants {tracker._schedule.wanted(state)} replicas"
    )
    if tracker._opened and not tracker.done and not state.strict:
        missing = tracker._schedule.checks_lacking(state, state.checking.values())
        assert missing == state.checks_wanted, f"{task} lacks {missing} checks"
        assert not missing or state.task.index in tracker._schedule.checks[task.kind], f"{task} waits for no check"
    queued = any(state.task.index in tracker._schedule.queues[task.kind, begun] for begun in (True, False))
    assert not waiting or queued, f"{task} wants replicas and is not queued"


def _check_counters(tracker: JobTracker) -> None:
    maps, reduces = tracker._maps, tracker._reduces
    assert tracker._maps_unwon == sum(state.winner is None for state in maps), "unwon maps are miscounted"
    assert tracker._copies.maps_unready == sum(not state.offered for state in maps), "unreadable maps are miscounted"
    assert tracker._reduces_agreed == sum(state.published is not None for state in reduces), "reduces are miscounted"
    assert tracker._reduces_confirmed == sum(state.confirmed for state in reduces), "published reduces are miscounted"
    assert tracker._copies.sources == [state.offered for state in maps], "sources are stale"
    for state in maps:
        for source in state.offered:
            assert tracker._attempts[source.attempt].stored, f"{state.task} offers a lost copy"


def _check_inputs(tracker: JobTracker, reduce: TaskState) -> None:
    """Every vote and every running replica of a reduce rests on winning partitions only (R5)."""
    if reduce.winner is not None:
        assert not tracker._maps_unwon, f"{reduce.task} won before its inputs (R5)"
    voted = [tracker._attempts[id_] for candidate in reduce.ballot.candidates for id_ in candidate.attempts]
    for attempt in [*voted, *reduce.running.values(), *reduce.verdicts, *reduce.checking.values()]:
        if attempt.id >= tracker.plan.first_attempt:  # what an earlier run read is not known
            _check_sources(tracker, attempt, reduce.task.index)


def _check_sources(tracker: JobTracker, attempt: Attempt, part: int) -> None:
    for state, copies in zip(tracker._maps, attempt.sources, strict=True):
        assert copies, f"attempt {attempt.id} reads nothing of {state.task}"
        if state.winner is not None and state.winner.output is not None:
            want = state.winner.output.parts[part].digest
            for source in copies:
                assert tracker._copies.output(source).parts[part].digest == want, (
                    f"attempt {attempt.id} read a losing part"
                )
