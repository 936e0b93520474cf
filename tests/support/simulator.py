"""A cluster of lies around the tracker: workers that err, crash, collude, repeat themselves and lose what they stored.

`Cluster` executes the tracker's commands on invented data and plays the driver; every step is a method, so a seeded
schedule, a golden scenario and hypothesis can all choose what happens next. It also watches: whatever the tracker does
that no tracker may do, at any time, is an AssertionError.

Contents stand for their own digests, so "the digest of what was read" costs nothing to compute.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Container
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
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
class CheckedDriver:
    """The driver's part: it obeys the tracker's commands, and checks that each of them is allowed."""

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
    unreadable: set[Task] = field(default_factory=set)  # reduces whose stored outputs no check can ever read
    checking: list[Agreed] = field(default_factory=list)  # reduces that the driver is to check and publish
    published: set[int] = field(default_factory=set)
    contradicted: int = 0  # maps that were agreed on against what a reduce had read
    lost_in_check: bool = False  # an agreed output turned out to be gone when it was checked, or was lost before
    executions: Counter[str] = field(default_factory=Counter)
    lagging: set[int] = field(default_factory=set)  # said to be slow
    speculative: Counter[Task] = field(default_factory=Counter)
    result: JobDone | JobFailed | None = None
    colluders: dict[Task, set[str]] = field(default_factory=dict)
    voters: dict[tuple[Task, bytes], set[str]] = field(default_factory=dict)
    said: dict[Task, set[bytes]] = field(default_factory=dict)
    transcript: list[tuple[Event | None, list[Any]]] | None = None
    recovered: dict[Task, int] = field(default_factory=dict)  # task -> its attempt of an earlier life
    maps: list[Task] = field(init=False)

    def __post_init__(self) -> None:
        self.maps = [Task("map", m) for m in range(self.plan.maps)]

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
        assert c.replica < self.executions_max(c.task), f"{c.task} was executed beyond every bound (R3)"
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
        self.launches[c.attempt] = c
        self.flying.append(c)

    def executions_max(self, task: Task) -> int:
        """How often a task may be executed, whatever goes wrong and whoever asks (R3).

        The bound holds until the vote is won, and once more for copies that are lost; a reduce begins anew when a map
        was won against what it had read (R5); speculative attempts are counted apart (R9), and so is what an earlier
        life has done.
        """
        bounds = 2 + (self.contradicted if task.kind == "reduce" else 0)
        return bounds * self.plan.bound + self.plan.need + self.plan.first * (task in self.recovered)

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
            Launch: CheckedDriver._launch,
            Cancel: CheckedDriver._cancel,
            Discard: CheckedDriver._discard,
            Agreed: CheckedDriver._agree,
            Accused: CheckedDriver._accuse,
            Retest: CheckedDriver._retest,
            JobDone: CheckedDriver._end,
            JobFailed: CheckedDriver._end,
        },
    )


@dataclass(slots=True)
class Cluster(CheckedDriver):
    """Workers and blocks, and all that can happen to them."""

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
        assert self.tracker.ledger.malformed == before + (c.attempt not in self.cancelled), (
            "what is malformed is noticed"
        )

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
        # What a reduce was asked before it was restarted does not count (R5), so of reduces only those that run are
        # sure.
        asked: dict[Task, set[str]] = {}
        for launch in self.launches.values():
            if launch.attempt >= self.plan.first_attempt and (launch.task.kind != "reduce" or launch in late):
                asked.setdefault(launch.task, set()).add(self.domain_of[launch.worker])
        before, running = len(self.launches), list(self.flying)
        self.send(Slow(c.attempt))
        for one in list(self.launches.values())[before:]:
            self._judge_speculative(one, asked[one.task], [other for other in running if other.task == one.task])
        assert len(self.launches) - before <= len(late), "one speculative attempt for each (R9)"

    def _judge_speculative(self, launch: Launch, asked: set[str], running: list[Launch]) -> None:
        task = launch.task
        self.speculative[task] += 1
        assert self.speculative[task] <= self.plan.need, "speculation has an end"
        assert self.domain_of[launch.worker] not in asked, (
            "a speculative attempt goes to a domain that is new to its task (R1)"
        )
        in_time = [one for one in running if one.attempt not in self.cancelled | self.lagging]
        if task.kind == "map" and task not in self.agreed:  # votes of others may be withdrawn, or want a copy only
            candidates = [voters for (voted, _), voters in self.voters.items() if voted == task]
            domains = {self.domain_of[one.worker] for one in in_time}
            assert all(len(voters | domains) < self.plan.need for voters in candidates), (
                "the vote can do without the late one (R2)"
            )
        storing = [one for one in in_time if one.store]
        stored = [a for a in self.blocks if self.launches[a].task == task and a not in self.told_lost | self.discarded]
        assert launch.store or storing or stored, "somebody in time stores, or the speculative attempt does (R6)"

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
        agreed = self.checking.pop(k)
        attempt = agreed.attempt
        block, stale = self.blocks[attempt], attempt in self.told_lost
        block.gone |= agreed.task in self.unreadable
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
        """The driver has died, and its workers with it. Another one is told what was agreed on; its workers are to
        join.

        What was stored can still be read, if it was not lost before.
        """
        plan = replace(self.plan, first_attempt=self.plan.first_attempt + A_LIFE)
        new = Cluster(plan, make(plan), self.checked, transcript=self.transcript)
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
