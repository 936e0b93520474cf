"""Compile the kernels once per machine, before workers start: several processes that fill one numba cache can crash."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.runtime.port import kernel_cache, kernel_version, worker_env

_CODE = (
    "import quoreduce_kernels.words, quoreduce_kernels.records, quoreduce_kernels.fingerprint, "
    "quoreduce_kernels.gensort, quoreduce_kernels.textgen, quoreduce_kernels.blake3, quoreduce_kernels.sequence, "
    "quoreduce_kernels.gridgen, quoreduce_kernels.pairs, quoreduce_kernels.prefix"
)
TIMEOUT_S = 600
KEEP_S = 30 * 24 * 3600


def ensure_kernels(say: Callable[[str], None] = lambda text: None) -> None:
    """Fill the kernel cache unless it is full already for these sources, this Python and this CPU; raise HostError."""
    folder = kernel_cache()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stamp = folder / f"ready-{kernel_version()}"
        if stamp.exists():
            return
        with open(folder / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not stamp.exists():
                say("compiling kernels (once per machine, about a minute) ...")
                _forget_old(folder)
                _compile()
                stamp.touch()
    except OSError as error:
        raise HostError(f"cannot write the kernel cache {folder}: {error.strerror}; set QUOREDUCE_CACHE") from error


def use_kernels(say: Callable[[str], None] = lambda text: None) -> None:
    """Let this process load kernels from the cache too: call it before the first import of one."""
    ensure_kernels(say)
    os.environ.setdefault("NUMBA_CACHE_DIR", worker_env()["NUMBA_CACHE_DIR"])


def _forget_old(folder: Path) -> None:
    """Delete what was compiled for other versions and not used for a month."""
    for path in [*folder.glob("numba-*"), *folder.glob("ready-*")]:
        if time.time() - path.stat().st_mtime > KEEP_S:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def _compile() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE], env={**os.environ, **worker_env()}, capture_output=True, text=True,
        timeout=TIMEOUT_S, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise HostError(f"kernels did not compile: {done.stderr.strip().splitlines()[-1:] or 'no message'}")
