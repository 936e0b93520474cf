"""Checks of the sort of 100-byte records: what a split, a block and a part add up to under a secret key.

    sum of records, in any order       = sum of h(record, 0)
    sum of records, each in its place  = sum of h(record, place)

in (Z / 2^64)^2, with h as in ``check_hash``: another multiset of records, or of records with their places, has the same
sum with a chance of at most (k - 1) 2^-64 + 2^(2v - 130) for k wrong ones, v the bits of how often one occurs. A part
whose keys never decrease, and whose sum is that of its records in the input, is the only right one but for the order of
records of equal keys, the *ties*. These are told apart by a *witness*: for each tied record the map and the place,
its number in that map's split, from which it is. Within a key (map, place) has to ascend strictly, and for each map the
tied records in their places have to have the sum that the map's split gives for these keys.

The search for a record's partition is not that of ``records``. No kernel reads a byte outside its arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from quoreduce_kernels.check_form import PARTITIONS_MAX
from quoreduce_kernels.check_hash import BLOCKS, Hasher, Sum, U64Array, add_at, add_blocks, address, sum_of
from quoreduce_kernels.check_intrinsics import LEVEL, nh_record
from quoreduce_kernels.check_keys import RECORD
from quoreduce_kernels.intrinsics import bswap, ld64
from quoreduce_kernels.options import cold_part, kernel, part

U = np.uint64
U8Array = NDArray[np.uint8]
U32Array = NDArray[np.uint32]

RECORD_BYTES = 100
KEY_BYTES = 10
BATCH = 4096  # records whose NH lies in the cache until they are encrypted
MAPS_MAX = 1 << 20
_WAYS = 16
_SIZE = U(RECORD_BYTES)
_VECTOR, _U64, _I64 = types.uint64[::1], types.uint64, types.int64


@part
def _head_and_tail(at):
    """A key as two numbers, bytes 0 to 7 and 2 to 9, which order as it does."""
    return bswap(ld64(at)), bswap(ld64(at + U(2)))


@cold_part
def _rank_by_both(heads, tails, head, tail):
    """How many keys of a list are not above a key."""
    low, high = U(0), U(heads.size)
    while low < high:
        k = (low + high) >> U(1)
        if heads[k] < head or (heads[k] == head and tails[k] <= tail):
            low = k + U(1)
        else:
            high = k
    return low


@part
def _rank(heads, tails, head, tail):
    """The same, by the heads alone as long as they decide. The list has 16^k - 1 keys, the last possible one at last.

    A sixteenth at a time, counting rather than searching: a search by halves mispredicts every other branch.
    """
    low, step = U(0), U(heads.size + 1) >> U(4)
    while step > U(1):
        count = U(0)
        for j in range(U(1), U(_WAYS)):
            count += U(heads[low + j * step - U(1)] <= head)
        low += count * step
        step >>= U(4)
    if step:
        count = U(0)
        for j in range(U(_WAYS - 1)):
            count += U(heads[low + j] <= head)
        low += count
        if low and heads[low - U(1)] == head:
            return _rank_by_both(heads, tails, head, tail)
    return low


@kernel(types.void(_U64, _VECTOR, _VECTOR, _I64, _U64, _U64))
def _nh_of_picks(data, picks, places, n, keys, blocks):
    """NH of n records, by number, in their places, as blocks."""
    for i in range(n):
        nh_record(data + _SIZE * picks[i], places[i], keys, blocks + U(16) * U(i))


@kernel(types.void(_U64, _I64, _VECTOR, _U64, _U64))
def _nh_of_all(data, n, places, keys, blocks):
    """NH of n records, in their places, as blocks."""
    for i in range(n):
        nh_record(data + _SIZE * U(i), places[i], keys, blocks + U(16) * U(i))


# Keys are looked at record by record, not ahead of NH: memory is then read in its order, which is three times as fast.


@kernel(types.void(_U64, _I64, _VECTOR, _VECTOR, types.boolean, types.int64[::1], types.int64[::1], _U64, _U64))
def _nh_by_partition(data, n, heads, tails, placed, counts, ids, keys, blocks):
    """NH of n records as blocks, and their partitions; in their numbers within these, or in place 0; counts[p] += 1."""
    most = counts.size - 1
    for i in range(n):
        at = data + _SIZE * U(i)
        head, tail = _head_and_tail(at)
        p = min(np.int64(_rank(heads, tails, head, tail)), most)
        place = counts[p]
        counts[p] = place + 1
        ids[i] = p
        nh_record(at, U(place) if placed else U(0), keys, blocks + U(16) * U(i))


@kernel(types.UniTuple(_I64, 2)(_U64, _I64, _VECTOR, _U64, _U64))
def _nh_and_order(data, n, previous, keys, blocks):
    """NH of n records as blocks; returns how many have a smaller key than the one before, and how many the same.

    previous = the last key.
    """
    head, tail = previous[0], previous[1]
    bad, same = 0, 0
    for i in range(n):
        at = data + _SIZE * U(i)
        a, b = _head_and_tail(at)
        bad += (a < head) | ((a == head) & (b < tail))
        same += (a == head) & (b == tail)
        head, tail = a, b
        nh_record(at, U(0), keys, blocks + U(16) * U(i))
    previous[0], previous[1] = head, tail
    return bad, same


@kernel(types.int64(_U64, _I64, _I64, _I64, _VECTOR))
def _list_tied(data, n, low, high, picks):
    """List the records among low..high - 1 of n whose key the one before or after has too; return how many."""
    count = 0
    for i in range(low, high):
        head, tail = _head_and_tail(data + _SIZE * U(i))
        tied = 0
        for k in (max(i - 1, 0), min(i + 1, n - 1)):
            a, b = _head_and_tail(data + _SIZE * U(k))
            tied |= (k != i) & (a == head) & (b == tail)
        picks[count] = i
        count += tied
    return count


@kernel(types.int64(_U64, _I64, _I64, _VECTOR, _VECTOR, _U64, _VECTOR))
def _list_with_keys(data, low, high, heads, tails, size, picks):
    """List the records low..high - 1 whose key is among the first ``size`` of a list; return how many."""
    count = 0
    for i in range(low, high):
        head, tail = _head_and_tail(data + _SIZE * U(i))
        k = min(_rank(heads, tails, head, tail), size)
        picks[count] = i
        if k and heads[k - U(1)] == head and tails[k - U(1)] == tail:
            count += 1
    return count


@kernel(types.int64(_U64, _VECTOR, _I64, types.int64[::1], _VECTOR, _VECTOR))
def _witness_defects(data, picks, n, maps, places, state):
    """How many of n tied records do not come after the one before by (key, map, place); state = that one's."""
    head, tail, map_before, place_before = state[0], state[1], state[2], state[3]
    bad = 0
    for i in range(n):
        a, b = _head_and_tail(data + _SIZE * picks[i])
        m, place = U(maps[i]), places[i]
        after = (m > map_before) | ((m == map_before) & (place > place_before))
        bad += (a == head) & (b == tail) & (not after)
        head, tail, map_before, place_before = a, b, m, place
    state[0], state[1], state[2], state[3] = head, tail, map_before, place_before
    return bad


