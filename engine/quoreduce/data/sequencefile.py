"""Hadoop's SequenceFiles, version 6, with records alone, each compressed, or in compressed blocks: their headers, and
the reader.

A *string* is a VInt (``quoreduce_kernels.sequence``), its length in bytes, and UTF-8. Integers are big-endian::

    header   53 45 51 06 ("SEQ", version) | key class, string | value class, string | compressed?, 1 byte
             | blocks?, 1 byte | codec class, string, if compressed | number of metadata, i32, and for each two strings
             | sync marker, 16 bytes
    record   length of key and value, i32 | length of the key, i32 | key | value (compressed by itself, if records are)
    block    FF FF FF FF | sync marker | number of records, VInt | four times: size, VInt, and compressed bytes
             (the lengths of the keys as VInts; the keys; the lengths of the values; the values)

Between records stands FF FF FF FF and the sync marker about every 100 KB. A *sync point* is the end of the header, or
where such an escape begins; a group of records belongs to the split in which its sync point lies, and neighbours share
the rule of ``formats``: cut(p) = the first sync point at or after p, or the file's end. So nothing is lost or doubled.

Whatever a file says is checked before memory is given to it: lengths against the bytes that are there, and against what
DEFLATE can make of them. Everything wrong is an :class:`InputError` that names the file and the byte.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, NoReturn

from quoreduce.data.formats import ReadAt
from quoreduce.errors import InputError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from quoreduce.data.block import Block

    U8 = NDArray[np.uint8]
    I64 = NDArray[np.int64]

Compression = Literal["none", "record", "block"]

MAGIC, VERSION = b"SEQ", 6
ESCAPE = b"\xff\xff\xff\xff"
SYNC_BYTES = 16
TEXT, BYTES = -1, -2  # forms, as in quoreduce_kernels.sequence; others are widths
CLASSES = {"Text": TEXT, "BytesWritable": BYTES, "IntWritable": 4, "LongWritable": 8, "NullWritable": 0}
CODECS = {"DefaultCodec": 15, "GzipCodec": 31}  # and zlib's wbits for them
CODEC_NAMES = {"zlib": "DefaultCodec", "gzip": "GzipCodec"}
SCHEMA = ("binary", "binary")

HEADER_BYTES_MAX = 1 << 16
STRING_BYTES_MAX = 1 << 12
METADATA_MAX = 1 << 10
LENGTH_MAX = (1 << 31) - 1
RECORDS_BYTES_MAX = 4 << 30
EXPANSION_MAX = 1032  # DEFLATE makes at most 258 bytes of 2 bits
BLOCK_BYTES_USUAL = 1_000_000  # io.seqfile.compress.blocksize
_TOO_MUCH = "more bytes of records in one split than fit memory; use a smaller --split-mb"
_PACKAGE = "org.apache.hadoop.io."
_WINDOW = 1 << 18
_I32 = struct.Struct(">i")


class SequenceHeader(NamedTuple):
    """A file's header: forms of keys and values, compression, zlib's wbits, sync marker, and where it
    ends.
    """

    key_form: int
    value_form: int
    compression: Compression
    wbits: int
    metadata: tuple[tuple[bytes, bytes], ...]
    sync: bytes
    end: int


class _Cursor:
    """A place in bytes of the file ``name`` that begin at ``base``; what is wrong there is an InputError."""

    def __init__(self, data: bytes | memoryview, name: str, base: int = 0) -> None:
        self.data = memoryview(data)
        self.name = name
        self.base = base
        self.at = 0

    def fail(self, reason: str, at: int | None = None) -> NoReturn:
        where = self.base + (self.at if at is None else at)
        raise InputError(f"{self.name}: bad SequenceFile at byte {where}: {reason}")

    def take(self, count: int, what: str) -> memoryview:
        if count > len(self.data) - self.at:
            self.fail(f"{what} of {count} bytes, of which {len(self.data) - self.at} are there: truncated or corrupt")
        self.at += count
        return self.data[self.at - count : self.at]

    def vint(self, what: str) -> int:
        """Read a length: a VInt of 0..2**31-1."""
        start = self.at
        first = self.take(1, what)[0]
        if first < 0x80:
            return first
        if not 0x8C <= first <= 0x8F:
            self.fail(f"{what} is no length", start)
        value = int.from_bytes(self.take(0x90 - first, what), "big")
        if value > LENGTH_MAX:
            self.fail(f"{what} is {value}", start)
        return value

    def i32(self, what: str) -> int:
        number: int = _I32.unpack(self.take(4, what))[0]
        return number

    def string(self, what: str) -> bytes:
        start = self.at
        size = self.vint(f"the length of {what}")
        if size > STRING_BYTES_MAX:
            self.fail(f"{what} has {size} bytes; at most {STRING_BYTES_MAX} are read", start)
        return bytes(self.take(size, what))

    def name_in(self, known: Mapping[str, int], package: str, what: str) -> int:
        """Read the name of a Java class of ``package`` and return what it stands for."""
        start = self.at
        name = self.string(f"the name of the {what}").decode(errors="replace")
        short = name.removeprefix(package)
        if not name.startswith(package) or short not in known:
            self.fail(f"unknown {what} {name!r}; known are {', '.join(known)} of {package[:-1]}", start)
        return known[short]

    def flag(self, what: str) -> bool:
        value = self.take(1, what)[0]
        if value > 1:
            self.fail(f"{what} is {value}, neither 0 nor 1", self.at - 1)
        return value == 1


def read_header(read_at: ReadAt, size: int, name: str) -> SequenceHeader:
    """Read the header of a file of ``size`` bytes.

    Raises:
        InputError: not a SequenceFile of version 6, truncated, or of a class or codec that is not known here.
    """
    head = bytearray()
    while len(head) < min(size, HEADER_BYTES_MAX):
        head += read_at(len(head), min(size, HEADER_BYTES_MAX) - len(head))
    cursor = _Cursor(bytes(head), name)
    magic = bytes(head[:3])
    if magic != MAGIC:
        cursor.fail(f"it begins with {magic!r}, not with {MAGIC!r}: no SequenceFile")
    cursor.take(3, "the magic")
    version = cursor.take(1, "the version")[0]
    if version != VERSION:
        cursor.fail(f"version {version}; only {VERSION} is read", 3)
    forms = [cursor.name_in(CLASSES, _PACKAGE, what) for what in ("key class", "value class")]
    compressed, blocks = cursor.flag("the flag of compression"), cursor.flag("the flag of blocks")
    if blocks and not compressed:
        cursor.fail("blocks that are not compressed", cursor.at - 1)
    wbits = cursor.name_in(CODECS, _PACKAGE + "compress.", "codec") if compressed else 0
    compression: Compression = "none" if not compressed else "block" if blocks else "record"
    metadata = _read_metadata(cursor)
    sync = bytes(cursor.take(SYNC_BYTES, "the sync marker"))
    return SequenceHeader(forms[0], forms[1], compression, wbits, metadata, sync, cursor.at)


def _read_metadata(cursor: _Cursor) -> tuple[tuple[bytes, bytes], ...]:
    start = cursor.at
    count = cursor.i32("the number of metadata")
    if not 0 <= count <= METADATA_MAX:
        cursor.fail(f"{count} metadata; 0 to {METADATA_MAX} are read", start)
    return tuple(
        (cursor.string("a key of the metadata"), cursor.string("a value of the metadata")) for _ in range(count)
    )


def file_header(
    sync: bytes, key: str = "Text", value: str = "Text", compression: Compression = "block", codec: str = "zlib",
    metadata: Mapping[str, str] | None = None,
) -> bytes:  # fmt: skip
    """Return the header of a new file; ``key`` and ``value`` are CLASSES, ``codec`` is ``zlib`` or ``gzip``.

    Raises:
        UsageError: any other class, compression or codec; too much metadata.
    """
    if key not in CLASSES or value not in CLASSES:
        raise UsageError(f"keys and values are of {', '.join(CLASSES)}, not {key} and {value}")
    if compression not in ("none", "record", "block") or codec not in CODEC_NAMES:
        raise UsageError(f"compression is none, record or block, by zlib or gzip, not {compression} by {codec}")
    out = MAGIC + bytes([VERSION]) + _string(_PACKAGE + key) + _string(_PACKAGE + value)
    out += bytes([compression != "none", compression == "block"])
    if compression != "none":
        out += _string(f"{_PACKAGE}compress.{CODEC_NAMES[codec]}")
    out += _I32.pack(len(metadata or {})) + b"".join(
        _string(k) + _string(v) for k, v in sorted((metadata or {}).items())
    )
    if len(out) + SYNC_BYTES > HEADER_BYTES_MAX or len(metadata or {}) > METADATA_MAX:
        raise UsageError(f"a header has at most {HEADER_BYTES_MAX} bytes and {METADATA_MAX} metadata")
    return out + sync


def sync_marker(seed: int, part: int) -> bytes:
    """Return a sync marker, 16 bytes: BLAKE3 of a seed and a part's number. Hadoop draws it from clock and host."""
    from blake3 import blake3

    return blake3(f"quoreduce sync marker, seed {seed}, part {part}".encode()).digest(SYNC_BYTES)


