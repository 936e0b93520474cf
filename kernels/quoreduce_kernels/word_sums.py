"""What the checks of word count add up (R13): words of a text, counted words of a block, lines ``word TAB count``.

    sum = sum over all words of count * h(word), in (Z / 2^64)^2

h is a pseudo-random function under a key that is drawn after the output was made (``prf``). A word of 1 to 15 bytes
is one block: its bytes, then its length - 1 in each byte that is left, so that no two words give the same block. A
longer word is hashed to 16 bytes first: NH (see ``fingerprint``) of its 16-byte pieces, of which the last may overlap
the one before, in strips of 128 bytes that are chained by an odd multiplier, plus its length; then the function under
a second key.

Beside the sums stands the form: no word is empty or holds a separator, counts are 1 to 2^32 - 1, words are in order
(hence none occurs twice) and belong to the partition. If the form holds and both sides add up to the same, the output
is the only right one, except with a small probability over the key, AES-128 (or SipHash) taken for random. Words of up
to 15 bytes: at most 2^(2v - 128), v being log2 of the largest count. For the difference of the two sums is the sum of
d_i * h(w_i) over distinct words with 0 < |d_i| < 2^32, and d_i = 2^t * odd with t < 32 leaves d_i * h(w_i) uniform in
2^(64 - t) values for each half. Words of 16 to 128 bytes, one strip: two of them collide in NH with a probability of
2^-64. For longer words, whose strips are chained, no bound is proved here.

These kernels share no code that finds words with those that count them (``words``): they find each other's mistakes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from quoreduce_kernels import prf
from quoreduce_kernels.fingerprint import multiply_add
from quoreduce_kernels.intrinsics import bswap, cttz, ld8, ld16, ld64, mulhi, popcount, st8, st16, st64
from quoreduce_kernels.options import cold_part, kernel, part
from quoreduce_kernels.word_tables import hash_word

U = np.uint64
BATCH_BYTES = 4096
FAR = 1 << 15  # a word that began so far back is hashed by itself: distances are 16 bits
PADDING = 64  # bytes that are readable after a text, a block or a part
SHORT_MAX = 15
# Scratch, in bytes: ends of words (with room before, and for what a full block overruns), then queued long words.
_ENDS = 64
_QUEUE = _ENDS + 2 * BATCH_BYTES + 256
_QUEUED = 64  # long words of a batch at most: 4096 / 16 + 1 would be 257, so it is emptied when it is full
SCRATCH_BYTES = _QUEUE + 16 * (_QUEUED + 4)

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_V64, _V16, _H32, _H4, _Q8 = (
    ir.VectorType(kind, n) for kind, n in ((_I8, 64), (_I8, 16), (_I16, 32), (_I16, 4), (_I64, 8))
)  # fmt: skip
_W4 = ir.VectorType(_I32, 4)
_ADDRESS = types.uint64


def _splat(builder: Any, value: Any, kind: Any) -> Any:
    zeros = prf.constant(ir.VectorType(_I32, kind.count), [0] * kind.count)
    one = builder.insert_element(ir.Constant(kind, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, zeros)


def _breaks(builder: Any, text: Any) -> Any:
    """Which bytes of a vector end words: space, and 9 to 13 without 11."""
    kind = text.type

    def all_of(value: int) -> Any:
        return prf.constant(kind, [value] * kind.count)

    low = builder.icmp_unsigned("<=", builder.sub(text, all_of(9)), all_of(4))
    low = builder.and_(low, builder.icmp_unsigned("!=", text, all_of(11)))
    return builder.or_(low, builder.icmp_unsigned("==", text, all_of(32)))


@intrinsic
def break_mask(_typing: Any, address: Any) -> Any:
    """Bit i is set when byte i of the 64 bytes at an address ends words."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(_breaks(builder, prf.load(builder, args[0], _V64)), _I64)

    return types.uint64(types.uint64), codegen


