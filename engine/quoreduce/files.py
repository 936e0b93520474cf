"""Folders that are ours, and files that are written whole or not at all.

Everything that we delete as a tree bears our marker: a file ``.quoreduce-owner.*`` in it, which is written when the folder is
made and says who made it (user, process, boot) and which folder it was made in (device, inode). A folder without a marker that
fits is somebody else's, whatever it is called, and is left alone; so is a copy of one of ours, or one of another user.

What we keep for the time of a session, blocks and temporary files, lies in ``quoreduce-UID/``, a folder that only this user may
enter, under each root: shared memory, the folder for temporary files, or what ``--store`` names. A folder there is dead when
every process that is named in it has ended and none holds the lock on its marker; any session that starts removes it.
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
import tempfile
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from quoreduce.errors import HostError
from quoreduce.machine import our_folder, our_path
from quoreduce.ownership import why_foreign_itself
from quoreduce.reading import close_quietly

MARKER = ".quoreduce-owner"
ELSEWHERE = ".elsewhere"
SHARED_MEMORY = Path("/dev/shm")
NAME_CHARS = 12  # of a folder's name, behind its kind
_MAGIC = 1
_MARKER_BYTES_MAX = 1024
_TRIES = 100
_REMOVAL_TRIES = 5  # a process that still writes can put a file into a folder that is being emptied
_SPARE_DESCRIPTORS = 6  # to remove a folder takes one for each level, and there may be no others left
_OUR_NAME = re.compile(r"[a-z]+-[0-9a-z-]+")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


# ---- whole or not at all


def write_whole(path: Path, data: bytes, sync: bool = True, mode: int = 0o644) -> None:
    """Write ``path`` so that it is there whole or not at all, also after a loss of power if ``sync``; OSError if it cannot be."""
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


def sync_path(path: Path) -> None:
    """Force a file or a folder to disk."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        close_quietly(fd)


# ---- who made a folder


@dataclass(frozen=True, slots=True)
class Owner:
    """What a marker says: the process that holds a folder (pid 0: none any more), and the folder that it was written in."""

    quoreduce: int
    uid: int
    pid: int
    start: int
    boot: str
    device: int
    inode: int

    def runs(self) -> bool:
        """Whether the process still runs; this one is asked by its locks."""
        return self.pid != os.getpid() and self.pid > 0 and self.boot == _boot_id() and _start_of(self.pid) == self.start


def _this_process(folder: os.stat_result, pid: int) -> Owner:
    return Owner(_MAGIC, os.geteuid(), pid, _start_of(pid) or 0, _boot_id(), folder.st_dev, folder.st_ino)


def _boot_id() -> str:
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
    """What a marker says; None if it is none, or was written in another folder or by another user."""
    try:
        owner = Owner(**json.loads(raw))
    except (ValueError, TypeError, RecursionError):
        return None
    here = (_MAGIC, os.geteuid(), folder.st_ino)
    well_formed = isinstance(owner.pid, int) and isinstance(owner.start, int)
    if not well_formed or (owner.quoreduce, owner.uid, owner.inode) != here:
        return None
    same_device = owner.device == folder.st_dev or owner.boot != _boot_id()  # many devices get new numbers at each boot
    return owner if same_device else None


@dataclass(frozen=True, slots=True)
class Marker:
    """A marker that was found. ``owner``: None if it is empty: who made it was killed before it could say so."""

    name: str
    owner: Owner | None
    locked: bool

    @property
    def alive(self) -> bool:
        """Whether somebody still uses the folder."""
        return self.locked or (self.owner is not None and self.owner.runs())


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
        return [Marker(name, _this_process(folder, os.getpid()), True)]  # what we hold is ours, though its disk reads no more
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


# ---- holding a folder


class Hold:
    """A folder that this process has marked as its own, and holds until it lets go or ends.

    ``ends``: it goes when the process ends. ``pointer``: what tells later sessions where it is. ``parents``: folders of ours that
    go with it when they are empty.
    """

    def __init__(self, path: Path, ends: bool = False) -> None:
        """Mark ``path``, a folder of ours; FileNotFoundError if it is gone, or goes meanwhile."""
        self.path = path
        self.ends = ends
        self.pointer: Path | None = None
        self.parents: list[Path] = []
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
        """Let go, and leave the folder for others to go on with; again this does nothing."""
        if self.ours:
            with suppress(OSError):
                self._write(0)
        self._close()

    def remove(self) -> None:
        """Delete the folder, and let go; again, or if it is gone, this does nothing."""
        if self.ours:
            self._close_spare()
            remove_ours(self.path)
            if self.pointer is not None:
                with suppress(OSError):
                    os.unlink(self.pointer)
            _leave(self.parents)
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


_held: weakref.WeakSet[Hold] = weakref.WeakSet()


def _forget_all() -> None:
    for hold in list(_held):
        hold._close()


@atexit.register
def _end() -> None:
    for hold in list(_held):
        if hold.ends:
            hold.remove()


os.register_at_fork(after_in_child=_forget_all)


# ---- deleting what is ours


def remove_ours(folder: Path) -> bool:
    """Delete a folder that bears our marker, whether somebody uses it or not; return whether it is gone.

    Links are not followed, other file systems not entered, and the markers go last: what is half deleted can still be told.
    """
    return _remove(folder, bool)


