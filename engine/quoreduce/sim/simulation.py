"""What happens: a driver and its workers in virtual time, around the unchanged JobTracker.

An execution goes through stages: begin (the request is there), read or fetch, compute, store, answer. Each is an event of the
clock. Contents are not made: an output is right, or wrong in a way that has a name, and digests stand for that.
"""

from __future__ import annotations

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from quoreduce.errors import UsageError
from quoreduce.sim.calibration import Calibration, JobCost
from quoreduce.sim.cluster import Node, Shape, build
from quoreduce.sim.faults import Fault, Faults, draw
from quoreduce.sim.referee import Referee
from quoreduce.tracker import (
    Accused,
    Agreed,
    BlockLost,
    Cancel,
    Command,
    Discard,
    Event,
    Finished,
    JobDone,
    JobFailed,
    JobTracker,
    Kind,
    Launch,
    Ledger,
    Output,
    Pace,
    Part,
    Plan,
    Published,
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

DEADLINE_FACTOR, DEADLINE_LEAST_S = 20.0, 10.0
SLOW_ENOUGH = 5.0  # nodes slower than this may miss a deadline
LOOK_S, LOOK_SHARE = 1.0, 0.01  # a look every second, and in long jobs every hundredth of the time so far
RECORDS = 1
TASKS_MAX = 10_000_000
TEST_S = 0.03  # a known-answer test
_SUMS = (
    "makespan_s", "cpu_s", "reexecutions", "spares", "lost_votes", "tests", "wrong_outputs", "bytes_stored", "bytes_shipped",
    "events",
)  # fmt: skip
Wrong = dict[int, bytes]  # partition -> what is wrong with it


class Tracker(Protocol):
    """What is simulated: a JobTracker, or one with a bug."""

    ledger: Ledger
    done: bool

    def start(self) -> list[Command]:
        """Begin."""

    def handle(self, event: Event) -> list[Command]:
        """Take an event."""


@dataclass(frozen=True, slots=True)
class Load:
    """A job: its name, what it costs, how many tasks, and the size of a split in bytes."""

    name: str
    cost: JobCost
    maps: int
    reduces: int
    split_bytes: float = 64e6

    def __post_init__(self) -> None:
        if self.maps < 1 or self.reduces < 1 or self.split_bytes <= 0:
            raise UsageError("a simulated job has at least one map and one reduce, and splits are not empty")

    @property
    def mapped_bytes(self) -> float:
        """What a map makes."""
        return self.cost.mapped.made(self.split_bytes)

    @property
    def reduce_bytes(self) -> float:
        """What a reduce reads of one copy of each map's output."""
        return self.mapped_bytes * self.maps / self.reduces

    @property
    def out_bytes(self) -> float:
        """What a reduce makes."""
        return self.cost.out.made(self.split_bytes * self.maps) / self.reduces


@dataclass(slots=True)
class Outcome:
    """What came of a simulated job. Times are virtual seconds; ``simulated`` says so wherever this is printed.

    ``end``: ``done``, or the tracker's reason. ``wrong_outputs``: tasks whose agreed output is not the true one.
    ``beyond_model``: why that may be. ``violations``: what no tracker may do. ``transcript``: hash of all events and commands.
    """

    simulated: bool
    job: str
    nodes: int
    maps: int
    reduces: int
    f: int
    mode: str
    seed: int
    faults: list[str]
    end: str = ""
    message: str = ""
    makespan_s: float = 0.0
    cpu_s: float = 0.0
    executions: dict[str, int] = field(default_factory=dict)
    reexecutions: int = 0
    spares: int = 0
    injected: dict[str, int] = field(default_factory=dict)
    lost_votes: int = 0
    tests: int = 0
    suspects: dict[str, str] = field(default_factory=dict)
    quarantined: list[str] = field(default_factory=list)
    wrong_outputs: int = 0
    beyond_model: str = ""
    violations: list[str] = field(default_factory=list)
    bytes_stored: int = 0
    bytes_shipped: int = 0
    events: int = 0
    transcript: str = ""

    def as_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)


