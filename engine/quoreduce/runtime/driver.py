"""The driver of one job: the tracker's commands become requests to workers, their replies become its events.

It decides nothing that the tracker could decide. What it adds is what the tracker may not know: clocks (deadlines), files (the
commit), faults to inject, and the figures of the result.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from quoreduce import errors
from quoreduce.data.commit import Output as OutputPlace
from quoreduce.data.inputs import Split
from quoreduce.job import Job, record_width
from quoreduce.runtime import wire
from quoreduce.runtime.checkers import checker
from quoreduce.runtime.faults import FaultPlan
from quoreduce.runtime.incidents import GARBAGE, Incident, Incidents, Kept
from quoreduce.runtime.options import Options, Result
from quoreduce.runtime.outcome import outcome
from quoreduce.runtime.port import Arrival, Executor, WorkerInfo
from quoreduce.runtime.retests import Retests
from quoreduce.runtime.stragglers import Watch, input_nbytes
from quoreduce.tracker import messages as m
from quoreduce.tracker.suspicion import Known, Standing
from quoreduce.tracker.tracker import JobTracker, Plan

if TYPE_CHECKING:
    from quoreduce.runtime.durable import Life
    from quoreduce.runtime.gate import Answer, Gate

DEADLINE_FIRST_S = 600.0
DEADLINE_LEAST_S = 10.0
DEADLINE_FACTOR = 20.0
DEADLINE_START_S = 60.0
PATIENCE_START_S = 20.0
ADMIT_S = 5.0
HOST_ERRORS_MAX = 3
RESTARTS_WITHOUT_WORK_MAX = 3
STORAGE_COPIES = 3
PUNCH_SHARE = 0.25
TICK_S = 0.2
DEATH_S = 2.0
# After the others no answer comes.
KINDS_ANSWERED = ("flip", "wrong", "lie", "swap", "lose", "late", "wire", "slow", "stuck", "bad")
_REASONS: dict[str, type[errors.QuoreduceError]] = {
    "no_quorum": errors.NoQuorum,
    "not_deterministic": errors.NotDeterministic,
    "job_error": errors.JobError,
    "too_few_domains": errors.TooFewDomains,
}


@dataclass(slots=True)
class Running:
    """An execution that is under way; it reads ``nbytes``. ``deadline`` in seconds of the monotonic clock."""

    launch: m.Launch
    deadline: float
    started: float
    fault: wire.Fault | None
    nbytes: int


@dataclass(slots=True)
class Checking:
    """A part's digest that is being recomputed by ``worker`` before the part is published."""

    agreed: m.Agreed
    worker: str
    deadline: float


