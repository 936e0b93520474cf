"""Sort of rows (``pairs``) by keys of any length.

Keys order as memcmp does, a prefix before what it begins. The sort is stable: by (key, position). It works on groups of
rows whose keys agree in bytes [0, depth), from one group of all rows at depth 0, kept on a stack:

    chunk = bytes [depth, depth + 8) of a key, big-endian, zeros beyond its end
    word  = the highest bits of (chunk - smallest chunk of the group) that fit above the row's place in the group
    words are radix sorted; rows whose words agree above the place are a group again, at the same depth if the word
    left out bits of the chunk (which happens at most twice), else at depth + 8, less those keys that end before

If all chunks of a group are equal, depth moves on to where the first two of its keys differ. So every byte of a key is
looked at a bounded number of times, and there is no input for which the time is not about linear in the keys' bytes.
"""

from __future__ import annotations

import numpy as np

from quoreduce_kernels.intrinsics import address_of, bit_length, bswap, ld8, ld16, ld32, ld64, prefetch
from quoreduce_kernels.options import cold_part, kernel, part
from quoreduce_kernels.radix import sort_u64

_SMALL = 16  # rows: insertion sort up to here
_AHEAD = 8  # rows between a prefetch and its use
_FAR = 16
_U = np.uint64


@part
def _few_bytes(key, length):
    """A key of 1 to 7 bytes as a big-endian number: its first and its last bytes, which may overlap."""
    if length >= _U(4):
        first, last = bswap(ld32(key)) >> _U(32), bswap(ld32(key + length - _U(4))) >> _U(32)
        return (first << (_U(8) * (length - _U(4)))) | last
    if length >= _U(2):
        first, last = bswap(ld16(key)) >> _U(48), bswap(ld16(key + length - _U(2))) >> _U(48)
        return (first << (_U(8) * (length - _U(2)))) | last
    return ld8(key)


@part
def _chunk(key, length, depth):
    """Bytes [depth, depth + 8) of a key as a big-endian number, zeros beyond its end. Reads nothing but the key."""
    if depth + _U(8) <= length:
        return bswap(ld64(key + depth))
    if depth >= length:
        return _U(0)
    missing = _U(8) * (depth + _U(8) - length)
    if length >= _U(8):
        return bswap(ld64(key + length - _U(8))) << missing
    return _few_bytes(key, length) << missing


@cold_part
def _compare(rows, a, b, depth):
    """-1, 0 or 1: the order of the keys of rows a and b, which agree in bytes [0, depth)."""
    length_a, length_b = rows[a, 1], rows[b, 1]
    shorter = min(length_a, length_b)
    while depth < shorter:
        x, y = _chunk(rows[a, 0], length_a, depth), _chunk(rows[b, 0], length_b, depth)
        if x != y:
            return -1 if x < y else 1
        depth += _U(8)
    if length_a == length_b:
        return 0
    return -1 if length_a < length_b else 1


@cold_part
def _sort_few(rows, order, low, high, depth):
    """Sort order[low:high] by insertion; return how many keys are equal to the one before."""
    for i in range(low + 1, high):
        row = order[i]
        j = i - 1
        while j >= low and _compare(rows, order[j], row, depth) > 0:
            order[j + 1] = order[j]
            j -= 1
        order[j + 1] = row
    equal = 0
    for i in range(low + 1, high):
        equal += _compare(rows, order[i - 1], order[i], depth) == 0
    return equal


@cold_part
def _read_chunks(rows, order, low, high, depth, words):
    """words[i] = chunk of row order[i]; return the smallest and the largest."""
    smallest, largest = ~_U(0), _U(0)
    for i in range(low, high):
        if i + _FAR < high:
            prefetch(address_of(rows) + _U(32) * order[i + _FAR])
        if i + _AHEAD < high:
            prefetch(rows[order[i + _AHEAD], 0] + depth)
        r = order[i]
        chunk = _chunk(rows[r, 0], rows[r, 1], depth)
        words[i] = chunk
        smallest, largest = min(smallest, chunk), max(largest, chunk)
    return smallest, largest


