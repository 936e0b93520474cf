"""Word count: what is in a table, in order (by hash or by word), as columns and as text. The API is in ``words``."""

from __future__ import annotations

import numpy as np
from numba import types

from quoreduce_kernels.intrinsics import (
    address_of,
    bswap,
    copy16,
    ld8,
    ld32,
    ld64,
    mulhi,
    prefetch,
    st8,
)
from quoreduce_kernels.options import cold_part, kernel, part
from quoreduce_kernels.word_tables import (
    _ADDRESS,
    _STATE,
    _VECTOR,
    BUCKET_BYTES,
    BUCKET_VALUES,
    DIGIT_BITS,
    ENTRY_BYTES,
    TIE_SMALL,
    U,
    copy_bytes,
    hash_key,
    short_count,
)


@part
def word_of(t, reference):
    """(address, length) of the bytes of an entry. Up to 8 bytes after them are readable."""
    if reference & U(1):
        entry = reference - U(1)
        return t.arena + ld64(entry + U(8)), ld64(entry + U(16))
    return reference, ld8(reference + U(15))


@part
def chunk_of(t, reference, depth):
    """Bytes [depth, depth + 8) of a word as a number that orders as memcmp does; zeros after its end."""
    address, length = word_of(t, reference)
    if length <= depth:
        return U(0)
    chunk = bswap(ld64(address + depth))
    rest = length - depth
    return chunk if rest >= U(8) else chunk & ~(~U(0) >> (U(8) * rest))


@part
def precedes(t, x, y, depth):
    """Whether word x comes before word y in memcmp order, given that they agree in bytes [0, depth)."""
    _, x_bytes = word_of(t, x)
    _, y_bytes = word_of(t, y)
    while depth < x_bytes and depth < y_bytes:
        x_chunk = chunk_of(t, x, depth)
        y_chunk = chunk_of(t, y, depth)
        if x_chunk != y_chunk:
            return x_chunk < y_chunk
        depth += U(8)
    return x_bytes < y_bytes


@kernel(types.void(_STATE, types.boolean, _VECTOR, _VECTOR))
def collect(t, by_hash, ranks, references):
    """List all entries with their first sort key: the hash, or the first 8 bytes of the word."""
    n = U(0)
    for i in range(t.buckets_mask + U(1)):
        for way in range(U(3)):
            key = t.buckets + U(BUCKET_BYTES) * i + U(16) * way
            if ld64(key + U(8)) == U(0):
                break
            references[n] = key
            ranks[n] = hash_key(ld64(key), ld64(key + U(8))) if by_hash else chunk_of(t, key, U(0))
            n += U(1)
    for i in range(t.long_words):
        entry = t.entries + U(ENTRY_BYTES) * i
        references[n] = entry | U(1)
        ranks[n] = ld64(entry) if by_hash else chunk_of(t, entry | U(1), U(0))
        n += U(1)


@part
def radix_pass(ranks, items, to_ranks, to_items, shift, places):
    """One stable pass by a digit; returns whether it was needed (that is, not all digits are equal)."""
    n = len(ranks)
    mask = U((1 << DIGIT_BITS) - 1)
    places[:] = 0
    for i in range(n):
        places[(ranks[i] >> shift) & mask] += 1
    if places[(ranks[0] >> shift) & mask] == n:
        return False
    total = 0
    for d in range(1 << DIGIT_BITS):
        count = places[d]
        places[d] = total
        total += count
    for i in range(n):
        rank = ranks[i]
        d = (rank >> shift) & mask
        place = places[d]
        places[d] = place + 1
        to_ranks[place] = rank
        to_items[place] = items[i]
    return True


@cold_part
def radix_sort(ranks, items, spare_ranks, spare_items):
    """Sort items by their ranks (uint64), both in place: least significant digit first, skipping digits all equal."""
    if len(ranks) < 2:
        return
    places = np.empty(1 << DIGIT_BITS, np.int64)
    here = True
    for digit in range(U(6)):
        shift = digit * U(DIGIT_BITS)
        if here:
            moved = radix_pass(ranks, items, spare_ranks, spare_items, shift, places)
        else:
            moved = radix_pass(spare_ranks, spare_items, ranks, items, shift, places)
        here = here != moved
    if not here:
        ranks[:] = spare_ranks
        items[:] = spare_items


@cold_part
def insertion_sort(t, items, depth):
    """Sort a few references by their words, which agree in bytes [0, depth)."""
    for i in range(1, len(items)):
        item = items[i]
        j = i - 1
        while j >= 0 and precedes(t, item, items[j], depth):
            items[j + 1] = items[j]
            j -= 1
        items[j + 1] = item


@cold_part
def peel_ended(t, items, depth):
    """Bring the words of at most ``depth`` bytes to the front, shortest first; returns their number.

    In a group that agrees in bytes [0, depth), zeros standing for what is missing, each of them is a prefix of every
    longer one. Words are distinct, and those that ended earlier were peeled before: so there are at most 9.
    """
    ended = 0
    for i in range(len(items)):
        _, length = word_of(t, items[i])
        if length <= depth:
            item = items[i]
            items[i] = items[ended]
            items[ended] = item
            ended += 1
    insertion_sort(t, items[:ended], depth)
    return ended


