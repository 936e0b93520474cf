"""From a byte to its record: of blocks, lines and records of a fixed width; every byte belongs to what the slow way
says.
"""

from __future__ import annotations

from collections import Counter

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.data import locate
from quoreduce.data.block import Block


def block_of(rows: list[tuple[bytes, int, bytes]]) -> Block:
    """A block of a binary, a u64 and a fixed:3 column."""
    sizes = (sum(len(row[0]) for row in rows), 8 * len(rows), 3 * len(rows))
    block = Block.create(("binary", "u64", "fixed:3"), len(rows), sizes)
    offsets, data = block.binary(0)
    offsets[:] = np.cumsum([0] + [len(row[0]) for row in rows])
    data[:] = np.frombuffer(b"".join(row[0] for row in rows), np.uint8)
    for i, row in enumerate(rows):
        block.numbers(1)[i] = row[1]
        block.fixed(2)[i] = np.frombuffer(row[2], np.uint8)
    return block


ROWS = st.lists(
    st.tuples(st.binary(max_size=9), st.integers(0, 2**64 - 1), st.binary(min_size=3, max_size=3)), max_size=9
)


@given(ROWS)
def test_a_byte_that_changes_a_value_lies_in_its_record(rows: list[tuple[bytes, int, bytes]]) -> None:
    """For every byte of a block: flipping it changes the record that it is said to lie in, first of its column, and no
    other.
    """
    block = block_of(rows)
    spots = [locate.find(block.buffer, offset, "block") for offset in range(block.buffer.size)]
    held = Counter(spot.what for spot in spots)
    assert held["record"] == sum(len(first) + 8 + 3 for first, _, _ in rows)
    assert held["offsets"] == 8 * (len(rows) + 1)
    for offset, spot in enumerate(spots):
        changed = block.buffer.copy()
        changed[offset] ^= 1
        if spot.what == "record":
            other = Block.open(changed)
            (column, unlike), *more = differing(block, other)
            assert (column, unlike, more) == (spot.column, spot.record, [])
        elif spot.what == "offsets":
            assert spot.column == 0
            assert -1 <= spot.record < max(1, len(rows))
        elif spot.what == "header":
            assert offset < 128
        else:
            assert spot.what == "padding"


def differing(one: Block, two: Block) -> list[tuple[int, int]]:
    found = []
    for column in range(3):
        values = [
            [value.data for value in (locate._value(b, column, i, 0) for i in range(b.records))] for b in (one, two)
        ]
        found += [(column, i) for i, (a, b) in enumerate(zip(*values, strict=True)) if a != b]
    return found


def test_a_record_is_shown_by_column() -> None:
    block = block_of([(b"a", 1, b"xyz"), (b"word", 7, b"abc")])
    at = block.layout.starts[0][1] + 3
    spot = locate.find(block.buffer, at, "block")
    assert (spot.what, spot.column, spot.record) == ("record", 0, 1)
    assert [(value.kind, value.data) for value in spot.values] == [
        ("binary", b"word"), ("u64", (7).to_bytes(8, "little")), ("fixed:3", b"abc"),
    ]  # fmt: skip


def test_an_offset_that_changes_is_the_end_of_a_record() -> None:
    block = block_of([(b"a", 1, b"xyz"), (b"word", 7, b"abc")])
    spots = [locate.find(block.buffer, block.layout.starts[0][0] + 8 * entry, "block") for entry in range(3)]
    assert [(spot.what, spot.record) for spot in spots] == [("offsets", 0), ("offsets", 0), ("offsets", 1)]


def test_a_header_gives_the_number_of_records() -> None:
    spot = locate.find(block_of([(b"a", 1, b"xyz")]).buffer, 9, "block")
    assert (spot.what, int.from_bytes(spot.values[0].data, "little")) == ("header", 1)


def test_a_long_value_is_shown_around_the_byte() -> None:
    long = bytes(range(200))
    spot = locate.find(np.frombuffer(long * 2, np.uint8), 390, "fixed:200")
    (value,) = spot.values
    assert (spot.record, value.nbytes, len(value.data)) == (1, 200, locate.SHOWN_BYTES)
    assert value.data == long[value.start : value.start + locate.SHOWN_BYTES]
    assert value.start <= 190 < value.start + locate.SHOWN_BYTES


@given(st.lists(st.text("ab\r", max_size=5).map(str.encode), min_size=1, max_size=8), st.booleans(), st.data())
def test_lines_are_counted_as_by_split(lines: list[bytes], ended: bool, data: st.DataObject) -> None:
    raw = b"\n".join(lines) + b"\n" * ended
    if not raw:
        return
    offset = data.draw(st.integers(0, len(raw) - 1))
    spot = locate.find(np.frombuffer(raw, np.uint8), offset, "text")
    assert spot.record == raw[:offset].count(b"\n")
    assert spot.values[0].data == raw.split(b"\n")[spot.record]


