"""R11, one behaviour each: who is tested, named and quarantined, and what is nobody's fault."""

from __future__ import annotations

import pytest
from driver_referee import output_of
from play import Play

from quoreduce.tracker import (
    Finished,
    JobDone,
    JobTracker,
    Launch,
    Plan,
    Recovered,
    Retest,
    Retested,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)


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
