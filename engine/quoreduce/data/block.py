"""Blocks: one partition of one map output, as one contiguous buffer in a canonical layout.

The bytes of a block are what is digested, voted on, stored, shipped and read; two honest replicas produce the same
bytes, so there is nothing in them that depends on time, place or memory (no padding that is not zero, no pointers).
All integers are little-endian. ``c`` is the number of columns, ``n`` the number of records.

======== ===== ==============================================================================================
offset   size  field
======== ===== ==============================================================================================
0        4     magic ``QRB1``
4        2     version, u16, = 1
6        2     c, number of columns, u16, 1..64
8        8     n, number of records, u64
16       8     total, length of the whole block in bytes, u64, a multiple of 8
24       24*c  one descriptor for each column:
                 +0  type, u8: 1 fixed width bytes, 2 binary, 3 u64, 4 i64, 5 f64
                 +1  7 zero bytes
                 +8  width in bytes of a value, u64 (fixed: 1..2**16; binary: 0; numbers: 8)
                 +16 length of the column's data buffer in bytes, u64
...            zero padding to the next multiple of 64
then, for each column in order, its buffers, each starting at a multiple of 64, zero padding between:
               fixed width: data, n*width bytes (Arrow FixedSizeBinary or primitive buffer)
               binary:      offsets, i64[n+1], offsets[0] = 0, never decreasing, offsets[n] = data length
                            (Arrow LargeBinary), then data
======== ===== ==============================================================================================

Positions follow from the header alone, so a reader cannot be led to overlapping or outlying buffers: ``total`` must
equal the end of the last buffer (padded to 8). :meth:`Block.open` checks everything before any view is handed out and
raises :class:`~quoreduce.errors.BlockError` for bytes that are not a block.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from quoreduce.errors import BlockError
from quoreduce.job import WIDTH_MAX, record_width

if TYPE_CHECKING:
    import pyarrow as pa

U8 = NDArray[np.uint8]
I64 = NDArray[np.int64]
Buffer = U8 | bytes | bytearray | memoryview

MAGIC = b"QRB1"
VERSION = 1
ALIGN = 64
COLUMNS_MAX = 64
BLOCK_BYTES_MAX = 1 << 40
_HEAD = struct.Struct("<4sHHQQ")
_COLUMN = struct.Struct("<B7xQQ")
_FIXED, _BINARY, _U64, _I64, _F64 = 1, 2, 3, 4, 5
_NUMBERS = {_U64: np.dtype("<u8"), _I64: np.dtype("<i8"), _F64: np.dtype("<f8")}
_NAMES = {"binary": _BINARY, "u64": _U64, "i64": _I64, "f64": _F64}


@dataclass(frozen=True, slots=True)
class ColumnType:
    """Type of a column: ``code`` as in the header, ``width`` in bytes of a value (0 for binary)."""

    code: int
    width: int


def parse_schema(schema: Sequence[str]) -> tuple[ColumnType, ...]:
    """Turn names like ``("binary", "u64", "fixed:100")`` into column types; raise BlockError for an unknown one."""
    columns = tuple(_parse_column(name) for name in schema)
    if not 1 <= len(columns) <= COLUMNS_MAX:
        raise BlockError(f"a block has 1 to {COLUMNS_MAX} columns, not {len(columns)}")
    return columns


def _parse_column(name: str) -> ColumnType:
    if width := record_width(name):
        return ColumnType(_FIXED, width)
    if name in _NAMES:
        return ColumnType(_NAMES[name], 0 if name == "binary" else 8)
    raise BlockError(f"unknown column type {name!r}: use binary, u64, i64, f64 or fixed:N with N in 1..{WIDTH_MAX}")


def _up(position: int, align: int = ALIGN) -> int:
    return (position + align - 1) & -align


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the buffers of a block lie: ``starts[i]`` = (offsets position or -1, data position), in bytes."""

    schema: tuple[ColumnType, ...]
    records: int
    data_bytes: tuple[int, ...]
    starts: tuple[tuple[int, int], ...]
    total: int

    @classmethod
    def plan(cls, schema: tuple[ColumnType, ...], records: int, data_bytes: Sequence[int]) -> Layout:
        """Lay out ``records`` rows whose column ``i`` has ``data_bytes[i]`` bytes of data."""
        position = _up(_HEAD.size + _COLUMN.size * len(schema))
        starts = []
        end = position
        for column, size in zip(schema, data_bytes, strict=True):
            if column.code != _BINARY and size != records * column.width:
                raise BlockError(f"a column of {records} values of {column.width} bytes has no {size} bytes of data")
            offsets = -1
            if column.code == _BINARY:
                offsets = _up(end)
                end = offsets + 8 * (records + 1)
            data = _up(end)
            end = data + size
            starts.append((offsets, data))
        return cls(schema, records, tuple(data_bytes), tuple(starts), _up(end, 8))

    def header(self) -> bytes:
        """Return the header's bytes, padded to a multiple of 64."""
        head = _HEAD.pack(MAGIC, VERSION, len(self.schema), self.records, self.total)
        columns = (_COLUMN.pack(c.code, c.width, size) for c, size in zip(self.schema, self.data_bytes, strict=True))
        raw = head + b"".join(columns)
        return raw.ljust(_up(len(raw)), b"\0")


