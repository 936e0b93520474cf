"""Keys of checks: what the secret 32 bytes of one check expand to.

From SHAKE-256 of a prefix and the key (FIPS 202) come, in this order: four AES-128 keys, the step S (16 bytes), and 16
words of NH. Each AES key is expanded to its 11 round keys (FIPS 197, section 5.2). Kernels take the address of all of
it, and find the parts at the offsets below, in bytes.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

U64Array = NDArray[np.uint64]

KEY_BYTES = 32
ROUNDS = 10
ROUND_KEY_BYTES = 16 * (ROUNDS + 1)
PREFIX = b"quoreduce check key 1\0"

# Offsets in bytes. Round keys of the four ciphers:
SHORT = 0  # words of 1 to 15 bytes
PIECES = SHORT + ROUND_KEY_BYTES  # pieces of 16 bytes of longer ones
FINAL = PIECES + ROUND_KEY_BYTES  # the sum of the pieces
RECORD = FINAL + ROUND_KEY_BYTES  # NH of a record
LANES = RECORD + ROUND_KEY_BYTES  # 0, S, 2 S, 3 S: 64 bytes
STEP = LANES + 16
NH = LANES + 64  # 16 words
TABLE = NH + 128  # four tables of AES, 1024 bytes each, for CPUs without AES
ALL_BYTES = TABLE + 4096


def _doubled(x: int) -> int:
    """x times 2 in the field of AES."""
    return (x << 1 ^ 0x11B) & 0xFF if x & 0x80 else x << 1


def _s_box() -> bytes:
    """The S-box, by running through the field: p = 3^i, q = 3^-i, and the affine map of q."""
    box = bytearray(256)
    p = q = 1
    for _ in range(255):
        p ^= _doubled(p)
        q ^= q << 1
        q ^= q << 2
        q = (q ^ q << 4) & 0xFF
        q ^= 0x09 if q & 0x80 else 0
        turned = q * 0x101
        box[p] = (q ^ turned >> 7 ^ turned >> 6 ^ turned >> 5 ^ turned >> 4) & 0xFF ^ 0x63
    box[0] = 0x63
    return bytes(box)


S_BOX = _s_box()


def round_keys(key: bytes) -> bytes:
    """The 11 round keys of an AES-128 key of 16 bytes, 176 bytes."""
    words = [key[i : i + 4] for i in range(0, 16, 4)]
    constant = 1
    for i in range(4, 4 * (ROUNDS + 1)):
        word = words[-1]
        if i % 4 == 0:
            turned = bytes(S_BOX[byte] for byte in word[1:] + word[:1])
            word = bytes([turned[0] ^ constant]) + turned[1:]
            constant = _doubled(constant)
        words.append(bytes(a ^ b for a, b in zip(word, words[-4], strict=True)))
    return b"".join(words)


def _tables() -> bytes:
    """For each of the four rows: what a byte of that row gives to its column by SubBytes and MixColumns."""
    columns = [bytes((_doubled(s), s, s, _doubled(s) ^ s)) for s in S_BOX]
    return b"".join(column[-row:] + column[:-row] if row else column for row in range(4) for column in columns)


_TABLES = _tables()


def laid_out(keys: tuple[bytes, bytes, bytes, bytes], step: bytes, nh: bytes) -> U64Array:
    """What kernels take, u64[ALL_BYTES / 8], from four AES keys and a step of 16 bytes each, and 128 bytes for NH."""
    halves = np.frombuffer(step, "<u8").astype(np.uint64)
    lanes = (np.arange(4, dtype=np.uint64)[:, None] * halves).tobytes()
    raw = b"".join((*map(round_keys, keys), lanes, nh, _TABLES))
    words = np.frombuffer(raw, "<u8").astype(np.uint64)
    words.flags.writeable = False
    return words


@lru_cache(maxsize=64)
def expand(key: bytes) -> U64Array:
    """Expand the key of a check, 32 bytes; read-only. ValueError if it has another length."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of a check has {KEY_BYTES} bytes, not {len(key)}")
    raw = hashlib.shake_256(PREFIX + key).digest(4 * 16 + 16 + 128)
    first, second, third, fourth = (raw[i : i + 16] for i in range(0, 64, 16))
    return laid_out((first, second, third, fourth), raw[64:80], raw[80:])
