"""The driver's part against the tracker: it obeys the commands, and checks that each of them is allowed.

Contents stand for their own digests, so "the digest of what was read" costs nothing to compute.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from quoreduce.tracker import (
    Accused,
    Agreed,
    Cancel,
    Check,
    Discard,
    Event,
    JobDone,
    JobFailed,
    Launch,
    Output,
    Part,
    Plan,
    Published,
    Retest,
    Source,
    Task,
)

Contents = tuple[bytes, ...]


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


def read_by(c: Launch | Check) -> set[int]:
    """The attempts whose stored outputs a launch or a check reads."""
    return {source.attempt for copies in c.sources for source in copies} | (
        {c.stored} if isinstance(c, Check) else set()
    )


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
    flying: list[Launch | Check] = field(default_factory=list)  # launched and not answered, cancelled ones included
    cancelled: set[int] = field(default_factory=set)
    executed: set[int] = field(default_factory=set)  # their slots are free, their answers are to come
    launches: dict[int, Launch] = field(default_factory=dict)
    checks: dict[int, Check] = field(default_factory=dict)
    vouchers: dict[tuple[Task, bytes], set[str]] = field(default_factory=dict)  # domains that found an output right
    sound: dict[int, bool] = field(default_factory=dict)  # whether a check was right about what it has read
    contested: set[Task] = field(default_factory=set)  # a check was wrong about them, or found them wrong
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
        assert c.replica == self.executions[str(c.task)], "replicas are numbered"
        assert c.replica < self.executions_max(c.task), f"{c.task} was executed beyond every bound (R3)"
        self._begin(c)
        agreed = self.agreed.get(c.task)
        if self.plan.confirm and not self.plan.upfront and agreed is not None and c.task.kind == "reduce":
            assert agreed.attempt not in self.published, f"{c.task} is published: nothing that is lost now matters (R8)"
        before = self.recovered.get(c.task)
        intact = before in self.blocks and not self.blocks[before].spoilt and before not in self.told_lost
        assert not intact, f"{c.task} was agreed on in an earlier life, and its copy is there"
        self.executions[c.task.kind] += 1
        self.executions[str(c.task)] += 1
        self.launches[c.attempt] = c

    def _check(self, c: Check) -> None:
        """A check is of what is stored, in a domain that has neither executed it nor checks it (R13)."""
        assert c.task.kind in self.plan.checked
        assert c.task not in self.contested, f"{c.task} is checked, though something disagreed"
        alone = (
            c.task.kind == "reduce" or len(self.said[c.task]) == 1
        )  # what a reduce said may have been withdrawn (R5)
        assert alone, f"{c.task} is checked, though replicas disagree"
        assert c.task not in self.agreed, f"{c.task} is checked, though it is agreed on"
        assert self.launches[c.stored].task == c.task
        assert c.replica == self.executions[f"check of {c.task}"], "checks are numbered"
        assert c.replica < self.plan.bound + self.plan.need, f"{c.task} was checked beyond its bound (R3)"
        self._readable(c, c.stored)
        others = [one for one in self.flying if isinstance(one, Check) and one.task == c.task]
        busy = {self.domain_of[one.worker] for one in others if one.attempt not in self.cancelled}
        backers = self.backers(c.task, self.outputs[c.stored]) if c.task.kind == "map" else set()  # withdrawn, perhaps
        executed = {self.domain_of[self.launches[c.stored].worker]}
        assert self.domain_of[c.worker] not in busy | backers | executed, (
            f"{c.task} is checked where it was executed, or twice"
        )
        self._begin(c)
        self.executions[f"check of {c.task}"] += 1
        self.executions["check"] += 1
        self.checks[c.attempt] = c

    def backers(self, task: Task, output: Output) -> set[str]:
        """The domains that stand behind an output: counted from replies, not from what the tracker says (R1, R13)."""
        checked = set() if task in self.contested else self.vouchers.get((task, output.digest), set())
        return self.voters.get((task, output.digest), set()) | checked

    def _readable(self, c: Launch | Check, id_: int) -> None:
        assert id_ in self.blocks, f"{c.task} reads attempt {id_}, which stored nothing"
        assert id_ not in self.told_lost, f"{c.task} reads attempt {id_}, which is gone"
        assert id_ not in self.discarded, f"{c.task} reads attempt {id_}, which is discarded"

    def _begin(self, c: Launch | Check) -> None:
        """Something is launched where there is a slot, on what can be read."""
        assert c.attempt not in self.launches.keys() | self.checks.keys(), "attempts are unique"
        assert c.worker in self.slots, f"launched on {c.worker}, which is not alive"
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
                assert source.map == m
                assert self.launches[source.attempt].task == task
                self._readable(c, source.attempt)
        if c.task.kind != "sample" and self.plan.sample:
            assert Task("sample", 0) in self.agreed, "nothing starts before the sample is agreed on"
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
                assert c.attempt not in read_by(launch), f"discarded {c.attempt}, which {launch.attempt} reads"
        self.discarded.add(c.attempt)

    def _agree(self, c: Agreed) -> None:
        before, self.agreed[c.task] = self.agreed.get(c.task), c
        assert before is None or before.output == c.output, f"{c.task} has two winners"
        # The count is taken here, from the replies themselves, and not from what the tracker says (R1).
        backers = self.backers(c.task, c.output)
        assert len(backers) >= self.plan.need, f"{c.task} won with {backers}"
        assert set(c.domains) <= self.voters[c.task, c.output.digest]
        assert set(c.checkers) <= backers - set(c.domains)
        assert len(c.domains) + len(c.checkers) >= self.plan.need, "those who agreed are named"
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
        launch = self.launches[c.attempt] if c.attempt in self.launches else self.checks[c.attempt]
        assert (launch.task, self.domain_of[launch.worker]) == (c.task, c.domain)
        assert c.attempt not in self.accused, "a vote is lost once"
        self.accused.add(c.attempt)

    def _retest(self, c: Retest) -> None:
        assert c.worker in self.slots, f"{c.worker} is to be tested, and is not alive"
        assert self.domain_of[c.worker] == c.domain
        assert all(c.domain != test.domain for test in self.testing.values()), "a domain is tested once at a time"
        contradicted = self.contested or any(len(said) > 1 for said in self.said.values())
        assert contradicted, "tested, and nobody contradicted anybody (R2)"
        assert c.test not in self.testing, "tests are numbered"
        self.testing[c.test] = c

    def _end(self, c: JobDone | JobFailed) -> None:
        self.result = c
        assert isinstance(c, JobFailed) or not self.testing, "a job is done when its tests are"
        for id_ in self.accused & self.checks.keys():
            assert not self.sound[id_], f"check {id_} was accused of being right (R11)"
        for id_ in self.accused & self.launches.keys():
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
            Check: CheckedDriver._check,
            Cancel: CheckedDriver._cancel,
            Discard: CheckedDriver._discard,
            Agreed: CheckedDriver._agree,
            Accused: CheckedDriver._accuse,
            Retest: CheckedDriver._retest,
            JobDone: CheckedDriver._end,
            JobFailed: CheckedDriver._end,
        },
    )