def vint(value: int) -> bytes:
    """Encode a length, 0..2**31-1, as a VInt."""
    if value < 0x80:
        return bytes([value])
    size = (value.bit_length() + 7) // 8
    return bytes([0x90 - size]) + value.to_bytes(size, "big")


def _string(text: str) -> bytes:
    raw = text.encode()
    if len(raw) > STRING_BYTES_MAX:
        raise UsageError(f"a string in a header has at most {STRING_BYTES_MAX} bytes, not {len(raw)}")
    return vint(len(raw)) + raw


def sync_range(read_at: ReadAt, header: SequenceHeader, start: int, end: int, size: int) -> tuple[int, int]:
    """Return [begin, stop): the bytes of the groups of records whose sync points lie in [start, end) of the file."""
    begin = _next_sync(read_at, header, start, end, size)
    if begin >= end:
        return end, end
    return begin, _next_sync(read_at, header, end, size, size)


def _next_sync(read_at: ReadAt, header: SequenceHeader, position: int, limit: int, size: int) -> int:
    """Return the first sync point at or after ``position``, or ``limit`` if none is below it."""
    if position <= header.end:
        return min(header.end, limit)
    wanted = ESCAPE + header.sync
    end = min(limit + len(wanted) - 1, size)
    at, tail = position, b""
    while at < end:
        chunk = tail + read_at(at, min(_WINDOW, end - at))
        hit = chunk.find(wanted)
        if hit >= 0:
            return at - len(tail) + hit
        at += len(chunk) - len(tail)
        tail = bytes(chunk[1 - len(wanted) :])
    return limit


