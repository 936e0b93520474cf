"""R2, R8 and the modes, one behaviour each: what is executed, in which order, and how a job ends."""

from __future__ import annotations

import itertools

import pytest
from play import Play

from quoreduce.tracker import (
    Agreed,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Plan,
    Published,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)


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


def test_a_job_whose_driver_waits_for_nothing_has_failed() -> None:
    """The reduce is agreed on, and the driver neither publishes it nor says that it is gone."""
    job = Play(domains=1, f=0, confirm=True)
    job.finish()
    assert job.tracker.handle(Stalled()) == [
        JobFailed("no_quorum", None, "no worker is left that could help with anything.")
    ]


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
