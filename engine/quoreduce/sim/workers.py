"""The untrusted side: workers that execute in virtual time, and what they have stored.

An execution goes through stages: begin (the request is there), read or fetch, compute, store, answer. Each is a call of
the clock. Contents are not made: an output is right, or wrong in a way that has a name, and digests stand for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from quoreduce.sim.clock import VirtualClock
from quoreduce.sim.cluster import SimulatedNode
from quoreduce.sim.costs import Costs
from quoreduce.sim.faults import Faults, draw
from quoreduce.sim.outcome import Outcome
from quoreduce.sim.referee import Referee
from quoreduce.sim.transcript import Transcript
from quoreduce.tracker import Agreed, Event, Finished, Kind, Launch, Output, Part, Refused, WorkerJoined, WorkerLost

SLOW_ENOUGH = 5.0  # nodes slower than this may miss a deadline
RECORDS = 1
Wrong = dict[int, bytes]  # partition -> what is wrong with it


class DriverPort(Protocol):
    """The trusted side, as workers see it."""

    def send(self, event: Event) -> bool:
        """Give the tracker an event."""

    def finished(self, run: SimulatedExecution) -> None:
        """The answer of an execution that was still awaited has arrived."""

    def check(self, agreed: Agreed) -> None:
        """Have a part checked, as the worker that was to check it is gone."""

    def publish(self, attempt: int) -> None:
        """Publish a part that was checked."""


@dataclass(slots=True, eq=False)
class SimulatedWorker:
    """A worker, alive if it is in :attr:`Workers.live`. It serves its requests in order: an execution, then
    checks.

    ``running``: an execution was sent to it and has not ended. ``free_s``: until when it checks. ``checks``: parts that
    it is to check, by attempt; ``waiting``: those of them that wait for an execution to end.
    """

    name: str
    node: SimulatedNode
    domain: str
    running: bool = False
    free_s: float = 0.0
    checks: dict[int, Agreed] = field(default_factory=dict)
    waiting: list[Agreed] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class SimulatedExecution:
    """An execution. ``wrong``: the wrong partitions of its output. ``started_s``: when it was launched."""

    launch: Launch
    seat: SimulatedWorker
    started_s: float
    wrong: Wrong = field(default_factory=dict)


class StoredOutputs:
    """Outputs that workers have stored, by attempt, and which of them are wrong, rotten or gone."""

    def __init__(self) -> None:
        self.runs: dict[int, SimulatedExecution] = {}
        self.writers: dict[int, str] = {}  # attempt -> worker, also of outputs that were discarded
        self._unreadable: set[int] = set()
        self._trouble: dict[int, set[int]] = {}  # map -> attempts whose stored output is wrong, rotten or gone

    def store(self, run: SimulatedExecution) -> None:
        """Keep the output of an execution."""
        c = run.launch
        self.runs[c.attempt] = run
        self.writers[c.attempt] = c.worker
        if run.wrong and c.task.kind == "map":
            self._trouble.setdefault(c.task.index, set()).add(c.attempt)

    def spoil(self, run: SimulatedExecution) -> None:
        """Make a stored output unreadable."""
        self._unreadable.add(run.launch.attempt)
        if run.launch.task.kind == "map":
            self._trouble.setdefault(run.launch.task.index, set()).add(run.launch.attempt)

    def readable(self, attempt: int) -> bool:
        """Whether an output is stored and can be read."""
        return attempt in self.runs and attempt not in self._unreadable

    def read(self, c: Launch) -> tuple[list[int], list[bytes]]:
        """Read what a reduce is to read: the attempts that it refuses, and what is wrong with those that it uses (R6).

        Each partition is checked against its digest: the first good copy is used.
        """
        bad: list[int] = []
        wrong: list[bytes] = []
        for m in sorted(self._trouble):
            copies = [source.attempt for source in c.sources[m]]
            usable = next((a for a in copies if self.readable(a)), None)
            if usable is None:
                bad += copies
            elif c.task.index in self.runs[usable].wrong:
                wrong.append(b"%d.%s" % (m, self.runs[usable].wrong[c.task.index]))
        return bad, wrong


class Workers:
    """All workers of a simulated cluster.

    Attributes:
        seats: also of workers that are gone.
        live: live worker -> its attempts.
        flying: executions that were launched, and not answered or lost.
        stored: their outputs.
        checking: checks under way in a domain.
    """

    def __init__(
        self, driver: DriverPort, costs: Costs, seed: int, clock: VirtualClock, faults: Faults, referee: Referee,
        outcome: Outcome, transcript: Transcript,
    ) -> None:  # fmt: skip
        self._driver, self._costs, self._seed, self._clock, self._faults = driver, costs, seed, clock, faults
        self._shape, self._load, self._calibration = costs.shape, costs.load, costs.calibration
        self._referee, self._outcome, self._transcript = referee, outcome, transcript
        self.seats: dict[str, SimulatedWorker] = {}
        self.live: dict[str, dict[int, None]] = {}
        self.flying: dict[int, SimulatedExecution] = {}
        self.stored = StoredOutputs()
        self.checking: Counter[str] = Counter()
        self._messages = 0
        part = Part(b"true", RECORDS, round(costs.load.mapped_bytes / costs.load.reduces))
        self._true: dict[Kind, Output] = {
            kind: Output(b"true", (Part(b"true", RECORDS, round(n)),)) for kind, n in costs.made.items()
        }
        self._true["map"] = Output(b"true", (part,) * costs.load.reduces)

    def join(self, seat: SimulatedWorker) -> None:
        """Start a worker, if its node is there."""
        if seat.node.alive:
            self.seats[seat.name] = seat
            self.live[seat.name] = {}
            self._referee.joined(seat.name, seat.domain)
            self._driver.send(WorkerJoined(seat.name, seat.domain, 1))

    def kill(self, worker: str, blocks_lost: bool = False) -> None:
        """End a worker; another one takes its place if its node is there."""
        for attempt in self.live.pop(worker, {}):
            self.flying.pop(attempt, None)
        self._referee.lost(worker)
        self._driver.send(WorkerLost(worker, blocks_lost))
        seat = self.seats[worker]
        checks, seat.checks = seat.checks, {}
        self.checking[seat.domain] -= len(checks)
        for c in checks.values():
            self._driver.check(c)
        self._clock.at(
            self._clock.now_s + self._shape.restart_s, self.join, SimulatedWorker(f"{worker}'", seat.node, seat.domain)
        )

    def lose_node(self, node: SimulatedNode) -> None:
        """End a node, its workers and all that any worker ever stored there; the driver hears of it at once."""
        self._faults.injected["node"] += 1
        node.alive = False
        for attempt, run in self.stored.runs.items():
            if run.seat.node is node:
                self.stored.spoil(run)
                self._referee.missing(attempt)
        for worker in [seat.name for seat in self.seats.values() if seat.node is node]:
            if worker in self.live:
                self.kill(worker, blocks_lost=True)
            else:
                self._driver.send(WorkerLost(worker, True))

    def request(self, c: Launch, sent_s: float) -> None:
        """Send a launch to its worker."""
        seat = self.seats[c.worker]
        seat.running = True
        run = self.flying[c.attempt] = SimulatedExecution(c, seat, self._clock.now_s)
        self.live.setdefault(c.worker, {})[c.attempt] = None
        self._message(sent_s, self._begin, run)

    def _message(self, time_s: float, act: Callable[[SimulatedExecution], None], run: SimulatedExecution) -> None:
        """Send a request or an answer; one that is lost is missed at the deadline."""
        self._messages += 1
        number, faults, at = self._messages, self._faults, self._clock.at
        if not faults.messages:
            at(time_s + self._shape.latency_s, act, run)
            return
        deadline_s = self._costs.deadline_s(run.launch.task.kind)
        if faults.chance("lose", number):
            at(time_s + deadline_s, self._give_up, run)
            return
        late_s = faults.late_s(number)
        if late_s > deadline_s:
            at(time_s + deadline_s, self._give_up, run)
        arrival = time_s + self._shape.latency_s + late_s
        at(arrival, act, run)
        if act == self._arrive and faults.chance("duplicate", number):
            at(arrival + self._shape.latency_s, act, run)

    def _give_up(self, run: SimulatedExecution) -> None:
        """Past its deadline: kill the worker (R9)."""
        if run.launch.attempt in self.flying:
            self.kill(run.launch.worker)

    def _refuse(self, run: SimulatedExecution) -> None:
        c = run.launch
        if self.flying.pop(c.attempt, None) is not None:
            self.live[c.worker].pop(c.attempt, None)
            self._referee.answered(c, None)
            self._driver.send(Refused(c.attempt, tuple(run.wrong)))

    def _arrive(self, run: SimulatedExecution) -> None:
        """An answer is there; the tracker hears of one that comes twice, or too late, all the same (R10)."""
        c = run.launch
        output = self._output(run)
        if self.flying.pop(c.attempt, None) is not None:
            self.live[c.worker].pop(c.attempt, None)
            self._referee.answered(c, output.digest)
            self._driver.finished(run)
        self._driver.send(Finished(c.attempt, output))

    def _output(self, run: SimulatedExecution) -> Output:
        true = self._true[run.launch.task.kind]
        if not run.wrong:
            return true
        (part, name), size = next(iter(run.wrong.items())), true.parts[0].nbytes
        parts = list(true.parts)
        parts[part] = Part(name, RECORDS, size)
        return Output(name, tuple(parts))

    def _begin(self, run: SimulatedExecution) -> None:
        """The request is there: read the split, or fetch the partitions."""
        c, node, now_s, at = run.launch, run.seat.node, self._clock.now_s, self._clock.at
        if c.attempt not in self.flying:
            return
        if run.seat.free_s > now_s:  # it checks a part
            at(run.seat.free_s, self._begin, run)
            return
        if self._faults.slow.get(node.number, 1.0) > SLOW_ENOUGH:
            at(now_s + self._costs.deadline_s(c.task.kind), self._give_up, run)
        if c.task.kind == "sample":
            self._compute(run)
        elif c.task.kind == "map":
            nbytes = self._load.split_bytes
            local = draw(self._seed, 3, c.task.index, c.replica) < self._shape.copies / self._shape.nodes
            at((node.disk if local else node.net).serve(now_s, nbytes), self._compute, run)
        else:
            nbytes = self._costs.reduce_in * self._transcript.copies(c) / max(1, self._load.maps)
            at(node.net.serve(now_s, nbytes), self._fetched, run)

    def _fetched(self, run: SimulatedExecution) -> None:
        """The partitions are there: use them, or refuse those that no good copy is left of."""
        if run.launch.attempt not in self.flying:
            return
        bad, wrong = self.stored.read(run.launch)
        if bad:
            self._free(run.seat, self._clock.now_s)
            self._message(self._clock.now_s, self._refuse, run)
            run.wrong = dict.fromkeys(bad, b"")
        else:
            run.wrong = {0: b"from " + b",".join(wrong)} if wrong else {}
            self._compute(run)

    def _compute(self, run: SimulatedExecution) -> None:
        c = run.launch
        if c.attempt not in self.flying:
            return
        stream = {"map": 4, "reduce": 5, "sample": 6}[c.task.kind]
        noise = 1 + self._shape.spread * (2 * draw(self._seed, stream, c.task.index, c.replica) - 1)
        took_s = self._costs.work_s[c.task.kind, c.store] * noise / run.seat.node.speed
        if self._faults.crashes(c):
            self._clock.at(self._clock.now_s + took_s / 2, self._give_up, run)
            return
        self._outcome.cpu_s += took_s
        wrong = self._faults.wrong(c, run.seat.node.number)
        if wrong:
            part = c.task.index % self._load.reduces if c.task.kind == "map" else 0
            run.wrong = {part: run.wrong.get(part, b"") + b"!" + wrong}
        self._clock.at(self._clock.now_s + took_s, self._computed, run)

    def _computed(self, run: SimulatedExecution) -> None:
        """Store the output, if it is to be stored, and answer."""
        c = run.launch
        if c.attempt not in self.flying:
            return
        stored_s = self._clock.now_s
        if c.store:
            stored_s = run.seat.node.disk.serve(stored_s, self._costs.made[c.task.kind])
            self.stored.store(run)
            if self._faults.rots(c):
                self.stored.spoil(run)
        self._free(run.seat, stored_s)
        self._message(stored_s, self._arrive, run)

    def _free(self, seat: SimulatedWorker, now_s: float) -> None:
        """An execution has ended; checks that came meanwhile are next."""
        seat.running = False
        for c in seat.waiting:
            self._start_check(seat, c, now_s)
        seat.waiting.clear()

    def begin_check(self, seat: SimulatedWorker, c: Agreed) -> None:
        """Have a worker read a part again, as soon as its execution has ended."""
        seat.checks[c.attempt] = c
        self.checking[seat.domain] += 1
        if seat.running:
            seat.waiting.append(c)
        else:
            self._start_check(seat, c, self._clock.now_s)

    def _start_check(self, seat: SimulatedWorker, c: Agreed, now_s: float) -> None:
        nbytes = self._costs.made["reduce"]
        cpu_s = (self._calibration.check_s + nbytes * self._calibration.digest_s_per_byte) / seat.node.speed
        self._outcome.cpu_s += cpu_s
        begin_s = max(seat.free_s, now_s)
        writer = self.seats[self.stored.writers[c.attempt]].node
        read_s = begin_s if seat.node is writer else seat.node.net.serve(begin_s, nbytes)
        seat.free_s = read_s + cpu_s
        self._clock.at(seat.free_s + self._shape.latency_s, self._checked, (seat, c.attempt))

    def _checked(self, what: tuple[SimulatedWorker, int]) -> None:
        seat, attempt = what
        if seat.checks.pop(attempt, None) is not None:
            self.checking[seat.domain] -= 1
            self._driver.publish(attempt)
