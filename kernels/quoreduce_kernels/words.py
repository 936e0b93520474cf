"""Word count: bytes to counted words in one pass, merge of counted runs, and their text form.

The words of a text are its maximal non-empty stretches of bytes other than ``intrinsics.SEPARATORS`` (the set of Java's
StringTokenizer). They are bytes, not characters; NUL is a byte like any other; any length is right.

Words of 1 to 15 bytes live in the *short table*: buckets of one cache line with three keys of 16 bytes (the word,
zeros, and its length in byte 15) and three values of 4 bytes. Others (and, in a merge, the empty word) live in the
*long table*: an index of hashes, entries of 32 bytes in order of first appearance, and an arena of bytes. Both grow by
doubling between two batches. What comes out depends on the multiset of words alone: never on sizes, growth or the
history of a table.

Data of a caller goes into kernels as (address, length), because a mapped file is read-only and may be unaligned, which
to numba are different array types. No kernel reads a byte outside what it is given.

Glossary: a *batch* is what is tokenised before its words are counted; a *home* is the bucket that a hash points to; a
*reference* names an entry: the address of a short key, or the address of a long entry with bit 0 set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import (
    SALT_HIGH,
    SALT_LOW,
    SEPARATORS,
    address_of,
    bswap,
    copy16,
    cttz,
    increment32,
    ld8,
    ld32,
    ld64,
    load_key,
    mulfold,
    mulhi,
    popcount,
    prefetch,
    probe_bucket,
    separator_mask,
    st8,
    st32,
    st64,
)
from quoreduce_kernels.options import cold_part, kernel, part

U = np.uint64
Columns = tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]

SHORT_BYTES_MAX = 15  # longest word that the short table holds
BATCH_BYTES = 512  # bytes tokenised before their words are counted: the latency of a probe hides behind the others
BATCH_WORDS = BATCH_BYTES // 2 + 1  # words that can end in a batch: one that began earlier, then one per two bytes
MERGE_WORDS = 256  # entries of a run merged at a time
BLOCK_BYTES = 64  # bytes per separator mask
LIKELY_ENDS = 12  # separators of a block that are listed without a test
FOLD_BYTES = 1 << 32  # bytes after which counts are folded: they hold at most 2^31 words
FOLD_BITS = 31  # a carry counts units of 2^31
CARRY_BITS = 10  # per value: three share the last 4 bytes of a bucket, for counts below 2^41

BUCKET_BYTES = 64
BUCKET_VALUES = 48  # offset of the three values
BUCKET_CARRY = 60  # offset of their carries
BUCKETS_MIN = 1 << 10
FILL_MAX = 0.65  # of 3 places per bucket; fuller, and too many words overflow their home
ENTRY_BYTES = 32  # long entry: hash, offset in the arena, length, count (8 bytes each)
LONG_WORDS_MIN = 1 << 10
ARENA_BYTES_MIN = 1 << 16
ARENA_SLACK = 16  # readable bytes after the arena
LOW32 = (1 << 32) - 1
HUGE_PAGE_BYTES = 1 << 21

# Scratch of a table: offsets of its parts.
ENDS = 0  # u32: where words of the batch end
KEYS = ENDS + 4 * (BATCH_BYTES + BLOCK_BYTES)  # 16 bytes: keys of short words
HOMES = KEYS + 16 * (BATCH_WORDS + 3)  # u64: their home buckets
AMOUNTS = HOMES + 8 * (BATCH_WORDS + 3)  # u64: what a merge adds to them
LONGS = AMOUNTS + 8 * (BATCH_WORDS + 3)  # 3 u64: address, length, amount of long words
SCRATCH_BYTES = LONGS + 24 * (BATCH_WORDS + 3)

# Sizes of radix sort and tie repair.
DIGIT_BITS = 11
TIE_SMALL = 24  # groups up to this size are sorted by insertion

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd

# State that kernels share; every field is a uint64. "Address" fields point into arrays that the class _Table holds.
STATE = np.dtype(
    [
        (name, np.uint64)
        for name in (
            "buckets",  # address, aligned to 64
            "buckets_mask",  # number of buckets - 1
            "buckets_shift",  # the home of hash h is bucket (h * spread mod 2^64) >> shift
            "spread",  # 1 in a count, whose entries then lie in order of hash, nearly; GOLDEN in a merge, see there
            "short_words",
            "short_words_max",  # at which the table must grow
            "index",  # address of u64 slots: low half of the hash << 32 | entry number + 1; 0 is free
            "index_mask",
            "index_shift",
            "entries",  # address of long entries
            "long_words",
            "long_words_max",
            "arena",  # address
            "arena_used",
            "arena_bytes",
            "values",  # address of u64 sums: in a merge a short value is a number in here + 1. In a count 0
            "scratch",  # address, aligned to 64
            "cursor",  # next byte (address) or entry (number) to process
            "stop",  # where to stop
            "word",  # address at which the word under way began
        )
    ],
    align=True,
)
_STATE = from_dtype(STATE)
_VECTOR = types.uint64[::1]
_ADDRESS = types.uint64


# ------------------------------------------------------------------------------------------------ hash


@part
def hash_key(low, high):
    """Hash of a short word from the halves of its key."""
    return mulfold(low ^ U(SALT_LOW), high ^ U(SALT_HIGH))


@part
def hash_long(address, length):
    """Hash of a word of 16 bytes or more. Reads nothing but the word."""
    h = length * U(GOLDEN)
    k = U(0)
    while k + U(16) < length:
        h = mulfold(ld64(address + k) ^ h, ld64(address + k + U(8)) ^ U(SALT_HIGH))
        k += U(16)
    last = address + length - U(16)
    return mulfold(ld64(last) ^ h, ld64(last + U(8)) ^ U(SALT_HIGH))


@cold_part
def key_halves(address, length):
    """(low, high) of the key of a word of at most 15 bytes, read byte by byte: for the last bytes of a buffer."""
    low = U(0)
    high = length << U(56)
    for k in range(length):
        if k < U(8):
            low |= ld8(address + k) << (U(8) * k)
        else:
            high |= ld8(address + k) << (U(8) * (k - U(8)))
    return low, high


@cold_part
def hash_word(address, length):
    """Hash of a word of any length. Reads nothing but the word."""
    if length > U(SHORT_BYTES_MAX):
        return hash_long(address, length)
    low, high = key_halves(address, length)
    return hash_key(low, high)


@kernel(types.uint64(_ADDRESS, _ADDRESS))
def hash_bytes(address, length):
    """hash64 of the bytes at an address."""
    return hash_word(address, length)


# ------------------------------------------------------------------------------------------------ short table


@cold_part
def place_short(t, home, low, high):
    """Address of the value of a short key, which is inserted with value 0 if it is new.

    Places of a bucket fill from the first, and buckets from the home on, circularly; nothing is ever removed.
    """
    bucket = home
    while True:
        for way in range(U(3)):
            key = bucket + U(16) * way
            value = bucket + U(BUCKET_VALUES) + U(4) * way
            if ld64(key + U(8)) == U(0):  # no length: the place is free
                st64(key, low)
                st64(key + U(8), high)
                t.short_words += U(1)
                return value
            if ld64(key) == low and ld64(key + U(8)) == high:
                return value
        bucket = t.buckets + ((bucket - t.buckets + U(BUCKET_BYTES)) & (t.buckets_mask * U(BUCKET_BYTES)))


@part
def carry_shift(way):
    """Position of the carry of a value in the last 4 bytes of its bucket."""
    return U(CARRY_BITS) * way


@part
def short_count(key):
    """Count in a short table whose values are counts: the value, and its carry in units of 2^31."""
    bucket = key & ~U(BUCKET_BYTES - 1)
    way = (key & U(BUCKET_BYTES - 1)) >> U(4)
    carry = (ld32(bucket + U(BUCKET_CARRY)) >> carry_shift(way)) & U((1 << CARRY_BITS) - 1)
    return ld32(bucket + U(BUCKET_VALUES) + U(4) * way) + (carry << U(FOLD_BITS))


@kernel(types.void(_STATE))
def fold_counts(t):
    """Move the top bit of each value to its carry, so that another 2^31 words cannot overflow a value."""
    for i in range(t.buckets_mask + U(1)):
        bucket = t.buckets + U(BUCKET_BYTES) * i
        for way in range(U(3)):
            value = ld32(bucket + U(BUCKET_VALUES) + U(4) * way)
            if value >> U(FOLD_BITS):
                st32(bucket + U(BUCKET_VALUES) + U(4) * way, value & U((1 << FOLD_BITS) - 1))
                st32(bucket + U(BUCKET_CARRY), ld32(bucket + U(BUCKET_CARRY)) + (U(1) << carry_shift(way)))


@kernel(types.void(_STATE, _ADDRESS, types.uint64))
def rehash_short(t, old, old_buckets):
    """Insert every key of an old table, with value and carry, into the empty one of the state."""
    for i in range(old_buckets):
        bucket = old + U(BUCKET_BYTES) * i
        carries = ld32(bucket + U(BUCKET_CARRY))
        for way in range(U(3)):
            low = ld64(bucket + U(16) * way)
            high = ld64(bucket + U(16) * way + U(8))
            if high:
                home = t.buckets + ((hash_key(low, high) * t.spread) >> t.buckets_shift) * U(BUCKET_BYTES)
                value = place_short(t, home, low, high)
                st32(value, ld32(bucket + U(BUCKET_VALUES) + U(4) * way))
                carry = (carries >> carry_shift(way)) & U((1 << CARRY_BITS) - 1)
                place = (value & U(BUCKET_BYTES - 1)) - U(BUCKET_VALUES)
                carry_at = (value & ~U(BUCKET_BYTES - 1)) + U(BUCKET_CARRY)
                st32(carry_at, ld32(carry_at) | (carry << carry_shift(place >> U(2))))


# ------------------------------------------------------------------------------------------------ long table


@cold_part
def copy_bytes(target, source, length):
    """Copy any number of bytes, and touch no others."""
    if length < U(16):
        for i in range(length):
            st8(target + i, ld8(source + i))
        return
    k = U(0)
    while k + U(16) < length:
        copy16(target + k, source + k)
        k += U(16)
    copy16(target + length - U(16), source + length - U(16))


@part
def same_bytes(x, y, length):
    """Whether two stretches of bytes are equal. Reads nothing else."""
    k = U(0)
    if length < U(8):
        while k < length and ld8(x + k) == ld8(y + k):
            k += U(1)
        return k == length
    while k + U(8) < length:
        if ld64(x + k) != ld64(y + k):
            return False
        k += U(8)
    return ld64(x + length - U(8)) == ld64(y + length - U(8))


@cold_part
def insert_long(t, slot, h, address, length):
    """Append a long entry with count 0, and its bytes to the arena; returns its address."""
    entry = t.entries + U(ENTRY_BYTES) * t.long_words
    st64(entry, h)
    st64(entry + U(8), t.arena_used)
    st64(entry + U(16), length)
    st64(entry + U(24), U(0))
    copy_bytes(t.arena + t.arena_used, address, length)
    t.arena_used += length
    t.long_words += U(1)
    st64(slot, (h << U(32)) | t.long_words)
    return entry


@part
def index_home(t, h):
    """Slot of the long index at which to look first. The tag in a slot is the low half of the hash."""
    return (h * U(GOLDEN)) >> t.index_shift


@part
def place_long(t, h, address, length):
    """Address of the long entry of a word, which is inserted with count 0 if it is new."""
    i = index_home(t, h)
    while True:
        slot = t.index + U(8) * i
        mark = ld64(slot)
        if mark == U(0):
            return insert_long(t, slot, h, address, length)
        if (mark ^ (h << U(32))) <= U(LOW32):
            entry = t.entries + U(ENTRY_BYTES) * ((mark & U(LOW32)) - U(1))
            if (
                ld64(entry) == h
                and ld64(entry + U(16)) == length
                and same_bytes(t.arena + ld64(entry + U(8)), address, length)
            ):
                return entry
        i = (i + U(1)) & t.index_mask


@part
def add_longs(t, count):
    """Add the amounts of the words listed in the scratch to the long table: hash and prefetch all, then probe."""
    longs = t.scratch + U(LONGS)
    hashes = t.scratch + U(HOMES)
    for j in range(count):
        h = hash_word(ld64(longs + U(24) * j), ld64(longs + U(24) * j + U(8)))
        st64(hashes + U(8) * j, h)
        prefetch(t.index + U(8) * index_home(t, h))
    for j in range(count):
        listed = longs + U(24) * j
        entry = place_long(t, ld64(hashes + U(8) * j), ld64(listed), ld64(listed + U(8)))
        st64(entry + U(24), ld64(entry + U(24)) + ld64(listed + U(16)))


@kernel(types.void(_STATE, _ADDRESS, types.uint64))
def add_long(t, address, length):
    """Count one long word."""
    entry = place_long(t, hash_word(address, length), address, length)
    st64(entry + U(24), ld64(entry + U(24)) + U(1))


@kernel(types.void(_STATE))
def rebuild_index(t):
    """Enter all long entries into the empty index of the state."""
    for n in range(t.long_words):
        h = ld64(t.entries + U(ENTRY_BYTES) * n)
        i = index_home(t, h)
        while ld64(t.index + U(8) * i):
            i = (i + U(1)) & t.index_mask
        st64(t.index + U(8) * i, (h << U(32)) | (n + U(1)))


# ------------------------------------------------------------------------------------------------ count


@part
def has_room(t, words, nbytes):
    """Whether so many new words with so many bytes in all fit without growth, wherever they go."""
    return (
        t.short_words + words <= t.short_words_max
        and t.long_words + words <= t.long_words_max
        and t.arena_used + nbytes <= t.arena_bytes
    )


@part
def list_ends(base, limit, ends):
    """List the offsets from base of all separators in [base, limit), a multiple of 64 bytes; returns their number.

    Twelve are written per block whether it has them or not: a loop without a test beats an exact one that mispredicts.
    """
    found = U(0)
    at = U(0)
    while base + at < limit:
        mask = separator_mask(base + at)
        count = popcount(mask)
        write = ends + U(4) * found
        for j in range(U(LIKELY_ENDS)):
            st32(write + U(4) * j, at + cttz(mask))
            mask &= mask - U(1)
        more = U(LIKELY_ENDS)
        while more < count:
            st32(write + U(4) * more, at + cttz(mask))
            mask &= mask - U(1)
            more += U(1)
        found += count
        at += U(BLOCK_BYTES)
    return found


@part
def load_words(t, base, word, ended):
    """Turn the ends of a batch into short keys with their homes, and a list of long words.

    Returns (start of the word under way after the last end, number of short words, number of long words).
    """
    ends = t.scratch + U(ENDS)
    keys = t.scratch + U(KEYS)
    homes = t.scratch + U(HOMES)
    buckets = t.buckets
    shift = t.buckets_shift
    shorts = U(0)
    longs = U(0)
    for j in range(ended):
        end = base + ld32(ends + U(4) * j)
        length = end - word
        home = buckets + (load_key(word, length, keys + U(16) * shorts) >> shift) * U(BUCKET_BYTES)
        st64(homes + U(8) * shorts, home)
        prefetch(home)
        if length > U(SHORT_BYTES_MAX):
            listed = t.scratch + U(LONGS) + U(24) * longs
            st64(listed, word)
            st64(listed + U(8), length)
            st64(listed + U(16), U(1))
            longs += U(1)
        # An empty word or a long one is overwritten by the next.
        shorts += U(1) if length - U(1) < U(SHORT_BYTES_MAX) else U(0)
        word = end + U(1)
    return word, shorts, longs


@part
def count_shorts(t, count):
    """Count the short words of a batch: nearly all are found in their home bucket by one vector compare."""
    keys = t.scratch + U(KEYS)
    homes = t.scratch + U(HOMES)
    for j in range(count):
        key = keys + U(16) * j
        home = ld64(homes + U(8) * j)
        hit = probe_bucket(home, key)
        if hit:
            increment32(home + U(BUCKET_VALUES) + U(2) * cttz(hit))
        else:
            increment32(place_short(t, home, ld64(key), ld64(key + U(8))))


@kernel(types.void(_STATE))
def count_blocks(t):
    """Count the words that end in [cursor, stop), a multiple of 64 bytes, until done or a table must grow first.

    Needs 16 readable bytes after stop. Moves ``cursor`` and ``word``.
    """
    base = t.cursor
    word = t.word
    while base < t.stop:
        limit = min(base + U(BATCH_BYTES), t.stop)
        if not has_room(t, U(BATCH_WORDS), limit - word):
            break
        ended = list_ends(base, limit, t.scratch + U(ENDS))
        word, shorts, longs = load_words(t, base, word, ended)
        count_shorts(t, shorts)
        if longs:
            add_longs(t, longs)
        base = limit
    t.cursor = base
    t.word = word


# ------------------------------------------------------------------------------------------------ merge


@part
def load_entries(t, run, first, last):
    """Turn entries of a run into short keys with homes and amounts, and a list of the others; returns both numbers.

    A run is often one partition, whose hashes share their first bits: so homes come from the hash times GOLDEN.
    """
    offsets, data, counts, data_end = run
    keys = t.scratch + U(KEYS)
    shorts = U(0)
    longs = U(0)
    for i in range(first, last):
        begin = ld64(offsets + U(8) * i)
        length = ld64(offsets + U(8) * i + U(8)) - begin
        address = data + begin
        amount = ld64(counts + U(8) * i)
        if length - U(1) >= U(SHORT_BYTES_MAX):
            listed = t.scratch + U(LONGS) + U(24) * longs
            st64(listed, address)
            st64(listed + U(8), length)
            st64(listed + U(16), amount)
            longs += U(1)
            continue
        key = keys + U(16) * shorts
        if address + U(16) <= data_end:
            h = load_key(address, length, key)
        else:
            low, high = key_halves(address, length)
            st64(key, low)
            st64(key + U(8), high)
            h = hash_key(low, high)
        home = t.buckets + ((h * U(GOLDEN)) >> t.buckets_shift) * U(BUCKET_BYTES)
        prefetch(home)
        st64(t.scratch + U(HOMES) + U(8) * shorts, home)
        st64(t.scratch + U(AMOUNTS) + U(8) * shorts, amount)
        shorts += U(1)
    return shorts, longs


@part
def add_shorts(t, count):
    """Add the amounts of short entries to the sums: the value of a key is the number of its sum + 1."""
    for j in range(count):
        key = t.scratch + U(KEYS) + U(16) * j
        home = ld64(t.scratch + U(HOMES) + U(8) * j)
        hit = probe_bucket(home, key)
        if hit:
            value = home + U(BUCKET_VALUES) + U(2) * cttz(hit)
        else:
            value = place_short(t, home, ld64(key), ld64(key + U(8)))
        number = ld32(value)
        if number == U(0):
            number = t.short_words
            st32(value, number)
            st64(t.values + U(8) * (number - U(1)), U(0))
        total = t.values + U(8) * (number - U(1))
        st64(total, ld64(total) + ld64(t.scratch + U(AMOUNTS) + U(8) * j))


@kernel(types.void(_STATE, _ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS))
def merge_run(t, offsets, data, counts, data_end):
    """Add the entries [cursor, stop) of a run to the tables, until done or a table must grow first."""
    run = (offsets, data, counts, data_end)
    first = t.cursor
    while first < t.stop:
        last = min(first + U(MERGE_WORDS), t.stop)
        nbytes = ld64(offsets + U(8) * last) - ld64(offsets + U(8) * first)
        if not has_room(t, U(MERGE_WORDS), nbytes):
            break
        shorts, longs = load_entries(t, run, first, last)
        add_shorts(t, shorts)
        if longs:
            add_longs(t, longs)
        first = last
    t.cursor = first


@kernel(types.int64(_ADDRESS, types.int64, types.int64))
def offsets_fault(offsets, entries, data_bytes):
    """First entry whose bytes do not lie in order inside the data, or -1."""
    previous = types.int64(0)
    for i in range(entries + 1):
        offset = types.int64(ld64(offsets + U(8) * U(i)))
        if offset < previous or offset > data_bytes:
            return types.int64(i)
        previous = offset
    return types.int64(-1)


# ------------------------------------------------------------------------------------------------ order


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


# ------------------------------------------------------------------------------------------------ columns


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


# ------------------------------------------------------------------------------------------------ text


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


# ------------------------------------------------------------------------------------------------ Python


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
