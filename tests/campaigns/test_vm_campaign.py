"""Random schedules of VM operations: whatever the relay does and whoever crashes, a VM has one place, and no other sees
it.

With --nightly there are 2,000, elsewhere 250, or as many as `QUOREDUCE_VM_SCHEDULES` says, from number `QUOREDUCE_SEED`
(0) on.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import seeded
from mutated import forget, load
from vm import CAMPAIGN, explore, told

SCHEDULES = int(os.environ.get("QUOREDUCE_VM_SCHEDULES", "2000" if os.environ.get("QUOREDUCE_NIGHTLY") else "250"))
SEED = int(os.environ.get("QUOREDUCE_SEED", "0"))
RARE = (
    "relay: drop", "relay: hold", "relay: twice", "relay: flip", "relay: cut", "relay: final", "relay: splice",
    "relay: replay", "relay: substitute", "relay: stale", "relay: reroute", "relay: impostor", "relay: both",
    "relay: detour", "crashes", "hypervisor failures", "scrub failures", "servers burnt down", "attacks on storage",
    "end: terminated", "request: restore", "backups read back", "request: update", "records forgotten",
    "guests that ended by themselves", "relay: a server hears nothing of another", "return: running", "return: lost",
    "return: moved", "return: terminated", "return: aborted", "return: released",
)  # fmt: skip


@pytest.fixture
def careless() -> Iterator[Any]:
    """Machines of which the destination's environment is not checked."""
    yield load([("evidence", "if environment not in policy.environments:", "if False:")])
    forget()


def test_every_schedule_ends_with_each_vm_in_one_place(says: Callable[[str], None]) -> None:
    """Slide 35: user agent, server agents and TCOMs are trusted; the cloud's management, which relays and stores, is
    not.
    """
    begun = time.monotonic()
    *_, tally = seeded.run(CAMPAIGN, SEED, SCHEDULES, len(os.sched_getaffinity(0)))
    held = seeded.verdict(tally, CAMPAIGN.script)
    says(
        f"VM schedules {SEED} to {SEED + SCHEDULES - 1}: {held}, in {time.monotonic() - begun:.0f} s;"
        f" again: python tests/campaigns/vm.py --count {SCHEDULES} --seed {SEED}"
    )
    assert tally.schedules == SCHEDULES
    assert not tally.violations, held
    if SCHEDULES >= 2000:  # the schedules are worth something only if they get into trouble often enough
        assert min(tally.met[name] for name in RARE) > 0.002 * SCHEDULES
        assert tally.sums["end: running"] > 0.5 * SCHEDULES
    assert all(reason.strip() for reason in tally.reasons)


def test_a_violation_is_told_with_the_seed_that_repeats_it(careless: Any) -> None:
    found = explore(range(12), careless)
    assert found.violations
    seed = min(found.violations)
    text, violation = told(seed, careless)
    assert f"--replay {seed}" in seeded.verdict(found, CAMPAIGN.script)
    assert violation == found.violations[seed]
    assert text.startswith(f"# schedule {seed}: ")
    assert told(seed, careless) == (text, violation)
    assert told(seed)[1] == ""


def test_a_schedule_is_a_function_of_its_number() -> None:
    """The keys are other ones each time; what happens is not."""
    for seed in range(25):
        assert told(seed) == told(seed)
