"""Whole jobs as plain text: what happened, and what the tracker wanted done about it, line by line.

A change of behaviour shows as a diff of these files: `pytest --update-golden`, then review it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from play import Play, text_of

from quoreduce.tracker import Stalled

SCENARIOS: dict[str, Callable[[], Play]] = {}


def scenario(story: Callable[[], Play]) -> Callable[[], Play]:
    SCENARIOS[story.__name__] = story
    return story


@scenario
def no_faults() -> Play:
    """No faults: 2(M+R) executions, reduces start on the storing replicas' copies (slides 19-21)."""
    job = Play(domains=3, slots=1, maps=2, reduces=2)
    job.finish()
    return job


@scenario
def basic_version() -> Play:
    """The basic version: 2f+1 of everything, reduces wait for the maps' votes and read all copies (slides 15-18)."""
    job = Play(domains=3, slots=2, maps=2, reduces=1, mode="basic")
    job.finish()
    return job


@scenario
def original_version_with_a_crash() -> Play:
    """One execution of everything; a node dies with what it stored (slide 16)."""
    job = Play(domains=2, slots=1, maps=2, reduces=1, mode="original")
    job.answer("map 0")
    job.cluster.crash("w0", blocks_lost=True)
    job.finish()
    return job


@scenario
def wrong_storing_replica() -> Play:
    """The storing replica of a map is wrong in one partition: only the reduce that read it restarts (R5, slide 20)."""
    job = Play(domains=4, slots=2, maps=2, reduces=2)
    job.answer("map 1", 0)
    job.answer("map 0", 0, "alone")
    job.answer("reduce 1", 0)
    job.answer("map 0", 1)
    job.answer("map 0", 2)
    job.finish()
    return job


@scenario
def answers_wait_for_evidence() -> Play:
    """Attested: workers go on while the evidence for what they did is awaited; one dies and what it owed is run
    again.
    """
    job = Play(domains=2, slots=1, maps=2, reduces=1)
    job.execute("map 0", 0)
    job.execute("map 0", 1)
    job.answer("map 0", 0)
    job.execute("map 1", 0)
    job.cluster.crash("w0", blocks_lost=False, replacement="w2")
    job.finish()
    return job


@scenario
def two_domains_and_a_transient_fault() -> Play:
    """Two domains, f=1, one transient fault in the second replica: one more execution (R1)."""
    job = Play(domains=2, slots=1)
    job.answer("map 0", 1, "alone")
    job.finish()
    return job


@scenario
def two_domains_and_one_is_broken() -> Play:
    """Two domains, one of which is wrong again and again: no quorum, and a hint (R1, R3)."""
    job = Play(domains=2, slots=1, max_attempts=6)
    while job.result is None:
        c = min(job.cluster.flying, key=lambda c: c.attempt)
        job.reply(c.attempt, "stuck" if c.worker == "w1" else "")
    return job


@scenario
def bad_core_fails_its_test() -> Play:
    """The first contradiction has both sides tested; who fails is named, and gets no more work (R11)."""
    job = Play(domains=3, slots=1, maps=3, reduces=1, broken=("d1",))
    job.answer("map 0", 0)
    job.answer("map 0", 1, "alone")
    job.finish()
    return job


@scenario
def node_with_the_storing_replica_dies() -> Play:
    """A node dies with a voted map's only copy: one execution for a new copy (R6, R9)."""
    job = Play(domains=3, slots=2, maps=1, reduces=1)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.crash("w0", blocks_lost=True, replacement="w9")
    job.finish()
    return job


@scenario
def slow_storing_replica_is_overtaken() -> Play:
    """Storing replicas of a map and a reduce are slow: one speculative attempt each; reduces read its copy (R9)."""
    job = Play(domains=3, slots=2, maps=1, reduces=1)
    job.answer("map 0", 1)
    job.slow("map 0", 0)
    job.answer("map 0", 2)
    job.answer("reduce 0", 0)
    job.slow("reduce 0", 1)
    job.answer("reduce 0", 2)
    return job


@scenario
def bits_flip_in_a_stored_block() -> Play:
    """Readers refuse a block whose bytes are not those that were voted on (R6)."""
    job = Play(domains=4, slots=2)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.cluster.blocks[0].spoilt = True
    job.finish()
    return job


