"""Checks of the sort of lines ``key TAB value``: what a text, a block and a part of pairs add up to under a secret key.

    sum of pairs, in any order      = sum of h(key, value, 0)
    sum of pairs, each in its place = sum of h(key, value, place)

in (Z / 2^64)^2, with h as in ``check_hash``, where the chance of an error is. A line of the input ends with LF or CR
LF, the last may lack it; its key is what is before the first tab, or all. A line of a part is ``key TAB value LF``. The
partition of a pair is (hash64(key) * R) >> 64. A part whose keys are of its partition and never decrease (in the order
of memcmp), and which has the sum of its pairs in the input, is the only right one but for the order of equal keys, the
*ties*. A *witness* tells these apart: for each line of the part the map and the place, its number in that map's text.
Within a key (map, place) has to ascend strictly, and for each map the lines in their places have to add up, over all
parts, to the sum of the map's text.

Nothing here is shared with ``pairs``. No kernel reads a byte outside its arrays.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from quoreduce_kernels.check_form import check_partition, find_byte, hash64, precedes, vector
from quoreduce_kernels.check_hash import (
    BLOCKS,
    MESSAGE_WORDS,
    Hasher,
    Refused,
    Sum,
    U64Array,
    add_at,
    add_blocks,
    address,
    sum_of,
)
from quoreduce_kernels.check_intrinsics import LEVEL
from quoreduce_kernels.intrinsics import ld8, ld64, mulhi
from quoreduce_kernels.options import kernel, part

U = np.uint64
U8Array = NDArray[np.uint8]
U32Array = NDArray[np.uint32]
I64Array = NDArray[np.int64]

TAB, LINE_FEED, CARRIAGE_RETURN = 9, 10, 13
BATCH = 1024  # pairs found before they are hashed
BYTES_MAX = 1 << 32  # of a key or a value, and one more
MAPS_MAX = 1 << 20
WHY = (
    "has offsets that are not in order",
    "is no line of a key, a tab, a value and a line feed",
    "is of another partition",
    "has a smaller key than the one before it",
    "has a key or value of 4 GiB or more",
    "does not come after the one before it by (key, map, place)",
)
_OFFSETS, _LINE, _PARTITION, _ORDER, _LARGE, _WITNESS = range(len(WHY))
_U64, _I64, _VECTOR, _ROWS = types.uint64, types.int64, types.uint64[::1], types.uint64[:, ::1]

# A row of pairs is what ``check_hash`` takes for a message: addresses and lengths of key and value, and the place.


@part
def _enter(rows, i, key, tab, value, end):
    """Enter a pair in place 0; return whether both are small enough."""
    rows[i, 0], rows[i, 1], rows[i, 2], rows[i, 3] = key, tab - key, value, end - value
    rows[i, 4] = U(0)
    return tab - key < U(BYTES_MAX) and end - value < U(BYTES_MAX)


@kernel(types.int64(_VECTOR, _U64, _I64, _ROWS))
def _take_input(cursor, end, most, rows):
    """Rows of up to ``most`` lines of an input; cursor[0] moves on. Returns how many, or -1 if one is too large."""
    at = cursor[0]
    n = 0
    while at < end and n < most:
        stop = find_byte(at, end, U(LINE_FEED))
        last = stop - U(1) if stop < end and stop > at and ld8(stop - U(1)) == U(CARRIAGE_RETURN) else stop
        tab = find_byte(at, last, U(TAB))
        if not _enter(rows, n, at, tab, min(tab + U(1), last), last):
            return types.int64(-1)
        n += 1
        at = stop + U(1)
    cursor[0] = at
    return n


@kernel(types.int64(_VECTOR, _U64, _I64, _ROWS, _VECTOR))
def _take_part(cursor, end, most, rows, why):
    """The same of a part's lines. Returns how many are in form, the last of them before the first that is not; why."""
    at = cursor[0]
    n = 0
    why[0] = U(0)
    while at < end and n < most:
        stop = find_byte(at, end, U(LINE_FEED))
        tab = find_byte(at, stop, U(TAB))
        if stop == end or tab == stop:
            why[0] = U(_LINE)
            break
        if not _enter(rows, n, at, tab, tab + U(1), stop):
            why[0] = U(_LARGE)
            break
        n += 1
        at = stop + U(1)
    cursor[0] = at
    return n


