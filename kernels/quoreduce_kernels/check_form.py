"""What checks of form and order are made of: hash64, memcmp and where words end, written down a second time.

The kernels that count and sort have their own, in ``word_tables`` and ``pairs``. What is wrong there is found here only
because nothing is shared.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.check_intrinsics import separators64
from quoreduce_kernels.intrinsics import SALT_HIGH, SALT_LOW, bswap, byte_mask, cttz, ld8, ld32, ld64, mulfold
from quoreduce_kernels.options import cold_part, part

U = np.uint64

SHORT_BYTES_MAX = 15
PARTITIONS_MAX = 1 << 16
_GOLDEN = 0x9E3779B97F4A7C15


@part
def load_few(address, length):
    """(low, high) of up to 16 bytes, filled up with zeros. Reads nothing else."""
    low, high = U(0), U(0)
    if length >= U(8):
        low = ld64(address)
        if length > U(8):
            high = ld64(address + length - U(8)) >> (U(8) * (U(16) - length))
    elif length >= U(4):
        low = ld32(address) | (ld32(address + length - U(4)) << (U(8) * (length - U(4))))
    else:
        for i in range(length):
            low |= ld8(address + i) << (U(8) * i)
    return low, high


@part
def short_hash64(low, high, length):
    """hash64 of a word of up to 15 bytes from its (low, high), filled up with zeros."""
    return mulfold(low ^ U(SALT_LOW), (high | (length << U(56))) ^ U(SALT_HIGH))


@cold_part
def long_hash64(at, length):
    """hash64 of a word of 16 bytes or more. Reads nothing but the word."""
    h, end = length * U(_GOLDEN), at + length
    while end - at > U(16):
        h = mulfold(h ^ ld64(at), ld64(at + U(8)) ^ U(SALT_HIGH))
        at += U(16)
    return mulfold(h ^ ld64(end - U(16)), ld64(end - U(8)) ^ U(SALT_HIGH))


@cold_part
def hash64(at, length):
    """hash64 of a word of any length. Reads nothing but the word."""
    if length > U(SHORT_BYTES_MAX):
        return long_hash64(at, length)
    low, high = load_few(at, length)
    return short_hash64(low, high, length)


@cold_part
def word_end(at, end):
    """Address of the first separator in [at, end), or end. Reads nothing beyond."""
    while end - at >= U(64):
        mask = separators64(at)
        if mask:
            return at + cttz(mask)
        at += U(64)
    while at < end:
        c = ld8(at)
        if c == U(32) or (c - U(9) < U(5) and c != U(11)):
            return at
        at += U(1)
    return end


@cold_part
def precedes(a, a_bytes, b, b_bytes):
    """Whether a comes before b in the order of memcmp, a prefix first. Reads nothing but the two."""
    common = min(a_bytes, b_bytes)
    k = U(0)
    while common - k >= U(8):
        x, y = ld64(a + k), ld64(b + k)
        if x != y:
            return bswap(x) < bswap(y)
        k += U(8)
    while k < common:
        x, y = ld8(a + k), ld8(b + k)
        if x != y:
            return x < y
        k += U(1)
    return a_bytes < b_bytes


@cold_part
def find_byte(at, end, byte):
    """Address of the first such byte in [at, end), or end. Reads nothing beyond."""
    while end - at >= U(64):
        mask = byte_mask(at, byte)
        if mask:
            return at + cttz(mask)
        at += U(64)
    while at < end and ld8(at) != byte:
        at += U(1)
    return at


def vector(name: str, array: NDArray[Any], dtype: type, size: int | None = None) -> None:
    """ValueError unless an array is a contiguous vector of this dtype, and of this size."""
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1 or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous vector of {np.dtype(dtype).name}")
    if size is not None and array.size != size:
        raise ValueError(f"{name} must have {size} elements, not {array.size}")


def check_partition(partition: int, partitions: int) -> None:
    """ValueError unless there is such a partition."""
    if not 0 <= partition < partitions <= PARTITIONS_MAX:
        raise ValueError(f"there is no partition {partition} of {partitions}; there are at most {PARTITIONS_MAX}")
