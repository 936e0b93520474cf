"""Kernels that keep the 100-byte records, or the lines of a text, that begin with given bytes, in order.

Finding and copying are two steps, so that the caller can make room for exactly what is kept. Finding reads everything
once, at the rate of memory where little is kept: records by one comparison of 8 bytes each, without a branch; lines by
the bits of 64 bytes at a time, set where a line feed is followed by the first byte of the prefix.

Letters in shapes: n = records or lines, k = how many of them are kept.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.fingerprint import RECORD_BYTES, as_bytes, record_bytes
from quoreduce_kernels.intrinsics import (
    byte_mask,
    copy100,
    copy_memory,
    cttz,
    find_byte,
    last_block,
    ld8,
    ld64,
    popcount,
    prefetch,
    st8,
)
from quoreduce_kernels.options import kernel, part

U8Array = NDArray[np.uint8]
U32Array = NDArray[np.uint32]
U64Array = NDArray[np.uint64]
I64Array = NDArray[np.int64]

PREFIX_BYTES_MAX = 64
RECORDS_MAX = (1 << 32) - 1  # numbers of records are u32
LINE_FEED = 10
ROWS_FIRST = 1 << 10
_U = np.uint64
_BLOCK = np.uint64(64)
_FEED = np.uint64(LINE_FEED)
_SIZE = np.uint64(RECORD_BYTES)


@part
def _equal(at, prefix, length):
    """Whether the bytes at two addresses are equal."""
    i = _U(0)
    while i + _U(8) <= length:
        if ld64(at + i) != ld64(prefix + i):
            return False
        i += _U(8)
    while i < length:
        if ld8(at + i) != ld8(prefix + i):
            return False
        i += _U(1)
    return True


@kernel("i8(u8, i8, u8, u8, u8, u8, u4[::1])")
def _select_records(data, n, head, mask, prefix, length, picks):
    """Write the numbers of records whose first 8 bytes under ``mask`` are ``head``; of a longer prefix, compare the
    rest then.
    """
    found = 0
    for i in range(n):
        at = data + _SIZE * _U(i)
        prefetch(at + _BLOCK)  # leave no cache line out: the CPU's own prefetcher then runs further ahead, 20 % faster
        picks[found] = i
        found += (ld64(at) & mask) == head
    if length <= _U(8):
        return found
    kept = 0
    for j in range(found):
        i = picks[j]
        picks[kept] = i
        kept += _equal(data + _SIZE * _U(i), prefix, length)
    return kept


@kernel("void(u8, u4[::1], u8)")
def _copy_records(data, picks, target):
    for j in range(picks.size):
        copy100(target + _SIZE * _U(j), data + _SIZE * _U(picks[j]))


# u64[3] = (address to go on from, line feeds passed, rows filled); a row = (address of a line, bytes with its line
# feed).


@part
def _keep_line(state, start, end, last, prefix, length, rows):
    """Make a row of the line at ``start`` if it begins with the prefix, which holds no line feed."""
    if start + length <= end and _equal(start, prefix, length):
        k = state[2]
        rows[k, 0] = start
        rows[k, 1] = find_byte(start + length, end, last, _FEED) + _U(1) - start
        state[2] = k + _U(1)


@kernel("void(u8[::1], u8, u8, u8, u8, u8[:, ::1])")
def _select_lines(state, begin, end, prefix, length, rows):
    """Make rows of the lines that begin with the prefix from state[0] on, until there are no more or rows may not
    suffice.
    """
    at, last = state[0], last_block(begin, end)
    first = ld8(prefix)
    if at == begin:
        _keep_line(state, begin, end, last, prefix, length, rows)
    room = rows.shape[0] - 64
    while at + _U(65) <= end and np.int64(state[2]) <= room:
        feeds = byte_mask(at, _FEED)
        state[1] += popcount(feeds)
        hits = feeds & byte_mask(at + _U(1), first)
        while hits:
            _keep_line(state, at + cttz(hits) + _U(1), end, last, prefix, length, rows)
            hits &= hits - _U(1)
        at += _BLOCK
    if at + _U(65) > end and np.int64(state[2]) <= room:
        while at < end:
            at += _U(1)
            if ld8(at - _U(1)) == _FEED:
                state[1] += _U(1)
                _keep_line(state, at, end, last, prefix, length, rows)
    state[0] = at


@kernel("void(u8[:, ::1], i8[::1], u8)")
def _copy_lines(rows, offsets, target):
    done = _U(0)
    for k in range(rows.shape[0]):
        offsets[k] = np.int64(done)
        size = rows[k, 1]
        copy_memory(target + done, rows[k, 0], size - _U(1))
        st8(target + done + size - _U(1), _FEED)  # which the last line of a text may lack
        done += size
    offsets[rows.shape[0]] = np.int64(done)


def _check_prefix(prefix: bytes) -> None:
    if not 1 <= len(prefix) <= PREFIX_BYTES_MAX:
        raise ValueError(f"a prefix has 1 to {PREFIX_BYTES_MAX} bytes, not {len(prefix)}")


def select_records(data: object, prefix: bytes) -> U32Array:
    """Return the numbers of the records that begin with ``prefix``, u32[k], in order.

    Args:
        data: bytes-like or u8 array of n * 100 bytes, C-contiguous; may be read-only.
        prefix: 1 to 64 bytes.

    Raises:
        ValueError: no whole records, 2**32 - 1 of them or more, or a prefix of another length.
    """
    flat = record_bytes(data)
    _check_prefix(prefix)
    n = flat.size // RECORD_BYTES
    if n >= RECORDS_MAX:
        raise ValueError(f"{n} records are too many for one call; at most {RECORDS_MAX - 1}")
    picks = np.empty(n, np.uint32)  # of which only what is filled costs memory
    wanted = np.frombuffer(prefix, np.uint8)
    head = int.from_bytes(prefix[:8], "little")
    mask = (1 << 8 * min(len(prefix), 8)) - 1
    return picks[: _select_records(flat.ctypes.data, n, head, mask, wanted.ctypes.data, len(prefix), picks)]


def copy_records(data: object, picks: U32Array, target: U8Array) -> None:
    """Copy the records with the numbers ``picks``, u32[k], to ``target``, u8[k, 100] or u8[k * 100].

    Raises:
        ValueError: target has another size or is not contiguous; a number is not below that of the records.
    """
    flat = record_bytes(data)
    if target.dtype != np.uint8 or target.size != picks.size * RECORD_BYTES or not target.flags.c_contiguous:
        raise ValueError(f"target must hold {picks.size} records, not {target.dtype}{list(target.shape)}")
    if picks.size and int(picks.max()) >= flat.size // RECORD_BYTES:
        raise ValueError(f"there is no record {int(picks.max())}")
    _copy_records(flat.ctypes.data, picks, target.ctypes.data)


def select_lines(data: object, prefix: bytes) -> tuple[U64Array, int]:
    """Return the lines that begin with ``prefix``, in order, and the number n of all lines.

    Args:
        data: bytes-like or u8 array, C-contiguous; may be read-only. A line ends with a line feed, the last may lack
            it.
        prefix: 1 to 64 bytes without a line feed.

    Returns:
        u64[k, 2]: address of a line within ``data``, which must stay alive, and its bytes with a line feed; n.

    Raises:
        ValueError: another prefix.
    """
    flat = as_bytes(data, "data")
    _check_prefix(prefix)
    if LINE_FEED in prefix:
        raise ValueError("a line holds no line feed, so it cannot begin with one")
    rows = np.empty((ROWS_FIRST, 2), np.uint64)
    if not flat.size:
        return rows[:0], 0
    wanted = np.frombuffer(prefix, np.uint8)
    begin = flat.ctypes.data
    end = begin + flat.size
    state = np.array([begin, 0, 0], np.uint64)
    _select_lines(state, begin, end, wanted.ctypes.data, len(prefix), rows)
    while int(state[0]) < end:
        rows = np.concatenate((rows, np.empty_like(rows)))
        _select_lines(state, begin, end, wanted.ctypes.data, len(prefix), rows)
    return rows[: int(state[2])], int(state[1]) + bool(flat[-1] != LINE_FEED)


def copy_lines(rows: U64Array, offsets: I64Array, target: U8Array) -> None:
    """Copy the lines of :func:`select_lines`, each with a line feed, to a column: offsets i64[k + 1], target u8[bytes].

    Raises:
        ValueError: offsets or target are of another size, or not contiguous.
    """
    nbytes = int(rows[:, 1].sum())
    if offsets.shape != (rows.shape[0] + 1,) or target.shape != (nbytes,) or not target.flags.c_contiguous:
        raise ValueError(
            f"{rows.shape[0]} lines of {nbytes} bytes do not fit offsets {offsets.shape} and target {target.shape}"
        )
    _copy_lines(rows, offsets, target.ctypes.data)
