"""Kernels for 100-byte records with 10-byte keys (the sort benchmark's): partition, scatter, sort, gather, merge.

Keys order as unsigned bytes from left to right. In code a key is two overlapping words, each big-endian: ``head`` =
bytes 0..7 and ``tail`` = bytes 2..9. (head, tail) orders as the key does, and no load leaves the record.

Letters in shapes: n = records, R = partitions, k = runs (each run an array of records, in map order).

Sorting: each record becomes one 64-bit word, 40 bits of key above 24 bits of record number, and the words are sorted
(``radix``). The 40 bits are a *window* of the key, normalised by the smallest and largest key that occur, so that a
shared prefix costs nothing:

    d = head - base, base = smallest head, L = bits of (largest head - base)
    L > 24:  window = d >> down, down = max(L - 40, 0);  rest = (d mod 2**down) * 2**16 + bytes 8..9, below 2**40
    L <= 24: window = d * 2**16 + bytes 8..9, which is the whole key: no ties to repair

Records whose windows are equal are sorted again by (rest, number), by the same code; numbers make it stable. More than
2**24 records are sorted in pieces under one window, and merged.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.fingerprint import RECORD_BYTES, permute_fingerprints, record_bytes
from quoreduce_kernels.intrinsics import bswap, copy100, ld16, ld64, prefetch
from quoreduce_kernels.options import kernel, part
from quoreduce_kernels.radix import sort_u64

U8Array = NDArray[np.uint8]
U16Array = NDArray[np.uint16]
U64Array = NDArray[np.uint64]
I64Array = NDArray[np.int64]

KEY_BYTES = 10
PARTITIONS_MAX = 1 << 16  # partition ids are u16
INDEX_BITS = 24
WINDOW_BITS = 64 - INDEX_BITS
PIECE_RECORDS_MAX = 1 << INDEX_BITS

_TABLE_BITS = 14  # split table: 2**14 + 2 entries of 4 bytes, 64 KiB, stays in L2
_AHEAD = 16  # records between prefetch and copy in a gather; a power of two
_LOCATOR_ENTRIES = 4096
_U = np.uint64
_INDEX = np.uint64((1 << INDEX_BITS) - 1)
_INDEX_SHIFT = np.uint64(INDEX_BITS)
_SIZE = np.uint64(RECORD_BYTES)
_ONE = np.uint64(1)


@part
def _head(address):
    return bswap(ld64(address))


@part
def _tail(address):
    return bswap(ld64(address + _U(2)))


@part
def _last_two(address):
    """Bytes 8 and 9 of the key, big-endian."""
    x = ld16(address + _U(8))
    return ((x & _U(0xFF)) << _U(8)) | (x >> _U(8))


@kernel("void(u8, i8, u8, u8, u8, u4[::1], u8[::1], u8[::1], u2[::1], i8[::1])")
def _partition(data, n, base, shift, cap, table, heads, tails, ids, counts):
    """Partition of each record = number of split keys (heads, tails) that are <= its key.

    table[j + 1] = (first | last << 16): for a key with (head - base) >> shift = j at least ``first`` and at most
    ``last`` split keys are <= it; table[0] is for heads below base. A search decides where the two differ.
    """
    for i in range(n):
        at = data + _SIZE * _U(i)
        head = _head(at)
        j = min((head - base) >> shift, cap) + _ONE
        if head < base:
            j = _U(0)
        entry = table[j]
        low, high = np.int64(entry & np.uint32(0xFFFF)), np.int64(entry >> np.uint32(16))
        if low != high:
            tail = _tail(at)
            while low < high:
                middle = (low + high) >> 1
                if heads[middle] < head or (heads[middle] == head and tails[middle] <= tail):
                    low = middle + 1
                else:
                    high = middle
        ids[i] = low
    for i in range(n):
        counts[ids[i]] += 1


@kernel("void(u2[::1], i8[::1])")
def _count(ids, counts):
    for i in range(ids.size):
        counts[ids[i]] += 1


@kernel("void(u8, i8, u2[::1], u8[::1])")
def _scatter(data, n, ids, targets):
    """Append record i to the buffer at targets[ids[i]], which moves on by a record."""
    for i in range(n):
        p = ids[i]
        target = targets[p]
        targets[p] = target + _SIZE
        copy100(target, data + _SIZE * _U(i))


# addresses: u64[k], counts: i64[k], starts: i64[k + 1] (records before each run), locator: i64 table of runs.


@part
def _address(number, addresses, starts, locator, block):
    """Address of a record by its number over all runs: locator[number >> block] is the run where that block starts."""
    run = locator[number >> block]
    while starts[run + 1] <= number:
        run += 1
    return addresses[run] + _SIZE * _U(number - starts[run])


@kernel("UniTuple(u8, 2)(u8[::1], i8[::1], u8[::1])")
def _read_heads(addresses, counts, words):
    """Write the head of every record to words; return the smallest and the largest."""
    smallest, largest = ~_U(0), _U(0)
    q = 0
    for run in range(addresses.size):
        at = addresses[run]
        for _ in range(counts[run]):
            head = _head(at)
            words[q] = head
            smallest, largest = min(smallest, head), max(largest, head)
            q += 1
            at += _SIZE
    return smallest, largest


@kernel("void(u8[::1], u8, u8, i8)")
def _pack(words, base, down, piece):
    """Turn heads into words: window of 40 bits, then the number within the piece."""
    for start in range(0, words.size, piece):
        for i in range(start, min(start + piece, words.size)):
            words[i] = (((words[i] - base) >> down) << _INDEX_SHIFT) | _U(i - start)


@kernel("void(u8[::1], i8[::1], u8[::1], u8, i8)")
def _pack_whole_keys(addresses, counts, words, base, piece):
    """Turn heads into words, for heads within 2**24 of base: the window is the whole key."""
    q = 0
    for run in range(addresses.size):
        at = addresses[run]
        for _ in range(counts[run]):
            key = ((words[q] - base) << _U(16)) | _last_two(at)
            words[q] = (key << _INDEX_SHIFT) | _U(q % piece)
            q += 1
            at += _SIZE


@part
def _rest(address, base, down):
    """What the window leaves of a key: below 2**40."""
    return (((_head(address) - base) & ((_ONE << down) - _ONE)) << _U(16)) | _last_two(address)


@kernel("i8(u8[::1], u8[::1], i8, i8, u8, u8, u8[::1], i8[::1], i8[::1], i8)")
def _repair_ties(words, other, low, high, base, down, addresses, starts, locator, block):
    """Sort each group of equal windows in other[low:high] by (rest, number); return the number of records in groups.

    A word's number counts from ``low``. words is scratch.
    """
    repaired = 0
    i = low
    while i + 1 < high:
        window = other[i] >> _INDEX_SHIFT
        if other[i + 1] >> _INDEX_SHIFT != window:
            i += 1
            continue
        end = i
        smallest, largest = ~_U(0), _U(0)
        while end < high and other[end] >> _INDEX_SHIFT == window:
            number = other[end] & _INDEX
            at = _address(low + np.int64(number), addresses, starts, locator, block)
            word = (_rest(at, base, down) << _INDEX_SHIFT) | number
            words[end] = word
            smallest, largest = min(smallest, word), max(largest, word)
            end += 1
        repaired += end - i
        if smallest >> _INDEX_SHIFT != largest >> _INDEX_SHIFT:  # equal keys are in order already
            sort_u64(words, other, i, end, smallest, largest)
            for j in range(i, end):
                other[j] = (window << _INDEX_SHIFT) | (other[j] & _INDEX)
        i = end
    return repaired


@kernel("void(u8[::1], u8[::1], i8, u8, u8, u8[::1], i8[::1], i8[::1], i8)")
def _merge_pieces(words, order, piece, base, down, addresses, starts, locator, block):
    """Merge sorted pieces of words into order, as numbers over all records; among equals the earlier piece first."""
    n = words.size
    pieces = (n + piece - 1) // piece
    cursor = np.empty(pieces, np.int64)
    for p in range(pieces):
        cursor[p] = p * piece
    for i in range(n):
        best, best_window, best_number = -1, _U(0), 0
        for p in range(pieces):
            q = cursor[p]
            if q >= min((p + 1) * piece, n):
                continue
            window = words[q] >> _INDEX_SHIFT
            number = p * piece + np.int64(words[q] & _INDEX)
            better = best < 0 or window < best_window
            if not better and window == best_window:
                mine = _rest(_address(number, addresses, starts, locator, block), base, down)
                better = mine < _rest(_address(best_number, addresses, starts, locator, block), base, down)
            if better:
                best, best_window, best_number = p, window, number
        cursor[best] += 1
        order[i] = _U(best_number)


@kernel("void(u8[::1], u8, i8, i8, u8[::1], i8[::1], i8[::1], i8, u8)")
def _gather(order, mask, low, high, addresses, starts, locator, block, target):
    """Copy records order[low:high] to target, asking for each record _AHEAD records before it is copied."""
    ring = np.empty(_AHEAD, np.uint64)
    for i in range(low - _AHEAD, high):
        slot = (i + _AHEAD - low) & (_AHEAD - 1)
        source = ring[slot]
        if i + _AHEAD < high:
            at = _address(np.int64(order[i + _AHEAD] & mask), addresses, starts, locator, block)
            ring[slot] = at
            prefetch(at)
            prefetch(at + _U(64))
            prefetch(at + _U(99))
        if i >= low:
            copy100(target, source)
            target += _SIZE


# A tree of losers (Knuth, TAOCP 3, 5.4.1): leaf of run r is node k + r, tree[node] the loser there, tree[0] the winner.


@part
def _beats(a, b, done, heads, tails):
    """Whether run a goes before run b: not used up, smaller key, earlier run."""
    if done[a] != done[b]:
        return done[a] < done[b]
    if heads[a] != heads[b]:
        return heads[a] < heads[b]
    if tails[a] != tails[b]:
        return tails[a] < tails[b]
    return a < b


@part
def _load_run(run, position, ends, done, heads, tails):
    at = position[run]
    if at >= ends[run]:
        done[run] = 1
    else:
        heads[run], tails[run] = _head(at), _tail(at)
        prefetch(at + _U(512))


@kernel("void(u8[::1], u8[::1], u1[::1], u8[::1], u8[::1], i8[::1])")
def _merge_start(position, ends, done, heads, tails, tree):
    """Play the first matches."""
    k = position.size
    winners = np.empty(2 * k, np.int64)
    for run in range(k):
        done[run] = 0
        _load_run(run, position, ends, done, heads, tails)
        winners[k + run] = run
    for node in range(k - 1, 0, -1):
        a, b = winners[2 * node], winners[2 * node + 1]
        wins = _beats(a, b, done, heads, tails)
        winners[node], tree[node] = (a, b) if wins else (b, a)
    tree[0] = winners[1]


@kernel("i8(u8[::1], u8[::1], u1[::1], u8[::1], u8[::1], i8[::1], u8, i8)")
def _merge_next(position, ends, done, heads, tails, tree, target, limit):
    """Copy up to ``limit`` records in order to target; return how many."""
    k = position.size
    for i in range(limit):
        winner = tree[0]
        if done[winner]:
            return i
        copy100(target, position[winner])
        target += _SIZE
        position[winner] += _SIZE
        _load_run(winner, position, ends, done, heads, tails)
        node = (winner + k) >> 1
        while node > 0:
            if _beats(tree[node], winner, done, heads, tails):
                winner, tree[node] = tree[node], winner
            node >>= 1
        tree[0] = winner
    return limit


def _records_2d(records: object) -> U8Array:
    return record_bytes(records).reshape(-1, RECORD_BYTES)


def _key_words(keys: U8Array) -> tuple[U64Array, U64Array]:
    """Return head and tail, u64[m] each, of keys u8[m, 10]."""
    heads = np.ascontiguousarray(keys[:, :8]).view(">u8").reshape(-1).astype(np.uint64)
    tails = np.ascontiguousarray(keys[:, 2:]).view(">u8").reshape(-1).astype(np.uint64)
    return heads, tails


def _check_keys(keys: U8Array, name: str) -> None:
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint8 or keys.ndim != 2 or keys.shape[1] != KEY_BYTES:
        raise ValueError(f"{name} must be uint8[m, {KEY_BYTES}]")


def sample_keys(records: object, count: int) -> U8Array:
    """Return the keys at ``count`` regular positions: u8[m, 10], m = min(count, n).

    Key i is that of record (2 * i + 1) * n // (2 * m): the middles of m equal stretches; the same for equal input.
    """
    rows = _records_2d(records)
    m = min(count, rows.shape[0])
    if m <= 0:
        return np.empty((0, KEY_BYTES), np.uint8)
    positions = (2 * np.arange(m, dtype=np.int64) + 1) * rows.shape[0] // (2 * m)
    return np.ascontiguousarray(rows[positions, :KEY_BYTES])


def choose_splits(sample: U8Array, partitions: int) -> U8Array:
    """Choose R - 1 split keys that cut a sample of keys, in any order, into R equal parts.

    Args:
        sample: u8[m, 10].
        partitions: R, 1 to 65536.

    Returns:
        u8[R - 1, 10], never decreasing. Split i is the sample's key of rank i * m // R; with an empty sample all are
        zero.
    """
    _check_keys(sample, "sample")
    if not 1 <= partitions <= PARTITIONS_MAX:
        raise ValueError(f"there are 1 to {PARTITIONS_MAX} partitions, not {partitions}")
    m = sample.shape[0]
    if m == 0:
        return np.zeros((partitions - 1, KEY_BYTES), np.uint8)
    heads, tails = _key_words(sample)
    ranks = np.arange(1, partitions, dtype=np.int64) * m // partitions
    return np.ascontiguousarray(sample[np.lexsort((tails, heads))[ranks]])


def _split_table(heads: U64Array) -> tuple[int, int, int, NDArray[np.uint32]]:
    """Return (base, shift, cap, table) for :func:`_partition` from the heads of the splits; there is at least one."""
    base, top = int(heads[0]), int(heads[-1])
    shift = max((top - base).bit_length() - _TABLE_BITS, 0)
    cells = ((top - base) >> shift) + 1
    starts = _U(base) + (np.arange(cells, dtype=np.uint64) << _U(shift))
    width = _U((1 << shift) - 1)
    ends = starts + np.minimum(width, ~_U(0) - starts)
    first = np.searchsorted(heads, starts, "left")
    last = np.searchsorted(heads, ends, "right")
    table = np.zeros(cells + 2, np.uint32)
    table[1:-1] = first | last << 16
    table[-1] = heads.size | heads.size << 16
    return base, shift, cells, table


def plan_partition(records: object, splits: U8Array) -> tuple[U16Array, I64Array]:
    """Return (ids, counts): the partition of each record, and the number of records of each partition.

    A record's partition is the number of split keys <= its key, bytes compared as unsigned numbers: equal keys share
    one.

    Args:
        records: u8[n, 100], or as many bytes.
        splits: u8[R - 1, 10], never decreasing; R is at most 65536.

    Returns:
        ids u16[n], counts i64[R].

    Raises:
        ValueError: for wrong shapes or dtypes, or splits that decrease.
    """
    flat = record_bytes(records)
    _check_keys(splits, "splits")
    if splits.shape[0] >= PARTITIONS_MAX:
        raise ValueError(f"{splits.shape[0] + 1} partitions are more than {PARTITIONS_MAX}")
    n = flat.size // RECORD_BYTES
    counts = np.zeros(splits.shape[0] + 1, np.int64)
    if splits.shape[0] == 0:
        counts[0] = n
        return np.zeros(n, np.uint16), counts
    heads, tails = _key_words(splits)
    if bool(((heads[1:] < heads[:-1]) | ((heads[1:] == heads[:-1]) & (tails[1:] < tails[:-1]))).any()):
        raise ValueError("split keys must not decrease")
    ids = np.empty(n, np.uint16)
    base, shift, cap, table = _split_table(heads)
    _partition(flat.ctypes.data, n, base, shift, cap, table, heads, tails, ids, counts)
    return ids, counts


def scatter(records: object, ids: U16Array, dests: Sequence[U8Array]) -> None:
    """Copy each record to its partition's buffer, in order: a stable distribution.

    Args:
        records: u8[n, 100], or as many bytes.
        ids: u16[n], partition of each record.
        dests: R writable buffers of u8, C-contiguous, ``dests[p]`` of exactly 100 bytes for each record of partition
            p. They
            may lie anywhere, but must overlap neither each other nor the records.

    Raises:
        ValueError: for wrong shapes or dtypes, an id of R or more, or a buffer of another size.
    """
    flat = record_bytes(records)
    n = flat.size // RECORD_BYTES
    if ids.dtype != np.uint16 or ids.shape != (n,) or not ids.flags.c_contiguous:
        raise ValueError(f"ids must be C-contiguous uint16[{n}], not {ids.dtype}{list(ids.shape)}")
    counts = np.zeros(PARTITIONS_MAX, np.int64)
    _count(ids, counts)
    if counts[len(dests) :].any():
        raise ValueError(f"ids name partitions beyond the {len(dests)} buffers")
    targets = np.zeros(max(len(dests), 1), np.uint64)
    for p, dest in enumerate(dests):
        if dest.dtype != np.uint8 or not (dest.flags.c_contiguous and dest.flags.writeable):
            raise ValueError(f"buffer {p} must be writable C-contiguous uint8")
        if dest.nbytes != counts[p] * RECORD_BYTES:
            raise ValueError(f"buffer {p} has {dest.nbytes} bytes for {counts[p]} records of {RECORD_BYTES}")
        targets[p] = dest.ctypes.data
    _scatter(flat.ctypes.data, n, ids, targets)


def _output_records(out: U8Array | None, n: int) -> U8Array:
    if out is None:
        return np.empty((n, RECORD_BYTES), np.uint8)
    if out.dtype != np.uint8 or out.nbytes != n * RECORD_BYTES or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be writable C-contiguous uint8 of {n * RECORD_BYTES} bytes, not {out.nbytes}")
    return out


class RunSorter:
    """Sorts records that lie in several runs by (key, run, position in the run) without moving them; then gathers them.

    Scratch (16 bytes a record) is kept between calls. The runs of the last :meth:`sort` are kept alive until the next.
    """

    def __init__(self, piece_records_max: int = PIECE_RECORDS_MAX) -> None:
        """Sort at most ``piece_records_max`` records at once (2**24 at most); larger inputs in pieces, then merged."""
        if not 1 <= piece_records_max <= PIECE_RECORDS_MAX:
            raise ValueError(f"a piece has 1 to {PIECE_RECORDS_MAX} records, not {piece_records_max}")
        self._piece = piece_records_max
        self._scratch = (np.empty(0, np.uint64), np.empty(0, np.uint64))
        self._set_runs([])
        self._order = np.empty(0, np.uint64)
        self._mask = 0
        self.ties_repaired = 0

    @property
    def records(self) -> int:
        """Number of records sorted last."""
        return int(self._starts[-1])

    def order(self) -> U64Array:
        """Return the numbers of the records (over all runs, in run order) in sorted order: u64[n]."""
        return self._order & _U(self._mask)

    def sort(self, runs: Sequence[object]) -> int:
        """Sort ``runs``, each u8[n_i, 100] or as many bytes; return n, the number of records.

        Raises:
            ValueError: if a run is not C-contiguous u8 of whole records.
        """
        self._set_runs([record_bytes(run, f"run {i}") for i, run in enumerate(runs)])
        n = self.records
        words, other = self._reserve(n)
        self._order, self._mask, self.ties_repaired = other, (1 << INDEX_BITS) - 1, 0
        if n == 0:
            return 0
        smallest, largest = _read_heads(self._addresses, self._counts, words)
        bits = int(largest - smallest).bit_length()
        down = max(bits - WINDOW_BITS, 0)
        if bits <= WINDOW_BITS - 16:
            _pack_whole_keys(self._addresses, self._counts, words, smallest, self._piece)
            window_max = (int(largest - smallest) << 16) + 0xFFFF
        else:
            _pack(words, smallest, down, self._piece)
            window_max = int(largest - smallest) >> down
        word_max = (window_max << INDEX_BITS) | ((1 << INDEX_BITS) - 1)
        for low in range(0, n, self._piece):
            high = min(low + self._piece, n)
            sort_u64(words, other, low, high, 0, word_max)
            if bits > WINDOW_BITS - 16:
                self.ties_repaired += _repair_ties(words, other, low, high, smallest, down, *self._where)
        if n > self._piece:
            # the rest of a whole-key window is the same bytes again: comparing it decides nothing, and costs little
            _merge_pieces(other, words, self._piece, smallest, down, *self._where)
            self._order, self._mask = words, (1 << 64) - 1
        return n

    def gather(self, low: int, high: int, out: U8Array | None = None) -> U8Array:
        """Copy the sorted records ``low``..``high`` (exclusive) to ``out``, u8 of (high - low) * 100 bytes; return it.

        About 10,000 records at a time keep the chunk in cache for the code that hashes or writes it next.
        """
        if not 0 <= low <= high <= self.records:
            raise ValueError(f"records {low}..{high} are not within 0..{self.records}")
        out = _output_records(out, high - low)
        if low < high:
            _gather(self._order, self._mask, low, high, *self._where, out.ctypes.data)
        return out

    def permute(self, values: U64Array, out: U64Array | None = None) -> U64Array:
        """Return fingerprints u64[n, 2] of the records, given in run order, in sorted order."""
        if values.shape != (self.records, 2):
            raise ValueError(f"values must be uint64[{self.records}, 2], not {values.dtype}{list(values.shape)}")
        return permute_fingerprints(values, self._order, self._mask, out)

    def release(self) -> None:
        """Let go of the runs, which may be mapped files; keep the scratch."""
        self.sort([])

    def _set_runs(self, runs: list[U8Array]) -> None:
        self._runs = runs
        self._addresses = np.array([run.ctypes.data for run in runs], np.uint64)
        self._counts = np.array([run.size // RECORD_BYTES for run in runs], np.int64)
        self._starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(self._counts)))
        n = int(self._starts[-1])
        block = max(n.bit_length() - _LOCATOR_ENTRIES.bit_length() + 1, 0)
        firsts = np.arange((n >> block) + 1, dtype=np.int64) << block
        locator = np.searchsorted(self._starts[1:], firsts, "right").astype(np.int64)
        self._where = (self._addresses, self._starts, locator, block)

    def _reserve(self, n: int) -> tuple[U64Array, U64Array]:
        if self._scratch[0].size < n:
            self._scratch = (np.empty(n, np.uint64), np.empty(n, np.uint64))
        return self._scratch[0][:n], self._scratch[1][:n]


class RunMerger:
    """Merges sorted runs of records, chunk by chunk; among equal keys the earlier run goes first."""

    def __init__(self, runs: Sequence[object]) -> None:
        """Start a merge of ``runs``, each u8[n_i, 100] or as many bytes, sorted by key (not checked)."""
        self._runs = [record_bytes(run, f"run {i}") for i, run in enumerate(runs)]
        k = len(runs)
        self.records = sum(run.size for run in self._runs) // RECORD_BYTES
        position = np.array([run.ctypes.data for run in self._runs], np.uint64)
        ends = position + np.array([run.size for run in self._runs], np.uint64)
        done, heads, tails = np.ones(k, np.uint8), np.zeros(k, np.uint64), np.zeros(k, np.uint64)
        self._state = (position, ends, done, heads, tails, np.zeros(k, np.int64))
        if k:
            _merge_start(*self._state)

    def next(self, out: U8Array) -> int:
        """Fill ``out`` (writable u8 of whole records) with the next records; return how many, 0 at the end."""
        if out.nbytes % RECORD_BYTES:
            raise ValueError(f"out has {out.nbytes} bytes, not a multiple of {RECORD_BYTES}")
        room = _output_records(out, out.nbytes // RECORD_BYTES).nbytes // RECORD_BYTES
        return int(_merge_next(*self._state, out.ctypes.data, room)) if self._runs else 0