def decode_records(raw: U8, header: SequenceHeader, base: int, name: str, bytes_max: int = RECORDS_BYTES_MAX) -> Block:
    """Decode groups of records, as :func:`sync_range` delimits them.

    Args:
        raw: u8[n], the bytes of the file from ``base`` on.
        header: the file's.
        base: offset in the file, in bytes.
        name: the file's, for messages.
        bytes_max: bound on the size of the decoded records, in bytes, with 16 for each.

    Returns:
        A block of two binary columns: payloads of keys and of values, without what Hadoop puts before them. Integers
        are left as they are stored: 4 or 8 bytes, big-endian.

    Raises:
        InputError: truncated, corrupt, or over the bound.
    """
    cursor = _Cursor(raw.data, name, base)
    if header.compression == "block":
        return _decode_blocks(cursor, header, bytes_max)
    return _decode_singles(cursor, raw, header, bytes_max)


def read_sequence(path: str | os.PathLike[str], bytes_max: int = RECORDS_BYTES_MAX) -> Block:
    """Read all records of a local file into one block of two columns, ``binary(0)`` the keys and ``binary(1)`` the
    values.

    Payloads are without what Hadoop puts before them; integers are left as they are stored, big-endian.

    Raises:
        InputError: unreadable, no SequenceFile, truncated, corrupt, or over ``bytes_max`` bytes with 16 for each
            record.
    """
    import numpy as np

    name = os.fspath(path)
    try:
        raw = np.fromfile(name, np.uint8)
    except OSError as error:
        raise InputError(f"cannot read {name}: {error.strerror or error}") from error
    header = read_header(lambda at, n: raw[at : at + n].tobytes(), raw.size, name)
    return decode_records(raw[header.end :], header, header.end, name, bytes_max)


