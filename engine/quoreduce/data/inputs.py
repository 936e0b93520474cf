"""Reading: from a split to the bytes of its records. :mod:`quoreduce.data.splits` plans the splits.

Local files are mapped, not read: the array that :func:`open_split` yields is a read-only view of the page cache. Size
and identity (:mod:`quoreduce.data.identity`) are checked against the plan before anything is mapped, and once more
before the job publishes (:func:`quoreduce.data.splits.check_unchanged`). Touching a page past the end of a shrunk file
kills the process (SIGBUS): a file that is truncated *while* a kernel runs over it still does.

A split can be read past the page cache instead (``direct``), into private memory: a page that has rotted there would
give all replicas on a machine the same wrong bytes.
"""

from __future__ import annotations

import errno
import gzip
import mmap
import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import IO, TYPE_CHECKING, Any

import msgspec

from quoreduce.data import identity
from quoreduce.data.direct import DirectFile, open_direct
from quoreduce.data.formats import ReadAt, RecordFormat, record_range
from quoreduce.data.identity import Identity
from quoreduce.data.inflate import Corrupt, gz_chunks, zst_chunks
from quoreduce.data.sequencefile import RECORDS_BYTES_MAX, decode_records, read_header, sync_range
from quoreduce.data.splits import (
    Split,
    change,
    changed,
    check_width,
    open_filesystem,
    public_name,
    reason,
    some,
    unreadable,
    uri_errors,
)
from quoreduce.errors import HostError, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quoreduce.data.block import Block

    U8 = NDArray[np.uint8]

MEMBER_BYTES_MAX = 16 << 30
_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it
_CHUNK = 1 << 20

LocalFile = IO[bytes] | DirectFile


@contextmanager
def open_split(
    split: Split,
    fmt: RecordFormat,
    scratch_dir: str | os.PathLike[str],
    max_member_bytes: int = MEMBER_BYTES_MAX,
    populate: bool = True,
    direct: bool = False,
) -> Iterator[U8]:
    """Yield u8[n], read-only: the bytes of exactly the records that start in the split. Not for ``sequence``.

    For ``words``, separators may stand at either end. The last record is complete, however far past the split it ends.

    Args:
        split: as planned.
        fmt: as planned.
        scratch_dir: directory for the decompressed bytes of a gz or zst member (a file without a name).
        max_member_bytes: bound on the bytes of a decompressed member, and on what is read of a URI into memory.
        populate: bring all of the split in at once; False if only a little of it will be looked at.
        direct: read a local file past the page cache, where its file system can.

    Raises:
        InputError: the file is gone, is another one than was planned, cannot be read, is corrupt, or exceeds the bound.
        HostError: no space for decompressed bytes.
    """
    array, mapping = _open(split, fmt, scratch_dir, max_member_bytes, populate, direct)
    try:
        yield array
    finally:
        del array
        if mapping is not None:
            with suppress(BufferError):  # a view lives on; the mapping goes with the last of them
                mapping.close()


@contextmanager
def open_records(
    split: Split, fmt: RecordFormat, scratch_dir: str | os.PathLike[str], populate: bool = True, direct: bool = False
) -> Iterator[U8 | Block]:
    """Yield what a map gets: for ``sequence`` a block of keys and values, else what :func:`open_split` yields.

    Args and errors as for :func:`open_split`.
    """
    if fmt.kind == "sequence":
        yield read_sequence_split(split, scratch_dir, direct=direct)
        return
    with open_split(split, fmt, scratch_dir, populate=populate, direct=direct) as array:
        yield array


def read_sequence_split(
    split: Split, scratch_dir: str | os.PathLike[str], bytes_max: int = RECORDS_BYTES_MAX, direct: bool = False
) -> Block:
    """Return the records of a SequenceFile whose sync points lie in the split: a block of keys and values, in memory.

    Args:
        split: as planned; a gz or zst member is one split.
        scratch_dir: as for :func:`open_split`.
        bytes_max: bound on the decoded records, in bytes.
        direct: as for :func:`open_split`.

    Raises:
        InputError: as for :func:`open_split`, or the file is malformed; the message has its name and the byte.
        HostError: no space for decompressed bytes.
    """
    if split.compression != "none":
        with _inflate(split, scratch_dir, MEMBER_BYTES_MAX, direct) as spilled:
            size = os.fstat(spilled.fileno()).st_size
            whole = msgspec.structs.replace(split, start=0, length=size, size=size)
            return _decode_mapped(whole, spilled, bytes_max)
    if not split.uri:
        with _open_file(split, direct) as file:
            return _decode_mapped(split, file, bytes_max)
    with _open_raw(split) as file:

        def read_at(at: int, n: int) -> bytes:
            with uri_errors(split.path):
                return some(file.read_at(n, at), split.path)

        return _decode_split(split, read_at, lambda begin, stop: _read_range(read_at, begin, stop), bytes_max)


