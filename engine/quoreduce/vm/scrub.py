"""Scrubbing what is left of a guest: each file is overwritten, synced, read back, compared, and only then unlinked.

The bytes are random and new each time, so that what is read back was written now. Holes of sparse files hold nothing:
they are not filled (there may be no space), but must read back as zeros. A file that grows meanwhile is scrubbed again;
one that still grows, or reads back differently, is a failure: somebody has it open.

Only a folder with our marker is scrubbed (:mod:`quoreduce.files`). The marker is removed last, so that the remains of a
killed scrub are still known as ours.

On a disk, an SSD above all, old copies of a file may outlive it: a guest's folder is therefore in memory (tmpfs).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from quoreduce.errors import VmError
from quoreduce.files import MARKER, state_of
from quoreduce.vm import processes

PIECE_BYTES: Final = 1 << 20
ROUNDS_MAX: Final = 3  # over a file that grows, and over a folder in which files appear


Bytes: TypeAlias = bytes  # the report has an attribute of that name


@dataclass(frozen=True, slots=True)
class ScrubReport:
    """What was overwritten: files, their bytes (holes included), SHA-256 (hex) over name, size and SHA-256 of each."""

    files: int
    bytes: int
    digest: str

    def document(self) -> Bytes:
        """The report as canonical JSON: keys sorted, no spaces."""
        return json.dumps(
            {"bytes": self.bytes, "digest": self.digest, "files": self.files}, separators=(",", ":")
        ).encode()


@dataclass(frozen=True)
class Io:
    """What a scrub does to files; a test gives others that fail."""

    write: Callable[[int, memoryview, int], int] = os.pwrite
    read: Callable[[int, int, int], bytes] = os.pread
    sync: Callable[[int], None] = os.fsync
    unlink: Callable[[Path], None] = os.unlink


def scrub(folder: Path, io: Io = Io()) -> ScrubReport:
    """Scrub a folder of ours and all below it, and remove it. Programs of a guest that still run in it are killed
    first.

    A missing folder counts as scrubbed, with nothing overwritten. After a failure the scrubbed files are gone, the
    others are still there, and it can be tried again.

    Raises:
        VmError: the folder is not ours, or is a link: nothing was done. Or a file could not be overwritten, read back
            or unlinked; it names the first, and their number.
    """
    if os.path.lexists(folder) and state_of(folder) == "foreign":
        raise VmError(f"{folder} is not scrubbed: it is a link, or bears no marker of ours; move it away")
    for process in processes.living_in(folder):
        process.end()
    done: list[tuple[str, int, str]] = []
    for _ in range(ROUNDS_MAX):
        if not os.path.lexists(folder):
            break
        _scrub_all(folder, io, done)
    if os.path.lexists(folder):
        raise VmError(f"cannot scrub {folder}: new files appear in it; stop what writes there, and try again")
    lines = [[name, size, digest] for name, size, digest in sorted(done)]
    return ScrubReport(
        len(done), sum(size for _, size, _ in done), hashlib.sha256(json.dumps(lines).encode()).hexdigest()
    )


def _scrub_all(folder: Path, io: Io, done: list[tuple[str, int, str]]) -> None:
    """One round: every file that is there now; then the folders, which stay if something new is in them."""
    failed: list[str] = []
    folders = []

    def unreadable(error: OSError) -> None:
        failed.append(f"{error.filename}: {error.strerror}")

    for where, inner, names in os.walk(folder, topdown=False, onerror=unreadable):
        folders.append(Path(where))
        links = [name for name in inner if (Path(where) / name).is_symlink()]
        for path in (Path(where) / name for name in (*names, *links)):
            if _is_marker(path, folder):
                continue
            try:
                name = os.fspath(path.relative_to(folder))
                if stat.S_ISREG(path.lstat().st_mode):
                    done.append((name, *_scrub_file(path, io)))
                io.unlink(path)
            except (OSError, VmError) as error:
                failed.append(f"{path}: {getattr(error, 'strerror', None) or error}")
    if failed:
        others = f" (and {len(failed) - 1} other files)" if failed[1:] else ""
        raise VmError(f"not scrubbed: {failed[0]}{others}; put that right and try again")
    for each in folders[:-1]:
        with contextlib.suppress(OSError):  # not empty: another round
            each.rmdir()
    left = list(folder.iterdir())
    if all(_is_marker(path, folder) for path in left):
        with contextlib.suppress(OSError):
            for path in left:
                path.unlink()
            folder.rmdir()


def _is_marker(path: Path, folder: Path) -> bool:
    return path.parent == folder and path.name.startswith(f"{MARKER}.")


def _scrub_file(path: Path, io: Io) -> tuple[int, str]:
    """Overwrite a file and read it back; return its size and SHA-256 of what was read back."""
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        piece = os.urandom(PIECE_BYTES)
        for _ in range(ROUNDS_MAX):
            size = os.fstat(fd).st_size
            written = [_overwrite(fd, start, end, piece, io) for start, end in _extents(fd, size)]
            io.sync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # read back from the device, where there is one
            if os.fstat(fd).st_size == size:
                return size, _read_back(fd, size, written, piece, io)
    finally:
        os.close(fd)
    raise VmError("it changes its size all the time: something writes to it")


def _extents(fd: int, size: int) -> list[tuple[int, int]]:
    """Where a file holds data: (start, end), in order."""
    found, at = [], 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            break
        at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        found.append((start, at))
    return found


def _overwrite(fd: int, start: int, end: int, piece: bytes, io: Io) -> tuple[int, int]:
    at = start
    while at < end:
        offset = at % PIECE_BYTES
        wrote = io.write(fd, memoryview(piece)[offset : offset + min(end - at, PIECE_BYTES - offset)], at)
        if wrote <= 0:
            raise VmError("nothing could be written")
        at += wrote
    return start, end


def _read_back(fd: int, size: int, written: list[tuple[int, int]], piece: bytes, io: Io) -> str:
    digest, at = hashlib.sha256(), 0
    zeros = bytes(PIECE_BYTES)
    for start, end, wanted in _segments(size, written, zeros, piece):
        at = start
        while at < end:
            offset = at % PIECE_BYTES
            found = io.read(fd, min(end - at, PIECE_BYTES - offset), at)
            if not found or found != wanted[offset : offset + len(found)]:
                raise VmError(f"what was read back at byte {at} is not what was written")
            digest.update(found)
            at += len(found)
    return digest.hexdigest()


def _segments(size: int, written: list[tuple[int, int]], zeros: bytes, piece: bytes) -> list[tuple[int, int, bytes]]:
    found, at = [], 0
    for start, end in written:
        found += [(at, start, zeros), (start, end, piece)]
        at = end
    return [*found, (at, size, zeros)]
