"""Ways to damage bytes: blindly, and with some sense for what they are (JSON, msgpack, numbers in binary headers).

Everything is drawn from the `Random` that is given, so that the same seed gives the same bytes.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from random import Random

GROWTH_MAX = 1 << 17  # what one mutation may add, in bytes
DEPTH = 20_000
EXTREMES = (
    0,
    1,
    2,
    63,
    64,
    127,
    128,
    255,
    256,
    65535,
    65536,
    (1 << 24) - 1,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    1 << 32,
    1 << 40,
    (1 << 53) + 1,
    (1 << 62) + 1,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
Mutation = Callable[[Random, bytes, Sequence[bytes]], bytes]


def mutated(rng: Random, samples: Sequence[bytes], ways: Sequence[Mutation]) -> bytes:
    """One of the samples, changed one to four times in some of these ways."""
    raw = rng.choice(samples)
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        raw = rng.choice(ways)(rng, raw, samples)
    return raw


def _span(rng: Random, raw: bytes) -> tuple[int, int]:
    start = rng.randrange(len(raw) + 1)
    return start, min(len(raw), start + rng.choice((1, 1, 2, 3, 4, 8, 16, 64, 300)))


def flip(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 2, 8)) if out else 0):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def put(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """Bytes that mean something in many formats."""
    start, _end = _span(rng, raw)
    new = rng.choice(
        (b"\0", b"\xff", b"\x7f", b"\x80", b"\n", b'"', b"\xc0\x80", b"\xed\xa0\x80", b"\xff" * 9, rng.randbytes(4))
    )
    return raw[:start] + new + raw[start + len(new) * rng.randrange(2) :]


def truncate(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    return raw[: rng.randrange(len(raw) + 1)]


def extend(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    return raw + rng.choice((b"\0", b"\0" * rng.randrange(1, 200), rng.randbytes(rng.randrange(1, 100)), raw))


def cut(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, raw)
    return raw[:start] + raw[end:]


def double(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    start, end = _span(rng, raw)
    times = rng.choice((1, 1, 2, 100, GROWTH_MAX // max(1, end - start)))
    return raw[:start] + raw[start:end] * (times + 1) + raw[end:]


def splice(rng: Random, raw: bytes, samples: Sequence[bytes]) -> bytes:
    """The beginning of one, the end of another."""
    other = rng.choice(samples)
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + other[rng.choice((min(at, len(other)), rng.randrange(len(other) + 1))) :]


def transplant(rng: Random, raw: bytes, samples: Sequence[bytes]) -> bytes:
    """A piece of another one instead of one's own."""
    other = rng.choice(samples)
    start, end = _span(rng, other)
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + other[start:end] + raw[at + end - start :]


