"""What becomes of the answers to tasks, checks and questions: votes, figures, and notes of what went wrong."""

from __future__ import annotations

from collections.abc import Callable

from quoreduce.data.splits import check_unchanged
from quoreduce.driver.figures import KINDS_ANSWERED, Progress
from quoreduce.driver.hostfaults import HostFaults
from quoreduce.driver.incidents import CompletedAttempt, Incident
from quoreduce.driver.jobstate import JobState
from quoreduce.driver.plain import OpenGate
from quoreduce.driver.publication import Publication
from quoreduce.driver.questions import Questions
from quoreduce.driver.requests import Requests
from quoreduce.driver.retests import Retests
from quoreduce.driver.underway import Running, UnderWay
from quoreduce.protocol import wire
from quoreduce.protocol.outcome import event_of
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m


class Answers:
    """Takes the answers of workers. ``clock``: in seconds."""

    def __init__(
        self, state: JobState, gate: OpenGate, requests: Requests, under_way: UnderWay, publication: Publication,
        questions: Questions, retests: Retests, host: HostFaults, progress: Progress, clock: Callable[[], float],
    ) -> None:  # fmt: skip
        self._state = state
        self._gate = gate
        self._requests = requests
        self._under_way = under_way
        self._publication = publication
        self._questions = questions
        self._retests = retests
        self._host = host
        self._progress = progress
        self._clock = clock

    def take(self, worker: str, reply: wire.Attempted) -> None:
        """An attempt, a reading of a part or a question was answered; late answers, and those to others, are ignored
        (R10).
        """
        if self._questions.take(worker, reply):
            return
        if reading := self._publication.rereads.ended(worker, reply.attempt):
            self._publication.reread(reading, reply)
        elif one := self._under_way.find(worker, reply.attempt):
            self._executed(one, reply)

    def _executed(self, one: Running, reply: wire.Attempted) -> None:
        self._state.result.cpu_s += reply.cpu_s
        if isinstance(reply, wire.Done | wire.Summed):
            self._progress.struck_by(one.fault, KINDS_ANSWERED)
        if self._under_way.cancelled.pop(reply.attempt, None):
            self._vote(one, reply, twice=False)
            return
        self._host.worked()
        self._under_way.finished(one, self._clock(), self._retests.engage)
        self._note_failure(one, reply)
        launch, info = one.launch, self._state.workers[one.launch.worker]
        if isinstance(launch, m.Check):
            self._summed(launch, info, reply)
        else:
            parts = self._state.reducers if launch.task.kind == "map" else 1
            self._state.incidents.note(launch, info, reply, parts, self._state.completed)
            if isinstance(reply, wire.Done):
                self._state.completed[reply.attempt] = CompletedAttempt(reply, info, launch)
                self._count(launch, reply)
        self._vote(one, reply, twice=one.fault is not None and one.fault.kind == "late")

    def _summed(self, check: m.Check, info: WorkerInfo, reply: wire.Attempted) -> None:
        """Remember what a check found, for the diagnosis."""
        self._state.incidents.checked[check.attempt] = info
        if isinstance(reply, wire.Summed):
            self._state.result.bytes_shipped += reply.bytes_shipped
            self._state.detected += reply.refetched

    def _note_failure(self, one: Running, reply: wire.Attempted) -> None:
        """An execution has no output: end the job if the reason is one for that, or remember why for the message."""
        state, task = self._state, one.launch.task
        match reply:
            case wire.HostFailed(_, error):
                sound = {info.domain for info in state.workers.values()}
                domain = state.workers[one.launch.worker].domain
                self._host.failed(error, domain, sound, state.options.replicas_needed)
            case wire.InputsRefused(_, bad, error):
                lost = [kept.launch.task for attempt in bad if (kept := state.completed.get(attempt))]
                self._publication.unread([task, *lost], error)
            case wire.JobRaised():  # if what it read has changed since the job was planned, that is why (InputError)
                if task.kind == "map":
                    check_unchanged(state.splits[task.index : task.index + 1])
                elif task.kind == "sample":
                    check_unchanged(state.splits)

    def _count(self, launch: m.Launch, reply: wire.Done) -> None:
        """Count what an execution shipped and stored, and what it found out about copies."""
        self._state.result.bytes_shipped += reply.bytes_shipped
        if launch.task.kind == "reduce" and launch.store:
            self._state.result.bytes_stored += (self._requests.copies - 1) * reply.parts[0].nbytes
        self._state.detected += reply.refetched
        if reply.bad:
            read = {source.attempt for copies in launch.sources for source in copies}
            self._state.events += [m.BlockLost(attempt) for attempt in reply.bad if attempt in read]

    def _vote(self, one: Running, reply: wire.Attempted, twice: bool) -> None:
        """Hand an answer to the tracker; of an attested job, when there is evidence. One that came ``twice`` is handed
        over twice: the tracker ignores the second (R10).
        """
        if twice:
            info, why = self._state.workers[one.launch.worker], "its answer came twice; one counted"
            self._state.incidents.add(Incident("late", info, one.launch.task, reply.attempt, why=why))
            self._state.detected += 1
        launch = one.launch
        events = (event_of(launch.task.kind, reply),) * (1 + twice)
        if isinstance(launch, m.Check):
            self._state.events += events
        else:
            self._state.events += self._gate.hear(
                launch, one.started, reply, events, lambda: self._requests.of(launch, None), self._clock()
            )

    def note_overtaken(self) -> None:
        """What was overtaken and has not answered is an incident."""
        for one in self._under_way.cancelled.values():
            if self._under_way.was_late(one.launch.attempt):
                info, waited_s = self._state.workers[one.launch.worker], self._clock() - one.started
                self._state.incidents.overtaken(info, one.launch, waited_s)