class _Chunk(NamedTuple):
    """A block in the file: where it begins, its records, and where its four buffers are (start, size)."""

    at: int
    records: int
    spans: tuple[tuple[int, int], ...]


def _find_blocks(cursor: _Cursor, header: SequenceHeader, bytes_max: int) -> list[_Chunk]:
    chunks, total = [], 0
    while cursor.at < len(cursor.data):
        start = cursor.at
        if cursor.take(20, "a block's sync marker") != ESCAPE + header.sync:
            cursor.fail("no sync marker where a block should begin", start)
        records = cursor.vint("the number of records")
        spans = []
        for what in ("lengths of keys", "keys", "lengths of values", "values"):
            size = cursor.vint(f"the size of the {what}")
            spans.append((cursor.at, size))
            cursor.take(size, what)
        total += records
        if records > EXPANSION_MAX * min(spans[0][1], spans[2][1]):
            cursor.fail(f"a block of {records} records cannot be so small", start)
        if total * 16 > bytes_max:
            cursor.fail(_TOO_MUCH, start)
        chunks.append(_Chunk(start, records, tuple(spans)))
    return chunks


def _decode_blocks(cursor: _Cursor, header: SequenceHeader, bytes_max: int) -> Block:
    import numpy as np

    from quoreduce.data.block import Block
    from quoreduce_kernels.sequence import BadItem, strip_run

    chunks = _find_blocks(cursor, header, bytes_max)
    keys, key_sizes = _block_offsets(cursor, header, chunks, 0, header.key_form, bytes_max)
    left = bytes_max - int(keys[-1])
    values, value_sizes = _block_offsets(cursor, header, chunks, 2, header.value_form, left)
    block = Block.create(SCHEMA, keys.size - 1, [int(keys[-1]), int(values[-1])])
    columns = ((1, header.key_form, keys, key_sizes), (3, header.value_form, values, value_sizes))
    for column, (buffer, form, wanted, sizes) in enumerate(columns):
        offsets, data = block.binary(column)
        offsets[:] = wanted
        first = 0
        for chunk, size in zip(chunks, sizes, strict=True):
            raw = _inflated(cursor, chunk, buffer, header.wbits, size)
            if len(raw) != size:
                cursor.fail(f"{len(raw)} bytes of {_BUFFERS[buffer]}, not {size}", chunk.at)
            try:
                strip_run(np.frombuffer(raw, np.uint8), form, offsets[first : first + chunk.records + 1], data)
            except BadItem as error:
                cursor.fail(f"in the block's {_BUFFERS[buffer]}, {error}", chunk.at)
            first += chunk.records
    return block


_BUFFERS = ("lengths of keys", "keys", "lengths of values", "values")


def _block_offsets(
    cursor: _Cursor, header: SequenceHeader, chunks: Sequence[_Chunk], buffer: int, form: int, bytes_max: int
) -> tuple[I64, list[int]]:
    """Offsets i64[n+1] of the payloads of all blocks, and the serialised size of each block, from its buffer of
    lengths.
    """
    import numpy as np

    from quoreduce_kernels.sequence import BadItem, decode_vints, payload_offsets

    offsets = np.zeros(sum(chunk.records for chunk in chunks) + 1, np.int64)
    sizes, first = [], 0
    for chunk in chunks:
        raw = _inflated(cursor, chunk, buffer, header.wbits, 5 * chunk.records)
        last = first + chunk.records
        try:
            lengths = decode_vints(np.frombuffer(raw, np.uint8), chunk.records)
            payload_offsets(lengths, form, offsets[first : last + 1])
        except BadItem as error:
            cursor.fail(f"in the block's {_BUFFERS[buffer]}, {error}", chunk.at)
        sizes.append(int(lengths.sum()))
        if sizes[-1] > EXPANSION_MAX * chunk.spans[buffer + 1][1]:
            cursor.fail(f"{_BUFFERS[buffer + 1]} of {sizes[-1]} bytes cannot be compressed so well", chunk.at)
        if offsets[last] > bytes_max:
            cursor.fail(_TOO_MUCH, chunk.at)
        first = last
    return offsets, sizes