def _decode_mapped(split: Split, file: LocalFile, bytes_max: int) -> Block:
    mappings: list[mmap.mmap | None] = []

    def view(begin: int, stop: int) -> U8:
        array, mapping = _map(file, split.path, begin, stop, split.length)
        mappings.append(mapping)
        return array

    try:
        return _decode_split(split, _reader(file, split), view, bytes_max)
    except OSError as error:
        raise InputError(f"cannot read {split.path}: {reason(error)}") from error
    finally:
        for mapping in filter(None, mappings):
            with suppress(BufferError):  # after an error, whose traceback holds a view
                mapping.close()


def _decode_split(split: Split, read_at: ReadAt, view: Callable[[int, int], U8], bytes_max: int) -> Block:
    name = public_name(split.path)
    header = read_header(read_at, split.size, name)
    begin, stop = sync_range(read_at, header, split.start, split.start + split.length, split.size)
    return decode_records(view(begin, stop), header, begin, name, bytes_max)


def _read_range(read_at: ReadAt, begin: int, stop: int) -> U8:
    import numpy as np

    data = bytearray()
    while begin + len(data) < stop:
        data += read_at(begin + len(data), stop - begin - len(data))
    return np.frombuffer(data, np.uint8)


def _reader(file: LocalFile, split: Split) -> ReadAt:
    if isinstance(file, DirectFile):
        return lambda offset, n: some(file.pread(n, offset), split.path)
    fd = file.fileno()
    return lambda offset, n: some(os.pread(fd, n, offset), split.path)


def _open(
    split: Split, fmt: RecordFormat, scratch_dir: str | os.PathLike[str], bytes_max: int, populate: bool,
    direct: bool,
) -> tuple[U8, mmap.mmap | None]:  # fmt: skip
    if fmt.kind == "sequence":
        raise UsageError("the records of a SequenceFile are no run of bytes: use open_records")
    if split.compression != "none":
        with _inflate(split, scratch_dir, bytes_max, direct) as spilled:
            size = os.fstat(spilled.fileno()).st_size
            check_width(f"{public_name(split.path)} decompressed", size, fmt)
            return _map(spilled, split.path, 0, size, size)
    if split.uri:
        return _read_uri(split, fmt, bytes_max), None
    with _open_file(split, direct) as file:
        try:
            begin, stop = record_range(_reader(file, split), fmt, split.start, split.start + split.length, split.size)
        except OSError as error:
            raise InputError(f"cannot read {split.path}: {reason(error)}") from error
        return _map(file, split.path, begin, stop, split.length if populate else mmap.PAGESIZE)