@dataclass(slots=True, eq=False)
class _Seat:
    """A worker, alive if the simulation has it in `_on`. It does what it was asked to in order: an execution, then checks.

    ``running``: an execution was sent to it and has not ended. ``free_s``: until when it checks. ``checks``: parts that it is to
    check, by attempt; ``waiting``: those of them that an execution is before.
    """

    name: str
    node: Node
    domain: str
    running: bool = False
    free_s: float = 0.0
    checks: dict[int, Agreed] = field(default_factory=dict)
    waiting: list[Agreed] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class _Run:
    """An execution. ``wrong``: what of its output is. ``started_s``: when it was launched."""

    launch: Launch
    seat: _Seat
    started_s: float
    wrong: Wrong = field(default_factory=dict)


def execution_cpu_s(load: Load, calibration: Calibration, kind: Kind, voted: bool, store: bool) -> float:
    """CPU seconds of one execution at speed 1, but for the spread."""
    cost = load.cost
    if kind == "sample":
        return cost.sample_s
    if kind == "map":
        parts_s = load.reduces * calibration.map_part_s
        return parts_s + cost.map.rate(voted, store).cpu_s(load.split_bytes, load.mapped_bytes)
    parts_s = load.maps * calibration.reduce_part_s
    return parts_s + cost.reduce.rate(voted, store).cpu_s(load.reduce_bytes, load.out_bytes)


