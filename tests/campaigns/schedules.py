"""Campaign: random schedules of faults against the real tracker, with a referee that does not believe it.

    python tests/campaigns/schedules.py                                1,000,000 schedules
    python tests/campaigns/schedules.py --count 100000 --seed 0        what CI runs
    python tests/campaigns/schedules.py --replay 4711                  one of them, told event by event

Schedule number S is a function of S alone: plan, faults and every order of events are drawn from it
(tests/support/schedule.py). A campaign is the numbers from `--seed` up; without it they begin where nobody has been.
The end is 0 if everything held, else 1.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "support"))

import seeded
from play import text_of
from schedule import Schedule
from simulator import Cluster, Wrong

from quoreduce.tracker import JobTracker, Plan

COUNT = 1_000_000
SLICE = 500
CPU_S_MAX = 20.0  # of one schedule, which takes about a thousandth of a second

CLASSES = (
    "executions", "lost votes", "errors of the job's code", "executions that crashed", "malformed replies",
    "refused inputs", "stored outputs lost", "votes withdrawn", "executions cancelled", "messages ignored",
)  # fmt: skip


@dataclass
class Tally(seeded.Tally):
    """What came of some schedules.

    Attributes:
        ends: how many ended how: `done`, or why the job failed.
        met: how many had at least one of something.
        sums: how much of it there was in all.
        plans: how many had this mode, this f, this number of domains.
        wrong: those of them in which what was agreed on is not the truth.
    """

    ends: Counter[str] = field(default_factory=Counter)
    met: Counter[str] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)
    plans: Counter[str] = field(default_factory=Counter)
    wrong: list[int] = field(default_factory=list)

    def note(self, cluster: Cluster) -> None:
        """Count what happened in a schedule that held."""
        ledger, plan = cluster.tracker.ledger, cluster.plan
        self.ends[getattr(cluster.result, "reason", "done")] += 1
        amounts = (
            ledger.executions, ledger.lost_votes, ledger.errors, ledger.crashed, ledger.malformed,
            ledger.refused, ledger.lost_blocks, ledger.withdrawn_votes, ledger.cancelled, ledger.ignored,
        )  # fmt: skip
        counts = dict(zip(CLASSES, amounts, strict=True)) | {
            "maps contradicted after reduces read them": cluster.contradicted,
            "slow executions overtaken": ledger.speculative,
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

    def counted(self) -> str:
        return f"{len(self.wrong)} wrong outputs, {super().counted()}"

    def text(self) -> str:
        """The tally as a table."""
        total = max(1, self.schedules)
        lines = [f"{'schedules':50}{self.schedules:>12,}"]
        plans = sorted(
            self.plans.items(), key=lambda item: (item[0].endswith("domains"), item[0].startswith("f="), item[0])
        )
        for title, counts in (("ended", self.ends.most_common()), ("planned", plans)):
            lines.append(f"{title}:")
            lines += [f"  {name:48}{n:>12,}{n / total:>9.2%}" for name, n in counts]
        lines.append(f"{'met:':50}{'in all':>12}{'schedules':>21}")
        lines += [
            f"  {name:48}{n:>12,}{self.met[name]:>12,}{self.met[name] / total:>9.2%}" for name, n in self.sums.items()
        ]
        return "\n".join(lines)


def explore(seeds: Iterable[int], make: Callable[[Plan], Any] = JobTracker) -> Tally:
    """Run the schedules of these seeds, here."""
    tally = Tally()
    for seed in seeds:
        tally.schedules += 1
        schedule = None
        try:
            with seeded.bounded(CPU_S_MAX):
                schedule = Schedule(seed, make)
                tally.note(schedule.run())
        except Exception as error:  # noqa: BLE001 (whatever a tracker does)
            tally.violations[seed] = f"{type(error).__name__}: {error}"
            if schedule is not None and _is_wrong(schedule.cluster):
                tally.wrong.append(seed)
    return tally


def _is_wrong(cluster: Cluster) -> bool:
    """Whether something was agreed on that is not the truth, whatever rule was broken first."""
    try:
        cluster.expect_truth()
    except Wrong:
        return True
    return False


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


CAMPAIGN = seeded.Campaign(
    "schedules.py", "Random schedules of faults against the tracker.", COUNT, SLICE, Tally, explore, told
)


if __name__ == "__main__":
    sys.exit(seeded.main(CAMPAIGN))
