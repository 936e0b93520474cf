"""The image of a guest as bytes: kernel, initrd and command line, which are all that it boots from.

Layout, integers big-endian; every image has exactly one encoding, so that its SHA-256 names it::

    "quoreduce image 1\\n"  u32 length of the command line, u32 of the kernel, u32 of the initrd  command line, kernel,
    initrd

Pure: no I/O, no clock, no randomness.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from quoreduce.errors import InputError

MAGIC: Final = b"quoreduce image 1\n"
_LENGTHS: Final = struct.Struct(">III")
HEADER_BYTES: Final = len(MAGIC) + _LENGTHS.size
IMAGE_BYTES_MAX: Final = 256 << 20
CMDLINE_BYTES_MAX: Final = 1000  # QEMU reads it from a file, in lines of 1023 characters


@dataclass(frozen=True)
class Bundle:
    """What a guest boots from.

    Args:
        kernel: a bzImage or an ELF file that QEMU's ``-kernel`` takes; not empty.
        initrd: a cpio archive, compressed or not; not empty.
        cmdline: printable ASCII without quotation marks, at most 1,000 characters.

    Raises:
        InputError: something of it is empty or too long, or the command line has other characters.
    """

    kernel: bytes
    initrd: bytes
    cmdline: str

    def __post_init__(self) -> None:
        for name, part in (("kernel", self.kernel), ("initrd", self.initrd)):
            if not part:
                raise InputError(f"the image's {name} has 0 bytes")
        if not (self.cmdline.isascii() and self.cmdline.isprintable()) or '"' in self.cmdline:
            raise InputError("the image's command line must be printable ASCII without quotation marks")
        if len(self.cmdline) > CMDLINE_BYTES_MAX:
            raise InputError(
                f"the image's command line has {len(self.cmdline):,} characters; at most {CMDLINE_BYTES_MAX:,} boot"
            )
        _check_size(HEADER_BYTES + len(self.cmdline) + len(self.kernel) + len(self.initrd))

    def encode(self) -> bytes:
        """Return the image's bytes."""
        lengths = _LENGTHS.pack(len(self.cmdline), len(self.kernel), len(self.initrd))
        return b"".join((MAGIC, lengths, self.cmdline.encode("ascii"), self.kernel, self.initrd))

    @classmethod
    def decode(cls, data: bytes) -> Bundle:
        """Read an image. Raises InputError if malformed."""
        cmdline_bytes, kernel_bytes, initrd_bytes = _lengths(data)
        kernel_at = HEADER_BYTES + cmdline_bytes
        initrd_at = kernel_at + kernel_bytes
        end = initrd_at + initrd_bytes
        if len(data) < end:
            raise InputError(f"the image is cut: it has {len(data):,} of {end:,} bytes")
        if len(data) > end:
            raise InputError(f"the image has {len(data) - end:,} bytes after its end")
        try:
            cmdline = data[HEADER_BYTES:kernel_at].decode("ascii")
        except UnicodeDecodeError as error:
            raise InputError("the image's command line must be printable ASCII") from error
        return cls(data[kernel_at:initrd_at], data[initrd_at:end], cmdline)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the image's bytes: 32 bytes."""
        return hashlib.sha256(self.encode()).digest()


def _lengths(data: bytes) -> tuple[int, int, int]:
    if not data:
        raise InputError("the image has 0 bytes")
    if not data.startswith(MAGIC):
        cut = MAGIC.startswith(data)
        why = (
            "the image is cut within its header"
            if cut
            else 'this is no image: it does not begin with "quoreduce image 1"'
        )
        raise InputError(f"{why}; make one with `quoreduce vm image`")
    if len(data) < HEADER_BYTES:
        raise InputError("the image is cut within its header; make one with `quoreduce vm image`")
    lengths: tuple[int, int, int] = _LENGTHS.unpack_from(data, len(MAGIC))
    _check_size(HEADER_BYTES + sum(lengths))
    return lengths


def _check_size(size: int) -> None:
    if size > IMAGE_BYTES_MAX:
        raise InputError(f"the image would have {size:,} bytes; at most {IMAGE_BYTES_MAX:,} are allowed")
