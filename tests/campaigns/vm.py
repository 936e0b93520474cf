"""Campaign: random schedules against the protocols of VM operations: an adversarial relay, crashes, hypervisors that
fail.

    python tests/campaigns/vm.py                              50,000 schedules
    python tests/campaigns/vm.py --count 2500 --seed 0        what CI runs
    python tests/campaigns/vm.py --replay 4711                one of them, told line by line

The machines are the real ones, with real cryptography; the world around them is tests/support/world.py, and so is the
referee. Schedule number S is a function of S alone. A campaign is the numbers from `--seed` up; without it they begin
where nobody has been. The end is 0 if everything held, else 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import seeded
from vm_schedule import Schedule
from world import KIT

COUNT = 50_000
SLICE = 50
CPU_S_MAX = 30.0  # of one schedule, which takes about a twentieth of a second


@dataclass
class Tally(seeded.Tally):
    """What came of some schedules.

    Attributes:
        moods: how many of which kind.
        sums: what happened in all. met: in how many schedules it did.
        reasons: how often which refusal or outcome was named.
    """

    moods: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)

    def text(self) -> str:
        """The tally as a table."""
        total = max(1, self.schedules)
        lines = [f"{'schedules':50}{self.schedules:>12,}"]
        lines += [f"  {name:48}{n:>12,}{n / total:>9.2%}" for name, n in self.moods.most_common()]
        lines.append(f"{'met:':50}{'in all':>12}{'schedules':>21}")
        lines += [
            f"  {name:48}{n:>12,}{self.met[name]:>12,}{self.met[name] / total:>9.2%}"
            for name, n in sorted(self.sums.items())
        ]
        lines.append(f"{len(self.reasons)} reasons were given; the most frequent:")
        lines += [f"  {n:>8,}  {reason[:110]}" for reason, n in self.reasons.most_common(25)]
        return "\n".join(lines)


def explore(seeds: Iterable[int], kit: Any = KIT) -> Tally:
    """Run the schedules of these seeds, here."""
    tally = Tally()
    for seed in seeds:
        tally.schedules += 1
        try:
            with seeded.bounded(CPU_S_MAX):
                schedule = Schedule(seed, kit)
                tally.moods[schedule.mood] += 1
                world = schedule.run()
            tally.sums.update(world.counts)
            tally.met.update(world.counts.keys())
            tally.reasons.update(world.notes)
        except Exception as error:  # noqa: BLE001 (whatever a machine does)
            tally.violations[seed] = f"{type(error).__name__}: {error}"
    return tally


def told(seed: int, kit: Any = KIT) -> tuple[str, str]:
    """One schedule as text, and what was wrong with it, or ""."""
    schedule, violation = Schedule(seed, kit, recorded=True), ""
    try:
        schedule.run()
    except Exception as error:  # noqa: BLE001 (whatever a machine does)
        violation = f"{type(error).__name__}: {error}"
    lines = schedule.world.lines
    assert lines is not None
    return "\n".join([f"# schedule {seed}: {schedule.mood}, {schedule.faults}", *lines, ""]), violation


CAMPAIGN = seeded.Campaign(
    "vm.py", "Random schedules against the protocols of VM operations.", COUNT, SLICE, Tally, explore, told
)


if __name__ == "__main__":
    sys.exit(seeded.main(CAMPAIGN))
