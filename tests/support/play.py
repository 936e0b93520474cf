"""Scripted jobs for the tests of single rules and for the golden scenarios: honest unless told otherwise."""

from __future__ import annotations

from typing import Any

from simulator import Cluster

from quoreduce.tracker import (
    Accused,
    Agreed,
    BlockLost,
    Cancel,
    Check,
    Checked,
    Discard,
    Executed,
    Failed,
    Finished,
    JobDone,
    JobFailed,
    JobTracker,
    Launch,
    Output,
    Plan,
    Published,
    Recovered,
    Refused,
    Retest,
    Retested,
    Slow,
    Task,
    WorkerJoined,
    WorkerLost,
)


class Play:
    """A job on workers w0, w1... in domains d0, d1... with `slots` each, invariants checked after every event.

    Tests are answered at once; the domains `broken` fail theirs. `known`: what earlier jobs found. `types`: of the CPUs
    of domains that join after these.
    """

    def __init__(
        self, domains: int = 4, slots: int = 9, known: Any = None, broken: tuple[str, ...] = (),
        types: tuple[str, ...] = (), **plan: Any,
    ) -> None:  # fmt: skip
        self.plan = Plan(**({"maps": 1, "reduces": 1, "f": 1, "mode": "bft"} | plan))
        self.cluster = Cluster(self.plan, JobTracker(self.plan, known), checked=True, transcript=[])
        self.cluster.tests_at_once, self.cluster.broken = True, set(broken)
        self.tracker = self.cluster.tracker
        self.ledger = self.tracker.ledger
        for d in range(domains):
            self.cluster.join(f"w{d}", f"d{d}", slots)
        for d, cpu in enumerate(types):
            self.cluster.join(f"w{d}", f"d{d}", slots, cpu)
        self.cluster.start()

    def die(self) -> None:
        """The driver dies and another one goes on, on workers in as many domains, whose names are others."""
        slots, self.cluster = list(self.cluster.slots.values()), self.cluster.reborn(JobTracker)
        self.tracker, self.ledger = self.cluster.tracker, self.cluster.tracker.ledger
        for d, n in enumerate(slots):
            self.cluster.join(f"v{d}", f"e{d}", n)
        self.cluster.start()

    @property
    def last(self) -> list[Any]:
        """What the last event led to, but for those that end a test."""
        events = self.cluster.transcript or []
        return next(commands for event, commands in reversed(events) if not isinstance(event, Retested))

    @property
    def result(self) -> Any:
        return self.cluster.result

    def of(self, task: str) -> list[Launch]:
        """All executions of a task, such as "map 0"."""
        return [launch for launch in self.cluster.launches.values() if str(launch.task) == task]

    def domains(self, task: str) -> list[str]:
        return [self.cluster.domain_of[launch.worker] for launch in self.of(task)]

    def running(self, task: str) -> list[Launch]:
        return [c for c in self.of(task) if c in self.cluster.flying and c.attempt not in self.cluster.cancelled]

    def answer(self, task: str, replica: int | None = None, how: str = "", error: str = "") -> list[Any]:
        """A running replica (the first, if not said) answers: the truth, or `how` of the cluster's kinds of wrong."""
        running = self.running(task)
        c = next(c for c in running if replica in (None, c.replica))
        return self.reply(c.attempt, how, error)

    def check(self, task: str, lie: str = "") -> list[Any]:
        """The first check of a task that is under way answers: honestly, or it lies (`CheckAnswers.check`)."""
        flying = self.cluster.flying
        k = next(k for k, c in enumerate(flying) if isinstance(c, Check) and str(c.task) == task)
        self.cluster.check(k, lie)
        return self.last

    def execute(self, task: str, replica: int | None = None) -> list[Any]:
        """A running replica ends, but its answer is to come."""
        c = next(c for c in self.running(task) if replica in (None, c.replica))
        self.cluster.execute(self.cluster.flying.index(c))
        return self.last

    def reply(self, attempt: int, how: str = "", error: str = "") -> list[Any]:
        k = next(k for k, c in enumerate(self.cluster.flying) if c.attempt == attempt)
        self.cluster.reply(k, getattr(self.cluster, how) if how else None, error)
        return self.last

    def slow(self, task: str, replica: int) -> list[Any]:
        """The driver says that a running replica is overdue."""
        (c,) = [c for c in self.running(task) if c.replica == replica]
        self.cluster.lag(c)
        return self.last

    def finish(self) -> None:
        """Everybody answers honestly, in the order of launches, until the job is over."""
        for _ in range(1000):
            if self.result is not None or not self.cluster.flying:
                return
            self.reply(min(c.attempt for c in self.cluster.flying))

    def done(self) -> bool:
        self.finish()
        self.cluster.expect_truth()
        return isinstance(self.result, JobDone)

    def agreed(self, task: str) -> bool:
        kind, index = task.split()
        return Task(kind, int(index)) in self.cluster.agreed  # type: ignore[arg-type]


