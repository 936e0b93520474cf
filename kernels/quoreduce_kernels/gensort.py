"""Records of the sort benchmark: generator, and what its validator checks. A clean-room implementation.

Record i is made from r(i), the i-th value after 0 of a 128-bit linear congruential generator (sortbenchmark.org; the
multiplier is that of L'Ecuyer's tables for 2**128, and of PCG64):

    r(i) = A * r(i - 1) + C mod 2**128,  A = 0x2360ED051FC65DA44385DF649FCCF645,  C = 0x4A696D47726179524950202020202001

C's first bytes spell JimGrayRIP, which is the first key. Layouts, in bytes; digits are hexadecimal, upper case:

    binary   10 top bytes of r(i), then for k = 1..9 those of r(i + k) xor a constant of its own (MASKS)
    teragen  10 top bytes of r | 00 11 | i in 32 digits | 88 99 AA BB | 12 lowest digits of r, 4 times each | CCDDEEFF
    ascii    10 key characters | 2 spaces | i in 32 digits | 2 spaces | 13 lowest digits of r, 4 times each | CR LF

An ASCII key's characters are ' ' + digit of base 95, lowest first: 8 digits of r's high 64 bits, 2 of its low 64 bits.
``binary`` is what gensort 1.5 writes (the constants are those of its BSD-licensed edition), ``ascii`` is ``gensort
-a``, ``teragen`` is what Hadoop's TeraGen writes. The checksum is the sum, in 128 bits, of the CRC-32 of each record:
for N = 1, 10, 1000 it is 9ea593a0, 55fea8a1a, 1ea6370b955 (binary), 3fcaea0a, 469302dca, 1f5dfb3631a (ascii), 97503e23,
5b2d1434d, 1f9ffe645ec (teragen).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from quoreduce_kernels.fingerprint import RECORD_BYTES, multiply_add, record_bytes
from quoreduce_kernels.intrinsics import bswap, ld32, ld64, st8, st16, st32, st64
from quoreduce_kernels.options import kernel, part

U8Array = NDArray[np.uint8]

KINDS = ("binary", "ascii", "teragen")
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645
INCREMENT = 0x4A696D47726179524950202020202001
# What each of the nine 10-byte parts after a binary key is xored with.
MASKS = (
    0xF0E8E4E2E1D8D4D2D1CC, 0xCAC9C6C5C3B8B4B2B1AC, 0xAAA9A6A5A39C9A999695, 0x938E8D8B87787472716C,
    0x6A696665635C5A595655,
    0x534E4D4B473C3A393635, 0x332E2D2B271E1D1B170F, 0xC8C4C2C1989492918CE0, 0x170F332E2D2B271E1D1B,
)  # fmt: skip
_MODULUS = 1 << 128
_WORD = (1 << 64) - 1
_U = np.uint64
_I32, _I64 = ir.IntType(32), ir.IntType(64)
_A_LOW, _A_HIGH = _U(MULTIPLIER & _WORD), _U(MULTIPLIER >> 64)
_C_LOW, _C_HIGH = _U(INCREMENT & _WORD), _U(INCREMENT >> 64)

KEY_BYTES = 10
_CRC_POLYNOMIAL = 0xEDB88320  # CRC-32 of ISO 3309 and zlib, reflected
_CRC_SLICE = 20  # bytes of a step: five steps to a record, and the tables' 20 KiB fit L1
_SUM_RECORDS_MAX = 1 << 31  # partial sums of 32-bit values stay below 2**63


@intrinsic
def crc_step(_typing: Any, first: Any, second: Any, third: Any, tables: Any) -> Any:
    """CRC after 20 bytes: the xor of their table entries, the first byte's from table 19, the last one's from table 0.

    The bytes are given as words of 8, 8 and 4; the CRC before them is xored into ``first``. tables = address of
    u32[20, 256].
    """

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        entries = []
        for j in range(_CRC_SLICE):
            byte = builder.and_(builder.lshr(args[j // 8], _I64(8 * (j % 8))), _I64(0xFF))
            offset = builder.add(builder.shl(byte, _I64(2)), _I64((_CRC_SLICE - 1 - j) * 1024))
            entries.append(builder.load(builder.inttoptr(builder.add(args[3], offset), _I32.as_pointer())))
        while len(entries) > 1:
            pairs = zip(entries[0::2], entries[1::2], strict=False)
            entries = [builder.xor(a, b) for a, b in pairs] + entries[len(entries) & ~1 :]
        return builder.zext(entries[0], _I64)

    return types.uint64(*[types.uint64] * 4), codegen


@part
def _step(low, high):
    """Next value of the generator, as (low, high)."""
    return multiply_add(low, high, _A_LOW, _A_HIGH, _C_LOW, _C_HIGH)


@part
def _hex8(x):
    """The 8 hex digits of a 32-bit number as 8 characters, the first in the lowest byte."""
    x = (x | (x << _U(16))) & _U(0x0000FFFF0000FFFF)
    x = (x | (x << _U(8))) & _U(0x00FF00FF00FF00FF)
    x = (x | (x << _U(4))) & _U(0x0F0F0F0F0F0F0F0F)
    letters = ((x + _U(0x0606060606060606)) >> _U(4)) & _U(0x0101010101010101)
    return bswap(x + _U(0x3030303030303030) + letters * _U(7))


@part
def _put_number(at, low, high):
    """32 hex digits."""
    st64(at, _hex8(high >> _U(32)))
    st64(at + _U(8), _hex8(high & _U(0xFFFFFFFF)))
    st64(at + _U(16), _hex8(low >> _U(32)))
    st64(at + _U(24), _hex8(low & _U(0xFFFFFFFF)))


@part
def _put_fours(at, characters, first, count):
    """Characters ``first`` to ``first + count`` of 8, four times each."""
    for i in range(first, first + count):
        st32(at, ((characters >> _U(8 * i)) & _U(0xFF)) * _U(0x01010101))
        at += _U(4)


@part
def _put_filler(at, low, digits):
    """The 12 or 13 lowest hex digits of the random number, four times each."""
    left = _hex8((low >> _U(32)) & _U(0xFFFFFFFF))
    right = _hex8(low & _U(0xFFFFFFFF))
    _put_fours(at, left, 16 - digits, digits - 8)
    _put_fours(at + _U(4 * (digits - 8)), right, 0, 8)


@part
def _put_ascii_key(at, low, high):
    for i in range(8):
        st8(at + _U(i), _U(32) + high % _U(95))
        high //= _U(95)
    st8(at + _U(8), _U(32) + low % _U(95))
    st8(at + _U(9), _U(32) + (low // _U(95)) % _U(95))


@kernel("void(u8, i8, u8, u8, u8)")
def _generate_binary(target, n, low, high, masks):
    """n records of kind binary; (low, high) as in :func:`_generate_teragen`; masks is the address of u64[10, 2]: first
    8 bytes of each mask, and its last 2.
    """
    for _ in range(n):
        low, high = _step(low, high)
        part_low, part_high = low, high
        for k in range(10):
            at = masks + _U(16 * k)
            st64(target, bswap(part_high ^ ld64(at)))
            st16(target + _U(8), bswap(part_low ^ (ld64(at + _U(8)) << _U(48))) & _U(0xFFFF))
            target += _U(10)
            part_low, part_high = _step(part_low, part_high)


@kernel("void(u8, i8, u8, u8, u8, u8)")
def _generate_teragen(target, n, low, high, number_low, number_high):
    """n records of kind teragen; low, high: random value before the first; number_low, number_high: its number."""
    for _ in range(n):
        low, high = _step(low, high)
        st64(target, bswap(high))
        st16(target + _U(8), bswap(low) & _U(0xFFFF))
        st16(target + _U(10), _U(0x1100))
        _put_number(target + _U(12), number_low, number_high)
        st32(target + _U(44), _U(0xBBAA9988))
        _put_filler(target + _U(48), low, 12)
        st32(target + _U(96), _U(0xFFEEDDCC))
        number_low += _U(1)
        number_high += _U(number_low == _U(0))
        target += _U(RECORD_BYTES)


@kernel("void(u8, i8, u8, u8, u8, u8)")
def _generate_ascii(target, n, low, high, number_low, number_high):
    """n records of kind ascii; arguments as in :func:`_generate_teragen`."""
    for _ in range(n):
        low, high = _step(low, high)
        _put_ascii_key(target, low, high)
        st16(target + _U(10), _U(0x2020))
        _put_number(target + _U(12), number_low, number_high)
        st16(target + _U(44), _U(0x2020))
        _put_filler(target + _U(46), low, 13)
        st16(target + _U(98), _U(0x0A0D))
        number_low += _U(1)
        number_high += _U(number_low == _U(0))
        target += _U(RECORD_BYTES)


@kernel("u8(u8, i8, u8)")
def _crc_sum(data, n, tables):
    """Sum of the CRC-32 of n records; tables is the address of u32[20, 256]."""
    total = _U(0)
    for i in range(n):
        at = data + _U(RECORD_BYTES) * _U(i)
        crc = _U(0xFFFFFFFF)
        for _ in range(5):
            crc = crc_step(ld64(at) ^ crc, ld64(at + _U(8)), ld32(at + _U(16)), tables)
            at += _U(_CRC_SLICE)
        total += crc ^ _U(0xFFFFFFFF)
    return total


@kernel("UniTuple(i8, 2)(u8, i8, u8, u8, b1)")
def _validate(data, n, head, tail, has_previous):
    """(first record below its predecessor or -1, records equal to theirs); (head, tail) is the key before the first."""
    duplicates = 0
    for i in range(n):
        at = data + _U(RECORD_BYTES) * _U(i)
        a, b = bswap(ld64(at)), bswap(ld64(at + _U(2)))
        if has_previous or i > 0:
            if a < head or (a == head and b < tail):
                return i, duplicates
            duplicates += (a == head) & (b == tail)
        head, tail = a, b
    return -1, duplicates


@lru_cache(maxsize=1)
def _masks() -> NDArray[np.uint64]:
    """Return u64[10, 2]: the key's mask (none) and MASKS, split into 8 and 2 bytes."""
    return np.array([(mask >> 16, mask & 0xFFFF) for mask in (0, *MASKS)], np.uint64)


