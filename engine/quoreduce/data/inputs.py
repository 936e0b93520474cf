"""Inputs: from what the user names to splits, and from a split to the bytes of its records.

An input is a file, a directory (its files, not its subdirectories; names that begin with ``_`` or ``.`` are skipped,
as Hadoop does), a glob, or a URI that pyarrow.fs knows (s3, gs, hdfs; ``file:`` URIs are plain paths). Members that end
in ``.gz`` or ``.zst`` are one split each.

Local files are mapped, not read: the array that :func:`open_split` yields is a read-only view of the page cache. Size and
identity (:mod:`quoreduce.data.identity`) are checked against the plan before anything is mapped, and once more before the
job publishes (:func:`check_unchanged`). Touching a page past the end of a shrunk file kills the process (SIGBUS): a file
that is truncated *while* a kernel runs over it still does.

A split can be read past the page cache instead (``direct``), into private memory: a page that has rotted there would give
all replicas on a machine the same wrong bytes.
"""

from __future__ import annotations

import errno
import glob
import gzip
import mmap
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import IO, TYPE_CHECKING, Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec

from quoreduce.data import identity
from quoreduce.data.direct import DirectFile, open_direct
from quoreduce.data.formats import ReadAt, RecordFormat, record_range
from quoreduce.data.identity import Identity
from quoreduce.data.inflate import Corrupt, gz_chunks, zst_chunks
from quoreduce.data.sequencefile import RECORDS_BYTES_MAX, decode_records, read_header, sync_range
from quoreduce.errors import HostError, InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quoreduce.data.block import Block

    U8 = NDArray[np.uint8]

SPLITS_MAX = 1 << 20
MEMBER_BYTES_MAX = 16 << 30
_MADV_POPULATE_READ = 22  # Linux 5.14; the mmap module has no name for it
_CHUNK = 1 << 20
_REQUESTS_AT_ONCE = 16
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


LocalFile = IO[bytes] | DirectFile


class Split(msgspec.Struct, frozen=True, omit_defaults=True):
    """A range of an input whose records one map task reads; it is sent to workers.

    ``path`` is an absolute path, or a URI if ``uri``; ``start`` and ``length`` are in bytes of the file as stored;
    ``size`` is the file's size in bytes when the job was planned, and ``identity`` which file it was; ``index`` counts the splits
    of the job.
    """

    path: str
    start: int
    length: int
    size: int
    compression: Literal["none", "gz", "zst"]
    uri: bool
    index: int
    identity: Identity | None = None


class _Member(NamedTuple):
    path: str
    size: int
    uri: bool
    identity: Identity | None = None


# --- planning ---------------------------------------------------------------------------------------------------------


def plan_splits(inputs: Sequence[str], fmt: RecordFormat, split_bytes: int) -> tuple[Split, ...]:
    """Find the files of ``inputs`` and cut them into splits.

    Args:
        inputs: files, directories, globs, URIs. Order: as given; by path within each. A file named twice is read twice.
        fmt: for ``fixed`` the cuts are at multiples of the width, and each file's size must be such a multiple.
        split_bytes: length of a split in bytes, >= 1; the last of a file may be shorter.

    Returns:
        The splits, ``index`` running from 0. Empty files give none, but for ``sequence``, where they are an error.

    Raises:
        InputError: something is missing, unreadable, not a regular file or of the wrong size; no SequenceFile where there
            should be one; over SPLITS_MAX splits.
        UsageError: no inputs, or ``split_bytes`` below 1.
    """
    if split_bytes < 1:
        raise UsageError(f"a split has at least 1 byte, not {split_bytes}")
    if not inputs:
        raise UsageError("no input given: name at least one file, directory, glob or URI")
    splits: list[Split] = []
    for source in inputs:
        for member in _members(source):
            splits.extend(_splits_of(member, fmt, split_bytes, len(splits)))
    return tuple(splits)


