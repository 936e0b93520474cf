"""Data whose end is the end of what may be read."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
from collections.abc import Iterator

import numpy as np

PAGE = mmap.PAGESIZE


@contextlib.contextmanager
def before_guard_page(raw: bytes) -> Iterator[np.ndarray]:
    """The bytes, u8[n], in the last ones before a page that nobody may read."""
    size = -(-max(1, len(raw)) // PAGE) * PAGE
    mapping = mmap.mmap(-1, size + PAGE)
    array = np.frombuffer(mapping, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    guard = ctypes.c_void_p(array.ctypes.data + size)
    assert libc.mprotect(guard, ctypes.c_size_t(PAGE), 0) == 0
    mapping[size - len(raw) : size] = raw
    yield array[size - len(raw) : size]
    assert libc.mprotect(guard, ctypes.c_size_t(PAGE), mmap.PROT_READ | mmap.PROT_WRITE) == 0