def swap(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    a, b, c = sorted(rng.randrange(len(raw) + 1) for _ in range(3))
    return raw[:a] + raw[b:c] + raw[a:b] + raw[c:]


def number(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """A number of 1, 2, 4 or 8 bytes becomes another: an extreme one, or the old one and a little."""
    width = rng.choice((1, 2, 4, 8, 8))
    if len(raw) < width:
        return raw
    top = min(len(raw), 256) if rng.random() < 0.5 else len(raw)  # headers are at the front
    at = rng.randrange(max(1, top - width + 1))
    if rng.random() < 0.7:
        at -= at % width
    order = rng.choice(("little", "little", "big"))
    old = int.from_bytes(raw[at : at + width], order)  # type: ignore[arg-type]
    new = rng.choice(
        (
            *EXTREMES,
            old + 1,
            old - 1,
            old + 8,
            old * 2,
            -old,
            len(raw),
            len(raw) - at,
            old ^ 1 << rng.randrange(8 * width),
        )
    )
    return raw[:at] + (new % (1 << 8 * width)).to_bytes(width, order) + raw[at + width :]  # type: ignore[arg-type]


def noise(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """Nothing at all, or anything, perhaps after the right beginning."""
    return raw[: rng.choice((0, 0, 1, 2, 4, 8, 20))] + rng.randbytes(rng.choice((0, 1, 10, 100, 1000)))


BYTES: tuple[Mutation, ...] = (
    flip,
    flip,
    put,
    truncate,
    extend,
    cut,
    double,
    splice,
    transplant,
    swap,
    number,
    number,
    number,
    noise,
)


_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_PAIR = re.compile(rb'"(?:[^"\\]|\\.)*"\s*:\s*("(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null)')
_NUMBERS = (
    b"-1",
    b"0",
    b"-0",
    b"0.5",
    b"1e308",
    b"1e999",
    b"-1e999",
    b"1e-400",
    b"NaN",
    b"Infinity",
    b"-Infinity",
    b"01",
    b"9" * 400,
    b"9" * 5000,
    b"1e300",
    b"true",
    b"1" + b"0" * 309,
    *(b"%d" % n for n in EXTREMES),
)
_STRINGS = (
    b'""',
    b'"\\ud800"',
    b'"\xff\xfe"',
    b'"\xed\xa0\x80"',
    b'"\\u0000"',
    b'"../../etc/passwd"',
    b'"a\\nb"',
    b'"' + b"x" * 70_000 + b'"',
    b'"parts:0"',
    b'"parts:99999999999"',
    b"'a'",
    b'"' + b"ab" * 64 + b'"',
    '"\u202e\u0301"'.encode(),
)
_OTHERS = (
    b"null",
    b"{}",
    b"[]",
    b"[[]]",
    b'{"":{}}',
    b"[" * DEPTH,
    b"[" * DEPTH + b"]" * DEPTH,
    b'{"a":' * DEPTH + b"0" + b"}" * DEPTH,
    b"[" + b"0," * 40_000 + b"0]",
    b"",
)


def json_value(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """A value, or a name, becomes another."""
    tokens = list(_TOKEN.finditer(raw))
    if not tokens:
        return raw
    token = rng.choice(tokens)
    new = rng.choice(rng.choice((_NUMBERS, _STRINGS, _OTHERS)))
    if rng.random() < 0.3:
        new = rng.choice(tokens).group()
    return raw[: token.start()] + new + raw[token.end() :]


def json_pair(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """A pair of name and value is there once more, with the same or another value, or not at all, or is a new one."""
    pairs = list(_PAIR.finditer(raw))
    if not pairs:
        return raw
    pair = rng.choice(pairs)
    old, way = pair.group(), rng.randrange(4)
    if way == 0:
        return raw[: pair.start()] + old + b", " + raw[pair.start() :]
    if way == 1:
        return (
            raw[: pair.start()]
            + old[: pair.start(1) - pair.start()]
            + rng.choice(_NUMBERS + _STRINGS)
            + b", "
            + raw[pair.start() :]
        )
    if way == 2:
        return raw[: pair.start()] + raw[pair.end() :].lstrip(b" \n,")
    return raw[: pair.start()] + b'"new": ' + rng.choice(_NUMBERS + _STRINGS + _OTHERS) + b", " + raw[pair.start() :]


JSON: tuple[Mutation, ...] = (
    (json_value,) * 6 + (json_pair,) * 4 + (flip, put, truncate, extend, cut, double, splice, swap, noise)
)


_ITEMS = (
    b"\xc0",
    b"\xc1",
    b"\xc2",
    b"\xc3",
    b"\xff",
    b"\x7f",
    b"\xcc\xff",
    b"\xcf" + b"\xff" * 8,
    b"\xcf\x80" + b"\0" * 7,
    b"\xd3\x80" + b"\0" * 7,
    b"\xcb\x7f\xf8" + b"\0" * 6,
    b"\xcb\x7f\xf0" + b"\0" * 6,
    b"\xcb\xff\xf0" + b"\0" * 6,
    b"\xcb\x7f\xef" + b"\xff" * 6,
    b"\xca\x7f\xc0\0\0",
    b"\xdb\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xdd\x00\x10\x00\x00" + b"\x00" * 999,
    b"\xa2\xff\xfe",
    b"\xa3\xed\xa0\x80",
    b"\xa0",
    b"\xc4\x00",
    b"\x90",
    b"\x80",
    b"\x82\xa1a\x01\xa1a\x02",
    b"\x81\x90\x80",
    b"\x91" * DEPTH,
    b"\x81\xa1a" * DEPTH,
    b"\xd4\x01\x00",
    b"\xd6\xff" + b"\xff" * 4,
    b"\xd7\xff" + b"\xff" * 8,
    b"\xc7\x0c\xff" + b"\xff" * 12,
    b"\xda\xff\xff" + b"x" * 65535,
    b"\xc5\x00\x20" + b"\xaa" * 32,
    b"\xc5\x00\x21" + b"\xaa" * 33,
    b"\xdc\x00\x03\x01\x02\x03",
)


def msgpack_items(raw: bytes) -> list[tuple[int, int]]:
    """(start, end) of the items of msgpack, of arrays and maps their headers alone; up to where it ceases to be
    well-formed.
    """
    items, at = [], 0
    while at < len(raw):
        end = _msgpack_end(raw, at)
        if end is None or end > len(raw):
            break
        items.append((at, end))
        at = end
    return items


_FIXED = {
    0xC0: 0,
    0xC2: 0,
    0xC3: 0,
    0xCA: 4,
    0xCB: 8,
    0xCC: 1,
    0xCD: 2,
    0xCE: 4,
    0xCF: 8,
    0xD0: 1,
    0xD1: 2,
    0xD2: 4,
    0xD3: 8,
    0xD4: 2,
    0xD5: 3,
    0xD6: 5,
    0xD7: 9,
    0xD8: 17,
    0xDC: 2,
    0xDD: 4,
    0xDE: 2,
    0xDF: 4,
}
_SIZED = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}


def _msgpack_end(raw: bytes, at: int) -> int | None:
    first = raw[at]
    if first < 0xA0 or first >= 0xE0:
        return at + 1
    if first < 0xC0:
        return at + 1 + first - 0xA0
    if first in _FIXED:
        return at + 1 + _FIXED[first]
    if first in _SIZED:
        start = at + 1 + struct.calcsize(_SIZED[first])
        return start + int(struct.unpack_from(_SIZED[first], raw, at + 1)[0]) if start <= len(raw) else None
    return None


def msgpack_item(rng: Random, raw: bytes, samples: Sequence[bytes]) -> bytes:
    """An item becomes another, is there twice, or is not there."""
    items = msgpack_items(raw)
    if not items:
        return raw
    start, end = rng.choice(items)
    way = rng.randrange(8)
    if way == 0:
        return raw[:end] + raw[start:end] + raw[end:]
    if way == 1:
        return raw[:start] + raw[end:]
    if way < 4:
        other = rng.choice(samples)
        a, b = rng.choice(msgpack_items(other) or [(0, len(other))])
        return raw[:start] + other[a:b] + raw[end:]
    return raw[:start] + rng.choice(_ITEMS) + raw[end:]


def msgpack_length(rng: Random, raw: bytes, _: Sequence[bytes]) -> bytes:
    """A length of a string, an array or a map becomes another, perhaps said in more bytes than needed."""
    heads = [
        (start, end)
        for start, end in msgpack_items(raw)
        if 0x80 <= raw[start] < 0xC0 or raw[start] in _SIZED or 0xDC <= raw[start] < 0xE0
    ]
    if not heads:
        return raw
    start, _ = rng.choice(heads)
    first = raw[start]
    if first >= 0xC0:
        return raw[: start + 1] + rng.randbytes(1) + raw[start + 2 :]
    kind = (0xDF, 0xDD, 0xDB)[0 if first < 0x90 else 1 if first < 0xA0 else 2]
    size = first & (0x1F if first >= 0xA0 else 0x0F)
    new = rng.choice((size, size + 1, max(0, size - 1), rng.choice(EXTREMES) % (1 << 32)))
    return raw[:start] + bytes([kind]) + struct.pack(">I", new) + raw[start + 1 :]


MSGPACK: tuple[Mutation, ...] = (
    (msgpack_item,) * 6 + (msgpack_length,) * 2 + (flip, put, truncate, extend, cut, double, splice, swap, noise)
)
