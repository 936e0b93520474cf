"""The programs that a server runs, QEMU and swtpm, as all the files that they consist of.

These files are measured, and a guest's process sees no others of this machine (:mod:`quoreduce.vm.confine`).

A program is an ELF file: itself, its shared libraries as the dynamic linker finds them, and for QEMU the firmware of
our guests and the module of its emulation. A script is refused: what it starts is unknown. Files are digested
once in a process, and looked at again before each start: one that was replaced since (an upgrade, say) is digested
anew, and refused if it differs.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Final

from quoreduce.errors import VmError
from quoreduce.vm.boot import ENVIRONMENT, stat_of
from quoreduce.vm.processes import program as find

QEMU: Final = "qemu-system-x86_64"
SWTPM: Final = "swtpm"
FIRMWARE: Final = (
    "bios-256k.bin",
    "kvmvapic.bin",
    "linuxboot_dma.bin",
)  # of a guest of machine.line; the first is needed
_FIRMWARE_FOLDERS: Final = (
    "../share/qemu",
    "../share/seabios",
    "../share/qemu-firmware",
    "../lib/ipxe/qemu",
)  # from the program's
_TCG: Final = "qemu/accel-tcg-x86_64.so"  # in a folder of libraries, where QEMU has modules
_LINKER_S: Final = 20.0
_PIECE_BYTES: Final = 1 << 20
_PT_INTERP: Final = 3


@dataclass(frozen=True)
class Program:
    """A program.

    Attributes:
        path: its real path.
        files: path → SHA-256, hex: all that it is made of. A path is where the program looks for the file.
    """

    path: str
    files: Mapping[str, str]
    _stats: dict[str, tuple[int, ...]] = field(default_factory=dict, compare=False)

    def check(self) -> None:
        """Raises VmError, with the name of a file, if one has changed since it was digested."""
        for path, digest in self.files.items():
            try:
                now = stat_of(path)
                if now != self._stats[path] and digest_of(path) != digest:
                    raise VmError(f"{path} is not what it was when it was measured: start this server again")
            except OSError as error:
                raise VmError(f"{path} cannot be read any more ({error.strerror}): start this server again") from error
            self._stats[path] = now


def is_there(name: str) -> bool:
    """Whether a program of this name is on PATH."""
    return shutil.which(name) is not None


def load(name: str) -> Program:
    """The program of this name as PATH has it, digested once. Raises VmError, which says what to install or what is
    wrong.
    """
    return _loaded(name, find(name))


@lru_cache(maxsize=8)
def _loaded(name: str, found: str) -> Program:
    path = os.path.realpath(found)
    files = [path, *libraries(path)]
    if name == QEMU:
        files += _modules(files)
        files += firmware(path)
    try:
        stats = {one: stat_of(one) for one in files}
        return Program(path, {one: digest_of(one) for one in files}, stats)
    except OSError as error:
        raise VmError(f"cannot measure {path}: {error.strerror} ({error.filename})") from error


def libraries(path: str, preloaded: Sequence[str] = ()) -> list[str]:
    """The shared libraries of a program and of extensions that it may load, as the dynamic linker finds them; and the
    linker itself.

    Raises:
        VmError: it is no ELF program, or one of its libraries is missing (an extension that lacks one cannot be
            loaded).
    """
    linker = _linker(path)
    if linker is None:
        return []
    found = {os.path.abspath(linker): None}
    named = [one for one in preloaded if ":" not in one and " " not in one]  # others cannot be named together
    lines = [
        [*(["--preload", ":".join(named)] if named else []), path],
        *([one] for one in preloaded if one not in named),
    ]
    for line in lines:
        for library in _linked([linker, "--list", *line], whole=not preloaded):
            found[library] = None
    return [one for one in found if one not in preloaded]


def _linked(line: Sequence[str], whole: bool) -> list[str]:
    """What the dynamic linker lists: ``NAME => PATH (ADDRESS)``, or ``PATH (ADDRESS)``."""
    try:
        done = subprocess.run(
            line, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, timeout=_LINKER_S, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise VmError(f"the dynamic linker does not list the libraries of {line[-1]}: {error}") from error
    found = []
    for each in done.stdout.decode(errors="surrogateescape").splitlines():
        name, _, path = each.strip().rpartition(" (")[0].rpartition("=> ")
        if whole and "not found" in each:
            raise VmError(f"{line[-1]}: its library {name.strip() or path} is missing: install it again")
        if path.startswith("/"):
            found.append(path)
    return found


def firmware(path: str) -> list[str]:
    """The firmware of our guests, where QEMU looks for it. Raises VmError if there is no BIOS."""
    folders = [os.path.normpath(os.path.join(os.path.dirname(path), one)) for one in _FIRMWARE_FOLDERS]
    found = []
    for name in FIRMWARE:
        places = [os.path.join(folder, name) for folder in folders]
        found += [place for place in places if os.path.isfile(place)][:1]
    if not found or os.path.basename(found[0]) != FIRMWARE[0]:
        raise VmError(
            f"{FIRMWARE[0]} is in none of {', '.join(folders)}: on Debian and Ubuntu: sudo apt-get install seabios"
        )
    return found


def _modules(files: Sequence[str]) -> list[str]:
    """The module with which QEMU emulates, where that is a file of its own."""
    for folder in {os.path.realpath(os.path.dirname(one)): None for one in files}:  # QEMU knows no /lib but /usr/lib
        module = os.path.join(folder, _TCG)
        if os.path.isfile(module):
            return [module]
    return []


def digest_of(path: str) -> str:
    """SHA-256, hex, of a file."""
    digest = sha256()
    with open(path, "rb", buffering=0) as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def _linker(path: str) -> str | None:
    """The dynamic linker that an ELF program asks for (*System V ABI*, PT_INTERP); None: none. Raises VmError for no
    ELF file.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise VmError(f"cannot read {path}: {error.strerror}") from error
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        raise VmError(
            f"{path} is no program for this machine (64-bit ELF) but perhaps a script, and what that starts cannot"
            " be told"
        )
    (start,) = struct.unpack_from("<Q", head, 32)
    size, count = struct.unpack_from("<HH", head, 54)
    for at in range(start, start + size * count, size or 1):
        if at + 56 <= len(head) and struct.unpack_from("<I", head, at)[0] == _PT_INTERP:
            offset, length = struct.unpack_from("<Q", head, at + 8)[0], struct.unpack_from("<Q", head, at + 32)[0]
            with Path(path).open("rb") as file:
                file.seek(offset)
                return file.read(length).rstrip(b"\0").decode()
    return None
