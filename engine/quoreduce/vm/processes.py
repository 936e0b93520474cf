"""Processes of guests: they outlive their agent, and are identified by number, start time and boot."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError
from quoreduce.files import boot_id
from quoreduce.machine import readable

PROGRAMS: Final = {"qemu-system-x86_64": "qemu-system-x86 seabios", "swtpm": "swtpm"}  # → packages of Debian and Ubuntu
LOG_CHARS: Final = 300  # of a program's last words, in errors
SILENT: Final = "nothing"
_KILLED_S: Final = 10.0  # for a process to be gone after SIGKILL


@dataclass(frozen=True, slots=True)
class Process:
    """A process: its number, when it started (clock ticks since boot), and the boot: numbers are used again."""

    pid: int
    start: int
    boot: str = field(default_factory=boot_id)

    @classmethod
    def of(cls, pid: int) -> Process:
        """The process that has this number now. Raises VmError if there is none."""
        found = _state_and_start(pid)
        if found is None:
            raise VmError(f"process {pid} is gone")
        return cls(pid, found[1])

    def alive(self) -> bool:
        """Whether it runs or is stopped; false for one that has ended, even if nobody has waited for it."""
        if self.boot != boot_id():
            return False
        _reap(self.pid)
        found = _state_and_start(self.pid)
        return found is not None and found[0] not in "ZX" and found[1] == self.start

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; return whether it has."""
        with contextlib.suppress(ProcessLookupError):
            fd = os.pidfd_open(self.pid)
            try:
                if self.alive():
                    readable(fd, timeout_s)
            finally:
                os.close(fd)
        return not self.alive()

    def end(self, grace_s: float = 0.0) -> None:
        """Kill it if it does not end by itself within ``grace_s``. Raises VmError if it cannot be killed."""
        if grace_s and self.wait(grace_s):
            return
        if self.alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        if not self.wait(_KILLED_S):
            raise VmError(f"process {self.pid} cannot be killed: it waits for the kernel; restart this machine")


def program(name: str) -> str:
    """Return a program's path. Raises VmError, which says what to install."""
    path = shutil.which(name)
    if path is None:
        raise VmError(f"{name} is not installed; on Debian and Ubuntu: sudo apt-get install {PROGRAMS[name]}")
    return path


def spawn(line: Sequence[str], folder: Path, log: str, fds: Sequence[int]) -> Process:
    """Start a program of a guest in its folder, in a session of its own; its output goes to the file ``log``
    there.
    """
    try:
        with os.fdopen(
            os.open(folder / log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb"
        ) as said:
            child = subprocess.Popen(
                line, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=said, pass_fds=fds,
                start_new_session=True, umask=0o077,
            )  # fmt: skip
    except OSError as error:
        raise VmError(f"cannot start {line[0]}: {error.strerror or error}") from error
    child.returncode = 0  # Process waits for its end, not this object, which would warn otherwise
    return started(child.pid)


def started(pid: int) -> Process:
    """A guest's program, started here as this child process; :class:`Process` waits for its end."""
    _children.add(pid)
    return Process.of(pid)


def reap() -> None:
    """Wait for programs started here that have ended: until then the kernel keeps an entry of each."""
    for pid in list(_children):
        _reap(pid)


_children: Final[set[int]] = set()  # not waited for yet; another process may get the number of one that was


def _reap(pid: int) -> None:
    if pid in _children:
        with contextlib.suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                return
        _children.discard(pid)


def last_words(log: Path) -> str:
    """Return the end of a log, in one line."""
    try:
        words = log.read_bytes()[-LOG_CHARS:].decode(errors="replace")
    except OSError:
        words = ""
    return " ".join(words.split()) or SILENT


def living_in(folder: Path) -> list[Process]:
    """The programs whose working directory is this folder: those that a killed agent has left."""
    where, found = os.path.realpath(folder), []
    names = (where, f"{where} (deleted)")  # somebody may have removed it
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            with contextlib.suppress(OSError, VmError):
                if os.readlink(f"/proc/{entry}/cwd") in names and _name(int(entry)) in _SHORT:
                    found.append(Process.of(int(entry)))
    return [process for process in found if process.alive()]


_SHORT: Final = {name[:15] for name in PROGRAMS}  # as the kernel keeps it


def _name(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()


def _state_and_start(pid: int) -> tuple[str, int] | None:
    """The third field of proc(5), ``stat``, and the twenty-second."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], int(fields[19])
    except (OSError, IndexError):
        return None
