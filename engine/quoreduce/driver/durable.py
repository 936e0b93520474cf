"""Durable jobs: what a driver writes down, and how another driver resumes the job if the first is killed
(docs/guide/durable.md).

A :class:`DurableRun` is one driver's turn at a durable job. It hears every event and command of the tracker before it
is carried out. It writes down what was agreed on, where that is stored, and which copies are gone. The next run hands
this to its tracker (``Recovered``) before the start. Attempts are numbered through all runs, so that none writes to a
file of another.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

from quoreduce.data.commit import OutputDir, OutputPlace, output_errors
from quoreduce.data.formats import parse_format
from quoreduce.data.identity import Identity
from quoreduce.data.journal import (
    Begun,
    BlocksGone,
    Decided,
    ForeignJournal,
    Header,
    Journal,
    JournalInput,
    Launched,
    Record,
)
from quoreduce.data.splits import Split, is_uri, plan_splits, public_name
from quoreduce.driver.incidents import CompletedAttempt
from quoreduce.driver.plain import PlainRun, Replies
from quoreduce.errors import JobError, JournalError, NotDeterministic, OutputError
from quoreduce.job import Job
from quoreduce.ownership import why_foreign
from quoreduce.protocol import wire
from quoreduce.protocol.options import Options, Place
from quoreduce.protocol.port import WorkerInfo
from quoreduce.tracker import messages as m
from quoreduce.version import __version__

ATTEMPTS_A_RUN = 10**9
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Taken:
    """What an earlier run agreed on; ``stored``: whether a copy of it can be read."""

    decided: Decided
    stored: bool


@dataclass(slots=True)
class DurableRun(PlainRun):
    """One run of a durable job: from when a driver takes it up until that driver ends.

    Attributes:
        place: the output.
        header: the job.
        options, splits: what the header says, decoded and planned.
        number: of the run, from 0.
        taken: what earlier runs agreed on, in that order.
    """

    place: OutputDir
    journal: Journal
    header: Header
    options: Options
    splits: Sequence[Split]
    number: int = 0
    taken: Sequence[Taken] = ()
    _tasks: dict[int, m.Task] = field(default_factory=dict)
    _agreed: dict[m.Task, m.Agreed] = field(default_factory=dict)
    _unsynced: bool = False

    @property
    def first_attempt(self) -> int:
        """Number of this run's first attempt."""
        return self.number * ATTEMPTS_A_RUN

    @property
    def durable(self) -> bool:
        """What maps store is in a folder beside the output."""
        return True

    def store(self) -> str:
        """The folder in which this run's workers store what their maps put out."""
        return self.place.blocks_path(self.number)

    def job(self) -> Job:
        """The job; JournalError if its code cannot be found any more."""
        import cloudpickle

        try:
            job: Job = cloudpickle.loads(self.header.job)
        except Exception as error:
            raise JournalError(f"job {self.header.name} cannot be loaded: {type(error).__name__}: {error}") from error
        return job

    def where(self, **said: Any) -> Place:
        """Where the job is resumed: as before, with the fields of :class:`Place` that are ``said`` now and not None."""
        before = _decoded(self.header.place, Place)
        given = {name: value for name, value in said.items() if value is not None}
        return replace(before if given.get("on", before.on) == before.on else Place(), **given)

    def recovered(self) -> list[m.Recovered]:
        """Events for the tracker, before its start."""
        return [_recovered(one.decided, one.stored) for one in self.taken]

    def executed(self) -> Iterator[CompletedAttempt]:
        """What the attempts taken over replied; no worker of this run holds any of it."""
        for one in self.taken:
            d = one.decided
            launch = m.Launch(d.attempt, m.Task(d.kind, d.index), 0, "", True)
            yield CompletedAttempt(_reply(d), WorkerInfo("", d.domains[0], ""), launch)

    def record(self, event: m.Event | None, commands: Sequence[m.Command], replies: Replies) -> None:
        """Write down an event and what the tracker wants done about it, before it is done."""
        records = [*self._heard(event, replies), *(one for command in commands for one in self._told(command, replies))]
        if records:
            with output_errors(self.place.journal_path):
                self.journal.append(records)
            self._unsynced |= any(isinstance(one, Decided) for one in records)

    def commit(self) -> None:
        """Force what was agreed on to disk: before anything is published that stands on it."""
        if self._unsynced:
            with output_errors(self.place.journal_path):
                self.journal.sync()
            self._unsynced = False

    def _heard(self, event: m.Event | None, replies: Replies) -> Iterator[Record]:
        match event:
            case m.Finished(attempt, output):  # perhaps a copy of what was agreed on, and had none or lost it
                agreed = self._agreed.get(self._tasks.get(attempt) or m.Task("sample", -1))
                reply = replies(attempt)
                if (
                    agreed is not None
                    and agreed.task.kind == "map"
                    and agreed.output == output
                    and reply
                    and reply.path
                ):
                    yield _decided(agreed, attempt, reply)
            case m.Refused(_, bad) if bad:
                yield BlocksGone(bad)
            case m.BlockLost(attempt):
                yield BlocksGone((attempt,))

    def _told(self, command: m.Command, replies: Replies) -> Iterator[Record]:
        match command:
            case m.Launch(attempt, task):
                self._tasks[attempt] = task
                yield Launched(task.kind, task.index, attempt)
            case m.Agreed(task, attempt):
                self._agreed[task] = command
                reply = replies(attempt)
                if attempt >= self.first_attempt and reply is not None:
                    yield _decided(command, attempt, reply)
            case m.Discard(attempt):
                yield BlocksGone((attempt,))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the journal if the job is cut short; delete everything if its outcome is definite."""
        try:
            yield
        except (JobError, NotDeterministic):
            self.place.abort()
            raise
        except BaseException as error:
            self.place.release()
            error.add_note(f"what was agreed on is kept: quoreduce resume {self.place.path}")
            raise
        finally:
            self.journal.close()


def _recovered(one: Decided, stored: bool) -> m.Recovered:
    parts = tuple(m.Part(digest, records, nbytes) for digest, records, nbytes, _ in one.parts)
    return m.Recovered(
        m.Task(one.kind, one.index), one.attempt, m.Output(one.digest, parts), one.domains, stored, one.checkers
    )


def _reply(one: Decided) -> wire.Done:
    parts = tuple(wire.PartReply(*part) for part in one.parts)
    return wire.Done(
        one.attempt, parts, one.path, one.data, one.records_in, one.bytes_in, counters=one.counters
    )  # fmt: skip


def _decided(agreed: m.Agreed, attempt: int, reply: wire.Done) -> Decided:
    parts = tuple((p.digest, p.records, p.nbytes, p.offset) for p in reply.parts)
    return Decided(
        agreed.task.kind, agreed.task.index, attempt, agreed.domains, agreed.output.digest, parts, reply.path,
        reply.data, reply.records_in, reply.bytes_in, reply.counters, agreed.checkers,
    )  # fmt: skip


def begin(
    place: OutputPlace, job: Job, setup: wire.Setup, where: Place, inputs: Sequence[str], splits: Sequence[Split],
    split_bytes: int, options: Options,
) -> DurableRun:  # fmt: skip
    """Begin a durable job: from now on it can be resumed. ``setup``: what its workers are told. ``where``: where they
    are.

    Raises:
        OutputError: others may write where the journal would be, so that it would not be trusted.
    """
    assert isinstance(place, OutputDir), "URIs were refused"
    if foreign := why_foreign(place.staging):
        raise OutputError(
            f"a durable job beside {place.path} could not be resumed, for {place.staging} {foreign}; choose an output "
            "in a folder that only you may write, or run it without --durable"
        )
    header = Header(
        __version__, job.name, setup.job, msgspec.msgpack.encode(options), msgspec.msgpack.encode(where),
        tuple(source if is_uri(source) else os.path.abspath(source) for source in inputs), job.input, split_bytes,
        _sources(splits), _digest(splits), setup.reducers, setup.key,
    )  # fmt: skip
    with output_errors(place.journal_path):
        journal = Journal.create(place.journal_path, [header, Begun(0)])
    return DurableRun(place, journal, header, options, splits)


@contextmanager
def reopen(output: str, named: bytes | None = None) -> Iterator[DurableRun]:
    """Take up the durable job that was writing ``output``, and keep other drivers out meanwhile.

    Args:
        named: the job that the caller expects, pickled. None: the job of the journal, which must be this user's own
            file.

    Raises:
        JournalError: there is no journal, it is corrupt or not this user's, the job is not the expected one, or its
            inputs have changed. Nothing is changed then.
        OutputError: another run is writing there, or the output exists by now.
        InputError: an input is gone.
    """
    place = OutputDir.reopen(output)
    journal: Journal | None = None
    try:
        try:
            with output_errors(place.journal_path):
                journal, records = Journal.open(place.journal_path)
        except ForeignJournal as error:
            raise JournalError(
                f"the journal {place.journal_path} is not trusted, and its job is not run: {error}"
            ) from error
        except JournalError as error:
            raise JournalError(f"the journal {place.journal_path} is corrupt: {error}; {_advice(place)}") from error
        run = _taken_up(place, journal, records, named)
        with output_errors(place.journal_path):
            journal.append([Begun(run.number)])
            journal.sync()
        yield run
    finally:
        if journal is not None:
            journal.close()
        place.release()


def _taken_up(place: OutputDir, journal: Journal, records: Sequence[Record], named: bytes | None) -> DurableRun:
    header = records[0]
    assert isinstance(header, Header), "Journal.open has seen to it"
    if header.version != __version__:
        raise JournalError(
            f"the job was begun by quoreduce {header.version}, and this is {__version__}: resume it with that one; "
            f"{_advice(place)}"
        )
    if named is not None and blake3(named).digest() != blake3(header.job).digest():
        raise JournalError(
            f"the journal is of job {header.name}, digest {blake3(header.job).hexdigest()[:16]}, and the job that is "
            f"named has {blake3(named).hexdigest()[:16]}: it is another one, or was changed since; {_advice(place)}"
        )
    options = _decoded(header.options, Options)
    splits = _unchanged(place, header)
    number = sum(isinstance(one, Begun) for one in records)
    decided = [one for one in records if isinstance(one, Decided)]
    place.go_on(options.overwrite, options.sync, {one.index: one.attempt for one in decided if one.kind == "reduce"})
    gone = {attempt for one in records if isinstance(one, BlocksGone) for attempt in one.attempts}
    return DurableRun(place, journal, header, options, splits, number, _latest(place, decided, gone))


def _latest(place: OutputDir, decided: Sequence[Decided], gone: set[int]) -> list[Taken]:
    """What was agreed on, in that order: of each task the copy that came last and is still there, if there is one."""
    latest: dict[tuple[str, int], Taken] = {}
    for one in decided:
        stored = one.attempt not in gone and _is_there(place, one)
        if stored or (one.kind, one.index) not in latest:
            latest[one.kind, one.index] = Taken(one, stored)
    return list(latest.values())


def _is_there(place: OutputDir, one: Decided) -> bool:
    """Whether a stored output can be found; that it is right is seen by those who read it (R6, R8)."""
    if one.kind == "sample":
        return True  # in the journal
    path = place.attempt_path(one.index, one.attempt) if one.kind == "reduce" else one.path
    return bool(path) and os.path.isfile(path)


def _unchanged(place: OutputDir, header: Header) -> Sequence[Split]:
    """Plan the splits again, and see that the inputs are what they were."""
    splits = plan_splits(header.inputs, parse_format(header.format), header.split_bytes)
    before, now = {one.path: one for one in header.sources}, {one.path: one for one in _sources(splits)}
    changed = sorted(
        path
        for path in before.keys() | now.keys()
        if path not in before or path not in now or not before[path].same(now[path])
    )
    if changed or _digest(splits) != header.splits:
        which = public_name(changed[0]) if changed else "it is cut into other splits"
        raise JournalError(f"the input has changed since the job began: {which}; {_advice(place)}")
    return splits


def _sources(splits: Sequence[Split]) -> tuple[JournalInput, ...]:
    """The files that are read, each with its identity."""
    files = {split.path: split for split in splits if split.start == 0}
    return tuple(JournalInput.of(path, split.size, split.identity or Identity()) for path, split in files.items())


def _digest(splits: Sequence[Split]) -> bytes:
    return blake3(wire.encode_splits(tuple(splits))).digest()


def _advice(place: OutputDir) -> str:
    return f"nothing was changed; to give the job up, run it anew with --overwrite, or delete {place.staging}"


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise JournalError(f"the journal holds no {kind.__name__}: {error}") from error
