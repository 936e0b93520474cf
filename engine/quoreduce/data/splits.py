"""Planning: from what the user names to splits; and whether the files are still those that were planned.

An input is a file, a directory (its files, not its subdirectories; names that begin with ``_`` or ``.`` are skipped,
as Hadoop does), a glob, or a URI that pyarrow.fs knows (s3, gs, hdfs; ``file:`` URIs are plain paths). Members that end
in ``.gz`` or ``.zst`` are one split each. :mod:`quoreduce.data.inputs` reads splits.
"""

from __future__ import annotations

import errno
import glob
import os
import re
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import msgspec

from quoreduce.data import identity
from quoreduce.data.formats import RecordFormat
from quoreduce.data.identity import Identity
from quoreduce.data.sequencefile import read_header
from quoreduce.errors import HostError, InputError, UsageError
from quoreduce.reading import close_quietly

SPLITS_MAX = 1 << 20
_REQUESTS_AT_ONCE = 16
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_KINDS = {
    stat.S_IFIFO: "a fifo",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a character device",
    stat.S_IFBLK: "a block device",
}


class Split(msgspec.Struct, frozen=True, omit_defaults=True):
    """A range of an input whose records one map task reads; it is sent to workers.

    ``path`` is an absolute path, or a URI if ``uri``; ``start`` and ``length`` are in bytes of the file as stored;
    ``size`` is the file's size in bytes when the job was planned, and ``identity`` which file it was; ``index`` counts
    the splits of the job.
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


def plan_splits(inputs: Sequence[str], fmt: RecordFormat, split_bytes: int) -> tuple[Split, ...]:
    """Find the files of ``inputs`` and cut them into splits.

    Args:
        inputs: files, directories, globs, URIs. Order: as given; by path within each. A file named twice is read twice.
        fmt: for ``fixed`` the cuts are at multiples of the width, and each file's size must be such a multiple.
        split_bytes: length of a split in bytes, >= 1; the last of a file may be shorter.

    Returns:
        The splits, ``index`` running from 0. Empty files give no split; with ``sequence`` they are an error.

    Raises:
        InputError: something is missing, unreadable, not a regular file or of the wrong size; no SequenceFile where
            there should be one; over SPLITS_MAX splits.
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
        raise InputError(f"cannot read {text!r}: {reason(error)}") from error
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
        raise InputError(f"cannot read the directory {directory}: {reason(error)}") from error
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
            close_quietly(fd)
    except FileNotFoundError as error:
        link = "a broken symbolic link: " if os.path.islink(path) else ""
        raise InputError(f"cannot read {path}: {link}{reason(error)}") from error
    except OSError as error:
        raise unreadable(path, error) from error


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
        check_width(public_name(path), size, fmt)
        step = max(1, split_bytes // fmt.width) * fmt.width
    if fmt.kind == "sequence" and compression == "none" and not uri:
        _check_header(path, size)
    if index + -(-size // step) > SPLITS_MAX:
        raise InputError(f"{public_name(path)} takes the job over {SPLITS_MAX} splits; use a larger --split-mb")
    for start in range(0, size, step):
        yield Split(path, start, min(step, size - start), size, compression, uri, index, which)
        index += 1


def check_width(name: str, size: int, fmt: RecordFormat) -> None:
    """Raise InputError if a file has no whole number of records, for a format in which that can be told."""
    if fmt.kind == "fixed" and size % fmt.width:
        raise InputError(f"{name} has {size} bytes, not a multiple of {fmt.width}, the width of the job's records")


def _check_header(path: str, size: int) -> None:
    try:
        with open(path, "rb", buffering=0) as file:
            read_header(lambda at, n: some(os.pread(file.fileno(), n, at), path), size, path)
    except OSError as error:
        raise unreadable(path, error) from error


def _hidden(path: str) -> bool:
    return os.path.basename(path).startswith(("_", "."))


def reason(error: BaseException) -> str:
    """Say why in one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(text).split())


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
        return [_Member(uri, int(info.size), True, identities(filesystem, [info])[0])]


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
        for info, which in zip(files, identities(filesystem, files), strict=True)
    ]


def identities(filesystem: Any, infos: Sequence[Any]) -> list[Identity]:
    """The identities of remote files. To learn an object's version takes a request for each: some are under way at a
    time.
    """

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
                    why = change(split, int(info.size), identities(filesystem, [info])[0])
        else:
            try:
                status = os.stat(split.path)
            except OSError as error:
                raise changed(split, reason(error)) from error
            why = change(split, status.st_size, identity.of_file(status))
        if why:
            raise changed(split, why)


def change(split: Split, size: int, now: Identity) -> str:
    """The change since the job was planned, in words, or ""."""
    if size != split.size:
        return f"{split.size} bytes at first, now {size}"
    return identity.change(split.identity, now) if split.identity is not None else ""


def changed(split: Split, why: str) -> InputError:
    """That a file is not any more what it was when the job was planned."""
    return InputError(f"{public_name(split.path)} changed while the job ran: {why}; run the job again")


def some(chunk: bytes, path: str) -> bytes:
    """Return what was read of a file; InputError if that is nothing, where there was something when the job was
    planned.
    """
    if not chunk:
        raise InputError(f"{public_name(path)} became shorter while the job ran; run the job again")
    return chunk


def unreadable(path: str, error: BaseException) -> InputError | HostError:
    """That a file cannot be opened or read; that it is for want of memory or file numbers says nothing about the
    file.
    """
    host = isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
    return (HostError if host else InputError)(f"cannot read {public_name(path)}: {reason(error)}")
