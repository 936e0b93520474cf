"""Random schedules: any order of events, any mix of faults; every job ends right, or says why not.

With --nightly there are 100,000, elsewhere 5,000, or as many as `QUOREDUCE_SCHEDULES` says, from number
`QUOREDUCE_SEED` (0) on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import seeded
from schedules import CAMPAIGN, explore, told

from quoreduce.tracker import JobTracker, Plan

SCHEDULES = int(os.environ.get("QUOREDUCE_SCHEDULES", "100000" if os.environ.get("QUOREDUCE_NIGHTLY") else "5000"))
SEED = int(os.environ.get("QUOREDUCE_SEED", "0"))
RARE = (
    "votes withdrawn", "quarantined domains", "outputs lost before they were published", "malformed replies",
    "refused inputs", "slow executions overtaken", "known-answer tests", "parts taken over from an earlier life",
    "maps contradicted after reduces read them", "executions cancelled",
)  # fmt: skip
ENDS = ("no_quorum", "job_error", "copies_lost")


class Hasty(JobTracker):
    """Done before its outputs are published."""

    def _all_published(self) -> bool:
        return self._reduces_agreed == self.plan.reduces


def gullible(plan: Plan) -> Any:
    """f equal outputs win, not f+1."""
    return JobTracker(replace(plan, f=max(0, plan.f - 1)))


def test_every_schedule_ends_right_or_says_why_not(says: Callable[[str], None]) -> None:
    """R1-R11, slides 12, 19, 20, 21: a job's agreed outputs are the true ones, whoever lies, dies or repeats itself."""
    begun = time.monotonic()
    *_, tally = seeded.run(CAMPAIGN, SEED, SCHEDULES, len(os.sched_getaffinity(0)))
    held = seeded.verdict(tally, CAMPAIGN.script)
    says(
        f"schedules {SEED} to {SEED + SCHEDULES - 1}: {held}, in {time.monotonic() - begun:.0f} s;"
        f" again: python tests/campaigns/schedules.py --count {SCHEDULES} --seed {SEED}"
    )
    assert tally.schedules == SCHEDULES
    assert not tally.violations, held
    if SCHEDULES >= 4000:  # the schedules are worth something only if they get into trouble often enough
        assert tally.ends["done"] > 0.8 * SCHEDULES
        assert min(tally.met["lost votes"], tally.met["published parts"]) > 0.3 * SCHEDULES
        assert min(*(tally.met[name] for name in RARE), *(tally.ends[name] for name in ENDS)) > 0.002 * SCHEDULES
        assert {name for name in tally.plans if name.startswith("f=")} == {"f=0", "f=1", "f=2", "f=3"}


def test_a_violation_is_told_with_the_seed_that_repeats_it() -> None:
    found = explore(range(60), Hasty)
    assert found.violations
    assert not found.wrong
    seed = min(found.violations)
    text, violation = told(seed, Hasty)
    assert f"--replay {seed}" in seeded.verdict(found, CAMPAIGN.script)
    assert violation == found.violations[seed]
    assert text.startswith(f"# schedule {seed}: ")
    assert "joined in d0" in text
    assert told(seed)[1] == ""


def test_wrong_outputs_are_counted_as_such() -> None:
    found = explore(range(60), gullible)
    assert found.wrong
    assert set(found.wrong) <= set(found.violations)
    assert f"{len(found.wrong)} wrong outputs" in seeded.verdict(found, CAMPAIGN.script)
