"""Seeded text of Zipf-distributed words, the same bytes on every machine and at any parallelism.

Word of rank i (from 0) has probability proportional to 1 / (i + 1 + 2.7) (Zipf-Mandelbrot with exponent 1).
Everything that decides a byte is integer arithmetic, or a single correctly rounded operation on doubles summed in
order: no logarithm or power, whose last bit differs between CPU types. Random numbers are SplitMix64 (Steele, Lea,
Flood, OOPSLA '14): value k of stream s is mix(s + (k + 1) * 0x9E3779B97F4A7C15).

Text comes in chunks, each a function of (chunk number, its size, seed) alone. Lines are about 90 characters, words are
separated by single spaces, every chunk ends in a line end and has exactly the size asked for: its last word is cut to
fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import copy32, ld8, prefetch, st8
from quoreduce_kernels.options import kernel, part

U8Array = NDArray[np.uint8]
U64Array = NDArray[np.uint64]

VOCABULARY_WORDS = 100_000
WORD_BYTES_MAX = 24
LINE_BYTES = 90
CHUNK_BYTES = 1 << 24  # the usual size of a chunk; any other gives another text
CHUNK_BYTES_MAX = 1 << 40
_SLOT = 32  # bytes of a word's slot: the word, zeros, and its length in the last byte
_GUIDE_BITS = 18
_BATCH = 64  # words drawn ahead of being copied
_LAW_BITS = 53  # thresholds and random numbers are compared as integers of 53 bits
_ZIPF_SHIFT = 2.7
_GOLDEN = 0x9E3779B97F4A7C15
_WORD = (1 << 64) - 1
_U = np.uint64
_VOCABULARY_STREAM = 0x766F636162756C61  # "vocabula": keeps the vocabulary's random numbers apart from the text's

# Letters in order of frequency in English, with weights out of 1000 (Norvig 2012, rounded).
_LETTERS = b"etaoinsrhldcumfpgwybvkxjqz"
_WEIGHTS = (125, 93, 80, 76, 76, 72, 65, 63, 51, 41, 38, 33, 27, 25, 24, 21, 19, 17, 17, 15, 10, 5, 2, 2, 1, 2)


def splitmix64(stream: int, first: int, count: int) -> U64Array:
    """Return values ``first`` to ``first + count`` of a SplitMix64 stream, u64[count]."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * _U(_GOLDEN) + _U(stream & _WORD)
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return z ^ (z >> _U(31))


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Words by rank, and the tables to draw them.

    Attributes:
        slots: u8[V, 32], each word in bytes 0..23, zeros after it, its length in byte 31.
        law: u64[V], law[i] = probability of the words up to rank i, times 2**53; the last is 2**53.
        guide: u32[2**18 + 1], guide[j] = first rank whose law exceeds j * 2**35.
    """

    slots: U8Array
    law: U64Array
    guide: NDArray[np.uint32]

    def words(self) -> list[bytes]:
        """Return the words by rank."""
        return [row[: row[_SLOT - 1]].tobytes() for row in self.slots]


def _word_lengths(ranks: NDArray[np.int64], draws: U64Array) -> NDArray[np.int64]:
    """Length of each rank's word: 2 + 0.43 per doubling of the rank, plus -2..2 with weights 1 2 3 2 1; in 1..24."""
    doublings = np.frexp((ranks + 1).astype(np.float64))[1]
    noise = (draws % _U(3)).astype(np.int64) + ((draws >> _U(8)) % _U(3)).astype(np.int64) - 2
    return np.clip(2 + doublings * 43 // 100 + noise, 1, WORD_BYTES_MAX)


def _spell(ranks: NDArray[np.int64], attempt: int, seed: int, words: int) -> U8Array:
    """Return candidates u8[m, 32] for words of some ranks; each attempt draws anew, later ones longer words."""
    stream = seed ^ _VOCABULARY_STREAM
    draws = splitmix64(stream + attempt * words * (WORD_BYTES_MAX + 1), 0, words * (WORD_BYTES_MAX + 1))
    draws = draws.reshape(words, WORD_BYTES_MAX + 1)[ranks]
    bounds = np.cumsum(_WEIGHTS).astype(np.uint64)
    letters = np.searchsorted(bounds, (draws[:, 1:] >> _U(32)) % bounds[-1], "right")
    lengths = np.minimum(_word_lengths(ranks, draws[:, 0]) + 2 * max(attempt - 2, 0), WORD_BYTES_MAX)
    slots = np.zeros((ranks.size, _SLOT), np.uint8)
    slots[:, :WORD_BYTES_MAX] = np.frombuffer(_LETTERS, np.uint8)[letters]
    slots[:, :WORD_BYTES_MAX][np.arange(WORD_BYTES_MAX) >= lengths[:, None]] = 0
    slots[:, _SLOT - 1] = lengths
    return slots


@lru_cache(maxsize=4)
def make_vocabulary(words: int = VOCABULARY_WORDS, seed: int = 1) -> Vocabulary:
    """Make a vocabulary of distinct words of a-z, shorter ones more often among the frequent.

    Args:
        words: V, 1 to 2**20.
        seed: any integer; taken modulo 2**64.

    Raises:
        ValueError: if ``words`` is out of range.
    """
    if not 1 <= words <= 1 << 20:
        raise ValueError(f"a vocabulary has 1 to {1 << 20} words, not {words}")
    slots = np.zeros((words, _SLOT), np.uint8)
    open_ranks = np.arange(words)
    attempt = 0
    while open_ranks.size:
        slots[open_ranks] = _spell(open_ranks, attempt, seed, words)
        _, firsts = np.unique(slots.view(f"S{_SLOT}").reshape(-1), return_index=True)
        taken = np.zeros(words, bool)
        taken[firsts] = True
        open_ranks = np.flatnonzero(~taken)
        attempt += 1
    weights = 1.0 / (np.arange(words, dtype=np.float64) + (1.0 + _ZIPF_SHIFT))
    sums = np.cumsum(weights)  # in order, not pairwise: the same on every CPU
    law = np.floor(sums / sums[-1] * 2.0**_LAW_BITS).astype(np.uint64)
    marks = np.arange((1 << _GUIDE_BITS) + 1, dtype=np.uint64) << _U(_LAW_BITS - _GUIDE_BITS)
    guide = np.searchsorted(law, marks, "right").astype(np.uint32)
    for array in (slots, law, guide):
        array.flags.writeable = False
    return Vocabulary(slots, law, guide)


@part
def _mix64(z):
    z = (z ^ (z >> _U(30))) * _U(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U(27))) * _U(0x94D049BB133111EB)
    return z ^ (z >> _U(31))


