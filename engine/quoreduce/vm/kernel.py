"""Debian's cloud kernel, and those of its drivers that a guest needs.

It comes from the package on which linux-image-cloud-amd64 depends, through apt, which checks its signature; the needed
files are kept in a folder of the cache. Or the caller gives a kernel and the folder of its modules.
"""

from __future__ import annotations

import lzma
import os
import re
import struct
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from quoreduce import machine
from quoreduce.errors import InputError, VmError
from quoreduce.reading import read_file

PACKAGE: Final = "linux-image-cloud-amd64"
DRIVERS: Final = ("virtio_pci", "virtio_blk", "tpm_crb")
KERNEL_BYTES_MAX: Final = 128 << 20
MODULE_BYTES_MAX: Final = 16 << 20
APT_TIMEOUT_S: Final = 600.0
_APT_OPTIONS: Final = (
    "-q",
    "-o",
    "Acquire::Retries=2",
    "-o",
    "Acquire::http::Timeout=30",
    "-o",
    "Acquire::https::Timeout=30",
)
_KEPT: Final = re.compile(
    r"boot/vmlinuz-[^/]+|(usr/)?lib/modules/[^/]+/(modules\.builtin|kernel/drivers/(virtio|block|char/tpm)/[^/]+)"
)
_DEPENDS: Final = re.compile(rb"\bdepends=([\w,-]*)\0")
_OTHERWISE: Final = "or give a kernel with --kernel FILE"


@dataclass(frozen=True)
class Kernel:
    """A kernel to boot.

    Args:
        version: as ``uname -r`` prints it.
        image: the bzImage.
        modules: name and content (ELF) of the drivers to load, in this order.
    """

    version: str
    image: bytes
    modules: tuple[tuple[str, bytes], ...]


def cache_folder() -> Path:
    """Where kernels are kept: ``$XDG_CACHE_HOME/quoreduce/vm``, else ``~/.cache/quoreduce/vm``."""
    return machine.cache_folder() / "vm"


def given(image: Path, modules: Path | None = None) -> Kernel:
    """Read a bzImage, and its drivers from ``modules``: the folder ``/lib/modules/VERSION`` of this kernel if it is
    None.

    Raises:
        InputError: a file cannot be read, is no bzImage, or a driver is neither there nor built in.
    """
    data = read_file(image, KERNEL_BYTES_MAX)
    version = kernel_version(data, image)
    folder = modules or Path("/lib/modules", version)
    if not (folder / "modules.builtin").is_file():
        raise InputError(
            f"{folder} is no folder of the modules of {version} (it has no modules.builtin): give it with --modules"
        )
    return Kernel(version, data, tuple(load_order(folder, DRIVERS)))


def packaged(cache: Path) -> Kernel:
    """Return Debian's cloud kernel as apt knows it now; it is downloaded if ``cache`` does not have it yet (some 30
    MB).

    As root, the package lists are updated if they are too old.

    Raises:
        VmError: apt is missing or does not know the package, or the download failed; says what to do.
    """
    try:
        folder = _unpacked(cache)
    except VmError:
        if os.geteuid() != 0:
            raise
        _apt("apt-get", *_APT_OPTIONS, "update")
        folder = _unpacked(cache)
    return given(folder / "vmlinuz", folder)


def kernel_version(data: bytes, name: object) -> str:
    """Return the version that a bzImage states (*The Linux/x86 Boot Protocol*, kernel_version). Raises InputError if
    malformed.
    """
    if len(data) < 0x210 or data[0x202:0x206] != b"HdrS":
        raise InputError(f"{name} is not a Linux kernel (a bzImage, as in /boot/vmlinuz-*)")
    start = struct.unpack_from("<H", data, 0x20E)[0] + 0x200
    version: bytes = data[start : start + 128].split(b"\0")[0].split(b" ")[0]
    if not re.fullmatch(rb"[0-9][\w.+~-]*", version):
        raise InputError(f"{name} is a Linux kernel that does not state its version")
    return version.decode("ascii")


def load_order(folder: Path, drivers: Sequence[str]) -> Iterator[tuple[str, bytes]]:
    """Yield the modules to load for ``drivers``, each after its dependencies; built-in ones are left out."""
    lines = read_file(folder / "modules.builtin", MODULE_BYTES_MAX).decode().split()
    builtin = {_name(PurePosixPath(line).name) for line in lines}
    files = {_name(path.name): path for path in sorted(folder.rglob("*.ko*"))}
    done = set(builtin)

    def load(name: str) -> Iterator[tuple[str, bytes]]:
        if name in done:
            return
        done.add(name)
        if name not in files:
            raise InputError(f"{folder} has no driver {name}, and the kernel has it not built in")
        data = _module(files[name])
        for needed in _needed(data):
            yield from load(needed)
        yield name, data

    for driver in drivers:
        yield from load(driver)


