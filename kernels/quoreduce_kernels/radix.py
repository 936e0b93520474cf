"""Radix sort of 64-bit words: one MSD pass over all of them, then two LSD passes over each bucket, in cache.

Records and rows are sorted by words that have a piece of the key above the number of the record or row.

words, other: u64[n] each. Sorting goes from words to other; words is scratch afterwards.
"""

from __future__ import annotations

import numpy as np

from quoreduce_kernels.intrinsics import bit_length
from quoreduce_kernels.options import cold_part, kernel, part

_LSD_BITS = 10  # two passes: 20 bits below the MSD digit
_MSD_BITS_MAX = 11  # 2048 write streams
_SMALL = 64  # words: insertion sort up to here
_CACHE_WORDS = 1 << 16  # a bucket beyond 512 KiB is split again before LSD passes, if bits are left to split on
_SHIFTS_PER_WORD = 8  # insertion sort gives up beyond
_U = np.uint64
_LSD = np.uint64(_LSD_BITS)
_LSD_MASK = np.uint64((1 << _LSD_BITS) - 1)
_ONE = np.uint64(1)


@cold_part
def _insertion(values, low, high, shifts_max):
    """Sort values[low:high]; return False, leaving a permutation of them, once shifts_max is exceeded."""
    shifts = 0
    for i in range(low + 1, high):
        value = values[i]
        j = i - 1
        if values[j] > value:
            while j >= low and values[j] > value:
                values[j + 1] = values[j]
                j -= 1
            values[j + 1] = value
            shifts += i - 1 - j
            if shifts > shifts_max:
                return False
    return True


@cold_part
def _msd_pass(words, other, low, high, base, shift, bounds, cursor):
    """Distribute words[low:high] to other by (word - base) >> shift; bounds[b] = start of bucket b."""
    buckets = bounds.size - 1
    for b in range(bounds.size):
        bounds[b] = 0
    for i in range(low, high):
        bounds[((words[i] - base) >> shift) + _ONE] += 1
    bounds[0] = low
    for b in range(buckets):
        bounds[b + 1] += bounds[b]
        cursor[b] = bounds[b]
    for i in range(low, high):
        word = words[i]
        b = (word - base) >> shift
        q = cursor[b]
        cursor[b] = q + 1
        other[q] = word


@cold_part
def _lsd_passes(words, other, low, high, base, shift, first, second):
    """Sort other[low:high] by the 20 bits of (word - base) below ``shift``, through words and back; stable."""
    shift1 = shift - _LSD if shift > _LSD else _U(0)
    shift0 = shift1 - _LSD if shift1 > _LSD else _U(0)
    for j in range(first.size):
        first[j] = 0
        second[j] = 0
    for i in range(low, high):
        d = other[i] - base
        first[(d >> shift0) & _LSD_MASK] += 1
        second[(d >> shift1) & _LSD_MASK] += 1
    a, b = low, low
    for j in range(first.size):
        count = first[j]
        first[j] = a
        a += count
        count = second[j]
        second[j] = b
        b += count
    for i in range(low, high):
        word = other[i]
        digit = ((word - base) >> shift0) & _LSD_MASK
        q = first[digit]
        first[digit] = q + 1
        words[q] = word
    for i in range(low, high):
        word = words[i]
        digit = ((word - base) >> shift1) & _LSD_MASK
        q = second[digit]
        second[digit] = q + 1
        other[q] = word


@cold_part
def _copy_words(source, target, low, high):
    for i in range(low, high):
        target[i] = source[i]


@cold_part
def _limits(words, low, high):
    smallest, largest = words[low], words[low]
    for i in range(low, high):
        smallest = min(smallest, words[i])
        largest = max(largest, words[i])
    return smallest, largest


@part
def _msd_bits(n):
    """Bits of the MSD digit: buckets of about 2048 to 4096 words, until there are 2048 of them."""
    return min(max(bit_length(_U(n)) - 12, 1), _MSD_BITS_MAX)


@kernel("void(u8[::1], u8[::1], i8, i8, u8, u8)")
def sort_u64(words, other, low, high, base, largest):
    """Sort words[low:high], all within base..largest, into other[low:high]; words[low:high] is scratch afterwards.

    Linear for any input: a bucket that the passes would not finish (too large for the cache, or most words equal in
    the 20 bits that LSD sees) is sorted by a call of its own, whose range is smaller by the MSD digit.
    """
    if high - low <= _SMALL:
        _copy_words(words, other, low, high)
        _insertion(other, low, high, _SMALL * _SMALL)
        return
    digit_bits = _msd_bits(high - low)
    shift = _U(max(bit_length(largest - base) - digit_bits, 0))
    bounds = np.empty(((largest - base) >> shift) + _U(2), np.int64)
    cursor = np.empty(bounds.size, np.int64)
    _msd_pass(words, other, low, high, base, shift, bounds, cursor)
    first, second = np.empty(1 << _LSD_BITS, np.int64), np.empty(1 << _LSD_BITS, np.int64)
    for b in range(bounds.size - 1):
        start, stop = bounds[b], bounds[b + 1]
        if stop - start <= _SMALL:
            _insertion(other, start, stop, _SMALL * _SMALL)
            continue
        finished = False
        if stop - start <= _CACHE_WORDS or shift <= _LSD + _LSD:
            bucket_base = base + (_U(b) << shift)
            _lsd_passes(words, other, start, stop, bucket_base, shift, first, second)
            finished = _insertion(other, start, stop, _SHIFTS_PER_WORD * (stop - start))
        if not finished:
            _copy_words(other, words, start, stop)
            smallest_here, largest_here = _limits(words, start, stop)
            sort_u64(words, other, start, stop, smallest_here, largest_here)
