"""``quoreduce doctor --deep``: installed files against the digests that pip noted, and compiled kernels against their
manifest.

All replicas of a machine run the same files. A file that rotted on disk is a fault that they share, and a vote does not
see it.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from quoreduce.errors import HostError
from quoreduce.protocol.compile import damaged_kernels
from quoreduce.protocol.port import kernel_folder

ROOT = "quoreduce"
CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class CoreDifference:
    """A file that is not what it was when it was installed or compiled: ``why`` is ``changed``, ``missing`` or the
    error.
    """

    package: str
    path: str
    why: str

    def __str__(self) -> str:
        cure = "remove it" if self.package == "kernels" else f"pip install --force-reinstall --no-deps {self.package}"
        return f"differs ({self.why}): {self.path}; {cure}"


@dataclass(slots=True)
class CoreComparison:
    """The result of a comparison. ``unrecorded``: packages without recorded digests, such as editable installations."""

    files: int = 0
    packages: int = 0
    unrecorded: list[str] = field(default_factory=list)
    differences: list[CoreDifference] = field(default_factory=list)


def compare() -> CoreComparison:
    """Compare the files of quoreduce and of all that it depends on, and the compiled kernels."""
    found = CoreComparison()
    for one in distributions(ROOT):
        recorded = _recorded(one)
        found.packages += 1
        if not any(path.suffix in (".py", ".so") for path in recorded):
            found.unrecorded.append(one.name)
        for path, digest in recorded.items():
            found.files += 1
            if (why := _why(path, digest)) is not None:
                found.differences.append(CoreDifference(one.name, str(path), why))
    try:
        damaged = damaged_kernels()
    except HostError as error:
        found.differences.append(CoreDifference("kernels", str(kernel_folder()), str(error)))
    else:
        found.differences += [
            CoreDifference("kernels", str(kernel_folder() / name), "changed") for name in damaged or ()
        ]
    return found


def distributions(root: str) -> Iterator[metadata.Distribution]:
    """Yield a distribution and all that it requires without extras, each once; those that are not installed are left
    out.
    """
    todo, seen = [root], set[str]()
    while todo:
        name = todo.pop(0)
        key = re.sub(r"[-_.]+", "-", name).lower()
        if key in seen:
            continue
        seen.add(key)
        try:
            one = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue
        yield one
        for requirement in one.requires or ():
            if "extra ==" not in requirement and (match := _NAME.match(requirement)) is not None:
                todo.append(match[0])


def _recorded(one: metadata.Distribution) -> dict[Path, tuple[str, str]]:
    """Return what pip noted: file -> (name of a hash, digest), for those that have one.

    ``RECORD`` is read here, for ``Distribution.files`` leaves out files that are missing, from Python 3.12 on, and as
    soon as anything has imported the package ``importlib_metadata``.
    """
    rows = csv.reader((one.read_text("RECORD") or "").splitlines())
    found = [(row[0], *row[1].partition("=")[::2]) for row in rows if len(row) > 1 and row[1]]
    return {Path(str(one.locate_file(name))): (kind, digest) for name, kind, digest in found}


def _why(path: Path, noted: tuple[str, str]) -> str | None:
    """Why a file is not what was installed; None if it is. ``noted``: the name of a hash, and the digest."""
    kind, digest = noted
    try:
        state = hashlib.new(kind)
        with open(path, "rb") as opened:
            while chunk := opened.read(CHUNK_BYTES):
                state.update(chunk)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return str(error.strerror)
    except ValueError:
        return None  # a digest of a kind that this Python does not know
    said = base64.urlsafe_b64encode(state.digest()).rstrip(b"=").decode()
    return None if said == digest.rstrip("=") else "changed"
