"""Word count: bytes to counted words in one pass, merge of counted runs, and their text form.

Kernels are in ``word_tables`` (which explains how they work) and ``word_order``. What comes out depends on the multiset
of words alone: never on sizes, growth or the history of a table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import SEPARATORS
from quoreduce_kernels.word_order import (
    collect,
    fill_columns,
    fill_text,
    measure_partitions,
    sort_entries,
    text_digits,
)
from quoreduce_kernels.word_tables import (
    ARENA_BYTES_MIN,
    ARENA_SLACK,
    BATCH_BYTES,
    BATCH_WORDS,
    BLOCK_BYTES,
    BUCKET_BYTES,
    BUCKETS_MIN,
    ENTRY_BYTES,
    FILL_MAX,
    FOLD_BYTES,
    GOLDEN,
    HUGE_PAGE_BYTES,
    LONG_WORDS_MIN,
    MERGE_WORDS,
    SCRATCH_BYTES,
    SHORT_BYTES_MAX,
    STATE,
    Columns,
    U,
    add_long,
    count_blocks,
    fold_counts,
    hash_bytes,
    merge_run,
    offsets_fault,
    rebuild_index,
    rehash_short,
)


def _zeros_aligned(nbytes: int) -> NDArray[np.uint8]:
    """Zero bytes whose address is a multiple of 64; of 2 MiB for 4 MiB or more, which numpy asks huge pages for."""
    align = HUGE_PAGE_BYTES if nbytes >= 2 * HUGE_PAGE_BYTES else BUCKET_BYTES
    raw = np.zeros(nbytes + align - 1, np.uint8)
    skip = -raw.ctypes.data % align
    return raw[skip : skip + nbytes]


def _power_of_two(minimum: float) -> int:
    """The smallest power of two that is not less."""
    power = 1
    while power < minimum:
        power *= 2
    return power


class _Table:
    """Short and long table with the state that kernels work on; the only owner of memory here."""

    def __init__(self, sums: bool) -> None:
        """Make empty tables. ``sums``: short values number 64-bit sums (merge) instead of being counts."""
        self.state: Any = np.zeros(1, STATE)[0]
        self._sums = sums
        self._values = np.empty(0, np.uint64)
        self._entries = np.empty(0, np.uint8)
        self._arena = np.empty(0, np.uint8)
        self._scratch = _zeros_aligned(SCRATCH_BYTES)
        self.state["spread"] = GOLDEN if sums else 1
        self.state["scratch"] = self._scratch.ctypes.data
        self._order = np.empty((4, 0), np.uint64)
        self._set_buckets(BUCKETS_MIN)
        self._set_long(LONG_WORDS_MIN)
        self._set_arena(ARENA_BYTES_MIN)

    def _set_buckets(self, buckets: int) -> None:
        self._buckets = _zeros_aligned(buckets * BUCKET_BYTES)
        self.state["buckets"] = self._buckets.ctypes.data
        self.state["buckets_mask"] = buckets - 1
        self.state["buckets_shift"] = 64 - (buckets.bit_length() - 1)
        self.state["short_words"] = 0
        self.state["short_words_max"] = int(3 * buckets * FILL_MAX)
        if self._sums:
            values = np.empty(int(3 * buckets * FILL_MAX), np.uint64)
            values[: len(self._values)] = self._values
            self._values = values
            self.state["values"] = values.ctypes.data

    def _set_long(self, words: int) -> None:
        """Give the long table room for so many words (a power of two), and an empty index of twice that."""
        entries = np.empty(words * ENTRY_BYTES, np.uint8)
        used = int(self.state["long_words"]) * ENTRY_BYTES
        if used:
            entries[:used] = self._entries[:used]
        self._entries = entries
        self._index = np.zeros(2 * words, np.uint64)
        self.state["entries"] = entries.ctypes.data
        self.state["index"] = self._index.ctypes.data
        self.state["index_mask"] = 2 * words - 1
        self.state["index_shift"] = 64 - words.bit_length()
        self.state["long_words_max"] = words

    def _set_arena(self, nbytes: int) -> None:
        arena = np.empty(nbytes + ARENA_SLACK, np.uint8)
        used = int(self.state["arena_used"])
        if used:
            arena[:used] = self._arena[:used]
        self._arena = arena
        self.state["arena"] = arena.ctypes.data
        self.state["arena_bytes"] = nbytes

    def clear(self, words: int) -> None:
        """Forget all words and get ready for about so many distinct short ones."""
        wanted = max(BUCKETS_MIN, _power_of_two(words / (3 * FILL_MAX)))
        buckets = len(self._buckets) // BUCKET_BYTES
        if wanted > buckets or wanted * 8 < buckets:
            self._values = self._values[:0]
            self._set_buckets(wanted)
        else:
            self._buckets.fill(0)
            self.state["short_words"] = 0
        if self.state["long_words"]:
            self.state["long_words"] = 0
            self.state["arena_used"] = 0
            if len(self._index) > 64 * LONG_WORDS_MIN or len(self._arena) > 64 * ARENA_BYTES_MIN:
                self._set_long(LONG_WORDS_MIN)
                self._set_arena(ARENA_BYTES_MIN)
            else:
                self._index.fill(0)

    def make_room(self, words: int, nbytes: int) -> None:
        """Grow whatever could not take so many new words with so many bytes in all."""
        state = self.state
        if state["short_words"] + U(words) > state["short_words_max"]:
            old = self._buckets
            self._set_buckets(2 * len(old) // BUCKET_BYTES)
            rehash_short(state, old.ctypes.data, len(old) // BUCKET_BYTES)
        if state["long_words"] + U(words) > state["long_words_max"]:
            self._set_long(2 * int(state["long_words_max"]))
            rebuild_index(state)
        needed = int(state["arena_used"]) + nbytes
        if needed > int(state["arena_bytes"]):
            self._set_arena(_power_of_two(needed))

    def order(self, by_hash: bool) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """(ranks, references) of all entries, by (hash, word) or by word. Valid until the next call or change."""
        words = int(self.state["short_words"]) + int(self.state["long_words"])
        if not words <= self._order.shape[1] <= 16 * (words + BUCKETS_MIN):
            self._order = np.empty((4, _power_of_two(words)), np.uint64)
        ranks, references, spare_ranks, spare_references = self._order[:, :words]
        collect(self.state, by_hash, ranks, references)
        sort_entries(self.state, ranks, references, spare_ranks, spare_references, 0 if by_hash else 8)
        return ranks, references


def hash64(word: bytes) -> int:
    """The 64-bit hash that orders and partitions words.

    With low(x), high(x) the two little-endian halves of 16 bytes, ``fold(a, b)`` the low half xor the high half of the
    128-bit product, S = SALT_LOW, T = SALT_HIGH and n the length:

    - n <= 15: x is the word, padded with zeros to 15 bytes, then the byte n; the hash is fold(low(x) ^ S, high(x) ^ T).
    - n >= 16: h = n * GOLDEN mod 2^64; for x = bytes [16 k, 16 k + 16) while 16 k + 16 < n, and at last for x = the
      last 16 bytes (which may overlap): h = fold(low(x) ^ h, high(x) ^ T). The hash is h.

    It is no defence against chosen words: those only make tables slow, never wrong.

    Args:
        word: any bytes.

    Returns:
        The hash, 0 <= h < 2^64.
    """
    array = np.frombuffer(word, np.uint8)
    return int(hash_bytes(array.ctypes.data, len(array)))


def _column(name: str, array: NDArray[Any], dtype: type, size: int | None = None, writable: bool = False) -> None:
    """Refuse an array that is not a contiguous vector of a dtype, a size, and writable if asked.

    Raises:
        ValueError: naming the array and what is wrong with it.
    """
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.ndim != 1:
        raise ValueError(f"{name} must be a one-dimensional array of {np.dtype(dtype).name}")
    if not array.flags.c_contiguous:
        raise ValueError(f"{name} must be contiguous")
    if size is not None and len(array) != size:
        raise ValueError(f"{name} must have {size} elements, not {len(array)}")
    if writable and not (array.flags.writeable and array.flags.aligned):
        raise ValueError(f"{name} must be writable and aligned")


def _check_run(run: Columns) -> None:
    """Refuse columns whose offsets do not lie in order inside the data, so that kernels need not look.

    Raises:
        ValueError: if dtypes, sizes or offsets are wrong.
    """
    offsets, data, counts = run
    _column("offsets", offsets, np.int64)
    _column("data", data, np.uint8)
    if len(offsets) == 0:
        raise ValueError("offsets must have one element more than there are entries")
    _column("counts", counts, np.uint64, len(offsets) - 1)
    fault = offsets_fault(offsets.ctypes.data, len(counts), len(data))
    if fault >= 0:
        raise ValueError(f"offsets[{fault}] is not in order inside the {len(data)} bytes of data")


class WordCounter:
    """Counts the words of a text on one core; reusable, which spares the page faults of new tables.

    After ``count``, entries are in the canonical order (hash64(word), word), which depends on the words alone.
    Partition r of R holds those with ``(hash64 * R) >> 64 == r``, so that partitions follow each other in that order.

    Not safe for use by two threads at once.
    """

    def __init__(self, expected_words: int = 0) -> None:
        """Make an empty counter.

        Args:
            expected_words: distinct words to make room for at once; changes the speed only.

        Raises:
            ValueError: if it is negative.
        """
        if expected_words < 0:
            raise ValueError("expected_words must not be negative")
        self._expected_words = expected_words
        self._table = _Table(sums=False)
        empty = np.empty(0, np.uint64)
        self._ranks, self._references = empty, empty
        self._first = np.zeros(1, np.int64)
        self._nbytes = np.zeros(0, np.int64)

    def count(self, data: NDArray[np.uint8]) -> int:
        """Count all words of a text; what was counted before is forgotten.

        Args:
            data: u8[bytes], contiguous; may be read-only and mapped. No byte outside is read.

        Returns:
            Number of distinct words.

        Raises:
            ValueError: if data is no contiguous vector of uint8.
        """
        _column("data", data, np.uint8)
        table = self._table
        size = len(data)
        table.clear(min(max(self._expected_words, int(table.state["short_words"])), size // 2 + 1))
        # The last blocks are left out where a key load, which takes 16 bytes, could reach over the end.
        whole = max(0, size - 16) // BLOCK_BYTES * BLOCK_BYTES
        begin = data.ctypes.data
        self._count_region(begin, begin, begin + whole)
        self._count_tail(data, int(table.state["word"]) - begin, whole)
        self._ranks, self._references = table.order(by_hash=True)
        self._first = np.array([0, len(self._ranks)])
        self._nbytes = np.zeros(0, np.int64)
        return len(self._ranks)

    def _count_region(self, word: int, begin: int, end: int) -> None:
        """Count words that end in [begin, end), a multiple of 64 bytes; the first began at ``word``."""
        state = self._table.state
        state["word"] = word
        state["cursor"] = begin
        while begin < end:
            state["stop"] = min(begin + FOLD_BYTES, end)
            count_blocks(state)
            begin = int(state["cursor"])
            if begin < int(state["stop"]):
                self._table.make_room(BATCH_WORDS, begin + BATCH_BYTES - int(state["word"]))
            elif begin < end:
                fold_counts(state)

    def _count_tail(self, data: NDArray[np.uint8], word: int, whole: int) -> None:
        """Count the word that began at offset ``word`` and all after offset ``whole``, where blocks end.

        They are copied to a buffer padded with separators. A long word under way is counted where it is.
        """
        state = self._table.state
        if whole - word > SHORT_BYTES_MAX:
            tail = data[whole:].tobytes()
            end = whole + min((i for i, byte in enumerate(tail) if byte in SEPARATORS), default=len(tail))
            self._table.make_room(1, end - word)
            add_long(state, data.ctypes.data + word, end - word)
            word = end
        rest = len(data) - word
        blocks = rest // BLOCK_BYTES + 1
        padded = np.full(blocks * BLOCK_BYTES + 16, SEPARATORS[0], np.uint8)
        padded[:rest] = data[word:]
        begin = padded.ctypes.data
        if len(data) >= FOLD_BYTES:
            fold_counts(state)
        self._count_region(begin, begin, begin + blocks * BLOCK_BYTES)

    def partition_sizes(self, partitions: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cut what was counted into partitions.

        Args:
            partitions: R, 1 to 65536.

        Returns:
            Entries i64[R] and key bytes i64[R] of each partition.

        Raises:
            ValueError: if R is out of bounds.
        """
        if not 1 <= partitions <= 65536:
            raise ValueError("partitions must be 1 to 65536")
        entries = np.empty(partitions, np.int64)
        self._nbytes = np.empty(partitions, np.int64)
        measure_partitions(self._table.state, self._ranks, self._references, entries, self._nbytes)
        self._first = np.zeros(partitions + 1, np.int64)
        np.cumsum(entries, out=self._first[1:])
        return entries, self._nbytes.copy()

    def fill(
        self,
        partition: int,
        offsets: NDArray[np.int64],
        data: NDArray[np.uint8],
        counts: NDArray[np.uint64],
    ) -> None:
        """Write one partition of the last ``partition_sizes`` into buffers of exactly its sizes.

        Args:
            partition: r, 0 to R - 1.
            offsets: i64[n + 1], receives where each word begins in data; the first is 0, the last its bytes.
            data: u8[key bytes], receives the words one after the other.
            counts: u64[n].

        Raises:
            ValueError: if there is no such partition, or a buffer has another size or dtype or cannot be written.
        """
        if not 0 <= partition < len(self._nbytes):
            raise ValueError(f"partition must be 0 to {len(self._nbytes) - 1}; call partition_sizes first")
        first, last = int(self._first[partition]), int(self._first[partition + 1])
        _column("offsets", offsets, np.int64, last - first + 1, writable=True)
        _column("data", data, np.uint8, int(self._nbytes[partition]), writable=True)
        _column("counts", counts, np.uint64, last - first, writable=True)
        fill_columns(self._table.state, self._references[first:last], offsets, data, counts)