@cold_part
def _split_ended(rows, order, low, high, depth, words):
    """Bring keys that end before byte depth + 9 to the front of a group with equal chunks, shortest first, stable.

    Returns (how many of these are equal to the one before, where the others begin).
    """
    counts = np.zeros(11, np.int64)
    for i in range(low, high):
        words[i] = order[i]
        counts[min(rows[order[i], 1] - depth, _U(9)) + _U(1)] += 1
    equal = 0
    for k in range(9):
        equal += max(counts[k + 1] - 1, 0)
    counts[0] = low
    for k in range(10):
        counts[k + 1] += counts[k]
    others = counts[9]
    for i in range(low, high):
        k = min(rows[words[i], 1] - depth, _U(9))
        order[counts[k]] = words[i]
        counts[k] += 1
    return equal, others


@cold_part
def _common(rows, order, low, high, depth):
    """The largest depth + 8 k up to which all keys of a group, which agree in bytes [0, depth), agree and go on."""
    first = rows[order[low], 0]
    limit = rows[order[low], 1]
    for i in range(low + 1, high):
        key = rows[order[i], 0]
        limit = min(limit, rows[order[i], 1])
        k = depth
        while k + _U(8) <= limit and ld64(first + k) == ld64(key + k):
            k += _U(8)
        limit = min(limit, k)
    return limit - ((limit - depth) & _U(7))


@part
def _ask_for_ties(rows, order, windows, i, high):
    """Prefetch the rows and keys of a group of equal windows that begins soon after place i."""
    far = i + _FAR
    if far + 1 < high and windows[far] == windows[far + 1]:
        prefetch(address_of(rows) + _U(32) * order[far])
        prefetch(address_of(rows) + _U(32) * order[far + 1])
    near = i + _AHEAD
    if near + 1 < high and windows[near] == windows[near + 1]:
        prefetch(rows[order[near], 0])
        prefetch(rows[order[near + 1], 0])


@kernel("i8(u8[:, ::1], u8[::1], u8[::1], u8[::1])")
def sort_rows(rows, order, words, other):
    """Fill ``order`` with row numbers by (key, number); return how many keys are equal to the one before."""
    n = rows.shape[0]
    for i in range(n):
        order[i] = i
    equal = 0
    stack = [(0, n, _U(0))]
    while len(stack) > 0:
        low, high, depth = stack.pop()
        if high - low <= _SMALL:
            equal += _sort_few(rows, order, low, high, depth)
            continue
        smallest, largest = _read_chunks(rows, order, low, high, depth, words)
        if smallest == largest:
            ended, others = _split_ended(rows, order, low, high, depth, words)
            equal += ended
            if others < high:
                stack.append((others, high, _common(rows, order, others, high, depth + _U(8))))
            continue
        place_bits = _U(bit_length(_U(high - low - 1)))
        places = (_U(1) << place_bits) - _U(1)
        bits = _U(bit_length(largest - smallest))
        down = max(bits + place_bits, _U(64)) - _U(64)
        for i in range(low, high):
            words[i] = (((words[i] - smallest) >> down) << place_bits) | _U(i - low)
        sort_u64(words, other, low, high, _U(0), (((largest - smallest) >> down) << place_bits) | places)
        for i in range(low, high):
            words[i] = order[_U(low) + (other[i] & places)]
            other[i] >>= place_bits
        for i in range(low, high):
            order[i] = words[i]
        first = low
        for i in range(low + 1, high + 1):
            _ask_for_ties(rows, order, other, i, high)
            if i < high and other[i] == other[first]:
                continue
            if i - first > 1:
                if i - first <= _SMALL:
                    equal += _sort_few(rows, order, first, i, depth)
                elif down > _U(0):
                    stack.append((first, i, depth))
                else:
                    ended, others = _split_ended(rows, order, first, i, depth, words)
                    equal += ended
                    if others < i:
                        stack.append((others, i, depth + _U(8)))
            first = i
    return equal
