"""The files of runs beside an output: its lock, and staging directories, which are swept or resumed.

The layout is in :mod:`quoreduce.data.commit`. All functions but :func:`take_lock` are called with the lock held.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
from contextlib import suppress
from pathlib import Path

from quoreduce import files
from quoreduce.errors import JournalError, OutputError
from quoreduce.ownership import why_foreign
from quoreduce.reading import close_quietly

SUCCESS = "_SUCCESS"
JOURNAL = "journal"
_LOCK_TRIES = 100
_LOCK_MAGIC = b"quoreduce "


def take_lock(path: Path, output: Path) -> int:
    """Lock ``path`` for this process's life and return its descriptor; OutputError if another run has it.

    The owner unlinks the file before it lets go, so a lock on a file that is no longer at ``path`` is worth nothing.
    What lies there and is no lock of ours is refused: in the end it would be deleted.
    """
    for _ in range(_LOCK_TRIES):
        fd = _open_lock(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.stat(path)):
                    with suppress(OSError):  # an empty one will do
                        os.pwrite(fd, b"%s%d\n" % (_LOCK_MAGIC, os.getpid()), 0)
                    return fd
        except BlockingIOError:
            close_quietly(fd)
            break
        except BaseException:
            with suppress(OSError):  # a file system without locks, perhaps
                if os.fstat(fd).st_size == 0:
                    path.unlink()
            close_quietly(fd)
            raise
        close_quietly(fd)
    raise OutputError(f"another run is writing {output}; wait for it, or choose another output")


def _open_lock(path: Path) -> int:
    """Open the file of a lock, which is made if need be; OutputError if it is not one of ours."""
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise OutputError(
                f"{path} is a symbolic link, where the lock of the output has to be; remove it"
            ) from error
        raise
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or (status.st_size and os.pread(fd, len(_LOCK_MAGIC), 0) != _LOCK_MAGIC):
            raise OutputError(
                f"{path} is not a lock of quoreduce, but has its name; move it away, or choose another output"
            )
        if status.st_uid != os.geteuid():
            raise OutputError(
                f"{path} belongs to user {status.st_uid}, who may be writing there; choose another output"
            )
    except BaseException:
        close_quietly(fd)
        raise
    return fd


def sweep(output: Path, overwrite: bool = False, spare: bool = False) -> None:
    """Remove the staging of killed runs beside ``output``; the caller holds the lock. A folder without our
    marker is left alone.

    What a durable job left is removed with ``overwrite`` only; it is left alone with ``spare``, otherwise an
    OutputError.
    """
    for staging in _stagings(output):
        state = files.state_of(staging)
        if state == "alive":
            raise OutputError(f"another run is writing {output} in {staging}; wait for it, or choose another output")
        if state == "foreign":
            continue
        if _resumable(staging) and not overwrite:
            if spare:
                continue
            if foreign := why_foreign(staging):
                raise OutputError(f"{_not_ours(staging, foreign)}; choose another output")
            raise OutputError(
                f"a durable job was writing {output} and was cut short; go on with it: quoreduce resume {output}; "
                "or give it up with --overwrite"
            )
        if is_done_with(staging, output):
            files.remove_dead(staging)


def _stagings(output: Path) -> list[Path]:
    """The staging directories of all runs that write or wrote ``output``."""
    pattern = re.compile(rf"\.{re.escape(output.name)}\.[A-Za-z0-9_-]{{1,64}}\.staging\Z")
    return [output.parent / name for name in os.listdir(output.parent) if pattern.match(name)]


def _resumable(staging: Path) -> bool:
    """Whether a durable job was cut short here before its output was in place."""
    return (staging / JOURNAL).exists() and (staging / "output").exists()


def kept(output: Path) -> Path:
    """Return the staging directory of the durable job that was writing ``output``; the caller has swept the others.

    A journal of another user does not count: anybody who can write there may have put it there, and its job is code.
    """
    foreign = ""
    for staging in _stagings(output):
        why = why_foreign(staging)
        if not why and files.state_of(staging) == "dead":
            return staging
        foreign = _not_ours(staging, why) if why else foreign
    if foreign:
        raise JournalError(f"nothing is resumed: {foreign}")
    if (output / SUCCESS).is_file():
        raise JournalError(f"nothing to resume: {output} is complete")
    raise JournalError(f"nothing to resume: no durable job was writing {output} (they run with --durable)")


def _not_ours(staging: Path, why: str) -> str:
    return f"{staging} {why}, so no job in it is trusted, and none is run"


def is_done_with(staging: Path, output: Path) -> bool:
    """Put an old output back, if need be; tell whether the rest may go: not if the old output has no other place.

    The journal is deleted before all else: half a job must not look as if it could be resumed.
    """
    with suppress(OSError):
        restore(staging, output)
    try:
        if (staging / "old").exists() and (staging / "output").exists():
            return False  # the new output was never moved in, and something else is in the place of the old one
    except OSError:
        return False  # a disk that does not say so: a later run looks again
    with suppress(OSError):
        (staging / JOURNAL).unlink()
    return True


def restore(staging: Path, output: Path) -> None:
    """Put an old output back that was moved aside by a run that never got to move the new one in."""
    old = staging / "old"
    if not os.path.lexists(output) and old.is_dir():
        old.rename(output)
