"""What is remembered of cores and nodes from job to job: a small file with a few rules (docs/guide/suspects.md).

A *place* is what a domain consists of, under a name that is the same in every session: ``HOST/core3``, a host, a rack.
Names of domains are not: Ray numbers its nodes anew each time. Workers without a place (inline; Ray's with ``--domain
worker``) are not remembered.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal

import msgspec

from quoreduce import machine
from quoreduce.errors import InputError
from quoreduce.files import write_whole
from quoreduce.ownership import why_foreign_fd
from quoreduce.protocol.port import WorkerInfo
from quoreduce.reading import open_regular
from quoreduce.tracker.suspicion import Known, Standing, stands_out

FORMAT = "quoreduce-suspects-1"
TERM_S = 24 * 3600.0  # of a first quarantine; each further one is twice as long
TERM_DOUBLINGS_MAX = 10
PROBATION_JOBS = 20
FORGET_S = 90 * 24 * 3600.0
PLACES_MAX = 4096
FILE_BYTES_MAX = 4 << 20
LOCK_WAIT_S, LOCK_TICK_S = 10.0, 0.02

State = Literal["ok", "suspect", "quarantined", "probation"]
Say = Callable[[str], None]


class Record(msgspec.Struct):
    """What is remembered of a place. Times in seconds since 1970.

    Attributes:
        jobs, judged, lost: jobs that it worked in, tasks that it voted on, those of them on which it lost a vote.
        first, first_lost: votes of jobs' first plans, of all kinds, and those that were lost.
        passed, failed: known-answer tests.
        why: how it was last quarantined.
        times: how often.
        clean: jobs that it worked in without a lost vote since it last lost one, or was let out.
        until: when its quarantine ends.
        seen: when it last worked.
        accused: when it last lost a vote or failed a test.
    """

    state: State = "ok"
    jobs: int = 0
    judged: int = 0
    lost: int = 0
    first: int = 0
    first_lost: int = 0
    passed: int = 0
    failed: int = 0
    why: str = ""
    times: int = 0
    clean: int = 0
    until: float = 0.0
    seen: float = 0.0
    accused: float = 0.0

    def known(self, now: float) -> Known | None:
        """How a job that begins now is to take it."""
        if self.state == "quarantined":
            return "quarantined" if now < self.until else "probation"
        return "probation" if self.state == "probation" else None

    def quarantine(self, why: str, now: float) -> None:
        """Shut it out, each time twice as long as the time before."""
        self.state, self.why, self.clean = "quarantined", why, 0
        self.until = now + TERM_S * 2 ** min(self.times, TERM_DOUBLINGS_MAX)
        self.times += 1

    def let_out(self) -> None:
        """On probation from now on."""
        self.state, self.clean = "probation", 0

    def tested(self, passed: bool, now: float) -> None:
        """A known-answer test outside of any job."""
        self.passed += passed
        self.failed += not passed
        if not passed:
            self.accused = now
            self.quarantine("test", now)
        elif self.state == "quarantined":
            self.let_out()

    def worked(self, one: Standing, now: float) -> None:
        """Add what was seen in a job."""
        if self.state == "quarantined" and now >= self.until:
            self.let_out()
        self.jobs += bool(one.judged)
        self.judged += one.judged
        self.lost += one.lost
        self.first += sum(judged for judged, _ in one.tallies.values())
        self.first_lost += sum(lost for _, lost in one.tallies.values())
        self.passed += one.passed
        self.failed += one.failed
        self.seen = now if one.judged else self.seen
        if one.lost or one.failed:
            self.accused, self.clean = now, 0
        if one.why not in ("", "record"):
            self.quarantine(one.why, now)
        elif one.lost and self.state == "ok":
            self.state = "suspect"
        elif one.judged and not one.lost:
            self.clean += 1
            if self.state in ("probation", "suspect") and self.clean >= PROBATION_JOBS:
                self.state = "ok"


class _File(msgspec.Struct):
    format: str
    places: dict[str, Record]


class Book:
    """The file: read as a whole, changed under a lock, written beside itself and renamed."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Record]:
        """Place -> record; empty if there is no file. Raises InputError if the file is malformed, or cannot be read."""
        try:
            with open(open_regular(self.path), "rb") as file:
                raw = file.read(FILE_BYTES_MAX + 1)
                foreign = why_foreign_fd(file.fileno())
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise InputError(f"the record of suspects, {self.path}, cannot be read: {error.strerror}") from error
        if foreign:
            raise InputError(f"the record of suspects, {self.path}, {foreign}: delete it, or set QUOREDUCE_STATE")
        try:
            found = msgspec.json.decode(raw, type=_File)
            if found.format == FORMAT and len(raw) <= FILE_BYTES_MAX:
                return found.places
        except (msgspec.MsgspecError, ValueError, RecursionError):
            pass
        raise InputError(
            f"{self.path} is no record of suspects: repair it, or begin anew with quoreduce suspects --clear all"
        )

    def change(self, edit: Callable[[dict[str, Record]], None], now: float) -> None:
        """Read, edit and write, under the lock. Raises InputError, OSError."""
        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self.locked():
            places = self.read()
            edit(places)
            self._write(_bounded(places, now))

    def clear(self) -> Path | None:
        """Begin anew. A file that cannot be read is kept under another name, which is returned."""
        if not self.path.exists():
            return None
        with self.locked():
            try:
                self.read()
            except InputError:
                kept = self.path.with_name(f"{self.path.name}.unreadable")
                os.replace(self.path, kept)
                return kept
            self.path.unlink(missing_ok=True)
        return None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other drivers out."""
        with open(_private(self.path.with_suffix(".lock")), "w") as lock:
            end = time.monotonic() + LOCK_WAIT_S
            while not _locks(lock.fileno()):
                if time.monotonic() > end:
                    raise OSError(
                        errno.EAGAIN, f"another process has held its lock for {LOCK_WAIT_S:.0f} s", str(self.path)
                    )
                time.sleep(LOCK_TICK_S)
            yield

    def _write(self, places: dict[str, Record]) -> None:
        write_whole(self.path, msgspec.json.format(msgspec.json.encode(_File(FORMAT, places)), indent=1), mode=0o600)


def _private(path: Path) -> int:
    """Open a file of this user alone for writing; it is made if it is missing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _locks(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _bounded(places: dict[str, Record], now: float) -> dict[str, Record]:
    """Forget places that were not accused for long. Of more than PLACES_MAX, those go first whose last accusation is
    the oldest.
    """
    kept = {
        name: one for name, one in places.items() if one.state != "ok" or now - max(one.accused, one.seen) < FORGET_S
    }
    worst = sorted(kept, key=lambda name: (kept[name].state != "ok", kept[name].accused), reverse=True)
    return {name: kept[name] for name in sorted(worst[:PLACES_MAX])}


def book() -> Book:
    """The file of this user: suspects.json in QUOREDUCE_STATE, else in ``~/.local/state/quoreduce``."""
    chosen = os.environ.get("QUOREDUCE_STATE")
    return Book((Path(chosen) if chosen else machine.state_folder()) / "suspects.json")


class Memory:
    """What a job knows of places when it begins, and what it adds at its end. It never fails a job: ``say`` is told
    what went wrong.
    """

    def __init__(self, workers: Iterable[WorkerInfo], wanted: bool, say: Say, now: float | None = None) -> None:
        self._places = {info.domain: info.place for info in workers if info.place} if wanted else {}
        self._say = say
        self._now = time.time() if now is None else now
        self._book = book()
        self._records: dict[str, Record] = {}
        try:
            self._records = self._book.read() if self._places else {}
        except InputError as error:
            self._places = {}
            say(f"{error} (this job runs without it)")

    def known(self) -> dict[str, Known]:
        """Domains that are quarantined, or on probation."""
        found = {domain: self._records.get(place, Record()).known(self._now) for domain, place in self._places.items()}
        return {domain: state for domain, state in found.items() if state is not None}

    def drop(self) -> None:
        """Forget what this job has seen: it is not deterministic, so lost votes accuse no domain."""
        self._places = {}

    def note(self, standings: Mapping[str, Standing]) -> None:
        """Write down what was seen. Nothing is written if no domain was accused, now or before."""
        seen = {domain: one for domain, one in standings.items() if domain in self._places}
        accused = any(one.lost or one.failed for one in seen.values())
        if not accused and not any(self._places[domain] in self._records for domain in seen):
            return
        try:
            self._book.change(lambda places: self._add(places, seen), self._now)
        except (OSError, InputError) as error:
            self._say(f"what was seen of suspects is not remembered: {error}")

    def _add(self, places: dict[str, Record], seen: Mapping[str, Standing]) -> None:
        together: dict[str, Standing] = {}  # two workers may share a core
        for domain, one in seen.items():
            place = self._places[domain]
            together[place] = together[place].plus(one) if place in together else one
        for place, one in together.items():
            places.setdefault(place, Record()).worked(one, self._now)
        lost, first = sum(one.first_lost for one in places.values()), sum(one.first for one in places.values())
        for place in together:
            record = places[place]
            others = lost - record.first_lost, first - record.first
            if record.state == "suspect" and stands_out(record.first_lost, record.first, *others):
                record.quarantine("votes", self._now)
