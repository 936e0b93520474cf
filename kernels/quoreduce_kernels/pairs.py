"""Records with a key and a value of any length: from lines or columns to rows, partitions, sorted order and text.

A *row* is four numbers, u64: address and length of a key, address and length of its value. Rows stand for records
wherever these lie (a mapped file, columns of a block), so that one set of kernels serves all of them, and records are
moved once: to their partition, or to the output. ``Rows`` keeps alive what its addresses point into.

Letters in shapes: n = rows, R = partitions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import (
    address_of,
    byte_mask,
    copy_memory,
    find_byte,
    last_block,
    ld8,
    ld64,
    mulhi,
    popcount,
    prefetch,
    st8,
    st64,
)
from quoreduce_kernels.options import kernel, part
from quoreduce_kernels.pair_order import sort_rows
from quoreduce_kernels.word_tables import hash_word, offsets_fault

U8Array = NDArray[np.uint8]
U16Array = NDArray[np.uint16]
U64Array = NDArray[np.uint64]
I64Array = NDArray[np.int64]
Columns = tuple[I64Array, U8Array, I64Array, U8Array]

PARTITIONS_MAX = 1 << 16  # partition numbers are u16
TAB, LINE_FEED, RETURN = 9, 10, 13
ROWS_FIRST = 1 << 10  # of lines in a text of unknown length of lines
LINE_BYTES_USUAL = 256
_AHEAD = 8  # rows between a prefetch and its use
_FAR = 16
_NEAR = 4
_LINES_AHEAD = 16  # cache lines of a value that are asked for; the CPU's own prefetcher sees the rest coming
_KEY, _VALUE = 0, 2
_U = np.uint64
_BLOCK = np.uint64(64)


@kernel("i8(u8[::1], u8, u8[:, ::1])")
def _lines(cursor, end, rows):
    """Make rows of the lines from cursor[0] on, which moves on, until there is no more or rows are full; return how
    many.
    """
    at = cursor[0]
    last = last_block(at, end) if at < end else _U(0)
    n = 0
    while at < end and n < rows.shape[0]:
        stop = find_byte(at, end, last, _U(LINE_FEED))
        line_end = stop
        if at < stop < end and ld8(stop - _U(1)) == _U(RETURN):
            line_end -= _U(1)
        tab = find_byte(at, line_end, last, _U(TAB))
        value = min(tab + _U(1), line_end)
        rows[n, 0] = at
        rows[n, 1] = tab - at
        rows[n, 2] = value
        rows[n, 3] = line_end - value
        at = stop + _U(1)
        n += 1
    cursor[0] = at
    return n


@kernel("i8(u8, u8, u8)")
def _count(at, end, byte):
    total = _U(0)
    while end - at >= _BLOCK:
        total += popcount(byte_mask(at, byte))
        at += _BLOCK
    while at < end:
        total += _U(ld8(at) == byte)
        at += _U(1)
    return np.int64(total)


@kernel("void(u8, u8, u8, u8, u8[:, ::1])")
def _columns(key_offsets, keys, value_offsets, values, rows):
    """Make rows of two binary columns."""
    key, value = ld64(key_offsets), ld64(value_offsets)
    for i in range(rows.shape[0]):
        at = _U(8) * _U(i + 1)
        next_key, next_value = ld64(key_offsets + at), ld64(value_offsets + at)
        rows[i, 0] = keys + key
        rows[i, 1] = next_key - key
        rows[i, 2] = values + value
        rows[i, 3] = next_value - value
        key, value = next_key, next_value


@kernel("void(u8[:, ::1], u8, u2[::1], i8[:, ::1])")
def _partition(rows, partitions, ids, totals):
    """ids[i] = (hash64(key) * R) >> 64; totals[p] += (1, bytes of key, bytes of value)."""
    n = rows.shape[0]
    for i in range(n):
        if i + _FAR < n:
            prefetch(rows[i + _FAR, 0])
        length = rows[i, 1]
        p = mulhi(hash_word(rows[i, 0], length), partitions)
        ids[i] = p
        totals[p, 0] += 1
        totals[p, 1] += np.int64(length)
        totals[p, 2] += np.int64(rows[i, 3])


@part
def _append(cursor, source, length):
    """Append a value to the column at ``cursor`` = (next place in offsets, place of the data, bytes so far)."""
    copy_memory(cursor[1] + cursor[2], source, length)
    cursor[2] += length
    st64(cursor[0], cursor[2])
    cursor[0] += _U(8)


@part
def _ask_for(address, length):
    """Prefetch the first bytes of a value."""
    lines = min((length + _U(63)) >> _U(6), _U(_LINES_AHEAD))
    for k in range(lines):
        prefetch(address + _BLOCK * k)


@kernel("void(u8[:, ::1], u2[::1], u8[:, :, ::1])")
def _scatter(rows, ids, cursors):
    """Append row i to the columns at cursors[ids[i]]."""
    n = rows.shape[0]
    for i in range(n):
        if i + _NEAR < n:
            prefetch(rows[i + _NEAR, 0])
            prefetch(rows[i + _NEAR, 2])
        p = ids[i]
        _append(cursors[p, 0], rows[i, 0], rows[i, 1])
        _append(cursors[p, 1], rows[i, 2], rows[i, 3])


@kernel("void(u2[::1], i8[::1], u8[::1])")
def _by_partition(ids, places, order):
    """Row numbers by partition, in order within each; places[p] = where partition p begins."""
    for i in range(ids.size):
        p = ids[i]
        order[places[p]] = i
        places[p] += 1


@kernel("i8(u8[:, ::1], u8[::1], i8, i8, i8[::1], u8, u8)")
def _gather(rows, order, high, column, state, target, room):
    """Copy values order[state[0]:high] of a column, the first from byte state[1] on, to ``target``, until it is full.

    state moves on; returns the number of bytes.
    """
    done = _U(0)
    i, skip = state[0], _U(state[1])
    while i < high and done < room:
        if i + _NEAR < high:
            near = order[i + _NEAR]
            _ask_for(rows[near, column], rows[near, column + 1])
        r = order[i]
        size = min(rows[r, column + 1] - skip, room - done)
        copy_memory(target + done, rows[r, column] + skip, size)
        done += size
        skip += size
        if skip == rows[r, column + 1]:
            i += 1
            skip = _U(0)
    state[0], state[1] = i, np.int64(skip)
    return np.int64(done)


@kernel("UniTuple(i8, 2)(u8[:, ::1], u8[::1], i8, u8, u8)")
def _text(rows, order, low, target, room):
    """Write rows order[low:] as ``key TAB value LF`` as long as they fit in whole; return (rows, bytes) written."""
    n = order.size
    at = target
    i = low
    while i < n:
        if i + _AHEAD < n:
            prefetch(address_of(rows) + _U(32) * order[i + _AHEAD])
        if i + _NEAR < n:
            near = order[i + _NEAR]
            prefetch(rows[near, 0])
            _ask_for(rows[near, 2], rows[near, 3])
        r = order[i]
        key_bytes, value_bytes = rows[r, 1], rows[r, 3]
        if at + key_bytes + value_bytes + _U(2) > target + room:
            break
        copy_memory(at, rows[r, 0], key_bytes)
        at += key_bytes
        st8(at, _U(TAB))
        copy_memory(at + _U(1), rows[r, 2], value_bytes)
        at += value_bytes + _U(1)
        st8(at, _U(LINE_FEED))
        at += _U(1)
        i += 1
    return i - low, np.int64(at - target)


@kernel("i8(i8, f4, i8[::1])")
def _keep(seen_max, share, positions):
    """The load generator's rule; fills positions as far as they go, returns how many there are."""
    kept = 0
    for seen in range(1, seen_max + 1):
        while np.float32(kept) / np.float32(seen) < share:
            if kept < positions.size:
                positions[kept] = seen - 1
            kept += 1
    return kept