def text_of(transcript: list[tuple[Any, list[Any]]]) -> str:
    """A transcript as plain text: `>` what happened, indented what the tracker wants done about it."""
    lines = []
    for event, commands in transcript:
        lines.append(f"> {_event(event)}")
        lines += [f"    {_command(command)}" for command in commands]
    return "\n".join(lines) + "\n"


def _output(output: Output) -> str:
    return output.digest.decode()


def _event(event: Any) -> str:
    match event:
        case None:
            return "start"
        case WorkerJoined(worker, domain, slots, _):
            return f"{worker} joined in {domain} with {slots} slots"
        case WorkerLost(worker, blocks_lost):
            return f"{worker} lost{', and its blocks' if blocks_lost else ''}"
        case Finished(attempt, output):
            return f"#{attempt} finished: {_output(output)}"
        case Executed(attempt):
            return f"#{attempt} executed"
        case Checked(attempt, output, given, found):
            sums = "equal sums" if given == found else "different sums"
            return f"#{attempt} checked: {_output(output)}, {sums}"
        case Failed(attempt, error, _):
            return f"#{attempt} raised: {error}"
        case Refused(attempt, bad):
            return f"#{attempt} refused {', '.join(f'#{b}' for b in bad)}"
        case BlockLost(attempt):
            return f"block of #{attempt} lost"
        case Slow(attempt):
            return f"#{attempt} is slow"
        case Published(attempt):
            return f"#{attempt} published"
        case Retested(test, passed):
            return f"test {test} {'passed' if passed else 'failed'}"
        case Recovered(task, attempt, output, domains, stored):
            where = "" if stored else "; its copy is lost"
            return f"{task} was agreed on before: {_output(output)} (#{attempt}; {', '.join(domains)}){where}"
    return type(event).__name__.lower()


def _command(command: Any) -> str:
    match command:
        case Launch(attempt, task, replica, worker, store, sources):
            read = " ".join("+".join(f"#{s.attempt}" for s in copies) for copies in sources)
            stores = " storing" if store else ""
            return (
                f"launch #{attempt}: {task}, replica {replica}, on {worker}{stores}{' reading ' + read if read else ''}"
            )
        case Check(attempt, task, replica, worker, stored, sources):
            read = " ".join("+".join(f"#{s.attempt}" for s in copies) for copies in sources)
            reading = f" reading {read}" if read else ""
            return f"check #{attempt}: of #{stored} of {task}, number {replica}, on {worker}{reading}"
        case Cancel(attempt):
            return f"cancel #{attempt}"
        case Discard(attempt):
            return f"discard #{attempt}"
        case Agreed(task, attempt, output, domains, checkers):
            checked = f"; checked by {', '.join(checkers)}" if checkers else ""
            return f"agreed: {task} is {_output(output)} (#{attempt}; {', '.join(domains)}{checked})"
        case Accused(task, attempt, domain):
            return f"accused: {domain}, for #{attempt} of {task}"
        case Retest(test, domain, worker):
            return f"test {test}: of {domain}, on {worker}"
        case JobFailed(reason, task, message):
            return f"job failed: {reason} ({task}): {message}"
    return "job done"
