"""GridMix's random text, from a list of words, and its DEFLATE compression, both functions of a seed alone.

A key or value is words drawn with equal probability, each with a space after it. Random numbers are SplitMix64 (see
``textgen``), from a stream of its own for each part file. A record takes one of them for its two numbers of words and
then one for every two words::

    low, high = the halves of the next number, 32 bits each
    words in the key   = key_min   + (low  * key_span   >> 32)
    words in the value = value_min + (high * value_span >> 32)
    word = low * w >> 32, then high * w >> 32 (unused after the record's last word, if their number is odd)

A *chunk* is the records up to the one that brings their payload to CHUNK_BYTES, or the part to its size.

Compression knows what zlib would have to look for: the latest place of each word, as far as 32 KiB back, is the match
(RFC 1951: 3 to 258 bytes, distance up to 32,768); only a word's first use, and lengths between the words, are literals.
The Huffman codes are made once, from the probabilities. So the compressed bytes depend on no library and its version,
are about as many as zlib's at level 4 (a quarter of the text), and take a tenth of its time.

# w = words in the list, t = words of a chunk, n = records of a chunk, b = bytes
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from quoreduce_kernels.intrinsics import address_of, copy16, ctlz, ld8, st8, st64
from quoreduce_kernels.options import cold_part, kernel, part
from quoreduce_kernels.textgen import _mix64, splitmix64

U8Array = NDArray[np.uint8]
U16Array = NDArray[np.uint16]
I64Array = NDArray[np.int64]
U64Array = NDArray[np.uint64]

CHUNK_BYTES = 1_000_000  # Hadoop's io.seqfile.compress.blocksize
SLOT = 16  # bytes of a word's slot: the word, its space, zeros
WORD_BYTES_MIN, WORD_BYTES_MAX = 3, SLOT - 1  # without the space
WORDS_IN_LIST_MAX = 1 << 12
WORDS_IN_RECORD_MAX = 1 << 15
KEY, VALUE = 0, 1
_GOLDEN = 0x9E3779B97F4A7C15
_HALF = 0xFFFFFFFF
_WORD64 = (1 << 64) - 1
_U = np.uint64
_NEVER = -(1 << 40)

# DEFLATE (RFC 1951)
WINDOW = 1 << 15
CODE_BITS_MAX = 15
LITERALS, END = 256, 256
LENGTH_SYMBOLS = 286
DISTANCE_SYMBOLS = 30
_ORDER = (16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15)
_PREFIX_RARITY = 100  # one of so many symbols is a byte of a length, which may be any byte
_ONE = 1 << 60

_TOKENS = "Array(u2, 1, 'C', readonly=True)"
_RECORDS = "Array(i8, 2, 'C', readonly=True)"
_SLOTS = "Array(u1, 2, 'C', readonly=True)"
_SIZES = "Array(u1, 1, 'C', readonly=True)"
_CODES = "Array(u8, 1, 'C', readonly=True)"


class Ranges(NamedTuple):
    """How many words: in a key ``key_min`` to ``key_min + key_span - 1``, in a value likewise."""

    key_min: int
    key_span: int
    value_min: int
    value_span: int


class TextChunk(NamedTuple):
    """Records as words: tokens u16[t], records i64[n, 4] (words in the key, in the value, bytes of the key, of the
    value).
    """

    tokens: U16Array
    records: I64Array

    @property
    def nbytes(self) -> int:
        """Bytes of all keys and values, without lengths and separators."""
        return int(self.records[:, 2:].sum())


@dataclass(frozen=True, slots=True)
class WordList:
    """Words for kernels: slots u8[w, 16] (word, space, zeros), sizes u8[w] with the space, and DEFLATE's codes for
    them.

    A code is u64: its bits, first bit lowest, and from bit 32 on their number. literals u64[257] (byte, end of block),
    matches u64[w] (the length of a word and its space), distances u64[30]; header: the block's bits before all these.
    """

    slots: U8Array
    sizes: U8Array
    literals: U64Array
    matches: U64Array
    distances: U64Array
    header: tuple[int, int]

    @classmethod
    def of(cls, words: Sequence[bytes]) -> WordList:
        """Prepare a list of 2 to 4096 distinct words of 3 to 15 bytes; raise ValueError for others."""
        if len(set(words)) != len(words) or not 2 <= len(words) <= WORDS_IN_LIST_MAX:
            raise ValueError(f"a list has 2 to {WORDS_IN_LIST_MAX} distinct words")
        if not all(WORD_BYTES_MIN <= len(word) <= WORD_BYTES_MAX and b" " not in word for word in words):
            raise ValueError(f"a word has {WORD_BYTES_MIN} to {WORD_BYTES_MAX} bytes, none of them a space")
        spaced = [word + b" " for word in words]
        slots = np.frombuffer(b"".join(word.ljust(SLOT, b"\0") for word in spaced), np.uint8).reshape(-1, SLOT)
        sizes = np.array([len(word) for word in spaced], np.uint8)
        length_bits, distance_bits = code_lengths(spaced)
        symbols = _codes(length_bits)
        matches = np.array([_match_code(symbols, len(word)) for word in spaced], np.uint64)
        header = _header(length_bits, distance_bits)
        return cls(slots, sizes, symbols[:257].copy(), matches, _codes(distance_bits), header)


def length_symbol(size: int) -> tuple[int, int, int]:
    """Symbol of a match of 3 to 18 bytes, its extra bits and their number (RFC 1951, 3.2.5)."""
    if size <= 10:
        return 254 + size, 0, 0
    return 265 + (size - 11) // 2, (size - 11) % 2, 1


def distance_range(symbol: int) -> tuple[int, int]:
    """The first distance of a symbol and the number of its extra bits."""
    if symbol < 4:
        return symbol + 1, 0
    extra = symbol // 2 - 1
    return ((2 + symbol % 2) << extra) + 1, extra


def _power(numerator: int, denominator: int, exponent: int) -> int:
    """(numerator / denominator)**exponent as a multiple of 2**-60: whole numbers, for pow() differs between C
    libraries.
    """
    base, result = _ONE * numerator // denominator, _ONE
    while exponent:
        result = result * base // _ONE if exponent & 1 else result
        base, exponent = base * base // _ONE, exponent >> 1
    return result


def code_lengths(words: Sequence[bytes]) -> tuple[list[int], list[int]]:
    """Lengths of the codes, in bits, of the 286 literals and lengths and the 30 distances, for text of these words."""
    count, period = len(words), sum(map(len, words))  # a word comes back after so many bytes, in the mean
    missed = _power(count - 1, count, WINDOW * count // period) // count
    symbols = [_ONE // (_PREFIX_RARITY * LITERALS)] * LITERALS + [1] + [0] * (LENGTH_SYMBOLS - LITERALS - 1)
    for word in words:
        symbols[length_symbol(len(word))[0]] += _ONE // count - missed
        for byte in word:
            symbols[byte] += missed
    distances = []
    for symbol in range(DISTANCE_SYMBOLS):
        first, extra = distance_range(symbol)
        beyond = first + (1 << extra)
        share = _power(period - 1, period, first) - _power(period - 1, period, beyond)
        distances.append(max(share, 1) if beyond > min(map(len, words)) else 0)
    return _limited_lengths(symbols), _limited_lengths(distances)


def _limited_lengths(weights: Sequence[int]) -> list[int]:
    """Lengths of the best prefix code of at most 15 bits: package-merge (Larmore and Hirschberg 1990); 0 for weight
    0.
    """
    leaves: list[tuple[int, tuple[int, ...]]] = sorted((weight, (i,)) for i, weight in enumerate(weights) if weight)
    row = leaves
    for _ in range(CODE_BITS_MAX - 1):
        pairs = zip(row[0::2], row[1::2], strict=False)
        row = sorted([*leaves, *((a[0] + b[0], a[1] + b[1]) for a, b in pairs)])
    bits = [0] * len(weights)
    for _, symbols in row[: 2 * len(leaves) - 2]:
        for symbol in symbols:
            bits[symbol] += 1
    return bits


def _codes(bits: Sequence[int]) -> U64Array:
    """Canonical codes (RFC 1951, 3.2.2), their bits in the order in which they are sent."""
    out, code, last = np.zeros(len(bits), np.uint64), 0, 0
    for symbol in sorted((s for s in range(len(bits)) if bits[s]), key=lambda s: (bits[s], s)):
        code <<= bits[symbol] - last
        last = bits[symbol]
        out[symbol] = int(f"{code:0{last}b}"[::-1], 2) | last << 32
        code += 1
    return out


def _match_code(symbols: U64Array, size: int) -> int:
    symbol, extra, extra_bits = length_symbol(size)
    code, bits = int(symbols[symbol]) & _HALF, int(symbols[symbol]) >> 32
    return code | extra << bits | (bits + extra_bits) << 32


def _header(length_bits: Sequence[int], distance_bits: Sequence[int]) -> tuple[int, int]:
    """zlib's two bytes and a final block's header, as (bits, their number); code lengths 0 to 15 are sent as 4 bits
    each.
    """
    out, at = 0x0178, 16

    def put(value: int, bits: int) -> None:
        nonlocal out, at
        out |= value << at
        at += bits

    put(0b101, 3)  # the last block; dynamic codes
    put(LENGTH_SYMBOLS - 257, 5)
    put(DISTANCE_SYMBOLS - 1, 5)
    put(len(_ORDER) - 4, 4)
    for symbol in _ORDER:
        put(4 if symbol < 16 else 0, 3)
    for bits in (*length_bits, *distance_bits):
        put(int(f"{bits:04b}"[::-1], 2), 4)
    return out, at


@part
def _draw_record(state, ranges, sizes, tokens, at):
    """Draw a record's words to tokens[at:]. Returns (state, words in the key, in the value, bytes of the key, of the
    value).
    """
    state += _U(_GOLDEN)
    u = _mix64(state)
    keys = ranges[0] + np.int64((u & _U(_HALF)) * _U(ranges[1]) >> _U(32))
    values = ranges[2] + np.int64((u >> _U(32)) * _U(ranges[3]) >> _U(32))
    total = keys + values
    span = _U(sizes.size)
    for i in range(0, total, 2):
        state += _U(_GOLDEN)
        u = _mix64(state)
        tokens[at + i] = (u & _U(_HALF)) * span >> _U(32)
        tokens[at + i + 1] = (u >> _U(32)) * span >> _U(32)
    key_bytes = np.int64(0)
    for i in range(keys):
        key_bytes += np.int64(sizes[tokens[at + i]])
    value_bytes = np.int64(0)
    for i in range(keys, total):
        value_bytes += np.int64(sizes[tokens[at + i]])
    return state, keys, values, key_bytes, value_bytes


@kernel(f"Tuple((u8, i8, i8))(u8, UniTuple(i8, 4), i8, {_SIZES}, u2[::1], i8[:, ::1])")
def _draw_chunk(state, ranges, nbytes_min, sizes, tokens, records):
    """Draw records until they have ``nbytes_min`` bytes. Returns (state, tokens, records); see _room for the arrays'
    sizes.
    """
    at = np.int64(0)
    count = np.int64(0)
    nbytes = np.int64(0)
    while nbytes < nbytes_min:
        state, keys, values, key_bytes, value_bytes = _draw_record(state, ranges, sizes, tokens, at)
        records[count, 0] = keys
        records[count, 1] = values
        records[count, 2] = key_bytes
        records[count, 3] = value_bytes
        nbytes += key_bytes + value_bytes
        at += keys + values
        count += 1
    return state, at, count


@part
def _vint_bytes(n):
    return _U(1) if n < 128 else _U(2) if n < 1 << 8 else _U(3) if n < 1 << 16 else _U(4)


@part
def _vint_byte(n, size, k):
    """Byte k of the VInt of n (see ``sequence``), which has ``size`` bytes."""
    if size == _U(1):
        return _U(n)
    return _U(0x91) - size if k == _U(0) else (_U(n) >> (_U(8) * (size - _U(1) - k))) & _U(0xFF)


@part
def _put_vint(to, n):
    size = _vint_bytes(n)
    for k in range(size):
        st8(to + _U(k), _vint_byte(n, size, _U(k)))
    return to + size


@part
def _put_words(to, tokens, first, count, slots, sizes):
    """Copy words with their spaces; up to 15 bytes after them are overwritten."""
    for i in range(first, first + count):
        token = np.int64(tokens[i])
        copy16(to, slots + _U(token * SLOT))
        to += _U(sizes[token])
    return to


@kernel(f"i8({_TOKENS}, {_RECORDS}, i8, {_SLOTS}, {_SIZES}, u8)")
def _render(tokens, records, column, slots, sizes, target):
    """Write one column's items, each after its length. Returns the number of bytes."""
    to = target
    at = np.int64(0)
    for i in range(records.shape[0]):
        first = at if column == KEY else at + records[i, 0]
        to = _put_vint(to, records[i, 2 + column])
        to = _put_words(to, tokens, first, records[i, column], address_of(slots), sizes)
        at += records[i, 0] + records[i, 1]
    return np.int64(to - target)