def merge_counts(runs: Sequence[Columns]) -> Columns:
    """Sum the counts of each word over runs; a run need not be sorted, and may even repeat words.

    Args:
        runs: (offsets i64[n + 1], data u8[bytes], counts u64[n]) each; word i is data[offsets[i]:offsets[i + 1]]. Views
            of read-only or unaligned buffers will do. Sums are modulo 2^64.

    Returns:
        One such run, words in memcmp order, offsets from 0.

    Raises:
        ValueError: if a run's dtypes, sizes or offsets are wrong.
    """
    for run in runs:
        _check_run(run)
    table = _Table(sums=True)
    table.clear(max((len(counts) for _, _, counts in runs), default=0))
    state = table.state
    for offsets, data, counts in runs:
        state["cursor"] = 0
        state["stop"] = len(counts)
        begin = data.ctypes.data
        while True:
            merge_run(state, offsets.ctypes.data, begin, counts.ctypes.data, begin + len(data))
            done = int(state["cursor"])
            if done == len(counts):
                break
            last = min(done + MERGE_WORDS, len(counts))
            table.make_room(MERGE_WORDS, int(offsets[last]) - int(offsets[done]))
    return _columns_by_word(table)


def _columns_by_word(table: _Table) -> Columns:
    """All entries of a table in memcmp order."""
    ranks, references = table.order(by_hash=False)
    entries, nbytes = np.empty(1, np.int64), np.empty(1, np.int64)
    measure_partitions(table.state, ranks, references, entries, nbytes)
    offsets = np.empty(len(references) + 1, np.int64)
    data = np.empty(int(nbytes[0]), np.uint8)
    counts = np.empty(len(references), np.uint64)
    fill_columns(table.state, references, offsets, data, counts)
    return offsets, data, counts


def format_counts(offsets: NDArray[np.int64], data: NDArray[np.uint8], counts: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """The text form of a run: ``word TAB count LF`` per entry, in its order.

    Args:
        offsets: i64[n + 1].
        data: u8[bytes].
        counts: u64[n].

    Returns:
        u8[bytes of text].

    Raises:
        ValueError: if dtypes, sizes or offsets are wrong.
    """
    _check_run((offsets, data, counts))
    entries = len(counts)
    digits = text_digits(counts.ctypes.data, entries)
    text = np.empty(int(offsets[-1] - offsets[0]) + digits + 2 * entries, np.uint8)
    fill_text(offsets.ctypes.data, data.ctypes.data, counts.ctypes.data, entries, text)
    return text
