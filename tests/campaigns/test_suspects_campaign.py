"""A sample of the campaign of suspects.py, a tenth with --nightly: nobody healthy is accused, and a bad core is
named.
"""

from __future__ import annotations

import os

import pytest
from suspects import TASKS_MOST, Watched, local, play, report, wrongs

from quoreduce.tracker import Plan

RUNS = 100 if os.environ.get("QUOREDUCE_NIGHTLY") else 25


def test_transient_faults_at_any_rate_accuse_nobody() -> None:
    runs = [play(seed, planted=False) for seed in range(RUNS)]
    assert report("transient", runs) == 0
    assert sum(one.lost_votes for one in runs) > 10 * RUNS


def test_a_planted_bad_core_is_named_within_20_tasks_and_quarantined_and_nobody_else() -> None:
    runs = [play(seed, planted=True) for seed in range(RUNS)]
    assert report("planted", runs) == 0
    assert all(one.named == one.quarantined == (one.bad,) for one in runs)
    assert all(one.after <= TASKS_MOST for one in runs)


def test_the_campaign_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the rule that three lost votes are enough, transient faults do accuse healthy domains."""
    monkeypatch.setattr("quoreduce.tracker.suspicion.CHANCE_MOST", 2.0)
    assert any(wrongs(play(seed, planted=False)) for seed in range(RUNS))
    assert Watched(Plan(1, 1, 1, "bft")).named_after == {}


@pytest.mark.parametrize("seed", [0, 1])
def test_so_it_is_on_real_processes(seed: int, tmp_path: object) -> None:
    one = local(seed, tmp_path)  # type: ignore[arg-type]
    assert one.falsely == []
    assert one.named == one.quarantined == (one.bad,)