@kernel(f"i8({_TOKENS}, {_RECORDS}, {_SLOTS}, {_SIZES}, u8)")
def _render_text(tokens, records, slots, sizes, target):
    """Write key, tab, value, line end for each record. Returns the number of bytes."""
    to = target
    at = np.int64(0)
    for i in range(records.shape[0]):
        for column in range(2):
            to = _put_words(to, tokens, at, records[i, column], address_of(slots), sizes)
            st8(to, _U(10) if column else _U(9))
            to += _U(1)
            at += records[i, column]
    return np.int64(to - target)


@kernel(f"i8({_RECORDS}, i8, u8)")
def _render_lengths(records, column, target):
    """Write the serialised length of each of a column's items. Returns the number of bytes."""
    to = target
    for i in range(records.shape[0]):
        n = records[i, 2 + column]
        to = _put_vint(to, n + np.int64(_vint_bytes(n)))
    return np.int64(to - target)


@part
def _send(to, bits, room, code):
    """Append a code to the bits not yet stored, of which there are fewer than 8; store whole bytes."""
    bits |= (code & _U(_HALF)) << room
    room += code >> _U(32)
    st64(to, bits)
    whole = room >> _U(3)
    return to + whole, bits >> (whole << _U(3)), room & _U(7)


@part
def _distance_code(distances, distance):
    """Code of a distance of 5 or more with its extra bits: symbols 2k and 2k + 1 share the bits of distance - 1 from
    2**k.
    """
    x = _U(distance - 1)
    top = _U(63) - ctlz(x)
    extra_bits = top - _U(1)
    code = distances[_U(2) * top + ((x >> extra_bits) & _U(1))]
    extra = x & ((_U(1) << extra_bits) - _U(1))
    return (code & _U(_HALF)) | extra << (code >> _U(32)), (code >> _U(32)) + extra_bits


