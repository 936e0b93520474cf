"""The folder of compiled kernels, and its manifest: what was compiled, by size and BLAKE3 digest.

All processes of a machine load the same compiled kernels, so a bit that flips in one of these files would give all
replicas the same wrong output. Therefore only bytes whose digest is in the manifest are loaded, and it is the very
bytes in memory that are digested. Everything else is a kernel that has yet to be compiled. The files are pickles: they
are read only in a folder that belongs to this user or to root, and that nobody else may write.

One process at a time writes the folder, :func:`fill`, and its caller holds a lock. Every other process only reads it,
and compiles for itself what it cannot use. This module does not import numba, which takes long.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

VARIABLE = "QUOREDUCE_KERNELS"
"""Environment variable: the folder that this process and those that it starts load kernels from."""
MANIFEST = "manifest.json"
SUFFIX = ".nbc"
FORMAT = "quoreduce kernels 1"
MANIFEST_BYTES_MAX = 1 << 20
_TRIAL = "trial"
KERNEL_BYTES_MAX = 64 << 20
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class Unsafe(OSError):
    """A folder of kernels that another user owns or may write."""


class CacheEntry(NamedTuple):
    """A compiled kernel: its size in bytes and its BLAKE3 digest, in hex."""

    size: int
    digest: str


def digest_of(raw: bytes) -> str:
    """BLAKE3 of some bytes, in hex."""
    from blake3 import blake3

    return blake3(raw).hexdigest()


class CacheReader:
    """Reads a folder of kernels. Raises Unsafe if others may write it, FileNotFoundError if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with _opened(folder) as fd:
            self._manifest = _read_manifest(fd)

    @property
    def names(self) -> list[str]:
        """The files that the manifest names; empty if there is no manifest, or it is damaged."""
        return sorted(self._manifest)

    def load(self, name: str) -> bytes | None:
        """Return the bytes of a compiled kernel; None if they are not what the manifest says, or there are none."""
        for attempt in range(2):
            with contextlib.suppress(OSError), _opened(self.folder) as fd:
                if attempt:
                    self._manifest = _read_manifest(fd)  # another process may have compiled it anew meanwhile
                entry = self._manifest.get(name)
                raw = _read(fd, name, entry.size) if entry is not None else b""
                if entry is not None and len(raw) == entry.size and digest_of(raw) == entry.digest:
                    return raw
        return None

    def damaged(self) -> list[str]:
        """Names of files that are not what the manifest says; the manifest's own if it names nothing."""
        return [name for name in self.names if self.load(name) is None] or ([] if self._manifest else [MANIFEST])


class Writer(CacheReader):
    """Writes a folder of kernels, made if it is missing; :meth:`finish` when all are written."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        super().__init__(folder)
        self._used: dict[str, CacheEntry] = {}

    def load(self, name: str) -> bytes | None:
        """The same; what can be used is named in the new manifest."""
        raw = super().load(name)
        if raw is not None:
            self._used[name] = self._manifest[name]
        return raw

    def save(self, name: str, raw: bytes) -> None:
        """Write a compiled kernel, whole or not at all."""
        with _opened(self.folder) as fd:
            _write(fd, name, raw)
        self._used[name] = CacheEntry(len(raw), digest_of(raw))

    def keeps(self) -> bool:
        """Whether a file that is written here can be read again; OSError if it cannot be written."""
        with _opened(self.folder) as fd:
            _write(fd, _TRIAL, b"kept")
            try:
                return _read(fd, _TRIAL, 4) == b"kept"
            except OSError:
                return False
            finally:
                os.unlink(_TRIAL, dir_fd=fd)

    def finish(self) -> None:
        """Write the manifest of all kernels that were loaded or saved, and delete all other files."""
        kernels = {name: list(entry) for name, entry in sorted(self._used.items())}
        with _opened(self.folder) as fd:
            _write(fd, MANIFEST, json.dumps({"format": FORMAT, "kernels": kernels}, indent=1).encode())
            os.fsync(fd)
            for name in set(os.listdir(fd)) - kernels.keys() - {MANIFEST}:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=fd)


current: CacheReader | None = None
"""Where this process loads kernels from, once the first was needed."""
_said = False


def reader() -> CacheReader | None:
    """Return where this process loads kernels from; None if it has to compile them for itself."""
    global current
    if current is None:
        engine: Any = sys.modules.get("quoreduce")  # which this package does not import
        if VARIABLE not in os.environ and engine is not None:
            engine.prepare_kernels()
        if folder := os.environ.get(VARIABLE):
            try:
                current = CacheReader(Path(folder))
            except OSError as error:
                say(f"cannot load kernels from {folder}: {error}")
    return current


def say(text: str) -> None:
    """Say on stderr, once in this process, that kernels are compiled for it alone."""
    global _said
    if not _said:
        _said = True
        line = f"quoreduce: {text}; process {os.getpid()} compiles its own\n"
        sys.stderr.write(line)  # at once: lines of workers do not mix


def fill(folder: Path) -> None:
    """Import all kernels, compile those that the folder does not have as its manifest says, and write a new
    manifest.
    """
    global current
    current = writer = Writer(folder)
    for name in modules():
        importlib.import_module(name)
    writer.finish()


def modules() -> list[str]:
    """Names of the modules of this package."""
    package = __name__.rpartition(".")[0]
    return [f"{package}.{found.name}" for found in pkgutil.iter_modules([str(Path(__file__).parent)])]


@contextlib.contextmanager
def _opened(folder: Path) -> Iterator[int]:
    """Open a folder; raise Unsafe if somebody else could have put files there."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()):
            raise Unsafe(f"it belongs to user {status.st_uid}")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unsafe("others may write it")
        yield fd
    finally:
        os.close(fd)


def _read(folder: int, name: str, size: int) -> bytes:
    """Read a regular file of at most ``size`` bytes; one byte more if it is longer."""
    fd = os.open(name, _FILE_FLAGS, dir_fd=folder)
    with open(fd, "rb") as file:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(f"{name} is not a file")
        return file.read(size + 1)


def _write(folder: int, name: str, raw: bytes) -> None:
    beside = f"{name}.{os.getpid()}.tmp"
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        with open(os.open(beside, flags, 0o644, dir_fd=folder), "wb") as file:
            file.write(raw)
            file.flush()
            os.fsync(file.fileno())
        os.rename(beside, name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(beside, dir_fd=folder)
        raise


def _read_manifest(folder: int) -> Mapping[str, CacheEntry]:
    """The manifest; empty if it is missing or damaged in any way."""
    try:
        raw = _read(folder, MANIFEST, MANIFEST_BYTES_MAX)
        if len(raw) > MANIFEST_BYTES_MAX:
            return {}
        document = json.loads(raw)
        if document["format"] != FORMAT:
            return {}
        found = {str(name): CacheEntry(int(size), str(digest)) for name, (size, digest) in document["kernels"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return {}
    sound = (0 <= entry.size <= KERNEL_BYTES_MAX and os.path.basename(name) == name for name, entry in found.items())
    return found if all(sound) else {}