def local_path(text: str) -> str | None:
    """Return the path that ``text`` names, also as a ``file:`` URI; None for any other URI.

    Raises:
        InputError: a ``file:`` URI with a host.
    """
    if not is_uri(text):
        return text
    parts = urlsplit(text)
    if parts.scheme.lower() != "file":
        return None
    if parts.netloc not in ("", "localhost"):
        raise InputError(f"{text} names the host {parts.netloc!r}: a file URI is file:///path")
    return unquote(parts.path)


def is_uri(text: str) -> bool:
    """Tell whether ``text`` begins like a URI (``scheme://``)."""
    return _URI.match(text) is not None


def is_utf8(path: str) -> bool:
    """Tell whether ``path`` can be sent to a worker: a file name may be any bytes, a message holds UTF-8."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def public_name(path: str) -> str:
    """Return ``path`` as it may be shown or stored: a URI without user, password and query."""
    if not is_uri(path):
        return path
    scheme, _, rest = path.partition("?")[0].partition("://")
    host = rest.partition("/")[0]
    port = host.partition(":")[2]
    if "@" in host or not (port.isdigit() or port == ""):  # not a port: a password with an unquoted slash
        rest = rest.partition("@")[2] if "@" in host else rest.rpartition("@")[2]
    return f"{scheme}://{rest}"


def expand_local(text: str) -> list[str]:
    """Return the paths that a path or glob stands for, sorted, or []; a file whose name looks like a glob wins."""
    try:
        os.lstat(text)
    except (FileNotFoundError, NotADirectoryError):
        found = glob.glob(text) if glob.has_magic(text) else []
        return sorted(path for path in found if not _hidden(path))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {text!r}: {_reason(error)}") from error
    return [text]


def _members(source: str) -> Iterator[_Member]:
    """Yield the files of one input in the order of their paths."""
    path = local_path(source)
    if path is None:
        yield from _uri_members(source)
        return
    found = expand_local(path)
    if not found:
        what = "no file matches" if glob.has_magic(path) else "no such file or directory:"
        raise InputError(f"{what} {path!r}; check the name of the input")
    for one in found:
        full = os.path.abspath(one)
        if os.path.isdir(full):
            yield from _directory_members(full)
        else:
            yield _file_member(full)


def _directory_members(directory: str) -> list[_Member]:
    try:
        names = sorted(name for name in os.listdir(directory) if not _hidden(name))
    except OSError as error:
        raise InputError(f"cannot read the directory {directory}: {_reason(error)}") from error
    paths = [os.path.join(directory, name) for name in names]
    members = [_file_member(path) for path in paths if not os.path.isdir(path)]
    if not members:
        raise InputError(f"the directory {directory} has no input files (subdirectories, _* and .* are not read)")
    return members


def _file_member(path: str) -> _Member:
    """Check that ``path`` is a regular file that opens."""
    if not is_utf8(path):
        raise InputError(f"the name {path!r} is not UTF-8; rename the file")
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode):
            kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
            raise InputError(f"{path} is {kind}; copy what it gives into a file first")
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            status = os.fstat(fd)
            return _Member(path, status.st_size, False, identity.of_file(status))
        finally:
            os.close(fd)
    except OSError as error:
        link = "a broken symbolic link: " if os.path.islink(path) else ""
        raise InputError(f"cannot read {path}: {link}{_reason(error)}") from error


def _splits_of(member: _Member, fmt: RecordFormat, split_bytes: int, index: int) -> Iterator[Split]:
    """Yield the splits of one file, numbered from ``index``."""
    path, size, uri, which = member
    if size == 0 and fmt.kind != "sequence":
        return
    compression: Literal["none", "gz", "zst"] = "none"
    suffix = os.path.splitext(public_name(path))[1].lower()
    if suffix in (".gz", ".zst"):
        compression = "gz" if suffix == ".gz" else "zst"
    step = size if compression != "none" else split_bytes
    if fmt.kind == "fixed" and compression == "none":
        _check_width(public_name(path), size, fmt)
        step = max(1, split_bytes // fmt.width) * fmt.width
    if fmt.kind == "sequence" and compression == "none" and not uri:
        _check_header(Split(path, 0, size, size, "none", False, index, which))
    if index + -(-size // step) > SPLITS_MAX:
        raise InputError(f"{public_name(path)} takes the job over {SPLITS_MAX} splits; use a larger --split-mb")
    for start in range(0, size, step):
        yield Split(path, start, min(step, size - start), size, compression, uri, index, which)
        index += 1


def _check_width(name: str, size: int, fmt: RecordFormat) -> None:
    if fmt.kind == "fixed" and size % fmt.width:
        raise InputError(f"{name} has {size} bytes, not a multiple of {fmt.width}, the width of the job's records")


def _check_header(split: Split) -> None:
    with _open_file(split) as file:
        read_header(_reader(file, split), split.size, public_name(split.path))


def _hidden(path: str) -> bool:
    return os.path.basename(path).startswith(("_", "."))


def _reason(error: BaseException) -> str:
    """Say why in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


