"""A newc cpio archive, from which the kernel unpacks its initramfs: the same entries make the same bytes.

Format: *Documentation/driver-api/early-userspace/buffer-format.rst* of Linux. Owners are root, times 0, inode numbers
count from 1, entries keep the order given.

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from stat import S_IFCHR, S_IFDIR, S_IFLNK, S_IFREG, S_ISDIR
from typing import Final

_MAGIC: Final = b"070701"
_TRAILER: Final = "TRAILER!!!"


@dataclass(frozen=True)
class CpioEntry:
    """One entry: ``path`` without a leading slash, ``mode`` with its type, ``data`` of a file or link, a device's
    numbers.
    """

    path: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def folder(path: str) -> CpioEntry:
    """A folder, 0755."""
    return CpioEntry(path, S_IFDIR | 0o755)


def file(path: str, data: bytes, mode: int = 0o644) -> CpioEntry:
    """A file."""
    return CpioEntry(path, S_IFREG | mode, data)


def link(path: str, target: str) -> CpioEntry:
    """A symbolic link."""
    return CpioEntry(path, S_IFLNK | 0o777, target.encode())


def character_device(path: str, major: int, minor: int) -> CpioEntry:
    """A character device, 0600."""
    return CpioEntry(path, S_IFCHR | 0o600, device=(major, minor))


def archive(entries: Sequence[CpioEntry]) -> bytes:
    """Return the archive of ``entries``; a folder must come before what is in it."""
    parts = [_record(number, entry) for number, entry in enumerate(entries, 1)]
    parts.append(_record(0, CpioEntry(_TRAILER, 0)))
    return b"".join(parts)


def _record(inode: int, entry: CpioEntry) -> bytes:
    name = entry.path.encode() + b"\0"
    links = 2 if S_ISDIR(entry.mode) else 1
    major, minor = entry.device
    # inode, mode, user, group, links, time, size, device of the file, device that it is, length of the name, checksum
    fields = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, major, minor, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % field for field in fields)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
