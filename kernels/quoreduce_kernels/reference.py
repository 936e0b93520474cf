"""Slow, plain twins of the kernels: the oracle of their tests, and the shortest statement of what they do.

Words are ``bytes``, a run is a list of (word, count). A record is ``bytes`` of length 100, its key the first 10; a
fingerprint is a pair (low, high) of ints. Each function does the same as its namesake in ``words``, ``records``,
``prefix``, ``fingerprint``, ``gensort``, ``textgen``, ``gridgen`` or ``sequence``, from the definition and without
regard to speed.
"""

from __future__ import annotations

import hashlib
import re
import struct
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


def select_records(records: Sequence[bytes], prefix: bytes) -> list[int]:
    """The numbers of the records that begin with the prefix."""
    return [i for i, record in enumerate(records) if record.startswith(prefix)]


def select_lines(text: bytes, prefix: bytes) -> tuple[list[bytes], int]:
    """The lines that begin with the prefix, each with a line feed, and the number of all lines."""
    whole = text.split(b"\n")
    if not whole[-1]:
        whole.pop()
    return [line + b"\n" for line in whole if line.startswith(prefix)], len(whole)


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


def split_pairs(text: bytes) -> list[tuple[bytes, bytes]]:
    """Twin of ``pairs.lines``: (before the first tab, after it) of each line."""
    whole = [line.removesuffix(b"\r") for line in text.split(b"\n")]
    whole[-1] = text.rpartition(b"\n")[2]  # the last line lacks its end, so it has nothing to lose
    if not whole[-1]:
        whole.pop()
    return [(key, value) for key, _, value in (line.partition(b"\t") for line in whole)]


def partition_pairs(pairs: Sequence[tuple[bytes, bytes]], partitions: int) -> list[list[tuple[bytes, bytes]]]:
    """Twin of ``pairs.partition`` and ``pairs.scatter``."""
    return [[pair for pair in pairs if partition_of(pair[0], partitions) == p] for p in range(partitions)]


def sort_pairs(pairs: Sequence[tuple[bytes, bytes]]) -> tuple[list[int], int]:
    """Twin of ``pairs.sort``: positions by (key, position), and the number of distinct keys."""
    return sorted(range(len(pairs)), key=lambda i: (pairs[i][0], i)), len({key for key, _ in pairs})