def _bytes(name: str, data: Any) -> U8Array:
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 1 or not data.flags.c_contiguous:
        raise ValueError(f"{name} must be a contiguous vector of uint8")
    return data


class Rows:
    """Records as rows: ``table`` u64[n, 4]; what its addresses point into lives as long as it does."""

    __slots__ = ("_kept", "table")

    def __init__(self, table: U64Array, kept: tuple[object, ...]) -> None:
        self.table = table
        self._kept = kept

    def __len__(self) -> int:
        return int(self.table.shape[0])

    @property
    def key_bytes(self) -> int:
        """Bytes of all keys."""
        return int(self.table[:, 1].sum())

    @property
    def value_bytes(self) -> int:
        """Bytes of all values."""
        return int(self.table[:, 3].sum())

    def take(self, numbers: NDArray[Any]) -> Rows:
        """Return rows by number, in the order given; a number may come more than once (IndexError if there is no such
        row).
        """
        return Rows(self.table[numbers], self._kept)

    def pairs(self) -> list[tuple[bytes, bytes]]:
        """Return the records as (key, value): for tests and small data."""
        import ctypes

        read = ctypes.string_at
        return [(read(k, kn) if kn else b"", read(v, vn) if vn else b"") for k, kn, v, vn in self.table.tolist()]


