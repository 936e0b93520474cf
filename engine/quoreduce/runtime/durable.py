"""Durable jobs: what a driver writes down, and how another one goes on when it is killed (docs/durable.md).

A :class:`Life` is one driver's turn at a durable job. It hears every event and command of the tracker before anything is
done about it, and writes down what was agreed on, what of it is stored where, and what of that is gone. The next life hands
it to its tracker (``Recovered``) before the start. Attempts are numbered through all lives, so that none writes to a file
of another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import msgspec
from blake3 import blake3

import quoreduce
from quoreduce.data.commit import Output, OutputDir, output_errors
from quoreduce.data.formats import parse_format
from quoreduce.data.identity import Identity
from quoreduce.data.journal import Begun, Decided, ForeignJournal, Gone, Header, Journal, Launched, Record, Source
from quoreduce.data.splits import Split, is_uri, plan_splits, public_name
from quoreduce.errors import JobError, JournalError, NotDeterministic, OutputError
from quoreduce.job import Job
from quoreduce.ownership import why_foreign
from quoreduce.runtime import wire
from quoreduce.runtime.incidents import Kept
from quoreduce.runtime.options import Options, Place
from quoreduce.runtime.port import WorkerInfo
from quoreduce.tracker import messages as m

ATTEMPTS_A_LIFE = 10**9
Replies = Callable[[int], wire.Reply | None]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Taken:
    """What an earlier life agreed on; ``stored``: and a copy of it is there."""

    decided: Decided
    stored: bool


@dataclass(slots=True)
class Life:
    """One life of a durable job.

    Attributes:
        place: the output. header: the job. options, splits: what the header says, decoded and planned.
        number: of the life, from 0. taken: what earlier lives agreed on, in that order.
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
        """Number of this life's first attempt."""
        return self.number * ATTEMPTS_A_LIFE

    def store(self) -> str:
        """Where this life's workers store what their maps put out."""
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
        """Where the job is to go on: as before, but for what is ``said`` now (fields of :class:`Place` that are not None)."""
        before = _decoded(self.header.place, Place)
        given = {name: value for name, value in said.items() if value is not None}
        return replace(before if given.get("on", before.on) == before.on else Place(), **given)

    # ---- what earlier lives agreed on

    def recovered(self) -> list[m.Recovered]:
        """Events for the tracker, before its start."""
        return [_recovered(one.decided, one.stored) for one in self.taken]

    def executed(self) -> Iterator[Kept]:
        """What the attempts taken over replied; no worker of this life holds any of it."""
        for one in self.taken:
            d = one.decided
            launch = m.Launch(d.attempt, m.Task(d.kind, d.index), 0, "", True)
            yield Kept(_reply(d), WorkerInfo("", d.domains[0], ""), launch)

    # ---- what this life does

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
                if agreed is not None and agreed.task.kind == "map" and agreed.output == output and reply and reply.path:
                    yield _decided(agreed, attempt, reply)
            case m.Refused(_, bad) if bad:
                yield Gone(bad)
            case m.BlockLost(attempt):
                yield Gone((attempt,))

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
                yield Gone((attempt,))

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keep the journal if the job is cut short; if its outcome is definite nothing is left."""
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
    return m.Recovered(m.Task(one.kind, one.index), one.attempt, m.Output(one.digest, parts), one.domains, stored)


def _reply(one: Decided) -> wire.Reply:
    parts = tuple(wire.PartReply(*part) for part in one.parts)
    return wire.Reply(
        one.attempt, "ok", parts, one.path, one.data, one.records_in, one.bytes_in, counters=one.counters
    )  # fmt: skip


def _decided(agreed: m.Agreed, attempt: int, reply: wire.Reply) -> Decided:
    parts = tuple((p.digest, p.records, p.nbytes, p.offset) for p in reply.parts)
    return Decided(
        agreed.task.kind, agreed.task.index, attempt, agreed.domains, agreed.output.digest, parts, reply.path, reply.data,
        reply.records_in, reply.bytes_in, reply.counters,
    )  # fmt: skip


# ---- the first life, and later ones


def begin(
    place: Output, job: Job, setup: wire.Setup, where: Place, inputs: Sequence[str], splits: Sequence[Split], split_bytes: int,
    options: Options,
) -> Life:  # fmt: skip
    """Begin a durable job: from now on it can be resumed. ``setup`` is what its workers are told; ``where``: where they are.

    Raises:
        OutputError: others may write where the journal would be, so that nobody would resume it.
    """
    assert isinstance(place, OutputDir), "URIs were refused"
    if foreign := why_foreign(place.staging):
        raise OutputError(
            f"a durable job beside {place.path} could not be resumed, for {place.staging} {foreign}; choose an output in a "
            "folder that only you may write, or run it without --durable"
        )
    header = Header(
        quoreduce.__version__, job.name, setup.job, msgspec.msgpack.encode(options), msgspec.msgpack.encode(where),
        tuple(source if is_uri(source) else os.path.abspath(source) for source in inputs), job.input, split_bytes,
        _sources(splits), _digest(splits), setup.reducers, setup.key,
    )  # fmt: skip
    with output_errors(place.journal_path):
        journal = Journal.create(place.journal_path, [header, Begun(0)])
    return Life(place, journal, header, options, splits)


@contextmanager
def reopen(output: str, named: bytes | None = None) -> Iterator[Life]:
    """Take up the durable job that was writing ``output``; nobody else can meanwhile.

    ``named``: the job that the caller takes it for, pickled; None: whatever the journal holds, which is this user's own.

    Raises:
        JournalError: there is none, its journal is corrupt or not this user's, the job is not the one that is named, or its
        inputs have changed; nothing is changed then.
        OutputError: another run is writing there, or the output has come into being. InputError: an input is gone.
    """
    place = OutputDir.reopen(output)
    journal: Journal | None = None
    try:
        try:
            with output_errors(place.journal_path):
                journal, records = Journal.open(place.journal_path)
        except ForeignJournal as error:
            raise JournalError(f"the journal {place.journal_path} is not trusted, and its job is not run: {error}") from error
        except JournalError as error:
            raise JournalError(f"the journal {place.journal_path} is corrupt: {error}; {_advice(place)}") from error
        life = _taken_up(place, journal, records, named)
        with output_errors(place.journal_path):
            journal.append([Begun(life.number)])
            journal.sync()
        yield life
    finally:
        if journal is not None:
            journal.close()
        place.release()


def _taken_up(place: OutputDir, journal: Journal, records: Sequence[Record], named: bytes | None) -> Life:
    header = records[0]
    assert isinstance(header, Header), "Journal.open has seen to it"
    if header.version != quoreduce.__version__:
        raise JournalError(
            f"the job was begun by quoreduce {header.version}, and this is {quoreduce.__version__}: resume it with that one; "
            f"{_advice(place)}"
        )
    if named is not None and blake3(named).digest() != blake3(header.job).digest():
        raise JournalError(
            f"the journal is of job {header.name}, digest {blake3(header.job).hexdigest()[:16]}, and the job that is named has "
            f"{blake3(named).hexdigest()[:16]}: it is another one, or was changed since; {_advice(place)}"
        )
    options = _decoded(header.options, Options)
    splits = _unchanged(place, header)
    number = sum(isinstance(one, Begun) for one in records)
    decided = [one for one in records if isinstance(one, Decided)]
    place.go_on(options.overwrite, options.sync, {one.index: one.attempt for one in decided if one.kind == "reduce"})
    gone = {attempt for one in records if isinstance(one, Gone) for attempt in one.attempts}
    return Life(place, journal, header, options, splits, number, _latest(place, decided, gone))


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


# ---- inputs


def _unchanged(place: OutputDir, header: Header) -> Sequence[Split]:
    """Plan the splits again, and see that the inputs are what they were."""
    splits = plan_splits(header.inputs, parse_format(header.format), header.split_bytes)
    before, now = {one.path: one for one in header.sources}, {one.path: one for one in _sources(splits)}
    changed = sorted(
        path for path in before.keys() | now.keys() if path not in before or path not in now or not before[path].same(now[path])
    )
    if changed or _digest(splits) != header.splits:
        which = public_name(changed[0]) if changed else "it is cut into other splits"
        raise JournalError(f"the input has changed since the job began: {which}; {_advice(place)}")
    return splits


def _sources(splits: Sequence[Split]) -> tuple[Source, ...]:
    """The files that are read, each with its identity."""
    files = {split.path: split for split in splits if split.start == 0}
    return tuple(Source.of(path, split.size, split.identity or Identity()) for path, split in files.items())


def _digest(splits: Sequence[Split]) -> bytes:
    return blake3(wire.encode_splits(tuple(splits))).digest()


def _advice(place: OutputDir) -> str:
    return f"nothing was changed; to give the job up, run it anew with --overwrite, or delete {place.staging}"


def _decoded(raw: bytes, kind: type[T]) -> T:
    try:
        return msgspec.msgpack.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise JournalError(f"the journal holds no {kind.__name__}: {error}") from error
