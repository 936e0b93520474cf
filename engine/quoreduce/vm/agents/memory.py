"""Freed memory keeps nothing: a server agent decrypts images and states of VMs, and must not keep copies of them.

The C library does not overwrite buffers when they are freed. Here it is configured to give each buffer of
:data:`LARGE_BYTES` or more a mapping of its own, which the kernel takes back when it is freed, and to overwrite smaller
ones. This includes the copies that libraries make. Buffers of up to a kilobyte are not overwritten: the last bytes of
an image or of a state may be in one.
"""

from __future__ import annotations

import ctypes
from typing import Final

from quoreduce.errors import VmError

LARGE_BYTES: Final = 64 << 10
_M_MMAP_THRESHOLD, _M_PERTURB = -3, -6  # of malloc.h
_M_MMAP_MAX, _MAPPINGS_MAX = -4, 1 << 15  # of 65,530 that a process may have
_PATTERN: Final = 0x5A


def forget_what_is_freed() -> None:
    """Have the C library keep nothing of what is freed from now on. Raises VmError if it cannot do so."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except AttributeError:
        raise VmError(
            "this C library keeps what is in memory that is freed: run servers on a system with glibc"
        ) from None
    for option, value in ((_M_MMAP_THRESHOLD, LARGE_BYTES), (_M_MMAP_MAX, _MAPPINGS_MAX), (_M_PERTURB, _PATTERN)):
        if not mallopt(option, value):
            raise VmError("the C library cannot be told to forget what is freed: run servers on a system with glibc")
