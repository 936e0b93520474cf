"""Campaign: random schedules of faults against the real tracker, with a referee that does not believe it.

    python tests/campaigns/schedules.py                                1,000,000 schedules, a night's or a coffee's worth
    python tests/campaigns/schedules.py --count 100000 --seed 0        what CI runs
    python tests/campaigns/schedules.py --replay 4711                  one of them, told event by event

Schedule number S is a function of S alone: plan, faults and every order of events are drawn from it (tests/tracker/simulator.py).
A campaign is the numbers from `--seed` up; without it they begin where nobody has been. The end is 0 if everything held, else 1.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "tracker"))

from play import text_of
from simulator import Cluster, Schedule, Wrong

from quoreduce.tracker import JobTracker, Plan

COUNT = 1_000_000
SLICE = 500
CPU_S_MAX = 20.0  # of one schedule, which takes about a thousandth of a second
SHOWN_MAX = 10
FRESH = 1 << 40  # seeds that are drawn lie below

CLASSES = ("executions", "lost votes", "errors of the job's code", "executions that crashed", "malformed replies",
           "refused inputs", "stored outputs lost", "votes withdrawn", "executions cancelled", "messages ignored")  # fmt: skip


@dataclass(slots=True)
class Tally:
    """What came of some schedules.

    Attributes:
        schedules: how many there were.
        ends: how many ended how: `done`, or why the job failed.
        met: how many had at least one of something.
        sums: how much of it there was in all.
        plans: how many had this mode, this f, this number of domains.
        violations: number of a schedule -> what no tracker may do.
        wrong: those of them in which what was agreed on is not the truth.
    """

    schedules: int = 0
    ends: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    plans: Counter[str] = field(default_factory=Counter)
    violations: dict[int, str] = field(default_factory=dict)
    wrong: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        self.schedules += other.schedules
        for name in ("ends", "met", "sums", "plans"):
            getattr(self, name).update(getattr(other, name))
        self.violations.update(other.violations)
        self.wrong += other.wrong

    def note(self, cluster: Cluster) -> None:
        """Count what happened in a schedule that held."""
        ledger, plan = cluster.tracker.ledger, cluster.plan
        self.ends[getattr(cluster.result, "reason", "done")] += 1
        amounts = (ledger.executions, ledger.lost_votes, ledger.errors, ledger.crashed, ledger.malformed, ledger.refused,
                   ledger.lost_blocks, ledger.withdrawn_votes, ledger.cancelled, ledger.ignored)  # fmt: skip
        counts = dict(zip(CLASSES, amounts, strict=True)) | {
            "maps contradicted after reduces read them": cluster.contradicted,
            "slow executions overtaken": ledger.spares,
            "tasks taken over from an earlier life": len(cluster.recovered),
            "parts taken over from an earlier life": sum(task.kind == "reduce" for task in cluster.recovered),
            "known-answer tests": ledger.tests,
            "quarantined domains": len(ledger.quarantined),
            "answers held back for evidence": len(cluster.executed),
            "published parts": len(cluster.published),
            "outputs lost before they were published": int(cluster.lost_in_check),
        }
        self.met.update(name for name, n in counts.items() if n)
        self.sums.update(counts)
        off = [name for name in ("deferred", "tentative", "digest_outputs") if not getattr(plan, name)]
        self.plans[plan.mode + (f" without {', '.join(off)}" if off and plan.mode == "bft" else "")] += 1
        self.plans[f"f={plan.f}"] += 1
        self.plans[f"{len(set(cluster.domain_of.values()))} domains"] += 1
        self.plans["with a sample"] += plan.sample
        self.plans["published by the driver"] += plan.confirm

    def text(self) -> str:
        """The tally as a table."""
        total = max(1, self.schedules)
        lines = [f"{'schedules':50}{self.schedules:>12,}"]
        plans = sorted(self.plans.items(), key=lambda item: (item[0].endswith("domains"), item[0].startswith("f="), item[0]))
        for title, counts in (("ended", self.ends.most_common()), ("planned", plans)):
            lines.append(f"{title}:")
            lines += [f"  {name:48}{n:>12,}{n / total:>9.2%}" for name, n in counts]
        lines.append(f"{'met:':50}{'in all':>12}{'schedules':>21}")
        lines += [f"  {name:48}{n:>12,}{self.met[name]:>12,}{self.met[name] / total:>9.2%}" for name, n in self.sums.items()]
        return "\n".join(lines)


def explore(seeds: Iterable[int], make: Callable[[Plan], Any] = JobTracker) -> Tally:
    """Run the schedules of these seeds, here."""
    tally = Tally()
    signal.signal(signal.SIGVTALRM, _too_long)
    for seed in seeds:
        tally.schedules += 1
        signal.setitimer(signal.ITIMER_VIRTUAL, CPU_S_MAX)
        schedule = None
        try:
            schedule = Schedule(seed, make)
            tally.note(schedule.run())
        except Exception as error:  # noqa: BLE001 (whatever a tracker does)
            tally.violations[seed] = f"{type(error).__name__}: {error}"
            if schedule is not None and _is_wrong(schedule.cluster):
                tally.wrong.append(seed)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    return tally


def _is_wrong(cluster: Cluster) -> bool:
    """Whether something was agreed on that is not the truth, whatever rule was broken first."""
    try:
        cluster.expect_truth()
    except Wrong:
        return True
    return False


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


def told(seed: int, make: Callable[[Plan], Any] = JobTracker) -> tuple[str, str]:
    """One schedule as text, and what was wrong with it, or ""."""
    schedule, violation = Schedule(seed, make, recorded=True), ""
    try:
        schedule.run()
    except Exception as error:  # noqa: BLE001 (whatever a tracker does)
        violation = f"{type(error).__name__}: {error}"
    transcript = schedule.cluster.transcript
    assert transcript is not None
    return f"# schedule {seed}: {schedule.plan}, {schedule.faults}\n{text_of(transcript)}", violation


def verdict(tally: Tally) -> str:
    """The last lines: what counts."""
    lines = [f"{len(tally.wrong)} wrong outputs, {len(tally.violations)} violations in {tally.schedules:,} schedules"]
    for seed in sorted(tally.violations)[:SHOWN_MAX]:
        lines.append(f"  {tally.violations[seed]}\n    python tests/campaigns/schedules.py --replay {seed}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Random schedules of faults against the tracker.")
    parser.add_argument("--count", type=int, default=COUNT, help=f"how many (default {COUNT:,})")
    parser.add_argument("--seed", type=int, help="number of the first (default: drawn, and printed)")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: one a core)")
    parser.add_argument("--replay", type=int, metavar="SEED", help="tell this one, event by event")
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
        if now - said > 2 or tally.schedules == count:
            said = now
            print(f"{tally.schedules:,} of {count:,} after {now:.0f} s, {len(tally.violations)} violations", file=sys.stderr)
    print(f"{tally.text()}\n{verdict(tally)}")
    print(f"again: python tests/campaigns/schedules.py --count {count} --seed {first}")
    return bool(tally.violations)


if __name__ == "__main__":
    sys.exit(main())
