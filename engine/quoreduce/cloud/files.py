"""Files that a user names: read whole, and bounded."""

from __future__ import annotations

from pathlib import Path

from quoreduce.errors import InputError


def read_file(path: Path, most: int) -> bytes:
    """Return a file's bytes; InputError if it cannot be read, or has more than ``most``."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > most:
        raise InputError(f"{path} has more than {most:,} bytes")
    return data
