"""A seed that fails becomes a scenario that can be read: shrunk, its transcript is a golden file."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from planting import Make, plant, weed
from shrink import Scenario, play, shrink

from quoreduce.tracker import JobTracker

LARGE = ("wrong-map:3", "wrong-reduce:2", "bad:1:0.3", "crash:2", "node:1", "rot:2", "duplicate:10%", "slow:1:3")
SEEDS = 400
SHRUNK = {
    "f equal outputs win, not f+1": "one_vote_wins",
    "a crash is not replaced": "a_crash_is_not_replaced",
    "a lost block is still read": "a_lost_block_is_read",
}


@pytest.fixture(autouse=True)
def no_weeds() -> Iterator[None]:
    yield
    weed()


def failing(make: Make) -> Scenario:
    """The first seed of a large scenario that fails."""
    scenarios = (Scenario(6, 12, 3, 1, LARGE, seed) for seed in range(SEEDS))
    return next(one for one in scenarios if play(one, make).wrong)


@pytest.mark.parametrize("bug", SHRUNK)
def test_a_failing_run_is_shrunk_to_a_few_lines(bug: str, golden: Callable[[str, str], None]) -> None:
    make = plant(bug)
    large = failing(make)
    small = shrink(large, make)
    played = play(small, make)
    assert played.wrong
    assert (small.maps, small.reduces) == (1, 1)
    assert small.nodes <= 4
    assert len(small.faults) <= 1
    assert len(played.text.splitlines()) < 40 < len(play(large, make).text.splitlines())
    assert not play(small, JobTracker).wrong
    golden(f"simulate/{SHRUNK[bug]}.txt", played.text)


def test_a_run_that_does_not_fail_is_not_shrunk() -> None:
    with pytest.raises(AssertionError, match="does not fail"):
        shrink(Scenario(3, 1, 1, 1, (), 0), JobTracker)