def _inflated(cursor: _Cursor, chunk: _Chunk, buffer: int, wbits: int, bytes_max: int) -> bytes:
    start, size = chunk.spans[buffer]
    return _inflate(cursor, start, size, wbits, bytes_max, _BUFFERS[buffer])


def _inflate(cursor: _Cursor, start: int, size: int, wbits: int, bytes_max: int, what: str) -> bytes:
    """Decompress exactly one whole stream that makes at most ``bytes_max`` bytes."""
    from isal import isal_zlib  # inflates three times as fast as zlib, to the same bytes

    stream = isal_zlib.decompressobj(wbits)
    try:
        out: bytes = stream.decompress(cursor.data[start : start + size], bytes_max + 1)
    except isal_zlib.IsalError as error:  # type: ignore[misc]
        cursor.fail(f"{what}: {error}", start)
    if len(out) > bytes_max:
        cursor.fail(f"{what} decompress to more than {bytes_max} bytes", start)
    if not stream.eof or stream.unused_data:
        cursor.fail(f"{what} are {'followed by other bytes' if stream.eof else 'cut short'}", start)
    return out


def _decode_singles(cursor: _Cursor, raw: U8, header: SequenceHeader, bytes_max: int) -> Block:
    import numpy as np

    from quoreduce.data.block import Block
    from quoreduce_kernels.sequence import BAD_LENGTH, BAD_SYNC, TORN, walk_records

    rows, position, reason = walk_records(raw, np.frombuffer(header.sync, np.uint8))
    if reason:
        reasons = {
            TORN: "a record is cut short",
            BAD_SYNC: "another sync marker",
            BAD_LENGTH: "a record of negative length",
        }
        cursor.fail(reasons[reason], position)
    if raw.size + 16 * len(rows) > bytes_max:
        cursor.fail(_TOO_MUCH)
    key_starts, key_lengths, value_starts, value_lengths = (np.ascontiguousarray(rows[:, i]) for i in range(4))
    source = raw
    if header.compression == "record":
        source, value_starts, value_lengths = _inflate_values(cursor, header, value_starts, value_lengths, bytes_max)
    keys = _offsets(cursor, key_lengths, header.key_form, key_starts)
    values = _offsets(cursor, value_lengths, header.value_form, rows[:, 2])
    block = Block.create(SCHEMA, len(rows), [int(keys[-1]), int(values[-1])])
    _place(cursor, block, 0, raw, key_starts, header.key_form, keys, key_starts)
    _place(cursor, block, 1, source, value_starts, header.value_form, values, rows[:, 2])
    return block


def _inflate_values(
    cursor: _Cursor, header: SequenceHeader, starts: I64, lengths: I64, bytes_max: int
) -> tuple[U8, I64, I64]:
    """Decompress values one by one: (data, starts, lengths)."""
    import numpy as np

    values, total = [], 0
    for start, length in zip(starts.tolist(), lengths.tolist(), strict=True):
        values.append(_inflate(cursor, start, length, header.wbits, bytes_max - total, "a value's bytes"))
        total += len(values[-1])
    sizes = np.fromiter(map(len, values), np.int64, len(values))
    return np.frombuffer(b"".join(values), np.uint8), np.cumsum(sizes) - sizes, sizes


def _offsets(cursor: _Cursor, lengths: I64, form: int, where: I64) -> I64:
    import numpy as np

    from quoreduce_kernels.sequence import BadItem, payload_offsets

    offsets = np.zeros(lengths.size + 1, np.int64)
    try:
        payload_offsets(lengths, form, offsets)
    except BadItem as error:
        cursor.fail(str(error), int(where[error.index]))
    return offsets


def _place(
    cursor: _Cursor, block: Block, column: int, source: U8, starts: I64, form: int, wanted: I64, where: I64
) -> None:
    from quoreduce_kernels.sequence import BadItem, strip_at

    offsets, data = block.binary(column)
    offsets[:] = wanted
    try:
        strip_at(source, starts, form, offsets, data)
    except BadItem as error:
        cursor.fail(f"in the {'values' if column else 'keys'}, {error}", int(where[error.index]))