@part
def _draw(state, guide, law, slots, batch):
    """Draw words: the addresses of their slots go to batch. Returns the stream's new state."""
    for i in range(batch.size):
        state += _U(_GOLDEN)
        u = _mix64(state) >> _U(64 - _LAW_BITS)
        rank = np.int64(guide[u >> _U(_LAW_BITS - _GUIDE_BITS)])
        while law[rank] <= u:
            rank += 1
        batch[i] = slots + _U(rank * _SLOT)
        prefetch(batch[i])
    return state


@part
def _end_chunk(at, end, source):
    """Fill what is left of a chunk with one word of bytes from ``source``, over again, and a line end."""
    i = _U(0)
    while at + _U(1) < end:
        st8(at, ld8(source + i % _U(LINE_BYTES)))
        at += _U(1)
        i += _U(1)
    st8(at, _U(10))


@kernel("void(u8, i8, u8, u8, u8, Array(u4, 1, 'C', readonly=True), Array(u8, 1, 'C', readonly=True))")
def _fill_text(target, size, state, slots, filler, guide, law):
    """Fill ``size`` >= 1 bytes; slots = address of u8[V, 32], filler = address of 90 letters, state = the stream."""
    at, end = target, target + _U(size)
    line_end = at + _U(LINE_BYTES)
    batch = np.empty(_BATCH, np.uint64)
    while at + _U(_SLOT) < end:
        state = _draw(state, guide, law, slots, batch)
        for i in range(_BATCH):
            if at + _U(_SLOT) >= end:
                break
            copy32(at, batch[i])
            at += ld8(batch[i] + _U(_SLOT - 1))
            ends_line = at >= line_end
            st8(at, _U(10) if ends_line else _U(32))
            at += _U(1)
            line_end = at + _U(LINE_BYTES) if ends_line else line_end
    _end_chunk(at, end, filler)


def generate_text(
    chunk: int, nbytes: int, seed: int = 1, vocabulary: Vocabulary | None = None, out: U8Array | None = None
) -> U8Array:
    """Return chunk number ``chunk`` of a text: u8[nbytes], a function of the arguments alone.

    Args:
        chunk: number of the chunk, at least 0. A text is its chunks 0, 1, 2, ... of one size, made in any order.
        nbytes: size, at least 1.
        seed: any integer; taken modulo 2**64.
        vocabulary: default: ``make_vocabulary()``.
        out: writable u8[nbytes] to fill instead of a new array.

    Raises:
        ValueError: for numbers out of range or an unsuitable ``out``.
    """
    if chunk < 0 or not 1 <= nbytes <= CHUNK_BYTES_MAX:
        raise ValueError(f"no chunk number {chunk} of {nbytes} bytes: numbers start at 0, sizes at 1")
    out = np.empty(nbytes, np.uint8) if out is None else out
    if out.dtype != np.uint8 or out.shape != (nbytes,) or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be writable C-contiguous uint8[{nbytes}]")
    vocabulary = vocabulary or make_vocabulary()
    # a stream's start is itself a random number: chunks' streams do not overlap but with probability of about 2**-30
    state = int(splitmix64(int(splitmix64(seed, 0, 1)[0]), chunk, 1)[0])
    letters = np.frombuffer((_LETTERS * 4)[:LINE_BYTES], np.uint8)
    _fill_text(
        out.ctypes.data,
        nbytes,
        state,
        vocabulary.slots.ctypes.data,
        letters.ctypes.data,
        vocabulary.guide,
        vocabulary.law,
    )
    return out