@cold_part
def _send_literals(to, bits, room, literals, source, count):
    for k in range(count):
        to, bits, room = _send(to, bits, room, literals[ld8(source + _U(k))])
    return to, bits, room


@kernel(f"i8({_TOKENS}, {_RECORDS}, i8, {_SLOTS}, {_SIZES}, {_CODES}, {_CODES}, {_CODES}, i8[::1], u8, u8, u8)")
def _deflate(tokens, records, column, slots, sizes, literals, matches, distances, latest, target, bits, room):
    """Compress what _render writes, after ``room`` < 8 ``bits``. Returns the number of bytes; the last is padded."""
    to = target
    at = np.int64(0)
    position = np.int64(0)
    for i in range(records.shape[0]):
        first = at if column == KEY else at + records[i, 0]
        size = _vint_bytes(records[i, 2 + column])
        for k in range(size):
            to, bits, room = _send(to, bits, room, literals[_vint_byte(records[i, 2 + column], size, _U(k))])
        position += np.int64(size)
        for j in range(first, first + records[i, column]):
            token = np.int64(tokens[j])
            distance = position - latest[token]
            if distance <= WINDOW:
                match = matches[token]
                code, code_bits = _distance_code(distances, distance)
                joined = (match & _U(_HALF)) | code << (match >> _U(32))
                bits |= joined << room
                room += (match >> _U(32)) + code_bits
                st64(to, bits)
                whole = room >> _U(3)
                to += whole
                bits >>= whole << _U(3)
                room &= _U(7)
            else:
                source = address_of(slots) + _U(token * SLOT)
                to, bits, room = _send_literals(to, bits, room, literals, source, np.int64(sizes[token]))
            latest[token] = position
            position += np.int64(sizes[token])
        at += records[i, 0] + records[i, 1]
    to, bits, room = _send(to, bits, room, literals[END])
    return np.int64(to - target) + np.int64(room > _U(0))


