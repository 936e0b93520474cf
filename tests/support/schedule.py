"""Random schedules: a plan, faults and an order of events for a simulated cluster, each from a seed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random
from typing import Any

from driver_referee import output_of, read_by
from simulator import Cluster

from quoreduce.tracker import (
    BlockLost,
    Check,
    Checked,
    Event,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Plan,
    Published,
    Refused,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)


@dataclass(slots=True)
class Faults:
    """How much may still go wrong in a schedule."""

    wrong_rate: float = 0.0
    wrong_per_task: int = 0
    crashes: int = 0
    losses: int = 0
    errors: int = 0
    malformed: int = 0
    refusals: int = 0  # of what could be read
    stuck: tuple[str, ...] = ()
    broken_task: Task | None = None  # the job's own error
    endless: str = (
        ""  # what goes wrong with the victim whenever it can: its "checks" or "copies", or it "refuses" its inputs
    )
    victim: Task | None = None
    balks: Task | None = None  # whose checks always refuse

    def none(self) -> bool:
        chances = (self.wrong_rate, self.crashes, self.losses, self.errors, self.malformed, self.refusals)
        return not (any(chances) or self.stuck or self.broken_task or self.endless or self.balks)


def random_plan(rng: Random) -> Plan:
    whole = rng.random() < 0.6
    many = rng.random() < 0.002  # more than the tracker looks ahead
    return Plan(
        maps=rng.randrange(60, 80) if many else rng.randrange(1, 9) if rng.random() > 0.03 else 0,
        reduces=rng.randrange(1, 6),
        f=rng.choice((0, 1, 1, 1, 2, 2, 3)),
        mode="bft" if whole else rng.choice(("bft", "bft", "basic", "original")),
        sample=rng.random() < 0.1,
        deferred=whole or rng.random() < 0.6,
        tentative=whole or rng.random() < 0.6,
        digest_outputs=whole or rng.random() < 0.6,
        confirm=rng.random() < 0.5,
    )


def random_faults(rng: Random, plan: Plan, domains: int) -> Faults:
    if rng.random() < 0.08:
        return Faults()
    domains = max(domains, plan.need)
    voted = plan.need > 1
    faults = Faults(
        wrong_rate=rng.choice((0.0, 0.05, 0.2, 0.5)) * voted,
        wrong_per_task=rng.randrange(6),
        crashes=rng.choice((0, 0, 1, 2, 3)),
        losses=rng.choice((0, 0, 1, 2)),
        errors=rng.choice((0, 0, 1, 2)) * voted,
        malformed=rng.choice((0, 0, 0, 1, 2)),
        refusals=rng.choice((0, 0, 0, 1, 2)),
    )
    if voted and rng.random() < 0.25:
        faults.stuck = tuple(f"d{d}" for d in range(rng.randrange(1, min(domains, plan.need))))
    if rng.random() < 0.02:
        faults.broken_task = Task("map", 0) if plan.maps else Task("reduce", 0)
    return faults


def random_endless(seed: int, plan: Plan, faults: Faults) -> None:
    """Of some schedules, make one fault endless. It has a source of its own, so that all else is as it would be
    without.
    """
    rng = Random(f"endless {seed}")
    if rng.random() > 0.02:
        return
    kinds = ["refuses", "copies"] * (plan.maps > 0) + ["checks"] * plan.confirm
    if kinds:
        faults.endless = rng.choice(kinds)
        is_map = faults.endless == "copies"
        faults.victim = Task("map", rng.randrange(plan.maps)) if is_map else Task("reduce", rng.randrange(plan.reduces))


def with_checks(seed: int, plan: Plan) -> Plan:
    """Of some schedules, have tasks checked (R13). The source is another one, for the same reason."""
    rng = Random(f"checks {seed}")
    if plan.mode != "bft" or not plan.deferred or not plan.digest_outputs or rng.random() > 0.4:
        return plan
    return replace(plan, checked=frozenset(rng.choice((("map", "reduce"), ("map", "reduce"), ("map",), ("reduce",)))))


class Schedule:
    """One job under one random order of events."""

    def __init__(
        self, seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False, recorded: bool = False
    ) -> None:
        rng = self.rng = Random(seed)
        self.plan = with_checks(seed, random_plan(rng))
        self.domains = self.plan.need + rng.randrange(4) if rng.random() < 0.995 else rng.randrange(self.plan.need)
        self.faults = random_faults(rng, self.plan, self.domains)
        random_endless(seed, self.plan, self.faults)
        if "reduce" in self.plan.checked and Random(f"balks {seed}").random() < 0.05:
            self.faults.balks = Task("reduce", 0)
        self.faultless = self.faults.none()
        self.cluster = Cluster(self.plan, make(self.plan), checked, transcript=[] if recorded else None)
        self.cluster.broken = {name for name in self.faults.stuck if rng.random() < 0.8}
        self.spoilt: Counter[Task] = Counter()
        self.slow = rng.choice((None, None, "d0", "d1"))  # answers only when nobody else has anything to say
        self.haste = rng.choice(
            (0.0, 0.0, 0.9)
        )  # how often storing replicas are the first to answer: reduces start early
        self.attested = rng.choice((0.0, 0.0, 0.3, 0.7))  # how often an answer is held back until there is evidence
        self.lagging = rng.choice((0.0, 0.0, 0.05, 0.3))  # how often somebody is said to be slow
        self.make = make
        self.deaths = rng.choice((0, 0, 0, 1, 2))  # of the driver
        self.joined = 0
        self._join_all()

    def _join_all(self) -> None:
        if self.faults.endless == "checks" and self.faults.victim is not None:
            self.cluster.unreadable.add(self.faults.victim)
        for d in range(self.domains):
            for _ in range(self.rng.choice((1, 1, 2))):
                self.cluster.join(self._name(), f"d{d}", self.rng.choice((1, 1, 2)))

    def _name(self) -> str:
        self.joined += 1
        return f"w{self.joined}"

    def run(self) -> Cluster:
        rng = self.rng
        self.cluster.start()
        for _ in range(3000 + 100 * (self.plan.maps + self.plan.reduces)):
            cluster = self.cluster
            if cluster.result is not None:
                break
            if self.deaths and rng.random() < 0.03:
                self._begin_again()
            elif cluster.testing and (not cluster.flying or rng.random() < 0.3):
                cluster.test()
            elif cluster.checking and (not cluster.flying or rng.random() < 0.1):
                cluster.publish(rng.randrange(len(cluster.checking)))
            elif not cluster.flying:
                cluster.stall()
            elif not self.faultless and rng.random() < self.lagging:
                c = rng.choice(cluster.flying)
                if c.attempt not in cluster.executed:
                    cluster.lag(c)
            elif self.faults.endless == "copies" and self._lose_all():
                pass
            elif self.faultless or rng.random() < 0.85 or not self._mishap():
                self._answer()
        else:
            raise AssertionError("the job does not end")
        self._judge()
        cluster.ignored(self._nonsense())
        return cluster

    def _begin_again(self) -> None:
        """The driver dies, another goes on. Its workers are others, even if their domains have the same names."""
        self.deaths -= 1
        self.cluster = self.cluster.reborn(self.make)
        self.spoilt.clear()
        self._join_all()
        self.cluster.start()

    def _lose_all(self) -> bool:
        """Lose what was stored of the victim of an endless fault; False if there is nothing."""
        cluster, there = self.cluster, self.cluster.blocks.keys() - self.cluster.discarded
        stored = [a for a in there if not cluster.blocks[a].gone and cluster.launches[a].task == self.faults.victim]
        for attempt in sorted(stored)[: cluster.result is None]:
            cluster.lose_block(attempt, told=self.rng.random() < 0.5)
        return bool(stored)

    def _answer(self) -> None:
        cluster, rng = self.cluster, self.rng
        k = rng.randrange(len(cluster.flying))
        for _ in range(4 * (self.slow is not None)):
            if cluster.domain_of[cluster.flying[k].worker] != self.slow:
                break
            k = rng.randrange(len(cluster.flying))
        if rng.random() < self.haste:
            k = next((n for n, c in enumerate(cluster.flying) if isinstance(c, Launch) and c.store), k)
        c = cluster.flying[k]
        if rng.random() < self.attested and (c.attempt not in cluster.executed or rng.random() < 0.2):
            cluster.execute(k)
        elif self.faultless:
            cluster.reply(k)
        elif self.faults.endless == "refuses" and c.task == self.faults.victim:
            read = [source.attempt for copies in c.sources for source in copies]
            cluster.refuse(k, tuple(rng.sample(read, rng.randrange(min(3, len(read) + 1)))))
        elif isinstance(c, Check) and c.task == self.faults.balks:
            cluster.refuse(k, ())
        elif isinstance(c, Check):
            self._answer_check(k, c)
        elif c.task == self.faults.broken_task:
            cluster.reply(k, error="bug in the job")
        elif cluster.domain_of[c.worker] in self.faults.stuck:
            cluster.reply(k, cluster.stuck)
        elif rng.random() < self.faults.wrong_rate and self.spoilt[c.task] < self.faults.wrong_per_task:
            self.spoilt[c.task] += 1
            cluster.reply(k, cluster.collude if rng.random() < 0.6 else cluster.alone)
        elif self.faults.errors and rng.random() < 0.05:
            self.faults.errors -= 1
            cluster.reply(k, error=f"bit flip {self.faults.errors}")
        elif self.faults.malformed and rng.random() < 0.05:
            self.faults.malformed -= 1
            right = self.plan.reduces if c.task.kind == "map" else 1
            cluster.malformed(k, rng.choice([n for n in (0, 1, right + 1) if n != right]))
        elif self.faults.refusals and c.sources and rng.random() < 0.2:
            self.faults.refusals -= 1
            any_of = [source.attempt for copies in c.sources for source in copies] + list(cluster.launches)[:3]
            cluster.refuse(k, tuple(rng.sample(any_of, rng.randrange(3))))
        else:
            cluster.reply(k)

    def _answer_check(self, k: int, c: Check) -> None:
        cluster, rng, faults = self.cluster, self.rng, self.faults
        stuck = cluster.domain_of[c.worker] in faults.stuck
        if stuck or (rng.random() < faults.wrong_rate and self.spoilt[c.task] < faults.wrong_per_task):
            self.spoilt[c.task] += not stuck
            how = rng.choice(("conspire", "conspire", "reject", "garble"))
            cluster.conspire(k) if how == "conspire" else cluster.check(k, how)
        elif faults.errors and rng.random() < 0.05:
            faults.errors -= 1
            cluster.check(k, error=f"bit flip {faults.errors}")
        elif faults.malformed and rng.random() < 0.05:
            faults.malformed -= 1
            cluster.malformed(k, rng.choice((0, self.plan.reduces + 2)))
        elif faults.refusals and rng.random() < 0.2:
            faults.refusals -= 1
            any_of = [*read_by(c), *list(cluster.launches)[:3]]
            cluster.refuse(k, tuple(rng.sample(any_of, rng.randrange(3))))
        else:
            cluster.reply(k)

    def _mishap(self) -> bool:
        """Something other than an answer. False if there was nothing to go wrong."""
        cluster, rng, faults = self.cluster, self.rng, self.faults
        draw = rng.random()
        if draw < 0.3 and faults.crashes:
            faults.crashes -= 1
            worker = rng.choice(list(cluster.slots))
            cluster.crash(worker, rng.random() < 0.5, self._name() if rng.random() < 0.75 else None)
        elif draw < 0.6 and faults.losses:
            stored = [a for a in cluster.blocks if a not in cluster.discarded and not cluster.blocks[a].gone]
            if not stored:
                return False
            faults.losses -= 1
            awaited = [agreed.attempt for agreed in cluster.checking if agreed.attempt in stored]
            published = [a for a in stored if a in cluster.published]
            if awaited and rng.random() < 0.7:
                cluster.lose_block(rng.choice(awaited), told=rng.random() < 0.5)
            elif published and rng.random() < 0.5:
                cluster.lose_block(rng.choice(published), told=True)
            elif rng.random() < 0.4 and cluster.launches[stored[-1]].task.kind == "map":
                cluster.blocks[stored[-1]].spoilt = True
            else:
                cluster.lose_block(rng.choice(stored), told=True)
        elif draw < 0.8 and cluster.replies:
            n, lately = len(cluster.replies), rng.random() < 0.3
            cluster.repeat(rng.randrange(max(0, n - 3) if lately else 0, n))
        elif draw < 0.9:
            cluster.ignored(self._nonsense())
        else:
            return False
        return True

    def _nonsense(self) -> Event:
        """Something about workers and attempts that are not there, or what is known already."""
        rng, nobody = self.rng, max([*self.cluster.launches, *self.cluster.checks], default=0) + 1
        what = rng.randrange(9)
        if what == 0 and self.cluster.slots:
            return WorkerJoined(rng.choice(list(self.cluster.slots)), "elsewhere", 1)
        if what == 1 and self.cluster.flying:
            return Stalled()
        return rng.choice(
            (WorkerJoined("without slots", "d0", 0), WorkerLost("nobody", True), Executed(nobody), BlockLost(nobody),
             Finished(nobody, output_of((b"forged",))), Failed(nobody, "", b""), Refused(nobody, (0,)),
             Published(nobody), Checked(nobody, output_of((b"forged",)), b"", b""))
        )  # fmt: skip

    def _unlucky(self, task: Task | None, honest: set[str]) -> bool:
        """Whether so much went wrong in honest domains that a task may end at its bound.

        Domains take turns, so within the bound each is asked `bound // domains` times (R1, R3). While f+1 honest ones
        bring the truth at least once the vote is won; to prevent that, all turns of the others have to go wrong.
        """
        turns = self.plan.bound // max(1, self.domains)
        return task is not None and self.cluster.fruitless(task, honest) >= turns * (len(honest) - self.plan.need + 1)

    def _judge(self) -> None:
        """The result is right, or there is a good reason for there being none."""
        cluster, result = self.cluster, self.cluster.result
        cluster.expect_truth()
        live = {cluster.domain_of[worker] for worker in cluster.slots}
        honest = live - set(self.faults.stuck)
        if self.faults.endless:
            assert isinstance(result, JobFailed), f"{self.faults.victim} cannot be done"
            assert result.message
        elif isinstance(result, JobFailed):
            assert result.message
            if self.domains < self.plan.need:
                assert result.reason == "too_few_domains"
            elif result.reason == "job_error":
                assert result.task == self.faults.broken_task
            elif self.faults.broken_task is None:
                assert result.reason in ("no_quorum", "not_deterministic", "too_few_domains", "copies_lost")
                assert len(honest) < self.plan.need + 1 or self._unlucky(result.task, honest), (
                    f"{len(honest)} honest domains, yet: {result}"
                )
        else:
            assert isinstance(result, JobDone)
            assert self.faults.broken_task is None, "a job whose own code raises cannot be done"
        if self.faultless and self.domains >= self.plan.need:
            assert isinstance(result, JobDone)
            executed: Counter[str] = Counter({kind: cluster.executions[kind] for kind in cluster.planned()})
            for task in cluster.recovered:
                executed[task.kind] += cluster.first(task)
                executed["check"] += (self.plan.need - 1) * (task.kind in self.plan.checked)
            # Of 2f+1 up front f+1 may agree before the storing replica has stored: if the driver dies then, it is made
            # once more.
            again = Counter(task.kind for task, id_ in cluster.recovered.items() if id_ not in cluster.blocks)
            assert executed == {kind: n + again[kind] for kind, n in cluster.planned().items()}


def run(seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False) -> Cluster:
    """One random schedule; an AssertionError names its seed."""
    schedule = Schedule(seed, make, checked)
    try:
        return schedule.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r} ({schedule.plan}, {schedule.faults})") from error