@kernel(types.int64(_U64, _U64, _U64, _U64, _U64, _U64, _I64, _I64, _ROWS))
def _take_columns(key_offsets, keys, key_bytes, value_offsets, values, value_bytes, first, last, rows):
    """Rows of the pairs [first, last) of a block. Returns -1, or 8 * pair + why of the first that is wrong."""
    for i in range(first, last):
        key, tab = ld64(key_offsets + U(8) * U(i)), ld64(key_offsets + U(8) * U(i) + U(8))
        value, end = ld64(value_offsets + U(8) * U(i)), ld64(value_offsets + U(8) * U(i) + U(8))
        if not (key <= tab <= key_bytes and value <= end <= value_bytes):
            return types.int64(8 * i + _OFFSETS)
        if not _enter(rows, i - first, keys + key, keys + tab, values + value, values + end):
            return types.int64(8 * i + _LARGE)
    return types.int64(-1)


@kernel(types.int64(_ROWS, _I64, _U64, _U64))
def _find_foreign(rows, n, r, partitions):
    """The first of n rows that is of another partition than r, or -1."""
    for i in range(n):
        if mulhi(hash64(rows[i, 0], rows[i, 1]), partitions) != r:
            return types.int64(i)
    return types.int64(-1)


@kernel(types.int64(_ROWS, _I64, _VECTOR, types.int64[::1], types.boolean, _VECTOR))
def _find_unordered(rows, n, places, maps, witnessed, state):
    """The first of n rows that does not come after the one before, or -1: by key, and within a key by its witness.

    state = (address and length of the key before, ties so far, map and place before, whether there is a row before).
    """
    for i in range(n):
        at, length = rows[i, 0], rows[i, 1]
        if state[5]:
            if precedes(at, length, state[0], state[1]):
                return types.int64(8 * i + _ORDER)
            if not precedes(state[0], state[1], at, length):
                state[2] += U(1)
                later = U(maps[i]) > state[3] or (U(maps[i]) == state[3] and places[i] > state[4])
                if witnessed and not later:
                    return types.int64(8 * i + _WITNESS)
        state[0], state[1], state[5] = at, length, U(1)
        if witnessed:
            state[3], state[4] = U(maps[i]), places[i]
            rows[i, 4] = places[i]
    return types.int64(-1)


class PartSum(NamedTuple):
    """What a part adds up to.

    Attributes:
        sums: one sum, of all pairs in any order; with a witness one for each map, of its pairs in their places.
        ties: lines whose key is that of the one before. Without a witness their order is not checked.
    """

    sums: list[Sum]
    ties: int


class _Pairs:
    """Scratch for pairs under one key, a batch at a time."""

    def __init__(self, key: bytes, level: str, sums: int = 1) -> None:
        self._hasher = Hasher(key, level)
        self._blocks = np.zeros((BATCH + BLOCKS, 2), np.uint64)
        self.rows = np.zeros((BATCH, MESSAGE_WORDS), np.uint64)
        self.maps, self.places = np.zeros(BATCH, np.int64), np.zeros(BATCH, np.uint64)
        self.totals = np.zeros((sums, 3), np.uint64)

    def add(self, n: int) -> None:
        """Add n rows to the first sum."""
        self._hasher.finish(self.rows, n, self._blocks)
        add_blocks(address(self._blocks), n, self.totals[0])

    def add_by_map(self, n: int) -> None:
        """Add n rows to the sums of their maps."""
        self._hasher.finish(self.rows, n, self._blocks)
        add_at(address(self._blocks), self.maps, n, self.totals)

    def sums(self) -> list[Sum]:
        """What all rows so far add up to."""
        return [sum_of(row) for row in self.totals]


def sum_pairs_text(data: U8Array, key: bytes, *, placed: bool = False, level: str = LEVEL) -> Sum:
    """Add up the lines of an input text as pairs.

    Args:
        data: u8[bytes], contiguous; may be read-only and mapped.
        key: 32 bytes.
        placed: each in its place, its number in the text; else in any order.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        Refused: a key or value has 4 GiB or more.
        ValueError: data is no contiguous vector of uint8, or the key has another length.
    """
    vector("data", data, np.uint8)
    work, done = _Pairs(key, level), 0
    cursor, end = np.array([address(data)], np.uint64), address(data) + data.size
    while int(cursor[0]) < end:
        n = int(_take_input(cursor, end, BATCH, work.rows))
        if n < 0:
            raise Refused(done, WHY[_LARGE])
        if placed:
            work.rows[:n, 4] = np.arange(done, done + n, dtype=np.uint64)
        work.add(n)
        done += n
    return work.sums()[0]


