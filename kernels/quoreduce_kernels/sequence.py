"""Keys and values of Hadoop's SequenceFiles as columns: variable-length integers, prefixes, records.

A *form* says how a serialised key or value holds its payload, as one number (hadoop's class in brackets)::

    TEXT   -1  a VInt, the payload's length in bytes, then the payload   (Text)
    BYTES  -2  the same with the length as 4 bytes, big-endian           (BytesWritable)
    w >= 0     the payload alone, of w bytes                             (IntWritable 4, LongWritable 8, NullWritable 0)

A VInt (WritableUtils.writeVInt) of a length n is one byte if n <= 127; else the byte 0x90 - k and then the k bytes of
n, big-endian, without leading zeros. Only this shortest form is accepted, so a serialised length tells the payload's
length, and columns can be laid out before any key or value is looked at.

# n = records, s = serialised bytes, p = payload bytes
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import address_of, copy8, copy32, ld8, st8
from quoreduce_kernels.options import cold_part, kernel, part

U8Array = NDArray[np.uint8]
I64Array = NDArray[np.int64]

TEXT, BYTES = -1, -2
_U = np.uint64
LENGTH_MAX = (1 << 31) - 1  # a Java int
VINT_BYTES_MAX = 5
SYNC_BYTES = 16

# Why a walk over records ended early.
TORN, BAD_SYNC, BAD_LENGTH = 1, 2, 3

_READ8 = "Array(u1, 1, 'C', readonly=True)"
_READ64 = "Array(i8, 1, 'C', readonly=True)"


class BadItem(ValueError):
    """An item that is not of its form; ``index`` says which, or how many there are if something follows them."""

    def __init__(self, index: int, reason: str) -> None:
        super().__init__(f"item {index} {reason}")
        self.index = index


@cold_part
def _vint_bytes(n):
    """Size of the VInt of a length, in bytes."""
    return 1 if n < 128 else 2 if n < 1 << 8 else 3 if n < 1 << 16 else 4 if n < 1 << 24 else 5


@cold_part
def _prefix_bytes(n, form):
    """Size of what stands before a payload of n bytes."""
    if form == TEXT:
        return _vint_bytes(n)
    return 4 if form == BYTES else 0


@cold_part
def _put_vint(target, at, n):
    """Write the VInt of a length; return where it ends."""
    size = _vint_bytes(n)
    if size == 1:
        target[at] = n
        return at + 1
    target[at] = 0x90 - (size - 1)
    for k in range(1, size):
        target[at + k] = (n >> (8 * (size - 1 - k))) & 0xFF
    return at + size


@cold_part
def _get_vint(data, at, end):
    """Return (length, where its VInt ends), or (-1, at) if there is no length in its shortest form."""
    if at >= end:
        return -1, at
    first = np.int64(data[at])
    if first < 0x80:
        return first, at + 1
    size = 0x90 - first
    if not 1 <= size <= 4 or at + 1 + size > end:
        return -1, at
    n = np.int64(0)
    for k in range(1, size + 1):
        n = n << 8 | np.int64(data[at + k])
    if _vint_bytes(n) != size + 1 or n > LENGTH_MAX:
        return -1, at
    return n, at + 1 + size


@cold_part
def _get_int(data, at):
    """The 4 bytes at a position, big-endian, with a sign."""
    n = np.int64(0)
    for k in range(4):
        n = n << 8 | np.int64(data[at + k])
    return n - (1 << 32) if n >= 1 << 31 else n


@cold_part
def _payload(length, form):
    """Length of the payload in ``length`` serialised bytes, or -1 if there is none of this form."""
    if form >= 0:
        return length if length == form else -1
    if form == BYTES:
        return length - 4 if length >= 4 else -1
    for size in range(1, VINT_BYTES_MAX + 1):
        if length >= size and _vint_bytes(length - size) == size:
            return length - size
    return -1


@part
def _copy(source, at, target, to, n):
    """Copy n bytes, and touch no others: pieces of 32, 8 or 1, of which the last overlaps the one before it."""
    size = _U(n)
    start, end = address_of(source) + _U(at), address_of(source) + _U(at) + size
    goal = address_of(target) + _U(to)
    shift = goal - start
    if size >= _U(32):
        while start + _U(32) < end:
            copy32(start + shift, start)
            start += _U(32)
        copy32(end - _U(32) + shift, end - _U(32))
    elif size >= _U(8):
        while start + _U(8) < end:
            copy8(start + shift, start)
            start += _U(8)
        copy8(end - _U(8) + shift, end - _U(8))
    else:
        while start < end:
            st8(start + shift, ld8(start))
            start += _U(1)


@cold_part
def _take(source, at, n, form, target, to):
    """Copy the payload of n bytes whose serialised form stands at ``at``; False if its prefix says another length."""
    size = _prefix_bytes(n, form)
    if form == TEXT:
        said, end = _get_vint(source, at, at + size)
        if said != n or end != at + size:
            return False
    if form == BYTES and _get_int(source, at) != n:
        return False
    _copy(source, at + size, target, to, n)
    return True


@kernel(f"i8({_READ8}, i8[::1])")
def _decode_vints(data, out):
    at = np.int64(0)
    for i in range(out.size):
        n, end = _get_vint(data, at, data.size)
        if n < 0:
            return i
        out[i] = n
        at = end
    return out.size if at == data.size else np.int64(-1)


@kernel(f"i8({_READ64}, i8, i8[::1])")
def _payload_offsets(lengths, form, offsets):
    at = offsets[0]
    for i in range(lengths.size):
        n = _payload(lengths[i], form)
        if n < 0:
            return i
        at += n
        offsets[i + 1] = at
    return np.int64(-1)


@kernel(f"i8({_READ8}, i8, {_READ64}, u1[::1])")
def _strip_run(source, form, offsets, target):
    at = np.int64(0)
    for i in range(offsets.size - 1):
        n = offsets[i + 1] - offsets[i]
        size = _prefix_bytes(n, form) + n
        if at + size > source.size or not _take(source, at, n, form, target, offsets[i]):
            return i
        at += size
    return np.int64(-1)


@kernel(f"i8({_READ8}, {_READ64}, i8, {_READ64}, u1[::1])")
def _strip_at(source, starts, form, offsets, target):
    for i in range(starts.size):
        if not _take(source, starts[i], offsets[i + 1] - offsets[i], form, target, offsets[i]):
            return i
    return np.int64(-1)


@kernel(f"UniTuple(i8, 3)({_READ8}, {_READ8}, i8[:, ::1])")
def _walk(data, sync, out):
    """Find the records; out: i64[capacity, 4]. Returns (records, position, reason or 0)."""
    at = np.int64(0)
    count = np.int64(0)
    while at < data.size:
        if at + 4 > data.size:
            return count, at, TORN
        length = _get_int(data, at)
        if length == -1:
            if at + 4 + SYNC_BYTES > data.size:
                return count, at, TORN
            for k in range(SYNC_BYTES):
                if data[at + 4 + k] != sync[k]:
                    return count, at, BAD_SYNC
            at += 4 + SYNC_BYTES
            continue
        if at + 8 > data.size:
            return count, at, TORN
        key = _get_int(data, at + 4)
        if length < 0 or key < 0 or key > length:
            return count, at, BAD_LENGTH
        if length > data.size - at - 8:
            return count, at, TORN
        if count < out.shape[0]:
            out[count, 0] = at + 8
            out[count, 1] = key
            out[count, 2] = at + 8 + key
            out[count, 3] = length - key
        count += 1
        at += 8 + length
    return count, at, np.int64(0)


@kernel(f"i8({_READ64}, u1[::1])")
def _encode_vints(values, target):
    at = np.int64(0)
    for i in range(values.size):
        at = _put_vint(target, at, values[i])
    return at


@kernel(f"i8({_READ8}, {_READ64}, i8, u1[::1], i8[::1])")
def _serialise(data, offsets, form, target, lengths):
    at = np.int64(0)
    for i in range(offsets.size - 1):
        start = at
        n = offsets[i + 1] - offsets[i]
        if form == TEXT:
            at = _put_vint(target, at, n)
        elif form == BYTES:
            for k in range(4):
                target[at + k] = (n >> (24 - 8 * k)) & 0xFF
            at += 4
        _copy(data, offsets[i], target, at, n)
        at += n
        lengths[i] = at - start
    return at


def decode_vints(data: U8Array, count: int) -> I64Array:
    """Decode exactly ``count`` lengths, which must be all that ``data`` u8[s] holds: i64[count], each 0..2**31-1.

    Raises:
        BadItem: something else is there.
    """
    if not 0 <= count <= data.size:
        raise BadItem(0, f"to {count - 1} do not fit {data.size} bytes")
    out = np.empty(count, np.int64)
    good = int(_decode_vints(data, out))
    if good != count:
        raise BadItem(count, "should be the end") if good < 0 else BadItem(good, "is not a length in its shortest form")
    return out


def payload_offsets(lengths: I64Array, form: int, offsets: I64Array) -> None:
    """Turn serialised lengths i64[n] into payload offsets: offsets[1:] i64[n] is filled, counting on from offsets[0].

    Raises:
        BadItem: a length that no key or value of this form has.
    """
    if offsets.shape != (lengths.size + 1,):
        raise ValueError(f"{lengths.size} lengths need {lengths.size + 1} offsets, not {offsets.shape}")
    bad = int(_payload_offsets(lengths, form, offsets))
    if bad >= 0:
        raise BadItem(bad, f"has {lengths[bad]} bytes, which none of its class has")


def strip_run(source: U8Array, form: int, offsets: I64Array, target: U8Array) -> None:
    """Copy the payloads of items that stand one after the other in ``source`` u8[s], all of it, to target[offsets[i]:].

    Raises:
        BadItem: a prefix says another length than its place in the offsets, or too few bytes.
    """
    _check_column(offsets, target)
    bad = int(_strip_run(source, form, offsets, target))
    if bad >= 0:
        raise BadItem(bad, "does not begin with its length")


def strip_at(source: U8Array, starts: I64Array, form: int, offsets: I64Array, target: U8Array) -> None:
    """The same for items that begin at ``starts`` i64[n] in ``source``; the caller guarantees that they lie within
    it.
    """
    _check_column(offsets, target)
    bad = int(_strip_at(source, starts, form, offsets, target))
    if bad >= 0:
        raise BadItem(bad, "does not begin with its length")


def walk_records(data: U8Array, sync: U8Array) -> tuple[I64Array, int, int]:
    """Find the records of a SequenceFile without blocks in ``data`` u8[s], which begins at a record or a sync escape.

    Returns:
        i64[n, 4] (start and length of the key, start and length of the value), the position where the walk ended, and
        why: 0 for the end of the data, else TORN, BAD_SYNC or BAD_LENGTH.
    """
    if sync.size != SYNC_BYTES:
        raise ValueError(f"a sync marker has {SYNC_BYTES} bytes, not {sync.size}")
    count, position, reason = _walk(data, sync, np.empty((0, 4), np.int64))
    out = np.empty((count, 4), np.int64)
    _walk(data, sync, out)
    return out, int(position), int(reason)


def encode_vints(values: I64Array) -> U8Array:
    """Encode lengths i64[n], each 0..2**31-1, one after the other: u8[...]; raise ValueError for others."""
    if values.size and not (values.min() >= 0 and values.max() <= LENGTH_MAX):
        raise ValueError(f"lengths run from 0 to {LENGTH_MAX}")
    target = np.empty(VINT_BYTES_MAX * values.size, np.uint8)
    return target[: _encode_vints(values, target)]


def serialise(data: U8Array, offsets: I64Array, form: int) -> tuple[U8Array, I64Array]:
    """Put what its form asks for before each payload of a column: (serialised u8[s], serialised lengths i64[n]).

    Raises:
        ValueError: offsets that do not lie in ``data`` in order; a payload too long, or not of the width of its form.
    """
    _check_column(offsets, data)
    sizes = np.diff(offsets)
    if sizes.size and (sizes.max() > LENGTH_MAX - VINT_BYTES_MAX or (form >= 0 and not (sizes == form).all())):
        raise ValueError(f"a value of {sizes.max()} bytes does not fit its class")
    target = np.empty(int(offsets[-1] - offsets[0]) + VINT_BYTES_MAX * sizes.size, np.uint8)
    lengths = np.empty(sizes.size, np.int64)
    return target[: _serialise(data, offsets, form, target, lengths)], lengths


def _check_column(offsets: I64Array, data: U8Array) -> None:
    ordered: Any = (
        offsets.size and offsets[0] >= 0 and offsets[-1] <= data.size and not (offsets[1:] < offsets[:-1]).any()
    )
    if not ordered:
        raise ValueError(f"offsets do not lie in {data.size} bytes in order")
