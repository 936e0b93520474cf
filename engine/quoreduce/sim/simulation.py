"""A driver in virtual time, around the unchanged JobTracker; its workers are in workers.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from quoreduce.errors import UsageError
from quoreduce.sim.calibration import Calibration
from quoreduce.sim.clock import VirtualClock
from quoreduce.sim.cluster import Shape, build
from quoreduce.sim.costs import Costs
from quoreduce.sim.faults import Faults, SimulatedFault
from quoreduce.sim.load import Load
from quoreduce.sim.outcome import Outcome, added
from quoreduce.sim.referee import Referee
from quoreduce.sim.transcript import Transcript, event_line
from quoreduce.sim.workers import SimulatedExecution, SimulatedWorker, Workers
from quoreduce.tracker import (
    Accused,
    Agreed,
    BlockLost,
    Cancel,
    Command,
    Discard,
    Event,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Ledger,
    Pace,
    Plan,
    Published,
    Retest,
    Retested,
    Slow,
    Stalled,
    Task,
)

LOOK_S, LOOK_SHARE = 1.0, 0.01  # a look every second, and in long jobs every hundredth of the time so far
TASKS_MAX = 10_000_000
TEST_S = 0.03  # a known-answer test


class Tracker(Protocol):
    """The simulated tracker: a JobTracker, or one with a bug."""

    ledger: Ledger

    @property
    def done(self) -> bool:
        """Whether the job is over."""

    def start(self) -> list[Command]:
        """Begin."""

    def handle(self, event: Event) -> list[Command]:
        """Take an event."""


class Simulation:
    """One job. Make it, then :meth:`run` it, once.

    Args:
        shape, load, calibration: the cluster, the job, how long things take.
        plan: the tracker's plan; its maps and reduces are the load's, and it confirms.
        faults: what goes wrong.
        seed: of all that is random.
        make: the tracker.
        spares: overtake the slow, as the driver does.
        lines: also keep the transcript as text, in `lines`.
    """

    def __init__(
        self, shape: Shape, load: Load, plan: Plan, calibration: Calibration, faults: Sequence[SimulatedFault] = (),
        seed: int = 0, make: Callable[[Plan], Tracker] = JobTracker, spares: bool = True, lines: bool = False,
    ) -> None:  # fmt: skip
        sampled = load.cost.sample_s > 0
        if (plan.maps, plan.reduces, plan.sample) != (load.maps, load.reduces, sampled) or not plan.confirm:
            raise UsageError("the plan is not the job's, or does not confirm")
        if plan.checked:
            raise UsageError("the simulator has no checks of outputs (R13)")
        self.shape, self.load, self.plan, self.calibration, self.seed = shape, load, plan, calibration, seed
        self.faults = Faults(faults, shape, plan, seed)
        self.referee = Referee(plan)
        self._faultless = not faults
        self._pace = Pace() if spares else None
        self._watched = False
        self._overdue: Task | None = None  # whose execution the tracker is being told to be overdue
        f, said = plan.need - 1, [str(fault) for fault in faults]
        self._outcome = Outcome(True, load.name, shape.nodes, load.maps, load.reduces, f, plan.mode, seed, said)
        self._tracker = make(plan)
        self._tries: dict[str, int] = {}
        self._transcript = Transcript(lines)
        self._costs = Costs(shape, load, plan, calibration)
        self._driver_free = calibration.startup_s
        self._clock = VirtualClock(calibration.startup_s)
        self._workers = Workers(
            self, self._costs, seed, self._clock, self.faults, self.referee, self._outcome, self._transcript
        )

    @property
    def lines(self) -> list[str] | None:
        """The transcript as text, if it is kept."""
        return self._transcript.lines

    def run(self) -> Outcome:
        """Simulate the job to its end."""
        nodes = build(self.shape, self.faults.slow)
        for node in nodes:
            for s in range(self.shape.slots):
                name = f"n{node.number}.{s}"
                self._workers.join(SimulatedWorker(name, node, name if self.shape.domain == "core" else node.domain))
        expected_s = self._costs.expected_s
        for n, share in sorted(self.faults.lost_nodes.items()):
            self._clock.at(self._clock.now_s + share * expected_s, self._workers.lose_node, nodes[n])
        self._obey("start", self._tracker.start())
        while not self._tracker.done:
            if self._clock:
                self._clock.step()
            elif not self.send(Stalled()):
                self.referee.note("the job hangs")
                self._outcome.end = "hangs"
                break
        return self._report()

    def send(self, event: Event) -> bool:
        """Give the tracker an event and do what it says. False if it says nothing."""
        self._outcome.events += 1
        commands = self._tracker.handle(event)
        self._obey(event_line(event), commands)
        return bool(commands)

    def _obey(self, event: str, commands: list[Command]) -> None:
        record = self._transcript.record
        record(f"{self._clock.now_s:.6f} {event}")
        for command in commands:
            if isinstance(command, Launch):
                self._launch(command)
            elif isinstance(command, Agreed):
                self._agree(command)
            elif isinstance(command, Discard):
                record(f"  discard {command.attempt}")
                self._workers.stored.runs.pop(command.attempt, None)
            elif isinstance(command, Cancel):
                record(f"  cancel {command.attempt}")
            elif isinstance(command, Accused):
                record(f"  accused {command.domain} for {command.attempt}")
            elif isinstance(command, Retest):
                record(f"  test {command.test} of {command.domain} on {command.worker}")
                self._clock.at(self._clock.now_s + TEST_S + 2 * self.shape.latency_s, self._retest, command)
            elif isinstance(command, JobDone | JobFailed):
                self._end(command)

    def _launch(self, c: Launch) -> None:
        self._transcript.launched(c)
        text = str(c.task)
        self._tries[text] = self._tries.get(text, 0) + 1
        self.referee.launched(c, self._tries[text], spare=c.task == self._overdue)
        if self._pace is not None and not self._watched:
            self._watched = True
            self._clock.at(self._clock.now_s + LOOK_S, self._look, None)
        self._driver_free = max(self._driver_free, self._clock.now_s) + self._costs.driver_s[c.task.kind]
        self._workers.request(c, self._driver_free)

    def _look(self, _: None) -> None:
        """Now and then, while there are idle workers: which executions are overdue? (R9)"""
        assert self._pace is not None
        workers, now_s = self._workers, self._clock.now_s
        if len(workers.flying) < len(workers.live):
            late = [
                run for run in workers.flying.values()
                if self._pace.overdue(run.launch.task.kind, run.launch.worker, 1, now_s - run.started_s)
            ]  # fmt: skip
            for run in late:
                self._overdue = run.launch.task
                self.send(Slow(run.launch.attempt))
            self._overdue = None
        self._watched = bool(self._clock)
        if self._watched:
            self._clock.at(now_s + max(LOOK_S, LOOK_SHARE * now_s), self._look, None)

    def finished(self, run: SimulatedExecution) -> None:
        """Note how long an execution took."""
        if self._pace is not None:
            self._pace.finished(run.launch.task.kind, run.launch.worker, 1, self._clock.now_s - run.started_s)

    def _retest(self, c: Retest) -> None:
        """The test's answers are there, if the worker is. They take no slot and are never lost."""
        if c.worker in self._workers.live:
            self.send(Retested(c.test, self.faults.passes(c.test, self._workers.seats[c.worker].node.number)))

    def _agree(self, c: Agreed) -> None:
        self._transcript.record(f"  agreed {c.task} attempt {c.attempt} by {','.join(c.domains)}")
        self.referee.agreed(c)
        stored = c.task.kind == "map" or c.attempt in self._workers.stored.runs
        self._outcome.wrong_outputs += c.output.digest != b"true" and stored
        if c.task.kind == "reduce":
            self._driver_free = max(self._driver_free, self._clock.now_s) + self.calibration.driver_s
            if self.plan.mode == "original":
                self._clock.at(self._driver_free, self.publish, c.attempt)
            else:
                self._clock.at(self._driver_free + self.shape.latency_s, self.check, c)

    def check(self, agreed: Agreed) -> None:
        """Have a worker of another domain read a part again and recompute its digest (R8): as the driver chooses it."""
        workers = self._workers
        writer, seat, least = workers.seats[workers.stored.writers[agreed.attempt]], None, (True, 0, 0)
        for name, attempts in workers.live.items():
            other = workers.seats[name]
            todo = (other.domain == writer.domain, len(other.checks) + len(attempts), workers.checking[other.domain])
            if seat is None or todo < least:
                seat, least = other, todo
            if least == (False, 0, 0):
                break
        if seat is None:
            self._clock.at(self._clock.now_s, self._unchecked, agreed.attempt)
        else:
            workers.begin_check(seat, agreed)

    def _unchecked(self, attempt: int) -> None:
        """No worker is left that could check a part."""
        self.referee.missing(attempt)
        self.send(BlockLost(attempt))

    def publish(self, attempt: int) -> None:
        """Publish a part, if it is still there."""
        if self._workers.stored.readable(attempt):
            self.referee.published(attempt)
            self.send(Published(attempt))
        else:
            self._unchecked(attempt)

    def _end(self, c: JobDone | JobFailed) -> None:
        if isinstance(c, JobDone):
            tasks = self.load.maps + self.load.reduces + self.plan.sample
            planned = self.plan.first * tasks if self._faultless else None
            self.referee.done(planned, self._tracker.ledger.executions)
            self._outcome.end = "done"
        else:
            self._outcome.end, self._outcome.message = c.reason, c.message
        self._transcript.record(f"  {self._outcome.end}")

    def _report(self) -> Outcome:
        out, ledger = self._outcome, self._tracker.ledger
        out.makespan_s = round(self._clock.now_s, 6)
        out.cpu_s = round(out.cpu_s, 6)
        out.executions = {kind: n for kind, n in ledger.launched.items() if kind != "sample" or n}
        out.reexecutions, out.spares, out.lost_votes = ledger.re_executions, ledger.speculative, ledger.lost_votes
        out.quarantined, out.suspects, out.tests = list(ledger.quarantined), ledger.suspects, ledger.tests
        out.bytes_stored, out.bytes_shipped = ledger.stored_nbytes, ledger.shipped_nbytes
        out.injected = {kind: n for kind, n in sorted(self.faults.injected.items()) if n}
        out.beyond_model, out.violations = self.faults.beyond, self.referee.violations
        if out.wrong_outputs and not out.beyond_model:
            self.referee.note(f"{out.wrong_outputs} agreed outputs are wrong")
        out.transcript = self._transcript.hexdigest()
        return out


def simulate(
    shape: Shape, load: Load, calibration: Calibration, f: int = 1, mode: str = "bft",
    faults: Sequence[SimulatedFault] = (), seed: int = 0, spares: bool = True, **plan: Any,
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
    return added(outcomes)
