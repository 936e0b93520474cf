"""Fingerprints: 128 bits for each piece of a buffer, fast enough to stand beside a memory copy.

For accidental faults only. A piece is cut into 128-byte strips, the last one padded with zeros, and

    NH(strip)  = sum over i of (w[2i] + k[2i]) * (w[2i+1] + k[2i+1])  mod 2**128
    chain      = chain * M + NH(strip)                                mod 2**128, starting at 0, for each strip in order
    value      = Feistel(chain)                                       two rounds of multiply-and-fold

where w are the strip's 64-bit little-endian words, k are 16 key words (added mod 2**64) and M is odd. NH is that of
UMAC (Black et al., CRYPTO '99; RFC 4418) with 64-bit words: for keys drawn at random, two different strips of equal
length collide with probability at most 2**-64. A flipped bit changes one factor by a power of two, so that it changes
NH unless the other factor is exactly 0. As M is odd and the Feistel rounds are a bijection, a change in a single
strip is never lost later on. The rounds are there for sums of fingerprints: NH is linear in the *pairs* of words, so
that without them two records could swap a pair and keep their sum.

Key words come from SHAKE-128 of the key. The length of the data is not in the value of a piece: the caller adds it,
or uses :func:`checksum128`. The plain twins are in ``reference``.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import bswap, ld8, ld64, mulfold, prefetch
from quoreduce_kernels.options import kernel, part

U8Array = NDArray[np.uint8]
U64Array = NDArray[np.uint64]

KEY_BYTES = 16
STRIP_BYTES = 128
RECORD_BYTES = 100
CHECK_KEY = b"quoreduce check1"  # the fixed key of checksums: 16 bytes
KEY_WORDS = 20  # 16 words of NH, 2 of the rounds, the multiplier M (low, high)

_ROUND_1 = np.uint64(0x9E3779B97F4A7C15)
_ROUND_2 = np.uint64(0xD1B54A32D192ED03)
_BATCH = 256  # fingerprints between two additions to a sum: 4 KiB, stays in L1
_U = np.uint64

_I64, _I128 = ir.IntType(64), ir.IntType(128)
_PAIR = types.UniTuple(types.uint64, 2)


def _halves(context: Any, builder: Any, signature: Any, value: Any) -> Any:
    low = builder.trunc(value, _I64)
    high = builder.trunc(builder.lshr(value, _I128(64)), _I64)
    return context.make_tuple(builder, signature.return_type, [low, high])


def _whole(builder: Any, low: Any, high: Any) -> Any:
    return builder.or_(builder.zext(low, _I128), builder.shl(builder.zext(high, _I128), _I128(64)))


def _word(builder: Any, address: Any, offset: int, size: int) -> Any:
    """The word at ``address + offset`` of a strip that ends at ``size``: 8 bytes, or the 4 that are left, or 0."""
    if offset >= size:
        return _I64(0)
    kind = _I64 if size - offset >= 8 else ir.IntType(32)
    value = builder.load(builder.inttoptr(builder.add(address, _I64(offset)), kind.as_pointer()))
    value.align = 1
    return value if kind is _I64 else builder.zext(value, _I64)


def _strip_hash(size: int) -> Any:
    """NH of the ``size`` bytes (a multiple of 4) at an address, zeros implied after them, as (low, high)."""

    def nh(_typing: Any, data: Any, keys: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            data, keys = args
            total = _I128(0)
            for offset in range(0, STRIP_BYTES, 16):
                factors = []
                for at in (offset, offset + 8):
                    word = _word(builder, data, at, size)
                    word = builder.add(word, _word(builder, keys, at, STRIP_BYTES))
                    factors.append(builder.zext(word, _I128))
                total = builder.add(total, builder.mul(*factors))
            return _halves(context, builder, signature, total)

        return _PAIR(types.uint64, types.uint64), codegen

    nh.__name__ = f"nh{size}"
    return intrinsic(nh)


nh100 = _strip_hash(100)
nh128 = _strip_hash(128)


@intrinsic
def multiply_add(_typing: Any, x0: Any, x1: Any, y0: Any, y1: Any, z0: Any, z1: Any) -> Any:
    """x * y + z modulo 2**128 as (low, high); each argument is given as low, high."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y, z = (_whole(builder, args[i], args[i + 1]) for i in (0, 2, 4))
        return _halves(context, builder, signature, builder.add(builder.mul(x, y), z))

    return _PAIR(*[types.uint64] * 6), codegen


