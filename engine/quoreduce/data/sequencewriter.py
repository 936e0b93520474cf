"""Writes Hadoop's SequenceFiles; their format is in :mod:`quoreduce.data.sequencefile`."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from quoreduce.data.sequencefile import (
    BLOCK_BYTES_USUAL,
    BYTES,
    CLASSES,
    CODEC_NAMES,
    CODECS,
    ESCAPE,
    LENGTH_MAX,
    SYNC_BYTES,
    TEXT,
    Compression,
    file_header,
    sync_marker,
    vint,
)
from quoreduce.errors import UsageError

if TYPE_CHECKING:
    from quoreduce.data.sequencefile import I64, U8

SYNC_INTERVAL = 5 * 1024 * (len(ESCAPE) + SYNC_BYTES)
_I32 = struct.Struct(">i")
_TWO_I32 = struct.Struct(">ii")


def block_frame(sync: bytes, records: int, buffers: Sequence[bytes]) -> bytes:
    """Return a block of ``records`` records from its four compressed buffers."""
    return ESCAPE + sync + vint(records) + b"".join(vint(len(buffer)) + buffer for buffer in buffers)


class SequenceWriter:
    """Writes records as a SequenceFile to a function; the same records give the same bytes, however they are handed
    over.

    Compressed bytes are those of this machine's zlib: replicas must have the same one.

    Attributes:
        records: number of records written so far.
        nbytes: bytes given to ``write`` so far.
    """

    def __init__(
        self, write: Callable[[bytes], object], seed: int, part: int = 0, *, key: str = "Text", value: str = "Text",
        compression: Compression = "block", codec: str = "zlib", level: int = 1, block_bytes: int = BLOCK_BYTES_USUAL,
        metadata: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """Write the header.

        Args:
            write: is given the file's bytes, piece by piece.
            seed: with ``part``, gives the sync marker (:func:`sync_marker`).
            part: number of the part.
            key: ``Text``, ``BytesWritable``, or ``IntWritable``, ``LongWritable``, ``NullWritable`` (4, 8, 0 bytes).
            value: the same.
            compression: ``block``, ``record`` or ``none``.
            codec: ``zlib`` or ``gzip``.
            level: zlib's, 0 to 9.
            block_bytes: a block ends with the record that brings its keys and values to this size.
            metadata: for the header.

        Raises:
            UsageError: anything that is not in these ranges.
        """
        if not 0 <= level <= 9 or block_bytes < 1:
            raise UsageError(f"level {level} is not in 0..9, or a block of {block_bytes} bytes holds nothing")
        self.records = 0
        self.nbytes = 0
        self._write = write
        self._sync = sync_marker(seed, part)
        header = file_header(self._sync, key, value, compression, codec, metadata)
        self._forms = (CLASSES[key], CLASSES[value])
        self._compression, self._wbits, self._level = compression, CODECS[CODEC_NAMES[codec]], level
        self._block_bytes = block_bytes
        self._buffers = tuple(bytearray() for _ in range(4))
        self._pending = 0
        self._synced = 0
        self._closed = False
        self._put(header)

    def __enter__(self) -> SequenceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()

    def write(self, key: bytes, value: bytes) -> None:
        """Append one record; raise ValueError if a payload does not fit its class."""
        self._append(_serialise(key, self._forms[0]), _serialise(value, self._forms[1]))

    def write_columns(self, key_offsets: I64, key_data: U8, value_offsets: I64, value_data: U8) -> None:
        """Append n records: payloads as columns (offsets i64[n+1], data u8[...]), as a block's ``binary`` gives
        them.
        """
        import numpy as np

        from quoreduce_kernels.sequence import serialise

        if key_offsets.size != value_offsets.size:
            raise ValueError(f"{key_offsets.size - 1} keys and {value_offsets.size - 1} values")
        keys, key_lengths = serialise(key_data, key_offsets, self._forms[0])
        values, value_lengths = serialise(value_data, value_offsets, self._forms[1])
        key_ends, value_ends = (np.concatenate(([0], np.cumsum(lengths))) for lengths in (key_lengths, value_lengths))
        if self._compression == "block":
            self._append_rows(keys, key_lengths, key_ends, values, value_lengths, value_ends)
            return
        for i in range(key_lengths.size):
            key, value = keys[key_ends[i] : key_ends[i + 1]], values[value_ends[i] : value_ends[i + 1]]
            self._append(key.tobytes(), value.tobytes())

    def close(self) -> None:
        """Write what is pending. Does not close anything else."""
        if not self._closed:
            self._end_block()
        self._closed = True

    def _put(self, data: bytes) -> None:
        self._write(data)
        self.nbytes += len(data)

    def _append(self, key: bytes, value: bytes) -> None:
        if self._compression != "block":
            self._put_single(key, value)
            return
        for buffer, data in zip(self._buffers, (vint(len(key)), key, vint(len(value)), value), strict=True):
            buffer += data
        self._pending += 1
        self.records += 1
        if len(self._buffers[1]) + len(self._buffers[3]) >= self._block_bytes:
            self._end_block()

    def _append_rows(
        self, keys: U8, key_lengths: I64, key_ends: I64, values: U8, value_lengths: I64, value_ends: I64
    ) -> None:
        """Append serialised rows, cut into blocks where single records would be."""
        from quoreduce_kernels.sequence import encode_vints

        ends, first, count = key_ends + value_ends, 0, key_lengths.size
        while first < count:
            room = self._block_bytes - len(self._buffers[1]) - len(self._buffers[3])
            last = min(int(ends[1:].searchsorted(ends[first] + room)) + 1, count)
            pieces = (
                encode_vints(key_lengths[first:last]), keys[key_ends[first] : key_ends[last]],
                encode_vints(value_lengths[first:last]), values[value_ends[first] : value_ends[last]],
            )  # fmt: skip
            for buffer, piece in zip(self._buffers, pieces, strict=True):
                buffer += piece.data
            self._pending += last - first
            self.records += last - first
            first = last
            if len(self._buffers[1]) + len(self._buffers[3]) >= self._block_bytes:
                self._end_block()

    def _put_single(self, key: bytes, value: bytes) -> None:
        value = self._compress(value) if self._compression == "record" else value
        if len(key) + len(value) > LENGTH_MAX:
            raise ValueError(f"a record of {len(key) + len(value)} bytes does not fit a SequenceFile")
        if self.nbytes >= self._synced + SYNC_INTERVAL:
            self._put(ESCAPE + self._sync)
            self._synced = self.nbytes
        self._put(_TWO_I32.pack(len(key) + len(value), len(key)) + key + value)
        self.records += 1

    def _end_block(self) -> None:
        if self._pending:
            self._put(block_frame(self._sync, self._pending, [self._compress(buffer) for buffer in self._buffers]))
            for buffer in self._buffers:
                buffer.clear()
            self._pending = 0

    def _compress(self, data: bytes | bytearray) -> bytes:
        stream = zlib.compressobj(self._level, zlib.DEFLATED, self._wbits)
        return stream.compress(data) + stream.flush()


def _serialise(payload: bytes, form: int) -> bytes:
    if len(payload) > LENGTH_MAX - 5 or (form >= 0 and len(payload) != form):
        raise ValueError(f"a value of {len(payload)} bytes does not fit its class")
    prefix = vint(len(payload)) if form == TEXT else _I32.pack(len(payload)) if form == BYTES else b""
    return prefix + payload