@pytest.mark.parametrize("layout", ["block", "text", "fixed:10", "sequence"])
def test_past_the_end_there_is_nothing(layout: str) -> None:
    assert locate.find(np.frombuffer(b"0123456789", np.uint8), 10, layout).what == "end"


@given(st.binary(min_size=1, max_size=200), st.data())
def test_bytes_that_are_no_block_are_shown_as_bytes(raw: bytes, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(raw) - 1))
    spot = locate.find(np.frombuffer(raw, np.uint8), offset, "block")
    assert spot.what == "bytes"
    assert spot.values[0].data == raw[offset : offset + locate.PLAIN_BYTES]


def test_spots_to_the_last_field() -> None:
    """What a diagnosis prints: kind, column, record, bytes, where they begin, and how many there are in all."""
    block = block_of([(b"a", 1, b"xyz"), (b"word", 7, b"abc")])
    offsets, data = block.layout.starts[0]
    raw = np.frombuffer(b"0123456789ab\ncd", np.uint8)
    none: tuple[locate.Value, ...] = ()
    number = locate.Value("u64", (2).to_bytes(8, "little"), 0, 8)
    assert locate.find(raw, 15, "text") == locate.Spot("end", -1, -1, none)
    assert locate.find(raw, 3, "sequence") == locate.Spot("bytes", -1, -1, (locate.Value("bytes", b"3456789a", 3, 15),))
    assert locate.find(raw, 14, "text") == locate.Spot("record", -1, 1, (locate.Value("line", b"cd", 0, 2),))
    assert locate.find(raw, 14, "fixed:10") == locate.Spot(
        "record", -1, 1, (locate.Value("fixed:10", b"ab\ncd", 0, 5),)
    )
    assert locate.find(block.buffer, 9, "block") == locate.Spot("header", -1, -1, (number,))
    assert locate.find(block.buffer, offsets + 24, "block") == locate.Spot("padding", -1, -1, none)
    assert locate.find(block.buffer, data - 1, "block") == locate.Spot("padding", -1, -1, none)
    assert locate.find(raw, 3, "fixed:10") == locate.Spot(
        "record", -1, 0, (locate.Value("fixed:10", b"0123456789", 0, 10),)
    )
    empty = block_of([])
    assert locate.find(empty.buffer, empty.layout.starts[0][0], "block") == locate.Spot("offsets", 0, -1, none)
    without = block_of([(b"", 1, b"xyz")])
    assert locate.find(without.buffer, without.layout.starts[1][1], "block").values[0] == locate.Value(
        "binary", b"", 0, 0
    )


def test_values_as_long_as_can_be_shown_and_longer_ones() -> None:
    """A window of 64 bytes, 24 of them before the byte, but never beyond the value."""
    long = bytes(range(150))
    block = block_of([(b"a", 1, b"xyz"), (long, 2, b"abc"), (long[:64], 3, b"def")])
    start = block.layout.starts[0][1] + 1

    def shown(at: int) -> tuple[int, bytes, int]:
        value = locate.find(block.buffer, start + at, "block").values[0]
        return value.start, value.data, value.nbytes

    assert shown(0) == (0, long[:64], 150)
    assert shown(30) == (6, long[6:70], 150)
    assert shown(149) == (86, long[86:], 150)
    assert shown(150 + 63) == (0, long[:64], 64)
    assert locate.find(np.frombuffer(long[:65], np.uint8), 64, "fixed:65").values[0].start == 1
    line = np.frombuffer(b"x\n" + long[30:140], np.uint8)
    assert locate.find(line, 2 + 50, "text").values[0].start == 26


def test_only_the_value_in_which_the_byte_lies_is_shown_around_it() -> None:
    """The others of the record from their beginnings, and of a wide record the first eight."""
    long = bytes(range(200))
    block = Block.create(("fixed:200",) * 9, 2, (400,) * 9)
    for column in range(9):
        block.fixed(column)[:] = np.frombuffer(long, np.uint8)
    spot = locate.find(block.buffer, block.layout.starts[2][1] + 200 + 100, "block")
    assert (spot.column, spot.record, len(spot.values)) == (2, 1, locate.VALUES_MAX) == (2, 1, 8)
    assert [value.start for value in spot.values] == [0, 0, 76, 0, 0, 0, 0, 0]
    assert all(value.data == long[value.start : value.start + 64] for value in spot.values)


@pytest.mark.parametrize("number", [-2, 1 << 63])
def test_numbers_that_cannot_be_are_not_taken_from_a_worker(number: int) -> None:
    assert msgspec.convert(["u64", b"", 0, (1 << 63) - 1], locate.Value).nbytes == (1 << 63) - 1
    assert msgspec.convert(["end", -1, -1, []], locate.Spot) == locate.Spot("end", -1, -1, ())
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(["end", number, -1, []], locate.Spot)
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(["u64", b"", 0, number], locate.Value)


def test_names_of_kinds_are_short() -> None:
    assert msgspec.convert(["k" * 16, b"", 0, 0], locate.Value).kind == "k" * 16
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(["k" * 17, b"", 0, 0], locate.Value)
