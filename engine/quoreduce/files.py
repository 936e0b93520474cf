"""Folders that are ours, and files that are written whole or not at all.

Everything that we delete as a tree bears our marker: a file ``.quoreduce-owner.*`` in it, which is written when the
folder is made. The marker names its maker (user, process, boot) and the folder it was made in (device, inode). A folder
without a marker that fits is not ours, whatever its name, and is left alone; so is a copy of one of ours, or a folder
of another user.

A folder is dead when every process that is named in it has ended and none holds the lock on its marker.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import re
import secrets
import stat
import weakref
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from quoreduce.reading import close_quietly
from quoreduce.strays import end_strays

MARKER = ".quoreduce-owner"
_MAGIC = 1
_MARKER_BYTES_MAX = 1024
_REMOVAL_TRIES = 5  # a process that still writes can put a file into a folder that is being emptied
_SPARE_DESCRIPTORS = 6  # to remove a folder takes one for each level, and there may be no others left
_UNFINISHED = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def write_whole(path: Path, data: bytes, sync: bool = True, mode: int = 0o644) -> None:
    """Write ``path`` whole or not at all, which holds after a loss of power, too, if ``sync``.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if sync:
                os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise
    if sync:
        sync_path(path.parent)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files that a killed :func:`write_whole` left in a folder; the caller sees to it that no one
    writes there meanwhile.
    """
    for left in folder.iterdir():
        if is_unfinished(left.name):
            left.unlink(missing_ok=True)


def is_unfinished(name: str) -> bool:
    """Whether a name is one under which :func:`write_whole` writes, before a file gets its own."""
    return _UNFINISHED.fullmatch(name) is not None


def sync_path(path: Path) -> None:
    """Force a file or a folder to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_quietly(fd)


@dataclass(frozen=True, slots=True)
class Owner:
    """The contents of a marker: the process that holds a folder (pid 0: it was released), and the folder that the
    marker was written in.
    """

    quoreduce: int
    uid: int
    pid: int
    start: int
    boot: str
    device: int
    inode: int

    def runs(self) -> bool:
        """Whether the process still runs; of this process, only locks tell."""
        return self.pid != os.getpid() and self.pid > 0 and self.boot == boot_id() and _start_of(self.pid) == self.start


def _this_process(folder: os.stat_result, pid: int) -> Owner:
    return Owner(_MAGIC, os.geteuid(), pid, _start_of(pid) or 0, boot_id(), folder.st_dev, folder.st_ino)


def boot_id() -> str:
    """Which boot of this machine this is: another one each time; empty where the kernel does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot; None if it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in ("Z", "X") else int(fields[18])


def _encode(owner: Owner) -> bytes:
    return json.dumps(asdict(owner)).encode().ljust(_MARKER_BYTES_MAX // 2) + b"\n"


def _decode(raw: bytes, folder: os.stat_result) -> Owner | None:
    """The contents of a marker; None if malformed, or written in another folder or by another user."""
    try:
        owner = Owner(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        return None
    here = (_MAGIC, os.geteuid(), folder.st_ino)
    well_formed = isinstance(owner.pid, int) and isinstance(owner.start, int)
    if not well_formed or (owner.quoreduce, owner.uid, owner.inode) != here:
        return None
    same_device = owner.device == folder.st_dev or owner.boot != boot_id()  # many devices get new numbers at each boot
    return owner if same_device else None


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker that was found. ``owner``: None if it is empty, because its maker was killed before it wrote it."""

    name: str
    owner: Owner | None
    locked: bool

    @property
    def alive(self) -> bool:
        """Whether somebody still uses the folder."""
        return self.locked or (self.owner is not None and self.owner.runs())


def read_markers(folder: Path) -> list[Marker]:
    """The markers in a folder; [] if it is not ours. Raises OSError if it cannot be read."""
    fd = os.open(folder, _DIRECTORY)
    try:
        return _markers(fd)
    finally:
        close_quietly(fd)


