"""Whether a file may be trusted: it is this user's, and nobody else can write it, or put another in its place.

What is checked is the file that was opened, not what its name stands for a moment later.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from functools import cache
from pathlib import Path

ROOT = 0


def why_foreign_fd(fd: int, ours_only: bool = True) -> str:
    """Say why an open file or folder is not to be trusted; nothing if it is.

    It has to belong to this user (or to root, if not ``ours_only``), and nobody else may write it.
    """
    return _why(os.fstat(fd), ours_only)


def why_foreign_itself(path: Path, ours_only: bool = True) -> str:
    """The same for what lies at ``path``, whatever the folders above it are; a link is not followed, and not
    trusted.
    """
    return _why(os.lstat(path), ours_only)


def why_foreign(path: Path, ours_only: bool = True) -> str:
    """The same for what lies at ``path``, and for each folder above it.

    A folder above it may be root's, too; others may write it only where none but its owner can rename what is in it
    (the sticky bit, as of /tmp). Raises OSError if it cannot be looked at.
    """
    folder = Path(os.path.realpath(path.parent))
    why = why_foreign_itself(folder / path.name, ours_only)
    for above in (folder, *folder.parents) if not why else ():
        found = os.lstat(above)
        reason = _why(found, ours_only=False)
        if reason and not (_owned(found, False) and found.st_mode & stat.S_ISVTX):
            return f"its folder {above} {reason}"
    return why


def _why(found: os.stat_result, ours_only: bool) -> str:
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link"
    if not _owned(found, ours_only):
        return f"belongs to {_user(found.st_uid)}"
    if found.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    if found.st_mode & stat.S_IWGRP and not _private_group(found.st_gid):
        return f"can be written by the group {_group(found.st_gid)}"
    return ""


def _owned(found: os.stat_result, ours_only: bool) -> bool:
    if ours_only:
        return found.st_uid == os.geteuid()
    return found.st_uid in (os.geteuid(), ROOT, _overflow_uid())


@cache
def _overflow_uid() -> int:
    """Who root is called in a user name space that does not know him (in a container of an ordinary user); else
    root.
    """
    try:
        if Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(2**32 - 1)]:
            return ROOT
        return int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return ROOT


def _private_group(gid: int) -> bool:
    """Whether a group is this user's alone: it has the user's name, and no other members, as many systems make one for
    each.
    """
    try:
        me, group = pwd.getpwuid(os.geteuid()), grp.getgrgid(gid)
    except KeyError:
        return False
    return me.pw_gid == gid and me.pw_name == group.gr_name and set(group.gr_mem) <= {me.pw_name}


def _user(uid: int) -> str:
    try:
        return f"the user {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"another user (uid {uid})"


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
