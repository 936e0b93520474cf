"""A cluster of lies around the tracker: workers that err, crash, collude, repeat themselves and lose what they stored.

`Cluster` executes the tracker's commands on invented data and plays the driver; every step is a method, so a seeded
schedule, a golden scenario and hypothesis can all choose what happens next. It also watches: whatever the tracker does
that no tracker may do, at any time, is an AssertionError. `run(seed)` is one random schedule.

Contents stand for their own digests, so "the digest of what was read" costs nothing to compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, lru_cache
from random import Random
from typing import Any

from quoreduce.tracker import (
    Accused,
    Agreed,
    BlockLost,
    Cancel,
    Discard,
    Event,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Output,
    Part,
    Plan,
    Published,
    Refused,
    Retest,
    Retested,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)

Contents = tuple[bytes, ...]


@lru_cache(4096)
def output_of(parts: Contents) -> Output:
    return Output(b"|".join(parts), tuple(Part(part, 1, len(part)) for part in parts))


@cache
def true_map(m: int, reduces: int) -> Contents:
    return tuple(b"m%d.%d" % (m, r) for r in range(reduces))


@cache
def true_reduce(r: int, maps: int) -> Contents:
    return (b"r%d<%s>" % (r, b",".join(b"m%d.%d" % (m, r) for m in range(maps))),)


@dataclass(slots=True)
class Block:
    """A stored output: what it holds is what was voted on until somebody spoils it."""

    worker: str
    parts: Contents
    spoilt: bool = False
    gone: bool = False


@dataclass(slots=True)
class Cluster:
    """Workers, blocks and the driver's part of the deal."""

    plan: Plan
    tracker: Any
    checked: bool = False
    domain_of: dict[str, str] = field(default_factory=dict)
    slots: dict[str, int] = field(default_factory=dict)
    busy: Counter[str] = field(default_factory=Counter)
    flying: list[Launch] = field(default_factory=list)  # launched and not answered, cancelled ones included
    cancelled: set[int] = field(default_factory=set)
    executed: set[int] = field(default_factory=set)  # their slots are free, their answers are to come
    launches: dict[int, Launch] = field(default_factory=dict)
    replies: list[Event] = field(default_factory=list)
    blocks: dict[int, Block] = field(default_factory=dict)
    discarded: set[int] = field(default_factory=set)
    told_lost: set[int] = field(default_factory=set)
    outputs: dict[int, Output] = field(default_factory=dict)
    agreed: dict[Task, Agreed] = field(default_factory=dict)
    accused: set[int] = field(default_factory=set)
    testing: dict[int, Retest] = field(default_factory=dict)  # tests under way
    broken: set[str] = field(default_factory=set)  # domains that fail tests
    tests_at_once: bool = False  # a test is answered before anything else happens
    checking: list[Agreed] = field(default_factory=list)  # reduces that the driver is to check and publish
    published: set[int] = field(default_factory=set)
    lost_in_check: bool = False  # an agreed output turned out to be gone when it was checked, or was lost before
    executions: Counter[str] = field(default_factory=Counter)
    result: JobDone | JobFailed | None = None
    colluders: dict[Task, set[str]] = field(default_factory=dict)
    voters: dict[tuple[Task, bytes], set[str]] = field(default_factory=dict)
    said: dict[Task, set[bytes]] = field(default_factory=dict)
    transcript: list[tuple[Event | None, list[Any]]] | None = None

    # ---- the driver's part ----------------------------------------------------------------------------------------

    def start(self) -> None:
        self._obey(None, self.tracker.start())

    def send(self, event: Event) -> None:
        if isinstance(event, Published) and event.attempt not in self.told_lost:
            self.published.add(event.attempt)
        self._obey(event, self.tracker.handle(event))

    def _obey(self, event: Event | None, commands: list[Any]) -> None:
        if self.transcript is not None:
            self.transcript.append((event, commands))
        for command in commands:
            assert self.result is None, "nothing follows the end of a job"
            self._ON[type(command)](self, command)
        if self.checked:
            self.tracker.check()
        assert self.tracker.done == (self.result is not None)
        while self.tests_at_once and self.testing and self.result is None:
            self.test()

    def _launch(self, c: Launch) -> None:
        assert c.attempt not in self.launches, "attempts are unique"
        assert c.worker in self.slots, f"launched on {c.worker}, which is not alive"
        assert c.replica == self.executions[str(c.task)], "replicas are numbered"
        self.busy[c.worker] += 1
        assert self.busy[c.worker] <= self.slots[c.worker], f"{c.worker} has no free slot"
        assert (len(c.sources) == self.plan.maps) == (c.task.kind == "reduce" or self.plan.maps == 0)
        for m, copies in enumerate(c.sources):
            agreed = Task("map", m) in self.agreed
            assert agreed or len(self.said[Task("map", m)]) == 1, f"{c.task} starts while map {m} is in dispute (R5)"
            assert agreed or (self.plan.tentative and self.plan.mode == "bft"), f"{c.task} starts before the vote"
            assert copies, f"{c.task} reads nothing of map {m}"
            for source in copies:
                id_ = source.attempt
                assert source.map == self.launches[id_].task.index == m
                assert id_ in self.blocks, f"{c.task} reads attempt {id_}, which stored nothing"
                assert id_ not in self.told_lost | self.discarded, f"{c.task} reads attempt {id_}, which is gone"
        if c.task.kind != "sample" and self.plan.sample:
            assert Task("sample", 0) in self.agreed, "nothing starts before the sample is agreed on"
        agreed = self.agreed.get(c.task)
        if self.plan.confirm and not self.plan.upfront and agreed is not None and c.task.kind == "reduce":
            assert agreed.attempt not in self.published, f"{c.task} is published: nothing that is lost now matters (R8)"
        self.executions[c.task.kind] += 1
        self.executions[str(c.task)] += 1
        self.launches[c.attempt] = c
        self.flying.append(c)

    def _cancel(self, c: Cancel) -> None:
        assert any(launch.attempt == c.attempt for launch in self.flying), "cancelled what does not run"
        assert c.attempt not in self.cancelled, "cancelled twice"
        self.cancelled.add(c.attempt)

    def _discard(self, c: Discard) -> None:
        assert c.attempt not in self.discarded, "discarded twice"
        assert self.launches[c.attempt].store, "discarded what was never stored"
        awaited = {agreed.attempt for agreed in self.checking} - self.told_lost
        assert c.attempt not in awaited, "discarded what is to be published"
        for launch in self.flying:
            if launch.attempt not in self.cancelled:
                read = {source.attempt for copies in launch.sources for source in copies}
                assert c.attempt not in read, f"discarded {c.attempt}, which {launch.attempt} reads"
        self.discarded.add(c.attempt)

    def _agree(self, c: Agreed) -> None:
        before = self.agreed.get(c.task)
        assert before is None or before.output == c.output, f"{c.task} has two winners"
        # The count is taken here, from the replies themselves, and not from what the tracker says (R1).
        voters = self.voters[c.task, c.output.digest]
        assert len(voters) >= self.plan.need, f"{c.task} won with {voters}"
        assert set(c.domains) <= voters
        if c.task.kind != "map":
            assert c.attempt in self.blocks, "what is agreed is stored"
            assert not {c.attempt} & (self.told_lost | self.discarded), "what is agreed can be read"
            assert self.outputs[c.attempt] == c.output
        if c.task.kind == "reduce":
            maps = [self.agreed.get(Task("map", m)) for m in range(self.plan.maps)]
            assert all(maps), "a reduce wins after its inputs (R5)"
            self.checking += [c] * self.plan.confirm
        self.agreed[c.task] = c

    def _accuse(self, c: Accused) -> None:
        launch = self.launches[c.attempt]
        assert (launch.task, self.domain_of[launch.worker]) == (c.task, c.domain)
        assert c.attempt not in self.accused, "a vote is lost once"
        self.accused.add(c.attempt)

    def _retest(self, c: Retest) -> None:
        assert c.worker in self.slots, f"{c.worker} is to be tested, and is not alive"
        assert self.domain_of[c.worker] == c.domain
        assert all(c.domain != test.domain for test in self.testing.values()), "a domain is tested once at a time"
        assert any(len(said) > 1 for said in self.said.values()), "tested, and nobody contradicted anybody (R2)"
        assert c.test not in self.testing, "tests are numbered"
        self.testing[c.test] = c

    def _end(self, c: JobDone | JobFailed) -> None:
        self.result = c
        assert isinstance(c, JobFailed) or not self.testing, "a job is done when its tests are"
        for id_ in self.accused:
            agreed, said = self.agreed.get(self.launches[id_].task), self.outputs.get(id_)
            assert agreed is None or agreed.output != said, f"attempt {id_} was accused of being right (R11)"
        if isinstance(c, JobDone):
            for r in range(self.plan.reduces):
                agreed = self.agreed[Task("reduce", r)]
                if self.plan.confirm:
                    assert agreed.attempt in self.published, "a job is done when its outputs are published (R8)"
                    continue
                assert agreed.attempt not in self.told_lost | self.discarded, "what is published can be read"

    _ON: Any = field(
        init=False,
        repr=False,
        default_factory=lambda: {
            Launch: Cluster._launch,
            Cancel: Cluster._cancel,
            Discard: Cluster._discard,
            Agreed: Cluster._agree,
            Accused: Cluster._accuse,
            Retest: Cluster._retest,
            JobDone: Cluster._end,
            JobFailed: Cluster._end,
        },
    )

    # ---- what happens ---------------------------------------------------------------------------------------------

    def join(self, worker: str, domain: str, slots: int = 1, cpu: str = "") -> None:
        self.domain_of[worker], self.slots[worker] = domain, slots
        self.send(WorkerJoined(worker, domain, slots, cpu))

    def computed(self, c: Launch) -> Contents | tuple[int, ...]:
        """What an honest worker makes of a launch: contents, or the attempts whose blocks it had to refuse."""
        if c.task.kind == "sample":
            return (b"sample",)
        if c.task.kind == "map":
            return true_map(c.task.index, self.plan.reduces)
        read, bad = [], []
        for copies in c.sources:
            usable = [s for s in copies if not (self.blocks[s.attempt].spoilt or self.blocks[s.attempt].gone)]
            if usable:
                read.append(self.blocks[usable[0].attempt].parts[c.task.index])
            else:
                bad += [s.attempt for s in copies]
        return tuple(bad) if bad else (b"r%d<%s>" % (c.task.index, b",".join(read)),)

    def reply(self, k: int, spoil: Callable[[Launch, Contents], Contents] | None = None, error: str = "") -> None:
        """The k-th of those in flight answers: the truth, or what `spoil` makes of it, or an error."""
        self.flying[k], self.flying[-1] = self.flying[-1], self.flying[k]
        c = self.flying.pop()
        self.busy[c.worker] -= c.attempt not in self.executed
        made = self.computed(c)
        event: Event
        if made and isinstance(made[0], int):
            event = Refused(c.attempt, made)  # type: ignore[arg-type]
            if c.attempt not in self.cancelled:
                self.told_lost.update(made)  # type: ignore[arg-type]
        elif error:
            event = Failed(c.attempt, error, error.encode())
            if c.attempt not in self.cancelled:
                self.said.setdefault(c.task, set()).add(error.encode())
        else:
            parts: Contents = made if spoil is None else spoil(c, made)  # type: ignore[assignment, arg-type]
            event = Finished(c.attempt, self._store(c, parts))
        self.replies.append(event)
        self.send(event)

    def execute(self, k: int) -> None:
        """The k-th of those in flight has ended, and keeps its answer for later: its slot is free, and once only."""
        c = self.flying[k]
        before = self.tracker.ledger.ignored
        if c.attempt not in self.executed:
            self.executed.add(c.attempt)
            self.busy[c.worker] -= 1
            before -= 1
        self.send(Executed(c.attempt))
        assert self.tracker.ledger.ignored == before + 1, "a slot is freed once"

    def _store(self, c: Launch, parts: Contents) -> Output:
        output = self.outputs[c.attempt] = output_of(parts)
        if c.store and c.attempt not in self.cancelled:
            self.blocks[c.attempt] = Block(c.worker, parts)
        if c.attempt not in self.cancelled:
            self.said.setdefault(c.task, set()).add(output.digest)
            self.voters.setdefault((c.task, output.digest), set()).add(self.domain_of[c.worker])
        return output

    def repeat(self, k: int) -> None:
        """An answer comes once more."""
        before = self.tracker.ledger.ignored
        self.send(self.replies[k])
        assert self.tracker.ledger.ignored == before + 1, "a duplicate is ignored (R10)"

    def crash(self, worker: str, blocks_lost: bool, replacement: str | None = None) -> None:
        """A worker dies, with or without what it has stored; perhaps another one comes in its place (R9)."""
        slots = self.slots.pop(worker)
        self.testing = {test: c for test, c in self.testing.items() if c.worker != worker}
        del self.busy[worker]
        self.flying = [c for c in self.flying if c.worker != worker]
        if blocks_lost:
            mine = [id_ for id_, block in self.blocks.items() if block.worker == worker]
            self.told_lost.update(mine)
            for id_ in mine:
                self.blocks[id_].gone = True
        self.send(WorkerLost(worker, blocks_lost))
        if replacement is not None and self.result is None:
            self.join(replacement, self.domain_of[worker], slots)

    def lose_block(self, id_: int, told: bool) -> None:
        """A stored output vanishes; the driver notices, or a reader will."""
        self.blocks[id_].gone = True
        if told:
            self.told_lost.add(id_)
            self.send(BlockLost(id_))

    def publish(self, k: int) -> None:
        """The driver has the k-th of the agreed outputs checked, and publishes it if it is what was voted on (R8)."""
        attempt = self.checking.pop(k).attempt
        block, stale = self.blocks[attempt], attempt in self.told_lost
        self.lost_in_check |= block.gone or stale
        if block.gone and not stale:
            self.told_lost.add(attempt)
            self.send(BlockLost(attempt))
            return
        before = self.tracker.ledger.ignored
        event = Published(attempt)
        self.replies.append(event)
        self.send(event)
        assert self.tracker.ledger.ignored == before + stale, "another attempt has taken its place"

    def test(self) -> None:
        """The oldest test that is under way is over: healthy domains pass."""
        test = next(iter(self.testing))
        event = Retested(test, self.testing.pop(test).domain not in self.broken)
        self.replies.append(event)
        self.send(event)

    def stall(self) -> None:
        self.send(Stalled())
        assert self.result is not None or self.flying, "the job hangs"

    # ---- kinds of wrong -------------------------------------------------------------------------------------------

    def alone(self, c: Launch, parts: Contents) -> Contents:
        """Wrong as nobody else is."""
        return (*parts[:-1], parts[-1] + b"!%d" % c.attempt)

    def stuck(self, c: Launch, parts: Contents) -> Contents:
        """Wrong in the same way whenever this domain is asked: it repeats itself (R1)."""
        return (parts[0] + b"@" + self.domain_of[c.worker].encode(), *parts[1:])

    def collude(self, c: Launch, parts: Contents) -> Contents:
        """Wrong in the same way as others, of f domains at most."""
        gang = self.colluders.setdefault(c.task, set())
        domain = self.domain_of[c.worker]
        if domain not in gang and len(gang) >= self.plan.need - 1:
            return self.alone(c, parts)
        gang.add(domain)
        where = c.task.index % len(parts)
        return tuple(b"evil" if n == where else part for n, part in enumerate(parts))

    # ---- the verdict ----------------------------------------------------------------------------------------------

    def expect_truth(self) -> None:
        """Everything agreed on so far is what an honest execution of the whole job gives."""
        for task, agreed in self.agreed.items():
            if task.kind == "map":
                want = true_map(task.index, self.plan.reduces)
            else:
                want = true_reduce(task.index, self.plan.maps) if task.kind == "reduce" else (b"sample",)
            assert agreed.output == output_of(want), f"{task}: agreed on {agreed.output}, but the truth is {want}"
            if task.kind != "map":
                assert self.blocks[agreed.attempt].parts == want

    def planned(self) -> dict[str, int]:
        """Executions of a job without faults."""
        first = self.plan.first
        kinds = {"sample": self.plan.sample, "map": self.plan.maps, "reduce": self.plan.reduces}
        return {kind: first * n for kind, n in kinds.items()}


