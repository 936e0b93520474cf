"""Shortages of this machine that its processes feel: of time on a core, and of memory. Only Linux tells
them.
"""

from __future__ import annotations

import signal
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")


def waited_s(pid: int) -> float:
    """Seconds that the threads of a process were ready to run and waited for a core, since it began; 0 if that is not
    known.
    """
    total_ns = 0
    try:
        for thread in (PROC / str(pid) / "task").iterdir():
            total_ns += int((thread / "schedstat").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0.0
    return total_ns / 1e9


class MemoryKills:
    """Tells whether a process of ours was killed by the kernel because memory ran out.

    The counter is that of our own control group, which its children are in too; where there is none, that of the
    machine.
    """

    def __init__(self) -> None:
        self._file = _events()
        self._seen = self._count()

    def struck(self, status: int | None) -> bool:
        """Whether a process that ended with ``status`` (as :class:`subprocess.Popen` has it) was; each kill is told
        once.
        """
        if status != -signal.SIGKILL or self._count() <= self._seen:
            return False
        self._seen += 1
        return True

    def limit(self) -> str:
        """The limit of the control group in words, or ""."""
        for name in ("memory.max", "memory.limit_in_bytes"):
            try:
                nbytes = int((self._file.parent / name).read_text())
            except (OSError, ValueError):
                continue
            if nbytes < 1 << 60:  # version 1 writes a number near 2**63 for no limit
                return f", which its control group limits to {nbytes / 1e6:.0f} MB"
        return ""

    def _count(self) -> int:
        try:
            lines = self._file.read_text().splitlines()
        except OSError:
            return 0
        return next(
            (int(number) for name, _, number in (line.partition(" ") for line in lines) if name == "oom_kill"), 0
        )


def _events() -> Path:
    """The file with the counter ``oom_kill``: of version 2 or 1 of control groups, else of the machine."""
    try:
        groups = [line.split(":", 2) for line in (PROC / "self/cgroup").read_text().splitlines()]
    except OSError:
        groups = []
    candidates = []
    for _, controllers, path in (group for group in groups if len(group) == 3):
        if controllers == "":
            candidates += [CGROUPS / path.lstrip("/") / "memory.events", CGROUPS / "memory.events"]
        elif "memory" in controllers.split(","):
            root = CGROUPS / "memory"
            candidates += [root / path.lstrip("/") / "memory.oom_control", root / "memory.oom_control"]
    return next((path for path in candidates if path.is_file()), PROC / "vmstat")