def _open_file(split: Split, direct: bool = False) -> LocalFile:
    """Open the split's local file and check that it is still the one that was planned."""
    file: LocalFile | None = open_direct(split.path) if direct else None
    if file is None:
        try:
            file = os.fdopen(os.open(split.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise unreadable(split.path, error) from error
    info = os.fstat(file.fileno())
    why = change(split, info.st_size, identity.of_file(info))
    if why or not stat.S_ISREG(info.st_mode):
        file.close()
        raise changed(split, why or "it is no regular file now")
    return file


def _map(file: LocalFile, name: str, begin: int, stop: int, touch: int) -> tuple[U8, mmap.mmap | None]:
    """Map [begin, stop) of ``file``; the first ``touch`` bytes are brought in at once, not fault by fault.

    Of a file that is read past the page cache it is a copy of these bytes, without a mapping.
    """
    import numpy as np

    if begin == stop:
        return np.frombuffer(b"", np.uint8), None
    if isinstance(file, DirectFile):
        try:
            array = file.view(begin, stop)
        except OSError as error:
            raise unreadable(name, error) from error
        if array.size != stop - begin:
            raise InputError(f"{public_name(name)} became shorter while the job ran; run the job again")
        return array, None
    fd = file.fileno()
    skip = begin % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(fd, stop - begin + skip, access=mmap.ACCESS_READ, offset=begin - skip)
    except OSError as error:
        raise unreadable(name, error) from error
    except ValueError as error:  # the file ends before stop
        raise InputError(f"cannot map {public_name(name)}: {reason(error)}") from error
    try:
        mapping.madvise(_MADV_POPULATE_READ, 0, min(stop - begin, touch) + skip)
    except OSError as error:
        if error.errno == errno.EFAULT:  # what would have been a SIGBUS: truncated just now, or a bad disk
            mapping.close()
            raise InputError(f"cannot read {public_name(name)}: truncated just now, or an I/O error") from error
    return np.frombuffer(mapping, np.uint8, stop - begin, skip), mapping


def _inflate(split: Split, scratch_dir: str | os.PathLike[str], bytes_max: int, direct: bool) -> IO[bytes]:
    """Decompress the whole member into a file without a name in ``scratch_dir``."""
    name, total = public_name(split.path), 0
    with _open_raw(split, direct) as raw:
        try:
            spilled = tempfile.TemporaryFile(dir=scratch_dir)  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise HostError(f"cannot decompress {name} into {os.fspath(scratch_dir)}: {reason(error)}") from error
        try:
            for chunk in _chunks(split, raw):
                total += len(chunk)
                if total > bytes_max:
                    raise InputError(f"{name} decompresses to more than {bytes_max} bytes; store it uncompressed")
                spilled.write(chunk)
            spilled.flush()
        except OSError as error:
            _discard(spilled)
            raise HostError(f"cannot decompress {name} into {os.fspath(scratch_dir)}: {reason(error)}") from error
        except BaseException:
            _discard(spilled)
            raise
    return spilled


def _discard(spilled: IO[bytes]) -> None:
    with suppress(OSError):  # close() flushes, which fails once more on a full disk
        spilled.close()


def _open_raw(split: Split, direct: bool = False) -> Any:
    """Open the stored bytes of a split, local or not, as a binary file, and check that it is still the one that was
    planned.
    """
    if not split.uri:
        return _open_file(split, direct)
    filesystem, path = open_filesystem(split.path)
    with uri_errors(split.path):
        file = filesystem.open_input_file(path)
        size = int(file.size())
        tag = identity.tag_of(file.metadata()) if filesystem.type_name in identity.TAGGED else ""
        planned = (
            split.identity or Identity()
        )  # the time of change is compared before publishing: here it costs a request
        why = change(split, size, Identity(planned.mtime_ns, tag=tag))
    if why:
        file.close()
        raise changed(split, why)
    return file


def _chunks(split: Split, raw: IO[bytes]) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``raw``; raises InputError, with the name of the file, if they are malformed."""
    name = public_name(split.path)
    unzip = gz_chunks if split.compression == "gz" else zst_chunks
    chunks = iter(unzip(raw))
    while True:
        try:
            chunk = next(chunks, None)
        except (EOFError, gzip.BadGzipFile, zlib.error, Corrupt) as error:
            what = "gzip" if split.compression == "gz" else "zstd"
            raise InputError(f"{name} is corrupt or truncated ({what}: {reason(error)}); fetch it again") from error
        except OSError as error:
            raise InputError(f"cannot read {name}: {reason(error)}") from error
        if chunk is None:
            return
        yield chunk


class _Range:
    """Bytes of a remote file from ``low`` on, in memory, which grow as the last record asks for more."""

    def __init__(self, file: Any, split: Split, bytes_max: int) -> None:
        self.file, self.split, self.bytes_max = file, split, bytes_max
        self.low = max(0, split.start - 1)
        self.data = bytearray()
        self.grow(split.start + split.length - self.low + (1 << 16))

    def grow(self, n: int) -> None:
        """Read ``n`` more bytes, or up to the planned end of the file."""
        at = self.low + len(self.data)
        n = min(n, self.split.size - at)
        if len(self.data) + n > self.bytes_max:
            name = public_name(self.split.path)
            raise InputError(f"a split of {name} needs over {self.bytes_max} bytes; use a smaller --split-mb")
        with uri_errors(self.split.path):
            chunk = self.file.read_at(n, at)
        if len(chunk) != n:
            raise changed(self.split, f"{self.split.size} bytes at first, now {at + len(chunk)}")
        self.data += chunk

    def read_at(self, offset: int, n: int) -> bytearray:
        """Serve :func:`record_range`, which asks for at most one window beyond what is here."""
        if offset - self.low >= len(self.data):
            self.grow(max(n, _CHUNK))
        return self.data[offset - self.low : offset - self.low + n]


def _read_uri(split: Split, fmt: RecordFormat, bytes_max: int) -> U8:
    """Read the split's records into memory: one request for the range, more only for a long last record."""
    import numpy as np

    with _open_raw(split) as file:
        window = _Range(file, split, bytes_max)
        begin, stop = record_range(window.read_at, fmt, split.start, split.start + split.length, split.size)
        while window.low + len(window.data) < stop:
            window.grow(_CHUNK)
    array = np.frombuffer(window.data, np.uint8)[begin - window.low : stop - window.low]
    array.flags.writeable = False
    return array