class SortedSum(NamedTuple):
    """What a stretch of a part adds up to.

    Attributes:
        sum: of its records, in any order.
        defects: records whose key is smaller than that of the one before.
        ties: records whose key is that of the one before: their order is not checked.
    """

    sum: Sum
    defects: int
    ties: int


class _Records:
    """Scratch for records under one key, a batch at a time: where they lie, and what kernels fill."""

    def __init__(self, records: U8Array, key: bytes, level: str) -> None:
        self.data = _record_bytes(records)
        self.begin, self.n = address(self.data), self.data.size // RECORD_BYTES
        self._hasher = Hasher(key, level)
        self._blocks = np.zeros((BATCH + BLOCKS, 2), np.uint64)
        self.picks, self.places = np.zeros((2, BATCH + 1), np.uint64)
        self.ids = np.zeros(BATCH, np.int64)
        self.keys, self.blocks = self._hasher.keys, address(self._blocks)

    def batches(self) -> Iterator[tuple[int, int, int]]:
        """(number, address, records) of each batch."""
        for low in range(0, self.n, BATCH):
            yield low, self.begin + low * RECORD_BYTES, min(BATCH, self.n - low)

    def finish(self, n: int) -> int:
        """Turn the NH of n records into their hashes; return where these are."""
        self._hasher.encrypt(self._blocks, n, RECORD)
        return self.blocks


