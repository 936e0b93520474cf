"""Checks of counted words: what a text, a block of counts and the lines of a part add up to under a secret key.

    sum of a text                     = sum of h(w) over its words
    sum of counts, or of count lines  = sum of count * h(w) over the entries

in (Z / 2^64)^2, with h as in ``check_hash``. Beside the sum, an entry has to be in form (no empty word, no separator in
it, a count of 1 to 2^32 - 1 without a leading zero), of the partition r that it is in ((hash64(word) * R) >> 64 = r),
and above the entry before it: in a block by (hash64, word), in a part by word. So no word is twice. A map's output of R
blocks is the only right one if all of them are accepted and their sums add up to that of the text: as each word can be
in one partition only, this certifies the sum of each partition, too. What the chance of an error is, ``check_hash``
says: 2^-66 among words of up to 15 bytes.

Nothing here is shared with the kernels that count (``words``, ``word_tables``), on purpose: not the tokeniser, and not
the hash64 that orders and partitions, which is written down a second time. No kernel reads a byte outside its arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from numba import types
from numpy.typing import NDArray

from quoreduce_kernels.check_form import (
    SHORT_BYTES_MAX,
    check_partition,
    load_few,
    long_hash64,
    precedes,
    short_hash64,
    vector,
    word_end,
)
from quoreduce_kernels.check_hash import (
    BLOCKS,
    MESSAGE_WORDS,
    Hasher,
    Refused,
    Sum,
    U64Array,
    address,
    pieces,
    sum_of,
)
from quoreduce_kernels.check_intrinsics import (
    LEVEL,
    add_four_words,
    aes4_vaes,
    fold_strip,
    list_longs32,
    place_strip,
    short_word,
)
from quoreduce_kernels.check_keys import FINAL, PIECES, SHORT
from quoreduce_kernels.intrinsics import (
    ld8,
    ld16,
    ld64,
    mulhi,
    popcount,
    st16,
    st64,
)
from quoreduce_kernels.options import cold_part, kernel, part

U = np.uint64
U8Array = NDArray[np.uint8]
I64Array = NDArray[np.int64]

COUNT_MAX = 2**32 - 1
TAB, LINE_FEED = 9, 10
BATCH_BYTES = 4096  # of a text, whose ends of words are listed before these are hashed; below 2^16
MARGIN_BYTES = 32  # that are readable after the last whole block of a text
ENTRIES = 4096  # of a block or a part, checked before their words are hashed

# Scratch of a text's kernel: offsets of its parts, in bytes.
_LONGS_MAX = BATCH_BYTES // (SHORT_BYTES_MAX + 2) + 2  # words of 16 bytes or more that can end in a batch, and one more
_ENDS = 64  # u16, where words end in the batch
_BEGINS = _ENDS + 2 * BATCH_BYTES + 256  # u16, of words of 16 bytes or more
_LENGTHS = _BEGINS + 2 * _LONGS_MAX + 64  # u16
_BLOCKS = _LENGTHS + 2 * _LONGS_MAX + 64  # blocks to encrypt: as many as words can end in a batch
_PLACED = _BLOCKS + 16 * (BATCH_BYTES // 2 + 2 * BLOCKS)  # blocks of the pieces of long words, which share no byte
_SCRATCH_BYTES = _PLACED + 16 * (BATCH_BYTES // 16 + _LONGS_MAX + 2 * BLOCKS)
# State of a text's kernel, in 8-byte words: next block, where the word under way began, words; then the sums of four
# lanes (low, high).
_AT, _WORD, _WORDS, _SUMS, _STATE_WORDS = 0, 8, 16, 24, 11

WHY = (
    "has an empty or overlong word, or offsets that are not in order",
    "has a separator in its word",
    "is of another partition",
    "is not above the one before it",
    "has a count outside 1 to 2^32 - 1",
    "is no line of a word, a tab, a number and a line feed",
)
_EMPTY, _SEPARATOR, _PARTITION, _ORDER, _COUNT, _LINE = range(len(WHY))


@part
def add_all(blocks, count, sums):
    """Add blocks to the sums."""
    low, high = U(0), U(0)
    for j in range(count):
        low += ld64(blocks + U(16) * j)
        high += ld64(blocks + U(16) * j + U(8))
    st64(sums, ld64(sums) + low)
    st64(sums + U(8), ld64(sums + U(8)) + high)


def _word_parts(level: str) -> tuple[Any, Any]:
    """(add_short, add_batch): a part that adds one word of 1 to 15 bytes, and one that adds those of a batch."""
    one, four = pieces(level).one, pieces(level).four

    @part
    def add_one(sums, low, high, cipher, keys):
        """Add AES of one block to the sums."""
        low, high = one(low, high, keys + cipher, keys)
        st64(sums, ld64(sums) + low)
        st64(sums + U(8), ld64(sums + U(8)) + high)

    if level == "vaes":

        @part
        def add_batch(ends, n, origin, keys, scratch, sums):
            """Add the words between n ends, four at a time; return (words, whether there are longer ones)."""
            final = ld16(ends + U(2) * (n - U(1)))
            for i in range(U(BLOCKS)):  # empty words, to fill the last group
                st16(ends + U(2) * (n + i), final + U(1) + i)
            words, longer = U(0), U(0)
            for j in range(U(1), n, U(BLOCKS)):
                found = add_four_words(ends + U(2) * j, origin, keys + U(SHORT), sums)
                words += popcount(found & U(15))
                longer |= found >> U(4)
            return words, longer

    else:

        @part
        def add_batch(ends, n, origin, keys, scratch, sums):
            """The same, by blocks in the scratch."""
            blocks = scratch + U(_BLOCKS)
            words, longer = U(0), U(0)
            before = ld16(ends)
            for j in range(U(1), n):
                end = ld16(ends + U(2) * j)
                length = end - before - U(1)
                short_word(origin + before + U(1), length, blocks + U(16) * words)
                words += U(1) if length - U(1) < U(SHORT_BYTES_MAX) else U(0)
                longer |= U(1) if length > U(SHORT_BYTES_MAX) else U(0)
                before = end
            for j in range(U(0), words, U(BLOCKS)):
                four(blocks + U(16) * j, keys + U(SHORT), keys)
            add_all(blocks, words, sums)
            return words, longer

    return add_one, add_batch


@part
def _list_longs(ends, n, begins, lengths):
    """List begin and length, u16 each, of the words of 16 bytes or more between n ends; return how many."""
    count, before = U(0), ld16(ends)
    for j in range(U(1), n):
        end = ld16(ends + U(2) * j)
        st16(begins + U(2) * count, before + U(1))
        st16(lengths + U(2) * count, end - before - U(1))
        count += U(1) if end - before > U(SHORT_BYTES_MAX + 1) else U(0)
        before = end
    return count


@part
def _list_longs_vaes(ends, n, begins, lengths):
    count = U(0)
    for j in range(U(1), n, U(32)):
        count += list_longs32(ends + U(2) * j, n - j, begins + U(2) * count, lengths + U(2) * count)
    return count


@part
def _digest_longs(begins, lengths, count, origin, keys, blocks):
    """Write what goes into AES_FINAL for each of the words listed, all their pieces having been encrypted one after the
    other: four at a time, whichever words they are of.
    """
    placed, used = blocks + U(_PLACED - _BLOCKS), U(0)
    for j in range(count):
        at, length = origin + ld16(begins + U(2) * j), ld16(lengths + U(2) * j)
        target = placed + U(16) * used
        place_strip(at, min(length, U(64)), U(0), keys, target)
        for done in range(U(64), length, U(64)):
            place_strip(at + done, min(length - done, U(64)), done >> U(4), keys, target + done)
        used += (length + U(15)) >> U(4)
    for j in range(U(0), used, U(BLOCKS)):
        aes4_vaes(placed + U(16) * j, placed + U(16) * j, keys + U(PIECES))
    used = U(0)
    for j in range(count):
        length, target = ld16(lengths + U(2) * j), blocks + U(16) * j
        source = placed + U(16) * used
        fold_strip(source, min(length, U(64)), length, target)
        for done in range(U(64), length, U(64)):
            low, high = ld64(target), ld64(target + U(8))
            fold_strip(source + done, min(length - done, U(64)), low, target)
            st64(target + U(8), ld64(target + U(8)) + high)
        used += (length + U(15)) >> U(4)


def _long_parts(level: str) -> Any:
    """A part that adds the words of 16 bytes or more of a batch; returns how many."""
    chain, four = pieces(level).chain, pieces(level).four

    @part
    def digest_longs(begins, lengths, count, origin, keys, blocks):
        for j in range(count):
            length = ld16(lengths + U(2) * j)
            low, high = chain(origin + ld16(begins + U(2) * j), length, U(0), keys)
            st64(blocks + U(16) * j, low + length)
            st64(blocks + U(16) * j + U(8), high)

    list_longs, digest = (_list_longs_vaes, _digest_longs) if level == "vaes" else (_list_longs, digest_longs)

    @part
    def add_longs(ends, n, origin, keys, scratch, sums):
        begins, lengths, blocks = scratch + U(_BEGINS), scratch + U(_LENGTHS), scratch + U(_BLOCKS)
        count = list_longs(ends, n, begins, lengths)
        digest(begins, lengths, count, origin, keys, blocks)
        for j in range(U(0), count, U(BLOCKS)):
            four(blocks + U(16) * j, keys + U(FINAL), keys)
        add_all(blocks, count, sums)
        return count

    return add_longs


@lru_cache(maxsize=3)
def text_kernels(level: str) -> tuple[Callable[..., None], Callable[..., None]]:
    """The two kernels of a level: that of the blocks of a text, and that of one word."""
    chain, list_ends = pieces(level).chain, pieces(level).list_ends
    add_one, add_batch = _word_parts(level)
    add_longs = _long_parts(level)

    @cold_part
    def add_word(sums, begin, end, keys):
        """Add the word in [begin, end), if there is one; return how many. Reads nothing else."""
        length = end - begin
        if length > U(SHORT_BYTES_MAX):
            low, high = chain(begin, length, U(0), keys)
            add_one(sums, low + length, high, U(FINAL), keys)
            return U(1)
        if length == U(0):
            return U(0)
        low, high = load_few(begin, length)
        fill = (length - U(1)) * U(0x0101010101010101)
        if length < U(8):
            low |= fill << (U(8) * length)
            high = fill
        else:
            high |= fill << (U(8) * (length - U(8)))
        add_one(sums, low, high, U(SHORT), keys)
        return U(1)

    @kernel("void(u8, u8, u8, u8)", level)
    def _sum_blocks(state, stop, keys, scratch):
        """Add the words that end in [AT, stop), whole blocks of 64 bytes. 32 bytes after stop are readable."""
        at, word, words = ld64(state + U(_AT)), ld64(state + U(_WORD)), ld64(state + U(_WORDS))
        sums, ends = state + U(_SUMS), scratch + U(_ENDS)
        while at < stop:
            size = min(U(BATCH_BYTES), stop - at)
            n = U(0)
            for k in range(U(0), size, U(64)):
                n += list_ends(at + k, ends + U(2) * n, k)
            if n:
                words += add_word(sums, word, at + ld16(ends), keys)
                word = at + ld16(ends + U(2) * (n - U(1))) + U(1)
                added, longer = add_batch(ends, n, at, keys, scratch, sums)
                words += added
                if longer:
                    words += add_longs(ends, n, at, keys, scratch, sums)
            at += size
        st64(state + U(_AT), at)
        st64(state + U(_WORD), word)
        st64(state + U(_WORDS), words)

    @kernel("void(u8, u8, u8, u8)", level)
    def _sum_word(state, begin, end, keys):
        """Add one word; reads nothing else."""
        words = add_word(state + U(_SUMS), begin, end, keys)
        st64(state + U(_WORDS), ld64(state + U(_WORDS)) + words)

    return _sum_blocks, _sum_word


_sum_blocks, _sum_word = text_kernels(LEVEL)


@part
def _take_word(at, length, readable, block):
    """(hash64, whether a separator is in it) of a word; stores its block if it is short."""
    if length > U(SHORT_BYTES_MAX):
        return long_hash64(at, length), word_end(at, at + length) != at + length
    source = at
    if at + U(16) > readable:
        low, high = load_few(at, length)
        source = block  # which is overwritten by the padded one
        st64(block, low)
        st64(block + U(8), high)
    low, high, bad = short_word(source, length, block)
    return short_hash64(low, high, length), bad != U(0)


@part
def _keep(at, length, count, state, weights, messages, long_weights):
    """Enter a word for hashing: its weight, and a message if it is long. state: entries before, shorts, longs."""
    if length > U(SHORT_BYTES_MAX):
        k = state[2]
        messages[k, 0], messages[k, 1] = at, length
        messages[k, 2], messages[k, 3], messages[k, 4] = U(0), U(0), U(0)
        long_weights[k] = count
        state[2] = k + U(1)
    else:
        weights[state[1]] = count
        state[1] += U(1)


_VECTOR, _TABLE = types.uint64[::1], types.uint64[:, ::1]
_U64, _I64 = types.uint64, types.int64


@kernel(types.int64(_U64, _U64, _U64, _U64, _I64, _I64, _U64, _U64, _VECTOR, _U64, _VECTOR, _TABLE, _VECTOR))
def _check_entries(
    offsets, data, nbytes, counts, first, last, r, partitions, state, blocks, weights, messages, long_weights
):
    """Look at entries [first, last) of a block; return -1, or 8 * entry + why of the first that is wrong.

    state u64[6]: begin of the next word, shorts and longs so far, then hash64, address and length of the word before.
    """
    readable = data + nbytes
    for i in range(first, last):
        begin, end = state[0], ld64(offsets + U(8) * U(i) + U(8))
        if end <= begin or end > nbytes:
            return types.int64(8 * i + _EMPTY)
        at, length = data + begin, end - begin
        h, bad = _take_word(at, length, readable, blocks + U(16) * state[1])
        if bad:
            return types.int64(8 * i + _SEPARATOR)
        if mulhi(h, partitions) != r:
            return types.int64(8 * i + _PARTITION)
        if i > 0 and (h < state[3] or (h == state[3] and not precedes(state[4], state[5], at, length))):
            return types.int64(8 * i + _ORDER)
        count = ld64(counts + U(8) * U(i))
        if count - U(1) >= U(COUNT_MAX):
            return types.int64(8 * i + _COUNT)
        _keep(at, length, count, state, weights, messages, long_weights)
        state[0], state[3], state[4], state[5] = end, h, at, length
    return types.int64(-1)


@part
def _number(at, end):
    """(number, where it ends) of the digits at an address; 0 if there are none, a leading zero, or it is too large."""
    value, k = U(0), at
    while k < end:
        digit = ld8(k) - U(48)
        if digit > U(9):
            break
        value = value * U(10) + digit
        if value == U(0) or value > U(COUNT_MAX):
            return U(0), k
        k += U(1)
    return value, k


@kernel(types.int64(_U64, _I64, _I64, _U64, _U64, _VECTOR, _U64, _VECTOR, _TABLE, _VECTOR))
def _check_lines(end, first, last, r, partitions, state, blocks, weights, messages, long_weights):
    """Look at lines [first, last) of a part; return -1, or 8 * line + why of the first that is wrong.

    state u64[6]: address of the next line, shorts and longs so far, 0, then address and length of the word before.
    """
    for i in range(first, last):
        at = state[0]
        if at >= end:
            break
        tab = word_end(at, end)
        length = tab - at
        if tab >= end or length == U(0) or ld8(tab) != U(TAB):
            return types.int64(8 * i + _LINE)
        h, _ = _take_word(at, length, end, blocks + U(16) * state[1])
        if mulhi(h, partitions) != r:
            return types.int64(8 * i + _PARTITION)
        if i > 0 and not precedes(state[4], state[5], at, length):
            return types.int64(8 * i + _ORDER)
        count, stop = _number(tab + U(1), end)
        if count == U(0):
            return types.int64(8 * i + _COUNT)
        if stop >= end or ld8(stop) != U(LINE_FEED):
            return types.int64(8 * i + _LINE)
        _keep(at, length, count, state, weights, messages, long_weights)
        state[0], state[4], state[5] = stop + U(1), at, length
    return types.int64(-1)


class _Entries:
    """Entries under way: what one batch of them leaves to be hashed, and the sum so far."""

    def __init__(self, begin: int, key: bytes, level: str) -> None:
        self._hasher = Hasher(key, level)
        self._blocks = np.zeros((ENTRIES + BLOCKS, 2), np.uint64)
        self._weights, self._long_weights = np.zeros((2, ENTRIES + 1), np.uint64)
        self._messages = np.zeros((ENTRIES, MESSAGE_WORDS), np.uint64)
        self.state = np.array([begin, 0, 0, 0, 0, 0], np.uint64)
        self._total = np.zeros(3, np.uint64)
        self.done = 0

    def add(self, check: Callable[..., int], *about: int) -> None:
        """Look at the next batch by a kernel, and hash its words; Refused if an entry is wrong."""
        fault = check(
            *about, self.state, address(self._blocks), self._weights, self._messages, self._long_weights
        )  # fmt: skip
        if fault >= 0:
            raise Refused(fault >> 3, WHY[fault & 7])
        shorts, longs = self.state[1:3].tolist()
        self._hasher.add_shorts(self._blocks, self._weights, shorts, self._total)
        self._hasher.add_messages(self._messages, self._long_weights, longs, self._blocks, self._total)
        self.state[1:3] = 0
        self.done += shorts + longs

    def sum(self) -> Sum:
        """What all entries so far add up to."""
        return sum_of(self._total)


def sum_text(data: U8Array, key: bytes, *, level: str = LEVEL) -> Sum:
    """Add up the words of a text; ``items`` is how many there are.

    Args:
        data: u8[bytes], contiguous; may be read-only and mapped. No byte outside is read.
        key: 32 bytes.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        ValueError: data is no contiguous vector of uint8, or the key has another length.
    """
    vector("data", data, np.uint8)
    blocks, word = (_sum_blocks, _sum_word) if level == LEVEL else text_kernels(level)
    hasher = Hasher(key, level)
    begin, size = address(data), data.size
    whole = max(0, size - MARGIN_BYTES) // 64 * 64
    state, scratch = np.zeros(_STATE_WORDS, np.uint64), np.empty(_SCRATCH_BYTES, np.uint8)
    state[:2] = begin
    if whole:
        blocks(address(state), begin + whole, hasher.keys, address(scratch))
    started = int(state[1]) - begin
    for first, last in _tail_words(data, started, whole):
        word(address(state), begin + first, begin + last, hasher.keys)
    low, high = state[_SUMS // 8 :].reshape(4, 2).sum(0).tolist()
    return Sum(low, high, int(state[2]))


def _tail_words(data: U8Array, started: int, whole: int) -> Iterator[tuple[int, int]]:
    """Where the words end, and begin, that end at ``whole`` or later; the first begins at ``started``."""
    for i, byte in enumerate(data[whole:].tolist(), whole):
        if byte == 32 or (9 <= byte <= 13 and byte != 11):
            yield started, i
            started = i + 1
    yield started, data.size


def sum_counts(
    offsets: I64Array,
    data: U8Array,
    counts: U64Array,
    partition: int,
    partitions: int,
    key: bytes,
    *,
    level: str = LEVEL,
) -> Sum:
    """Check and add up the entries of one block of a map; ``items`` is the sum of their counts.

    Args:
        offsets: i64[n + 1]; word i is data[offsets[i]:offsets[i + 1]].
        data: u8[bytes].
        counts: u64[n].
        partition, partitions: the block's r and the number R of all, at most 65536.
        key: 32 bytes.
        level: of ``check_intrinsics``, for tests; all give the same.

    Raises:
        Refused: an entry is out of form or order, of another partition, or its count is not in 1 to 2^32 - 1.
        ValueError: wrong dtypes or sizes, no such partition, or a key of another length.
    """
    vector("data", data, np.uint8)
    vector("counts", counts, np.uint64)
    vector("offsets", offsets, np.int64, counts.size + 1)
    check_partition(partition, partitions)
    if offsets[0] != 0 or offsets[-1] != data.size:
        raise Refused(0, WHY[_EMPTY])
    entries = _Entries(0, key, level)
    places = address(offsets), address(data), data.size, address(counts)
    for first in range(0, counts.size, ENTRIES):
        last = min(first + ENTRIES, counts.size)
        entries.add(_check_entries, *places, first, last, partition, partitions)
    return entries.sum()


def sum_lines(text: U8Array, partition: int, partitions: int, key: bytes, *, level: str = LEVEL) -> tuple[Sum, int]:
    """Check and add up the lines ``word TAB count LF`` of a part; ``items`` is the sum of their counts.

    Args:
        text: u8[bytes], contiguous; may be read-only and mapped. No byte outside is read.
        partition, partitions: the part's r and the number R of all, at most 65536.
        key: 32 bytes.
        level: of ``check_intrinsics``, for tests; all give the same.

    Returns:
        The sum, and the number of lines.

    Raises:
        Refused: a line is out of form or order, of another partition, or its count is not in 1 to 2^32 - 1.
        ValueError: text is no contiguous vector of uint8, no such partition, or a key of another length.
    """
    vector("text", text, np.uint8)
    check_partition(partition, partitions)
    end = address(text) + text.size
    entries = _Entries(address(text), key, level)
    while int(entries.state[0]) < end:
        entries.add(_check_lines, end, entries.done, entries.done + ENTRIES, partition, partitions)
    return entries.sum(), entries.done