class Block:
    """A block in ``buffer`` (u8[total]); columns are views of it, nothing is copied."""

    __slots__ = ("buffer", "layout")

    def __init__(self, buffer: U8, layout: Layout) -> None:
        self.buffer = buffer
        self.layout = layout

    @classmethod
    def create(
        cls, schema: Sequence[str], records: int, data_bytes: Sequence[int], allocate: Callable[[int], U8] | None = None
    ) -> Block:
        """Make a block to be filled: header and padding are written here, columns by the caller.

        ``schema`` as for :func:`parse_schema`; ``data_bytes[i]`` is the size of column ``i``'s data in bytes (for fixed
        width columns ``records * width``); ``allocate(nbytes)`` gives a writable u8[nbytes], which need not be zero.
        """
        layout = Layout.plan(parse_schema(schema), records, data_bytes)
        buffer = np.empty(layout.total, np.uint8) if allocate is None else allocate(layout.total)
        if buffer.dtype != np.uint8 or buffer.shape != (layout.total,) or not buffer.flags.c_contiguous:
            raise BlockError(f"the allocator gave {buffer.dtype}{buffer.shape}, not u8[{layout.total}]")
        header = layout.header()
        buffer[: len(header)] = np.frombuffer(header, np.uint8)
        end = len(header)
        for (offsets, data), size in zip(layout.starts, layout.data_bytes, strict=True):
            if offsets >= 0:
                buffer[end:offsets] = 0
                end = offsets + 8 * (records + 1)
            buffer[end:data] = 0
            end = data + size
        buffer[end:] = 0
        return cls(buffer, layout)

    @classmethod
    def open(cls, raw: Buffer) -> Block:
        """View ``raw`` as a block without a copy; raise BlockError unless every rule of the layout holds."""
        buffer = raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)
        if buffer.dtype != np.uint8 or buffer.ndim != 1 or not buffer.flags.c_contiguous:
            raise BlockError("a block is a contiguous run of bytes")
        block = cls(buffer, _read_header(buffer))
        block._check_padding()
        for i, column in enumerate(block.layout.schema):
            if column.code == _BINARY:
                block._check_offsets(i)
        return block

    @property
    def records(self) -> int:
        """Number of records (rows)."""
        return self.layout.records

    @property
    def nbytes(self) -> int:
        """Size in bytes, as of an array."""
        return self.buffer.size

    @property
    def schema(self) -> tuple[str, ...]:
        """Column types by name, as given to :meth:`create`."""
        names = {code: name for name, code in _NAMES.items()}
        return tuple(f"fixed:{c.width}" if c.code == _FIXED else names[c.code] for c in self.layout.schema)

    def fixed(self, column: int) -> U8:
        """Return a fixed width column as u8[n, width]."""
        width, data = self._data(column, {_FIXED})
        return data.reshape(self.records, width)

    def numbers(self, column: int) -> NDArray[Any]:
        """Return a u64, i64 or f64 column as an array of n values."""
        _, data = self._data(column, set(_NUMBERS))
        return data.view(_NUMBERS[self.layout.schema[column].code])

    def binary(self, column: int) -> tuple[I64, U8]:
        """Return a binary column as (offsets i64[n+1], data u8[...]); value i is ``data[offsets[i]:offsets[i+1]]``."""
        _, data = self._data(column, {_BINARY})
        start = self.layout.starts[column][0]
        return self.buffer[start : start + 8 * (self.records + 1)].view("<i8"), data

    def to_arrow(self) -> pa.RecordBatch:
        """View the block as an Arrow record batch (columns ``c0``, ``c1``, ...), without a copy."""
        import pyarrow as pa

        types = {_U64: pa.uint64(), _I64: pa.int64(), _F64: pa.float64(), _BINARY: pa.large_binary()}
        whole = pa.py_buffer(self.buffer)
        arrays = []
        for (offsets, data), size, column in zip(
            self.layout.starts, self.layout.data_bytes, self.layout.schema, strict=True
        ):
            buffers = [None] if offsets < 0 else [None, whole.slice(offsets, 8 * (self.records + 1))]
            buffers.append(whole.slice(data, size))
            kind = pa.binary(column.width) if column.code == _FIXED else types[column.code]
            arrays.append(pa.Array.from_buffers(kind, self.records, buffers))
        return pa.RecordBatch.from_arrays(arrays, names=[f"c{i}" for i in range(len(arrays))])

    def _data(self, column: int, codes: set[int]) -> tuple[int, U8]:
        if not 0 <= column < len(self.layout.schema):
            raise BlockError(f"no column {column} in a block of {len(self.layout.schema)} columns")
        kind = self.layout.schema[column]
        if kind.code not in codes:
            raise BlockError(f"column {column} is of type {self.schema[column]}")
        start = self.layout.starts[column][1]
        return kind.width, self.buffer[start : start + self.layout.data_bytes[column]]

    def _check_padding(self) -> None:
        end = _HEAD.size + _COLUMN.size * len(self.layout.schema)
        for (offsets, data), size in zip(self.layout.starts, self.layout.data_bytes, strict=True):
            if offsets >= 0:
                self._check_zero(end, offsets)
                end = offsets + 8 * (self.records + 1)
            self._check_zero(end, data)
            end = data + size
        self._check_zero(end, self.layout.total)

    def _check_zero(self, start: int, stop: int) -> None:
        if self.buffer[start:stop].any():
            raise BlockError(f"padding at bytes {start}..{stop} of a block is not zero")

    def _check_offsets(self, column: int) -> None:
        offsets, data = self.binary(column)
        if offsets[0] != 0 or offsets[-1] != data.size or bool((offsets[1:] < offsets[:-1]).any()):
            raise BlockError(f"offsets of column {column} do not run from 0 to {data.size} without decreasing")


