"""What the parts of a driver share while a job runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from quoreduce.data.commit import OutputPlace
from quoreduce.data.splits import Split
from quoreduce.driver.incidents import CompletedAttempt, Incident, Incidents
from quoreduce.driver.result import Result
from quoreduce.job import Job
from quoreduce.protocol import wire
from quoreduce.protocol.options import Options
from quoreduce.protocol.port import Executor, WorkerInfo
from quoreduce.tracker import messages as m


@dataclass(slots=True)
class JobState:
    """One job, where it runs, and what has come of it so far.

    Attributes:
        setup: what each worker is told when it begins.
        workers: those that are alive, by name; the session's own.
        completed: executions that ended with an output, by attempt.
        agreed: what won, by task.
        events: what the tracker is to be told, in this order.
        detected: faults that the tracker does not hear of.
    """

    job: Job
    options: Options
    splits: Sequence[Split]
    output: OutputPlace
    executor: Executor
    workers: dict[str, WorkerInfo]
    setup: wire.Setup
    result: Result
    completed: dict[int, CompletedAttempt] = field(default_factory=dict)
    agreed: dict[m.Task, m.Agreed] = field(default_factory=dict)
    events: list[m.Event] = field(default_factory=list)
    incidents: Incidents = field(default_factory=Incidents)
    detected: int = 0

    @property
    def reducers(self) -> int:
        """Number of parts."""
        return self.setup.reducers

    def reply_of(self, attempt: int) -> wire.Done | None:
        """What an attempt replied, if it ended with an output."""
        one = self.completed.get(attempt)
        return None if one is None else one.reply

    def names(self, worker: str) -> tuple[str, str, str]:
        """What a worker's domain goes by in ``--fault``: its name, the worker's, its number in order of names. Nothing,
        where no fault is asked for.
        """
        if not self.options.faults:
            return "", "", ""
        info = self.workers[worker]
        number = sorted({w.domain for w in self.workers.values()}).index(info.domain)
        return info.domain, info.name, str(number)

    def send(self, worker: str, request: wire.Request) -> None:
        """Send a request to a worker."""
        self.executor.submit(worker, wire.encode(request))

    def kill(self, worker: str, why: str, hung: bool = True) -> None:
        """Kill a worker, and remember why; its death arrives like any other."""
        self.incidents.killed[worker] = (why, hung)
        self.executor.kill(worker)

    def accuse(self, task: m.Task, attempt: int) -> None:
        """An attempt has lost its vote, or a check was wrong: the ledger counts it, and it will be looked into."""
        known = self.completed.get(attempt) or self.incidents.raised.get(attempt)
        if attempt in self.incidents.checked:
            why = "what its check found is not what f+1 executions agreed on"
            self.incidents.add(Incident("check", self.incidents.checked[attempt], task, attempt, why=why))
        elif known is not None:
            self.incidents.lost_vote(task, attempt, known.worker)
