"""Small files that somebody else may have written: read whole, bounded, and never waited for."""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

from quoreduce.errors import InputError


def close_quietly(fd: int) -> None:
    """Close a descriptor that was only read, or whose writes count for nothing by now: an error of closing says nothing
    then.
    """
    with suppress(OSError):
        os.close(fd)


def open_regular(path: str | os.PathLike[str], flags: int = os.O_RDONLY, folder: int | None = None) -> int:
    """Open a regular file and return its descriptor; OSError if it is something else, which is not waited for.

    ``flags``: O_NOFOLLOW to refuse a link. ``folder``: the open folder that ``path`` is in.
    """
    fd = os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=folder)
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode):
            kind = "directory" if stat.S_ISDIR(mode) else "pipe" if stat.S_ISFIFO(mode) else "device or socket"
            raise OSError(0, f"it is a {kind}, not a regular file", os.fspath(path))
    except BaseException:
        close_quietly(fd)
        raise
    return fd


def read_regular(path: str | os.PathLike[str], most: int, flags: int = os.O_RDONLY) -> bytes:
    """Return the bytes of a regular file; OSError if it cannot be read, is something else, or has more than
    ``most``.
    """
    with open(open_regular(path, flags), "rb") as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(0, f"it has more than {most:,} bytes", os.fspath(path))
    return data


def read_file(path: Path, most: int) -> bytes:
    """The same, for a file that a user has named: InputError."""
    try:
        return read_regular(path, most)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot read {path}: {reason}") from error