@lru_cache(maxsize=1)
def _crc_tables() -> NDArray[np.uint32]:
    """Return u32[20, 256]: table t maps a byte to its effect on the CRC after t more zero bytes."""
    tables = np.empty((_CRC_SLICE, 256), np.uint32)
    row: NDArray[np.uint32] = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        row = (row >> np.uint32(1)) ^ (row & np.uint32(1)) * np.uint32(_CRC_POLYNOMIAL)
    tables[0] = row
    for t in range(1, _CRC_SLICE):
        tables[t] = (tables[t - 1] >> 8) ^ tables[0][tables[t - 1] & 0xFF]
    return tables


def random_before(record: int) -> int:
    """Return r(record), the generator's value just before the one that record number ``record`` uses; r(0) = 0.

    By repeated squaring of the step x -> a * x + c: its power 2m is x -> a * a * x + (a + 1) * c for power m.
    """
    a, c = MULTIPLIER, INCREMENT
    value, steps = 0, record
    while steps:
        if steps & 1:
            value = (a * value + c) % _MODULUS
        c = (a + 1) * c % _MODULUS
        a = a * a % _MODULUS
        steps >>= 1
    return value


def generate_records(first: int, n: int, kind: str = "binary", out: U8Array | None = None) -> U8Array:
    """Return records ``first`` to ``first + n`` (exclusive), the same bytes however the range is cut.

    Args:
        first: number of the first record, 0 to 2**128 - 1.
        n: how many.
        kind: ``binary``, ``ascii`` (printable, lines end in CR LF) or ``teragen``.
        out: writable u8[n, 100] to fill instead of a new array.

    Returns:
        u8[n, 100].

    Raises:
        ValueError: for an unknown kind, numbers out of range, or an unsuitable ``out``.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of record {kind!r}: use one of {', '.join(KINDS)}")
    if n < 0 or not 0 <= first <= _MODULUS - n:
        raise ValueError(f"record numbers {first}..{first + n} are not within 0..2**128")
    if out is None:
        out = np.empty((n, RECORD_BYTES), np.uint8)
    if out.dtype != np.uint8 or out.nbytes != n * RECORD_BYTES or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be writable C-contiguous uint8 of {n * RECORD_BYTES} bytes")
    value = random_before(first)
    if kind == "binary":
        masks = _masks()
        _generate_binary(out.ctypes.data, n, value & _WORD, value >> 64, masks.ctypes.data)
        return out
    generate = _generate_ascii if kind == "ascii" else _generate_teragen
    generate(out.ctypes.data, n, value & _WORD, value >> 64, first & _WORD, first >> 64)
    return out


def crc_sum(records: object) -> int:
    """Return the benchmark's checksum of 100-byte records: the sum of their CRC-32, modulo 2**128.

    Args:
        records: u8[n, 100], or as many bytes. Sums of parts add up to the sum of the whole.
    """
    flat = record_bytes(records)
    tables = _crc_tables()
    total = 0
    step = _SUM_RECORDS_MAX * RECORD_BYTES
    for start in range(0, flat.size, step):
        part_ = flat[start : start + step]
        total += int(_crc_sum(part_.ctypes.data, part_.size // RECORD_BYTES, tables.ctypes.data))
    return total % _MODULUS


def validate_sorted(records: object, previous: bytes = b"") -> tuple[int, int, bytes]:
    """Check the order of the keys of ``records``, u8[n, 100] or as many bytes.

    Args:
        records: the buffer.
        previous: last key of the buffer before it; empty for none.

    Returns:
        (index of the first record whose key is below the one before it or -1; number of keys equal to the one before
        them, up to that index; last key of the buffer, or ``previous`` if it is empty).
    """
    flat = record_bytes(records)
    n = flat.size // RECORD_BYTES
    if len(previous) not in (0, KEY_BYTES):
        raise ValueError(f"a key has {KEY_BYTES} bytes, not {len(previous)}")
    if n == 0:
        return -1, 0, previous
    before = previous.ljust(KEY_BYTES, b"\0")
    head, tail = int.from_bytes(before[:8], "big"), int.from_bytes(before[2:], "big")
    bad, duplicates = _validate(flat.ctypes.data, n, head, tail, bool(previous))
    last = flat[flat.size - RECORD_BYTES :][:KEY_BYTES].tobytes()
    return int(bad), int(duplicates), last
