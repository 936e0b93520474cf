"""A sample of the campaign of checks.py: no wrong output is accepted, no right one is refused.

With --nightly there are 1,200 outputs, elsewhere 80, from number `QUOREDUCE_SEED` (0) on.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import checks
import pytest
import seeded
from check_mutants import WordMap

OUTPUTS = 1200 if os.environ.get("QUOREDUCE_NIGHTLY") else 80
SEED = int(os.environ.get("QUOREDUCE_SEED", "0"))


def test_checks_refuse_what_is_wrong_and_accept_what_is_right(says: Callable[[str], None]) -> None:
    tally = checks.explore(range(SEED, SEED + OUTPUTS))
    says(
        f"checks, numbers from {SEED} on: {seeded.verdict(tally, 'checks.py')}; again: python "
        f"tests/campaigns/checks.py --count {OUTPUTS} --seed {SEED}"
    )
    assert not tally.violations, f"{seeded.verdict(tally, 'checks.py')}\n{tally.text()}"
    assert len(tally.mutants) >= 60
    assert tally.mutants.total() > 100 * OUTPUTS
    assert tally.honest.total() >= OUTPUTS


def test_eight_bits_of_a_sum_miss_about_one_mutant_in_256() -> None:
    """Of those that the sum alone gives away: so it is its length that refuses them."""
    tally = checks.explore(range(400, 480))
    assert tally.summed > 2000
    assert 0.3 * tally.summed / 256 < tally.weakly < 3 * tally.summed / 256


def test_an_output_is_told_with_its_mutants() -> None:
    text, wrong = checks.told(1)
    assert "reduce: line lost" in text
    assert "honest: word count: part" in text
    assert wrong == ""
    assert checks.told(1) == (text, wrong)


def test_a_check_that_accepts_a_wrong_output_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that does not look at the sums, but at how many words there are."""
    monkeypatch.setattr("check_mutants.compared", lambda found, given: (found.items == given.items, None))
    assert "accepted" in checks.wrongs(checks.play(0))
    assert 0 in checks.explore([0]).violations


def test_a_check_that_refuses_a_right_output_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WordMap, "verdict", lambda *_: (False, None))
    assert "refused, though right: word count: blocks" in checks.wrongs(checks.play(0))
