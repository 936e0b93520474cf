"""What is on this machine for this user: home, the folders of caches and state (XDG), and ours for what lasts a session.

A user may have no home: HOME is not set and the user is not in the password file, as in many containers; or it cannot be written.
Then a folder in the temporary directory serves, which belongs to this user, and which nobody else may write.
"""

from __future__ import annotations

import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.ownership import why_foreign_itself

NAME = "quoreduce"


def home() -> Path | None:
    """The home of this user: HOME, else what the password file says; None if there is none."""
    named = os.environ.get("HOME") or _in_password_file()
    return Path(named) if named and os.path.isabs(named) else None


def _in_password_file() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_dir
    except KeyError:
        return ""


def cache_folder() -> Path:
    """Where quoreduce keeps what can be made again: ``$XDG_CACHE_HOME/quoreduce``, else ``~/.cache/quoreduce``."""
    return _folder("XDG_CACHE_HOME", ".cache", "cache")


def state_folder() -> Path:
    """Where quoreduce keeps what it has learned: ``$XDG_STATE_HOME/quoreduce``, else ``~/.local/state/quoreduce``."""
    return _folder("XDG_STATE_HOME", ".local/state", "state")


def usual_cache_folder() -> Path | None:
    """Where the cache is if it can be written: somebody may have filled it before the disk was made read-only."""
    return _usual("XDG_CACHE_HOME", ".cache")


def _usual(variable: str, below_home: str) -> Path | None:
    root, at = os.environ.get(variable), home()
    usual = Path(root) if root and os.path.isabs(root) else at / below_home if at is not None else None
    return usual / NAME if usual is not None else None


def _folder(variable: str, below_home: str, below_private: str) -> Path:
    """A folder that can be written, or made; else one in the temporary directory. It need not exist yet."""
    usual = _usual(variable, below_home)
    return usual if usual is not None and _can_write(usual) else private_folder() / below_private


def our_path(root: Path) -> Path:
    """Where the folder of this user is under ``root``: ``quoreduce-UID``."""
    return root / f"{NAME}-{os.geteuid()}"


def our_folder(root: Path) -> Path:
    """The same, made with mode 0700 if need be; HostError if it is not a folder that only this user may write, else OSError."""
    path = our_path(root)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    reason = why_foreign_itself(path) or ("" if path.is_dir() else "is no folder")
    if reason:
        right = "has to be a folder that only you may write"
        raise HostError(f"{path} {reason}, and {right}: remove it, or use --store DIR or TMPDIR")
    return path


def private_folder() -> Path:
    """The folder of this user in the temporary directory; HostError if it is not this user's alone, or cannot be made."""
    root = Path(tempfile.gettempdir())
    try:
        return our_folder(root)
    except OSError as error:
        where = our_path(root)
        raise HostError(f"cannot make {where}: {error.strerror}; set HOME or TMPDIR to a folder that you may write") from error


def expanded(path: str) -> Path:
    """An absolute path; ``~`` is the home. Raises HostError if there is none."""
    if path == "~" or path.startswith("~/"):
        at = home()
        if at is None:
            raise HostError(f"cannot tell what {path} is: this user has no home; set HOME, or name the whole path")
        path = str(at / path[2:])
    return Path(path).resolve()


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder in what there is of its parents."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK, effective_ids=True)
