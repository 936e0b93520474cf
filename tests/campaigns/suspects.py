"""Campaign: who is named a suspect, and is it the right one? (R11, docs/guide/suspects.md)

    python tests/campaigns/suspects.py --runs 1000 --seed 0 --local 24

- ``transient``: healthy nodes, and faults at random rates from 0.1 % to 100 % of the tasks: nobody may be named or
  quarantined.
- ``planted``: the same with one bad core, wrong with probability 0.3: it is to be named within 20 of the tasks that it
  executed, and quarantined; nobody else.
- ``local``: one bad core among the pinned processes of this machine, by ``--fault bad:``, with bits flipped in real
  outputs.

The first two are simulated: the unchanged tracker on nodes that are made up. Every run has a seed of its own, which is
printed if the run is not as it should be; ``--only SEED`` repeats it. Exit code 1 if one is not.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from quoreduce.sim import USUAL, Load, Outcome, Shape, Simulation, parse_fault
from quoreduce.tracker import Finished, JobTracker, Plan

BAD = 0.3
TASKS_MOST = 20
RATE_LEAST = 0.001


@dataclass(frozen=True, slots=True)
class Found:
    """What came of a run.

    Attributes:
        end: done, or why not. quarantined, named: domains. bad: the planted one, or empty. first_wrong: tasks that the
        bad one had executed with its first wrong answer; after: when it was named. 0: never.
    """

    seed: int
    end: str
    lost_votes: int
    named: tuple[str, ...]
    quarantined: tuple[str, ...]
    bad: str = ""
    first_wrong: int = 0
    after: int = 0

    @property
    def falsely(self) -> list[str]:
        """Healthy domains that were named or quarantined."""
        return sorted({*self.named, *self.quarantined} - {self.bad})


class Watched(JobTracker):
    """The tracker, and how many answers each domain had given when it was named."""

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.answers: Counter[str] = Counter()
        self.first_wrong: dict[str, int] = {}
        self.named_after: dict[str, int] = {}

    def handle(self, event: Any) -> list[Any]:
        """Count an answer, and pass it on."""
        attempt = self._attempts.get(event.attempt) if isinstance(event, Finished) else None
        if attempt is not None and attempt.status != "over":
            self.answers[attempt.domain] += 1
            if event.output.digest != b"true":
                self.first_wrong.setdefault(attempt.domain, self.answers[attempt.domain])
        commands = super().handle(event)
        for name in self._pool.suspicion.named:
            self.named_after.setdefault(name, self.answers[name])
        return commands


def rate(rng: Random, most: float = 1.0) -> str:
    """A share of tasks, evenly distributed by its logarithm."""
    return f"{100 * math.exp(rng.uniform(math.log(RATE_LEAST), math.log(most))):.4f}%"


def play(seed: int, planted: bool) -> Found:
    """One simulated run."""
    rng = Random(f"suspects {planted} {seed}")
    f = rng.choice((1, 1, 2))
    nodes = rng.randint(max(3, f + 1 + planted), 20)
    tasks = 60 * nodes // (f + 1) if planted else rng.randint(5, 400)
    reduces = rng.randint(1, 10)
    faults = [f"wrong-map:{rate(rng)}", f"wrong-reduce:{rate(rng)}"]
    faults += rng.sample(("crash:3%", "slow:1:3", "delay:5%:2", "duplicate:5%", "rot:2%"), rng.randrange(3))
    if planted:
        faults.append(f"bad:1:{BAD}")
    plan = Plan(tasks, reduces, f, "bft", confirm=True)
    load = Load("sort", USUAL.job("sort"), tasks, reduces)
    watched: list[Watched] = []

    def make(plan: Plan) -> Watched:
        watched.append(Watched(plan))
        return watched[0]

    shape = Shape(nodes=nodes, slots=rng.choice((1, 2)))
    simulation = Simulation(shape, load, plan, USUAL, [parse_fault(text) for text in faults], seed, make)
    return found(seed, simulation.run(), watched[0], next((f"n{n}" for n in simulation.faults.bad_nodes), ""))


def found(seed: int, out: Outcome, tracker: Watched, bad: str) -> Found:
    """Judge a run."""
    end = out.end if not out.violations and not out.wrong_outputs else f"{out.end}, but {out.violations}"
    return Found(
        seed, end, out.lost_votes, tuple(out.suspects), tuple(out.quarantined), bad, tracker.first_wrong.get(bad, 0),
        tracker.named_after.get(bad, 0),
    )  # fmt: skip


def wrongs(one: Found) -> list[str]:
    """What is not as it should be. A core that has not been wrong yet cannot be named; three tasks may be under way by
    then.
    """
    wrong = [f"{name} is healthy, and was accused" for name in one.falsely]
    if one.end != "done":
        wrong.append(one.end)
    if one.bad and one.first_wrong and not one.after:
        wrong.append(f"{one.bad} was never named")
    if one.bad and one.after > max(TASKS_MOST, one.first_wrong + 3):
        wrong.append(
            f"{one.bad} was named after {one.after} tasks, its first wrong answer was number {one.first_wrong}"
        )
    if one.bad in one.named and one.bad not in one.quarantined:
        wrong.append(f"{one.bad} was named, and not quarantined")
    return wrong


def local(seed: int, folder: Path) -> Found:
    """One real run: a core of four is bad (by name: they share the cores that there are), on pinned processes."""
    from quoreduce import Options, Session
    from quoreduce.jobs.wordcount import JOB
    from quoreduce.protocol.options import Place

    bad, text, output = f"worker{seed % 4}", folder / "text", folder / f"out{seed}"
    if not text.exists():
        rng = Random(0)
        text.write_text("\n".join(" ".join(f"w{rng.randrange(5000)}" for _ in range(12)) for _ in range(4000)))
    options = Options(
        split_mb=0.005, reducers=4, faults=(f"bad:{bad}:{100 * BAD:.0f}%",), fault_seed=seed, suspects=False
    )
    with Session(Place("local", 4, "worker")) as session:
        session.run(
            JOB, [str(text)], str(folder / f"warm{seed}"), Options(suspects=False)
        )  # all four are there from the start
        result = session.run(JOB, [str(text)], str(output), options)
    shut = tuple(name for name, one in result.suspects.items() if one.quarantined)
    judged = result.suspects[bad].judged if bad in result.suspects else 0
    return Found(seed, "done", sum(result.lost_votes.values()), tuple(result.suspects), shut, bad, judged, judged)


def report(name: str, runs: list[Found]) -> int:
    """Print a table of what was found, and all that is wrong; return how many runs are."""
    print(f"{name}: {len(runs)} runs, {sum(one.lost_votes for one in runs)} lost votes")
    print(f"  healthy domains accused: {sum(len(one.falsely) for one in runs)}")
    planted = [one for one in runs if one.bad]
    if planted:
        after = sorted(one.after for one in planted if one.after)
        late = [one.after - one.first_wrong for one in planted if one.after]
        shut = sum(one.bad in one.quarantined for one in planted)
        print(f"  bad domains named: {len(after)} of {len(planted)}, quarantined: {shut}")
        print(f"  named within {TASKS_MOST} tasks: {sum(n <= TASKS_MOST for n in after)}; tasks until then: median "
              f"{after[len(after) // 2]}, 99 % {after[int(0.99 * len(after))]}, most {after[-1]}; "
              f"of these after the first wrong answer: {max(late)} at most")  # fmt: skip
    bad = [(one.seed, wrong) for one in runs for wrong in wrongs(one)]
    for seed, wrong in bad:
        print(f"  seed {seed}: {wrong}")
    return len(bad)


def campaign(runs: int, seed: int, local_runs: int = 0, only: int | None = None) -> int:
    """Run all of it, and return how many runs are wrong."""
    seeds: Iterable[int] = range(seed, seed + runs) if only is None else [only]
    wrong = sum(report(("planted" if planted else "transient") + ", simulated", [play(s, planted) for s in seeds])
                for planted in (False, True))  # fmt: skip
    if local_runs:
        with tempfile.TemporaryDirectory() as folder:
            wrong += report("planted, on local processes", [local(seed + n, Path(folder)) for n in range(local_runs)])
    return wrong


def main() -> int:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000, help="simulated runs of each kind (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of the first (default 0)")
    parser.add_argument("--local", type=int, default=0, metavar="N", help="real runs (default none)")
    parser.add_argument("--only", type=int, metavar="SEED", help="repeat one")
    a = parser.parse_args()
    return 1 if campaign(a.runs, a.seed, a.local, a.only) else 0


if __name__ == "__main__":
    sys.exit(main())