def _read_header(buffer: U8) -> Layout:
    """Decode and check the header of ``buffer``; every size is bounded before it is used."""
    if buffer.size < _HEAD.size:
        raise BlockError(f"{buffer.size} bytes are too few for a block's header")
    magic, version, count, records, total = _HEAD.unpack_from(buffer.data)
    if magic != MAGIC or version != VERSION:
        raise BlockError(f"not a block of version {VERSION}: starts with {bytes(magic)!r}, version {version}")
    if not 1 <= count <= COLUMNS_MAX or buffer.size < _HEAD.size + count * _COLUMN.size:
        raise BlockError(f"a block of {buffer.size} bytes cannot have {count} columns")
    if total != buffer.size or total > BLOCK_BYTES_MAX or records > total:
        raise BlockError(f"header says {total} bytes and {records} records; there are {buffer.size} bytes")
    schema, sizes = [], []
    for i in range(count):
        position = _HEAD.size + i * _COLUMN.size
        code, width, size = _COLUMN.unpack_from(buffer.data, position)
        if buffer[position + 1 : position + 8].any() or not _valid_column(code, width) or size > total:
            raise BlockError(f"column {i} has type {code}, width {width}, {size} bytes: not a valid descriptor")
        schema.append(ColumnType(code, width))
        sizes.append(size)
    layout = Layout.plan(tuple(schema), records, sizes)
    if layout.total != total:
        raise BlockError(f"columns end at byte {layout.total}, the header says {total}")
    return layout


def _valid_column(code: int, width: int) -> bool:
    if code == _FIXED:
        return 1 <= width <= WIDTH_MAX
    return (code == _BINARY and width == 0) or (code in _NUMBERS and width == 8)
