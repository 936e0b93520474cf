"""What is measured of a server (the TVE document, PCR 17) and of each operation (the TCOM documents, µPCR 0).

Both are JSON in canonical form (keys sorted, no spaces), of SHA-256 of files. The TVE document has one digest for each
group of files: the interpreter with its shared libraries, the standard library, our package, each dependency (what
boot.py lists; nothing else can be loaded from then on), QEMU with its firmware and swtpm (all that they are made of);
the broker's rules as they are (who may do what to a guest); and the digest of each TCOM document. A TCOM document lists
the modules that an operation runs: its own, what the modules of all operations share, trust/, and the package's errors.

:func:`differences` names the files in which two measurements of a machine differ.

The documents do not say that memory holds what the files held. They do not cover root on the host.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeAlias

from quoreduce.errors import VmError
from quoreduce.trust.measure import canonical
from quoreduce.vm import programs
from quoreduce.vm.boot import OURS, LoadManifest

FORMAT: Final = "quoreduce tve 2"
TCOM_FORMAT: Final = "quoreduce tcom 2"
INTERPRETER: Final = "interpreter"
PROGRAMS: Final = (programs.QEMU, programs.SWTPM)
OPTIONAL: Final = ("setpriv",)  # starts a server's own TPM, where it is installed
MODULES: Final = {  # of each operation, in vm/
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
    "version.py",
)  # fmt: skip

Files: TypeAlias = Mapping[str, Mapping[str, str]]  # group → name of a file → SHA-256, hex


@dataclass(frozen=True, slots=True)
class Environment:
    """A server's environment.

    Attributes:
        document: the TVE document.
        codes: the TCOM documents that it lists, by operation.
        files: of which it has the digests.
    """

    document: bytes
    codes: Mapping[str, bytes]
    files: Files

    @property
    def digest(self) -> str:
        """What policies name, hex."""
        return sha256(self.document).hexdigest()


def environment(rules: Any, files: Files) -> Environment:
    """Return the environment of a server with these rules of the broker (as JSON has them) and these files.

    Raises:
        VmError: files of the package are missing.
    """
    codes = {operation: tcom_document(operation, files[OURS]) for operation in MODULES}
    document = {
        "format": FORMAT,
        "machine": platform.machine(),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "files": {group: sha256(canonical(dict(names))).hexdigest() for group, names in files.items()},
        "rules": rules,
        "tcoms": {operation: sha256(code).hexdigest() for operation, code in codes.items()},
    }
    return Environment(canonical(document), codes, files)


def measured_files(manifest: LoadManifest, run: Sequence[str] = PROGRAMS) -> Files:
    """All files of a server, by group.

    Args:
        manifest: what may be loaded, and what this process has loaded.
        run: the programs that it starts.

    Raises:
        VmError: a program is missing, or cannot be measured.
    """
    names: dict[str, str] = {}
    for path, digest in manifest.libraries.items():  # of two of one name both count
        name = os.path.basename(path)
        names[name] = names.get(name, "") + digest
    found: dict[str, Mapping[str, str]] = {**manifest.groups, INTERPRETER: names}
    for name in (*run, *filter(programs.is_there, OPTIONAL)):
        found[name] = programs.load(name).files
    return found


def interpreter(manifest: LoadManifest) -> list[str]:
    """The paths of the interpreter and of all libraries that it and the extensions listed need. Raises VmError."""
    python = os.path.realpath(sys.executable)
    extensions = sorted(path for path in manifest.digests if not path.endswith(".py"))
    return [python, *programs.libraries(python, extensions)]


def tcom_document(operation: str, ours: Mapping[str, str]) -> bytes:
    """The TCOM document of an operation of :data:`MODULES`, from our package's files. Raises VmError without one."""
    names = [*(f"{OURS}/vm/{one}" for one in (MODULES[operation], *SHARED)), *(f"{OURS}/{one}" for one in PACKAGE)]
    missing = [name for name in names if name not in ours]
    if missing:
        raise VmError(f"cannot measure {operation}: {missing[0]} is missing; is quoreduce installed as a whole?")
    names += [name for name in ours if name.startswith(f"{OURS}/trust/")]
    return canonical({"format": TCOM_FORMAT, "operation": operation, "files": {name: ours[name] for name in names}})


def differences(before: Files, after: Files) -> list[str]:
    """The files in which two measurements differ, ``GROUP: NAME (changed)``; also ``new`` and ``gone``."""
    found = []
    for group in sorted({*before, *after}):
        old, new = before.get(group, {}), after.get(group, {})
        for name in sorted({*old, *new}):
            if old.get(name) != new.get(name):
                what = "new" if name not in old else "gone" if name not in new else "changed"
                found.append(f"{group}: {name} ({what})")
    return found
