"""Node-local storage of blocks: preallocated files in shared memory or on disk, mapped by their writer and their
readers.

A worker owns a folder of segment files. A segment holds the blocks of one map attempt. Segments are kept and reused
from job to job, because touching fresh memory costs more than all the hashing of it; within a job a segment is never
reused, so a reader that was too slow reads old bytes or none, and the digest tells.
"""

from __future__ import annotations

import errno
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quoreduce import files, scratch
from quoreduce.errors import HostError
from quoreduce.reading import close_quietly

U8 = NDArray[np.uint8]
SEGMENT_ALIGN = 1 << 20
POOL_BYTES_MAX = 4 << 30


@dataclass(slots=True)
class Segment:
    """A mapped file of ``memory.size`` bytes."""

    path: str
    memory: U8


class BlockStore:
    """The blocks of one worker. Only :meth:`read_range` is thread-safe. ``advice``: what to do when it is full."""

    def __init__(self, folder: Path, advice: str = "use --store DIR") -> None:
        self.folder = folder
        self._advice = advice
        with _blameless(folder.parent):  # whose folder that is, nobody makes anew: its session may be over
            folder.mkdir(exist_ok=True)
        self._free: list[Segment] = []
        self._held: dict[int, Segment] = {}
        self._count = 0
        self._scratch = np.empty(0, np.uint8)

    def allocate(self, attempt: int, nbytes: int) -> U8:
        """Return u8[nbytes], zero or old bytes, in a segment that belongs to ``attempt``. Raises HostError if space is
        out.
        """
        self._free = [s for s in self._free if os.path.exists(s.path)]  # others may delete them meanwhile
        fitting = [s for s in self._free if nbytes <= s.memory.size <= 4 * nbytes + SEGMENT_ALIGN]
        if fitting:
            segment = min(fitting, key=lambda s: s.memory.size)
            self._free.remove(segment)
        else:
            segment = self._create_in_any_way(max(nbytes, 1))
        self._held[attempt] = segment
        return segment.memory[:nbytes]

    def scratch(self, nbytes: int) -> U8:
        """Return u8[nbytes] of private memory, good until the next call: what a digest-only replica writes to."""
        if self._scratch.size < nbytes:
            self._scratch = np.empty(nbytes + nbytes // 4, np.uint8)
        return self._scratch[:nbytes]

    def path(self, attempt: int) -> str:
        """Return the file that holds the blocks of ``attempt``."""
        return self._held[attempt].path

    def discard(self, attempt: int) -> None:
        """Drop the blocks of ``attempt``: the file goes at once, readers that have mapped it keep what they mapped."""
        segment = self._held.pop(attempt, None)
        if segment is not None:
            _unlink(segment.path)

    def punch(self, path: str, offset: int, nbytes: int) -> None:
        """Give back the memory of a range that all readers have read; the pages at its ends may stay."""
        for segment in self._held.values():
            if segment.path == path:
                start = -(-offset // mmap.PAGESIZE) * mmap.PAGESIZE
                stop = (offset + nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
                if stop > start:
                    _punch_hole(path, start, stop - start)

    def recycle(self, gone: Sequence[str] = ()) -> None:
        """End a job: its segments become free for the next one, up to POOL_BYTES_MAX; the rest is deleted.

        So are those of workers that are ``gone``, whose folders are beside this one: they were kept to be read.
        """
        for name in gone:
            if os.path.basename(name) == name and name not in ("", ".", ".."):
                with suppress(OSError):  # rmtree raises what close() and fstat() say, whatever it is told to ignore
                    shutil.rmtree(self.folder.parent / name, ignore_errors=True)
        self._free += self._held.values()
        self._held.clear()
        total = 0
        kept = []
        for segment in self._free:
            total += segment.memory.size
            if total > POOL_BYTES_MAX or not os.path.exists(segment.path):
                _unlink(segment.path)
            else:
                kept.append(segment)
        self._free = kept

    def read_range(self, path: str, offset: int, nbytes: int) -> bytes:
        """Read a range of one of this store's files for a reader on another node; FileNotFoundError if it is gone."""
        name = Path(path)
        if name.parent.parent != self.folder.parent or name.name.startswith("."):
            raise FileNotFoundError(path)
        with open(name, "rb") as file:
            file.seek(offset)
            return file.read(nbytes)

    def _create_in_any_way(self, nbytes: int) -> Segment:
        """If space is out, free segments that do not fit are in the way: try again without them."""
        try:
            return self._create(nbytes)
        except HostError:
            if not self._free:
                raise
            for segment in self._free:
                _unlink(segment.path)
            self._free.clear()
            return self._create(nbytes)

    def _create(self, nbytes: int) -> Segment:
        size = -(-nbytes // SEGMENT_ALIGN) * SEGMENT_ALIGN
        self._count += 1
        path = str(self.folder / f"segment-{os.getpid()}-{self._count:05d}")
        try:
            return Segment(path, _mapped(path, size))
        except FileNotFoundError as error:
            raise HostError(gone(self.folder)) from error
        except OSError as error:
            _unlink(path)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM):
                raise HostError(f"no space for {size} bytes of map output in {self.folder}: {self._advice}") from error
            raise HostError(f"cannot store map output in {self.folder}: {error.strerror}") from error


def _mapped(path: str, size: int) -> U8:
    """Make a file of ``size`` bytes and map it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        # Reserving the pages now turns a full file system into an error here, not into a SIGBUS at the first write.
        os.posix_fallocate(fd, 0, size)
        return np.frombuffer(mmap.mmap(fd, size), np.uint8)
    finally:
        close_quietly(fd)


class BlockReader:
    """Maps the files of the stores on this node, read-only; mappings are kept while the file stays the same file."""

    def __init__(self) -> None:
        self._maps: dict[str, tuple[tuple[int, int], U8]] = {}

    def view(self, path: str, offset: int, nbytes: int) -> U8:
        """Return a read-only view of a range of a file; FileNotFoundError if the file is gone or too short."""
        status = os.stat(path)
        identity = (status.st_dev, status.st_ino)
        known = self._maps.get(path)
        if known is None or known[0] != identity:
            if status.st_size == 0:
                raise FileNotFoundError(path)
            with open(path, "rb") as file:
                memory = np.frombuffer(mmap.mmap(file.fileno(), status.st_size, prot=mmap.PROT_READ), np.uint8)
            known = (identity, memory)
            self._maps[path] = known
        if offset < 0 or offset + nbytes > known[1].size or offset + nbytes > status.st_size:
            raise FileNotFoundError(path)
        return known[1][offset : offset + nbytes]

    def forget(self) -> None:
        """Drop mappings of files that are gone, at the end of a job."""
        self._maps = {path: known for path, known in self._maps.items() if os.path.exists(path)}


def gone(folder: Path) -> str:
    """What to say if a folder of ours does not exist."""
    return f"the folder for blocks {folder} is gone: something deleted it while it was in use"


@contextmanager
def _blameless(folder: Path) -> Iterator[None]:
    """An error in a folder of ours is the environment's fault, not that of the job's code."""
    try:
        yield
    except FileNotFoundError as error:
        raise HostError(gone(folder)) from error
    except OSError as error:
        raise HostError(f"cannot make a file for blocks in {folder}: {error.strerror}") from error


def create_session_folder(root: str | None) -> files.Hold:
    """Make a folder for one session's stores and hold it, and sweep what dead sessions left, there and wherever we keep
    any.

    ``root``: where; default is shared memory if half of it is free, else the folder for temporary files.
    """
    return _held(root, lambda base: scratch.make_folder(base, "session"))


def join_session_folder(root: str | None, name: str, swept: bool = True) -> files.Hold:
    """As :func:`create_session_folder`, for a folder that several workers share: it lives as long as any of them."""
    return _held(root, lambda base: scratch.join_folder(base, f"session-{name}"), swept)


def _held(root: str | None, make: Callable[[Path], files.Hold], swept: bool = True) -> files.Hold:
    base = Path(os.path.abspath(root)) if root else _default_root()
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HostError(f"cannot make a folder for blocks in {base}: {error.strerror}") from error
    hold = make(base)  # before the sweep: the folder may be that of a worker which has just died
    if swept:
        scratch.sweep(base)
    return hold


def _default_root() -> Path:
    shared = scratch.SHARED_MEMORY
    if shared.is_dir() and os.access(shared, os.W_OK):
        status = os.statvfs(shared)
        if status.f_bavail * 2 >= status.f_blocks:
            return shared
    return Path(tempfile.gettempdir())


def _unlink(path: str) -> None:
    """Remove a file. If that fails, it is removed with its folder."""
    with suppress(OSError):
        os.unlink(path)


def _punch_hole(path: str, offset: int, nbytes: int) -> None:
    """Free pages of a file: fallocate(FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE); best effort."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    with suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            libc.fallocate(fd, 0x01 | 0x02, ctypes.c_long(offset), ctypes.c_long(nbytes))
        finally:
            close_quietly(fd)