# --- URIs -------------------------------------------------------------------------------------------------------------


def open_filesystem(uri: str) -> tuple[Any, str]:
    """Return (pyarrow filesystem, path in it) for ``uri``.

    Raises:
        InputError: an unknown scheme or a URI that the filesystem rejects.
    """
    with uri_errors(uri):
        from pyarrow import fs

        filesystem, path = fs.FileSystem.from_uri(uri)
        return filesystem, path


@contextmanager
def uri_errors(uri: str) -> Iterator[None]:
    """Turn what pyarrow raises into one line that names ``uri`` without its credentials."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        name = public_name(uri)
        raise InputError(f"cannot read {name}: {' '.join(str(error).replace(uri, name).split())}") from None


def _uri_members(uri: str) -> list[_Member]:
    filesystem, path = open_filesystem(uri)
    with uri_errors(uri):
        from pyarrow import fs

        head, _, pattern = path.rpartition("/")
        if "*" in pattern:
            return _uri_directory(_with_path(uri, urlsplit(uri).path.rpartition("/")[0]), filesystem, head, pattern)
        info = filesystem.get_file_info(path)
        if info.type == fs.FileType.Directory:
            return _uri_directory(uri, filesystem, path, "*")
        if info.type != fs.FileType.File:
            raise InputError(f"no such file or directory: {public_name(uri)}; check the name of the input")
        return [_Member(uri, int(info.size), True, _identities(filesystem, [info])[0])]


def _uri_directory(uri: str, filesystem: Any, path: str, pattern: str) -> list[_Member]:
    """List the files directly in the directory ``path``, which is at ``uri``, whose names match ``pattern``."""
    from pyarrow import fs

    found = filesystem.get_file_info(fs.FileSelector(path, recursive=False))
    files = sorted(
        (
            info for info in found
            if info.type == fs.FileType.File and not _hidden(info.path) and fnmatchcase(info.base_name, pattern)
        ),
        key=lambda info: str(info.path),
    )  # fmt: skip
    if not files:
        raise InputError(f"{public_name(uri)} has no input files that match {pattern!r} (_* and .* are not read)")
    base = urlsplit(uri).path.rstrip("/")
    return [
        _Member(_with_path(uri, f"{base}/{quote(info.path.rpartition('/')[2])}"), int(info.size), True, which)
        for info, which in zip(files, _identities(filesystem, files), strict=True)
    ]


def _identities(filesystem: Any, infos: Sequence[Any]) -> list[Identity]:
    """The identities of remote files. To learn an object's version takes a request for each: some are under way at a time."""

    def tag(info: Any) -> str:
        with filesystem.open_input_file(info.path) as file:
            return identity.tag_of(file.metadata())

    if filesystem.type_name in identity.TAGGED:
        with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as pool:
            tags = list(pool.map(tag, infos))
    else:
        tags = [""] * len(infos)
    return [Identity(int(info.mtime_ns or 0), tag=tag) for info, tag in zip(infos, tags, strict=True)]


