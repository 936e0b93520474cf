"""This machine: this user's home and folders (of caches and state by XDG, of what lasts a session), the CPU, what its
cores did.

A user may have no home: HOME is not set and the user is not in the password file, as in many containers; or it cannot
be written. Then a folder in the temporary directory serves, which belongs to this user, and which nobody else may
write.
"""

from __future__ import annotations

import os
import pwd
import select
import tempfile
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.ownership import why_foreign_itself

NAME = "quoreduce"
DIRTY_SHARE = 0.05
DIRTY_TOLERANCE_S = 0.03  # the kernel counts in ticks of 10 ms
_BUSY, _STEAL = (0, 1, 2, 5, 6), 7  # of proc(5), stat: user, nice, system, irq, softirq; steal


def home() -> Path | None:
    """The home of this user: HOME, else the one in the password file; None if neither names one."""
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
    """The same, made with mode 0700 if need be; HostError if it is not a folder that only this user may write, else
    OSError.
    """
    path = our_path(root)
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
    reason = why_foreign_itself(path) or ("" if path.is_dir() else "is no folder")
    if reason:
        right = "has to be a folder that only you may write"
        raise HostError(f"{path} {reason}, and {right}: remove it, or use --store DIR or TMPDIR")
    return path


def private_folder() -> Path:
    """The folder of this user in the temporary directory; HostError if it is not this user's alone, or cannot be
    made.
    """
    root = Path(tempfile.gettempdir())
    try:
        return our_folder(root)
    except OSError as error:
        where = our_path(root)
        raise HostError(
            f"cannot make {where}: {error.strerror}; set HOME or TMPDIR to a folder that you may write"
        ) from error


def expanded(path: str) -> Path:
    """An absolute path; ``~`` is the home. Raises HostError if the user has no home."""
    if path == "~" or path.startswith("~/"):
        at = home()
        if at is None:
            raise HostError(f"cannot tell what {path} is: this user has no home; set HOME, or name the whole path")
        path = str(at / path[2:])
    return Path(path).resolve()


def cpu_model() -> str:
    """The model of the CPU, as the kernel calls it; empty if it does not say."""
    return next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), ""
    )


def cpu_flags() -> str:
    """The line that says what the CPU can do; empty if the kernel does not say."""
    return next((line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "")


def core_times(cores: Collection[int]) -> tuple[float, float]:
    """Seconds since the boot for which these cores were busy, and for which the hypervisor had them; 0 if they are not
    known.
    """
    names = {f"cpu{core}" for core in cores}
    busy = steal = 0
    with suppress(ValueError, IndexError):
        for line in _lines("/proc/stat"):
            name, *values = line.split()
            if name in names:
                busy += sum(int(values[i]) for i in _BUSY)
                steal += int(values[_STEAL])
    hz = os.sysconf("SC_CLK_TCK")
    return busy / hz, steal / hz


def waited_s() -> float:
    """Seconds since the boot in which some task waited for a core; 0 if the kernel does not say."""
    with suppress(ValueError, IndexError):
        return int("".join(_lines("/proc/pressure/cpu")).split("total=")[1].split()[0]) / 1e6
    return 0.0


def is_dirty(core_s: float, *taken_s: float) -> bool:
    """The rule for noise: whether anything took over 5 % of ``core_s``, the wall time of a run times its cores, from
    it.
    """
    return max(taken_s) > DIRTY_SHARE * core_s + DIRTY_TOLERANCE_S


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _can_write(folder: Path) -> bool:
    """Whether files can be made in a folder, or the folder in what there is of its parents."""
    there = next((one for one in (folder, *folder.parents) if os.path.lexists(one)), None)
    return there is not None and there.is_dir() and os.access(there, os.W_OK | os.X_OK, effective_ids=True)


def readable(fd: int, timeout_s: float) -> bool:
    """Wait until there is something to read, or the process of a pidfd has ended; return False after ``timeout_s``."""
    waits = select.poll()  # select() takes no number of 1024 and more
    waits.register(fd, select.POLLIN)
    return bool(waits.poll(max(0.0, timeout_s) * 1000))
