"""What is measured of a server (the TVE document, PCR 17) and of each operation (the TCOM documents, µPCR 0).

Both are JSON in canonical form (keys sorted, no spaces), of hashes (BLAKE3) of files as they lie on this machine. A TCOM
document is over exactly the files that an operation runs: its own module, what the modules of all operations share, trust/, and
the package's errors. The TVE document lists the digest of each TCOM document, the broker's rules as they are (who may do what to
a guest), and QEMU.

What they do not say: that memory holds what the files held. Root on the host is outside of it.
"""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from quoreduce.errors import HostError, VmError
from quoreduce.trust.measure import canonical, hash_file, hash_files, interpreter, versions

FORMAT: Final = "quoreduce tve 1"
TCOM_FORMAT: Final = "quoreduce tcom 1"
QEMU: Final = "qemu-system-x86_64"
PACKAGES: Final = ("blake3", "cryptography", "msgspec", "qemu.qmp")
MODULES: Final = {  # of each operation, in cloud/
    "launch": "tcom/launch.py",
    "restore": "tcom/launch.py",  # a launch whose image is a backup
    "migrate_out": "tcom/migrate_out.py",
    "migrate_in": "tcom/migrate_in.py",
    "backup": "tcom/backup.py",
    "terminate": "tcom/terminate.py",
    "status": "tcom/status.py",
}
SHARED: Final = ("__init__.py", "evidence.py", "ports.py", "sealing.py", "tcom/__init__.py", "wire.py")
PACKAGE: Final = (  # of quoreduce itself: whatever is in it runs these
    "__init__.py", "errors.py", "files.py", "job.py", "machine.py", "ownership.py", "printable.py", "reading.py",
)  # fmt: skip
_OURS: Final = Path(__file__).parents[1]
_VERSION_TIMEOUT_S: Final = 20.0


@dataclass(frozen=True, slots=True)
class Environment:
    """A server's environment: the TVE document, and the TCOM documents that it lists, by operation."""

    document: bytes
    codes: Mapping[str, bytes]

    @property
    def digest(self) -> str:
        """What policies name, hex."""
        return sha256(self.document).hexdigest()


def environment(rules: Any, qemu: str | None = QEMU, folder: Path = _OURS) -> Environment:
    """Measure this machine as a server.

    Args:
        rules: the broker's, as JSON has them.
        qemu: the program; None: none is run on this server.
        folder: the package's, with ``cloud`` and ``trust`` in it.

    Raises:
        HostError: QEMU is missing or does not say its version. VmError: files of the package are missing.
    """
    codes = {operation: tcom_document(operation, folder) for operation in MODULES}
    document = {
        "format": FORMAT,
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "interpreter": interpreter(),
        "packages": versions(PACKAGES),
        "package": hash_files((folder / name for name in PACKAGE), folder),
        "sources": {name: hash_files((folder / name).rglob("*.py"), folder) for name in ("cloud", "trust")},
        "qemu": qemu_document(qemu) if qemu else None,
        "rules": rules,
        "tcoms": {operation: sha256(code).hexdigest() for operation, code in codes.items()},
    }
    return Environment(canonical(document), codes)


def tcom_document(operation: str, folder: Path = _OURS) -> bytes:
    """Measure what one operation runs, of :data:`MODULES`; VmError if a file is missing."""
    files = sorted({MODULES[operation], *SHARED})
    try:
        return canonical({
            "format": TCOM_FORMAT,
            "operation": operation,
            "cloud": {name: hash_file(folder / "cloud" / name) for name in files},
            "package": hash_files((folder / name for name in PACKAGE), folder),
            "trust": hash_files((folder / "trust").glob("*.py"), folder),
        })  # fmt: skip
    except OSError as error:
        raise VmError(f"cannot measure {operation}: {error}; is quoreduce installed as a whole?") from error


@lru_cache(maxsize=4)
def qemu_document(program: str = QEMU) -> dict[str, str]:
    """Return the version and the hash of QEMU, measured once per process; HostError if it is missing or does not answer."""
    path = shutil.which(program)
    if path is None:
        raise HostError(f"{program} is not installed; on Debian and Ubuntu: sudo apt-get install qemu-system-x86")
    said = _output([path, "--version"])
    found = re.search(r"version (\S+)", said)
    if found is None:
        raise HostError(f"{path} --version says no version: {said[:200]!r}")
    return {"version": found[1], "hash": hash_file(Path(path).resolve())}


def _output(line: Sequence[str]) -> str:
    try:
        done = subprocess.run(line, stdin=subprocess.DEVNULL, capture_output=True, timeout=_VERSION_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise HostError(f"{line[0]} does not run: {error}") from error
    return done.stdout.decode(errors="replace")