@part
def _mix(low, high, keys):
    """Feistel rounds: a bijection of 128 bits that is not linear."""
    high ^= mulfold(low ^ ld64(keys + _U(128)), _ROUND_1)
    low ^= mulfold(high ^ ld64(keys + _U(136)), _ROUND_2)
    return low, high


@part
def _record(address, keys):
    """Fingerprint of the 100 bytes at an address: (low, high). One strip, so that there is no chain."""
    low, high = nh100(address, keys)
    return _mix(low, high, keys)


@part
def _last_strip(address, size, buffer):
    """Copy the ``size`` < 128 bytes at ``address`` to ``buffer`` and fill with zeros."""
    for i in range(STRIP_BYTES):
        buffer[i] = ld8(address + _U(i)) if i < size else _U(0)


@part
def _piece(address, size, keys, buffer):
    """Fingerprint of a piece of any size: (low, high). ``buffer`` is u8[128] scratch."""
    low, high = _U(0), _U(0)
    m0, m1 = ld64(keys + _U(144)), ld64(keys + _U(152))
    for _ in range(size // STRIP_BYTES):
        n0, n1 = nh128(address, keys)
        low, high = multiply_add(low, high, m0, m1, n0, n1)
        address += _U(STRIP_BYTES)
    rest = size % STRIP_BYTES
    if rest:
        _last_strip(address, rest, buffer)
        n0, n1 = nh128(_U(buffer.ctypes.data), keys)
        low, high = multiply_add(low, high, m0, m1, n0, n1)
    return _mix(low, high, keys)


# n = records or pieces. Addresses are u64; out is u64[n, 2] in C order; keys is the address of u64[20].


@kernel("void(u8, i8, u8, u8[:, ::1])")
def _fingerprint_records(data, n, keys, out):
    for i in range(n):
        low, high = _record(data + _U(RECORD_BYTES) * _U(i), keys)
        out[i, 0] = low
        out[i, 1] = high


@kernel("void(u8, i8, i8, u8, u8[:, ::1])")
def _fingerprint_pieces(data, size, stride, keys, out):
    buffer = np.zeros(STRIP_BYTES, np.uint8)
    for i in range(out.shape[0]):
        start = i * stride
        low, high = _piece(data + _U(start), min(stride, size - start), keys, buffer)
        out[i, 0] = low
        out[i, 1] = high


@kernel("void(u8, i8, u8, u2[::1], i8[::1], u8[:, ::1])")
def _fingerprint_scatter(data, n, keys, ids, position, out):
    for i in range(n):
        low, high = _record(data + _U(RECORD_BYTES) * _U(i), keys)
        p = ids[i]
        q = position[p]
        position[p] = q + 1
        out[q, 0] = low
        out[q, 1] = high


@kernel("void(u8[:, ::1], u8[::1], u8, u8[:, ::1])")
def _permute(values, order, mask, out):
    n = order.size
    base = _U(values.ctypes.data)
    ahead = min(32, n)
    for i in range(n):
        if i + ahead < n:
            prefetch(base + _U(16) * (order[i + ahead] & mask))
        q = order[i] & mask
        out[i, 0] = values[q, 0]
        out[i, 1] = values[q, 1]


@kernel("void(u8[:, ::1], u8[::1])")
def _add_fingerprints(values, total):
    low, high = total[0], total[1]
    for i in range(values.shape[0]):
        before = low
        low += values[i, 0]
        high += values[i, 1] + _U(low < before)
    total[0], total[1] = low, high


@part
def _order_defects(address, m, head, tail):
    """Number of the m records at an address that are smaller than the one before; (head, tail) is the previous key."""
    bad = 0
    for i in range(m):
        at = address + _U(RECORD_BYTES) * _U(i)
        a, b = bswap(ld64(at)), bswap(ld64(at + _U(2)))
        bad += (a < head) | ((a == head) & (b < tail))
        head, tail = a, b
    return bad, head, tail


@kernel("i8(u8, i8, u8, u8[::1], u8[::1])")
def _multiset_records(data, n, keys, total, previous):
    """Add the fingerprints of n records to total (low, high); return the number out of order. previous = last key."""
    lows, highs = np.empty(_BATCH, np.uint64), np.empty(_BATCH, np.uint64)
    head, tail = previous[0], previous[1]
    bad = 0
    for start in range(0, n, _BATCH):
        m = min(_BATCH, n - start)
        base = data + _U(RECORD_BYTES) * _U(start)
        for i in range(m):
            lows[i], highs[i] = _record(base + _U(RECORD_BYTES) * _U(i), keys)
        count, head, tail = _order_defects(base, m, head, tail)
        bad += count
        low, high = total[0], total[1]
        for i in range(m):
            before = low
            low += lows[i]
            high += highs[i] + _U(low < before)
        total[0], total[1] = low, high
    previous[0], previous[1] = head, tail
    return bad


@lru_cache(maxsize=64)
def key_schedule(key: bytes) -> U64Array:
    """Expand a key of 16 bytes to the u64[20] words of the module's formula; the multiplier is made odd.

    Raises:
        ValueError: if the key has not 16 bytes.
    """
    if len(key) != KEY_BYTES:
        raise ValueError(f"a fingerprint's key has {KEY_BYTES} bytes, not {len(key)}")
    words = np.frombuffer(hashlib.shake_128(key).digest(8 * KEY_WORDS), "<u8").astype(np.uint64)
    words[18] |= _U(1)
    words.flags.writeable = False
    return words


def as_bytes(data: object, name: str = "data") -> U8Array:
    """View ``data`` (bytes-like or an array of u8, C-contiguous) as u8[n] without a copy; ValueError otherwise."""
    array = data if isinstance(data, np.ndarray) else np.frombuffer(data, np.uint8)  # type: ignore[call-overload]
    if array.dtype != np.uint8 or not array.flags.c_contiguous:
        raise ValueError(f"{name} must be C-contiguous uint8, not {array.dtype} of strides {array.strides}")
    return array.reshape(-1)


def record_bytes(data: object, name: str = "records") -> U8Array:
    """View ``data`` as u8[n * 100]; ValueError unless it holds whole records."""
    flat = as_bytes(data, name)
    if flat.size % RECORD_BYTES:
        raise ValueError(f"{name} has {flat.size} bytes, not a multiple of {RECORD_BYTES}")
    return flat


def _output(out: U64Array | None, n: int) -> U64Array:
    if out is None:
        return np.empty((n, 2), np.uint64)
    if out.dtype != np.uint64 or out.shape != (n, 2) or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be writable C-contiguous uint64[{n}, 2], not {out.dtype}{list(out.shape)}")
    return out


def fingerprints(data: object, stride: int, key: bytes, out: U64Array | None = None) -> U64Array:
    """Return the keyed fingerprint of each ``stride``-byte piece of ``data``.

    Args:
        data: bytes-like or u8 array, C-contiguous; the last piece is padded with zeros to a multiple of 128 bytes.
        stride: bytes of a piece, at least 1; 100 (records) and multiples of 128 are the fast ones.
        key: 16 bytes.
        out: u64[ceil(len/stride), 2] to fill instead of a new array.

    Returns:
        u64[n, 2]: low and high half of each value.

    Raises:
        ValueError: for a stride below 1, a key of another length, or an unsuitable ``out``.
    """
    if stride < 1:
        raise ValueError(f"a stride is at least 1 byte, not {stride}")
    flat = as_bytes(data)
    keys = key_schedule(key)
    out = _output(out, -(-flat.size // stride))
    if stride == RECORD_BYTES and flat.size % stride == 0:
        _fingerprint_records(flat.ctypes.data, out.shape[0], keys.ctypes.data, out)
    else:
        _fingerprint_pieces(flat.ctypes.data, flat.size, stride, keys.ctypes.data, out)
    return out


def checksums(data: object, piece_bytes: int, out: U64Array | None = None) -> U64Array:
    """Return unkeyed checksums u64[n, 2] of the pieces of ``data``: fingerprints under the fixed key CHECK_KEY."""
    return fingerprints(data, piece_bytes, CHECK_KEY, out)


def checksum128(data: object) -> int:
    """Return an unkeyed 128-bit checksum of ``data``, its order and its length, for accidental faults."""
    flat = as_bytes(data)
    if flat.size == 0:
        return 0
    low, high = checksums(flat, flat.size)[0]
    return (int(low) + (int(high) << 64) + flat.size * 0x9E3779B97F4A7C15F39CC0605CEDC835) % (1 << 128)


def fingerprint_scatter(
    records: object, ids: NDArray[np.uint16], starts: NDArray[np.int64], key: bytes, out: U64Array | None = None
) -> U64Array:
    """Return the fingerprints of the records in *partition order*, as if they had been moved, which they are not.

    Args:
        records: u8[n, 100], or as many bytes.
        ids: u16[n], partition of each record, each below R.
        starts: i64[R + 1], first record of each partition in the output: 0 first, n last, differences = record counts.
        key: 16 bytes.
        out: u64[n, 2] to fill instead of a new array.

    Raises:
        ValueError: if shapes or dtypes differ from the above, or ``starts`` are not the counts of ``ids``.
    """
    flat = record_bytes(records)
    n = flat.size // RECORD_BYTES
    if ids.dtype != np.uint16 or ids.shape != (n,) or not ids.flags.c_contiguous:
        raise ValueError(f"ids must be C-contiguous uint16[{n}], not {ids.dtype}{list(ids.shape)}")
    counts = np.bincount(ids, minlength=starts.size - 1)
    if starts.ndim != 1 or starts.size < 1 or starts[0] != 0 or not np.array_equal(np.diff(starts), counts):
        raise ValueError("starts must run from 0 by the number of records of each partition")
    out = _output(out, n)
    position = starts.astype(np.int64)
    _fingerprint_scatter(flat.ctypes.data, n, key_schedule(key).ctypes.data, ids, position, out)
    return out


def permute_fingerprints(values: U64Array, order: U64Array, mask: int, out: U64Array | None = None) -> U64Array:
    """Return ``values[order & mask]``: fingerprints in the order of sorted records.

    Args:
        values: u64[n, 2].
        order: u64[m], record numbers in the bits of ``mask``, each below n (checked).
        mask: the bits of ``order`` that hold the number.
        out: u64[m, 2] to fill instead of a new array.
    """
    if values.dtype != np.uint64 or values.ndim != 2 or values.shape[1] != 2 or not values.flags.c_contiguous:
        raise ValueError(f"values must be C-contiguous uint64[n, 2], not {values.dtype}{list(values.shape)}")
    if order.dtype != np.uint64 or order.ndim != 1 or not order.flags.c_contiguous:
        raise ValueError(f"order must be C-contiguous uint64[m], not {order.dtype}{list(order.shape)}")
    if order.size and int((order & _U(mask)).max()) >= values.shape[0]:
        raise ValueError(f"order names records beyond the {values.shape[0]} there are")
    out = _output(out, order.size)
    _permute(values, order, mask, out)
    return out


def sum128(values: U64Array) -> int:
    """Return the sum modulo 2**128 of fingerprints u64[n, 2]: the same for any order of them."""
    total = np.zeros(2, np.uint64)
    _add_fingerprints(values, total)
    return int(total[0]) | int(total[1]) << 64


def multiset128(records: object, key: bytes, previous: bytes = b"") -> tuple[int, int]:
    """Return (multiset hash, records out of order) of 100-byte records, in one pass.

    The hash is the sum of the records' fingerprints modulo 2**128: equal for equal multisets in any order, and the
    hashes of parts add up. A record is out of order if its 10-byte key is smaller than that of the record before it.

    Args:
        records: u8[n, 100], or as many bytes.
        key: 16 bytes.
        previous: 10-byte sort key that comes before the first record; empty for none.
    """
    flat = record_bytes(records)
    if len(previous) not in (0, 10):
        raise ValueError(f"a sort key has 10 bytes, not {len(previous)}")
    before = previous.ljust(10, b"\0")
    state = np.array([int.from_bytes(before[:8], "big"), int.from_bytes(before[2:], "big")], np.uint64)
    total = np.zeros(2, np.uint64)
    bad = _multiset_records(flat.ctypes.data, flat.size // RECORD_BYTES, key_schedule(key).ctypes.data, total, state)
    return int(total[0]) | int(total[1]) << 64, int(bad)