def remove_dead(folder: Path) -> bool:
    """Delete a folder that bears our marker and that nobody uses any more; return whether it is gone.

    One whose maker was killed before it could mark it is empty, or holds an empty marker only: it goes too.
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


# ---- our folder under each root


def usual_roots() -> list[Path]:
    """Where every session looks for what dead ones left: shared memory, if there is any, and the folder for temporary files."""
    shared = [SHARED_MEMORY] if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else []
    return [*shared, Path(tempfile.gettempdir())]


def make_folder(root: Path, kind: str) -> Hold:
    """Make a folder ``kind``-... in our folder under ``root`` and hold it; it goes when the process ends."""
    return _made(root, lambda: f"{kind}-{secrets.token_hex(NAME_CHARS // 2)}", shared=False)


def join_folder(root: Path, name: str) -> Hold:
    """The same for a folder that several processes share, and that lives as long as any of them: it is made by the first."""
    return _made(root, lambda: name, shared=True)


def _made(root: Path, name: Callable[[], str], shared: bool) -> Hold:
    root = Path(os.path.abspath(root))
    for _ in range(_TRIES):
        try:
            path = our_folder(root) / name()
            with suppress(*([FileExistsError] if shared else [])):
                os.mkdir(path, 0o700)
            try:
                hold = Hold(path, ends=not shared)
            except BaseException:
                with suppress(OSError):
                    os.rmdir(path)
                _leave([path.parent])
                raise
            hold.pointer = _point_to(path, root)
            hold.parents = [path.parent, *([hold.pointer.parent] if hold.pointer else [])]
            return hold
        except FileNotFoundError:  # others delete what is empty: our folder, or this one before it is marked
            if not root.is_dir():
                break
        except OSError as error:
            raise HostError(f"cannot make a folder in {root}: {error.strerror}; use --store DIR or TMPDIR") from error
    raise HostError(f"cannot make a folder in {root}: there is no such folder, or something deletes what is in it")


def _point_to(path: Path, root: Path) -> Path | None:
    """Leave word of a folder that is not under the usual root, so that later sessions find it, wherever they keep theirs.

    It is a link, which is there whole or not at all; nobody follows it. A session does without where it cannot be made.
    """
    usual = usual_roots()[0]
    for _ in range(_TRIES if root != usual else 0):
        try:
            pointer = our_folder(usual) / f"{path.name}{ELSEWHERE}"
            os.symlink(path, pointer)
            return pointer
        except FileExistsError:
            return pointer  # of a folder that several processes share
        except FileNotFoundError:
            continue  # another session has just deleted our folder, for it was empty
        except (OSError, HostError):
            break
    return None


def remove_session(path: Path) -> None:
    """Delete a folder that :func:`make_folder` made, on behalf of its maker who has ended, and the word of it."""
    pointer = our_path(usual_roots()[0]) / f"{path.name}{ELSEWHERE}"
    remove_ours(path)
    with suppress(OSError):
        if _pointed_at(pointer) == path:
            os.unlink(pointer)
    _leave([path.parent, pointer.parent])


def _leave(parents: Collection[Path]) -> None:
    """Delete our folders under roots that are empty."""
    for parent in parents:
        with suppress(OSError):
            os.rmdir(parent)


def _pointed_at(pointer: Path) -> Path | None:
    """The folder that a link tells of; None if it is none of ours. OSError if it is no link."""
    path = Path(os.readlink(pointer))
    named = _OUR_NAME.fullmatch(path.name) and path.name + ELSEWHERE == pointer.name
    fits = named and path.parent == our_path(path.parent.parent)
    return path if fits and path.is_absolute() and os.lstat(pointer).st_uid == os.geteuid() else None


# ---- what dead sessions left


@dataclass(frozen=True, slots=True)
class Left:
    """A folder that a dead session left: where, how many bytes it takes, and the processes that made it."""

    path: Path
    nbytes: int
    pids: tuple[int, ...]


def _folders(roots: Collection[Path]) -> Iterator[tuple[Path, Path | None]]:
    """All folders with names that we give in ours under these roots, and those of which there is word there (with the word)."""
    for root in dict.fromkeys(roots):
        ours = our_path(root)
        try:
            if why_foreign_itself(ours) or not ours.is_dir():
                continue
            names = sorted(os.listdir(ours))
        except OSError:
            continue
        for name in names:
            with suppress(OSError):
                if _OUR_NAME.fullmatch(name):
                    yield ours / name, None
                elif name.endswith(ELSEWHERE) and (path := _pointed_at(ours / name)) is not None:
                    yield path, ours / name


def find_left(root: Path | None = None) -> list[Left]:
    """What dead sessions left under the usual roots, under ``root``, and wherever there is word of it."""
    found: dict[Path, Left] = {}
    for path, _ in _folders([*usual_roots(), *([root] if root else [])]):
        with suppress(OSError):
            fd = os.open(path, _DIRECTORY)
            try:
                markers = _markers(fd)
            finally:
                close_quietly(fd)
            if markers and _are_dead(markers):
                found[path] = Left(path, _nbytes(path), tuple(one.owner.pid for one in markers if one.owner is not None))
    return list(found.values())


def _nbytes(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(here, name)).st_blocks * 512
    return total


def sweep(root: Path | None = None) -> None:
    """Delete what dead sessions left under the usual roots, under ``root``, and wherever there is word of it."""
    for path, pointer in list(_folders([*usual_roots(), *([root] if root else [])])):
        gone = remove_dead(path)
        if pointer is not None and (gone or not os.path.lexists(path)):
            with suppress(OSError):
                os.unlink(pointer)
        if gone:
            _leave([path.parent, *([pointer.parent] if pointer else [])])


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A folder for temporary files that is deleted in the end; if this process is killed, by the next session that starts."""
    hold = make_folder(Path(tempfile.gettempdir()), kind)
    try:
        yield hold.path
    finally:
        hold.remove()
