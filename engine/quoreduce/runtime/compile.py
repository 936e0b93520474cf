"""Compile the kernels once per machine, before workers start: several processes that fill one numba cache can crash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.runtime.port import kernel_cache, worker_env

_CODE = (
    "import quoreduce_kernels.words, quoreduce_kernels.records, quoreduce_kernels.fingerprint, "
    "quoreduce_kernels.gensort, quoreduce_kernels.textgen"
)
TIMEOUT_S = 600


def ensure_kernels(say: Callable[[str], None] = lambda text: None) -> None:
    """Fill the kernel cache unless it is full already for these sources, this Python and this CPU; raise HostError."""
    folder = kernel_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / f"ready-{_fingerprint()}"
        if stamp.exists():
            return
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                say("compiling kernels (once per machine, about a minute) ...")
                _compile()
                stamp.touch()
    except OSError as error:
        raise HostError(f"cannot write the kernel cache {folder}: {error.strerror}; set QUOREDUCE_CACHE") from error


def _compile() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE], env={**os.environ, **worker_env()}, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise HostError(f"kernels did not compile: {done.stderr.strip().splitlines()[-1:] or 'no message'}")


def _fingerprint() -> str:
    """Hash of what compiled code depends on: kernel sources (path, size, time), Python, numba, CPU."""
    spec = find_spec("quoreduce_kernels")
    if spec is None or not spec.submodule_search_locations:
        raise HostError("the package quoreduce_kernels is not installed")
    state = hashlib.sha256(sys.version.encode())
    for path in sorted(Path(spec.submodule_search_locations[0]).glob("*.py")):
        status = path.stat()
        state.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
    numba = find_spec("numba")
    state.update(str(os.stat(numba.origin).st_mtime_ns if numba and numba.origin else 0).encode())
    state.update(_cpu().encode())
    return state.hexdigest()[:16]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
