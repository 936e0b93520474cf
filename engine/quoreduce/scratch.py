"""Folders for the time of a session: they are made here, and those of dead sessions are found and removed.

Blocks and temporary files lie in ``quoreduce-UID/``, a folder that only this user may enter, under each root: shared
memory, the folder for temporary files, or the folder that ``--store`` names. Each session that starts removes the dead
folders there (:mod:`quoreduce.files` says which these are).
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.files import Hold, read_markers, remove_dead, remove_empty, remove_ours, state_of
from quoreduce.machine import our_folder, our_path
from quoreduce.ownership import why_foreign_itself
from quoreduce.strays import end_strays

ELSEWHERE = ".elsewhere"
SHARED_MEMORY = Path("/dev/shm")
NAME_CHARS = 12  # of a folder's name, behind its kind
_TRIES = 100
_OUR_NAME = re.compile(r"[a-z]+-[0-9a-z-]+")


def usual_roots() -> list[Path]:
    """Where every session looks for folders of dead ones: shared memory, if it exists, and the folder for temporary
    files.
    """
    shared = [SHARED_MEMORY] if SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK) else []
    return [*shared, Path(tempfile.gettempdir())]


def make_folder(root: Path, kind: str) -> Hold:
    """Make a folder ``kind``-... in our folder under ``root`` and hold it; it goes when the process ends."""
    return _made(root, lambda: f"{kind}-{secrets.token_hex(NAME_CHARS // 2)}", shared=False)


def join_folder(root: Path, name: str) -> Hold:
    """The same for a folder that several processes share, and that lives as long as any of them: it is made by the
    first.
    """
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
                remove_empty([path.parent])
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
    """Leave a link to a folder that is not under the usual root, so that later sessions under any root find it.

    It is a link, which is made whole or not at all; it is read, never followed. A session works without it, too.
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
            continue  # another session has just deleted our folder, because it was empty
        except (OSError, HostError):
            break
    return None


def remove_session(path: Path) -> None:
    """Delete a folder that :func:`make_folder` made, after its maker has ended, and the link to it."""
    pointer = our_path(usual_roots()[0]) / f"{path.name}{ELSEWHERE}"
    remove_ours(path)
    with suppress(OSError):
        if _pointed_at(pointer) == path:
            os.unlink(pointer)
    remove_empty([path.parent, pointer.parent])


def _pointed_at(pointer: Path) -> Path | None:
    """The folder that a link names; None if that is not one of ours. Raises OSError if it is not a link."""
    path = Path(os.readlink(pointer))
    named = _OUR_NAME.fullmatch(path.name) and path.name + ELSEWHERE == pointer.name
    fits = named and path.parent == our_path(path.parent.parent)
    return path if fits and path.is_absolute() and os.lstat(pointer).st_uid == os.geteuid() else None


@dataclass(frozen=True, slots=True)
class LeftFolder:
    """A folder that a dead session left: where, how many bytes it takes, and the processes that made it."""

    path: Path
    nbytes: int
    pids: tuple[int, ...]


def _folders(roots: Collection[Path]) -> Iterator[tuple[Path, Path | None]]:
    """All folders under these roots with names that we give, and those that a link there names (with the link)."""
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


def find_left(root: Path | None = None) -> list[LeftFolder]:
    """The folders that dead sessions left under the usual roots, under ``root``, and wherever a link leads."""
    found: dict[Path, LeftFolder] = {}
    for path, _ in _folders([*usual_roots(), *([root] if root else [])]):
        with suppress(OSError):
            markers = read_markers(path)
            if markers and not any(one.alive for one in markers):
                pids = tuple(one.owner.pid for one in markers if one.owner is not None)
                found[path] = LeftFolder(path, _nbytes(path), pids)
    return list(found.values())


def _nbytes(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += os.lstat(os.path.join(here, name)).st_blocks * 512
    return total


def sweep(root: Path | None = None) -> None:
    """Delete the folders that :func:`find_left` finds, and empty ones; end the processes that still run there."""
    for path, pointer in list(_folders([*usual_roots(), *([root] if root else [])])):
        if state_of(path) == "dead":
            end_strays(path)
        gone = remove_dead(path)
        if pointer is not None and (gone or not os.path.lexists(path)):
            with suppress(OSError):
                os.unlink(pointer)
        if gone:
            remove_empty([path.parent, *([pointer.parent] if pointer else [])])


@contextmanager
def temporary_folder(kind: str) -> Iterator[Path]:
    """A folder for temporary files, deleted at the end; if this process is killed, the next session deletes it."""
    hold = make_folder(Path(tempfile.gettempdir()), kind)
    try:
        yield hold.path
    finally:
        hold.remove()
