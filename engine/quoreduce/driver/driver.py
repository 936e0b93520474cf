"""The driver of one job: the tracker's commands become requests to workers, their replies become its events.

It decides nothing that the tracker could decide. What it adds is what the tracker may not know: clocks (deadlines),
files (the commit), faults to inject, and the figures of the result. :class:`Driver` is the loop. Its parts own what
they know, and hear the events that concern them:

=============== ====================================================================================
``setups``      workers that have yet to begin the job
``under_way``   executions, their deadlines, and which are overdue
``publication`` parts that are agreed on and read again, and the output
``retests``     known-answer tests of suspects
``inquiry``     the diagnosis of faults, when the job is done
``gate``        evidence, without which an answer does not count (nothing, if the job is not attested)
``durable``     what is written down, so that the job can be resumed (nothing, if it is not durable)
=============== ====================================================================================
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence

from quoreduce import errors
from quoreduce.driver.answers import Answers
from quoreduce.driver.deaths import Deaths
from quoreduce.driver.figures import Progress, account, detected
from quoreduce.driver.hostfaults import HostFaults
from quoreduce.driver.incidents import GARBAGE
from quoreduce.driver.inquiry import Inquiry
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate, PlainRun
from quoreduce.driver.publication import Publication
from quoreduce.driver.questions import Questions
from quoreduce.driver.requests import Requests
from quoreduce.driver.retests import Retests
from quoreduce.driver.setups import Setups
from quoreduce.driver.stragglers import Watch, input_nbytes
from quoreduce.driver.underway import Attention, UnderWay
from quoreduce.job import Job
from quoreduce.protocol import wire
from quoreduce.protocol.faults import FaultPlan
from quoreduce.protocol.options import Options
from quoreduce.protocol.port import Arrival
from quoreduce.tracker import messages as m
from quoreduce.tracker.suspicion import Known, Standing
from quoreduce.tracker.tracker import JobTracker, Plan

TICK_S = 0.2
_REASONS: dict[str, type[errors.QuoreduceError]] = {
    "no_quorum": errors.NoQuorum,
    "not_deterministic": errors.NotDeterministic,
    "job_error": errors.JobError,
    "too_few_domains": errors.TooFewDomains,
    "copies_lost": errors.HostError,
}


def _plan(state: JobState, first_attempt: int) -> Plan:
    o = state.options
    return Plan(
        maps=len(state.splits), reduces=state.reducers, f=o.f, mode=o.mode, sample=state.job.sample is not None,
        deferred=o.deferred, tentative=o.tentative, digest_outputs=o.digest_outputs, tight_storage=o.tight_storage,
        max_attempts=o.attempts_max, confirm=True, first_attempt=first_attempt, checked=_checked(state.job, o),
    )  # fmt: skip


def _checked(job: Job, options: Options) -> frozenset[m.Kind]:
    """The kinds of tasks that are checked rather than executed again: those that the job has a check for (R13)."""
    if options.assurance == "strict" or options.f == 0 or job.check is None:
        return frozenset()
    return frozenset[m.Kind](job.check.kinds)


class Driver:
    """Runs one job on the workers of a session. ``known``: domains that earlier jobs have found to be suspects."""

    def __init__(
        self, state: JobState, report: Callable[[Progress], None], gate: OpenGate, run: PlainRun,
        known: Mapping[str, Known],
    ) -> None:  # fmt: skip
        o, reducers = state.options, state.reducers
        self.state = state
        self._report = report
        self._gate = gate
        self._durable = run
        self._tracker = JobTracker(_plan(state, run.first_attempt), known)
        self._faults = FaultPlan(o.faults, o.fault_seed)
        self._faults.arm(len(state.splits), reducers, 0 if o.mode == "original" else o.f)
        # Inline, one execution waits for the other, which does not make it slow.
        watch = Watch() if o.speculation and state.result.on != "inline" else None
        self._under_way = UnderWay(o.deadline_s, o.f, watch, state.executor.waited_s)
        self._requests = Requests(o, state.splits, state.output, state.completed, state.workers, everywhere=run.durable)
        self._setups = Setups(state, gate)
        self._retests = Retests(state.executor, self._faults, state.job, bool(self._tracker.plan.checked))
        self._publication = Publication(
            state, gate, run, self._requests, self._under_way, self._tracker.plan.bound,
            lambda: self._tracker.ledger.stored_nbytes, self._now,
        )  # fmt: skip
        self._questions = Questions(state.executor, state.workers, self._now, self._pump)
        self._inquiry = Inquiry(
            state, gate, self._setups, self._under_way, self._requests, self._faults, self._questions, self._now
        )
        self._attention = Attention(self._now())
        self._progress = progress = Progress(len(state.splits) + reducers + (state.job.sample is not None))
        host = HostFaults(state.splits)
        self._answers = Answers(
            state, gate, self._requests, self._under_way, self._publication, self._questions, self._retests, host,
            progress, self._now,
        )  # fmt: skip
        self._deaths = Deaths(
            state, gate, run, self._under_way, self._setups, self._publication, self._retests, host, progress, self._now
        )  # fmt: skip
        self._done = False

    def run(self) -> None:
        """Run the job to its end: all parts are published to the output, which the caller then finishes; or raise."""
        for name in self.state.workers:
            self._setups.begin(name, self._now())
        try:
            if self._gate.admits:
                self._setups.admit_all(self._pump, self._now)
            for info in self.state.workers.values():
                if info.name not in self._gate.barred and not (self._gate.admits and info.name in self._setups):
                    self._tracker.handle(m.WorkerJoined(info.name, info.domain, cpu=info.cpu))
            self._recover()
            self._obey(None, self._tracker.start())
            self._pump(lambda: self._done, self._wait_s, self._attend)
        except (errors.TooFewDomains, errors.NoQuorum) as error:
            self._gate.blame(error)
            self._retests.blame(self._tracker, error)
            raise
        finally:
            self.state.result.suspects = self._retests.suspects(self._tracker)
        account(self.state, self._tracker.ledger, self._faults.injected)
        self._answers.note_overtaken()

    def parts(self) -> list[m.Part]:
        """The agreed output, part by part."""
        return [self.state.agreed[m.Task("reduce", i)].output.parts[0] for i in range(self.state.reducers)]

    def receipt(self, manifest: bytes) -> bytes | None:
        """The receipt of a job that is done, sealed by all workers that are left; None if it is not attested."""
        agreed = {task: one.attempt for task, one in self.state.agreed.items()}
        reads = [self.state.completed[agreed[m.Task("reduce", i)]].reply.records_in for i in range(self.state.reducers)]

        def see_to_it() -> None:
            self._flush_evidence()
            self._expire()

        made = self._gate.receipt(
            manifest, agreed, reads, lambda until: self._pump(until, then=see_to_it), lambda: bool(self._setups)
        )
        if made is None:
            return None
        receipt, self.state.result.attestation = made
        return receipt

    def diagnose(self) -> None:
        """Find out what the masked faults were, if there are any. The output is published, whatever comes of this."""
        self._inquiry.diagnose()

    def standings(self) -> dict[str, Standing]:
        """What was seen of each domain that is not cleared (R11)."""
        return self._inquiry.standings(self._tracker.standings)

    def left_behind(self) -> set[str]:
        """Workers that are still busy, after the job, with what was overdue."""
        return self._under_way.left_behind()

    @property
    def newcomers(self) -> set[str]:
        """Workers that were started during the job, in the place of dead ones."""
        return self._setups.newcomers

    def _pump(
        self, until: Callable[[], bool], wait_s: Callable[[], float] = lambda: TICK_S,
        then: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Take what arrives until something is so; ``then`` is done after each wait, of at most ``wait_s()``."""
        while not until():
            self._listen(asked_s=0.0)
            asked_s = wait_s()
            arrivals = self.state.executor.wait(asked_s)
            self._listen(asked_s)
            for arrival in arrivals:
                self._arrive(arrival)
                self._drain()  # before the next arrival: a worker that is gone must not be in the tracker's reach
            then()

    def _attend(self) -> None:
        """See to what is due."""
        self._overtake()
        self._drain()
        self._durable.commit()
        waiting = self._flush_evidence()
        self._expire()
        idle = not (self._under_way or self._publication.rereads.waiting or self._retests.waiting or waiting)
        if idle and not self._done:
            self.state.events.append(m.Stalled())
            self._drain()
        self._progress.executions = self._tracker.ledger.executions
        self._progress.votes = self._tracker.ledger.votes
        self._progress.faults = detected(self.state, self._tracker.ledger)
        self._report(self._progress)

    def _now(self) -> float:
        return time.monotonic()

    def _wait_s(self) -> float:
        """How long nothing is due."""
        now = self._now()
        first = min(self._under_way.next_due(), self._publication.rereads.next_due())
        return max(0.0, min(TICK_S, first - now, self._gate.next_due_s(now)))

    def _listen(self, asked_s: float) -> None:
        """If the driver was not there for a while, beyond what it meant to wait, that time is not the workers' (R9)."""
        away_s = self._attention.away_s(self._now(), asked_s)
        if away_s:
            for part in (self._under_way, self._publication.rereads, self._retests, self._setups, self._gate):
                part.postpone(away_s)

    def _drain(self) -> None:
        """Hand events to the tracker once it has started, and do what it says."""
        events = self.state.events
        while events and self._tracker.started and not self._done:
            event = events.pop(0)
            self._obey(event, self._tracker.handle(event))

    def _obey(self, event: m.Event | None, commands: Sequence[m.Command]) -> None:
        """Do what the tracker says about an event; of a durable job that is written down first."""
        self._durable.record(event, commands, self.state.reply_of)
        self._execute(commands)

    def _recover(self) -> None:
        """Take over what earlier runs of a durable job agreed on; no worker of this run holds any of it."""
        self.state.completed |= {one.launch.attempt: one for one in self._durable.executed()}
        for event in self._durable.recovered():
            self._tracker.handle(event)
            self.state.result.recovered += 1

    def _overtake(self) -> None:
        """Say who is overdue, while there are idle workers (R9)."""
        if len(self._under_way) < len(self.state.workers):
            known = self._under_way.left_behind()
            self.state.events += [m.Slow(attempt) for attempt in self._under_way.overdue(self._now())]
            for worker in self._under_way.left_behind() - known:  # what it was to read waits behind what it executes
                self._publication.reread_again(worker)

    def _expire(self) -> None:
        """Kill workers that are past a deadline; their death arrives like any other."""
        self._listen(asked_s=0.0)
        now, kill = self._now(), self.state.kill
        for running in self._under_way.expired(now):
            kill(running.launch.worker, f"no answer for {now - running.started:.1f} s, so it was killed")
        for worker in self._publication.rereads.expired(now):
            kill(worker, "it did not read a part in time, so it was killed")
        for worker in self._retests.late(now):
            kill(worker, "it did not answer a known-answer test in time, so it was killed")
        for worker in self._setups.late(now) if self._gate.admits else ():
            kill(worker, "it did not begin in time, so it was killed")

    def _arrive(self, arrival: Arrival) -> None:
        if arrival.raw is None:
            self._deaths.bury(arrival)
            return
        worker = arrival.worker
        try:
            reply = wire.decode_reply(arrival.raw)
        except errors.HostError:
            self.state.kill(worker, GARBAGE, hung=False)
            return
        if reply.generation != self.state.setup.generation:
            return  # a late reply to a job that ended before its workers did
        match reply:
            case wire.Tested():
                self._tested(worker, reply)
            case wire.NotTested(test, error):
                if self._retests.awaits(worker, test):
                    self.state.kill(worker, f"it could not do a known-answer test, so it was killed: {error}")
            case _ if isinstance(reply, wire.Attempted):
                self._answers.take(worker, reply)
            case _ if worker in self._setups:
                self._begun(worker, reply)
            case _:
                self._evidence(worker, reply)

    def _begun(self, worker: str, reply: wire.SetupReply | wire.EvidenceReply) -> None:
        """A worker has begun the job, so its deadlines run from now on; or it could not."""
        ready = self._setups.answered(worker, reply)
        if ready is not None:
            self.state.events += self._gate.ready(self.state.workers[worker], ready.admission)
            self._under_way.restart(worker, self._now())

    def _tested(self, worker: str, reply: wire.Tested) -> None:
        """A known-answer test is over, if one was under way there (R10)."""
        events = self._retests.ended(worker, reply)
        if events:
            self.state.events += events
            self.state.result.cpu_s += reply.cpu_s
            self._under_way.restart(worker, self._now())

    def _evidence(self, worker: str, reply: wire.SetupReply | wire.EvidenceReply) -> None:
        """Take evidence; a worker whose evidence is refused is shut out."""
        self.state.result.cpu_s += reply.cpu_s
        try:
            self.state.events += self._gate.take(worker, reply)
        except errors.AttestationError:
            self.state.executor.kill(worker)

    def _flush_evidence(self) -> bool:
        """Have batches committed that are due; tell whether evidence is still to come."""
        for worker in self._gate.flush(self._under_way.workers(), self._now()):
            self.state.kill(worker, "no evidence came in time, so it was killed")
        return self._gate.waiting or (self._gate.admits and bool(self._setups))  # a worker that begins may join

    def _execute(self, commands: Sequence[m.Command]) -> None:
        for command in commands:
            match command:
                case m.Launch():
                    self._launch(command)
                case m.Check():
                    self._check(command)
                case m.Cancel(attempt):
                    cancelled = self._under_way.cancel(attempt)
                    if cancelled is not None:
                        self.state.detected += self._under_way.was_late(attempt) and cancelled.fault is not None
                case m.Discard(attempt):
                    self._discard(attempt)
                case m.Agreed():
                    self._agree(command)
                case m.Accused(task, attempt):
                    self.state.accuse(task, attempt)
                case m.Retest():
                    free_at = self._under_way.free_at(command.worker, self._now())
                    self._retests.begin(command, self.state.names(command.worker), free_at)
                case m.JobDone():
                    self._done = True
                case m.JobFailed(reason, task, message):
                    where = f"{task}: " if task is not None else ""
                    if task is not None and reason == "copies_lost":
                        where += f"cannot read back what was written: {self._publication.why_unread(task)}; "
                    raise _REASONS[reason](f"{where}{message}")

    def _launch(self, launch: m.Launch) -> None:
        task, names = launch.task, self.state.names(launch.worker)
        fault = self._faults.strike(task.kind, task.index, launch.replica, launch.store, names)
        self._assign(launch, fault, self._requests.of(launch, fault))

    def _check(self, check: m.Check) -> None:
        """Have a stored output checked. Its key is drawn now: nobody knew it when the output was made (R13)."""
        task, names = check.task, self.state.names(check.worker)
        fault = self._faults.strike_check(task.kind, task.index, check.replica, names)
        self._assign(check, fault, self._requests.check(check, secrets.token_bytes(32), fault))

    def _assign(self, given: m.Assignment, fault: wire.Fault | None, request: wire.Request) -> None:
        pending, engaged = given.worker in self._setups, self._retests.engage(given.worker)
        nbytes = input_nbytes(given, self.state.splits, self.state.completed)
        self._under_way.begin(given, fault, nbytes, self._now(), pending, engaged)
        self.state.send(given.worker, request)

    def _discard(self, attempt: int) -> None:
        one = self.state.completed.get(attempt)
        if one is not None and not (self.state.options.diagnose and self.state.incidents.hold(one)):
            self.state.send(one.worker.name, wire.DiscardTask((attempt,)))

    def _agree(self, agreed: m.Agreed) -> None:
        self._progress.agreed += agreed.task not in self.state.agreed
        self.state.agreed[agreed.task] = agreed
        if agreed.task.kind == "sample":
            self._requests.side = self.state.completed[agreed.attempt].reply.data
        elif agreed.task.kind == "reduce":
            self._publication.agreed(agreed)
