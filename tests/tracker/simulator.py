"""A cluster of lies around the tracker: workers that err, crash, collude, repeat themselves and lose what they stored.

`Cluster` executes the tracker's commands on invented data and plays the driver; every step is a method, so a seeded
schedule, a golden scenario and hypothesis can all choose what happens next. It also watches: whatever the tracker does
that no tracker may do, at any time, is an AssertionError. `run(seed)` is one random schedule.

Contents stand for their own digests, so "the digest of what was read" costs nothing to compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
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
    Recovered,
    Refused,
    Retest,
    Retested,
    Slow,
    Source,
    Stalled,
    Task,
    WorkerJoined,
    WorkerLost,
)

Contents = tuple[bytes, ...]


A_LIFE = 10**6  # attempts are numbered from here in the second life of a job, and so on


class Wrong(AssertionError):
    """What was agreed on is not the truth: of all violations the one that must never be."""


@lru_cache(4096)
def output_of(parts: Contents) -> Output:
    return Output(b"|".join(parts), tuple(Part(part, 1, len(part)) for part in parts))


@cache
def true_map(m: int, reduces: int) -> Contents:
    return tuple(b"m%d.%d" % (m, r) for r in range(reduces))


@cache
def true_reduce(r: int, maps: int) -> Contents:
    return (b"r%d<%s>" % (r, b",".join(b"m%d.%d" % (m, r) for m in range(maps))),)


def copies_of(c: Launch, task: Task) -> tuple[Source, ...]:
    """What a launch reads of a map."""
    return c.sources[task.index] if c.sources else ()


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
    contradicted: int = 0  # maps that were agreed on against what a reduce had read
    lost_in_check: bool = False  # an agreed output turned out to be gone when it was checked, or was lost before
    executions: Counter[str] = field(default_factory=Counter)
    lagging: set[int] = field(default_factory=set)  # said to be slow
    spares: Counter[Task] = field(default_factory=Counter)
    result: JobDone | JobFailed | None = None
    colluders: dict[Task, set[str]] = field(default_factory=dict)
    voters: dict[tuple[Task, bytes], set[str]] = field(default_factory=dict)
    said: dict[Task, set[bytes]] = field(default_factory=dict)
    transcript: list[tuple[Event | None, list[Any]]] | None = None
    recovered: dict[Task, int] = field(default_factory=dict)  # task -> its attempt of an earlier life
    cursed: frozenset[Task] = frozenset()  # no stored copy of these can ever be read
    maps: list[Task] = field(init=False)

    def __post_init__(self) -> None:
        self.maps = [Task("map", m) for m in range(self.plan.maps)]

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
            task = self.maps[m]
            agreed = task in self.agreed
            assert agreed or len(self.said[task]) == 1, f"{c.task} starts while map {m} is in dispute (R5)"
            assert agreed or (self.plan.tentative and self.plan.mode == "bft"), f"{c.task} starts before the vote"
            assert copies, f"{c.task} reads nothing of map {m}"
            for source in copies:
                id_ = source.attempt
                assert source.map == m
                assert self.launches[id_].task == task
                assert id_ in self.blocks, f"{c.task} reads attempt {id_}, which stored nothing"
                assert id_ not in self.told_lost, f"{c.task} reads attempt {id_}, which is gone"
                assert id_ not in self.discarded, f"{c.task} reads attempt {id_}, which is discarded"
        if c.task.kind != "sample" and self.plan.sample:
            assert Task("sample", 0) in self.agreed, "nothing starts before the sample is agreed on"
        agreed = self.agreed.get(c.task)
        if self.plan.confirm and not self.plan.upfront and agreed is not None and c.task.kind == "reduce":
            assert agreed.attempt not in self.published, f"{c.task} is published: nothing that is lost now matters (R8)"
        before = self.recovered.get(c.task)
        intact = before in self.blocks and not self.blocks[before].spoilt and before not in self.told_lost
        assert not intact, f"{c.task} was agreed on in an earlier life, and its copy is there"
        self.executions[c.task.kind] += 1
        self.executions[str(c.task)] += 1
        # To win, and once more to have a copy that lasts; a reduce begins anew with each map that was decided against it (R5).
        rounds = 2 + self.contradicted * (c.task.kind == "reduce")
        bound = rounds * self.plan.bound + self.plan.need + self.plan.first
        assert self.executions[str(c.task)] <= bound, f"{c.task} is executed without end (R3)"
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
        before, self.agreed[c.task] = self.agreed.get(c.task), c
        assert before is None or before.output == c.output, f"{c.task} has two winners"
        # The count is taken here, from the replies themselves, and not from what the tracker says (R1).
        voters = self.voters[c.task, c.output.digest]
        assert len(voters) >= self.plan.need, f"{c.task} won with {voters}"
        assert set(c.domains) <= voters
        assert len(c.domains) >= self.plan.need, "those who agreed are named"
        if c.task.kind != "map":
            assert c.attempt in self.blocks, "what is agreed is stored"
            assert not {c.attempt} & (self.told_lost | self.discarded), "what is agreed can be read"
            assert self.outputs[c.attempt] == c.output
        if c.task.kind == "reduce":
            assert all(task in self.agreed for task in self.maps), "a reduce wins after its inputs (R5)"
            self.checking += [c] * self.plan.confirm
        elif c.task.kind == "map" and len(self.said[c.task]) > 1:
            shown = {s.attempt for launch in self.launches.values() for s in copies_of(launch, c.task)}
            self.contradicted += any(self.outputs[id_] != c.output for id_ in shown)

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
        c = self._land(k)
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

    def malformed(self, k: int, parts: int) -> None:
        """The k-th of those in flight answers with a wrong number of partitions: that is a crash, and no vote (R9)."""
        c = self._land(k)
        before = self.tracker.ledger.malformed
        self.send(Finished(c.attempt, output_of((b"malformed",) * parts)))
        assert self.tracker.ledger.malformed == before + (c.attempt not in self.cancelled), "what is malformed is noticed"

    def refuse(self, k: int, bad: tuple[int, ...]) -> None:
        """The k-th of those in flight says that it can use none of `bad`. Of what it has read it is believed (R6)."""
        c = self._land(k)
        if c.attempt not in self.cancelled:
            self.told_lost.update({source.attempt for copies in c.sources for source in copies}.intersection(bad))
        self.send(Refused(c.attempt, bad))

    def _land(self, k: int) -> Launch:
        """The k-th of those in flight flies no more."""
        self.flying[k], self.flying[-1] = self.flying[-1], self.flying[k]
        c = self.flying.pop()
        self.busy[c.worker] -= c.attempt not in self.executed
        return c

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

    def lag(self, c: Launch) -> None:
        """One of those in flight is overdue, and may be overtaken: once, where nobody else is in the way (R9)."""
        owed = [one for one in self.flying if one.worker == c.worker and one.attempt in self.executed]
        late = [one for one in [c, *owed] if one.attempt not in self.cancelled]
        self.lagging.update(one.attempt for one in late)
        # What a reduce was asked before it was restarted does not count (R5), so of reduces only those that run are sure.
        asked: dict[Task, set[str]] = {}
        for launch in self.launches.values():
            if launch.attempt >= self.plan.first_attempt and (launch.task.kind != "reduce" or launch in late):
                asked.setdefault(launch.task, set()).add(self.domain_of[launch.worker])
        before, running = len(self.launches), list(self.flying)
        self.send(Slow(c.attempt))
        for spare in list(self.launches.values())[before:]:
            self._judge_spare(spare, asked[spare.task], [one for one in running if one.task == spare.task])
        assert len(self.launches) - before <= len(late), "one spare for each (R9)"

    def _judge_spare(self, spare: Launch, asked: set[str], running: list[Launch]) -> None:
        task = spare.task
        self.spares[task] += 1
        assert self.spares[task] <= self.plan.need, "spares have an end"
        assert self.domain_of[spare.worker] not in asked, "a spare goes to a domain that is new to its task (R1)"
        in_time = [one for one in running if one.attempt not in self.cancelled | self.lagging]
        if task.kind == "map" and task not in self.agreed:  # votes of others may be withdrawn, or want a copy only
            camps = [voters for (voted, _), voters in self.voters.items() if voted == task]
            domains = {self.domain_of[one.worker] for one in in_time}
            assert all(len(voters | domains) < self.plan.need for voters in camps), "the vote can do without the late one (R2)"
        carriers = [one for one in in_time if one.store]
        stored = [a for a in self.blocks if self.launches[a].task == task and a not in self.told_lost | self.discarded]
        assert spare.store or carriers or stored, "somebody in time stores, or the spare does (R6)"

    def _store(self, c: Launch, parts: Contents) -> Output:
        output = self.outputs[c.attempt] = output_of(parts)
        if c.store and c.attempt not in self.cancelled:
            self.blocks[c.attempt] = Block(c.worker, parts, gone=c.task in self.cursed)
        if c.attempt not in self.cancelled:
            self.said.setdefault(c.task, set()).add(output.digest)
            self.voters.setdefault((c.task, output.digest), set()).add(self.domain_of[c.worker])
        return output

    def repeat(self, k: int) -> None:
        """An answer comes once more."""
        self.ignored(self.replies[k])

    def ignored(self, event: Event) -> None:
        """Something comes that means nothing: a duplicate, or about what is not there (R10)."""
        before = self.tracker.ledger.ignored
        commands = self.tracker.handle(event)
        if self.transcript is not None:
            self.transcript.append((event, commands))
        assert self.tracker.ledger.ignored == before + 1, f"ignored (R10): {event}"
        assert not commands, f"{event} means nothing, yet: {commands}"

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

    def reborn(self, make: Callable[[Plan], Any]) -> Cluster:
        """The driver has died, and its workers with it. Another one is told what was agreed on; its workers are to join.

        What was stored can still be read, if it was not lost before.
        """
        plan = replace(self.plan, first_attempt=self.plan.first_attempt + A_LIFE)
        new = Cluster(plan, make(plan), self.checked, transcript=self.transcript, cursed=self.cursed)
        for task, agreed in self.agreed.items():
            stored = [
                id_ for id_ in self.blocks.keys() - self.told_lost - self.discarded
                if self.launches[id_].task == task and self.outputs[id_] == agreed.output
            ]  # fmt: skip
            new.recover(self, agreed, min(stored) if stored else agreed.attempt, bool(stored))
        return new

    def recover(self, before: Cluster, agreed: Agreed, attempt: int, stored: bool) -> None:
        task, output = agreed.task, agreed.output
        self.agreed[task], self.recovered[task] = agreed, attempt
        self.launches[attempt], self.outputs[attempt] = before.launches[attempt], output
        if stored:
            self.blocks[attempt] = replace(before.blocks[attempt], worker="")
        else:
            self.told_lost.add(attempt)
        self.said[task], self.voters[task, output.digest] = {output.digest}, before.voters[task, output.digest]
        self.executions[str(task)] = self.plan.first
        self.send(Recovered(task, attempt, output, agreed.domains, stored))

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

    def truth(self, task: Task) -> Contents:
        """What an honest execution of the whole job makes of a task."""
        if task.kind == "map":
            return true_map(task.index, self.plan.reduces)
        return true_reduce(task.index, self.plan.maps) if task.kind == "reduce" else (b"sample",)

    def fruitless(self, task: Task, domains: Container[str]) -> int:
        """How many executions of a task in these domains did not bring the truth."""
        right = output_of(self.truth(task))
        asked = [id_ for id_, c in self.launches.items() if c.task == task and self.domain_of.get(c.worker) in domains]
        return sum(self.outputs.get(id_) != right for id_ in asked)

    def expect_truth(self) -> None:
        """Everything agreed on so far is what an honest execution of the whole job gives."""
        for task, agreed in self.agreed.items():
            want = self.truth(task)
            if agreed.output != output_of(want):
                raise Wrong(f"{task}: agreed on {agreed.output}, but the truth is {want}")
            if task.kind == "map" or (agreed.attempt == self.recovered.get(task) and agreed.attempt not in self.blocks):
                continue  # what an earlier life agreed on may be gone, and is to be made again
            if agreed.attempt not in self.blocks or self.blocks[agreed.attempt].parts != want:
                raise Wrong(f"{task}: agreed on {want}, but this is not what is stored")

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
    malformed: int = 0
    refusals: int = 0  # of what could be read
    stuck: tuple[str, ...] = ()
    broken_task: Task | None = None  # the job's own error
    cursed: frozenset[Task] = frozenset()  # what is stored of them is never to be read: without end, unlike all others

    def none(self) -> bool:
        chances = (self.wrong_rate, self.crashes, self.losses, self.errors, self.malformed, self.refusals)
        return not (any(chances) or self.stuck or self.broken_task or self.cursed)


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


def cursed_tasks(rng: Random, plan: Plan) -> frozenset[Task]:
    """Tasks whose stored copies can never be read, as on a bad disk: mostly none."""
    if rng.random() > 0.03:
        return frozenset()
    tasks = [Task("map", m) for m in range(plan.maps)] + [Task("reduce", r) for r in range(plan.reduces) if plan.confirm]
    return frozenset(rng.sample(tasks, min(len(tasks), rng.choice((1, 1, 2, len(tasks))))))


class Schedule:
    """One job under one random order of events."""

    def __init__(
        self, seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False, recorded: bool = False
    ) -> None:
        rng = self.rng = Random(seed)
        self.plan = random_plan(rng)
        self.domains = self.plan.need + rng.randrange(4) if rng.random() < 0.995 else rng.randrange(self.plan.need)
        self.faults = random_faults(rng, self.plan, self.domains)
        self.faults.cursed = cursed_tasks(Random(f"{seed} cursed"), self.plan)
        self.faultless = self.faults.none()
        self.cluster = Cluster(
            self.plan, make(self.plan), checked, transcript=[] if recorded else None, cursed=self.faults.cursed
        )  # fmt: skip
        self.cluster.broken = {name for name in self.faults.stuck if rng.random() < 0.8}
        self.spoilt: Counter[Task] = Counter()
        self.slow = rng.choice((None, None, "d0", "d1"))  # answers only when nobody else has anything to say
        self.haste = rng.choice((0.0, 0.0, 0.9))  # how often carriers are the first to answer: reduces start early
        self.attested = rng.choice((0.0, 0.0, 0.3, 0.7))  # how often an answer is held back until there is evidence
        self.lagging = rng.choice((0.0, 0.0, 0.05, 0.3))  # how often somebody is said to be slow
        self.make = make
        self.deaths = rng.choice((0, 0, 0, 1, 2))  # of the driver
        self.joined = 0
        self._join_all()

    def _join_all(self) -> None:
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
        rng, nobody = self.rng, max(self.cluster.launches, default=0) + 1
        what = rng.randrange(9)
        if what == 0 and self.cluster.slots:
            return WorkerJoined(rng.choice(list(self.cluster.slots)), "elsewhere", 1)
        if what == 1 and self.cluster.flying:
            return Stalled()
        return rng.choice(
            (WorkerJoined("without slots", "d0", 0), WorkerLost("nobody", True), Executed(nobody), BlockLost(nobody),
             Finished(nobody, output_of((b"forged",))), Failed(nobody, "", b""), Refused(nobody, (0,)), Published(nobody))
        )  # fmt: skip

    def _unlucky(self, task: Task | None, honest: set[str]) -> bool:
        """Whether so much went wrong in honest domains that a task may end at its bound.

        Domains take turns, so within the bound each is asked `bound // domains` times (R1, R3). While f+1 honest ones bring the
        truth at least once the vote is won; to prevent that, all turns of the others have to go wrong.
        """
        turns = self.plan.bound // max(1, self.domains)
        return task is not None and self.cluster.fruitless(task, honest) >= turns * (len(honest) - self.plan.need + 1)

    def _judge(self) -> None:
        """The result is right, or there is a good reason for there being none."""
        cluster, result = self.cluster, self.cluster.result
        cluster.expect_truth()
        live = {cluster.domain_of[worker] for worker in cluster.slots}
        honest = live - set(self.faults.stuck)
        if isinstance(result, JobFailed):
            assert result.message
            if self.domains < self.plan.need:
                assert result.reason == "too_few_domains"
            elif result.reason == "job_error":
                assert result.task == self.faults.broken_task
            elif result.reason == "copies_lost":
                lost = sum(cluster.launches[id_].task == result.task for id_ in cluster.told_lost)
                assert result.task is not None
                assert self.faults.cursed or lost > self.plan.bound, f"nothing was lost for good, yet: {result}"
            elif self.faults.broken_task is None:
                assert result.reason in ("no_quorum", "not_deterministic", "too_few_domains")
                assert len(honest) < self.plan.need + 1 or self._unlucky(result.task, honest), (
                    f"{len(honest)} honest domains, yet: {result}"
                )
        else:
            assert isinstance(result, JobDone)
            assert self.faults.broken_task is None, "a job whose own code raises cannot be done"
            assert not self.faults.cursed, "what can never be read is neither reduced nor published"
        if self.faultless and self.domains >= self.plan.need:
            assert isinstance(result, JobDone)
            done = Counter(task.kind for task in cluster.recovered)
            executed = {kind: cluster.executions[kind] + done[kind] * cluster.plan.first for kind in ("sample", "map", "reduce")}
            # Of 2f+1 up front f+1 may agree before the carrier has stored: if the driver dies then, it is made once more.
            again = Counter(task.kind for task, id_ in cluster.recovered.items() if id_ not in cluster.blocks)
            assert executed == {kind: n + again[kind] for kind, n in cluster.planned().items()}


def run(seed: int, make: Callable[[Plan], Any] = JobTracker, checked: bool = False) -> Cluster:
    """One random schedule; an AssertionError names its seed."""
    schedule = Schedule(seed, make, checked)
    try:
        return schedule.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error!r} ({schedule.plan}, {schedule.faults})") from error
