"""The hash that sums of checks are made of, under the keys of ``check_keys``.

AES is AES-128 (FIPS 197); a block is 16 bytes, a pair (low, high) of little-endian u64. All sums are in (Z / 2^64)^2.

    h(w), w of 1 to 15 bytes  = AES_SHORT(w, filled up to 16 bytes with the byte |w| - 1)
    h(w), w of 16 and more    = h(w, nothing, 0)
    h(key, value, place)      = AES_FINAL(T + (|key| + 2^32 |value|, place))
    T                         = sum over i of AES_PIECES(piece i + i S)
    h(record, place)          = AES_RECORD(NH(record, 0000, place)),  of 100 bytes

The pieces are those of the key, then those of the value: 16 bytes each, the last of either filled up with zeros. i
counts from 0 through both; + i S adds (i S0 mod 2^64, i S1 mod 2^64). NH is that of UMAC (RFC 4418) with words of 64
bits, modulo 2^128; the place is its last word. Keys and values have less than 2^32 bytes, unless the value is empty.

*Other data have another hash*, but for a chance c. Take AES under the four keys for four random permutations, and let
n be the pieces of the longer of two different (key, value, place). If both have the same set of (i, piece), then what
is added to T differs, for it tells the lengths and the place. Else one (i, p) is in one of the sets only. AES_PIECES
sees its input again, from a (j, q) of either set, if (i - j) S = q - p; at most 4^t of the 2^128 values of S do that, t
being how often 2 divides i - j (none if j = i, for p is not q). Summed over all j that is less than 4 n^2 of 2^128. If
it sees the input once, its value there is one of at least 2^128 - 2n that are equally likely, and one of them makes
the two equal. So c < n^2 . 2^-125, which is below 2^-64 up to n = 2^30, that is 16 GiB. Two different (record, place)
have the same NH with a chance c of at most 2^-64; if not, another hash. Two different words of up to 15 bytes never
have the same.

*Other multisets have another sum*, but for a chance e. Let d(x) be how often x is in one less how often it is in the
other, not 0 for k things, and below 2^v. Take one of them, x. The input of its last AES is that of another of the k
with a chance of at most (k - 1) c. If not, its hash is one of more than 2^128 - k that are equally likely, given all
others, and the sums are equal if d(x) h(x) is one certain value in both halves: at most 4^(v - 1) of them do that.

    e < 4^(v - 1) / (2^128 - k) + (k - 1) c

A count that is claimed is refused beyond 2^32 - 1. If none of the true ones is larger, v is 32, and the first term is
2^-66; it is the only one where no wrong word has 16 bytes. To this comes the advantage with which whoever made the
data, before the key was drawn, tells AES-128 from a random permutation.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.check_form import load_few
from quoreduce_kernels.check_intrinsics import (
    LEVEL,
    aes1_native,
    aes1_tables,
    aes4_vaes,
    list64_compressed,
    separators64,
    sum_strip,
)
from quoreduce_kernels.check_keys import ALL_BYTES, FINAL, PIECES, SHORT, STEP, TABLE, expand
from quoreduce_kernels.intrinsics import cttz, ld64, popcount, st16, st64
from quoreduce_kernels.options import kernel, part

U64Array = NDArray[np.uint64]
U = np.uint64

MESSAGE_WORDS = 5  # address and length of the key, address and length of the value, place
LIKELY_ENDS = 14  # separators in 64 bytes
BLOCKS = 4  # blocks are encrypted in groups of so many


class Pieces(NamedTuple):
    """What differs between levels: parts, to be called in kernels.

    Attributes:
        one: (low, high, round keys, keys) -> AES of a block.
        four: (address, round keys, keys): replace four blocks by their AES.
        chain: (address, length, number, keys) -> (low, high), the sum over all pieces; number: of the first.
        list_ends: (at, target, offset) -> how many of 64 bytes are separators; stores offset + i, u16.
    """

    one: Any
    four: Any
    chain: Any
    list_ends: Any


def _one(level: str) -> Any:
    if level == "portable":

        @part
        def one(low, high, round_keys, keys):
            return aes1_tables(low, high, round_keys, keys + U(TABLE))

    else:

        @part
        def one(low, high, round_keys, keys):
            return aes1_native(low, high, round_keys)

    return one


@part
def _four_vaes(address, round_keys, keys):
    aes4_vaes(address, address, round_keys)


@part
def _chain_vaes(address, length, number, keys):
    low, high = U(0), U(0)
    while length:
        size = min(length, U(64))
        a, b = sum_strip(address, size, number, keys)
        low += a
        high += b
        address += size
        length -= size
        number += U(4)
    return low, high


@part
def _list_ends_by_bits(at, target, offset):
    mask = separators64(at)
    count = popcount(mask)
    for k in range(
        U(LIKELY_ENDS)
    ):  # without a test: most blocks have about so many, and what is too much is overwritten
        st16(target + U(2) * k, offset + cttz(mask))
        mask &= mask - U(1)
    for k in range(U(LIKELY_ENDS), count):
        st16(target + U(2) * k, offset + cttz(mask))
        mask &= mask - U(1)
    return count


@lru_cache(maxsize=3)
def pieces(level: str) -> Pieces:
    """The parts of a level."""
    one = _one(level)
    if level == "vaes":
        return Pieces(one, _four_vaes, _chain_vaes, list64_compressed)

    @part
    def four(address, round_keys, keys):
        for i in range(U(BLOCKS)):
            at = address + U(16) * i
            low, high = one(ld64(at), ld64(at + U(8)), round_keys, keys)
            st64(at, low)
            st64(at + U(8), high)

    @part
    def chain(address, length, number, keys):
        step_low, step_high = ld64(keys + U(STEP)), ld64(keys + U(STEP + 8))
        sum_low, sum_high = U(0), U(0)
        while length:
            size = min(length, U(16))
            low, high = load_few(address, size)
            low, high = one(low + number * step_low, high + number * step_high, keys + U(PIECES), keys)
            sum_low += low
            sum_high += high
            address += size
            length -= size
            number += U(1)
        return sum_low, sum_high

    return Pieces(one, four, chain, _list_ends_by_bits)


@lru_cache(maxsize=3)
def encrypt_kernel(level: str) -> Callable[[int, int, int, int], None]:
    """The kernel of a level: (blocks, n, round keys, keys) replaces n blocks, and up to 3 after them, by their AES."""
    four = pieces(level).four

    @kernel("void(u8, i8, u8, u8)", level)
    def _encrypt(blocks, n, round_keys, keys):
        for i in range(0, n, BLOCKS):
            four(blocks + U(16) * U(i), round_keys, keys)

    return _encrypt


@lru_cache(maxsize=3)
def chain_kernel(level: str) -> Callable[[U64Array, int, int, int], None]:
    """The kernel of a level: (messages u64[m, 5], n, keys, blocks) writes what goes into AES_FINAL."""
    chain = pieces(level).chain

    @kernel("void(u8[:, ::1], i8, u8, u8)", level)
    def _chain(messages, n, keys, blocks):
        for i in range(n):
            target = blocks + U(16) * U(i)
            key_bytes, value_bytes = messages[i, 1], messages[i, 3]
            low, high = chain(messages[i, 0], key_bytes, U(0), keys)
            a, b = chain(messages[i, 2], value_bytes, (key_bytes + U(15)) >> U(4), keys)
            st64(target, low + a + key_bytes + (value_bytes << U(32)))
            st64(target + U(8), high + b + messages[i, 4])

    return _chain


_encrypt = encrypt_kernel(LEVEL)
_chain = chain_kernel(LEVEL)


@kernel("void(u8, u8[::1], i8, u8[::1])")
def _add_weighted(blocks, weights, n, total):
    """total += (sum of weight * block, sum of weights)."""
    low, high, count = total[0], total[1], total[2]
    for i in range(n):
        at = blocks + U(16) * U(i)
        low += weights[i] * ld64(at)
        high += weights[i] * ld64(at + U(8))
        count += weights[i]
    total[0], total[1], total[2] = low, high, count


@kernel("void(u8, i8, u8[::1])")
def add_blocks(blocks, n, total):
    """total u64[3] += (sum of n blocks, n)."""
    low, high = total[0], total[1]
    for i in range(n):
        at = blocks + U(16) * U(i)
        low += ld64(at)
        high += ld64(at + U(8))
    total[0], total[1] = low, high
    total[2] += U(n)


@kernel("void(u8, i8[::1], i8, u8[:, ::1])")
def add_at(blocks, ids, n, totals):
    """totals[ids[i]] += (block i, 1)."""
    for i in range(n):
        at = blocks + U(16) * U(i)
        k = ids[i]
        totals[k, 0] += ld64(at)
        totals[k, 1] += ld64(at + U(8))
        totals[k, 2] += U(1)


class Refused(Exception):
    """Data that cannot be right, whatever the input: out of form or order, or of another partition.

    Attributes:
        at: number of the entry, record or line. why: what is wrong with it.
    """

    def __init__(self, at: int, why: str) -> None:
        super().__init__(f"entry {at} {why}")
        self.at = at
        self.why = why


class Sum(NamedTuple):
    """A sum of hashes: both halves modulo 2^64, and of how many words, pairs or records, modulo 2^64."""

    low: int = 0
    high: int = 0
    items: int = 0

    def plus(self, other: Sum) -> Sum:
        """The sum of both."""
        return Sum(*((a + b) % 2**64 for a, b in zip(self, other, strict=True)))


def sum_of(total: U64Array) -> Sum:
    """The Sum of u64[3]."""
    return Sum(*total.tolist())


def address(array: NDArray[Any]) -> int:
    """Where an array begins."""
    return int(array.ctypes.data)


class Hasher:
    """Encrypts blocks and messages under one key and adds them up, at a level; for tests any, else LEVEL."""

    def __init__(self, key: bytes, level: str = LEVEL) -> None:
        self._words = expand(key)
        assert self._words.nbytes == ALL_BYTES
        self.keys = address(self._words)
        here = level == LEVEL
        self._encrypt = _encrypt if here else encrypt_kernel(level)
        self._chain = _chain if here else chain_kernel(level)

    def encrypt(self, blocks: U64Array, n: int, cipher: int) -> None:
        """Replace the first n of the blocks u64[m, 2] by their AES; m is a multiple of 4."""
        self._encrypt(address(blocks), n, self.keys + cipher, self.keys)

    def add_shorts(self, blocks: U64Array, weights: U64Array, n: int, total: U64Array) -> None:
        """Add n short words, as blocks, so many times as the weights say; the blocks are overwritten."""
        self.encrypt(blocks, n, SHORT)
        _add_weighted(address(blocks), weights, n, total)

    def finish(self, messages: U64Array, n: int, blocks: U64Array) -> None:
        """Write the hashes of n messages u64[m, 5] to the blocks u64[m, 2]."""
        self._chain(messages, n, self.keys, address(blocks))
        self.encrypt(blocks, n, FINAL)

    def add_messages(self, messages: U64Array, weights: U64Array, n: int, blocks: U64Array, total: U64Array) -> None:
        """Add n messages, so many times as the weights say; the blocks are scratch."""
        self.finish(messages, n, blocks)
        _add_weighted(address(blocks), weights, n, total)