def draw_chunks(words: WordList, ranges: Ranges, nbytes: int, stream: int) -> Iterator[TextChunk]:
    """Yield the chunks of a part: records until their keys and values have ``nbytes`` bytes. A chunk lives until the
    next.

    Args:
        words: the list.
        ranges: words per key and value; a record has 1 to 32,768.
        nbytes: at least 0; reached by the last record.
        stream: names the part: any integer, taken modulo 2**64.

    Raises:
        ValueError: for numbers out of range.
    """
    key_min, key_span, value_min, value_span = ranges
    longest = key_min + key_span + value_min + value_span - 2
    if (
        min(key_min, value_min) < 0
        or min(key_span, value_span) < 1
        or key_min + value_min < 1
        or longest > WORDS_IN_RECORD_MAX
    ):
        raise ValueError(f"{ranges} gives no records of 1 to {WORDS_IN_RECORD_MAX} words")
    if nbytes < 0:
        raise ValueError(f"no part has {nbytes} bytes")
    shortest = int(words.sizes.min())
    tokens = np.empty(CHUNK_BYTES // shortest + longest + 2, np.uint16)
    records = np.empty((CHUNK_BYTES // (shortest * (key_min + value_min)) + 1, 4), np.int64)
    state = _U(int(splitmix64(stream & _WORD64, 0, 1)[0]))
    while nbytes > 0:
        state, used, count = _draw_chunk(state, tuple(ranges), min(nbytes, CHUNK_BYTES), words.sizes, tokens, records)
        chunk = TextChunk(tokens[:used], records[:count])
        yield chunk
        nbytes -= chunk.nbytes


def render(words: WordList, chunk: TextChunk, column: int) -> U8Array:
    """Return the keys (column KEY) or values (VALUE) as Hadoop's Text serialises them, one after the other: u8[b]."""
    records = chunk.records
    target = np.empty(int(records[:, 2 + column].sum()) + 4 * len(records) + SLOT, np.uint8)
    return target[: _render(*chunk, column, words.slots, words.sizes, target.ctypes.data)]


def render_text(words: WordList, chunk: TextChunk) -> U8Array:
    """Return lines of key, tab, value: u8[b]."""
    target = np.empty(chunk.nbytes + 2 * len(chunk.records) + SLOT, np.uint8)
    return target[: _render_text(*chunk, words.slots, words.sizes, target.ctypes.data)]


def render_lengths(chunk: TextChunk, column: int) -> U8Array:
    """Return the lengths of what :func:`render` writes for each item, as VInts: u8[b]."""
    target = np.empty(4 * len(chunk.records), np.uint8)
    return target[: _render_lengths(chunk.records, column, target.ctypes.data)]


def deflate(words: WordList, chunk: TextChunk, column: int) -> bytes:
    """Return what :func:`render` gives, compressed: a zlib stream."""
    raw = render(words, chunk, column)
    bits, count = words.header
    whole = count // 8
    head = (bits & ((1 << 8 * whole) - 1)).to_bytes(whole, "little")
    target = np.empty(2 * raw.size + 16, np.uint8)  # a literal has at most 15 bits
    latest = np.full(words.sizes.size, _NEVER, np.int64)
    codes: tuple[Any, ...] = (words.literals, words.matches, words.distances)
    size = _deflate(
        *chunk, column, words.slots, words.sizes, *codes, latest, target.ctypes.data, bits >> 8 * whole, count % 8
    )
    return head + target[:size].tobytes() + zlib.adler32(raw.data).to_bytes(4, "big")