@cold_part
def sort_group(t, ranks, items, spare_ranks, spare_items, depth):
    """Sort references by their words, which agree in bytes [0, depth): eight bytes at a time, largest groups stacked.

    Overwrites the ranks. The stack holds disjoint groups of more than TIE_SMALL.
    """
    if len(items) <= TIE_SMALL:
        insertion_sort(t, items, depth)
        return
    stack = [(0, len(items), depth)]
    while stack:
        low, high, depth = stack.pop()
        low += peel_ended(t, items[low:high], depth)
        for i in range(low, high):
            ranks[i] = chunk_of(t, items[i], depth)
        radix_sort(ranks[low:high], items[low:high], spare_ranks[low:high], spare_items[low:high])
        first = low
        for i in range(low + 1, high + 1):
            if i < high and ranks[i] == ranks[first]:
                continue
            if i - first > TIE_SMALL:
                stack.append((first, i, depth + U(8)))
            else:
                insertion_sort(t, items[first:i], depth + U(8))
            first = i


@kernel(types.void(_STATE, _VECTOR, _VECTOR, _VECTOR, _VECTOR, types.uint64))
def sort_entries(t, ranks, references, spare_ranks, spare_references, depth):
    """Sort references by rank, and those of equal rank by their words.

    ``depth``: leading bytes of a word that its rank stands for (8 for a prefix, 0 for a hash).
    """
    radix_sort(ranks, references, spare_ranks, spare_references)
    n = len(ranks)
    first = 0
    for i in range(1, n + 1):
        if i < n and ranks[i] == ranks[first]:
            continue
        if i - first > 1:
            rank = ranks[first]
            sort_group(
                t,
                ranks[first:i],
                references[first:i],
                spare_ranks[first:i],
                spare_references[first:i],
                depth,
            )
            ranks[first:i] = rank
        first = i


@kernel(types.void(_STATE, _VECTOR, _VECTOR, types.int64[::1], types.int64[::1]))
def measure_partitions(t, ranks, references, entries, nbytes):
    """Add up entries and key bytes per partition: p = (hash * R) >> 64."""
    count = U(len(entries))
    entries[:] = 0
    nbytes[:] = 0
    for i in range(len(ranks)):
        p = mulhi(ranks[i], count)
        _, length = word_of(t, references[i])
        entries[p] += 1
        nbytes[p] += types.int64(length)


@part
def count_of(t, reference):
    """Count of an entry."""
    if reference & U(1):
        return ld64(reference - U(1) + U(24))
    if t.values == U(0):
        return short_count(reference)
    bucket = reference & ~U(BUCKET_BYTES - 1)
    number = ld32(bucket + U(BUCKET_VALUES) + ((reference & U(BUCKET_BYTES - 1)) >> U(2)))
    return ld64(t.values + U(8) * (number - U(1)))


@kernel(types.void(_STATE, _VECTOR, types.int64[::1], types.uint8[::1], _VECTOR))
def fill_columns(t, references, offsets, data, counts):
    """Write entries in the order of the references. The arrays have exactly the right sizes."""
    begin = address_of(data)
    end = begin + U(len(data))
    at = begin
    n = len(references)
    for i in range(n):
        if i + 16 < n:
            prefetch(references[i + 16] & ~U(1))
        reference = references[i]
        offsets[i] = types.int64(at - begin)
        counts[i] = count_of(t, reference)
        address, length = word_of(t, reference)
        if length <= U(16) and at + U(16) <= end:
            copy16(at, address)  # what is too much is overwritten by the next word
        else:
            copy_bytes(at, address, length)
        at += length
    offsets[n] = types.int64(at - begin)


@part
def digits_of(number):
    """Number of decimal digits."""
    digits = U(1)
    while number >= U(10000):
        number //= U(10000)
        digits += U(4)
    if number >= U(100):
        return digits + (U(3) if number >= U(1000) else U(2))
    return digits + (U(1) if number >= U(10) else U(0))


@kernel(types.int64(_ADDRESS, types.int64))
def text_digits(counts, entries):
    """Decimal digits of all counts together."""
    total = U(0)
    for i in range(U(entries)):
        total += digits_of(ld64(counts + U(8) * i))
    return types.int64(total)


@kernel(types.void(_ADDRESS, _ADDRESS, _ADDRESS, types.int64, types.uint8[::1]))
def fill_text(offsets, data, counts, entries, text):
    """Write ``key TAB count LF`` per entry. The text has exactly the right size."""
    at = address_of(text)
    end = at + U(len(text))
    source_end = data + ld64(offsets + U(8) * U(entries))
    for i in range(U(entries)):
        begin = ld64(offsets + U(8) * i)
        length = ld64(offsets + U(8) * i + U(8)) - begin
        source = data + begin
        if length <= U(16) and at + U(16) <= end and source + U(16) <= source_end:
            copy16(at, source)
        else:
            copy_bytes(at, source, length)
        at += length
        st8(at, U(9))
        number = ld64(counts + U(8) * i)
        digits = digits_of(number)
        for k in range(digits):
            st8(at + digits - k, U(48) + number % U(10))
            number //= U(10)
        at += digits + U(1)
        st8(at, U(10))
        at += U(1)