def _with_path(uri: str, path: str) -> str:
    """Return ``uri`` with another (already quoted) path; user, host and query stay."""
    parts = urlsplit(uri)
    return f"{parts.scheme}://{parts.netloc}{path}" + (f"?{parts.query}" if parts.query else "")


# --- reading ----------------------------------------------------------------------------------------------------------


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
        split: as planned; a gz or zst member is one split. scratch_dir: as for :func:`open_split`.
        bytes_max: bound on the decoded records, in bytes. direct: as for :func:`open_split`.

    Raises:
        InputError: as for :func:`open_split`, and whatever is wrong in the file, with its name and the byte.
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
                return _some(file.read_at(n, at), split)

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
        raise InputError(f"cannot read {split.path}: {_reason(error)}") from error
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
        return lambda offset, n: _some(file.pread(n, offset), split)
    fd = file.fileno()
    return lambda offset, n: _some(os.pread(fd, n, offset), split)


def _open(
    split: Split, fmt: RecordFormat, scratch_dir: str | os.PathLike[str], bytes_max: int, populate: bool,
    direct: bool,
) -> tuple[U8, mmap.mmap | None]:  # fmt: skip
    if fmt.kind == "sequence":
        raise UsageError("the records of a SequenceFile are no run of bytes: use open_records")
    if split.compression != "none":
        with _inflate(split, scratch_dir, bytes_max, direct) as spilled:
            size = os.fstat(spilled.fileno()).st_size
            _check_width(f"{public_name(split.path)} decompressed", size, fmt)
            return _map(spilled, split.path, 0, size, size)
    if split.uri:
        return _read_uri(split, fmt, bytes_max), None
    with _open_file(split, direct) as file:
        try:
            begin, stop = record_range(_reader(file, split), fmt, split.start, split.start + split.length, split.size)
        except OSError as error:
            raise InputError(f"cannot read {split.path}: {_reason(error)}") from error
        return _map(file, split.path, begin, stop, split.length if populate else mmap.PAGESIZE)


