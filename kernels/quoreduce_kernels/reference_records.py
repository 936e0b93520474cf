"""Slow, plain twins of the kernels for records, fingerprints, generated records and text: the oracle of their tests.

A record is ``bytes`` of length 100, its key the first 10; a fingerprint is a pair (low, high) of ints. Each function
does the same as its namesake in ``records``, ``fingerprint``, ``gensort`` or ``textgen``, from the definition and
without regard to speed.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterable, Sequence
from itertools import pairwise

Fingerprint = tuple[int, int]

RECORD_BYTES = 100
KEY_BYTES = 10
MASK64 = (1 << 64) - 1
MASK128 = (1 << 128) - 1


def split_records(data: bytes) -> list[bytes]:
    """Cut a buffer into records."""
    return [data[i : i + RECORD_BYTES] for i in range(0, len(data), RECORD_BYTES)]


# ---- records


def key_of(record: bytes) -> bytes:
    """The first 10 bytes."""
    return record[:KEY_BYTES]


def partition_ids(records: Iterable[bytes], splits: Sequence[bytes]) -> list[int]:
    """The number of split keys <= the key, for each record."""
    return [sum(split <= key_of(record) for split in splits) for record in records]


def scatter(records: Sequence[bytes], ids: Sequence[int], partitions: int) -> list[bytes]:
    """The records of each partition, in order."""
    return [b"".join(r for r, p in zip(records, ids, strict=True) if p == q) for q in range(partitions)]


def sample_keys(records: Sequence[bytes], count: int) -> list[bytes]:
    """The keys in the middles of ``count`` equal stretches."""
    m = min(count, len(records))
    return [key_of(records[(2 * i + 1) * len(records) // (2 * m)]) for i in range(m)]


def choose_splits(sample: Sequence[bytes], partitions: int) -> list[bytes]:
    """The keys of rank i * m // R of a sample, i = 1..R-1."""
    ordered = sorted(sample) or [bytes(KEY_BYTES)]
    return [ordered[i * len(ordered) // partitions] for i in range(1, partitions)]


def sort_runs(runs: Sequence[Sequence[bytes]]) -> list[int]:
    """The numbers of the records over all runs, ordered by (key, number)."""
    keys = [key_of(record) for run in runs for record in run]
    return sorted(range(len(keys)), key=lambda i: (keys[i], i))


def merge_runs(runs: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The records of sorted runs in order; the earlier run first among equal keys."""
    return sorted((record for run in runs for record in run), key=key_of)


def validate_sorted(records: Sequence[bytes], previous: bytes = b"") -> tuple[int, int, bytes]:
    """First record below its predecessor or -1, records equal to theirs before that, last key."""
    keys = ([previous] if previous else []) + [key_of(record) for record in records]
    offset = 0 if previous else 1
    duplicates = 0
    bad = -1
    for i, (a, b) in enumerate(pairwise(keys)):
        if b < a:
            bad = i + offset
            break
        duplicates += a == b
    return bad, duplicates, keys[-1] if keys else b""


# ---- fingerprints


def _fold(a: int, b: int) -> int:
    return (a * b & MASK64) ^ (a * b >> 64)


def _words(data: bytes) -> list[int]:
    return [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]


def fingerprint(piece: bytes, key: bytes) -> Fingerprint:
    """The formula in the docstring of ``fingerprint``, for one piece."""
    keys = _words(hashlib.shake_128(key).digest(160))
    multiplier = keys[18] | 1 | keys[19] << 64
    chain = 0
    for start in range(0, len(piece), 128):
        words = _words(piece[start : start + 128].ljust(128, b"\0"))
        sums = [(word + k) & MASK64 for word, k in zip(words, keys[:16], strict=True)]
        chain = (chain * multiplier + sum(a * b for a, b in zip(sums[::2], sums[1::2], strict=True))) & MASK128
    low, high = chain & MASK64, chain >> 64
    high ^= _fold(low ^ keys[16], 0x9E3779B97F4A7C15)
    low ^= _fold(high ^ keys[17], 0xD1B54A32D192ED03)
    return low, high


def fingerprints(data: bytes, stride: int, key: bytes) -> list[Fingerprint]:
    """The fingerprints of the pieces of a buffer."""
    return [fingerprint(data[i : i + stride], key) for i in range(0, len(data), stride)]


def checksum128(data: bytes) -> int:
    """The checksum of a whole buffer."""
    if not data:
        return 0
    low, high = fingerprint(data, b"quoreduce check1")
    return (low + (high << 64) + len(data) * 0x9E3779B97F4A7C15F39CC0605CEDC835) & MASK128


def sum128(values: Iterable[Fingerprint]) -> int:
    """The sum of fingerprints modulo 2**128."""
    return sum(low | high << 64 for low, high in values) & MASK128


# ---- generated records


def generate_record(number: int, kind: str) -> bytes:
    """Record ``number``, by taking as many steps of the generator."""
    r = 0
    for _ in range(number + 1):
        r = (r * 0x2360ED051FC65DA44385DF649FCCF645 + 0x4A696D47726179524950202020202001) & MASK128
    digits = f"{r:032X}"
    name = b"%032X" % number
    if kind == "teragen":
        filler = "".join(4 * d for d in digits[20:]).encode()
        return r.to_bytes(16, "big")[:10] + b"\x00\x11" + name + b"\x88\x99\xaa\xbb" + filler + b"\xcc\xdd\xee\xff"
    high, low = r >> 64, r & MASK64
    key = bytes(32 + high // 95**i % 95 for i in range(8)) + bytes(32 + low // 95**i % 95 for i in range(2))
    return key + b"  " + name + b"  " + "".join(4 * d for d in digits[19:]).encode() + b"\r\n"


def crc_sum(records: Iterable[bytes]) -> int:
    """The sum of the records' CRC-32."""
    return sum(zlib.crc32(record) for record in records) & MASK128


# ---- text


def splitmix64(stream: int, k: int) -> int:
    """Value k of a SplitMix64 stream."""
    z = (stream + (k + 1) * 0x9E3779B97F4A7C15) & MASK64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & MASK64
    z = (z ^ z >> 27) * 0x94D049BB133111EB & MASK64
    return z ^ z >> 31


def generate_text(chunk: int, nbytes: int, seed: int, words: Sequence[bytes], law: Sequence[int]) -> bytes:
    """A chunk: words drawn by ``law`` (sums of probability, times 2**53), in lines of 90 characters or more."""
    state = splitmix64(splitmix64(seed, 0), chunk)
    text = bytearray()
    line, k = 0, 0
    while len(text) + 32 < nbytes:
        u = splitmix64(state, k) >> 11
        text += words[next(i for i, bound in enumerate(law) if bound > u)]
        full = len(text) - line >= 90
        text += b"\n" if full else b" "
        line = len(text) if full else line
        k += 1
    letters = b"etaoinsrhldcumfpgwybvkxjqz" * 4
    return bytes(text) + letters[: nbytes - len(text) - 1] + b"\n"