def _record_bytes(records: U8Array) -> U8Array:
    if not isinstance(records, np.ndarray) or records.dtype != np.uint8 or not records.flags.c_contiguous:
        raise ValueError("records must be a contiguous array of uint8")
    if records.size % RECORD_BYTES:
        raise ValueError(f"records have {records.size} bytes, not a multiple of {RECORD_BYTES}")
    return records.reshape(-1)


def _key_list(keys: U8Array, name: str, strictly: bool) -> tuple[U64Array, U64Array]:
    """(heads, tails) of ascending keys u8[m, 10], filled up to 16^k - 1 with the last possible one."""
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(f"{name} must be uint8[m, {KEY_BYTES}]")
    size = _WAYS ** (-(-keys.shape[0].bit_length() // 4)) - 1
    heads, tails = np.full((2, size), 2**64 - 1, np.uint64)
    for target, columns in ((heads, keys[:, :8]), (tails, keys[:, 2:])):
        target[: keys.shape[0]] = np.ascontiguousarray(columns).view(">u8").reshape(-1)
    before, after = slice(0, max(keys.shape[0] - 1, 0)), slice(1, keys.shape[0])
    below = (heads[before] > heads[after]) | ((heads[before] == heads[after]) & (tails[before] > tails[after]))
    equal = (heads[before] == heads[after]) & (tails[before] == tails[after])
    if below.any() or (strictly and equal.any()):
        raise ValueError(f"{name} must {'ascend' if strictly else 'not decrease'}")
    return heads, tails


def sum_split(records: U8Array, splits: U8Array, key: bytes, *, placed: bool = False, level: str = LEVEL) -> list[Sum]:
    """Add up the records of a split by partition: what each block of its map has to add up to.

    Args:
        records: u8[n, 100], or as many bytes; may be read-only and mapped.
        splits: u8[R - 1, 10], never decreasing; a record's partition is the number of those that are <= its key.
        key: 32 bytes.
        placed: each in its place, its number within its partition; else in any order.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        ValueError: wrong shapes or dtypes, splits that decrease or are too many, or a key of another length.
    """
    heads, tails = _key_list(splits, "splits", strictly=False)
    if splits.shape[0] >= PARTITIONS_MAX:
        raise ValueError(f"{splits.shape[0] + 1} partitions are more than {PARTITIONS_MAX}")
    work = _Records(records, key, level)
    counts = np.zeros(splits.shape[0] + 1, np.int64)
    sums = np.zeros((counts.size, 3), np.uint64)
    for _, at, n in work.batches():
        _nh_by_partition(at, n, heads, tails, placed, counts, work.ids, work.keys, work.blocks)
        add_at(work.finish(n), work.ids, n, sums)
    return [sum_of(row) for row in sums]


def sum_records(records: U8Array, key: bytes, *, first: int | None = None, level: str = LEVEL) -> Sum:
    """Add up records: in any order, or in the places first, first + 1, and so on.

    Args:
        records: u8[n, 100], or as many bytes; may be read-only and mapped.
        key: 32 bytes. level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        ValueError: wrong shape or dtype, or a key of another length.
    """
    work, total = _Records(records, key, level), np.zeros(3, np.uint64)
    for low, at, n in work.batches():
        if first is not None:
            work.places[:n] = np.arange(first + low, first + low + n, dtype=np.uint64)
        _nh_of_all(at, n, work.places, work.keys, work.blocks)
        add_blocks(work.finish(n), n, total)
    return sum_of(total)


def sum_sorted(records: U8Array, key: bytes, *, previous: bytes = b"", level: str = LEVEL) -> SortedSum:
    """Add up the records of a part, or of a stretch of it, in any order, and compare neighbours.

    Args:
        records: u8[n, 100], or as many bytes; may be read-only and mapped.
        key: 32 bytes.
        previous: sort key of 10 bytes before the first record; empty for none.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        ValueError: wrong shape or dtype, or keys of another length.
    """
    if len(previous) not in (0, KEY_BYTES):
        raise ValueError(f"a sort key has {KEY_BYTES} bytes, not {len(previous)}")
    work, total, defects, ties = _Records(records, key, level), np.zeros(3, np.uint64), 0, 0
    before = previous or bytes(work.data[:KEY_BYTES])
    state = np.array([int.from_bytes(before[:8], "big"), int.from_bytes(before[2:], "big")], np.uint64)
    for _, at, n in work.batches():
        bad, same = _nh_and_order(at, n, state, work.keys, work.blocks)
        defects, ties = defects + int(bad), ties + int(same)
        add_blocks(work.finish(n), n, total)
    return SortedSum(sum_of(total), defects, ties - (not previous and work.n > 0))


def tied_keys(records: U8Array) -> U8Array:
    """Return the keys that more than one record of a sorted part has, ascending: u8[t, 10]."""
    work = _Records(records, bytes(32), LEVEL)
    found = [np.empty((0, KEY_BYTES), np.uint8)]
    for low, _, n in work.batches():
        count = _list_tied(work.begin, work.n, low, low + n, work.picks)
        found.append(work.data.reshape(-1, RECORD_BYTES)[work.picks[:count].astype(np.int64), :KEY_BYTES])
    return np.unique(np.concatenate(found), axis=0)


def sum_tied(records: U8Array, tied: U8Array, key: bytes, *, level: str = LEVEL) -> Sum:
    """Add up those records of a split whose keys are tied, each in its place, its number in the split.

    Args:
        records: u8[n, 100], or as many bytes; may be read-only and mapped.
        tied: u8[t, 10], ascending, of :func:`tied_keys`.
        key: 32 bytes. level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        ValueError: wrong shapes or dtypes, tied keys that do not ascend, or a key of another length.
    """
    heads, tails = _key_list(tied, "tied", strictly=True)
    work, total = _Records(records, key, level), np.zeros(3, np.uint64)
    for low, _, n in work.batches() if heads.size else ():
        count = _list_with_keys(work.begin, low, low + n, heads, tails, tied.shape[0], work.picks)
        _nh_of_picks(work.begin, work.picks, work.picks, count, work.keys, work.blocks)
        add_blocks(work.finish(count), count, total)
    return sum_of(total)


def sum_witnessed(
    records: U8Array, maps: U32Array, places: U32Array, map_count: int, key: bytes, *, level: str = LEVEL
) -> tuple[list[Sum], int]:
    """Add up the tied records of a sorted part by map, each in the place that its witness says.

    Args:
        records: u8[n, 100], or as many bytes: a whole part; may be read-only and mapped.
        maps, places: u32[w] each, for each tied record in the order of the part.
        map_count: number of maps, at most 2^20.
        key: 32 bytes. level: of ``check_intrinsics``, for tests; all give the same.

    Returns:
        The sum of each map, and how many tied records do not come after the one before by (key, map, place). If the
        witness is of more or fewer records than are tied, or of a map that does not exist, this is at least 1.

    Raises:
        ValueError: wrong shapes or dtypes, too many maps, or a key of another length.
    """
    for name, witness in (("maps", maps), ("places", places)):
        if not isinstance(witness, np.ndarray) or witness.dtype != np.uint32 or witness.shape != (maps.size,):
            raise ValueError(f"{name} must be uint32[{maps.size}]")
    if not 0 <= map_count <= MAPS_MAX:
        raise ValueError(f"there are at most {MAPS_MAX} maps, not {map_count}")
    work, sums = _Records(records, key, level), np.zeros((map_count, 3), np.uint64)
    if maps.size and int(maps.max()) >= map_count:
        return [sum_of(row) for row in sums], 1
    state, done, defects = np.zeros(4, np.uint64), 0, 0
    for low, _, n in work.batches():
        count = _list_tied(work.begin, work.n, low, low + n, work.picks)
        if done + count > maps.size:
            return [sum_of(row) for row in sums], defects + 1
        work.ids[:count] = maps[done : done + count]
        work.places[:count] = places[done : done + count]
        if count and not done:  # a state that the first record is not compared with: its key is another
            first = work.data[int(work.picks[0]) * RECORD_BYTES :][:KEY_BYTES]
            state[0] = int.from_bytes(bytes(first[:8]), "big") ^ 1
        defects += int(_witness_defects(work.begin, work.picks, count, work.ids, work.places, state))
        _nh_of_picks(work.begin, work.picks, work.places, count, work.keys, work.blocks)
        add_at(work.finish(count), work.ids, count, sums)
        done += count
    return [sum_of(row) for row in sums], defects + (done != maps.size)
