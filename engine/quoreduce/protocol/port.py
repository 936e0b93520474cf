"""The interface of executors: workers that take requests and give replies, and may die."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal, Protocol

from quoreduce import machine
from quoreduce.errors import HostError
from quoreduce.trust.measure import versions
from quoreduce_kernels.cache import MANIFEST, VARIABLE

Domain = Literal["core", "worker", "node", "rack"]
DOMAINS: tuple[Domain, ...] = ("core", "worker", "node", "rack")
WORKER_ENV = {
    "PYTHONHASHSEED": "0",
    "TZ": "UTC",
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "NUMBA_NUM_THREADS": "1",
    "POLARS_MAX_THREADS": "1",
}


NOT_COMPILED = ("__init__.py", "cache.py", "reference.py")
"""Sources of quoreduce_kernels that no compiled kernel depends on."""


@dataclass(frozen=True, slots=True)
class WorkerInfo:
    """A worker and the failure domain that it is in; ``core`` is None if it is not pinned.

    ``cpu``: its type of CPU, if others may have another. ``place``: a name of what it runs on, which is the same in the
    next session; empty if there is none.
    """

    name: str
    domain: str
    node: str
    core: int | None = None
    pid: int = 0
    place: str = ""
    cpu: str = ""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A reply (``raw``), or, if ``raw`` is None, the news that a worker is gone.

    ``blocks_lost``: its blocks are lost, too. ``status``: how its process ended, as in :class:`subprocess.Popen`, if
    that is known. ``hung``: it did not die, but would never have answered.
    """

    worker: str
    raw: bytes | None
    blocks_lost: bool = False
    status: int | None = None
    hung: bool = False


class Executor(Protocol):
    """Workers on one machine or on many. Not thread-safe."""

    def start(self) -> list[WorkerInfo]:
        """Start all workers; raise HostError if they cannot start."""

    def submit(self, worker: str, raw: bytes) -> None:
        """Queue a request; requests of a worker are executed in order. Unknown and dead workers are ignored."""

    def wait(self, timeout_s: float) -> list[Arrival]:
        """Wait for replies and deaths, for at most ``timeout_s`` seconds."""

    def kill(self, worker: str) -> None:
        """Kill a worker at once; its death is reported by :meth:`wait`."""

    def waited_s(self, worker: str) -> float:
        """Seconds that a worker was ready to run and waited for a core, since it began; 0 if that is not known."""

    def replace(self, worker: str) -> WorkerInfo | None:
        """Start a worker in place of a dead one, in the same failure domain if that still exists; None if there is no
        place.
        """

    def close(self) -> None:
        """Stop all workers and delete all that they stored."""


def kernel_cache() -> Path:
    """The folder of caches: ``QUOREDUCE_CACHE``, else ``~/.cache/quoreduce``, else one in the temporary directory."""
    chosen = os.environ.get("QUOREDUCE_CACHE")
    return Path(os.path.abspath(chosen)) if chosen else machine.cache_folder()


def kernel_folder() -> Path:
    """The folder of the kernels for these sources, this Python, numba and CPU. If they exist it may be on a read-only
    disk.
    """
    name, usual = f"kernels-{kernel_version()}", machine.usual_cache_folder()
    if usual is not None and not os.environ.get("QUOREDUCE_CACHE") and os.access(usual / name / MANIFEST, os.R_OK):
        return usual / name
    return kernel_cache() / name


def worker_env() -> dict[str, str]:
    """Environment variables of workers: those that make honest replicas equal, and the folder of kernels on this
    machine.
    """
    chosen = os.environ.get("QUOREDUCE_CACHE")
    where = {"QUOREDUCE_CACHE": os.path.abspath(chosen)} if chosen else {}
    return {**WORKER_ENV, **where, VARIABLE: str(kernel_folder())}


@lru_cache(maxsize=1)
def kernel_version() -> str:
    """Hash of what compiled kernels depend on: the contents of their sources, Python, numba, CPU."""
    spec = find_spec("quoreduce_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise HostError("the package quoreduce_kernels is not installed")
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        if path.name in NOT_COMPILED:
            continue
        content = path.read_bytes()
        state.update(f"{path.name} {len(content)}\n".encode() + content)
    state.update(f"{sorted(versions(('numba', 'llvmlite', 'numpy')).items())}\n{machine.cpu_flags()}".encode())
    return state.hexdigest()[:16]


def cpu_type() -> str:
    """The type of this CPU, for people; it differs where the features of CPUs differ."""
    return f"{machine.cpu_model() or 'CPU'} {hashlib.sha256(machine.cpu_flags().encode()).hexdigest()[:4]}"


def cores() -> list[int]:
    """Cores that this process may run on."""
    return sorted(os.sched_getaffinity(0))
