"""Processes that a Ray of our own leaves behind: its agents look for the dead raylet for a minute before they give up.

Ray ends the processes that it has started itself. If it is told to end while it starts, or is killed then, the raylet's
children, who have just begun, live on, and so may workers. They are known by where they write: their log files are in
the folder of that Ray, which is ours.
"""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from quoreduce.machine import readable

GONE_S = 2.0


def end_strays(folder: Path) -> None:
    """Kill the processes of a Ray that was to end and whose files lie in ``folder``; wait until they are gone, GONE_S
    at most.
    """
    end = time.monotonic() + GONE_S
    while time.monotonic() < end and (killed := [fd for pid in strays(folder) if (fd := _kill(pid)) is not None]):
        try:  # once more after that: what was killed may just have started another
            for fd in killed:
                readable(fd, end - time.monotonic())
        finally:
            for fd in killed:
                os.close(fd)


def strays(folder: Path) -> Iterator[int]:
    """The processes, except this one, that have a file below ``folder`` open to write."""
    below = os.path.join(os.path.realpath(folder), "")
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and int(entry) != os.getpid() and _writes(f"/proc/{entry}/fd", below):
            yield int(entry)


def _writes(descriptors: str, below: str) -> bool:
    try:
        with os.scandir(descriptors) as links:
            return any(_target(link).startswith(below) for link in links)
    except OSError:  # the process has ended, or is another user's
        return False


def _target(link: os.DirEntry[str]) -> str:
    """The file behind a descriptor that may be written to; else nothing."""
    with suppress(OSError):
        if link.stat(follow_symlinks=False).st_mode & stat.S_IWUSR:
            return os.readlink(link)
    return ""


def _kill(pid: int) -> int | None:
    """Kill a process; return a descriptor that can be read when it has ended, None if it has."""
    with suppress(OSError):
        fd = os.pidfd_open(pid)
        with suppress(OSError):
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        return fd
    return None
