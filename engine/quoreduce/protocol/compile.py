"""The compiled kernels of this machine: compiled once, before workers start, and again where they are damaged.

One process at a time writes the folder, under a lock; all others read it. :mod:`quoreduce_kernels.cache` says what is
checked when a kernel is loaded. A second process compares the kernels with known answers before they are used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from quoreduce.errors import HostError, one_line
from quoreduce.protocol.port import WORKER_ENV, kernel_folder
from quoreduce_kernels import cache

_FILL = "import pathlib, sys; from quoreduce_kernels.cache import fill; fill(pathlib.Path(sys.argv[1]))"
_TEST = "from quoreduce.protocol.selftest import wrong_here; print(*wrong_here())"
TIMEOUT_S = 600
LOCK_POLL_S = 0.1
KEEP_S = 30 * 24 * 3600
Say = Callable[[str], None]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def ensure_kernels(say: Say = lambda text: None) -> Path:
    """Return the folder of compiled kernels, after compiling what is missing or damaged. Raises HostError.

    ``say`` is told that kernels are compiled. Damage is reported on stderr.
    """
    folder = kernel_folder()
    if _damaged(folder) == []:
        return folder
    root = folder.parent
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(root / "lock", "w") as lock:
            _take(lock, root)
            _fill(folder, say)
    except OSError as error:
        raise HostError(
            f"cannot write the kernel cache {root}: {error.strerror or error}; set QUOREDUCE_CACHE"
        ) from error
    return folder


def use_kernels(say: Say = _say) -> None:
    """Compile kernels if needed, and have this process load them. Importing the first kernel does this by itself."""
    os.environ[cache.VARIABLE] = str(ensure_kernels(say))


def damaged_kernels() -> list[str] | None:
    """Files of compiled kernels that have changed since; None if none were compiled. Raises HostError if others may
    write them.
    """
    return _damaged(kernel_folder())


def _damaged(folder: Path) -> list[str] | None:
    """Files that have changed since they were compiled; None if nothing was compiled yet, or not completely."""
    try:
        return cache.CacheReader(folder).damaged() if (folder / cache.MANIFEST).exists() else None
    except FileNotFoundError:
        return None
    except OSError as error:
        reason = error.strerror or error
        raise HostError(
            f"kernels in {folder} cannot be trusted: {reason}; remove it, or set QUOREDUCE_CACHE"
        ) from error


def _take(lock: IO[str], root: Path) -> None:
    """Take the lock of the folder, or raise HostError when another process has had it for too long."""
    end = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        if time.monotonic() > end:
            raise HostError(f"another process has had {root}/lock for {TIMEOUT_S} s; end it, or set QUOREDUCE_CACHE")
        time.sleep(LOCK_POLL_S)


def _fill(folder: Path, say: Say) -> None:
    """Compile what is missing or damaged; the lock is held."""
    damaged = _damaged(folder)  # another process may have filled it while this one waited
    if damaged == []:
        return
    if not cache.Writer(folder).keeps():  # before a minute's work
        raise _keeps_nothing(folder, "a file")
    if damaged is None:
        say("compiling kernels (once per machine, about a minute) ...")
        _forget_old(folder.parent)
    else:
        _say(f"kernels in {folder} are damaged ({damaged[0]}{_more(damaged)}): compiling them anew ...")
    with _unless_wrong(folder):
        _run("did not compile", [_FILL, str(folder)], folder)
        if left := _damaged(folder):
            raise _keeps_nothing(folder, left[0])
        if wrong := _run("cannot be tested", [_TEST], folder).split():
            raise HostError(f"compiled kernels give wrong answers ({', '.join(wrong)}): test this machine's cores with "
                            "`quoreduce suspects --test`")  # fmt: skip


def _keeps_nothing(folder: Path, name: str) -> HostError:
    return HostError(f"{folder} does not keep what is written ({name}); set QUOREDUCE_CACHE to another disk")


def _more(names: list[str]) -> str:
    return f" and {len(names) - 1} more" if len(names) > 1 else ""


@contextlib.contextmanager
def _unless_wrong(folder: Path) -> Iterator[None]:
    """Leave no manifest, so that nothing is loaded, if what was compiled cannot be used."""
    try:
        yield
    except BaseException:
        (folder / cache.MANIFEST).unlink(missing_ok=True)
        raise


def _forget_old(root: Path) -> None:
    """Delete what was compiled for other versions more than a month ago."""
    for path in [*root.glob("kernels-*"), *root.glob("numba-*"), *root.glob("ready-*")]:
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > KEEP_S:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _run(failed: str, arguments: list[str], folder: Path) -> str:
    """Run Python code in a process with a worker's environment that loads kernels from ``folder``; return what it
    printed.
    """
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    env = {**os.environ, **WORKER_ENV, "PYTHONPATH": path, cache.VARIABLE: str(folder)}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", *arguments], env=env, check=False, capture_output=True, text=True,
            timeout=TIMEOUT_S, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise HostError(f"kernels {failed} within {TIMEOUT_S} s; set QUOREDUCE_CACHE to a faster disk") from error
    if done.returncode != 0:
        raise HostError(f"kernels {failed}: {one_line((done.stderr.strip().splitlines() or ['no message'])[-1])}")
    return done.stdout
