"""Slow, plain twins of the kernels: the oracle of their tests, and the shortest statement of what they do.

Words are ``bytes``, a run is a list of (word, count). A record is ``bytes`` of length 100, its key the first 10; a fingerprint is
a pair (low, high) of ints. Each function does the same as its namesake in ``words``, ``records``, ``fingerprint``, ``gensort`` or
``textgen``, from the definition and without regard to speed.
"""

from __future__ import annotations

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

Run = list[tuple[bytes, int]]
Fingerprint = tuple[int, int]

SEPARATORS = b" \t\n\r\f"
RECORD_BYTES = 100
KEY_BYTES = 10
MASK64 = (1 << 64) - 1
MASK128 = (1 << 128) - 1
SALT_LOW = 0xA0761D6478BD2065
SALT_HIGH = 0xE7037ED1A00AB4DB
GOLDEN = 0x9E3779B97F4A7C15
# Masks of the parts of a binary record after its key, each 10 bytes, as published with gensort 1.5.
MASKS = bytes.fromhex(
    "F0E8E4E2E1D8D4D2D1CC CAC9C6C5C3B8B4B2B1AC AAA9A6A5A39C9A999695 938E8D8B87787472716C 6A696665635C5A595655"
    "534E4D4B473C3A393635 332E2D2B271E1D1B170F C8C4C2C1989492918CE0 170F332E2D2B271E1D1B"
)


# ---- words


def fold(a: int, b: int) -> int:
    """Low half xor high half of the 128-bit product."""
    product = a * b
    return (product & MASK64) ^ (product >> 64)


def halves(block: bytes) -> tuple[int, int]:
    """The two little-endian 64-bit numbers in 16 bytes."""
    return int.from_bytes(block[:8], "little"), int.from_bytes(block[8:16], "little")


def hash64(word: bytes) -> int:
    """Twin of ``words.hash64``, whose docstring gives the formula."""
    n = len(word)
    if n <= 15:
        low, high = halves(word.ljust(15, b"\0") + bytes([n]))
        return fold(low ^ SALT_LOW, high ^ SALT_HIGH)
    h = n * GOLDEN & MASK64
    blocks = [word[k : k + 16] for k in range(0, n - 16, 16)] + [word[-16:]]
    for block in blocks:
        low, high = halves(block)
        h = fold(low ^ h, high ^ SALT_HIGH)
    return h


def split_words(data: bytes) -> list[bytes]:
    """The words of a text: its maximal non-empty stretches without separators."""
    return [word for word in re.split(b"[" + SEPARATORS + b"]", data) if word]


def count_words(data: bytes) -> Run:
    """Twin of ``WordCounter.count``: distinct words with counts, ordered by (hash64, word)."""
    return sorted(Counter(split_words(data)).items(), key=lambda entry: (hash64(entry[0]), entry[0]))


def partition_of(word: bytes, partitions: int) -> int:
    """The partition of a word: (hash64 * R) >> 64."""
    return hash64(word) * partitions >> 64


def partitions_of(run: Run, partitions: int) -> list[Run]:
    """Twin of ``partition_sizes`` and ``fill``: the run cut into R runs."""
    return [[entry for entry in run if partition_of(entry[0], partitions) == r] for r in range(partitions)]


def merge_counts(runs: Iterable[Run]) -> Run:
    """Twin of ``words.merge_counts``: sums per word modulo 2^64, in the order of memcmp."""
    sums: dict[bytes, int] = {}
    for run in runs:
        for word, count in run:
            sums[word] = (sums.get(word, 0) + count) & MASK64
    return sorted(sums.items())


def format_counts(run: Run) -> bytes:
    """Twin of ``words.format_counts``."""
    return b"".join(word + b"\t%d\n" % count for word, count in run)


# ---- records


def split_records(data: bytes) -> list[bytes]:
    """Cut a buffer into records."""
    return [data[i : i + RECORD_BYTES] for i in range(0, len(data), RECORD_BYTES)]


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
    high ^= fold(low ^ keys[16], 0x9E3779B97F4A7C15)
    low ^= fold(high ^ keys[17], 0xD1B54A32D192ED03)
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
    if kind == "binary":
        record = b""
        for mask in (bytes(10), *(MASKS[k : k + 10] for k in range(0, 90, 10))):
            record += (r >> 48 ^ int.from_bytes(mask, "big")).to_bytes(10, "big")
            r = (r * 0x2360ED051FC65DA44385DF649FCCF645 + 0x4A696D47726179524950202020202001) & MASK128
        return record
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


# ---- BLAKE3

BLAKE3_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
BLAKE3_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)


def blake3_compress(cv: Sequence[int], block: bytes, counter: int, length: int, flags: int) -> list[int]:
    """The compression function: 8 words of chaining value from 8 words and a block of 64 bytes."""
    m = [int.from_bytes(block[i : i + 4], "little") for i in range(0, 64, 4)]
    v = [*cv, *BLAKE3_IV[:4], counter & 0xFFFFFFFF, counter >> 32, length, flags]

    def rotate(x: int, n: int) -> int:
        return (x >> n | x << 32 - n) & 0xFFFFFFFF

    def mix(a: int, b: int, c: int, d: int, x: int, y: int) -> None:
        for word, first, second in ((x, 16, 12), (y, 8, 7)):
            v[a] = v[a] + v[b] + word & 0xFFFFFFFF
            v[d] = rotate(v[d] ^ v[a], first)
            v[c] = v[c] + v[d] & 0xFFFFFFFF
            v[b] = rotate(v[b] ^ v[c], second)

    for _ in range(7):
        for i in range(4):
            mix(i, 4 + i, 8 + i, 12 + i, m[2 * i], m[2 * i + 1])
        for i in range(4):
            mix(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4, m[8 + 2 * i], m[9 + 2 * i])
        m = [m[p] for p in BLAKE3_PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def blake3(data: bytes, first_chunk: int = 0, root: bool = True) -> bytes:
    """BLAKE3 of ``data``, or the chaining value of a subtree that begins with chunk ``first_chunk`` and is not the root."""
    if len(data) > 1024:
        left = 1024 << ((len(data) - 1) // 1024).bit_length() - 1
        pair = blake3(data[:left], first_chunk, False) + blake3(data[left:], first_chunk + left // 1024, False)
        words = blake3_compress(BLAKE3_IV, pair, 0, 64, 4 | (8 if root else 0))
    else:
        blocks = [data[i : i + 64] for i in range(0, len(data), 64)] or [b""]
        words = list(BLAKE3_IV)
        for k, block in enumerate(blocks):
            last = k == len(blocks) - 1
            flags = (k == 0) | (2 | (8 if root else 0) if last else 0)
            words = blake3_compress(words, block.ljust(64, b"\0"), first_chunk, len(block), flags)
    return b"".join(word.to_bytes(4, "little") for word in words)
