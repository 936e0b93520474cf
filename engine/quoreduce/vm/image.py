"""The image builder: Debian's cloud kernel, a static busybox and :file:`guest.sh`, from which a guest boots in seconds.

The same kernel, busybox and key make the same bytes. Effects are here and in :mod:`quoreduce.vm.kernel`.
"""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_der_private_key,
    load_pem_private_key,
)

from quoreduce.errors import InputError, OutputError, UsageError, VmError
from quoreduce.files import write_whole
from quoreduce.vm import cpio
from quoreduce.vm.bundle import Bundle
from quoreduce.vm.kernel import cache_folder, given, packaged

CMDLINE: Final = " ".join((
    "console=ttyS0",
    "loglevel=1",  # the console is the tests': errors of the kernel would stand between answers
    "panic=-1",  # a guest that broke ends at once
    "tsc=reliable no_timer_check cryptomgr.notests",  # these tests are slow under an emulator
    "rootfstype=ramfs ima_policy=tcb",  # measured; IMA leaves out tmpfs, which the root would be
))  # fmt: skip
APPLETS: Final = ("sh", "mount", "insmod", "mkfifo", "dd", "cat", "rm", "blockdev", "head", "stty")
BUSYBOX_BYTES_MAX: Final = 16 << 20
KEY_BYTES_MAX: Final = 4000  # a page holds it, wherever a process has it: an RSA key of 4,096 bits has some 2,350
_ELF64: Final = b"\x7fELF\x02\x01"
_PT_INTERP: Final = 3


@dataclass(frozen=True)
class Built:
    """An image that was written.

    Args:
        path: the file.
        digest: SHA-256 of its bytes.
        kernel_version: as ``uname -r`` prints it in the guest.
        bytes: its size.
    """

    path: Path
    digest: bytes
    kernel_version: str
    bytes: int


def build(
    out: Path,
    *,
    kernel: Path | None = None,
    modules: Path | None = None,
    plant: bytes | None = None,
    cache: Path | None = None,
) -> Built:
    """Write an image to ``out``, whole or not at all; an existing file is replaced.

    Args:
        out: the file to write.
        kernel: a bzImage in place of Debian's cloud kernel.
        modules: the folder of its modules (``/lib/modules/VERSION`` if it is None).
        plant: an RSA private key, PEM or DER, that a process of the guest keeps in its memory.
        cache: where Debian's kernel is kept (:func:`~quoreduce.vm.kernel.cache_folder` if it is None).

    Raises:
        InputError: a given file is malformed.
        OutputError: ``out`` cannot be written.
        VmError: the kernel or busybox is missing; says what to install.
    """
    if modules is not None and kernel is None:
        raise UsageError("--modules goes with --kernel")
    key = None if plant is None else pkcs1(plant)
    busybox = find_busybox()
    found = packaged(cache or cache_folder()) if kernel is None else given(kernel, modules)
    bundle = Bundle(found.image, initramfs(busybox, found.modules, key), CMDLINE)
    data = bundle.encode()
    _write(out, data)
    return Built(out, bundle.digest, found.version, len(data))


def pkcs1(plant: bytes) -> bytes:
    """Convert an RSA private key from PEM or DER of any format to the DER of PKCS #1, for which key finders look."""
    try:
        load = load_pem_private_key if b"-----BEGIN" in plant else load_der_private_key
        key = load(plant, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError("the key to plant is no private key in PEM or DER without a password") from error
    if not isinstance(key, RSAPrivateKey):
        raise InputError("the key to plant must be an RSA private key: that is what the attack looks for")
    der = key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    if len(der) > KEY_BYTES_MAX:
        raise InputError(
            f"the key to plant has {len(der):,} bytes as DER; at most {KEY_BYTES_MAX:,}: take 2,048 to 4,096 bits"
        )
    return der


def initramfs(busybox: bytes, modules: Sequence[tuple[str, bytes]], key: bytes | None) -> bytes:
    """Return the archive that the guest runs from: ``guest.sh``, busybox, the drivers in loading order, the key if
    any.
    """
    script = Path(__file__).with_name("guest.sh").read_bytes()
    entries = [cpio.folder(name) for name in ("bin", "dev", "modules", "proc", "run", "sys")]
    entries.append(cpio.character_device("dev/console", 5, 1))
    entries.append(cpio.file("bin/busybox", busybox, 0o755))
    entries += [cpio.link(f"bin/{name}", "busybox") for name in APPLETS]
    entries.append(cpio.file("init", script, 0o755))
    entries += [cpio.file(f"modules/{number:02}-{name}.ko", data) for number, (name, data) in enumerate(modules)]
    if key is not None:
        entries.append(cpio.file("key.der", key, 0o600))
    return cpio.archive(entries)


def find_busybox() -> bytes:
    """Read the static busybox of this machine. Raises VmError, which says what to install."""
    path = shutil.which("busybox", path=os.environ.get("PATH", os.defpath) + ":/bin:/usr/bin")
    if path is None:
        raise VmError("busybox is not installed, and is the guest's only program: sudo apt-get install busybox-static")
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise VmError(f"cannot read {path}, the guest's only program: {error.strerror}") from error
    if not is_static(data):
        raise VmError(f"{path} needs libraries that the guest does not have: sudo apt-get install busybox-static")
    if len(data) > BUSYBOX_BYTES_MAX:
        raise VmError(f"{path} has more than {BUSYBOX_BYTES_MAX:,} bytes: sudo apt-get install busybox-static")
    return data


def is_static(program: bytes) -> bool:
    """Tell whether a program is a 64-bit ELF file that asks for no interpreter (*System V ABI*, program header)."""
    if len(program) < 64 or not program.startswith(_ELF64):
        return False
    (start,) = struct.unpack_from("<Q", program, 32)
    size, count = struct.unpack_from("<HH", program, 54)
    kinds = [program[at : at + 4] for at in range(start, start + size * count, size or 1)]
    return all(len(kind) == 4 and struct.unpack("<I", kind)[0] != _PT_INTERP for kind in kinds)


def _write(out: Path, data: bytes) -> None:
    """Write ``out`` so that it is there whole or not at all; only its owner may read it, since a key may be in it."""
    try:
        write_whole(out, data, mode=0o600)
    except OSError as error:
        raise OutputError(f"cannot write {out}: {error.strerror}") from error
