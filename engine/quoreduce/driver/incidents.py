"""What went wrong in a job, noted as it happens; :mod:`quoreduce.driver.detective` looks into it when the job is
done.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from quoreduce.protocol import wire
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m

INCIDENTS_MAX = 256
HELD_MAX = 16
HELD_BYTES_MAX = 256 << 20
GARBAGE = "what it sent is no answer, so it was killed"
What = Literal["vote", "check", "copy", "part", "slip", "late", "garbage", "death"]


@dataclass(slots=True)
class CompletedAttempt:
    """What is remembered of an execution that ended with an output."""

    reply: wire.Done
    worker: WorkerInfo
    launch: m.Launch


@dataclass(slots=True)
class RaisedAttempt:
    """What is remembered of an execution that ended with an error of the job's code."""

    reply: wire.JobRaised
    worker: WorkerInfo
    launch: m.Launch


@dataclass(slots=True)
class Incident:
    """One thing that went wrong.

    Attributes:
        what: ``vote``: a lost vote. ``check``: a check that was wrong. ``copy``: readers could not use a map's copy.
            ``part``: a part could not be read back. ``slip``: a partition was fetched wrong once. ``late``: an answer
            came twice. ``garbage``: a reply was malformed. ``death``: a worker died, or was overtaken.
        worker: voted, stored, read wrong (``slip``), answered or died.
        task, attempt: what this is about, if it is about one.
        partition: of a copy, the first that could not be used.
        readers: could not use the copy or the part.
        why: in words.
        hung: of a death: the worker did not answer in time.
    """

    what: What
    worker: WorkerInfo
    task: m.Task | None = None
    attempt: int | None = None
    partition: int = 0
    readers: list[WorkerInfo] = field(default_factory=list)
    why: str = ""
    hung: bool = False
    slip: wire.Slip | None = None


@dataclass(slots=True)
class Incidents:
    """All that went wrong in a job, up to INCIDENTS_MAX; ``more`` counts what was not kept.

    ``held``: attempts that lost their votes, whose stored copies are not discarded yet, and their bytes. ``dropped``:
    those that were discarded, for there were too many. ``raised``: executions that ended in an error. ``checked``: by
    check, who answered it. ``killed``: why the driver killed workers, and whether because they did not answer.
    ``closed``: the job is over, what happens now is its diagnosis.
    """

    found: list[Incident] = field(default_factory=list)
    more: int = 0
    accused: set[int] = field(default_factory=set)
    held: dict[int, int] = field(default_factory=dict)
    dropped: set[int] = field(default_factory=set)
    raised: dict[int, RaisedAttempt] = field(default_factory=dict)
    checked: dict[int, WorkerInfo] = field(default_factory=dict)
    killed: dict[str, tuple[str, bool]] = field(default_factory=dict)
    deaths: Counter[str] = field(default_factory=Counter)
    closed: bool = False
    _copies: dict[int, Incident] = field(default_factory=dict)

    def add(self, incident: Incident) -> None:
        """Note one."""
        if self.closed:
            return
        if len(self.found) >= INCIDENTS_MAX:
            self.more += 1
            return
        self.found.append(incident)

    def note(
        self,
        launch: m.Launch,
        info: WorkerInfo,
        reply: wire.Attempted,
        parts: int,
        stored: Mapping[int, CompletedAttempt],
    ) -> None:
        """Remember what a diagnosis will need: errors, and inputs that were not right.

        Args:
            launch, info, reply: what was executed, by which worker, and its answer.
            parts: the number of parts that the answer should have.
            stored: executions whose copies it may have read, by attempt.
        """
        bad: tuple[int, ...] = ()
        slips: tuple[wire.Slip, ...] = ()
        match reply:
            case wire.JobRaised(attempt):
                self.raised[attempt] = RaisedAttempt(reply, info, launch)
            case wire.InputsRefused():
                bad = reply.bad
            case wire.Done():
                bad, slips = reply.bad, reply.slips
                if len(reply.parts) != parts:
                    why = f"it gave {len(reply.parts)} partitions, not {parts}"
                    self.add(Incident("garbage", info, launch.task, launch.attempt, why=why))
        if not bad and not slips:
            return
        read = {source.attempt for copies in launch.sources for source in copies}
        for attempt in read.intersection(bad):
            self.unusable(launch, info, attempt, stored[attempt])
        for slip in slips:
            if slip.attempt in read:
                self.add(Incident("slip", info, launch.task, launch.attempt, launch.task.index, slip=slip))

    def lost_vote(self, task: m.Task, attempt: int, worker: WorkerInfo) -> None:
        """An attempt lost its vote."""
        self.accused.add(attempt)
        self.add(Incident("vote", worker, task, attempt))

    def unusable(self, reader: m.Assignment, who: WorkerInfo, attempt: int, stored: CompletedAttempt) -> None:
        """A reduce could not use a map's copy: one incident for all readers of that copy."""
        known = self._copies.get(attempt)
        if known is None:
            known = self._copies[attempt] = Incident(
                "copy", stored.worker, stored.launch.task, attempt, reader.task.index
            )
            self.add(known)
        if len(known.readers) < HELD_MAX:
            known.readers.append(who)

    def hold(self, kept: CompletedAttempt) -> bool:
        """Whether to keep an attempt's stored copy as evidence until the job is over: a map's that lost its vote."""
        launch = kept.launch
        if launch.attempt not in self.accused or launch.task.kind != "map":
            return False
        nbytes = sum(part.nbytes for part in kept.reply.parts)
        if len(self.held) >= HELD_MAX or sum(self.held.values()) + nbytes > HELD_BYTES_MAX:
            self.dropped.add(launch.attempt)
            return False
        self.held[launch.attempt] = nbytes
        return True

    def overtaken(self, info: WorkerInfo, launch: m.Assignment, waited_s: float) -> None:
        """An execution was overtaken, and had not answered when the job was done."""
        why = f"no answer for {waited_s:.1f} s; it was overtaken, and the job is done without it"
        self.add(Incident("death", info, launch.task, launch.attempt, why=why, hung=True))

    def death(self, info: WorkerInfo, status: int | None, hung: bool, running: list[m.Assignment]) -> None:
        """A worker is gone; ``status``: as of :class:`subprocess.Popen`, if it is known."""
        why, hung = self.killed.pop(info.name, ("", hung))
        if why == GARBAGE:
            self.add(Incident("garbage", info, *_about(running), why=why))
            return
        self.deaths[info.domain] += not self.closed
        said = why or ("it would never have answered" if hung else _ended(status))
        for launches in [[launch] for launch in running] or [[]]:
            self.add(Incident("death", info, *_about(launches), why=said, hung=hung))


def _about(running: list[m.Assignment]) -> tuple[m.Task | None, int | None]:
    return (running[0].task, running[0].attempt) if running else (None, None)


def _ended(status: int | None) -> str:
    if status is None:
        return "its process died"
    if status < 0:
        import signal

        try:
            return f"its process was killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"its process was killed by signal {-status}"
    return f"its process ended with exit status {status}"
