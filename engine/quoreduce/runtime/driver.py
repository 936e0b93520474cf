"""The driver of one job: the tracker's commands become requests to workers, their replies become its events.

It decides nothing that the tracker could decide. What it adds is what the tracker may not know: clocks (deadlines), files (the
commit), faults to inject, and the figures of the result.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from msgspec import structs

from quoreduce import errors
from quoreduce.data.commit import Output as OutputPlace
from quoreduce.data.splits import Split, check_unchanged
from quoreduce.job import Job, record_width
from quoreduce.runtime import wire
from quoreduce.runtime.checkers import Checking, Checks
from quoreduce.runtime.faults import FaultPlan
from quoreduce.runtime.figures import KINDS_ANSWERED, KINDS_SILENT, Progress, account
from quoreduce.runtime.hostfaults import OUT_OF_MEMORY, HostFaults
from quoreduce.runtime.incidents import GARBAGE, Incident, Incidents, Kept
from quoreduce.runtime.options import Options, Result
from quoreduce.runtime.outcome import event_of
from quoreduce.runtime.port import Arrival, Executor, WorkerInfo
from quoreduce.runtime.requests import Requests
from quoreduce.runtime.retests import Retests
from quoreduce.runtime.stragglers import Watch, input_nbytes
from quoreduce.runtime.underway import DEADLINE_FIRST_S, DEADLINE_START_S, Attention, Running, UnderWay
from quoreduce.tracker import messages as m
from quoreduce.tracker.suspicion import Known, Standing
from quoreduce.tracker.tracker import JobTracker, Plan

if TYPE_CHECKING:
    from quoreduce.runtime.durable import Life
    from quoreduce.runtime.gate import Gate

ADMIT_S = 5.0
PUNCH_SHARE = 0.25
TICK_S = 0.2
_REASONS: dict[str, type[errors.QuoreduceError]] = {
    "no_quorum": errors.NoQuorum,
    "not_deterministic": errors.NotDeterministic,
    "job_error": errors.JobError,
    "too_few_domains": errors.TooFewDomains,
    "copies_lost": errors.HostError,
}


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
    _under_way: UnderWay = field(init=False)
    _requests: Requests = field(init=False)
    _checks: Checks = field(init=False)
    _kept: dict[int, Kept] = field(default_factory=dict)
    _events: list[m.Event] = field(default_factory=list)
    _replays: list[m.Event] = field(default_factory=list)
    _agreed: dict[m.Task, m.Agreed] = field(default_factory=dict)
    _setup_pending: dict[str, float] = field(default_factory=dict)
    _unloadable: set[str] = field(default_factory=set)
    _host: HostFaults = field(init=False)
    _attention: Attention = field(init=False)
    _detected: int = 0
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
        self.retests = Retests(self.executor, self.faults, self.job)
        # Inline, one execution waits for the other, which does not make it slow.
        watch = Watch() if o.spares and self.result.on != "inline" else None
        self._under_way = UnderWay(o.deadline_s, o.f, watch, self.executor.waited_s)
        self._host = HostFaults(self.splits)
        self._attention = Attention(time.monotonic())
        self._requests = Requests(o, self.splits, self.output, self._kept, self.workers, everywhere=self.life is not None)
        limit_s = 2 * (o.deadline_s or DEADLINE_FIRST_S)  # it may have to wait for a task that runs there
        self._checks = Checks(self.executor, record_width(self.job.output) or 128, limit_s, self.tracker.plan.bound)
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
            if self.gate is not None:
                self.gate.blame(error)
            self._blame_suspects(error)
            raise
        finally:
            self.result.suspects = self.retests.suspects(self.tracker)
        self._account()
        for running in self._under_way.cancelled.values():
            if self._under_way.was_late(running.launch.attempt):
                waited_s = time.monotonic() - running.started
                self._incidents.overtaken(self.workers[running.launch.worker], running.launch, waited_s)
    def _step(self) -> None:
        self._listen(asked_s=0.0)
        timeout_s = self._timeout()
        arrivals = self.executor.wait(timeout_s)
        self._listen(asked_s=timeout_s)
        for arrival in arrivals:
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
        idle = not (self._under_way or self._checks.waiting or self.retests.waiting or waiting)
        if idle and not self._done:
            self._events.append(m.Stalled())
            self._drain()
        self.progress.executions = self.tracker.ledger.executions
        self.progress.votes = self.tracker.ledger.votes
        self.progress.faults = self._count_detected()
        self.report(self.progress)

    def _listen(self, asked_s: float) -> None:
        """If the driver was not there for a while, beyond what it meant to wait, that time is not the workers' (R9)."""
        away_s = self._attention.away_s(time.monotonic(), asked_s)
        if away_s:
            self._under_way.postpone(away_s)
            self._checks.postpone(away_s)
            self.retests.postpone(away_s)
            self._setup_pending = {worker: deadline + away_s for worker, deadline in self._setup_pending.items()}
            if self.gate is not None:
                self.gate.postpone(away_s)

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
        if len(self._under_way) < len(self.workers):
            known = self._under_way.left_behind()
            self._events += [m.Slow(attempt) for attempt in self._under_way.overdue(time.monotonic())]
            for worker in self._under_way.left_behind() - known:  # what it was to check waits behind what it executes
                self._check_again(worker)

    def left_behind(self) -> set[str]:
        """Workers that are still busy, after the job, with what was overdue."""
        return self._under_way.left_behind()

    def _timeout(self) -> float:
        if self._replays:
            return 0.0
        now = time.monotonic()
        first = min(self._under_way.next_due(), self._checks.next_due())
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
        elif checking := self._checks.ended(arrival.worker, reply.attempt):
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
        self._under_way.restart(worker, time.monotonic())

    def _tested(self, worker: str, reply: wire.Reply) -> None:
        """A known-answer test is over, if one was under way there (R10)."""
        events = self.retests.ended(worker, reply)
        if events:
            self._events += events
            self.result.cpu_s += reply.cpu_s
            self._under_way.restart(worker, time.monotonic())

    def _result(self, worker: str, reply: wire.Reply) -> None:
        known = self._under_way.find(worker, reply.attempt)
        if known is None:
            return  # late, or an answer for somebody else (R10)
        self.result.cpu_s += reply.cpu_s
        if reply.status == "ok":
            self.progress.struck_by(known.fault, KINDS_ANSWERED)
        event = event_of(known.launch.task.kind, reply)
        if self._under_way.cancelled.pop(reply.attempt, None):
            self._vote(known, reply, event, again=False)
            return
        self._host.worked()
        self._under_way.finished(known, time.monotonic(), self.retests.engage)
        if reply.status == "host":
            sound = {info.domain for info in self.workers.values()}
            self._host.failed(reply, self.workers[worker].domain, sound, self.options.replicas_needed)
        elif reply.status == "refused":
            lost = [kept.launch.task for attempt in reply.bad if (kept := self._kept.get(attempt))]
            self._unread([known.launch.task, *lost], reply.error)
        elif reply.status == "failed":
            self._suspect_input(known.launch.task)
        parts = self.reducers if known.launch.task.kind == "map" else 1
        self._incidents.note(known.launch, self.workers[worker], reply, parts, self._kept)
        if reply.status == "ok":
            self._kept[reply.attempt] = Kept(reply, self.workers[worker], known.launch)
            self.result.bytes_shipped += reply.bytes_shipped
            if known.launch.task.kind == "reduce" and known.launch.store:
                self.result.bytes_stored += (self._requests.copies - 1) * reply.parts[0].nbytes
            self._detected += reply.refetched
            if reply.bad:
                read = {source.attempt for copies in known.launch.sources for source in copies}
                self._events += [m.BlockLost(attempt) for attempt in reply.bad if attempt in read]
        self._vote(known, reply, event, again=bool(known.fault and known.fault.kind == "late"))

    def _suspect_input(self, task: m.Task) -> None:
        """An execution failed: if what it read has changed since the job was planned, that is why (InputError)."""
        if task.kind == "map":
            check_unchanged(self.splits[task.index : task.index + 1])
        elif task.kind == "sample":
            check_unchanged(self.splits)

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
        from quoreduce.runtime.gate import answer_of

        request = self._requests.of(known.launch, None)
        answer = answer_of(known.launch, request, self.setup, reply, (event,) * (1 + again))
        self.gate.hold(known.launch.worker, answer, known.started, time.monotonic())

    def _late(self, event: m.Event) -> None:
        """A duplicate of a reply: the tracker ignores it (R10)."""
        self._detected += 1
        self._events.append(event)

    def _bury(self, arrival: Arrival) -> None:
        """A worker is gone (R9): report it, and put another in its place if it has one."""
        info = self.workers.pop(arrival.worker)
        gone = self._under_way.lost(arrival.worker)
        if arrival.worker not in self._incidents.killed and self._host.out_of_memory(arrival.status):
            self._incidents.killed[arrival.worker] = (OUT_OF_MEMORY, False)
            self._host.starved([one.launch for one in gone])
        if arrival.worker not in self._barred:
            self._incidents.death(info, arrival.status, arrival.hung, [one.launch for one in gone])
        for one in gone:
            self.progress.struck_by(one.fault, KINDS_SILENT)
        self._events.append(m.WorkerLost(arrival.worker, arrival.blocks_lost and self.life is None))
        self._check_again(arrival.worker)
        self.retests.lost(arrival.worker)
        if self._setup_pending.pop(arrival.worker, None) is not None and arrival.worker in self.newcomers:
            self._host.died_idle()  # of those that this job began with only their successors tell whether workers can begin
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
        self._listen(asked_s=0.0)
        now = time.monotonic()
        for running in self._under_way.expired(now):
            self._kill(running.launch.worker, f"no answer for {now - running.started:.1f} s, so it was killed")
        for worker in self._checks.expired(now):
            self._kill(worker, "it did not check a part in time, so it was killed")
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

    @property
    def _barred(self) -> Set[str]:
        """Workers that were shut out by their evidence."""
        return self.gate.barred if self.gate is not None else frozenset()

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
        if gate.admit(info, reply.data) and self.tracker.started:
            self._events.append(m.WorkerJoined(info.name, info.domain, cpu=info.cpu))
            gate.launch()

    def _evidence(self, gate: Gate, worker: str, reply: wire.Reply) -> None:
        """Take evidence; a worker whose evidence is refused is shut out."""
        self.result.cpu_s += reply.cpu_s
        try:
            self._events += gate.take(worker, reply)
        except errors.AttestationError:
            self.executor.kill(worker)

    def _flush_evidence(self) -> bool:
        """Have batches committed that are due; tell whether evidence is still to come."""
        if self.gate is None:
            return False
        for worker in self.gate.flush(self._under_way.workers(), time.monotonic()):
            self._kill(worker, "no evidence came in time, so it was killed")
        return self.gate.waiting or bool(self._setup_pending)  # a worker that begins may join

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
                    cancelled = self._under_way.cancel(attempt)
                    if cancelled is not None:
                        self._detected += self._under_way.was_late(attempt) and cancelled.fault is not None
                case m.Discard(attempt):
                    self._discard(attempt)
                case m.Agreed():
                    self._agree(command)
                case m.Accused(task, attempt):
                    self._accuse(task, attempt)
                case m.Retest():
                    free_at = self._under_way.free_at(command.worker, time.monotonic())
                    self.retests.begin(command, self._names(command.worker), free_at)
                case m.JobDone():
                    self._done = True
                case m.JobFailed(reason, task, message):
                    where = f"{task}: " if task is not None else ""
                    if task is not None and reason == "copies_lost":
                        where += f"cannot read back what was written: {self._checks.unread.get(task) or 'it is gone'}; "
                    raise _REASONS[reason](f"{where}{message}")

    def _launch(self, launch: m.Launch) -> None:
        fault = self._fault(launch) if self.options.faults else None
        pending, engaged = launch.worker in self._setup_pending, self.retests.engage(launch.worker)
        nbytes = input_nbytes(launch, self.splits, self._kept)
        self._under_way.begin(launch, fault, nbytes, time.monotonic(), pending, engaged)
        self.executor.submit(launch.worker, wire.encode(self._requests.of(launch, fault)))

    def _fault(self, launch: m.Launch) -> wire.Fault | None:
        """The fault that is to strike this execution, if there is one."""
        return self.faults.strike(launch.task.kind, launch.task.index, launch.replica, launch.store, self._names(launch.worker))

    def _names(self, worker: str) -> tuple[str, str, str]:
        """What a worker's domain goes by in ``--fault``: its name, the worker's, its number in order of names."""
        info = self.workers[worker]
        number = sorted({w.domain for w in self.workers.values()}).index(info.domain)
        return info.domain, info.name, str(number)

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
            self._requests.side = self._kept[agreed.attempt].reply.data
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
        late = {one.launch.worker for one in self._under_way.cancelled.values()} | self._under_way.left_behind()
        running = [one.launch.worker for one in self._under_way.running.values()]
        path = self.output.attempt_path(agreed.task.index, agreed.attempt)
        if not self._checks.begin(agreed, path, writer, usable, running, late, time.monotonic()):
            self._fail_check(agreed)

    def _check_again(self, worker: str) -> None:
        """Ask somebody else, if there is anybody, for what a worker was to check."""
        for agreed in self._checks.lost(worker):
            self._check(agreed)

    def _checked(self, checking: Checking, reply: wire.Reply) -> None:
        agreed = checking.agreed
        self.result.cpu_s += reply.cpu_s
        if reply.status == "checked" and reply.digest == agreed.output.parts[0].digest:
            self._publish(agreed)
        else:
            writer, reader = self._kept[agreed.attempt].worker, self.workers[checking.worker]
            self._incidents.add(Incident("part", writer, agreed.task, agreed.attempt, agreed.task.index, [reader]))
            self._unread([agreed.task], reply.error or "its digest is not the one that was agreed on")
            self._fail_check(agreed)

    def _unread(self, tasks: Iterable[m.Task], why: str) -> None:
        """Remember why what was stored could not be read, for the message of a job that fails of it (R3)."""
        self._checks.unread |= dict.fromkeys(tasks, errors.one_line(why))

    def _fail_check(self, agreed: m.Agreed) -> None:
        self._events.append(m.BlockLost(agreed.attempt))

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
        for worker, request in self._requests.release(part, self.reducers).items():
            self.executor.submit(worker, wire.encode(request))

    # ---- diagnosis

    def diagnose(self) -> None:
        """Find out what the masked faults were, if there are any. The output is published, whatever comes of this."""
        if not (self._incidents.found and self.options.diagnose):
            return
        from quoreduce.runtime.detective import Detective, Scene, cleared
        from quoreduce.runtime.questions import Questions

        self._incidents.closed = True
        questions = Questions(self.executor, self.workers, self._arrive, lambda: time.monotonic())
        scene = Scene(
            self.job, self.options.algorithm, self._kept, self._agreed, self._free, self._probe, questions.ask,
            self.output.part_path, self.output.attempt_path, lambda: time.monotonic(),
        )  # fmt: skip
        detective = Detective(scene, self._incidents)
        with contextlib.suppress(errors.QuoreduceError):
            detective.diagnose()
        r = self.result
        r.cpu_s += questions.cpu_s
        r.diagnoses, r.diagnoses_more, r.probes = detective.found, detective.more, detective.probes
        before, r.lost_votes = r.lost_votes, cleared(r.lost_votes, detective.found)
        self._cleared = {domain for domain, tasks in before.items() if r.lost_votes.get(domain) != tasks}

    def standings(self) -> dict[str, Standing]:
        """What was seen of each domain, but for those that lost votes for which the job was to blame (R11)."""
        return {name: one for name, one in self.tracker.standings.items() if name not in self._cleared}

    def _free(self) -> list[WorkerInfo]:
        """Workers that can be asked, those that have yet to begin the job last."""
        busy = {one.launch.worker for one in self._under_way.cancelled.values()} | self._barred
        free = [info for info in self.workers.values() if info.name not in busy]
        return sorted(free, key=lambda info: (info.name in self._setup_pending, info.name))

    def _probe(self, launch: m.Launch) -> wire.Request:
        """The request that executes a task once more; what is broken for good strikes it too."""
        return self._requests.of(launch, self.faults.stuck(launch.task.kind, launch.task.index, self._names(launch.worker)))

    # ---- figures

    def _count_detected(self) -> int:
        ledger = self.tracker.ledger
        return self._detected + ledger.lost_votes + ledger.lost_blocks + ledger.crashed

    def _account(self) -> None:
        r = self.result
        account(r, self.tracker.ledger, self.splits, self._kept, self._agreed)
        r.faults.injected = self.faults.injected
        r.faults.detected = r.faults.masked = self._count_detected()
        r.domains = sorted({info.domain for info in self.workers.values()})

    def parts(self) -> list[m.Part]:
        """The agreed output, part by part."""
        return [self._agreed[m.Task("reduce", i)].output.parts[0] for i in range(self.reducers)]
