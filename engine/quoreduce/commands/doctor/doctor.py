"""``quoreduce doctor``: what this machine has, and whether Ray can be reached."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from quoreduce import files, scratch
from quoreduce.errors import HostError
from quoreduce.printable import printable
from quoreduce.protocol.compile import damaged_kernels
from quoreduce.protocol.options import Place
from quoreduce.protocol.port import cores, kernel_folder
from quoreduce.version import __version__

PACKAGES = ("ray", "numba", "numpy", "blake3", "pyarrow", "msgspec")
SHARED_LEAST_BYTES = 1 << 30


def doctor(
    address: str | None, as_json: bool, *, clean: bool = False, store: str | None = None, deep: bool = False
) -> int:
    """Print what was found and what to do about it; return 0, or 4 if jobs cannot run here, or should not.

    ``clean``: delete what dead sessions left. ``store``: look for it there, too. ``deep``: compare installed files and
    compiled kernels with their digests too.
    """
    left = scratch.find_left(Path(store) if store else None)
    gone = [one for one in left if clean and files.remove_dead(one.path)]
    if clean:
        scratch.sweep(Path(store) if store else None)
    state, advice = _look(address)
    state["left by dead"] = "; ".join(_told(one, one in gone) for one in left) or "nothing"
    if len(gone) < len(left):
        advice.append("dead sessions left files: the next session deletes them, or quoreduce doctor --clean")
    more = _compare(state, advice) if deep else {}
    if as_json:
        print(json.dumps({**state, **more, "advice": advice}))
    else:
        for name, value in state.items():
            print(printable(f"{name:<14} {value}"))
        for line in advice:
            print(printable(f"! {line}"))
    return HostError.exit_code if any(line.startswith(("cannot", "differs")) for line in advice) else 0


def _compare(state: dict[str, Any], advice: list[str]) -> dict[str, Any]:
    """Add what a comparison of files found; return what JSON has more."""
    from quoreduce.commands.doctor.deep import compare

    found = compare()
    differ = len(found.differences)
    state["files"] = f"{found.files} of {found.packages} packages compared, {differ} differ{'s' * (differ == 1)}"
    if found.unrecorded:
        state["no digests"] = f"{', '.join(found.unrecorded)} (not installed by pip, or editable)"
    advice += [str(one) for one in found.differences]
    return {"differences": [asdict(one) for one in found.differences]}


def _look(address: str | None) -> tuple[dict[str, Any], list[str]]:
    state: dict[str, Any] = {
        "quoreduce": __version__,
        "python": sys.version.split()[0],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        **{name: _version(name) for name in PACKAGES},
        "cores": len(cores()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 1e9:.1f} GB",
    }
    advice = [f"cannot find {name}: pip install quoreduce" for name in PACKAGES if state[name] == "missing"]
    if len(cores()) < 2:
        advice.append("one core is one failure domain: voting needs f+1 of them, or --domain worker --workers 2")
    shared = "/dev/shm"
    if os.path.isdir(shared):
        free = shutil.disk_usage(shared).free
        state["/dev/shm"] = f"{free / 1e9:.1f} GB free"
        if free < SHARED_LEAST_BYTES:
            advice.append(
                f"little shared memory is free: map outputs will go to {tempfile.gettempdir()}, or use --store DIR"
            )
    else:
        state["/dev/shm"] = "none"
    state["kernels"] = _kernels(advice)
    state["ray reachable"] = _ray(address, advice)
    return state, advice


def _kernels(advice: list[str]) -> str:
    folder = kernel_folder()
    try:
        damaged = damaged_kernels()
    except HostError as error:
        advice.append(f"cannot use compiled kernels: {error}")
        return f"{folder} (refused)"
    if damaged is None:
        return f"{folder} (will be compiled on first use)"
    return f"{folder} ({len(damaged)} damaged, will be compiled anew)" if damaged else f"{folder} (compiled)"


def _told(one: scratch.LeftFolder, gone: bool) -> str:
    who = f"process{'es' * (len(one.pids) > 1)} {', '.join(map(str, one.pids))}" if one.pids else "an unknown process"
    return f"{one.path}, {one.nbytes / 1e6:.1f} MB, of {who}{' (deleted)' * gone}"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _ray(address: str | None, advice: list[str]) -> str:
    """Start or reach Ray as a job would, and say what is there."""
    from quoreduce.runtime.ray import RayExecutor

    executor = RayExecutor(Place(on="ray", address=address, workers=1), swept=False)
    try:
        (worker,) = executor.start()
        nodes = executor.node_count()
    except HostError as error:
        advice.append(str(error) if str(error).startswith("cannot use") else f"cannot use Ray: {error}")
        return "no"
    finally:
        executor.close()
    where = address or os.environ.get("RAY_ADDRESS") or "started here"
    return f"yes ({where}, {nodes} node{'s' * (nodes > 1)}, actor pid {worker.pid})"