@scenario
def the_jobs_own_error() -> Play:
    """f+1 domains raise the same: the job fails with it."""
    job = Play(domains=3, maps=2)
    job.answer("map 1", 0, error="ZeroDivisionError: division by zero")
    job.answer("map 1", 1, error="ZeroDivisionError: division by zero")
    return job


@scenario
def nobody_comes_to_the_rescue() -> Play:
    """A node dies, and there are too few left to vote."""
    job = Play(domains=2, slots=1)
    job.cluster.crash("w1", blocks_lost=True)
    job.answer("map 0", 0)
    job.cluster.send(Stalled())
    return job


@scenario
def four_faults_where_f_is_one() -> Play:
    """More than f faults are tolerated as long as they do not agree (slide 12, R3); culprits are suspected (R11)."""
    job = Play(domains=6, slots=1)
    for replica in range(4):
        job.answer("map 0", replica, "alone")
    job.finish()
    return job


@scenario
def the_driver_dies() -> Play:
    """The driver dies, another goes on: only what was not agreed on is executed, and what was agreed on but is lost
    (R6).
    """
    job = Play(domains=3, slots=2, maps=3, reduces=1, confirm=True)
    job.answer("map 0", 0)
    job.answer("map 0", 1)
    job.answer("map 1", 0)
    job.answer("map 2", 0)
    job.answer("map 2", 1)
    job.cluster.blocks[job.of("map 2")[0].attempt].spoilt = True
    job.die()
    job.finish()
    job.cluster.publish(0)
    return job


@scenario
def the_driver_dies_before_it_has_published() -> Play:
    """Everything was agreed on: the part is checked and published again, and nothing is executed (R8)."""
    job = Play(domains=2, slots=1, confirm=True)
    job.finish()
    job.die()
    job.cluster.publish(0)
    return job


CHECKED = frozenset(("map", "reduce"))


@scenario
def checked_without_faults() -> Play:
    """M+R executions and f(M+R) checks, each where the task was not executed (R13)."""
    job = Play(domains=3, slots=1, maps=2, reduces=1, checked=CHECKED)
    job.finish()
    return job


@scenario
def a_check_rejects_a_wrong_map() -> Play:
    """The sums differ: the map is voted on, the wrong copy is not used, and what has read it begins anew (R5, R13)."""
    job = Play(domains=3, slots=2, maps=1, reduces=1, checked=CHECKED)
    job.answer("map 0", 0, "alone")
    job.check("map 0")
    job.finish()
    return job


@scenario
def a_checker_rejects_what_is_right() -> Play:
    """One more execution tells who was wrong: the checker (R11, R13)."""
    job = Play(domains=3, slots=2, maps=1, reduces=1, checked=CHECKED)
    job.answer("map 0", 0)
    job.check("map 0", "reject")
    job.finish()
    return job


@scenario
def what_was_stored_rots_before_its_check() -> Play:
    """The checker has summed up other bytes than were voted for: nobody is accused, the copy is made again (R13)."""
    job = Play(domains=3, slots=2, maps=1, reduces=1, checked=CHECKED)
    job.answer("map 0", 0)
    job.cluster.blocks[0].spoilt = True
    job.check("map 0")
    job.finish()
    return job


@scenario
def a_checker_dies() -> Play:
    """Another domain checks (R9, R13)."""
    job = Play(domains=3, slots=1, maps=1, reduces=1, checked=CHECKED)
    job.answer("map 0", 0)
    job.cluster.crash("w1", blocks_lost=False)
    job.finish()
    return job


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario(name: str, golden: Callable[[str, str], None]) -> None:
    job = SCENARIOS[name]()
    assert job.result is not None
    head = f"# {' '.join((SCENARIOS[name].__doc__ or '').split())}\n"
    figures = job.ledger.as_dict()
    if not any(figures["checks"].values()):
        del figures["checks"]
    tail = "".join(f"# {key}: {value}\n" for key, value in figures.items() if value)
    golden(f"tracker/{name}.txt", head + text_of(job.cluster.transcript or []) + tail)