@intrinsic
def break_mask16(_typing: Any, address: Any) -> Any:
    """The same of 16 bytes."""

    def codegen(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        mask = builder.bitcast(_breaks(builder, prf.load(builder, args[0], _V16)), _I16)
        return builder.zext(mask, _I64)

    return types.uint64(types.uint64), codegen


@part
def _list_slowly(mask, offset, target):
    while mask:
        st16(target, offset + cttz(mask))
        target += U(2)
        mask &= mask - U(1)


@intrinsic
def _list_at_once(_typing: Any, mask: Any, offset: Any, target: Any) -> Any:
    """Store the places of the bits of a mask, plus an offset, as u16; 128 bytes are written, whatever the mask."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        mask, offset, target = args
        hit = builder.bitcast(mask, ir.VectorType(_I1, 64))
        zero = prf.constant(_V64, [0] * 64)
        found = prf.call(builder, "llvm.x86.avx512.mask.compress.v64i8", _V64, prf.constant(_V64, range(64)), zero, hit)
        base = _splat(builder, builder.trunc(offset, _I16), _H32)
        for half in (0, 1):
            places = prf.constant(ir.VectorType(_I32, 32), range(32 * half, 32 * half + 32))
            part_ = builder.zext(builder.shuffle_vector(found, found, places), _H32)
            prf.store(builder, builder.add(part_, base), builder.add(target, _I64(64 * half)))
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def _compresses(_typing: Any) -> Any:
    """Whether the CPU can compress bytes (AVX-512 VBMI2)."""

    def codegen(context: Any, _builder: Any, _signature: Any, _args: Any) -> Any:
        return _I64(int("avx512vbmi2" in prf.features(context)))

    return types.uint64(), codegen


def _spread(context: Any, builder: Any, lengths: Any) -> Any:
    """The low bytes of four u16, each in 16 bytes of a vector."""
    if "avx512vbmi" in prf.features(context):
        eight = builder.shuffle_vector(lengths, lengths, prf.constant(ir.VectorType(_I32, 32), [0, 1, 2, 3] * 8))
        places = prf.constant(_V64, [2 * (i // 16) for i in range(64)])
        return prf.call(builder, "llvm.x86.avx512.permvar.qi.512", _V64, builder.bitcast(eight, _V64), places)
    low = builder.trunc(lengths, ir.VectorType(_I8, 4))
    return builder.shuffle_vector(low, low, prf.constant(ir.VectorType(_I32, 64), [i // 16 for i in range(64)]))


def _padded(builder: Any, text: Any, lengths: Any) -> Any:
    """Words of 1 to 15 bytes as their blocks: 16 bytes each, of which ``lengths`` holds the word's length."""
    kind = text.type
    places = prf.constant(kind, [i % 16 for i in range(kind.count)])
    rest = builder.sub(lengths, prf.constant(kind, [1] * kind.count))
    return builder.select(builder.icmp_unsigned("<", places, lengths), text, rest)


@intrinsic
def _pad(_typing: Any, source: Any, length: Any, target: Any) -> Any:
    """Store the block of a word of 1 to 15 bytes. Reads 16 bytes."""

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        text = prf.load(builder, args[0], _V16)
        length = _splat(builder, builder.trunc(args[1], _I8), _V16)
        prf.store(builder, _padded(builder, text, length), args[2])
        return context.get_dummy_value()

    return types.void(types.uint64, types.uint64, types.uint64), codegen


@intrinsic
def _add_four(_typing: Any, ends: Any, base: Any, keys: Any, sums: Any) -> Any:
    """Add h of those of four words that have 1 to 15 bytes to ``sums`` u64[8]; return whether one is longer.

    Word i lies between the places ends[i - 1] and ends[i], u16, counted from ``base``. 16 bytes of each are read.
    """

    def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        ends, base, keys, sums = args
        here, before = prf.load(builder, ends, _H4), prf.load(builder, builder.sub(ends, _I64(2)), _H4)
        lengths = builder.sub(builder.sub(here, before), prf.constant(_H4, [1] * 4))
        origin = builder.add(base, _I64(1))
        starts = [builder.zext(builder.extract_element(before, _I32(lane)), _I64) for lane in range(4)]
        quarters = [prf.load(builder, builder.add(origin, start), _V16) for start in starts]
        wide = ir.VectorType(_I32, 32)
        halves = [builder.shuffle_vector(quarters[i], quarters[i + 1], prf.constant(wide, range(32))) for i in (0, 2)]
        whole = builder.shuffle_vector(*halves, prf.constant(ir.VectorType(_I32, 64), range(64)))
        whole = _padded(builder, whole, _spread(context, builder, lengths))
        mixed = prf.mix(context, builder, builder.bitcast(whole, _Q8), keys, prf.FIRST)
        less = builder.sub(lengths, prf.constant(_H4, [1] * 4))  # of an empty word: 65535
        short = builder.icmp_unsigned("<", less, prf.constant(_H4, [SHORT_MAX] * 4))
        both = builder.shuffle_vector(short, short, prf.constant(ir.VectorType(_I32, 8), (0, 0, 1, 1, 2, 2, 3, 3)))
        mixed = builder.select(both, mixed, prf.constant(_Q8, [0] * 8))
        prf.store(builder, builder.add(prf.load(builder, sums, _Q8), mixed), sums)
        long = builder.icmp_unsigned(">", lengths, prf.constant(_H4, [SHORT_MAX] * 4))
        return builder.zext(builder.bitcast(long, ir.IntType(4)), _I64)

    return types.uint64(types.uint64, types.uint64, types.uint64, types.uint64), codegen


def _weigher(kind: int) -> Any:
    def weigh_four(_typing: Any, blocks: Any, counts: Any, keys: Any, sums: Any) -> Any:
        def codegen(context: Any, builder: Any, _signature: Any, args: Any) -> Any:
            blocks, counts, keys, sums = args
            mixed = prf.mix(context, builder, prf.load(builder, blocks, _Q8), keys, kind)
            four = prf.load(builder, counts, ir.VectorType(_I64, 4))
            twice = prf.constant(ir.VectorType(_I32, 8), (0, 0, 1, 1, 2, 2, 3, 3))
            mixed = builder.mul(mixed, builder.shuffle_vector(four, four, twice))
            prf.store(builder, builder.add(prf.load(builder, sums, _Q8), mixed), sums)
            return context.get_dummy_value()

        return types.void(types.uint64, types.uint64, types.uint64, types.uint64), codegen

    weigh_four.__name__ = "weigh_short" if kind == prf.FIRST else "weigh_long"
    return intrinsic(weigh_four)


_weigh_short, _weigh_long = _weigher(prf.FIRST), _weigher(prf.SECOND)


@part
def _block_of_long(address, length, keys):
    """The block of a word of 16 bytes or more, as (low, high): NH of its pieces, strip by strip, plus its length."""
    nh = keys + U(prf.NH)
    low, high = U(0), U(0)
    last = length - U(16)
    at, i = U(0), U(0)
    while at < last:
        if i == U(128):
            low, high = multiply_add(low, high, ld64(nh + U(128)), ld64(nh + U(136)), U(0), U(0))
            i = U(0)
        x, y = ld64(address + at) + ld64(nh + i), ld64(address + at + U(8)) + ld64(nh + i + U(8))
        low, high = multiply_add(x, U(0), y, U(0), low, high)
        at += U(16)
        i += U(16)
    if i == U(128):
        low, high = multiply_add(low, high, ld64(nh + U(128)), ld64(nh + U(136)), U(0), U(0))
        i = U(0)
    x, y = ld64(address + last) + ld64(nh + i), ld64(address + last + U(8)) + ld64(nh + i + U(8))
    low, high = multiply_add(x, U(0), y, U(0), low, high)
    return low + length, high


@part
def _add_long(address, length, keys, queue, queued, ones, sums):
    """Queue a long word; return how many are queued."""
    low, high = _block_of_long(address, length, keys)
    st64(queue + U(16) * queued, low)
    st64(queue + U(16) * queued + U(8), high)
    queued += U(1)
    if queued == U(_QUEUED):
        for i in range(U(0), queued, U(4)):
            _weigh_long(queue + U(16) * i, ones, keys, sums)
        queued = U(0)
    return queued


@part
def _add_batch(base, found, keys, ends, queue, queued, ones, sums):
    """Add the words between ``found`` places that are listed; return how many long words are queued."""
    st16(ends - U(2), U(0))
    last = ld16(ends + U(2) * (found - U(1)))
    for i in range(U(4)):  # empty words fill up the last four
        st16(ends + U(2) * (found + i), last + i + U(1))
    long = U(0)
    for j in range(U(0), found, U(4)):
        long |= _add_four(ends + U(2) * j, base, keys, sums)
    if long:
        before = U(0)
        for j in range(found):
            end = ld16(ends + U(2) * j)
            if end - before > U(1 + SHORT_MAX):
                queued = _add_long(base + before + U(1), end - before - U(1), keys, queue, queued, ones, sums)
            before = end
    return queued


@kernel("u8(u8, u8, u8, u8, u8, u8)")
def _sum_words(begin, stop, keys, scratch, ones, sums):
    """Add h of all words that end in [begin, stop), whole blocks of 64 bytes; return the place after the last end.

    A word begins at ``begin``. PADDING bytes are readable after ``stop``. ``sums`` u64[9]: four times (low, high), and
    the number of words. ``ones`` u64[8]: four times 1, four times 0.
    """
    ends, queue = scratch + U(_ENDS), scratch + U(_QUEUE)
    at, base = begin, begin - U(1)  # the byte before the word under way
    words, queued, gap = U(0), U(0), U(1)  # whether the byte before ``at`` ends words
    while at < stop:
        if at - base > U(FAR):  # its first end is listed alone, counted from where it is
            mask = break_mask(at)
            if not mask:
                at += U(64)
                gap = U(0)
                continue
            end = at + cttz(mask)
            queued = _add_long(base + U(1), end - base - U(1), keys, queue, queued, ones, sums)
            words += U(1)
            base = end
            _list_slowly(mask & (mask - U(1)), at - base, ends)
            found = popcount(mask) - U(1)
            words += popcount((mask & (mask - U(1))) & ~(mask << U(1)))
            gap = mask >> U(63)
            at += U(64)
            if found:
                queued = _add_batch(base, found, keys, ends, queue, queued, ones, sums)
                base += U(ld16(ends + U(2) * (found - U(1))))
            continue
        limit = min(at + U(BATCH_BYTES), stop)
        found = U(0)
        while at < limit:
            mask = break_mask(at)
            if _compresses():
                _list_at_once(mask, at - base, ends + U(2) * found)
            else:
                _list_slowly(mask, at - base, ends + U(2) * found)
            found += popcount(mask)
            words += popcount(mask & ~((mask << U(1)) | gap))
            gap = mask >> U(63)
            at += U(64)
        if found:
            queued = _add_batch(base, found, keys, ends, queue, queued, ones, sums)
            base += U(ld16(ends + U(2) * (found - U(1))))
    for i in range(U(0), queued, U(4)):
        left = min(queued - i, U(4))
        _weigh_long(queue + U(16) * i, ones + U(8) * (U(4) - left), keys, sums)
    st64(sums + U(64), ld64(sums + U(64)) + words)
    return base + U(1)


@cold_part
def _broken(address, length):
    """Whether a separator is in a word."""
    for i in range(length):
        c = ld8(address + i)
        if c == U(32) or (c - U(9) <= U(4) and c != U(11)):
            return True
    return False


@cold_part
def _less(x, x_length, y, y_length):
    """Whether one word comes before another in the order of their bytes."""
    common = min(x_length, y_length)
    k = U(0)
    while k + U(8) <= common:
        a, b = ld64(x + k), ld64(y + k)
        if a != b:
            return bswap(a) < bswap(b)
        k += U(8)
    while k < common:
        a, b = ld8(x + k), ld8(y + k)
        if a != b:
            return a < b
        k += U(1)
    return x_length < y_length


@part
def _queue_counted(address, length, count, readable, keys, short, long, counts, queued, sums):
    """Queue a counted word; return how many (short, long) are queued. ``counts`` u64[8]: of the short, of the long."""
    shorts, longs = queued
    if length > U(SHORT_MAX):
        low, high = _block_of_long(address, length, keys)
        st64(long + U(16) * longs, low)
        st64(long + U(16) * longs + U(8), high)
        st64(counts + U(32) + U(8) * longs, count)
        longs += U(1)
        if longs == U(4):
            _weigh_long(long, counts + U(32), keys, sums)
            longs = U(0)
        return shorts, longs
    if address + U(16) <= readable:
        _pad(address, length, short + U(16) * shorts)
    else:
        for i in range(U(16)):
            st8(short + U(16) * shorts + i, ld8(address + i) if i < length else length - U(1))
    st64(counts + U(8) * shorts, count)
    shorts += U(1)
    if shorts == U(4):
        _weigh_short(short, counts, keys, sums)
        shorts = U(0)
    return shorts, longs


@part
def _flush(queued, short, long, counts, keys, sums):
    """Add what is queued, and count nothing for what fills up the last four."""
    shorts, longs = queued
    for i in range(shorts, U(4)):
        st64(counts + U(8) * i, U(0))
    for i in range(longs, U(4)):
        st64(counts + U(32) + U(8) * i, U(0))
    _weigh_short(short, counts, keys, sums)
    _weigh_long(long, counts + U(32), keys, sums)


@kernel("i8(u8, u8, i8, u8, i8, u8, u8, u8, u8, u8)")
def _sum_entries(offsets, data, data_bytes, counts, entries, readable, r, partitions, keys, sums):
    """Add count * h of each entry of a block; return the first that is out of form, or -1.

    Entries are in the order (hash, word). ``partitions``: of 0, the order and the partition are not looked at.
    ``readable``: the end of what may be read. ``sums`` u64[9 + 24]: sums, words, and room for four blocks and their
    counts, twice.
    """
    short, long, four = sums + U(72), sums + U(72 + 64), sums + U(72 + 128)
    queued = U(0), U(0)
    words, begin = U(0), ld64(offsets)
    before, before_at, before_length = U(0), U(0), U(0)
    for i in range(entries):
        end = ld64(offsets + U(8) * U(i + 1))
        count = ld64(counts + U(8) * U(i))
        if end <= begin or end > U(data_bytes) or count - U(1) >= U(0xFFFFFFFF):
            return types.int64(i)
        address, length = data + begin, end - begin
        if length <= U(SHORT_MAX) and address + U(16) <= readable:
            if break_mask16(address) & ((U(1) << length) - U(1)):
                return types.int64(i)
        elif _broken(address, length):
            return types.int64(i)
        if partitions:
            h = hash_word(address, length)
            if mulhi(h, partitions) != r:
                return types.int64(i)
            if i and (h < before or (h == before and not _less(before_at, before_length, address, length))):
                return types.int64(i)
            before, before_at, before_length = h, address, length
        queued = _queue_counted(address, length, count, readable, keys, short, long, four, queued, sums)
        words += count
        begin = end
    _flush(queued, short, long, four, keys, sums)
    st64(sums + U(64), ld64(sums + U(64)) + words)
    return types.int64(-1)


@kernel("i8(u8, i8, u8, u8, u8, u8)")
def _sum_text_lines(text, nbytes, r, partitions, keys, sums):
    """Add count * h of each line ``word TAB count LF``; return the place of the first line that is out of form, or -1.

    Lines are in the order of the words' bytes. PADDING bytes are readable after the text. ``sums`` u64[9 + 24 + 1]: as
    in :func:`_sum_entries`, and the number of lines.
    """
    short, long, four = sums + U(72), sums + U(72 + 64), sums + U(72 + 128)
    queued = U(0), U(0)
    words, lines = U(0), U(0)
    at, end = text, text + U(nbytes)
    before, before_length = U(0), U(0)
    while at < end:
        mask = break_mask(at)
        stop = at + cttz(mask)
        while not mask and stop < end:
            mask = break_mask(stop)
            stop += cttz(mask)
        length = stop - at
        if stop >= end or length == U(0) or ld8(stop) != U(9):
            return types.int64(at - text)
        if lines and not _less(before, before_length, at, length):
            return types.int64(at - text)
        if mulhi(hash_word(at, length), partitions) != r:
            return types.int64(at - text)
        k, count = stop + U(1), U(0)
        while ld8(k) - U(48) < U(10):
            if (count == U(0) and ld8(k) == U(48)) or count >> U(32):
                return types.int64(at - text)
            count = count * U(10) + (ld8(k) - U(48))
            k += U(1)
        if count - U(1) >= U(0xFFFFFFFF) or k >= end or ld8(k) != U(10):
            return types.int64(at - text)
        queued = _queue_counted(at, length, count, end + U(PADDING), keys, short, long, four, queued, sums)
        words += count
        lines += U(1)
        before, before_length = at, length
        at = k + U(1)
    _flush(queued, short, long, four, keys, sums)
    st64(sums + U(64), ld64(sums + U(64)) + words)
    st64(sums + U(72 + 192), ld64(sums + U(72 + 192)) + lines)
    return types.int64(-1)


_ONES = np.array([1, 1, 1, 1, 0, 0, 0, 0], np.uint64)


def _sums() -> NDArray[np.uint64]:
    return np.zeros(9 + 24 + 1, np.uint64)


def _result(sums: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return np.array([sums[0:8:2].sum(), sums[1:8:2].sum(), sums[8]], np.uint64)


def sum_text(data: NDArray[np.uint8], keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What the words of a text add up to.

    Args:
        data: u8[bytes], of which nothing else is read.
        keys: u64[prf.KEY_WORDS], of :func:`prf.expand`.

    Returns:
        u64[3]: the sum (low, high) and the number of words.
    """
    data = np.ascontiguousarray(data)
    sums, scratch = _sums(), np.empty(SCRATCH_BYTES, np.uint8)
    begin, whole = data.ctypes.data, max(0, data.size - PADDING) // 64 * 64
    rest = begin
    arguments = keys.ctypes.data, scratch.ctypes.data, _ONES.ctypes.data, sums.ctypes.data
    if whole:
        rest = int(_sum_words(begin, begin + whole, *arguments))
    left = data[rest - begin :]
    tail = np.full(-(-(left.size + 1) // 64) * 64 + PADDING, 32, np.uint8)
    tail[: left.size] = left
    _sum_words(tail.ctypes.data, tail.ctypes.data + tail.size - PADDING, *arguments)
    return _result(sums)


def sum_counts(
    offsets: NDArray[np.int64], data: NDArray[np.uint8], counts: NDArray[np.uint64], keys: NDArray[np.uint64],
    partition: tuple[int, int] | None = None, readable: int | None = None,
) -> NDArray[np.uint64]:  # fmt: skip
    """What counted words add up to.

    Args:
        offsets: i64[n + 1], from 0.
        data: u8[bytes].
        counts: u64[n].
        keys: as for :func:`sum_text`.
        partition: (r, R): all words have to be of partition r of R, in the order (hash, word).
        readable: the address up to which memory may be read; by default the end of ``data``.

    Returns:
        u64[3]: the sum (low, high) and the number of words.

    Raises:
        ValueError: an entry is out of form.
    """
    sums, n = _sums(), len(counts)
    if len(offsets) != n + 1 or offsets[0] != 0 or offsets[-1] != data.size:
        raise ValueError("the offsets of the words do not fit their bytes")
    r, partitions = partition or (0, 0)
    end = data.ctypes.data + data.size if readable is None else readable
    bad = _sum_entries(
        offsets.ctypes.data, data.ctypes.data, data.size, counts.ctypes.data, n, end, r, partitions, keys.ctypes.data,
        sums.ctypes.data,
    )  # fmt: skip
    if bad >= 0:
        raise ValueError(f"entry {bad} of a block of counted words is out of form, order or partition")
    return _result(sums)


def sum_lines(
    text: NDArray[np.uint8], keys: NDArray[np.uint64], partition: tuple[int, int]
) -> tuple[NDArray[np.uint64], int]:
    """What lines ``word TAB count`` add up to, and how many they are.

    Args:
        text: u8[bytes], with PADDING readable bytes after it.
        keys: as for :func:`sum_text`.
        partition: (r, R), as for :func:`sum_counts`; lines are in the order of the words' bytes.

    Raises:
        ValueError: a line is out of form.
    """
    sums = _sums()
    bad = _sum_text_lines(text.ctypes.data, text.size, *partition, keys.ctypes.data, sums.ctypes.data)
    if bad >= 0:
        raise ValueError(f"the line at byte {bad} of counted words is out of form, order or partition")
    return _result(sums), int(sums[33])