def lines(data: U8Array) -> Rows:
    r"""Return the lines of a text as rows: key = what is before the first tab, value = what is after it.

    A line ends with ``\n`` or ``\r\n``, the last may lack it; a line without a tab is a key with an empty value.

    Args:
        data: u8[bytes]; may be read-only.

    Raises:
        ValueError: data is not contiguous u8.
    """
    _bytes("data", data)
    begin = data.ctypes.data
    cursor, end = np.array([begin], np.uint64), begin + data.size
    table = np.empty((ROWS_FIRST + data.size // LINE_BYTES_USUAL, 4), np.uint64)
    n = _lines(cursor, end, table)
    while int(cursor[0]) < end:
        done = int(cursor[0]) - begin
        rate = n / done  # of the lines so far
        more = np.empty((n + ROWS_FIRST + int(1.2 * rate * (data.size - done)), 4), np.uint64)
        more[:n] = table[:n]
        table = more
        n += _lines(cursor, end, table[n:])
    return Rows(table[:n], (data,))


def count_byte(data: U8Array, byte: int) -> int:
    """Return how often ``byte`` occurs in u8[bytes]."""
    _bytes("data", data)
    return int(_count(data.ctypes.data, data.ctypes.data + data.size, byte))


def count_lines(data: U8Array) -> int:
    """Return the number of lines of u8[bytes]; the last may lack its line feed."""
    return count_byte(data, LINE_FEED) + bool(data.size and data[-1] != LINE_FEED)


def columns(blocks: Sequence[Columns]) -> Rows:
    """Return the records of several blocks, one after the other, as rows.

    Args:
        blocks: (key offsets i64[n + 1], keys u8[...], value offsets i64[n + 1], values u8[...]) each.

    Raises:
        ValueError: wrong dtypes or sizes, or offsets that do not lie in order inside the data.
    """
    counts = []
    for key_offsets, keys, value_offsets, values in blocks:
        counts.append(_column_rows("keys", key_offsets, keys))
        if _column_rows("values", value_offsets, values) != counts[-1]:
            raise ValueError(f"there are {counts[-1]} keys and {len(value_offsets) - 1} values")
    table = np.empty((sum(counts), 4), np.uint64)
    low = 0
    for (key_offsets, keys, value_offsets, values), n in zip(blocks, counts, strict=True):
        addresses = (array.ctypes.data for array in (key_offsets, keys, value_offsets, values))
        _columns(*addresses, table[low : low + n])
        low += n
    return Rows(table, tuple(blocks))


def _column_rows(name: str, offsets: I64Array, data: U8Array) -> int:
    _bytes(name, data)
    if offsets.dtype != np.int64 or offsets.ndim != 1 or not offsets.flags.c_contiguous or offsets.size == 0:
        raise ValueError(f"offsets of {name} must be a contiguous vector of int64, one more than there are {name}")
    fault = offsets_fault(offsets.ctypes.data, offsets.size - 1, data.size)
    if fault >= 0:
        raise ValueError(f"offsets[{fault}] of {name} is not in order inside the {data.size} bytes of data")
    return int(offsets.size) - 1


def partition(rows: Rows, partitions: int) -> tuple[U16Array, I64Array]:
    """Return (ids u16[n], totals i64[R, 3]): each row's partition; records, key bytes and value bytes of each
    partition.

    The partition of a key is (hash64(key) * R) >> 64, as for words (``words.hash64``). R is 1 to 65536, else
    ValueError.
    """
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise ValueError(f"there are 1 to {PARTITIONS_MAX} partitions, not {partitions}")
    ids, totals = np.empty(len(rows), np.uint16), np.zeros((partitions, 3), np.int64)
    _partition(rows.table, partitions, ids, totals)
    return ids, totals


def scatter(rows: Rows, ids: U16Array, targets: Sequence[Columns]) -> None:
    """Copy each record to the columns of its partition, in order.

    Args:
        rows: n rows.
        ids: u16[n], the partition of each.
        targets: R times (key offsets i64[m + 1], keys u8[...], value offsets i64[m + 1], values u8[...]), writable, of
            exactly the sizes that the partition needs; they must overlap neither each other nor the records.

    Raises:
        ValueError: an id of R or more, or columns of another size.
    """
    if ids.dtype != np.uint16 or ids.shape != (len(rows),) or not ids.flags.c_contiguous:
        raise ValueError(f"ids must be C-contiguous uint16[{len(rows)}], not {ids.dtype}{list(ids.shape)}")
    lengths = rows.table[:, 1::2].astype(np.float64)  # exact below 2**53 bytes
    totals = [np.bincount(ids, weights, len(targets)) for weights in (None, lengths[:, 0], lengths[:, 1])]
    if totals[0].size != len(targets):
        raise ValueError(f"ids name partitions beyond the {len(targets)} targets")
    cursors = np.zeros((len(targets), 2, 3), np.uint64)
    for p, target in enumerate(targets):
        for c in (0, 1):
            offsets, data = target[2 * c : 2 * c + 2]
            if offsets.dtype != np.int64 or offsets.shape != (int(totals[0][p]) + 1,) or not offsets.flags.writeable:
                raise ValueError(f"offsets of target {p} must be writable int64[{int(totals[0][p]) + 1}]")
            if _bytes("data", data).size != int(totals[c + 1][p]) or not data.flags.writeable:
                raise ValueError(f"data of target {p} must be writable uint8[{int(totals[c + 1][p])}]")
            offsets[0] = 0
            cursors[p, c] = (offsets.ctypes.data + 8, data.ctypes.data, 0)
    _scatter(rows.table, ids, cursors)


def by_partition(ids: U16Array, totals: I64Array) -> U64Array:
    """Return the row numbers u64[n] ordered by (partition, number), from what :func:`partition` gave."""
    order = np.empty(ids.size, np.uint64)
    ends = np.cumsum(totals[:, 0])
    if ids.size != (ends[-1] if ends.size else 0):
        raise ValueError("totals are not those of ids")
    _by_partition(ids, ends - totals[:, 0], order)
    return order


def column_chunks(rows: Rows, order: U64Array, column: str, chunk: U8Array) -> Iterator[U8Array]:
    """Yield the concatenated keys or values of rows, in ``order``, as views of ``chunk``, all full except the
    last.

    Args:
        rows: n rows.
        order: u64[m], row numbers below n.
        column: ``keys`` or ``values``.
        chunk: u8[size] to fill again and again; a view is good until the next is asked for.
    """
    _check_order(rows, order)
    which = {"keys": _KEY, "values": _VALUE}[column]
    state = np.zeros(2, np.int64)
    _bytes("chunk", chunk)
    while size := _gather(rows.table, order, order.size, which, state, chunk.ctypes.data, chunk.size):
        yield chunk[:size]


def sort(rows: Rows) -> tuple[U64Array, int]:
    """Return (order u64[n], groups): row numbers by (key, number), and how many distinct keys there are. 24 bytes a
    row.
    """
    n = len(rows)
    order = np.empty(n, np.uint64)
    equal = sort_rows(rows.table, order, np.empty(n, np.uint64), np.empty(n, np.uint64))
    return order, n - int(equal)


def text_chunks(rows: Rows, order: U64Array, chunk: U8Array) -> Iterator[tuple[U8Array, int]]:
    r"""Yield (text, number of records): rows in ``order`` as lines ``key TAB value \n``, a chunk at a time.

    Args:
        rows: n rows.
        order: u64[m], row numbers below n.
        chunk: u8[size] to fill again and again; a text is good until the next is asked for. A record that is larger
            than it comes in an array of its own.
    """
    _check_order(rows, order)
    _bytes("chunk", chunk)
    low = 0
    while low < order.size:
        done, size = _text(rows.table, order, low, chunk.ctypes.data, chunk.size)
        target = chunk
        if done == 0:
            row = rows.table[order[low]]
            target = np.empty(int(row[1] + row[3]) + 2, np.uint8)
            done, size = _text(rows.table, order[: low + 1], low, target.ctypes.data, target.size)
        yield target[:size], int(done)
        low += done


def _check_order(rows: Rows, order: U64Array) -> None:
    if order.dtype != np.uint64 or order.ndim != 1 or not order.flags.c_contiguous:
        raise ValueError(f"order must be C-contiguous uint64[m], not {order.dtype}{list(order.shape)}")
    if order.size and int(order.max()) >= len(rows):
        raise ValueError(f"order names rows beyond the {len(rows)} there are")


def keep_positions(seen: int, percent: float) -> I64Array:
    """Return which of ``seen`` records GridMix's load generator keeps: i64[kept], positions from 0, never decreasing.

    For each record: count it as seen; while kept / seen < percent / 100, all in float32: keep it (once more) and count
    it as kept. So the first is always kept, and more than 100 % keeps some of them several times. ``percent`` is 0 to
    10,000, else ValueError. Source: hadoop-mapreduce, GenericMRLoadGenerator.
    """
    if seen < 0 or not 0 <= percent <= 10_000:
        raise ValueError(f"a number of records and a percentage up to 10,000, not {seen} and {percent}")
    share = np.float32(percent) / np.float32(100)
    positions = np.empty(_keep(seen, share, np.empty(0, np.int64)), np.int64)
    _keep(seen, share, positions)
    return positions