@dataclass(slots=True)
class Faults:
    """How much may still go wrong in a schedule."""

    wrong_rate: float = 0.0
    wrong_per_task: int = 0
    crashes: int = 0
    losses: int = 0
    errors: int = 0
    stuck: tuple[str, ...] = ()
    broken_task: Task | None = None  # the job's own error

    def none(self) -> bool:
        return not (self.wrong_rate or self.crashes or self.losses or self.errors or self.stuck or self.broken_task)


def random_plan(rng: Random) -> Plan:
    whole = rng.random() < 0.6
    return Plan(
        maps=rng.randrange(1, 9) if rng.random() > 0.03 else 0,
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
    voted = plan.need > 1
    faults = Faults(
        wrong_rate=rng.choice((0.0, 0.05, 0.2, 0.5)) * voted,
        wrong_per_task=rng.randrange(6),
        crashes=rng.choice((0, 0, 1, 2, 3)),
        losses=rng.choice((0, 0, 1, 2)),
        errors=rng.choice((0, 0, 1, 2)) * voted,
    )
    if voted and rng.random() < 0.25:
        faults.stuck = tuple(f"d{d}" for d in range(rng.randrange(1, min(domains, plan.need))))
    if rng.random() < 0.02:
        faults.broken_task = Task("map", 0) if plan.maps else Task("reduce", 0)
    return faults


class Schedule:
    """One job under one random order of events."""

    def __init__(self, seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False) -> None:
        rng = self.rng = Random(seed)
        self.plan = random_plan(rng)
        self.domains = self.plan.need + rng.randrange(4)
        self.faults = random_faults(rng, self.plan, self.domains)
        self.faultless = self.faults.none()
        self.cluster = Cluster(self.plan, make(self.plan), checked)
        self.cluster.broken = {name for name in self.faults.stuck if rng.random() < 0.8}
        self.spoilt: Counter[Task] = Counter()
        self.slow = rng.choice((None, None, "d0", "d1"))  # answers only when nobody else has anything to say
        self.haste = rng.choice((0.0, 0.0, 0.9))  # how often carriers are the first to answer: reduces start early
        self.attested = rng.choice((0.0, 0.0, 0.3, 0.7))  # how often an answer is held back until there is evidence
        self.joined = 0
        for d in range(self.domains):
            for _ in range(rng.choice((1, 1, 2))):
                self.cluster.join(self._name(), f"d{d}", rng.choice((1, 1, 2)))

    def _name(self) -> str:
        self.joined += 1
        return f"w{self.joined}"

    def run(self) -> Cluster:
        cluster, rng = self.cluster, self.rng
        cluster.start()
        for _ in range(3000):
            if cluster.result is not None:
                break
            if cluster.testing and (not cluster.flying or rng.random() < 0.3):
                cluster.test()
            elif cluster.checking and (not cluster.flying or rng.random() < 0.1):
                cluster.publish(rng.randrange(len(cluster.checking)))
            elif not cluster.flying:
                cluster.stall()
            elif self.faultless or rng.random() < 0.85 or not self._mishap():
                self._answer()
        else:
            raise AssertionError("the job does not end")
        self._judge()
        return cluster

    def _answer(self) -> None:
        cluster, rng = self.cluster, self.rng
        k = rng.randrange(len(cluster.flying))
        for _ in range(4 * (self.slow is not None)):
            if cluster.domain_of[cluster.flying[k].worker] != self.slow:
                break
            k = rng.randrange(len(cluster.flying))
        if rng.random() < self.haste:
            k = next((n for n, c in enumerate(cluster.flying) if c.store), k)
        c = cluster.flying[k]
        if rng.random() < self.attested and (c.attempt not in cluster.executed or rng.random() < 0.2):
            cluster.execute(k)
        elif self.faultless:
            cluster.reply(k)
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
            if awaited and rng.random() < 0.7:
                cluster.lose_block(rng.choice(awaited), told=rng.random() < 0.5)
            elif rng.random() < 0.4 and cluster.launches[stored[-1]].task.kind == "map":
                cluster.blocks[stored[-1]].spoilt = True
            else:
                cluster.lose_block(rng.choice(stored), told=True)
        elif draw < 0.8 and cluster.replies:
            cluster.repeat(rng.randrange(len(cluster.replies)))
        else:
            return False
        return True

    def _judge(self) -> None:
        """The result is right, or there is a good reason for there being none."""
        cluster, result = self.cluster, self.cluster.result
        cluster.expect_truth()
        live = {cluster.domain_of[worker] for worker in cluster.slots}
        honest = live - set(self.faults.stuck)
        if isinstance(result, JobFailed):
            assert result.message
            if result.reason == "job_error":
                assert result.task == self.faults.broken_task
            elif self.faults.broken_task is None:
                assert result.reason in ("no_quorum", "not_deterministic", "too_few_domains")
                assert len(honest) < self.plan.need + 1, f"{len(honest)} honest domains, yet: {result}"
        else:
            assert isinstance(result, JobDone)
            assert self.faults.broken_task is None, "a job whose own code raises cannot be done"
        if self.faultless:
            assert isinstance(result, JobDone)
            assert {kind: cluster.executions[kind] for kind in ("sample", "map", "reduce")} == cluster.planned()


def run(seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False) -> Cluster:
    """One random schedule; an AssertionError names its seed."""
    schedule = Schedule(seed, make, checked)
    try:
        return schedule.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r} ({schedule.plan}, {schedule.faults})") from error