def sum_pairs(
    key_offsets: I64Array, keys: U8Array, value_offsets: I64Array, values: U8Array, partition: int, partitions: int,
    key: bytes, *, first: int | None = None, level: str = LEVEL,
) -> Sum:  # fmt: skip
    """Check and add up the pairs of one block of a map, in any order, or in the places first, first + 1, and so on.

    Args:
        key_offsets, keys: i64[n + 1] and u8[bytes]; key i is keys[key_offsets[i]:key_offsets[i + 1]]. Values likewise.
        partition, partitions: the block's r and the number R of all, at most 65536.
        key: 32 bytes.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        Refused: offsets are out of order, a pair is of another partition, or its key or value has 4 GiB or more.
        ValueError: wrong dtypes or sizes, no such partition, or a key of another length.
    """
    vector("keys", keys, np.uint8)
    vector("values", values, np.uint8)
    vector("key_offsets", key_offsets, np.int64)
    vector("value_offsets", value_offsets, np.int64, key_offsets.size)
    check_partition(partition, partitions)
    if not key_offsets.size:
        raise ValueError("offsets must have one element more than there are pairs")
    work, columns = _Pairs(key, level), ((key_offsets, keys), (value_offsets, values))
    if any(offsets[0] != 0 or offsets[-1] != data.size for offsets, data in columns):
        raise Refused(0, WHY[_OFFSETS])
    places = [part for offsets, data in columns for part in (address(offsets), address(data), data.size)]
    for low in range(0, key_offsets.size - 1, BATCH):
        n = min(BATCH, key_offsets.size - 1 - low)
        fault = int(_take_columns(*places, low, low + n, work.rows))
        if fault >= 0:
            raise Refused(fault >> 3, WHY[fault & 7])
        _refuse_foreign(work.rows, n, partition, partitions, low)
        if first is not None:
            work.rows[:n, 4] = np.arange(first + low, first + low + n, dtype=np.uint64)
        work.add(n)
    return work.sums()[0]


def _refuse_foreign(rows: U64Array, n: int, partition: int, partitions: int, done: int) -> None:
    foreign = int(_find_foreign(rows, n, partition, partitions))
    if foreign >= 0:
        raise Refused(done + foreign, WHY[_PARTITION])


def sum_pair_lines(
    text: U8Array, partition: int, partitions: int, key: bytes, *,
    witness: tuple[U32Array, U32Array, int] | None = None, level: str = LEVEL,
) -> PartSum:  # fmt: skip
    """Check and add up the lines ``key TAB value LF`` of a part: in any order, or with a witness by map.

    Args:
        text: u8[bytes], contiguous; may be read-only and mapped.
        partition, partitions: the part's r and the number R of all, at most 65536.
        key: 32 bytes.
        witness: maps u32[n] and places u32[n] of all lines, and the number of maps, at most 2^20.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        Refused: a line is out of form or of another partition, its key is smaller than the one before, the witness
            does not ascend within a key, or it is of another number of lines or of a map that does not exist.
        ValueError: wrong dtypes, no such partition, too many maps, or a key of another length.
    """
    vector("text", text, np.uint8)
    check_partition(partition, partitions)
    maps, places, map_count = _checked_witness(witness)
    work, done, state = _Pairs(key, level, map_count), 0, np.zeros(6, np.uint64)
    cursor, end = np.array([address(text)], np.uint64), address(text) + text.size
    why = np.zeros(1, np.uint64)
    while int(cursor[0]) < end:
        n = int(_take_part(cursor, end, BATCH, work.rows, why))
        if witness is not None:
            if done + n > maps.size:
                raise Refused(maps.size, WHY[_WITNESS])
            work.maps[:n], work.places[:n] = maps[done : done + n], places[done : done + n]
        _refuse_foreign(work.rows, n, partition, partitions, done)
        fault = int(_find_unordered(work.rows, n, work.places, work.maps, witness is not None, state))
        if fault >= 0:
            raise Refused(done + (fault >> 3), WHY[fault & 7])
        if why[0]:
            raise Refused(done + n, WHY[int(why[0])])
        work.add_by_map(n)
        done += n
    if witness is not None and done != maps.size:
        raise Refused(done, WHY[_WITNESS])
    return PartSum(work.sums(), int(state[2]))


def _checked_witness(witness: tuple[U32Array, U32Array, int] | None) -> tuple[Any, Any, int]:
    """(maps, places, sums); Refused if it names a map that does not exist, ValueError if it is no witness."""
    if witness is None:
        return None, None, 1
    maps, places, map_count = witness
    vector("maps", maps, np.uint32)
    vector("places", places, np.uint32, maps.size)
    if not 0 <= map_count <= MAPS_MAX:
        raise ValueError(f"there are at most {MAPS_MAX} maps, not {map_count}")
    if maps.size and int(maps.max()) >= map_count:
        raise Refused(int(np.argmax(maps >= map_count)), WHY[_WITNESS])
    return maps, places, map_count
