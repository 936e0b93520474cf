"""Word count: the tables, and the kernels that count words into them and merge counted runs. The API is in ``words``.

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

import numpy as np
from numba import from_dtype, types
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import (
    SALT_HIGH,
    SALT_LOW,
    copy16,
    cttz,
    increment32,
    ld8,
    ld32,
    ld64,
    load_key,
    mulfold,
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