class Simulation:
    """One job. Make it, then :meth:`run` it, once.

    Args:
        shape, load, calibration: the cluster, the job, how long things take.
        plan: what the tracker is told; its maps and reduces are the load's. It is to confirm.
        faults: what goes wrong. seed: of all that is random.
        make: the tracker. spares: overtake the slow, as the driver does. lines: also keep the transcript as text, in `lines`.
    """

    def __init__(
        self, shape: Shape, load: Load, plan: Plan, calibration: Calibration, faults: Sequence[Fault] = (), seed: int = 0,
        make: Callable[[Plan], Tracker] = JobTracker, spares: bool = True, lines: bool = False,
    ) -> None:  # fmt: skip
        if (plan.maps, plan.reduces, plan.sample) != (load.maps, load.reduces, load.cost.sample_s > 0) or not plan.confirm:
            raise UsageError("the plan is not the job's, or does not confirm")
        self.shape, self.load, self.plan, self.calibration, self.seed = shape, load, plan, calibration, seed
        self.faults = Faults(faults, shape, plan, seed)
        self.referee = Referee(plan)
        self.lines: list[str] | None = [] if lines else None
        self._faultless = not faults
        self._pace = Pace() if spares else None
        self._watched = False
        self._overdue: Task | None = None  # of which the tracker is being told that an execution is
        self._outcome = Outcome(
            True, load.name, shape.nodes, load.maps, load.reduces, plan.need - 1, plan.mode, seed, [str(f) for f in faults]
        )
        self._tracker = make(plan)
        self._nodes = build(shape, self.faults.slow)
        self._now = self._driver_free = 0.0
        self._heap: list[tuple[float, int, Callable[[Any], None], Any]] = []
        self._count = self._messages = 0
        self._flying: dict[int, _Run] = {}  # launched, and not answered or lost
        self._on: dict[str, dict[int, None]] = {}  # live worker -> its attempts
        self._seats: dict[str, _Seat] = {}  # also of workers that are gone
        self._blocks: dict[int, _Run] = {}
        self._checking: Counter[str] = Counter()  # checks under way in a domain
        self._writers: dict[int, str] = {}  # attempt that was stored -> worker
        self._trouble: dict[int, set[int]] = {}  # map -> attempts whose stored output is wrong, rotten or gone
        self._unreadable: set[int] = set()
        self._tries: dict[str, int] = {}
        self._hash = hashlib.blake2b(digest_size=16)
        self._last_sources: tuple[tuple[tuple[Source, ...], ...], str, int] = ((), "", 0)
        self._made: dict[Kind, float] = {"sample": 0.0, "map": load.mapped_bytes, "reduce": load.out_bytes}
        self._reduce_in = load.reduce_bytes
        part = Part(b"true", RECORDS, round(load.mapped_bytes / load.reduces))
        self._true = {kind: Output(b"true", (Part(b"true", RECORDS, round(n)),)) for kind, n in self._made.items()}
        self._true["map"] = Output(b"true", (part,) * load.reduces)
        self._work_s = {(kind, store): self._cpu_s(kind, store) for kind in self._made for store in (False, True)}
        self._driver_s = {
            "sample": calibration.driver_s,
            "map": calibration.driver_s + calibration.driver_part_s * load.reduces,
            "reduce": calibration.driver_s + calibration.driver_part_s * load.maps,
        }

    # ---- the clock ------------------------------------------------------------------------------------------------

    def run(self) -> Outcome:
        """Simulate the job to its end."""
        self._now = self._driver_free = self.calibration.startup_s
        for node in self._nodes:
            for s in range(self.shape.slots):
                name = f"n{node.number}.{s}"
                self._join(_Seat(name, node, name if self.shape.domain == "core" else node.domain))
        expected = self._expected_s()
        for n, share in sorted(self.faults.lost_nodes.items()):
            self._at(self._now + share * expected, self._lose_node, self._nodes[n])
        self._obey("start", self._tracker.start())
        while not self._tracker.done:
            if self._heap:
                self._now, _, act, what = heapq.heappop(self._heap)
                act(what)
            elif not self._send(Stalled()):
                self.referee.note("the job hangs")
                self._outcome.end = "hangs"
                break
        return self._report()

    def _at(self, time_s: float, act: Callable[[Any], None], what: Any) -> None:
        self._count += 1
        heapq.heappush(self._heap, (time_s, self._count, act, what))

    def _expected_s(self) -> float:
        """A guess of how long the job takes, which is only to place the loss of nodes within it."""
        slots, n, first = self.shape.nodes * self.shape.slots, self.load, self.plan.first
        return first * (n.maps * self._service_s("map") + n.reduces * self._service_s("reduce")) / slots

    def _service_s(self, kind: Kind) -> float:
        """How long an execution should take."""
        read = {"sample": 0.0, "map": self.load.split_bytes, "reduce": self._reduce_in}[kind]
        return self._work_s[kind, True] + read / min(self.shape.net_bps, self.shape.disk_bps)

    def _cpu_s(self, kind: Kind, store: bool) -> float:
        """CPU seconds of an execution."""
        return execution_cpu_s(self.load, self.calibration, kind, self.plan.mode != "original", store)

    # ---- the driver -----------------------------------------------------------------------------------------------

    def _send(self, event: Event) -> bool:
        """Give the tracker an event and do what it says. False if it says nothing."""
        self._outcome.events += 1
        commands = self._tracker.handle(event)
        self._obey(_event_line(event), commands)
        return bool(commands)

    def _obey(self, event: str, commands: list[Command]) -> None:
        self._record(f"{self._now:.6f} {event}")
        for command in commands:
            if isinstance(command, Launch):
                self._launch(command)
            elif isinstance(command, Agreed):
                self._agree(command)
            elif isinstance(command, Discard):
                self._record(f"  discard {command.attempt}")
                self._blocks.pop(command.attempt, None)
            elif isinstance(command, Cancel):
                self._record(f"  cancel {command.attempt}")
            elif isinstance(command, Accused):
                self._record(f"  accused {command.domain} for {command.attempt}")
            elif isinstance(command, Retest):
                self._record(f"  test {command.test} of {command.domain} on {command.worker}")
                self._at(self._now + TEST_S + 2 * self.shape.latency_s, self._retest, command)
            else:
                self._end(command)

    def _record(self, line: str) -> None:
        self._hash.update(line.encode())
        self._hash.update(b"\n")
        if self.lines is not None:
            self.lines.append(line)

    def _launch(self, c: Launch) -> None:
        copies = self._copies(c)
        text = str(c.task)
        self._record(f"  launch {text} attempt {c.attempt} on {c.worker}{' storing' * c.store}{copies}")
        self._tries[text] = self._tries.get(text, 0) + 1
        self.referee.launched(c, self._tries[text], spare=c.task == self._overdue)
        seat = self._seats[c.worker]
        seat.running = True
        run = self._flying[c.attempt] = _Run(c, seat, self._now)
        self._on.setdefault(c.worker, {})[c.attempt] = None
        if self._pace is not None and not self._watched:
            self._watched = True
            self._at(self._now + LOOK_S, self._look, None)
        self._driver_free = max(self._driver_free, self._now) + self._driver_s[c.task.kind]
        self._message(self._driver_free, self._begin, run)

    def _look(self, _: None) -> None:
        """Now and then, while there are idle workers: who is overdue? (R9)"""
        assert self._pace is not None
        if len(self._flying) < len(self._on):
            late = [
                run for run in self._flying.values()
                if self._pace.overdue(run.launch.task.kind, run.launch.worker, 1, self._now - run.started_s)
            ]  # fmt: skip
            for run in late:
                self._overdue = run.launch.task
                self._send(Slow(run.launch.attempt))
            self._overdue = None
        self._watched = bool(self._heap)
        if self._watched:
            self._at(self._now + max(LOOK_S, LOOK_SHARE * self._now), self._look, None)

    def _retest(self, c: Retest) -> None:
        """The test's answers are there, if the worker is. They take no slot and are never lost."""
        if c.worker in self._on:
            self._send(Retested(c.test, self.faults.passes(c.test, self._seats[c.worker].node.number)))

    def _copies(self, c: Launch) -> str:
        """What a reduce is to read, for the transcript: a hash of it, made once for as long as it stays the same."""
        if not c.sources:
            return ""
        if self._last_sources[0] is not c.sources:
            attempts = ",".join(str(source.attempt) for copies in c.sources for source in copies)
            text = f" reading {hashlib.blake2b(attempts.encode(), digest_size=4).hexdigest()}"
            self._last_sources = (c.sources, text, sum(map(len, c.sources)))
        return self._last_sources[1]

    def _message(self, time_s: float, act: Callable[[_Run], None], run: _Run) -> None:
        """Send a request or an answer; one that is lost is missed at the deadline."""
        self._messages += 1
        number = self._messages
        if not self.faults.messages:
            self._at(time_s + self.shape.latency_s, act, run)
            return
        if self.faults.chance("lose", number):
            self._at(time_s + self._deadline_s(run), self._give_up, run)
            return
        late_s = self.faults.late_s(number)
        if late_s > self._deadline_s(run):
            self._at(time_s + self._deadline_s(run), self._give_up, run)
        arrival = time_s + self.shape.latency_s + late_s
        self._at(arrival, act, run)
        if act == self._arrive and self.faults.chance("duplicate", number):
            self._at(arrival + self.shape.latency_s, act, run)

    def _deadline_s(self, run: _Run) -> float:
        if self.shape.deadline_s is not None:
            return self.shape.deadline_s
        return max(DEADLINE_LEAST_S, DEADLINE_FACTOR * self._service_s(run.launch.task.kind))

    def _give_up(self, run: _Run) -> None:
        """Past its deadline: kill the worker (R9)."""
        if run.launch.attempt in self._flying:
            self._kill(run.launch.worker)

    def _agree(self, c: Agreed) -> None:
        self._record(f"  agreed {c.task} attempt {c.attempt} by {','.join(c.domains)}")
        self.referee.agreed(c)
        self._outcome.wrong_outputs += c.output.digest != b"true" and (c.task.kind == "map" or c.attempt in self._blocks)
        if c.task.kind == "reduce":
            self._driver_free = max(self._driver_free, self._now) + self.calibration.driver_s
            if self.plan.mode == "original":
                self._at(self._driver_free, self._publish, c.attempt)
            else:
                self._at(self._driver_free + self.shape.latency_s, self._check, c)

    def _check(self, c: Agreed) -> None:
        """Have a worker of another domain read a part again and recompute its digest (R8): as the driver chooses it."""
        writer, seat, least = self._seats[self._writers[c.attempt]], None, (True, 0, 0)
        for name, attempts in self._on.items():
            other = self._seats[name]
            todo = (other.domain == writer.domain, len(other.checks) + len(attempts), self._checking[other.domain])
            if seat is None or todo < least:
                seat, least = other, todo
            if least == (False, 0, 0):
                break
        if seat is None:
            self._at(self._now, self._unchecked, c.attempt)
            return
        seat.checks[c.attempt] = c
        self._checking[seat.domain] += 1
        if seat.running:
            seat.waiting.append(c)
        else:
            self._start_check(seat, c, self._now, writer.node)

    def _start_check(self, seat: _Seat, c: Agreed, now_s: float, writer: Node) -> None:
        nbytes = self._made["reduce"]
        cpu_s = (self.calibration.check_s + nbytes * self.calibration.digest_s_per_byte) / seat.node.speed
        self._outcome.cpu_s += cpu_s
        begin_s = max(seat.free_s, now_s)
        read_s = begin_s if seat.node is writer else seat.node.net.serve(begin_s, nbytes)
        seat.free_s = read_s + cpu_s
        self._at(seat.free_s + self.shape.latency_s, self._checked, (seat, c.attempt))

    def _checked(self, what: tuple[_Seat, int]) -> None:
        seat, attempt = what
        if seat.checks.pop(attempt, None) is not None:
            self._checking[seat.domain] -= 1
            self._publish(attempt)

    def _unchecked(self, attempt: int) -> None:
        """There is nobody who could check a part."""
        self.referee.missing(attempt)
        self._send(BlockLost(attempt))

    def _publish(self, attempt: int) -> None:
        if attempt in self._unreadable or attempt not in self._blocks:
            self.referee.missing(attempt)
            self._send(BlockLost(attempt))
        else:
            self.referee.published(attempt)
            self._send(Published(attempt))

    def _end(self, c: JobDone | JobFailed) -> None:
        if isinstance(c, JobDone):
            planned = self.plan.first * (self.load.maps + self.load.reduces + self.plan.sample) if self._faultless else None
            self.referee.done(planned, self._tracker.ledger.executions)
            self._outcome.end = "done"
        else:
            self._outcome.end, self._outcome.message = c.reason, c.message
        self._record(f"  {self._outcome.end}")

    # ---- workers --------------------------------------------------------------------------------------------------

    def _join(self, seat: _Seat) -> None:
        if seat.node.alive:
            self._seats[seat.name] = seat
            self._on[seat.name] = {}
            self.referee.joined(seat.name, seat.domain)
            self._send(WorkerJoined(seat.name, seat.domain, 1))

    def _kill(self, worker: str, blocks_lost: bool = False) -> None:
        """End a worker; another one takes its place if its node is there."""
        for attempt in self._on.pop(worker, {}):
            self._flying.pop(attempt, None)
        self.referee.lost(worker)
        self._send(WorkerLost(worker, blocks_lost))
        seat = self._seats[worker]
        checks, seat.checks = seat.checks, {}
        self._checking[seat.domain] -= len(checks)
        for c in checks.values():
            self._check(c)
        self._at(self._now + self.shape.restart_s, self._join, _Seat(f"{worker}'", seat.node, seat.domain))

    def _lose_node(self, node: Node) -> None:
        """Its workers and all that any worker ever stored there are gone; the driver hears of it at once."""
        self.faults.injected["node"] += 1
        node.alive = False
        for attempt, run in self._blocks.items():
            if run.seat.node is node:
                self._spoil(run)
                self.referee.missing(attempt)
        for worker in [seat.name for seat in self._seats.values() if seat.node is node]:
            if worker in self._on:
                self._kill(worker, blocks_lost=True)
            else:
                self._send(WorkerLost(worker, True))

    def _spoil(self, run: _Run) -> None:
        self._unreadable.add(run.launch.attempt)
        if run.launch.task.kind == "map":
            self._trouble.setdefault(run.launch.task.index, set()).add(run.launch.attempt)

    def _begin(self, run: _Run) -> None:
        """The request is there: read the split, or fetch the partitions."""
        c, node = run.launch, run.seat.node
        if c.attempt not in self._flying:
            return
        if run.seat.free_s > self._now:  # it checks a part
            self._at(run.seat.free_s, self._begin, run)
            return
        if self.faults.slow.get(node.number, 1.0) > SLOW_ENOUGH:
            self._at(self._now + self._deadline_s(run), self._give_up, run)
        if c.task.kind == "sample":
            self._compute(run)
        elif c.task.kind == "map":
            nbytes = self.load.split_bytes
            local = draw(self.seed, 3, c.task.index, c.replica) < self.shape.copies / self.shape.nodes
            self._at((node.disk if local else node.net).serve(self._now, nbytes), self._compute, run)
        else:
            nbytes = self._reduce_in * self._last_or_count(c) / max(1, self.load.maps)
            self._at(node.net.serve(self._now, nbytes), self._fetched, run)

    def _last_or_count(self, c: Launch) -> int:
        return self._last_sources[2] if self._last_sources[0] is c.sources else sum(map(len, c.sources))

    def _fetched(self, run: _Run) -> None:
        """Each partition is checked against its digest: use the first good copy, or refuse (R6)."""
        c = run.launch
        if c.attempt not in self._flying:
            return
        bad: list[int] = []
        read: list[bytes] = []
        for m in sorted(self._trouble):
            copies = [source.attempt for source in c.sources[m]]
            usable = next((a for a in copies if a not in self._unreadable and a in self._blocks), None)
            if usable is None:
                bad += copies
            elif c.task.index in self._blocks[usable].wrong:
                read.append(b"%d.%s" % (m, self._blocks[usable].wrong[c.task.index]))
        if bad:
            self._free(run.seat, self._now)
            self._message(self._now, self._refuse, run)
            run.wrong = dict.fromkeys(bad, b"")
        else:
            run.wrong = {0: b"from " + b",".join(read)} if read else {}
            self._compute(run)

    def _refuse(self, run: _Run) -> None:
        c = run.launch
        if self._flying.pop(c.attempt, None) is not None:
            self._on[c.worker].pop(c.attempt, None)
            self.referee.answered(c, None)
            self._send(Refused(c.attempt, tuple(run.wrong)))

    def _compute(self, run: _Run) -> None:
        c = run.launch
        if c.attempt not in self._flying:
            return
        stream = {"map": 4, "reduce": 5, "sample": 6}[c.task.kind]
        noise = 1 + self.shape.spread * (2 * draw(self.seed, stream, c.task.index, c.replica) - 1)
        took_s = self._work_s[c.task.kind, c.store] * noise / run.seat.node.speed
        if self.faults.crashes(c):
            self._at(self._now + took_s / 2, self._crash, run)
            return
        self._outcome.cpu_s += took_s
        wrong = self.faults.wrong(c, run.seat.node.number)
        if wrong:
            part = c.task.index % self.load.reduces if c.task.kind == "map" else 0
            run.wrong = {part: run.wrong.get(part, b"") + b"!" + wrong}
        self._at(self._now + took_s, self._computed, run)

    def _crash(self, run: _Run) -> None:
        if run.launch.attempt in self._flying:
            self._kill(run.launch.worker)

    def _computed(self, run: _Run) -> None:
        """Store the output, if it is to be stored, and answer."""
        c = run.launch
        if c.attempt not in self._flying:
            return
        stored_s = self._now
        if c.store:
            stored_s = run.seat.node.disk.serve(self._now, self._made[c.task.kind])
            self._blocks[c.attempt] = run
            self._writers[c.attempt] = c.worker
            if run.wrong and c.task.kind == "map":
                self._trouble.setdefault(c.task.index, set()).add(c.attempt)
            if self.faults.rots(c):
                self._spoil(run)
        self._free(run.seat, stored_s)
        self._message(stored_s, self._arrive, run)

    def _free(self, seat: _Seat, now_s: float) -> None:
        """An execution has ended; checks that came meanwhile are next."""
        seat.running = False
        for c in seat.waiting:
            self._start_check(seat, c, now_s, self._seats[self._writers[c.attempt]].node)
        seat.waiting.clear()

    def _arrive(self, run: _Run) -> None:
        """An answer is there; the tracker hears of one that comes twice, or too late, all the same (R10)."""
        c = run.launch
        output = self._output(run)
        if self._flying.pop(c.attempt, None) is not None:
            self._on[c.worker].pop(c.attempt, None)
            self.referee.answered(c, output.digest)
            if self._pace is not None:
                self._pace.finished(c.task.kind, c.worker, 1, self._now - run.started_s)
        self._send(Finished(c.attempt, output))

    def _output(self, run: _Run) -> Output:
        true = self._true[run.launch.task.kind]
        if not run.wrong:
            return true
        (part, name), size = next(iter(run.wrong.items())), true.parts[0].nbytes
        parts = list(true.parts)
        parts[part] = Part(name, RECORDS, size)
        return Output(name, tuple(parts))

    # ---- the end --------------------------------------------------------------------------------------------------

    def _report(self) -> Outcome:
        out, ledger = self._outcome, self._tracker.ledger
        out.makespan_s = round(self._now, 6)
        out.cpu_s = round(out.cpu_s, 6)
        out.executions = {kind: n for kind, n in ledger.launched.items() if kind != "sample" or n}
        out.reexecutions, out.spares, out.lost_votes = ledger.re_executions, ledger.spares, ledger.lost_votes
        out.quarantined, out.suspects, out.tests = list(ledger.quarantined), ledger.suspects, ledger.tests
        out.bytes_stored, out.bytes_shipped = ledger.stored_nbytes, ledger.shipped_nbytes
        out.injected = {kind: n for kind, n in sorted(self.faults.injected.items()) if n}
        out.beyond_model, out.violations = self.faults.beyond, self.referee.violations
        if out.wrong_outputs and not out.beyond_model:
            self.referee.note(f"{out.wrong_outputs} agreed outputs are wrong")
        out.transcript = self._hash.hexdigest()
        return out


