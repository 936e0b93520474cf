"""Slow, plain twins of the kernels of checks: from the definition in ``check_hash``, and without regard to speed.

Sums are triples (low, high, items) of ints; words, keys, values and records are ``bytes``. ``None`` stands for what the
kernel refuses.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

from quoreduce_kernels.reference import (
    MASK64,
    MASK128,
    Run,
    halves,
    hash64,
    key_of,
    partition_ids,
    partition_of,
    split_words,
)

Triple = tuple[int, int, int]

ZERO: Triple = (0, 0, 0)
COUNT_MAX = 2**32 - 1


def times(x: int, y: int) -> int:
    """The product of two bytes in the field of AES, modulo x^8 + x^4 + x^3 + x + 1."""
    product = 0
    while y:
        product ^= x if y & 1 else 0
        x = x << 1 ^ (0x11B if x & 0x80 else 0)
        y >>= 1
    return product


def s_box(byte: int) -> int:
    """SubBytes of FIPS 197, section 5.1.1: the inverse, then the affine map bit by bit."""
    inverse = next((x for x in range(256) if times(x, byte) == 1), 0)
    bits = [inverse >> i & 1 for i in range(8)]
    return sum(
        (bits[i] ^ bits[(i + 4) % 8] ^ bits[(i + 5) % 8] ^ bits[(i + 6) % 8] ^ bits[(i + 7) % 8] ^ (0x63 >> i & 1)) << i
        for i in range(8)
    )


BOX = bytes(map(s_box, range(256)))
TWICE, THRICE = (bytes(times(x, factor) for x in range(256)) for factor in (2, 3))


def round_keys(key: bytes) -> list[bytes]:
    """The key schedule of AES-128: 11 keys of 16 bytes (FIPS 197, section 5.2)."""
    words = [list(key[i : i + 4]) for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 44):
        word = list(words[-1])
        if i % 4 == 0:
            word = [BOX[byte] for byte in (*word[1:], word[0])]
            word[0] ^= constant
            constant = times(constant, 2)
        words.append([a ^ b for a, b in zip(word, words[-4], strict=True)])
    return [bytes(byte for word in words[i : i + 4] for byte in word) for i in range(0, 44, 4)]


def aes(block: bytes, keys: Sequence[bytes]) -> bytes:
    """AES-128 of a block (FIPS 197, section 5.1), from its round keys."""
    state = bytes(a ^ b for a, b in zip(block, keys[0], strict=True))
    for number, key in enumerate(keys[1:], 1):
        state = bytes(BOX[state[(i + 4 * (i % 4)) % 16]] for i in range(16))
        if number < 10:
            mixed = []
            for column in (state[i : i + 4] for i in range(0, 16, 4)):
                turns = [column[i:] + column[:i] for i in range(4)]
                mixed += [TWICE[a] ^ THRICE[b] ^ c ^ d for a, b, c, d in turns]
            state = bytes(mixed)
        state = bytes(a ^ b for a, b in zip(state, key, strict=True))
    return state


class Keys(NamedTuple):
    """The parts of a key: round keys of four ciphers, the step S, 16 words of NH."""

    short: list[bytes]
    pieces: list[bytes]
    final: list[bytes]
    record: list[bytes]
    step: tuple[int, int]
    nh: list[int]


def expand(key: bytes) -> Keys:
    """Twin of ``check_keys.expand``."""
    raw = hashlib.shake_256(b"quoreduce check key 1\0" + key).digest(208)
    short, pieces, final, record = (round_keys(raw[i : i + 16]) for i in range(0, 64, 16))
    nh = [int.from_bytes(raw[i : i + 8], "little") for i in range(80, 208, 8)]
    return Keys(short, pieces, final, record, halves(raw[64:80]), nh)


def added(a: tuple[int, int], b: tuple[int, int], factor: int = 1) -> tuple[int, int]:
    """a + factor * b in (Z / 2^64)^2."""
    return (a[0] + factor * b[0]) & MASK64, (a[1] + factor * b[1]) & MASK64


def block_of(pair: tuple[int, int]) -> bytes:
    """16 bytes of (low, high)."""
    return pair[0].to_bytes(8, "little") + pair[1].to_bytes(8, "little")


def hash_pair(key: bytes, value: bytes, place: int, keys: Keys) -> tuple[int, int]:
    """h(key, value, place)."""
    cut = [part[i : i + 16].ljust(16, b"\0") for part in (key, value) for i in range(0, len(part), 16)]
    total = (len(key) + (len(value) << 32)) & MASK64, place
    for i, piece in enumerate(cut):
        total = added(total, halves(aes(block_of(added(halves(piece), keys.step, i)), keys.pieces)))
    return halves(aes(block_of(total), keys.final))


def hash_word(word: bytes, keys: Keys) -> tuple[int, int]:
    """h(word)."""
    if len(word) > 15:
        return hash_pair(word, b"", 0, keys)
    return halves(aes(word.ljust(16, bytes([len(word) - 1])), keys.short))


def hash_record(record: bytes, place: int, keys: Keys) -> tuple[int, int]:
    """h(record, place)."""
    strip = record + bytes(4) + place.to_bytes(8, "little")
    words = [int.from_bytes(strip[i : i + 8], "little") for i in range(0, 112, 8)]
    factors = [(word + k) & MASK64 for word, k in zip(words, keys.nh, strict=False)]
    nh = sum(a * b for a, b in zip(factors[::2], factors[1::2], strict=True)) & MASK128
    return halves(aes(nh.to_bytes(16, "little"), keys.record))


def total_of(hashes: Iterable[tuple[tuple[int, int], int]]) -> Triple:
    """The sum of hashes, each so many times."""
    low, high, count = ZERO
    for (a, b), times_ in hashes:
        low, high, count = low + times_ * a, high + times_ * b, count + times_
    return low & MASK64, high & MASK64, count & MASK64


def sum_text(data: bytes, key: bytes) -> Triple:
    """Twin of ``word_sums.sum_text``."""
    keys = expand(key)
    return total_of((hash_word(word, keys), times_) for word, times_ in Counter(split_words(data)).items())


def _sum_run(run: Run, partition: int, partitions: int, key: bytes) -> Triple | None:
    keys = expand(key)
    for word, count in run:
        whole = split_words(word) == [word]
        if not whole or not 1 <= count <= COUNT_MAX or partition_of(word, partitions) != partition:
            return None
    return total_of((hash_word(word, keys), count) for word, count in run)


def sum_counts(run: Run, partition: int, partitions: int, key: bytes) -> Triple | None:
    """Twin of ``word_sums.sum_counts``, of well-formed offsets."""
    order = [(hash64(word), word) for word, _ in run]
    return _sum_run(run, partition, partitions, key) if all(a < b for a, b in pairwise(order)) else None


def sum_lines(text: bytes, partition: int, partitions: int, key: bytes) -> tuple[Triple, int] | None:
    """Twin of ``word_sums.sum_lines``."""
    lines = text.split(b"\n")
    found = [re.fullmatch(rb"([^\t]+)\t([1-9][0-9]{0,9})", line) for line in lines[:-1]]
    if lines[-1] or not all(found):
        return None
    run = [(match[1], int(match[2])) for match in found if match]
    total = _sum_run(run, partition, partitions, key) if all(a < b for (a, _), (b, _) in pairwise(run)) else None
    return total and (total, len(run))


def sum_split(records: Sequence[bytes], splits: Sequence[bytes], key: bytes, placed: bool = False) -> list[Triple]:
    """Twin of ``record_sums.sum_split``."""
    ids = partition_ids(records, splits)
    parts = [[record for record, p in zip(records, ids, strict=True) if p == r] for r in range(len(splits) + 1)]
    return [sum_records(part, key, 0 if placed else None) for part in parts]


def sum_records(records: Sequence[bytes], key: bytes, first: int | None = None) -> Triple:
    """Twin of ``record_sums.sum_records``."""
    keys = expand(key)
    places = [0 if first is None else first + i for i in range(len(records))]
    return total_of((hash_record(record, place, keys), 1) for record, place in zip(records, places, strict=True))


def sum_sorted(records: Sequence[bytes], key: bytes, previous: bytes = b"") -> tuple[Triple, int, int]:
    """Twin of ``record_sums.sum_sorted``."""
    keys = ([previous] if previous else []) + [key_of(record) for record in records]
    neighbours = list(pairwise(keys))
    return sum_records(records, key), sum(b < a for a, b in neighbours), sum(a == b for a, b in neighbours)


def tied_keys(records: Sequence[bytes]) -> list[bytes]:
    """Twin of ``record_sums.tied_keys``."""
    return sorted(one for one, times_ in Counter(map(key_of, records)).items() if times_ > 1)


def sum_tied(records: Sequence[bytes], tied: Sequence[bytes], key: bytes) -> Triple:
    """Twin of ``record_sums.sum_tied``."""
    keys, some = expand(key), [(record, i) for i, record in enumerate(records) if key_of(record) in tied]
    return total_of((hash_record(record, place, keys), 1) for record, place in some)


def sum_witnessed(
    records: Sequence[bytes], witness: Sequence[tuple[int, int]], map_count: int, key: bytes
) -> tuple[list[Triple], int] | None:
    """Twin of ``record_sums.sum_witnessed`` for a sorted part; None if the witness is not of its tied records."""
    tied = set(tied_keys(records))
    some = [record for record in records if key_of(record) in tied]
    if len(some) != len(witness) or any(m >= map_count for m, _ in witness):
        return None
    keys, rows = expand(key), list(zip(some, witness, strict=True))
    sums = [
        total_of((hash_record(one, place, keys), 1) for one, (m, place) in rows if m == k) for k in range(map_count)
    ]
    return sums, sum(key_of(a) == key_of(b) and y <= x for (a, x), (b, y) in pairwise(rows))


Pair = tuple[bytes, bytes]


def sum_pairs(pairs: Sequence[Pair], key: bytes, first: int | None = None) -> Triple:
    """Twin of ``pair_sums.sum_pairs``, of pairs of the partition; of ``sum_pairs_text``, of what is in the text."""
    keys = expand(key)
    places = [0 if first is None else first + i for i in range(len(pairs))]
    return total_of((hash_pair(*pair, place, keys), 1) for pair, place in zip(pairs, places, strict=True))


def sum_pair_lines(
    text: bytes,
    partition: int,
    partitions: int,
    key: bytes,
    witness: tuple[Sequence[tuple[int, int]], int] | None = None,
) -> tuple[list[Triple], int] | None:
    """Twin of ``pair_sums.sum_pair_lines``."""
    lines = text.split(b"\n")
    if lines.pop() or not all(b"\t" in line for line in lines):
        return None
    pairs = [(one, value) for one, _, value in (line.partition(b"\t") for line in lines)]
    order, map_count = witness or ([(0, i) for i in range(len(pairs))], 1)
    if len(order) != len(pairs) or any(m >= map_count for m, _ in order):
        return None
    ranks = [(one, place) for (one, _), place in zip(pairs, order, strict=True)]
    foreign = any(partition_of(one, partitions) != partition for one, _ in pairs)
    if foreign or any(b <= a for a, b in pairwise(ranks)):
        return None
    ties = sum(a == b for (a, _), (b, _) in pairwise(pairs))
    if witness is None:
        return [sum_pairs(pairs, key)], ties
    keys, rows = expand(key), list(zip(pairs, order, strict=True))
    return [
        total_of((hash_pair(*pair, place, keys), 1) for pair, (m, place) in rows if m == k) for k in range(map_count)
    ], ties
