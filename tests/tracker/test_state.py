"""What a plan asks for, and what is told of a task that failed."""

from __future__ import annotations

from typing import Any

import pytest

from quoreduce.tracker import Output, Part, Plan, Task
from quoreduce.tracker.state import Attempt, TaskState

PLANS: list[tuple[dict[str, Any], tuple[int, bool, int, bool, bool, int]]] = [
    # plan: (need, upfront, first, eager, stores_all, bound)
    ({"mode": "original", "f": 0}, (1, False, 1, False, True, 12)),
    ({"mode": "original", "f": 2}, (1, False, 1, False, True, 12)),
    ({"mode": "original", "f": 2, "deferred": False}, (1, False, 1, False, True, 12)),
    ({"mode": "basic", "f": 0}, (1, True, 1, False, True, 12)),
    ({"mode": "basic", "f": 1}, (2, True, 3, False, True, 16)),
    ({"mode": "bft", "f": 1}, (2, False, 2, True, False, 16)),
    ({"mode": "bft", "f": 2}, (3, False, 3, True, False, 20)),
    ({"mode": "bft", "f": 2, "deferred": False}, (3, True, 5, True, False, 20)),
    ({"mode": "bft", "f": 1, "tentative": False}, (2, False, 2, False, False, 16)),
    ({"mode": "bft", "f": 1, "digest_outputs": False}, (2, False, 2, True, True, 16)),
    ({"mode": "bft", "f": 1, "max_attempts": 2}, (2, False, 2, True, False, 2)),
    ({"mode": "basic", "f": 1, "max_attempts": 3}, (2, True, 3, False, True, 3)),
]


@pytest.mark.parametrize(("arguments", "derived"), PLANS)
def test_what_follows_from_a_plan(arguments: dict[str, Any], derived: tuple[object, ...]) -> None:
    plan = Plan(1, 1, **arguments)
    assert (plan.need, plan.upfront, plan.first, plan.eager, plan.stores_all, plan.bound) == derived


def test_the_smallest_plan_has_one_reduce_and_nothing_else() -> None:
    plan = Plan(0, 1, 0, "bft")
    assert (plan.sample, plan.confirm, plan.deferred, plan.tentative, plan.digest_outputs, plan.tight_storage) == (
        False, False, True, True, True, True,
    )  # fmt: skip
    for wrong in ((-1, 1, 0), (0, 0, 0), (0, 1, -1)):
        with pytest.raises(ValueError, match="0 or more maps, 1 or more reduces"):
            Plan(*wrong, "bft")
    with pytest.raises(ValueError, match="max_attempts is 1, but 2 replicas"):
        Plan(1, 1, 1, "bft", max_attempts=1)


def state_of(*votes: tuple[str, int | str]) -> TaskState:
    """A task on which these domains said these things: an output's number, or an error."""
    state = TaskState(Task("map", 7), owed=0)
    for attempt, (domain, said) in enumerate(votes):
        output = None if isinstance(said, str) else Output(b"%d" % said, (Part(b"p", 1, 1),))
        state.ballot.cast(attempt, domain, b"\xab" * 9 if output is None else output.digest, output, str(said))
        state.executions += 1
    return state


def test_an_attempt_begins_in_its_slot_without_a_vote_and_nobody_calls_it_slow_or_a_spare() -> None:
    attempt = Attempt(0, state_of(), "w", "d", 0, True, ())
    assert (attempt.status, attempt.seated) == ("running", True)
    assert not any((attempt.candidate, attempt.stored, attempt.slow, attempt.speculative))


def test_a_fruitless_task_that_was_won_or_could_not_be_fed_has_lost_copies() -> None:
    won = state_of(("a", 1), ("b", 1))
    won.winner = won.ballot.candidates[0]
    assert won.fruitless() == "copies_lost"
    fed, starved = state_of(("a", 1)), state_of()
    fed.refused = starved.refused = 2
    starved.crashed = 1
    assert (fed.fruitless(), starved.fruitless()) == ("no_quorum", "copies_lost")
    starved.crashed = 2
    assert starved.fruitless() == "no_quorum"


def test_a_fruitless_task_is_not_deterministic_if_two_domains_contradict_themselves_and_nobody_agrees() -> None:
    """R11."""
    assert state_of(("a", 1), ("a", 2), ("b", 3), ("b", 4)).fruitless() == "not_deterministic"
    assert state_of(("a", 1), ("a", 2), ("b", 3)).fruitless() == "no_quorum"  # one domain may be broken
    assert state_of(("a", 1), ("a", 2), ("b", 1), ("b", 3)).fruitless() == "no_quorum"  # two agreed once
    assert state_of().fruitless() == "no_quorum"


def test_the_story_of_a_task_says_who_said_what_and_how_often() -> None:
    assert state_of().story() == "map 7 after 0 executions: no results"
    state = state_of(("a", 1), ("b", 1), ("a", 1), ("c", "ValueError: x"))
    state.crashed, state.refused = 2, 1
    assert state.story() == (
        "map 7 after 4 executions: a, b produced 31 (3x); c raised ValueError: x abababababab (1x);"
        " 2 crashed; 1 could not read their sources"
    )


def test_the_story_is_cut_after_eight_results() -> None:
    assert state_of(*((str(i), i) for i in range(8))).story().endswith("6 produced 36 (1x); 7 produced 37 (1x)")
    assert state_of(*((str(i), i) for i in range(9))).story().endswith("7 produced 37 (1x); 1 more results")
    assert state_of(*((str(i), i) for i in range(10))).story().endswith("7 produced 37 (1x); 2 more results")