def format_pairs(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Twin of ``pairs.text_chunks``."""
    return b"".join(key + b"\t" + value + b"\n" for key, value in pairs)


def float32(x: float) -> float:
    """The nearest number of 32 bits. (A quotient of two such, rounded to 64 bits first, is rounded right all the
    same.)
    """
    return float(struct.unpack("<f", struct.pack("<f", x))[0])


def keep_positions(seen: int, percent: float) -> list[int]:
    """Twin of ``pairs.keep_positions``."""
    share, kept = float32(float32(percent) / 100), list[int]()
    for i in range(1, seen + 1):
        while float32(float32(len(kept)) / float32(i)) < share:
            kept.append(i - 1)
    return kept


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
    """BLAKE3 of ``data``, or the chaining value of a subtree that begins with chunk ``first_chunk`` and is not the
    root.
    """
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


def vint(n: int) -> bytes:
    """Hadoop's VInt of a length."""
    raw = n.to_bytes((n.bit_length() + 7) // 8, "big")
    return bytes([n]) if n < 128 else bytes([0x90 - len(raw)]) + raw


def serialised(payload: bytes, form: int) -> bytes:
    """A key or value of a form (see ``sequence``): Text, BytesWritable, or as it is."""
    return {-1: vint(len(payload)), -2: len(payload).to_bytes(4, "big")}.get(form, b"") + payload


def walk_records(data: bytes, sync: bytes) -> list[tuple[bytes, bytes]]:
    """Serialised (key, value) of the records in a SequenceFile without blocks; fails for what is none."""
    records, at = [], 0
    while at < len(data):
        if data[at : at + 4] == b"\xff" * 4:
            assert data[at + 4 : at + 20] == sync
            at += 20
            continue
        length, key = (int.from_bytes(data[i : i + 4], "big", signed=True) for i in (at, at + 4))
        assert 0 <= key <= length <= len(data) - at - 8
        records.append((data[at + 8 : at + 8 + key], data[at + 8 + key : at + 8 + length]))
        at += 8 + length
    return records


def grid_chunk(
    words: Sequence[bytes], ranges: Sequence[int], nbytes: int, stream: int
) -> list[tuple[list[int], list[int]]]:
    """Twin of ``gridgen.draw_chunks`` for a part of one chunk: for each record the numbers of its key's and value's
    words.
    """
    state, k, records, size = splitmix64(stream, 0), 0, [], 0
    while size < nbytes:
        u = splitmix64(state, k)
        keys = ranges[0] + ((u & 0xFFFFFFFF) * ranges[1] >> 32)
        values = ranges[2] + ((u >> 32) * ranges[3] >> 32)
        draws = [splitmix64(state, k + 1 + i) for i in range((keys + values + 1) // 2)]
        tokens = [half * len(words) >> 32 for u in draws for half in (u & 0xFFFFFFFF, u >> 32)][: keys + values]
        size += sum(len(words[token]) + 1 for token in tokens)
        records.append((tokens[:keys], tokens[keys:]))
        k += 1 + len(draws)
    return records


def grid_text(words: Sequence[bytes], tokens: Iterable[int]) -> bytes:
    """A key or value: words, each with a space after it."""
    return b"".join(words[token] + b" " for token in tokens)


def huffman_codes(lengths: Sequence[int]) -> dict[int, str]:
    """Canonical codes as strings of bits (RFC 1951, 3.2.2)."""
    codes, code, last = {}, 0, 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths) if length):
        code <<= length - last
        codes[symbol] = f"{code:0{length}b}"
        code, last = code + 1, length
    return codes


def grid_deflate(words: Sequence[bytes], items: Sequence[Sequence[int]], lengths: tuple[list[int], list[int]]) -> bytes:
    """Twin of ``gridgen.deflate``: the items as Text, each word matched with its latest place; code lengths are
    given.
    """
    literals, distances = huffman_codes(lengths[0]), huffman_codes(lengths[1])
    text, latest = bytearray(), dict[int, int]()
    order = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
    bits = "101" + f"{29:05b}"[::-1] + f"{29:05b}"[::-1] + f"{15:04b}"[::-1]
    bits += "".join("001" if symbol < 16 else "000" for symbol in order)
    bits += "".join(f"{length:04b}" for length in (*lengths[0], *lengths[1]))
    for tokens in items:
        prefix = vint(sum(len(words[token]) + 1 for token in tokens))
        bits += "".join(literals[byte] for byte in prefix)
        text += prefix
        for token in tokens:
            size, distance = len(words[token]) + 1, len(text) - latest.get(token, -(1 << 40))
            if distance <= 1 << 15:
                symbol, extra, count = (
                    (254 + size, 0, 0) if size <= 10 else (265 + (size - 11) // 2, (size - 11) % 2, 1)
                )
                bits += literals[symbol] + f"{extra:b}" * count
                count = (distance - 1).bit_length() - 2
                symbol = 2 * (count + 1) + ((distance - 1) >> count & 1)
                bits += distances[symbol]
                bits += f"{(distance - 1) & ((1 << count) - 1):0{count}b}"[::-1] if count else ""
            else:
                bits += "".join(literals[byte] for byte in words[token] + b" ")
            latest[token] = len(text)
            text += words[token] + b" "
    bits += literals[256]
    body = int(bits[::-1], 2).to_bytes(-(-len(bits) // 8), "little")
    return b"\x78\x01" + body + zlib.adler32(text).to_bytes(4, "big")
