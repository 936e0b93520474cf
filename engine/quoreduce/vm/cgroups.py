"""Limits of a guest's QEMU by cgroup v2, where a server may make cgroups: memory, swap (none) and threads.

The server's own cgroup must be delegated to it (systemd: ``Delegate=yes``) or be the root, with the controllers memory
and pids. Below it is one for the agent, because a cgroup with controllers for others may have no process of its own,
and one for each guest. Memory of a guest (ram.bin) counts for the agent's cgroup, which made the file: the limit bounds
what QEMU needs beside it.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

from quoreduce.vm.ports import VmSpec

AGENT: Final = "quoreduce-agent"
GUEST: Final = "quoreduce-guest-"
CONTROLLERS: Final = ("memory", "pids")
MEMORY_EXTRA_BYTES: Final = 1 << 30
THREADS: Final = 256
_place: list[Path] = []  # where guests' cgroups are made, in a server; else nowhere


def prepare(place: Path | None = None) -> str:
    """Let guests that are started from now on have limits; return "" or the reason why they have none.

    Args:
        place: the server's own cgroup; by default the one that it is in.
    """
    _place.clear()
    try:
        folder, root = (place, False) if place is not None else _own()
        missing = [one for one in CONTROLLERS if one not in (folder / "cgroup.controllers").read_text().split()]
        if missing:
            return f"the cgroup {folder} has no controller {' or '.join(missing)}"
        if not root:
            _make_room(folder)
        (folder / "cgroup.subtree_control").write_text(" ".join(f"+{one}" for one in CONTROLLERS))
    except OSError as error:
        return f"{error.filename or 'cgroup v2'}: {error.strerror or error}"
    _place.append(folder)
    sweep()
    return ""


def of_guest(name: str, spec: VmSpec) -> str:
    """Make a guest's cgroup and return its path; "" where there are none."""
    if not _place:
        return ""
    sweep()
    folder = _place[0] / f"{GUEST}{name}"
    folder.mkdir(exist_ok=True)
    limits = {"memory.max": (spec.memory_mb << 20) + MEMORY_EXTRA_BYTES, "memory.swap.max": 0, "pids.max": THREADS}
    for file, limit in limits.items():
        if file != "memory.swap.max" or (folder / file).exists():  # a kernel without swap has none
            (folder / file).write_text(str(limit))
    return str(folder)


def sweep() -> None:
    """Remove the cgroups of guests that have ended; the kernel refuses the others."""
    for place in _place:
        for folder in place.glob(f"{GUEST}*"):
            with contextlib.suppress(OSError):
                folder.rmdir()


def _own() -> tuple[Path, bool]:
    """The folder of our own cgroup, and whether it is the root; OSError: there is no cgroup v2."""
    path = next(
        (line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")), None
    )
    for line in Path("/proc/self/mountinfo").read_text(errors="replace").splitlines():
        fields, _, rest = line.partition(" - ")
        if path is not None and rest.split()[0] == "cgroup2":
            return Path(fields.split()[4] + path.rstrip("/")), path == "/"
    raise OSError(0, "there is no cgroup v2 here")


def _make_room(folder: Path) -> None:
    """Move this process, alone in its cgroup, to one below it; OSError if others are there too."""
    inside = (folder / "cgroup.procs").read_text().split()
    if any(int(one) != os.getpid() for one in inside):
        raise OSError(
            0,
            "other processes are in it too: start the server in a cgroup of its own (systemd: Delegate=yes)",
            str(folder),
        )
    (folder / AGENT).mkdir(exist_ok=True)
    (folder / AGENT / "cgroup.procs").write_text("0")
