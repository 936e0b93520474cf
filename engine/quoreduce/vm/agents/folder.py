"""A state folder of an agent: for its owner only (mode 0700), one process at a time; records are durable and whole."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path
from typing import Final

from quoreduce import machine
from quoreduce.errors import InputError, OutputError, VmError
from quoreduce.files import is_unfinished, remove_unfinished, sync_path, write_whole
from quoreduce.reading import read_regular

RECORD_BYTES_MAX: Final = 16 << 20
_PAUSE_S: Final = 0.02
LOCK: Final = "lock"


def user_folder(name: str | None = None) -> Path:
    """The user agent's folder: ``name``, else QUOREDUCE_VM, else ``~/.local/state/quoreduce/vm``."""
    given = name or os.environ.get("QUOREDUCE_VM")
    return machine.expanded(given) if given else machine.state_folder() / "vm"


class Records:
    """The records in a folder, read without its lock: each is as it was written last.

    Args:
        path: may be missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        """Return what was written under this name, or None. Raises InputError if it cannot be read."""
        try:
            return read_regular(self.path / name, RECORD_BYTES_MAX)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            why = f"{error.strerror}; it is no record of ours, or not readable"
            raise InputError(f"cannot read {self.path / name}: {why}") from error

    def names(self, folder: str) -> list[str]:
        """The names (``folder/...``) of the records there, sorted; without unfinished ones."""
        return [
            f"{folder}/{path.name}" for path in sorted((self.path / folder).glob("*")) if not is_unfinished(path.name)
        ]


class StateFolder(Records):
    """A folder whose lock this process holds until :meth:`close` or its end.

    Args:
        path: made if it is missing.
        wait_s: for another process to release it.

    Raises:
        OutputError: it cannot be made or written.
        VmError: another process holds it.
    """

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        super().__init__(path)
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            self._lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise OutputError(f"cannot use the folder {path}: {error.strerror}; choose another one") from error
        limit = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() >= limit:
                os.close(self._lock)
                raise VmError(
                    f"the folder {path} is in use by another process: wait until it ends, or choose another folder"
                )
            time.sleep(_PAUSE_S)
        for folder in (path, *filter(Path.is_dir, path.iterdir())):
            with contextlib.suppress(OSError):
                remove_unfinished(folder)

    def __enter__(self) -> StateFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the folder; may be called again."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def write(self, name: str, data: bytes) -> None:
        """Write a record (mode 0600): when this returns it is on disk. Raises OutputError, and the old record stays."""
        path = self.path / name
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, data, mode=0o600)
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror}; make space, or let it be written") from error

    def remove(self, name: str) -> None:
        """Remove a record, if it exists. Raises OutputError."""
        try:
            (self.path / name).unlink(missing_ok=True)
            sync_path((self.path / name).parent)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot remove {self.path / name}: {error.strerror}") from error

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True
