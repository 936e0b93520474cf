"""From a byte to its record: what lies at an offset of a block, of lines, of records of a fixed width."""

from __future__ import annotations

from typing import Annotated

import msgspec
import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.errors import BlockError
from quoreduce.job import record_width

U8 = NDArray[np.uint8]
SHOWN_BYTES = 64
BEFORE_BYTES = 24
PLAIN_BYTES = 8
VALUES_MAX = 8
_Number = Annotated[int, msgspec.Meta(ge=-1, le=(1 << 63) - 1)]
_Text = Annotated[str, msgspec.Meta(max_length=16)]


class Value(msgspec.Struct, frozen=True, array_like=True):
    """A value, or up to SHOWN_BYTES of it from byte ``start`` on; ``nbytes``: of the whole. ``kind``: as in a block's
    schema.
    """

    kind: _Text
    data: Annotated[bytes, msgspec.Meta(max_length=SHOWN_BYTES)]
    start: _Number
    nbytes: _Number


class Spot(msgspec.Struct, frozen=True, array_like=True):
    """The record at an offset.

    ``what``: ``record``; of a block also ``header``, ``offsets`` (where a value begins and ends) or ``padding``;
    ``end`` if it is there already; ``bytes`` if nothing more is known. ``column`` and ``record``: numbers from 0, -1
    for none. ``values``: those of the record, by column (a header's: the number of records); for bytes, those from the
    offset on.
    """

    what: _Text
    column: _Number
    record: _Number
    values: Annotated[tuple[Value, ...], msgspec.Meta(max_length=VALUES_MAX)]


def find(raw: U8, offset: int, layout: str) -> Spot:
    """Say what lies at ``offset`` of ``raw``, which is a ``block``, or ``text``, records (``fixed:N``), or anything
    else.
    """
    if offset >= raw.size:
        return Spot("end", -1, -1, ())
    if layout == "block":
        return in_block(raw, offset)
    if layout == "text":
        return in_lines(raw, offset)
    width = record_width(layout)
    return in_records(raw, offset, width) if width else in_bytes(raw, offset)


def in_bytes(raw: U8, offset: int) -> Spot:
    """Show some bytes from an offset on."""
    return Spot("bytes", -1, -1, (Value("bytes", raw[offset : offset + PLAIN_BYTES].tobytes(), offset, raw.size),))


def in_block(raw: U8, offset: int) -> Spot:
    """Say what lies at byte ``offset`` of a block; bytes that are no block have no records."""
    try:
        block = Block.open(raw)
    except BlockError:
        return in_bytes(raw, offset)
    end = len(block.layout.header())
    if offset < end:
        return Spot("header", -1, -1, (Value("u64", np.uint64(block.records).tobytes(), 0, 8),))
    for column, (offsets, data) in enumerate(block.layout.starts):
        size = block.layout.data_bytes[column]
        if 0 <= offsets <= offset < offsets + 8 * (block.records + 1):
            return _record(block, "offsets", column, max(0, (offset - offsets) // 8 - 1), 0)
        if data <= offset < data + size:
            record, at = _value_at(block, column, offset - data)
            return _record(block, "record", column, record, at)
    return Spot("padding", -1, -1, ())


def _value_at(block: Block, column: int, position: int) -> tuple[int, int]:
    """The record to whose value byte ``position`` of a column's data belongs, and its place in the value."""
    width = block.layout.schema[column].width
    if width:
        return divmod(position, width)
    offsets, _ = block.binary(column)
    record = int(np.searchsorted(offsets, position, "right")) - 1
    return record, position - int(offsets[record])


def _record(block: Block, what: str, column: int, record: int, at: int) -> Spot:
    if record >= block.records:
        return Spot(what, column, -1, ())
    values = tuple(
        _value(block, i, record, at if i == column else 0) for i in range(min(VALUES_MAX, len(block.schema)))
    )
    return Spot(what, column, record, values)


def _value(block: Block, column: int, record: int, at: int) -> Value:
    kind = block.schema[column]
    if kind == "binary":
        offsets, data = block.binary(column)
        return _window(data, int(offsets[record]), int(offsets[record + 1]), int(offsets[record]) + at, kind)
    width, start = block.layout.schema[column].width, block.layout.starts[column][1]
    return _window(
        block.buffer, start + record * width, start + (record + 1) * width, start + record * width + at, kind
    )


def in_lines(raw: U8, offset: int) -> Spot:
    """Say which line, without its end, lies at an offset; a line's end belongs to it."""
    before = raw[:offset]
    record = int(np.count_nonzero(before == ord("\n")))
    start = _last_end(before)
    after = np.flatnonzero(raw[offset : offset + SHOWN_BYTES] == ord("\n"))
    stop = offset + int(after[0]) if after.size else min(raw.size, offset + SHOWN_BYTES)
    return Spot("record", -1, record, (_window(raw, start, stop, offset, "line"),))


def _last_end(before: U8) -> int:
    """Where the line that crosses ``before`` begins: searched backwards, in pieces, as lines are short."""
    stop = before.size
    while stop > 0:
        start = max(0, stop - (1 << 16))
        ends = np.flatnonzero(before[start:stop] == ord("\n"))
        if ends.size:
            return start + int(ends[-1]) + 1
        stop = start
    return 0


def in_records(raw: U8, offset: int, width: int) -> Spot:
    """Say which record of ``width`` bytes lies at an offset."""
    record = offset // width
    end = min(raw.size, (record + 1) * width)
    return Spot("record", -1, record, (_window(raw, record * width, end, offset, f"fixed:{width}"),))


def _window(raw: U8, start: int, stop: int, at: int, kind: str) -> Value:
    """The text that shows bytes ``start`` to ``stop``: all of them, or a stretch around byte ``at``."""
    first = start if stop - start <= SHOWN_BYTES else max(start, min(at - BEFORE_BYTES, stop - SHOWN_BYTES))
    last = min(stop, first + SHOWN_BYTES)
    return Value(kind, raw[first:last].tobytes(), first - start, max(0, stop - start))
