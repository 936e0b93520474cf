"""Campaign: random schedules against the protocols of VM operations: an adversarial relay, crashes, hypervisors that fail.

    python tests/campaigns/vm.py                              20,000 schedules
    python tests/campaigns/vm.py --count 2500 --seed 0        what CI runs
    python tests/campaigns/vm.py --replay 4711                one of them, told line by line

The machines are the real ones, with real cryptography; the world around them is tests/cloud/world.py, and so is the referee.
Schedule number S is a function of S alone. A campaign is the numbers from `--seed` up; without it they begin where nobody has
been. The end is 0 if everything held, else 1.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "cloud"))

from world import KIT, Schedule

COUNT = 20_000
SLICE = 50
CPU_S_MAX = 30.0  # of one schedule, which takes about a twentieth of a second
SHOWN_MAX = 10
FRESH = 1 << 40  # seeds that are drawn lie below


@dataclass(slots=True)
class Tally:
    """What came of some schedules.

    Attributes:
        schedules: how many there were. moods: how many of which kind.
        sums: what happened in all. met: in how many schedules it did.
        reasons: how often which refusal or outcome was named.
        violations: number of a schedule -> what no protocol may let happen.
    """

    schedules: int = 0
    moods: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    violations: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        for name in ("moods", "sums", "met", "reasons"):
            getattr(self, name).update(getattr(other, name))
        self.violations.update(other.violations)

    def text(self) -> str:
        """The tally as a table."""
        total = max(1, self.schedules)
        lines = [f"{'schedules':50}{self.schedules:>12,}"]
        lines += [f"  {name:48}{n:>12,}{n / total:>9.2%}" for name, n in self.moods.most_common()]
        lines.append(f"{'met:':50}{'in all':>12}{'schedules':>21}")
        lines += [
            f"  {name:48}{n:>12,}{self.met[name]:>12,}{self.met[name] / total:>9.2%}" for name, n in sorted(self.sums.items())
        ]
        lines.append(f"{len(self.reasons)} reasons were given; the most frequent:")
        lines += [f"  {n:>8,}  {reason[:110]}" for reason, n in self.reasons.most_common(25)]
        return "\n".join(lines)


def explore(seeds: Iterable[int], kit: Any = KIT) -> Tally:
    """Run the schedules of these seeds, here."""
    tally = Tally()
    signal.signal(signal.SIGVTALRM, _too_long)
    for seed in seeds:
        tally.schedules += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
        try:
            schedule = Schedule(seed, kit)
            tally.moods[schedule.mood] += 1
            world = schedule.run()
            tally.sums.update(world.counts)
            tally.met.update(world.counts.keys())
            tally.reasons.update(world.notes)
        except Exception as error:  # noqa: BLE001 (whatever a machine does)
            tally.violations[seed] = f"{type(error).__name__}: {error}"
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return tally


def _too_long(_signal: int, _frame: object) -> None:
    raise TimeoutError(f"not over after {CPU_S_MAX:g} s of CPU time")


def _prepare() -> None:
    """In a worker: what is there stays there, and rubbish is cleared away less often than Python thinks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def campaign(first: int, count: int, jobs: int) -> Iterator[Tally]:
    """Run `count` schedules from number `first` on, in `jobs` processes; yield what is known, again and again."""
    tally = Tally()
    slices = [range(at, min(at + SLICE, first + count)) for at in range(first, first + count, SLICE)]
    with multiprocessing.get_context("spawn").Pool(jobs, _prepare) as pool:
        for part in pool.imap_unordered(explore, slices):
            tally.add(part)
            yield tally


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


def verdict(tally: Tally) -> str:
    """The last lines: what counts."""
    lines = [f"{len(tally.violations)} violations in {tally.schedules:,} schedules"]
    for seed in sorted(tally.violations)[:SHOWN_MAX]:
        lines.append(f"  {tally.violations[seed]}\n    python tests/campaigns/vm.py --replay {seed}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random schedules against the protocols of VM operations.")
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many (default {COUNT:,})")
    parser.add_argument("--seed", type=int, help="number of the first (default: drawn, and printed)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell this one, line by line")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        text, violation = told(options.replay)
        print(text + (f"VIOLATION: {violation}" if violation else "all rules were kept"))
        return bool(violation)
    first = secrets.randbelow(FRESH) if options.seed is None else options.seed
    count = max(1, options.count)
    print(f"schedules {first} to {first + count - 1}, on {options.jobs} processes", flush=True)
    begun, said = time.monotonic(), 0.0
    for tally in campaign(first, count, options.jobs):
        now = time.monotonic() - begun
        if now - said > 5 or tally.schedules == count:
            said = now
            print(f"{tally.schedules:,} of {count:,} after {now:.0f} s, {len(tally.violations)} violations", file=sys.stderr)
    print(f"{tally.text()}\n{verdict(tally)}")
    print(f"again: python tests/campaigns/vm.py --count {count} --seed {first}")
    return bool(tally.violations)


if __name__ == "__main__":
    sys.exit(main())