def _markers(fd: int) -> list[Marker]:
    """The markers in an open folder; [] if it is not ours."""
    folder = os.fstat(fd)
    if folder.st_uid != os.geteuid():
        return []
    found = []
    for name in os.listdir(fd):
        if name.startswith(f"{MARKER}."):
            with suppress(OSError):
                found += _read_marker(fd, name, folder)
    return found


def _read_marker(fd: int, name: str, folder: os.stat_result) -> list[Marker]:
    if any(hold._name == name and os.path.samestat(hold._status, folder) for hold in _held):
        return [
            Marker(name, _this_process(folder, os.getpid()), True)
        ]  # what we hold is ours, though its disk reads no more
    marker = os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=fd)
    try:
        status = os.fstat(marker)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_size > _MARKER_BYTES_MAX:
            return []
        locked = _is_locked(marker)
        owner = _decode(os.read(marker, _MARKER_BYTES_MAX), folder)
        return [Marker(name, owner, locked)] if owner is not None or status.st_size == 0 else []
    finally:
        close_quietly(marker)


def _is_locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # this file system has no locks: then only pids tell
        return False
    return False


class Hold:
    """A folder that this process has marked as its own, and holds until it lets go or ends.

    ``ends``: it goes when the process ends. ``pointer``: what tells later sessions where it is. ``parents``: folders of
    ours that go with it when they are empty. ``shared``: processes of others write there, which are ended first.
    """

    def __init__(self, path: Path, ends: bool = False) -> None:
        """Mark ``path``, a folder of ours; FileNotFoundError if it is gone, or goes meanwhile."""
        self.path = path
        self.ends = ends
        self.pointer: Path | None = None
        self.parents: list[Path] = []
        self.shared = False
        self._pid = os.getpid()
        self._spare: list[int] = []
        folder = os.open(path, _DIRECTORY)
        try:
            self._status = os.fstat(folder)
            self._name = f"{MARKER}.{secrets.token_hex(4)}"
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            self._lock = os.open(self._name, flags, 0o600, dir_fd=folder)
            try:
                self._write(self._pid)
                self._spare = [os.dup(self._lock) for _ in range(_SPARE_DESCRIPTORS)]
                if not os.path.samestat(os.stat(self._name, dir_fd=folder), os.fstat(self._lock)):
                    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            except BaseException:
                with suppress(OSError):
                    os.unlink(self._name, dir_fd=folder)
                self._close()
                raise
        finally:
            close_quietly(folder)
        _held.add(self)

    def _write(self, pid: int) -> None:
        with suppress(OSError):  # there are file systems without locks
            fcntl.flock(self._lock, fcntl.LOCK_EX)
        raw = _encode(_this_process(self._status, pid))
        if os.pwrite(self._lock, raw, 0) != len(raw):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    @property
    def ours(self) -> bool:
        """Whether it is held, by this process: one that was forked from it holds nothing."""
        return self._lock >= 0 and self._pid == os.getpid()

    def release(self) -> None:
        """Release the folder for others to use; a second call does nothing."""
        if self.ours:
            with suppress(OSError):
                self._write(0)
        self._close()

    def remove(self) -> None:
        """Delete the folder and release it; a second call, or one on a folder that is gone, does nothing."""
        if self.ours:
            self._close_spare()
            if self.shared:
                end_strays(self.path)
            remove_ours(self.path)
            if self.pointer is not None:
                with suppress(OSError):
                    os.unlink(self.pointer)
            remove_empty(self.parents)
        self._close()

    def _close_spare(self) -> None:
        while self._spare:
            close_quietly(self._spare.pop())

    def _close(self) -> None:
        """Close all descriptors: in a forked process the lock stays that of its parent."""
        self._close_spare()
        if self._lock >= 0:
            close_quietly(self._lock)
        self._lock = -1
        _held.discard(self)


