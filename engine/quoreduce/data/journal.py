"""The journal of a durable job: what its driver decided, so that another driver can resume it.

A file of frames, appended to and never changed::

    MAGIC                                  16 bytes
    length  u32, little-endian             of the record in bytes, at most RECORD_BYTES_MAX
    check   4 bytes                        of BLAKE3(length), keyed with the chain digest before this frame
    record  length bytes                   msgpack, one of :data:`Record`; the first is a :class:`Header`
    chain   32 bytes                       BLAKE3(chain digest before this frame || record), which is BLAKE3(MAGIC)
                                           before the first frame

A driver that is killed, or a machine that loses power, leaves a *torn* end: a frame that the file ends in, or bytes
that were never written and read as zeros. What comes before it is good, and it is cut off. Everything else that does
not fit is *corruption*: the journal is refused, for what it says cannot be told from what it said. A journal that was
cut between two frames looks like a younger one; a driver that resumes it only executes more than needed.

Encoding and decoding are pure; :class:`Journal` is the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import msgspec
from blake3 import blake3

from quoreduce.data.identity import Identity, change
from quoreduce.errors import JournalError, one_line
from quoreduce.files import sync_path, write_whole
from quoreduce.ownership import why_foreign_fd
from quoreduce.reading import close_quietly, open_regular

MAGIC = b"quoreduce job 1\n"
RECORD_BYTES_MAX = 128 << 20
JOURNAL_BYTES_MAX = 4 << 30
_HEAD_BYTES = 8
_CHAIN_BYTES = 32


class JournalInput(msgspec.Struct, frozen=True, array_like=True):
    """An input file as it was when the job was planned: size in bytes, time of change in ns since 1970, and the rest of
    its :class:`~quoreduce.data.identity.Identity`, which older journals lack.
    """

    path: str
    size: int
    mtime_ns: int
    device: int = 0
    inode: int = 0
    place: int = 0
    tag: str = ""

    @classmethod
    def of(cls, path: str, size: int, which: Identity) -> JournalInput:
        """The file at ``path``, whose identity is known."""
        return cls(path, size, which.mtime_ns, which.device, which.inode, which.place, which.tag)

    def same(self, other: JournalInput) -> bool:
        """Whether the other is this file, as far as can be told (:func:`quoreduce.data.identity.change`)."""
        return (self.path, self.size) == (other.path, other.size) and not change(self._identity(), other._identity())

    def _identity(self) -> Identity:
        return Identity(self.mtime_ns, self.device, self.inode, self.place, self.tag)


class Header(msgspec.Struct, frozen=True, tag="header"):
    """The job: all that is needed to resume it without the command that began it.

    ``job`` is pickled, as workers get it; ``options`` and ``place`` are msgpack of the runtime's classes. ``inputs``
    are absolute, and cut into splits of ``split_bytes`` as their ``format`` allows; ``splits`` is a digest of them.
    ``key`` is that of the job's digests.
    """

    version: str
    name: str
    job: bytes
    options: bytes
    place: bytes
    inputs: tuple[str, ...]
    format: str
    split_bytes: int
    sources: tuple[JournalInput, ...]
    splits: bytes
    reducers: int
    key: bytes


class Begun(msgspec.Struct, frozen=True, tag="begun"):
    """A driver begins: the first life of the job is number 0."""

    life: int


class Launched(msgspec.Struct, frozen=True, tag="launched"):
    """An execution begins. For the curious, and for tests: nothing follows from it."""

    kind: Literal["sample", "map", "reduce"]
    index: int
    attempt: int


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """A task is agreed on, by ``domains`` that executed it and ``checkers`` that checked it; or a map that was has a
    new stored copy.

    ``parts`` are (digest, records, bytes, offset in the file) of each partition; ``path`` is where a map's ``attempt``
    is stored, empty if it is not; ``data`` is the sample's. The rest is what the attempt's reply said.
    """

    kind: Literal["sample", "map", "reduce"]
    index: int
    attempt: int
    domains: tuple[str, ...]
    digest: bytes
    parts: tuple[tuple[bytes, int, int, int], ...]
    path: str = ""
    data: bytes = b""
    records_in: int = 0
    bytes_in: int = 0
    counters: dict[str, int] = {}
    checkers: tuple[str, ...] = ()


class BlocksGone(msgspec.Struct, frozen=True, tag="gone"):
    """The stored outputs of these attempts were given up, or are lost."""

    attempts: tuple[int, ...]


Record = Header | Begun | Launched | Decided | BlocksGone
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def start_of_chain() -> bytes:
    """Return the chain digest before the first frame."""
    return blake3(MAGIC).digest()


def encode(records: Iterable[Record], chain: bytes) -> tuple[bytes, bytes]:
    """Return the frames of ``records``, which follow the chain digest ``chain``, and the chain digest after them."""
    frames = bytearray()
    for record in records:
        raw = _encoder.encode(record)
        if len(raw) > RECORD_BYTES_MAX:
            raise JournalError(
                f"a record of {len(raw):,} bytes is too large for a journal; run this job without --durable"
            )
        length = len(raw).to_bytes(4, "little")
        frames += length + _check(length, chain)
        chain = blake3(chain + raw).digest()
        frames += raw + chain
    return bytes(frames), chain


def decode(raw: bytes) -> tuple[list[Record], int, bytes]:
    """Read a journal.

    Returns:
        The records; the bytes of ``raw`` that they take, fewer than all if its end is torn; the chain digest after
        them.

    Raises:
        JournalError: it is corrupt.
    """
    if not raw.startswith(MAGIC):
        raise JournalError("it does not begin as a journal does")
    records: list[Record] = []
    written = len(raw.rstrip(b"\0"))
    position, chain = len(MAGIC), start_of_chain()
    while position < written:
        record = _frame(raw, position, written, chain)
        if record is None:
            break
        try:
            records.append(_decoder.decode(record))
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise JournalError(f"the record at byte {position} is of no known kind: {one_line(error)}") from error
        chain = blake3(chain + record).digest()
        position += _HEAD_BYTES + len(record) + _CHAIN_BYTES
    return records, position, chain


def _frame(raw: bytes, position: int, written: int, chain: bytes) -> bytes | None:
    """Return the record of the frame at ``position``; None if it is torn; or raise JournalError.

    ``written``: where the zeros begin that ``raw`` ends in; a frame that is right may reach into them.
    """
    begin = position + _HEAD_BYTES
    length = raw[position : position + 4]
    if raw[position + 4 : begin] != _check(length, chain):
        if written < begin:
            return None
        raise JournalError(f"the length at byte {position} is not what was written")
    end = begin + int.from_bytes(length, "little")
    if end - begin > RECORD_BYTES_MAX:
        raise JournalError(
            f"the record at byte {position} has {end - begin:,} bytes; at most {RECORD_BYTES_MAX:,} are read"
        )
    record = raw[begin:end]
    if blake3(chain + record).digest() != raw[end : end + _CHAIN_BYTES]:
        if written < end + _CHAIN_BYTES:
            return None
        raise JournalError(f"the record at byte {position} is not what was written")
    return record


def _check(length: bytes, chain: bytes) -> bytes:
    return blake3(length, key=chain).digest(4)


class ForeignJournal(JournalError):
    """A journal that another user wrote, or could have changed: the job in it is code, and is not run."""


class Journal:
    """A journal that is open for appending. Errors of the file system are OSErrors, for the caller to translate."""

    def __init__(self, fd: int, size: int, chain: bytes) -> None:
        self._fd = fd
        self._size = size
        self._chain = chain

    @classmethod
    def create(cls, path: Path, records: Sequence[Record]) -> Journal:
        """Make a journal with its first records; it is on disk, whole, before anybody sees it at ``path``."""
        frames, chain = encode(records, start_of_chain())
        raw = MAGIC + frames
        write_whole(path, raw, mode=0o600)
        sync_path(path.parent.parent)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        return cls(fd, len(raw), chain)

    @classmethod
    def open(cls, path: Path) -> tuple[Journal, list[Record]]:
        """Open a journal to resume its job, and return its records; a torn end is cut off.

        Raises:
            ForeignJournal: it, or its folder, is not this user's alone; nothing of it was read.
            JournalError: it is corrupt, or no file.
        """
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fd = open_regular(path.name, os.O_RDWR | os.O_NOFOLLOW, folder)
            foreign = why_foreign_fd(folder) or why_foreign_fd(fd)
        except OSError as error:
            raise JournalError(f"it cannot be opened: {error.strerror}") from error
        finally:
            close_quietly(folder)
        try:
            if foreign:
                raise ForeignJournal(f"it {foreign}")
            size = os.fstat(fd).st_size
            if size > JOURNAL_BYTES_MAX:
                raise JournalError(f"it has {size:,} bytes; at most {JOURNAL_BYTES_MAX:,} are read")
            with os.fdopen(os.dup(fd), "rb") as file:
                records, good, chain = decode(file.read())
            if not records or not isinstance(records[0], Header):
                raise JournalError("it does not say what the job is")
            if good < size:
                os.ftruncate(fd, good)
                os.fsync(fd)
            os.lseek(fd, good, os.SEEK_SET)
            return cls(fd, good, chain), records
        except BaseException:
            close_quietly(fd)
            raise

    def append(self, records: Sequence[Record]) -> None:
        """Write ``records``: they survive the end of this process, and after :meth:`sync` the loss of power."""
        frames, chain = encode(records, self._chain)
        self._write(frames)
        self._chain = chain

    def sync(self) -> None:
        """Force what was written to disk."""
        os.fsync(self._fd)

    def close(self) -> None:
        """Close the file; a second time does nothing. What counts was synced, so that an error of closing says
        nothing.
        """
        fd, self._fd = self._fd, -1
        if fd >= 0:
            close_quietly(fd)

    def _write(self, raw: bytes) -> None:
        view = memoryview(raw)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError:
            os.ftruncate(self._fd, self._size)  # a frame that is cut off may only be the last one
            os.lseek(self._fd, self._size, os.SEEK_SET)
            raise
        self._size += len(raw)
