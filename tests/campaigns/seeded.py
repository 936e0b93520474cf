"""What campaigns over numbered schedules have in common: slices of them in processes, a tally, and the command."""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import secrets
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields

SHOWN_MAX = 10
FRESH = 1 << 40  # seeds that are drawn lie below
SAY_EVERY_S = 5.0


@dataclass
class Tally(ABC):
    """What came of some schedules; campaigns add fields, each a number, a Counter or a list.

    Attributes:
        schedules: how many there were.
        violations: number of a schedule -> what must not happen.
    """

    schedules: int = 0
    violations: dict[int, str] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        for one in fields(self):
            mine, theirs = getattr(self, one.name), getattr(other, one.name)
            if isinstance(mine, dict):
                mine.update(theirs)  # a Counter adds up
            else:
                setattr(self, one.name, mine + theirs)

    def counted(self) -> str:
        return f"{len(self.violations)} violations in {self.schedules:,} schedules"

    @abstractmethod
    def text(self) -> str:
        """The tally as a table."""


@dataclass(frozen=True, slots=True)
class Campaign:
    """A command of its own.

    Attributes:
        script: what it is called by. about: what it does. count: how many schedules without `--count`.
        slice: how many at a time go to a process. tally: what adds them up, empty.
        explore: runs the schedules of some numbers, here. told: one as text, and its violation or "".
    """

    script: str
    about: str
    count: int
    slice: int
    tally: type[Tally]
    explore: Callable[[Iterable[int]], Tally]
    told: Callable[[int], tuple[str, str]]


@contextmanager
def bounded(cpu_s: float) -> Iterator[None]:
    """Raise TimeoutError in what takes longer."""

    def too_long(_signal: int, _frame: object) -> None:
        raise TimeoutError(f"not over after {cpu_s:g} s of CPU time")

    signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, cpu_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def _prepare() -> None:
    """In a worker: what is there stays there, and rubbish is cleared away less often than Python thinks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


def run(campaign: Campaign, first: int, count: int, jobs: int) -> Iterator[Tally]:
    """Run `count` schedules from number `first` on, in `jobs` processes; yield what is known, again and again."""
    tally = campaign.tally()
    slices = [range(at, min(at + campaign.slice, first + count)) for at in range(first, first + count, campaign.slice)]
    with multiprocessing.get_context("spawn").Pool(jobs, _prepare) as pool:
        for part in pool.imap_unordered(campaign.explore, slices):
            tally.add(part)
            yield tally


def verdict(tally: Tally, script: str) -> str:
    """The last lines: what counts."""
    lines = [tally.counted()]
    for seed in sorted(tally.violations)[:SHOWN_MAX]:
        lines.append(f"  {tally.violations[seed]}\n    python tests/campaigns/{script} --replay {seed}")
    return "\n".join(lines)


def main(campaign: Campaign, arguments: list[str] | None = None) -> int:
    """The command; its end is 0 if everything held, else 1."""
    parser = argparse.ArgumentParser(description=campaign.about)
    parser.add_argument("--count", type=int, default=campaign.count, help=f"how many (default {campaign.count:,})")
    parser.add_argument("--seed", type=int, help="number of the first (default: drawn, and printed)")
    parser.add_argument(
        "--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)"
    )
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell this one, line by line")
    options = parser.parse_args(arguments)
    if options.replay is not None:
        text, violation = campaign.told(options.replay)
        print(text + (f"VIOLATION: {violation}" if violation else "all rules were kept"))
        return bool(violation)
    first = secrets.randbelow(FRESH) if options.seed is None else options.seed
    count = max(1, options.count)
    print(f"schedules {first} to {first + count - 1}, on {options.jobs} processes", flush=True)
    begun, said = time.monotonic(), 0.0
    for tally in run(campaign, first, count, options.jobs):
        now = time.monotonic() - begun
        if now - said > SAY_EVERY_S or tally.schedules == count:
            said = now
            print(
                f"{tally.schedules:,} of {count:,} after {now:.0f} s, {len(tally.violations)} violations",
                file=sys.stderr,
            )
    print(f"{tally.text()}\n{verdict(tally, campaign.script)}")
    print(f"again: python tests/campaigns/{campaign.script} --count {count} --seed {first}")
    return bool(tally.violations)