def _open_file(split: Split, direct: bool = False) -> LocalFile:
    """Open the split's local file and check that it is still the one that was planned."""
    file: LocalFile | None = open_direct(split.path) if direct else None
    if file is None:
        try:
            file = os.fdopen(os.open(split.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0)
        except (OSError, ValueError) as error:
            raise _unreadable(split.path, error) from error
    info = os.fstat(file.fileno())
    why = _change(split, info.st_size, identity.of_file(info))
    if why or not stat.S_ISREG(info.st_mode):
        file.close()
        raise _changed(split, why or "it is no regular file now")
    return file


def _change(split: Split, size: int, now: Identity) -> str:
    """What has changed since the job was planned, in words, or ""."""
    if size != split.size:
        return f"{split.size} bytes at first, now {size}"
    return identity.change(split.identity, now) if split.identity is not None else ""


def _changed(split: Split, why: str) -> InputError:
    return InputError(f"{public_name(split.path)} changed while the job ran: {why}; run the job again")


def _unreadable(path: str, error: BaseException) -> InputError | HostError:
    """That a file cannot be opened or read; that it is for want of memory or file numbers says nothing about the file."""
    host = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return (HostError if host else InputError)(f"cannot read {public_name(path)}: {_reason(error)}")


def check_unchanged(splits: Sequence[Split]) -> None:
    """Raise InputError if a file of ``splits`` is not any more what it was when the job was planned, or is gone."""
    files = {split.path: split for split in splits}
    for split in files.values():
        if split.uri:
            filesystem, path = open_filesystem(split.path)
            with uri_errors(split.path):
                info = filesystem.get_file_info(path)
                why = "it is gone"
                if info.is_file:
                    why = _change(split, int(info.size), _identities(filesystem, [info])[0])
        else:
            try:
                status = os.stat(split.path)
            except OSError as error:
                raise _changed(split, _reason(error)) from error
            why = _change(split, status.st_size, identity.of_file(status))
        if why:
            raise _changed(split, why)


def _some(chunk: bytes, split: Split) -> bytes:
    if not chunk:
        raise InputError(f"{public_name(split.path)} became shorter while the job ran; run the job again")
    return chunk


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
            raise _unreadable(name, error) from error
        if array.size != stop - begin:
            raise InputError(f"{public_name(name)} became shorter while the job ran; run the job again")
        return array, None
    fd = file.fileno()
    skip = begin % mmap.ALLOCATIONGRANULARITY
    try:
        mapping = mmap.mmap(fd, stop - begin + skip, access=mmap.ACCESS_READ, offset=begin - skip)
    except (OSError, ValueError) as error:  # ValueError: the file ends before stop
        raise InputError(f"cannot map {public_name(name)}: {_reason(error)}") from error
    try:
        mapping.madvise(_MADV_POPULATE_READ, 0, min(stop - begin, touch) + skip)
    except OSError as error:
        if error.errno == errno.EFAULT:  # what would have been a SIGBUS: truncated just now, or a bad disk
            mapping.close()
            raise InputError(f"cannot read {public_name(name)}: truncated just now, or an I/O error") from error
    return np.frombuffer(mapping, np.uint8, stop - begin, skip), mapping


# --- compressed members -----------------------------------------------------------------------------------------------


def _inflate(split: Split, scratch_dir: str | os.PathLike[str], bytes_max: int, direct: bool) -> IO[bytes]:
    """Decompress the whole member into a file without a name in ``scratch_dir``."""
    name, total = public_name(split.path), 0
    with _open_raw(split, direct) as raw:
        try:
            spilled = tempfile.TemporaryFile(dir=scratch_dir)  # noqa: SIM115 (the caller closes it)
        except OSError as error:
            raise HostError(f"cannot decompress {name} into {os.fspath(scratch_dir)}: {_reason(error)}") from error
        try:
            for chunk in _chunks(split, raw):
                total += len(chunk)
                if total > bytes_max:
                    raise InputError(f"{name} decompresses to more than {bytes_max} bytes; store it uncompressed")
                spilled.write(chunk)
            spilled.flush()
        except OSError as error:
            _discard(spilled)
            raise HostError(f"cannot decompress {name} into {os.fspath(scratch_dir)}: {_reason(error)}") from error
        except BaseException:
            _discard(spilled)
            raise
    return spilled


def _discard(spilled: IO[bytes]) -> None:
    with suppress(OSError):  # close() flushes, which fails once more on a full disk
        spilled.close()


def _open_raw(split: Split, direct: bool = False) -> Any:
    """Open the stored bytes of a split, local or not, as a binary file, and check that it is still the one that was planned."""
    if not split.uri:
        return _open_file(split, direct)
    filesystem, path = open_filesystem(split.path)
    with uri_errors(split.path):
        file = filesystem.open_input_file(path)
        size = int(file.size())
        tag = identity.tag_of(file.metadata()) if filesystem.type_name in identity.TAGGED else ""
        planned = split.identity or Identity()  # the time of change is compared before publishing: here it costs a request
        why = _change(split, size, Identity(planned.mtime_ns, tag=tag))
    if why:
        file.close()
        raise _changed(split, why)
    return file


def _chunks(split: Split, raw: IO[bytes]) -> Iterator[bytes]:
    """Yield the decompressed bytes of ``raw``; whatever is wrong with them is an InputError that names the file."""
    name = public_name(split.path)
    unzip = gz_chunks if split.compression == "gz" else zst_chunks
    chunks = iter(unzip(raw))
    while True:
        try:
            chunk = next(chunks, None)
        except (EOFError, gzip.BadGzipFile, zlib.error, Corrupt) as error:
            what = "gzip" if split.compression == "gz" else "zstd"
            raise InputError(f"{name} is corrupt or truncated ({what}: {_reason(error)}); fetch it again") from error
        except OSError as error:
            raise InputError(f"cannot read {name}: {_reason(error)}") from error
        if chunk is None:
            return
        yield chunk


# --- reading URIs -----------------------------------------------------------------------------------------------------


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
            raise _changed(self.split, f"{self.split.size} bytes at first, now {at + len(chunk)}")
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
