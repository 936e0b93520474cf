"""The files that a server was measured with at its last start, in its folder, and in which of them it differs now."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

from quoreduce.reading import read_regular
from quoreduce.trust.measure import canonical
from quoreduce.vm.agents.folder import StateFolder
from quoreduce.vm.measure import Files, differences

MEASURED: Final = "measured.json"  # in a server's folder: the files of its last start
MEASURED_BYTES_MAX: Final = 16 << 20
NAMED_MAX: Final = 10  # files, where two measurements differ


def last_files(path: Path) -> Files:
    """Read the files of a measurement; empty if it cannot be read."""
    try:
        found = json.loads(read_regular(path, MEASURED_BYTES_MAX))
        found = found.get("files", found)
        return {
            str(group): {str(name): str(digest) for name, digest in names.items()} for group, names in found.items()
        }
    except (OSError, ValueError, AttributeError):
        return {}


def note_measured(folder: StateFolder, files: Files, log: Callable[[str], None]) -> None:
    """Record the files of this start; log in which of them it differs from the last one."""
    before = last_files(folder.path / MEASURED)
    changed = differences(before, files) if before else []
    if changed:
        log(f"the environment is another one than at the last start: {listed(changed)}")
    folder.write(MEASURED, canonical({group: dict(names) for group, names in files.items()}))


def listed(changed: list[str]) -> str:
    """Name files, at most NAMED_MAX of them."""
    more = f" and {len(changed) - NAMED_MAX} more" if len(changed) > NAMED_MAX else ""
    return ", ".join(changed[:NAMED_MAX]) + more
