"""Slow, plain twins of what checks compute (``prf``, ``word_sums``): the oracle of their tests."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from functools import lru_cache

MASK = (1 << 64) - 1
SEPARATORS = re.compile(rb"[ \t\n\f\r]+")


@lru_cache
def _expanded(key: bytes) -> tuple[bytes, bytes, tuple[int, ...], int]:
    """The two keys of the function, 16 words of NH, and its multiplier."""
    raw = hashlib.shake_256(b"quoreduce check 1" + key).digest(32 + 18 * 8)
    words = [int.from_bytes(raw[i : i + 8], "little") for i in range(32, len(raw), 8)]
    return raw[:16], raw[16:32], tuple(words[:16]), words[17] << 64 | words[16] | 1


def _double(x: int) -> int:
    return (x << 1) ^ (0x11B if x & 0x80 else 0)


def _times(x: int, y: int) -> int:
    total = 0
    while y:
        total ^= x if y & 1 else 0
        x, y = _double(x), y >> 1
    return total


@lru_cache
def _substitution() -> tuple[int, ...]:
    out = []
    for x in range(256):
        inverse = next((y for y in range(256) if _times(x, y) == 1), 0)
        bits = [inverse >> i & 1 for i in range(8)]
        turned = [
            bits[i] ^ bits[(i + 4) % 8] ^ bits[(i + 5) % 8] ^ bits[(i + 6) % 8] ^ bits[(i + 7) % 8] for i in range(8)
        ]
        out.append(sum(bit << i for i, bit in enumerate(turned)) ^ 0x63)
    return tuple(out)


def aes128(block: bytes, key: bytes) -> bytes:
    """AES-128 of one block (FIPS 197, 5.1)."""
    box, words, constant = _substitution(), [list(key[i : i + 4]) for i in range(0, 16, 4)], 1
    for i in range(4, 44):
        word = list(words[i - 1])
        if i % 4 == 0:
            word = [box[byte] for byte in word[1:] + word[:1]]
            word[0] ^= constant
            constant = _double(constant)
        words.append([a ^ b for a, b in zip(words[i - 4], word, strict=True)])
    keys = [[byte for word in words[4 * i : 4 * i + 4] for byte in word] for i in range(11)]
    state = [a ^ b for a, b in zip(block, keys[0], strict=True)]
    for n in range(1, 11):
        state = [box[state[(i + 4 * (i % 4)) % 16]] for i in range(16)]  # bytes and rows
        if n < 10:
            mixed = []
            for column in range(0, 16, 4):
                a = state[column : column + 4]
                mixed += [
                    _double(a[i]) ^ _double(a[(i + 1) % 4]) ^ a[(i + 1) % 4] ^ a[(i + 2) % 4] ^ a[(i + 3) % 4]
                    for i in range(4)
                ]
            state = mixed
        state = [a ^ b for a, b in zip(state, keys[n], strict=True)]
    return bytes(state)


def siphash128(message: bytes, key: bytes) -> bytes:
    """SipHash-2-4 with 128 bits of output, of a message of 16 bytes."""
    k = [int.from_bytes(key[i : i + 8], "little") for i in (0, 8)]
    starts = (0x736F6D6570736575, 0x646F72616E646F6D, 0x6C7967656E657261, 0x7465646279746573)
    v = [start ^ k[i % 2] for i, start in enumerate(starts)]
    v[1] ^= 0xEE

    def rounds(n: int) -> None:
        for _ in range(n):
            for a, b, turn in ((0, 1, 13), (2, 3, 16), (0, 3, 21), (2, 1, 17)):
                v[a] = (v[a] + v[b]) & MASK
                v[b] = ((v[b] << turn | v[b] >> (64 - turn)) & MASK) ^ v[a]
                if turn in (13, 17):
                    v[a] = (v[a] << 32 | v[a] >> 32) & MASK

    for word in (*(int.from_bytes(message[i : i + 8], "little") for i in (0, 8)), 16 << 56):
        v[3] ^= word
        rounds(2)
        v[0] ^= word
    out = b""
    for lane, value in ((2, 0xEE), (1, 0xDD)):
        v[lane] ^= value
        rounds(4)
        out += (v[0] ^ v[1] ^ v[2] ^ v[3]).to_bytes(8, "little")
    return out


@lru_cache(maxsize=4096)
def word_hash(word: bytes, key: bytes, function: str) -> tuple[int, int]:
    """h of a word of 1 byte or more, (low, high); ``function``: ``aes`` or ``siphash``."""
    first, second, nh, multiplier = _expanded(key)
    if len(word) <= 15:
        block, chosen = word + bytes((len(word) - 1,)) * (16 - len(word)), first
    else:
        block, chosen = _of_long(word, nh, multiplier), second
    out = (aes128 if function == "aes" else siphash128)(block, chosen)
    return int.from_bytes(out[:8], "little"), int.from_bytes(out[8:], "little")


def _of_long(word: bytes, nh: tuple[int, ...], multiplier: int) -> bytes:
    starts = [*range(0, len(word) - 16, 16), len(word) - 16]
    total = 0
    for n, at in enumerate(starts):
        if n and n % 8 == 0:
            total = total * multiplier % (1 << 128)
        x, y = (int.from_bytes(word[i : i + 8], "little") for i in (at, at + 8))
        total += ((x + nh[2 * (n % 8)]) & MASK) * ((y + nh[2 * (n % 8) + 1]) & MASK)
    total %= 1 << 128
    low, high = total & MASK, total >> 64
    return ((low + len(word)) & MASK).to_bytes(8, "little") + high.to_bytes(8, "little")


def sum_counted(words: Iterable[tuple[bytes, int]], key: bytes, function: str) -> tuple[int, int, int]:
    """What counted words add up to: (low, high), and how many they are."""
    low = high = count = 0
    for word, n in words:
        a, b = word_hash(word, key, function)
        low, high, count = (low + n * a) & MASK, (high + n * b) & MASK, count + n
    return low, high, count


def sum_text(text: bytes, key: bytes, function: str) -> tuple[int, int, int]:
    """What the words of a text add up to."""
    return sum_counted(((word, 1) for word in SEPARATORS.split(text) if word), key, function)
