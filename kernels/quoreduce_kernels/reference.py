"""Slow, plain twins of the kernels in ``words``: the oracle of the tests, and the shortest statement of what they do.

Words are ``bytes``, a run is a list of (word, count). Nothing here is meant to be fast.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

Run = list[tuple[bytes, int]]

SEPARATORS = b" \t\n\r\f"
MASK64 = (1 << 64) - 1
SALT_LOW = 0xA0761D6478BD2065
SALT_HIGH = 0xE7037ED1A00AB4DB
GOLDEN = 0x9E3779B97F4A7C15


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