def mark(folder: Path) -> None:
    """Mark a folder of ours that outlives this process, without holding it. Raises OSError if it cannot be marked."""
    Hold(folder).release()


_held: weakref.WeakSet[Hold] = weakref.WeakSet()


def _forget_all() -> None:
    for hold in list(_held):
        hold._close()


@atexit.register
def remove_held() -> None:
    """Delete what goes with this process: it is about to end."""
    for hold in list(_held):
        if hold.ends:
            hold.remove()


os.register_at_fork(after_in_child=_forget_all)


def remove_empty(folders: Collection[Path]) -> None:
    """Delete those of these folders that are empty."""
    for folder in folders:
        with suppress(OSError):
            os.rmdir(folder)


def remove_ours(folder: Path) -> bool:
    """Delete a folder that bears our marker, whether somebody uses it or not; return whether it is gone.

    Links are not followed, other file systems are not entered, and the markers are deleted last, so that a folder that
    is half deleted is still recognised.
    """
    return _remove(folder, bool)


def remove_dead(folder: Path) -> bool:
    """Delete a folder that bears our marker and is no longer in use; return whether it is gone.

    If its maker was killed before it could mark it, the folder is empty or holds an empty marker: it is deleted, too.
    """
    return _remove(folder, _are_dead)


def state_of(folder: Path) -> Literal["alive", "dead", "foreign"]:
    """Tell whether a folder bears our marker, and if so, whether somebody uses it. One that is empty is dead."""
    try:
        fd = os.open(folder, _DIRECTORY)
    except OSError:
        return "foreign"
    try:
        markers = _markers(fd)
        if not any(one.owner or one.locked for one in markers):
            ours = os.fstat(fd).st_uid == os.geteuid()
            return "dead" if ours and len(os.listdir(fd)) == len(markers) else "foreign"
        return "dead" if _are_dead(markers) else "alive"
    except OSError:
        return "foreign"
    finally:
        close_quietly(fd)


def _are_dead(markers: Collection[Marker]) -> bool:
    return not any(one.alive for one in markers)


def _remove(folder: Path, may_go: Callable[[Collection[Marker]], bool]) -> bool:
    try:
        fd = os.open(folder, _DIRECTORY)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    try:
        status = os.fstat(fd)
        known = _markers(fd)
        if status.st_uid != os.geteuid() or not may_go(known):
            return False
        if not any(one.owner for one in known):
            return _remove_empty(fd, folder, known)
        names = {one.name for one in known}
        for _ in range(_REMOVAL_TRIES):
            if {one.name for one in _markers(fd)} - names:
                return False  # somebody has joined
            _empty(fd, status.st_dev, names)
            if _remove_empty(fd, folder, known):
                return True
        return False
    except OSError:
        return False
    finally:
        close_quietly(fd)


def _remove_empty(fd: int, folder: Path, known: Collection[Marker]) -> bool:
    """Delete a folder that holds nothing but these markers."""
    if set(os.listdir(fd)) - {one.name for one in known}:
        return False
    for one in known:
        with suppress(FileNotFoundError):
            os.unlink(one.name, dir_fd=fd)
    if not os.path.samestat(os.fstat(fd), os.stat(folder, follow_symlinks=False)):
        return False
    os.rmdir(folder)
    return True


def _empty(fd: int, device: int, spared: Collection[str] = ()) -> None:
    """Delete what is in an open folder and on this device, as far as that can be done."""
    with os.scandir(fd) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for name, is_folder in found:
        if name in spared:
            continue
        with suppress(OSError):
            if is_folder:
                _remove_folder(fd, name, device)
            else:
                os.unlink(name, dir_fd=fd)


def _remove_folder(parent: int, name: str, device: int) -> None:
    fd = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        if os.fstat(fd).st_dev != device:
            return
        _empty(fd, device)
    finally:
        close_quietly(fd)
    os.rmdir(name, dir_fd=parent)
