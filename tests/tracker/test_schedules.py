"""Random schedules: any order of events, any mix of faults; every job ends right, or says why not.

In CI there are 20,000, elsewhere 4,000, or as many as `QUOREDUCE_SCHEDULES` says. A failure names its seed, and
`run(seed)` repeats it.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from simulator import Schedule, run

SCHEDULES = int(os.environ.get("QUOREDUCE_SCHEDULES", "20000" if os.environ.get("CI") else "4000"))
SLICES = 8


@pytest.mark.parametrize("part", range(SLICES))
def test_every_schedule_ends_right_or_says_why_not(part: int) -> None:
    """R1-R11, slides 12, 19, 20, 21: a job's agreed outputs are the true ones, whoever lies, dies or repeats itself."""
    seen: Counter[str] = Counter()
    for seed in range(part, SCHEDULES, SLICES):
        cluster = run(seed)
        seen[getattr(cluster.result, "reason", "done")] += 1
        seen["withdrawals"] += cluster.tracker.ledger.withdrawn_votes > 0
        seen["lost votes"] += cluster.tracker.ledger.lost_votes > 0
        seen["quarantines"] += bool(cluster.tracker.ledger.quarantined)
        seen["publications"] += bool(cluster.published)
        seen["lost before published"] += cluster.lost_in_check
        seen["resumed"] += bool(cluster.recovered)
        seen["resumed to publish"] += any(task.kind == "reduce" for task in cluster.recovered)
    if SCHEDULES >= 4000:  # the schedules are worth something only if they get into trouble often enough
        total = SCHEDULES / SLICES
        assert seen["done"] > 0.8 * total
        assert min(seen["lost votes"], seen["publications"]) > 0.3 * total
        rare = ("withdrawals", "quarantines", "no_quorum", "job_error", "lost before published", "resumed to publish")
        assert seen["resumed"] > 0.05 * total
        assert min(seen[name] for name in rare) > 0.002 * total


def test_invariants_hold_after_every_event() -> None:
    for seed in range(100_000, 100_400):
        run(seed, checked=True)


def test_the_same_events_give_the_same_commands() -> None:
    """The tracker has no clock and no randomness of its own."""
    for seed in range(50):
        transcripts = []
        for _ in range(2):
            schedule = Schedule(seed)
            schedule.cluster.transcript = []
            schedule.run()
            transcripts.append(schedule.cluster.transcript)
        assert transcripts[0] == transcripts[1]