@dataclass(slots=True)
class Progress:
    """What a progress bar shows; ``struck``: faults on demand that have happened, by kind."""

    tasks: int
    agreed: int = 0
    executions: int = 0
    votes: int = 0
    faults: int = 0
    struck: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class Driver:
    """Runs one job on the workers of a session."""

    job: Job
    options: Options
    splits: Sequence[Split]
    reducers: int
    output: OutputPlace
    executor: Executor
    workers: dict[str, WorkerInfo]
    setup: wire.Setup
    result: Result
    report: Callable[[Progress], None] = lambda progress: None
    gate: Gate | None = None
    life: Life | None = None
    known: Mapping[str, Known] = field(default_factory=dict)
    newcomers: set[str] = field(default_factory=set)  # workers that began during the job, in the place of dead ones
    tracker: JobTracker = field(init=False)
    faults: FaultPlan = field(init=False)
    retests: Retests = field(init=False)
    progress: Progress = field(init=False)
    _watch: Watch | None = field(init=False)
    _running: dict[int, Running] = field(default_factory=dict)
    _cancelled: dict[int, Running] = field(default_factory=dict)
    _kept: dict[int, Kept] = field(default_factory=dict)
    _events: list[m.Event] = field(default_factory=list)
    _replays: list[m.Event] = field(default_factory=list)
    _checks: dict[int, Checking] = field(default_factory=dict)
    _agreed: dict[m.Task, m.Agreed] = field(default_factory=dict)
    _slowest: dict[str, float] = field(default_factory=dict)
    _setup_pending: dict[str, float] = field(default_factory=dict)
    _unloadable: set[str] = field(default_factory=set)
    _idle_deaths: int = 0
    _host_errors: int = 0
    _detected: int = 0
    _side: bytes = b""
    _barred: set[str] = field(default_factory=set)
    _cleared: set[str] = field(default_factory=set)
    _incidents: Incidents = field(default_factory=Incidents)
    _done: bool = False

    def __post_init__(self) -> None:
        o = self.options
        self.tracker = JobTracker(
            Plan(
                maps=len(self.splits), reduces=self.reducers, f=o.f, mode=o.mode, sample=self.job.sample is not None,
                deferred=o.deferred, tentative=o.tentative, digest_outputs=o.digest_outputs,
                tight_storage=o.tight_storage, max_attempts=o.attempts_max, confirm=True,
                first_attempt=self.life.first_attempt if self.life else 0,
            ),
            self.known,
        )  # fmt: skip
        self.faults = FaultPlan(o.faults, o.fault_seed)
        self.faults.arm(len(self.splits), self.reducers, 0 if o.mode == "original" else o.f)
        self.retests = Retests(self.executor, self.faults)
        # Inline, one execution waits for the other, which does not make it slow.
        self._watch = Watch() if o.spares and self.result.on != "inline" else None
        self.progress = Progress(len(self.splits) + self.reducers + (self.job.sample is not None))

    # ---- the loop

    def run(self) -> None:
        """Run the job to its end: all parts are published to ``output``, which the caller then finishes; or raise."""
        for name in self.workers:
            self._begin(name)
        try:
            if self.gate is not None:
                self._admit_all(self.gate)
            for info in self.workers.values():
                if info.name not in self._barred and not (self.gate and info.name in self._setup_pending):
                    self.tracker.handle(m.WorkerJoined(info.name, info.domain, cpu=info.cpu))
            self._recover()
            self._obey(None, self.tracker.start())
            while not self._done:
                self._step()
        except (errors.TooFewDomains, errors.NoQuorum) as error:
            self._blame_evidence(error)
            self._blame_suspects(error)
            raise
        finally:
            self.result.suspects = self.retests.suspects(self.tracker)
        self._account()
        for running in self._cancelled.values():
            if self._was_late(running.launch.attempt):
                waited_s = time.monotonic() - running.started
                self._incidents.overtaken(self.workers[running.launch.worker], running.launch, waited_s)
        if self._incidents.found and self.options.diagnose:
            self._diagnose()

    def _step(self) -> None:
        for arrival in self.executor.wait(self._timeout()):
            self._arrive(arrival)
            self._drain()  # before the next arrival: a worker that is gone must not be in the tracker's reach
        for event in self._replays:
            self._late(event)
        self._replays.clear()
        self._overtake()
        self._drain()
        if self.life is not None:
            self.life.commit()
        waiting = self._flush_evidence()
        self._expire()
        idle = not (self._running or self._checks or self._cancelled or self.retests.waiting or waiting)
        if idle and not self._done:
            self._events.append(m.Stalled())
            self._drain()
        self.progress.executions = self.tracker.ledger.executions
        self.progress.votes = self.tracker.ledger.votes
        self.progress.faults = self._count_detected()
        self.report(self.progress)

    def _drain(self) -> None:
        """Hand events to the tracker, and do what it says."""
        while self._events and not self._done:
            event = self._events.pop(0)
            self._obey(event, self.tracker.handle(event))

    def _obey(self, event: m.Event | None, commands: Sequence[m.Command]) -> None:
        """Do what the tracker says about an event; of a durable job that is written down first."""
        if self.life is not None:
            self.life.record(event, commands, lambda attempt: kept.reply if (kept := self._kept.get(attempt)) else None)
        self._execute(commands)

    def _recover(self) -> None:
        """Take over what earlier lives of a durable job agreed on; no worker of this life holds any of it."""
        if self.life is None:
            return
        self._kept |= {kept.launch.attempt: kept for kept in self.life.executed()}
        for event in self.life.recovered():
            self.tracker.handle(event)
            self.result.recovered += 1

    def _overtake(self) -> None:
        """Say who is overdue, while there are idle workers (R9)."""
        busy = len(self._running) + len(self._cancelled)
        if self._watch is not None and busy < len(self.workers):
            late = self._watch.overdue([*self._running.values(), *self._cancelled.values()], time.monotonic())
            self._events += [m.Slow(attempt) for attempt in late]

    def _was_late(self, attempt: int) -> bool:
        return self._watch is not None and attempt in self._watch.late

    def left_behind(self) -> set[str]:
        """Workers that are still busy, after the job, with what was overdue."""
        return {r.launch.worker for group in (self._running, self._cancelled) for a, r in group.items() if self._was_late(a)}

    def _timeout(self) -> float:
        if self._replays:
            return 0.0
        now = time.monotonic()
        groups = (self._running, self._cancelled, self._checks)
        first = min((one.deadline for group in groups for one in group.values()), default=now + TICK_S)
        due_s = self.gate.next_due_s(now) if self.gate is not None else TICK_S
        return max(0.0, min(TICK_S, first - now, due_s))

    def _begin(self, worker: str) -> None:
        self._setup_pending[worker] = time.monotonic() + DEADLINE_START_S
        setup = self.setup
        if self.gate is not None:
            setup = structs.replace(setup, attested=self.gate.told(self.workers[worker].domain))
        self.executor.submit(worker, wire.encode(setup))

    # ---- replies

    def _arrive(self, arrival: Arrival) -> None:
        if arrival.raw is None:
            self._bury(arrival)
            return
        try:
            reply = wire.decode_reply(arrival.raw)
        except errors.HostError:
            self._kill(arrival.worker, GARBAGE, hung=False)
            return
        if reply.generation != self.setup.generation:
            return  # a late reply to a job that ended before its workers did
        if reply.status == "tested":
            self._tested(arrival.worker, reply)
        elif reply.attempt < 0 and self.gate is not None and arrival.worker not in self._setup_pending:
            self._evidence(self.gate, arrival.worker, reply)
        elif reply.attempt < 0:
            self._begun(arrival.worker, reply)
        elif (checking := self._checks.get(reply.attempt)) and checking.worker == arrival.worker:
            self._checked(checking, reply)
        else:
            self._result(arrival.worker, reply)

    def _begun(self, worker: str, reply: wire.Reply) -> None:
        """A worker has begun the job, so its deadlines run from now on; or it could not, which f+1 domains must say."""
        if worker not in self._setup_pending:
            return
        del self._setup_pending[worker]
        if reply.status != "ready":
            self._unloadable.add(self.workers[worker].domain)
            if len(self._unloadable) >= self.options.replicas_needed:
                kind = errors.HostError if reply.status == "host" else errors.JobError
                raise kind(f"job {self.job.name} cannot be loaded by workers: {reply.error}")
            self._kill(worker, f"it could not begin, so it was killed: {reply.error}", hung=False)
            return
        if self.gate is not None:
            self._admit(self.gate, self.workers[worker], reply)
        self._restart_clocks(worker)

    def _tested(self, worker: str, reply: wire.Reply) -> None:
        """A known-answer test is over, if one was under way there (R10)."""
        events = self.retests.ended(worker, reply)
        if events:
            self._events += events
            self.result.cpu_s += reply.cpu_s
            self._restart_clocks(worker)

    def _restart_clocks(self, worker: str) -> None:
        """What was sent to a worker begins only now: it was busy with something that is no task."""
        now = time.monotonic()
        for running in self._running.values():
            if running.launch.worker == worker:
                running.started, running.deadline = now, now + self._deadline(running.launch)

    def _result(self, worker: str, reply: wire.Reply) -> None:
        known = self._running.get(reply.attempt) or self._cancelled.get(reply.attempt)
        if known is None or known.launch.worker != worker:
            return  # late, or an answer for somebody else (R10)
        self.result.cpu_s += reply.cpu_s
        if reply.status == "ok":
            self._struck(known)
        event = self._event(known.launch, reply)
        if self._cancelled.pop(reply.attempt, None):
            self._vote(known, reply, event, again=False)
            return
        del self._running[reply.attempt]
        self._idle_deaths = 0
        self._time(known)
        if reply.status == "host":
            self._host_error(reply)
        self._note(known.launch, reply)
        if reply.status == "ok":
            self._kept[reply.attempt] = Kept(reply, self.workers[worker], known.launch)
            self.result.bytes_shipped += reply.bytes_shipped
            if known.launch.task.kind == "reduce" and known.launch.store:
                self.result.bytes_stored += (self._copies - 1) * reply.parts[0].nbytes
            self._detected += reply.refetched
            if reply.bad:
                read = {source.attempt for copies in known.launch.sources for source in copies}
                self._events += [m.BlockLost(attempt) for attempt in reply.bad if attempt in read]
        self._vote(known, reply, event, again=bool(known.fault and known.fault.kind == "late"))

    def _note(self, launch: m.Launch, reply: wire.Reply) -> None:
        """Remember what a diagnosis will want to know: errors, and inputs that were not what they should be."""
        info, parts = self.workers[launch.worker], self.reducers if launch.task.kind == "map" else 1
        if reply.status == "failed":
            self._incidents.raised[reply.attempt] = Kept(reply, info, launch)
        elif reply.status == "ok" and len(reply.parts) != parts:
            why = f"it gave {len(reply.parts)} partitions, not {parts}"
            self._incidents.add(Incident("garbage", info, launch.task, launch.attempt, why=why))
        if not reply.bad and not reply.slips:
            return
        read = {source.attempt for copies in launch.sources for source in copies}
        for attempt in read.intersection(reply.bad):
            self._incidents.unusable(launch, info, attempt, self._kept[attempt])
        for slip in reply.slips:
            if slip.attempt in read:
                self._incidents.add(Incident("slip", info, launch.task, launch.attempt, launch.task.index, slip=slip))

    def _struck(self, known: Running, kinds: Sequence[str] = KINDS_ANSWERED) -> None:
        """Count the fault on demand of an execution that has ended, if it was one of ``kinds``: then it has happened."""
        if known.fault is not None and known.fault.kind in kinds:
            self.progress.struck[known.fault.kind] = self.progress.struck.get(known.fault.kind, 0) + 1

    def _vote(self, known: Running, reply: wire.Reply, event: m.Event, again: bool) -> None:
        """Hand an answer to the tracker, and once more if it comes ``again``; of an attested job, when there is evidence."""
        if again:
            info = self.workers[known.launch.worker]
            why = "its answer came twice; one counted"
            self._incidents.add(Incident("late", info, known.launch.task, reply.attempt, why=why))
        if self.gate is None or isinstance(event, m.Refused):
            self._events.append(event)
            self._replays += [event] * again
            return
        self._events.append(m.Executed(reply.attempt))
        self._detected += again
        answer = self._answer(known.launch, reply, (event,) * (1 + again))
        self.gate.hold(known.launch.worker, answer, known.started, time.monotonic())

    def _answer(self, launch: m.Launch, reply: wire.Reply, events: tuple[m.Event, ...]) -> Answer:
        from quoreduce.runtime.attester import input_digest
        from quoreduce.runtime.gate import Answer

        task, request = launch.task, self._request(launch, None)
        assert isinstance(request, wire.MapTask | wire.ReduceTask | wire.SampleTask)
        return Answer(events, task.kind, task.index, launch.attempt, input_digest(request, self.setup), outcome(task.kind, reply))

    def _event(self, launch: m.Launch, reply: wire.Reply) -> m.Event:
        if reply.status == "ok":
            parts = tuple(m.Part(p.digest, p.records, p.nbytes) for p in reply.parts)
            return m.Finished(reply.attempt, m.Output(outcome(launch.task.kind, reply), parts))
        if reply.status == "failed":
            return m.Failed(reply.attempt, reply.error, outcome(launch.task.kind, reply))
        return m.Refused(reply.attempt, reply.bad)

    def _late(self, event: m.Event) -> None:
        """A duplicate of a reply: the tracker ignores it (R10)."""
        self._detected += 1
        self._events.append(event)

    def _host_error(self, reply: wire.Reply) -> None:
        self._host_errors += 1
        if self._host_errors >= HOST_ERRORS_MAX:
            raise errors.HostError(reply.error)

    def _bury(self, arrival: Arrival) -> None:
        """A worker is gone (R9): report it, and put another in its place if it has one."""
        info = self.workers.pop(arrival.worker)
        if arrival.worker not in self._barred:
            launches = [r.launch for group in (self._running, self._cancelled) for r in group.values()]
            self._incidents.death(info, arrival.status, arrival.hung, [one for one in launches if one.worker == info.name])
        for group in (self._running, self._cancelled):
            for attempt in [a for a, r in group.items() if r.launch.worker == arrival.worker]:
                self._struck(group.pop(attempt), ("crash", "hang"))
        self._events.append(m.WorkerLost(arrival.worker, arrival.blocks_lost and self.life is None))
        self._restart_checks(arrival.worker)
        self.retests.lost(arrival.worker)
        if self._setup_pending.pop(arrival.worker, None) is not None and arrival.worker in self.newcomers:
            self._idle_deaths += 1  # of those that this job began with only their successors tell whether workers can begin
            if self._idle_deaths >= RESTARTS_WITHOUT_WORK_MAX:
                raise errors.HostError("workers die before they begin: run `quoreduce doctor`")
        replacement = None
        if arrival.worker not in self._barred:
            replacement = self.executor.replace(arrival.worker)
        if replacement is not None:
            self.workers[replacement.name] = replacement
            self.newcomers.add(replacement.name)
            self._begin(replacement.name)
        self._events += [m.BlockLost(a) for a in self._unreachable(info, arrival)]
        if self.gate is not None:
            self.gate.lost(arrival.worker)
            self.gate.launch()  # another one may have to ask the node's TPM
        elif replacement is not None:
            self._events.append(m.WorkerJoined(replacement.name, replacement.domain, cpu=replacement.cpu))

    def _unreachable(self, info: WorkerInfo, arrival: Arrival) -> list[int]:
        """Attempts whose blocks went with a node on which no worker of ours is left to read them out."""
        if self.life is not None or arrival.blocks_lost or any(w.node == info.node for w in self.workers.values()):
            return []
        return [a for a, kept in self._kept.items() if kept.worker.node == info.node and kept.reply.path]

    def _expire(self) -> None:
        """Kill workers that are past a deadline; their death arrives like any other."""
        now = time.monotonic()
        for group in (self._running, self._cancelled):
            for running in group.values():
                if running.deadline <= now:
                    running.deadline = now + DEADLINE_FIRST_S
                    self._kill(running.launch.worker, f"no answer for {now - running.started:.1f} s, so it was killed")
        for checking in self._checks.values():
            if checking.deadline <= now:
                checking.deadline = now + DEADLINE_FIRST_S
                self._kill(checking.worker, "it did not check a part in time, so it was killed")
        for worker in self.retests.late(now):
            self._kill(worker, "it did not answer a known-answer test in time, so it was killed")
        for worker, deadline in self._setup_pending.items() if self.gate is not None else ():
            if deadline <= now:
                self._setup_pending[worker] = now + DEADLINE_FIRST_S
                self._kill(worker, "it did not begin in time, so it was killed")

    def _kill(self, worker: str, why: str, hung: bool = True) -> None:
        self._incidents.killed[worker] = (why, hung)
        self.executor.kill(worker)

    # ---- evidence, if the job is attested

    def _admit_all(self, gate: Gate) -> None:
        """Wait until all workers have said what they are made of, for some seconds if enough have; the others may join later.

        Those that may not vote do not join.
        """
        start = time.monotonic()
        while self._setup_pending:
            for arrival in self.executor.wait(TICK_S):
                self._arrive(arrival)
            here = [info for info in self.workers.values() if info.name not in (self._barred | self._setup_pending.keys())]
            enough = len({info.domain for info in here}) >= self.options.replicas_needed
            if time.monotonic() - start > (ADMIT_S if enough else DEADLINE_START_S):
                break
        self._events.clear()  # nobody has joined yet
        gate.launch()

    def _admit(self, gate: Gate, info: WorkerInfo, reply: wire.Reply) -> None:
        if not gate.admit(info, reply.data):
            self._barred.add(info.name)
        elif self.tracker.started:
            self._events.append(m.WorkerJoined(info.name, info.domain, cpu=info.cpu))
            gate.launch()

    def _evidence(self, gate: Gate, worker: str, reply: wire.Reply) -> None:
        """Take evidence; a worker whose evidence is refused is shut out."""
        self.result.cpu_s += reply.cpu_s
        try:
            match reply.status:
                case "committed":
                    self._events += gate.committed(worker, reply.data)
                case "rooted":
                    self._events += gate.rooted(worker, reply.data)
                case "sealed":
                    gate.sealed(worker, reply.data)
                case _ if gate.owes(worker):
                    raise errors.EvidenceError(reply.error or f"it answered {reply.status} where evidence was asked for")
        except errors.AttestationError as error:
            gate.refuse(worker, str(error))
            self._barred.add(worker)
            self.executor.kill(worker)

    def _flush_evidence(self) -> bool:
        """Have batches committed that are due; tell whether evidence is still to come."""
        if self.gate is None:
            return False
        busy = {r.launch.worker for group in (self._running, self._cancelled) for r in group.values()}
        for worker in self.gate.flush(busy, time.monotonic()):
            self._kill(worker, "no evidence came in time, so it was killed")
        return self.gate.waiting or bool(self._setup_pending)  # a worker that begins may join

    def _blame_evidence(self, error: errors.QuoreduceError) -> None:
        """If workers were shut out, that is why the job failed."""
        refusals = self.gate.refusals if self.gate is not None else {}
        if refusals:
            why = "; ".join(f"{domain}: {reason}" for domain, reason in sorted(refusals.items()))
            raise errors.AttestationError(f"shut out by their evidence: {why}. So {error}") from error

    def _blame_suspects(self, error: errors.QuoreduceError) -> None:
        """If a domain is a suspect, that may be why the job failed."""
        suspects = self.retests.suspects(self.tracker)
        if suspects:
            raise type(error)(f"{error} Suspect: {'; '.join(f'{name}: {one}' for name, one in suspects.items())}.") from error

    def receipt(self, manifest: bytes) -> bytes | None:
        """The receipt of an attested job that is done, sealed by all workers that are left; None if it is not attested."""
        if self.gate is None:
            return None
        agreed = {task: one.attempt for task, one in self._agreed.items()}
        reads = [self._kept[agreed[m.Task("reduce", i)]].reply.records_in for i in range(self.reducers)]
        while True:
            draft = self.gate.draft(manifest, agreed, reads)
            self.gate.ask_seals(draft)
            while self.gate.sealing or (self.gate.short and self._setup_pending):
                for arrival in self.executor.wait(TICK_S):
                    self._arrive(arrival)
                self._flush_evidence()
                self._expire()
            finished = self.gate.finished(draft)
            if finished is not None:
                raw = finished.encode()
                self.result.attestation = {**self.gate.summary(finished), "receipt_bytes": len(raw)}
                return raw

    # ---- commands

    def _execute(self, commands: Sequence[m.Command]) -> None:
        for command in commands:
            match command:
                case m.Launch():
                    self._launch(command)
                case m.Cancel(attempt):
                    if attempt in self._running:
                        self._cancelled[attempt] = self._running.pop(attempt)
                        self._detected += self._was_late(attempt) and self._cancelled[attempt].fault is not None
                case m.Discard(attempt):
                    self._discard(attempt)
                case m.Agreed():
                    self._agree(command)
                case m.Accused(task, attempt):
                    self._accuse(task, attempt)
                case m.Retest():
                    busy = [r.deadline for r in self._running.values() if r.launch.worker == command.worker]
                    self.retests.begin(command, self._names(command.worker), max(busy, default=time.monotonic()))
                case m.JobDone():
                    self._done = True
                case m.JobFailed(reason, task, message):
                    where = f"{task}: " if task is not None else ""
                    raise _REASONS[reason](f"{where}{message}")

    def _launch(self, launch: m.Launch) -> None:
        fault = self._fault(launch) if self.options.faults else None
        now = time.monotonic()
        pending = launch.worker in self._setup_pending
        engaged = pending or self.retests.engage(launch.worker)
        limit_s = max(self._deadline(launch), DEADLINE_START_S if engaged else 0.0)
        nbytes = input_nbytes(launch, self.splits, self._kept)
        self._running[launch.attempt] = Running(launch, now + limit_s, now + PATIENCE_START_S * pending, fault, nbytes)
        self.executor.submit(launch.worker, wire.encode(self._request(launch, fault)))

    def _fault(self, launch: m.Launch) -> wire.Fault | None:
        """The fault that is to strike this execution, if there is one."""
        return self.faults.strike(launch.task.kind, launch.task.index, launch.replica, launch.store, self._names(launch.worker))

    def _names(self, worker: str) -> tuple[str, str, str]:
        """What a worker's domain goes by in ``--fault``: its name, the worker's, its number in order of names."""
        info = self.workers[worker]
        number = sorted({w.domain for w in self.workers.values()}).index(info.domain)
        return info.domain, info.name, str(number)

    def _time(self, finished: Running) -> None:
        """Learn how long such tasks take; a deadline that was set before anything was known comes closer."""
        kind, now = finished.launch.task.kind, time.monotonic()
        if self._watch is not None:
            self._watch.finished(finished, now)
        self._slowest[kind] = max(self._slowest.get(kind, 0.0), now - finished.started)
        for running in self._running.values():
            if running.launch.task.kind == kind and not self.retests.engage(running.launch.worker):
                running.deadline = min(running.deadline, running.started + self._deadline(running.launch))

    def _deadline(self, launch: m.Launch) -> float:
        """A fixed deadline, or one far above the slowest task so far, doubled at every retry."""
        if self.options.deadline_s is not None:
            return self.options.deadline_s
        slowest = self._slowest.get(launch.task.kind)
        if slowest is None:
            return DEADLINE_FIRST_S
        return float(max(DEADLINE_LEAST_S, DEADLINE_FACTOR * slowest) * 2 ** min(max(0, launch.replica - self.options.f), 10))

    def _request(self, launch: m.Launch, fault: wire.Fault | None) -> wire.Request:
        task = launch.task
        if task.kind == "sample":
            return wire.SampleTask(launch.attempt, fault)
        if task.kind == "map":
            return wire.MapTask(launch.attempt, task.index, self.splits[task.index], self._side, launch.store, fault)
        sources = tuple(tuple(self._stored(s, task.index) for s in copies) for copies in launch.sources)
        paths = tuple(self._paths(task.index, launch.attempt)) if launch.store else ()
        return wire.ReduceTask(launch.attempt, task.index, self._side, sources, paths, fault)

    def _paths(self, part: int, attempt: int) -> list[str]:
        """Where an attempt writes: one file, or without tight storage (R7) as many as a replicating file system would."""
        path = str(self.output.attempt_path(part, attempt))
        return [path] + [f"{path}.copy{i}" for i in range(1, self._copies)]

    @property
    def _copies(self) -> int:
        """Copies of its output that a reduce writes (R7)."""
        return STORAGE_COPIES if self.options.mode == "basic" or not self.options.tight_storage else 1

    def _stored(self, source: m.Source, part: int) -> wire.Stored:
        kept = self._kept[source.attempt]
        p = kept.reply.parts[part]
        node = kept.worker.node if self.life is None else ""  # every node sees it
        return wire.Stored(source.attempt, self._holder(kept.worker), node, kept.reply.path, p.offset, p.nbytes, p.digest)

    def _holder(self, writer: WorkerInfo) -> str:
        """Who gives out what ``writer`` has stored: itself, or if it is dead any worker on its node."""
        if writer.name in self.workers:
            return writer.name
        return next((w.name for w in self.workers.values() if w.node == writer.node), writer.name)

    def _accuse(self, task: m.Task, attempt: int) -> None:
        """An attempt has lost its vote: the ledger counts it, and it will be looked into."""
        kept = self._kept.get(attempt) or self._incidents.raised.get(attempt)
        if kept is not None:
            self._incidents.lost_vote(task, attempt, kept.worker)

    def _discard(self, attempt: int) -> None:
        kept = self._kept.get(attempt)
        if kept is not None and not (self.options.diagnose and self._incidents.hold(kept)):
            self.executor.submit(kept.worker.name, wire.encode(wire.Discard((attempt,))))

    # ---- agreement and publication

    def _agree(self, agreed: m.Agreed) -> None:
        self.progress.agreed += agreed.task not in self._agreed
        self._agreed[agreed.task] = agreed
        if agreed.task.kind == "sample":
            self._side = self._kept[agreed.attempt].reply.data
        elif agreed.task.kind == "reduce":
            if self.options.mode == "original":
                self._publish(agreed)
            else:
                self._check(agreed)
            self._release(agreed.task.index)

    def _check(self, agreed: m.Agreed) -> None:
        """Have another domain recompute the digest of the part that will be published: what is stored is what was voted on."""
        writer = self._kept[agreed.attempt].worker
        usable = [w for w in self.workers.values() if w.name not in self._barred]
        running, late = ([r.launch.worker for r in group.values()] for group in (self._running, self._cancelled))
        chosen = checker(writer, usable, running, (c.worker for c in self._checks.values()), late)
        if chosen is None:
            self._fail_check(agreed)
            return
        path = self.output.attempt_path(agreed.task.index, agreed.attempt)
        request = wire.CheckTask(agreed.attempt, path, record_width(self.job.output) or 128)
        limit_s = 2 * (self.options.deadline_s or DEADLINE_FIRST_S)  # it may have to wait for a task that runs there
        self._checks[agreed.attempt] = Checking(agreed, chosen, time.monotonic() + limit_s)
        self.executor.submit(chosen, wire.encode(request))

    def _checked(self, checking: Checking, reply: wire.Reply) -> None:
        agreed = checking.agreed
        self.result.cpu_s += reply.cpu_s
        del self._checks[reply.attempt]
        if reply.status == "checked" and reply.digest == agreed.output.parts[0].digest:
            self._publish(agreed)
        else:
            writer, reader = self._kept[agreed.attempt].worker, self.workers[checking.worker]
            self._incidents.add(Incident("part", writer, agreed.task, agreed.attempt, agreed.task.index, [reader]))
            self._fail_check(agreed)

    def _fail_check(self, agreed: m.Agreed) -> None:
        self._events.append(m.BlockLost(agreed.attempt))

    def _restart_checks(self, worker: str) -> None:
        for attempt, checking in list(self._checks.items()):
            if checking.worker == worker:
                del self._checks[attempt]
                self._check(checking.agreed)

    def _publish(self, agreed: m.Agreed) -> None:
        if self.life is not None:
            self.life.commit()
        self.output.publish(agreed.task.index, agreed.attempt)
        self._events.append(m.Published(agreed.attempt))

    def _release(self, part: int) -> None:
        """Give back the memory of partition ``part`` of all maps, if there is much of it: its reduce is agreed on."""
        much = PUNCH_SHARE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        if self.life is not None or self.tracker.ledger.stored_nbytes < much:
            return
        ranges: dict[str, list[tuple[str, int, int]]] = {}
        for kept in self._kept.values():
            if kept.reply.path and len(kept.reply.parts) == self.reducers and kept.reply.parts[part].offset >= 0:
                p = kept.reply.parts[part]
                ranges.setdefault(kept.worker.name, []).append((kept.reply.path, p.offset, p.nbytes))
        for worker, items in ranges.items():
            self.executor.submit(worker, wire.encode(wire.Discard((), tuple(items))))

    # ---- diagnosis

    def _diagnose(self) -> None:
        """Find out what the masked faults were. The job is done; whatever becomes of this, its output is right."""
        from quoreduce.runtime.detective import Detective, Scene, cleared

        self._incidents.closed = True
        scene = Scene(
            self.job, self.options.algorithm, self._kept, self._agreed, self._free, self._probe, self._ask,
            self.output.part_path, self.output.attempt_path, lambda: time.monotonic(),
        )  # fmt: skip
        detective = Detective(scene, self._incidents)
        with contextlib.suppress(errors.QuoreduceError):
            detective.diagnose()
        r = self.result
        r.diagnoses, r.diagnoses_more, r.probes = detective.found, detective.more, detective.probes
        before, r.lost_votes = r.lost_votes, cleared(r.lost_votes, detective.found)
        self._cleared = {domain for domain, tasks in before.items() if r.lost_votes.get(domain) != tasks}

    def standings(self) -> dict[str, Standing]:
        """What was seen of each domain, but for those that lost votes for which the job was to blame (R11)."""
        return {name: one for name, one in self.tracker.standings.items() if name not in self._cleared}

    def _free(self) -> list[WorkerInfo]:
        """Workers that can be asked, those that have yet to begin the job last."""
        busy = {r.launch.worker for r in self._cancelled.values()} | self._barred
        free = [info for info in self.workers.values() if info.name not in busy]
        return sorted(free, key=lambda info: (info.name in self._setup_pending, info.name))

    def _probe(self, launch: m.Launch) -> wire.Request:
        """The request that executes a task once more; what is broken for good strikes it too."""
        return self._request(launch, self.faults.stuck(launch.task.kind, launch.task.index, self._names(launch.worker)))

    def _ask(self, worker: str, request: wire.InspectTask | wire.ProbeTask, limit_s: float) -> wire.Reply | None:
        """Put a request to a worker and wait for its answer; None if it dies, or takes longer, for which it is killed."""
        self.executor.submit(worker, wire.encode(request))
        end = time.monotonic() + limit_s
        while worker in self.workers and (now := time.monotonic()) < end + DEATH_S:
            if now >= end:
                self.executor.kill(worker)
            answers = []
            for arrival in self.executor.wait(TICK_S if now >= end else min(TICK_S, end - now)):
                reply = _answer_of(arrival, worker, request.attempt)
                if reply is None:
                    self._arrive(arrival)
                else:
                    answers.append(reply)
            if answers:
                self.result.cpu_s += answers[0].cpu_s
                return answers[0]
        return None

    # ---- figures

    def _count_detected(self) -> int:
        ledger = self.tracker.ledger
        return self._detected + ledger.lost_votes + ledger.lost_blocks + ledger.crashed

    def _account(self) -> None:
        ledger = self.tracker.ledger
        r = self.result
        r.executions = {kind: n for kind, n in ledger.launched.items() if kind != "sample" or n}
        r.reexecutions, r.spares = ledger.re_executions, ledger.spares
        r.faults.injected = self.faults.injected
        r.faults.detected = r.faults.masked = self._count_detected()
        r.bytes_stored += ledger.stored_nbytes
        r.lost_votes = dict(ledger.suspicion)
        r.domains = sorted({info.domain for info in self.workers.values()})
        winners = [self._kept.get(agreed.attempt) for task, agreed in self._agreed.items() if task.kind == "map"]
        r.records_in = sum(kept.reply.records_in for kept in winners if kept)
        r.bytes_in = sum(kept.reply.bytes_in for kept in winners if kept)
        r.counters = self._counters()

    def _counters(self) -> dict[str, int]:
        """Hadoop's counters and the job's, over the agreed attempts. What follows from votes goes before what a job says."""
        kept = [(task.kind, self._kept[a.attempt].reply) for task, a in self._agreed.items() if a.attempt in self._kept]
        maps = [reply for kind, reply in kept if kind == "map"]
        reduces = [reply for kind, reply in kept if kind == "reduce"]
        between = [part for reply in maps for part in reply.parts]
        written = [part for reply in reduces for part in reply.parts]
        voted = {
            "MAP_INPUT_RECORDS": sum(reply.records_in for reply in maps),
            "REDUCE_SHUFFLE_BYTES": sum(part.nbytes for part in between),
            "REDUCE_INPUT_RECORDS": sum(part.records for part in between),
            "REDUCE_OUTPUT_RECORDS": sum(part.records for part in written),
            "BYTES_READ": sum(split.length for split in self.splits),
            "BYTES_WRITTEN": sum(part.nbytes for part in written),
        }
        counted: dict[str, int] = {}
        for reply in (*maps, *reduces):
            for name, n in reply.counters.items():
                counted[name] = counted.get(name, 0) + n
        before_combine = {"MAP_OUTPUT_RECORDS": voted["REDUCE_INPUT_RECORDS"]}  # unless the job says that it combined
        return dict(sorted((before_combine | counted | voted).items()))

    def parts(self) -> list[m.Part]:
        """The agreed output, part by part."""
        return [self._agreed[m.Task("reduce", i)].output.parts[0] for i in range(self.reducers)]


def _answer_of(arrival: Arrival, worker: str, attempt: int) -> wire.Reply | None:
    """The answer of a worker to one request, if that is what arrived."""
    if arrival.worker != worker or arrival.raw is None:
        return None
    try:
        reply = wire.decode_reply(arrival.raw)
    except errors.HostError:
        return None
    return reply if reply.attempt == attempt else None