def _event_line(event: Event) -> str:
    if isinstance(event, Finished):
        return f"finished {event.attempt} {event.output.digest.decode()}"
    if isinstance(event, WorkerJoined):
        return f"joined {event.worker} in {event.domain}"
    if isinstance(event, WorkerLost):
        return f"lost {event.worker}{' and its blocks' * event.blocks_lost}"
    if isinstance(event, Refused):
        return f"refused {event.attempt}: {','.join(map(str, event.bad))}"
    if isinstance(event, BlockLost):
        return f"block lost {event.attempt}"
    if isinstance(event, Slow):
        return f"slow {event.attempt}"
    if isinstance(event, Retested):
        return f"test {event.test} {'passed' if event.passed else 'failed'}"
    return f"published {event.attempt}" if isinstance(event, Published) else "stalled"


def simulate(
    shape: Shape, load: Load, calibration: Calibration, f: int = 1, mode: str = "bft", faults: Sequence[Fault] = (),
    seed: int = 0, spares: bool = True, **plan: Any,
) -> Outcome:  # fmt: skip
    """Simulate a job of as many stages as its cost says, each on what the one before wrote, and add them up.

    Args:
        shape, load, calibration, faults, seed, spares: see :class:`Simulation`; stages have seeds of their own.
        f, mode, plan: what the tracker is told, see :class:`quoreduce.tracker.Plan`.

    Raises:
        UsageError: a stage would have over TASKS_MAX maps.
    """
    outcomes: list[Outcome] = []
    for stage in range(load.cost.stages):
        todo = Plan(load.maps, load.reduces, f, mode, sample=load.cost.sample_s > 0, confirm=True, **plan)  # type: ignore[arg-type]
        outcomes.append(Simulation(shape, load, todo, calibration, faults, seed + stage, spares=spares).run())
        if outcomes[-1].end != "done":
            break
        whole = load.out_bytes * load.reduces
        maps = max(1, -(-round(whole) // 64_000_000))
        if maps > TASKS_MAX:
            raise UsageError(f"stage {stage + 2} of {load.name} reads {whole:.1g} bytes: over {TASKS_MAX:,} tasks")
        load = Load(load.name, load.cost, maps, load.reduces, max(1.0, whole / maps))
    return _added(outcomes)


def _added(outcomes: Sequence[Outcome]) -> Outcome:
    first, last = outcomes[0], outcomes[-1]
    if len(outcomes) == 1:
        return first
    for other in outcomes[1:]:
        for name in _SUMS:
            setattr(first, name, getattr(first, name) + getattr(other, name))
        for counts, more in ((first.executions, other.executions), (first.injected, other.injected)):
            for kind, n in more.items():
                counts[kind] = counts.get(kind, 0) + n
        first.suspects |= other.suspects
        first.quarantined = list(dict.fromkeys(first.quarantined + other.quarantined))
        first.violations += other.violations
        first.transcript += other.transcript
    first.transcript = hashlib.blake2b(first.transcript.encode(), digest_size=16).hexdigest()
    first.end, first.message = last.end, last.message
    return first