def _name(file: str) -> str:
    return file.split(".")[0].replace("-", "_")


def _module(path: Path) -> bytes:
    data = read_file(path, MODULE_BYTES_MAX)
    try:
        plain = lzma.decompress(data) if path.suffix == ".xz" else data
    except lzma.LZMAError as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not plain.startswith(b"\x7fELF"):
        raise InputError(f"{path} is not a kernel module (.ko or .ko.xz)")
    return plain


def _needed(module: bytes) -> list[str]:
    found = _DEPENDS.search(module)
    return [name.replace("-", "_") for name in found[1].decode().split(",") if name] if found else []


def _unpacked(cache: Path) -> Path:
    """Return the folder in ``cache`` that holds the kernel and drivers of the package; fill it if it is not there."""
    package = _package()
    # 'ADDRESS' FILE SIZE HASH
    line = _apt("apt-get", *_APT_OPTIONS, "download", "--print-uris", package).split()
    if len(line) < 2 or not line[1].endswith(".deb") or "/" in line[1]:
        raise VmError(f"apt does not say where {package} is: run 'sudo apt-get update', {_OTHERWISE}")
    folder = cache / line[1].removesuffix(".deb")
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=cache) as new:
            _apt("apt-get", *_APT_OPTIONS, "download", package, cwd=new)
            _unpack(next(Path(new).glob("*.deb")), Path(new, "kernel"))
            _settle(Path(new, "kernel"), folder)
    except OSError as error:
        raise VmError(
            f"cannot keep the kernel in {cache}: {error.strerror}; set XDG_CACHE_HOME to another folder"
        ) from error
    return folder


def _settle(new: Path, folder: Path) -> None:
    """Rename; another process may have been faster, with the same content."""
    try:
        new.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def _package() -> str:
    known = _apt("apt-cache", "depends", PACKAGE)
    found = re.search(r"^ *Depends: (linux-image-\S+)$", known, re.MULTILINE)
    if not found:
        raise VmError(f"apt knows no {PACKAGE}: run 'sudo apt-get update' on Debian, {_OTHERWISE}")
    return found[1]


def _unpack(package: Path, folder: Path) -> None:
    """Write what is kept of a .deb into ``folder``: vmlinuz, modules.builtin and the modules, without their folders."""
    folder.mkdir()
    try:
        process = subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", package.name],
            cwd=package.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    except FileNotFoundError as error:
        raise VmError(f"dpkg-deb is not installed, and unpacks Debian's kernel: install dpkg, {_OTHERWISE}") from error
    with process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as files:
                for file in files:
                    if file.isfile() and _KEPT.fullmatch(file.name.removeprefix("./")):
                        _keep(files, file, folder)
        except tarfile.TarError as error:
            raise VmError(f"{package.name} cannot be unpacked: {error}") from error
        finally:
            process.stdout.close()
    if process.returncode != 0 or not (folder / "vmlinuz").is_file():
        raise VmError(f"{package.name} cannot be unpacked, or holds no kernel: give one with --kernel FILE")


def _keep(files: tarfile.TarFile, file: tarfile.TarInfo, folder: Path) -> None:
    name = PurePosixPath(file.name).name
    content = files.extractfile(file)
    assert content is not None
    (folder / ("vmlinuz" if name.startswith("vmlinuz-") else name)).write_bytes(content.read(KERNEL_BYTES_MAX))


def _apt(*line: str, cwd: str | None = None) -> str:
    """Run one of apt's programs and return what it prints. Raises VmError, which says what to do."""
    try:
        done = subprocess.run(
            line,
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=APT_TIMEOUT_S,
        )
    except FileNotFoundError as error:
        raise VmError(f"{line[0]} is not installed, and gets Debian's kernel: install apt, {_OTHERWISE}") from error
    except subprocess.TimeoutExpired as error:
        raise VmError(
            f"{line[0]} has not ended within {APT_TIMEOUT_S:.0f} s: is there a network? Try again, {_OTHERWISE}"
        ) from error
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise VmError(
            f"apt cannot get {PACKAGE} ({said[-1] if said else 'no reason given'}): run 'sudo apt-get update',"
            f" {_OTHERWISE}"
        )
    return done.stdout.decode(errors="replace")
