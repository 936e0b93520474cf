"""Jobs in Python style, turned into block style: records in, ``key, value`` pairs between, text or records out.

Between map and reduce a pair is a row of a block (key: binary, value: binary). A key is one tag byte and then its
bytes, so that keys sort by type and value: ``b`` + bytes, ``i`` + 8 bytes big-endian of value + 2**63, ``s`` + UTF-8. A
value is msgpack; NaNs are made one NaN.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.data.sequencewriter import SequenceWriter
from quoreduce.job import Job, record_width

U8 = NDArray[np.uint8]
Pair = tuple[Any, Any]
_SCHEMA = ("binary", "binary")
_WORD_SPACE = b" \t\n\r\f"
_INT_BIAS = 1 << 63
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode


def block_style(job: Job) -> Job:
    """Return ``job`` itself if it is in block style, else a block style job that runs its functions."""
    if job.style == "blocks":
        return job
    program = _Program(job)
    return Job.of_blocks(job.name, map=program.map, reduce=program.reduce, input=job.input, output=job.output)


class _Program:
    """The map and reduce of a Python style job, over blocks."""

    def __init__(self, job: Job) -> None:
        self._job = job

    def map(self, data: U8 | Block, ctx: Any) -> list[Block]:
        """Run the job's map over every record, then combine, sort by key and partition."""
        groups: dict[bytes, list[bytes]] = {}
        count = 0
        for record in records_of(data, self._job.input):
            try:
                for key, value in self._job.map(record) or ():
                    groups.setdefault(encode_key(key), []).append(encode_value(value))
            except Exception as error:
                raise ValueError(f"map failed at record {count} of split {ctx.index}: {_say(error)}") from error
            count += 1
        ctx.records_in = count
        ctx.count("MAP_OUTPUT_RECORDS", _values(groups))
        if self._job.combine is not None:
            ctx.count("COMBINE_INPUT_RECORDS", _values(groups))
            groups = self._combined(groups)
            ctx.count("COMBINE_OUTPUT_RECORDS", _values(groups))
        partitions: list[list[tuple[bytes, bytes]]] = [[] for _ in range(ctx.reducers)]
        for key in sorted(groups):
            partitions[self._partition(key, ctx.reducers)] += [(key, value) for value in groups[key]]
        return _fill(partitions, ctx)

    def reduce(self, blocks: Sequence[Block], ctx: Any) -> None:
        """Group values by key, in the total order (key, map, record), and write what the job's reduce yields."""
        groups: dict[bytes, list[bytes]] = {}
        for block in blocks:
            for key, value in _pairs(block):
                groups.setdefault(key, []).append(value)
        ctx.count("REDUCE_INPUT_GROUPS", len(groups))
        if self._job.output == "sequence":
            self._write_sequence(groups, ctx)
            return
        width = record_width(self._job.output)
        for key in sorted(groups):
            for new_key, value in self._call("reduce", self._job.reduce, key, groups[key]):
                ctx.write(_fixed(value, width) if width else format_line(new_key, value), 1)

    def _write_sequence(self, groups: dict[bytes, list[bytes]], ctx: Any) -> None:
        """Write what the reduce yields as Text, as in a line of text output, to a SequenceFile."""
        with SequenceWriter(lambda data: ctx.write(data, 0), ctx.seed) as writer:
            for key in sorted(groups):
                for new_key, value in self._call("reduce", self._job.reduce, key, groups[key]):
                    writer.write(_text(new_key), _text(value))
        ctx.write(b"", writer.records)

    def _combined(self, groups: dict[bytes, list[bytes]]) -> dict[bytes, list[bytes]]:
        assert self._job.combine is not None
        combined: dict[bytes, list[bytes]] = {}
        for key, values in groups.items():
            for new_key, value in self._call("combine", self._job.combine, key, values):
                combined.setdefault(encode_key(new_key), []).append(encode_value(value))
        return combined

    def _call(self, role: str, function: Callable[..., Any], key: bytes, values: list[bytes]) -> list[Pair]:
        name = decode_key(key)
        try:
            return list(function(name, [_unpack(value) for value in values]) or ())
        except Exception as error:
            raise ValueError(f"{role} failed at key {name!r}: {_say(error)}") from error

    def _partition(self, key: bytes, reducers: int) -> int:
        if self._job.partition is None:
            return zlib.crc32(key) % reducers
        number = self._job.partition(decode_key(key), reducers)
        if not isinstance(number, int) or not 0 <= number < reducers:
            raise ValueError(f"partition gave {number!r} for key {decode_key(key)!r}: it must be in 0..{reducers - 1}")
        return number


def _values(groups: dict[bytes, list[bytes]]) -> int:
    return sum(map(len, groups.values()))


def _say(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def records_of(data: U8 | Block, kind: str) -> Iterator[Any]:
    """Yield the records in ``data``: lines without ``\\n`` or ``\\r\\n``, words, N bytes each, or a block's (key,
    value).
    """
    if isinstance(data, Block):
        yield from _pairs(data)
        return
    raw = data.tobytes()
    width = record_width(kind)
    if width:
        yield from (raw[i : i + width] for i in range(0, len(raw), width))
    elif kind == "words":
        yield from _words(raw)
    else:
        yield from _lines(raw)


def _lines(raw: bytes) -> Iterator[bytes]:
    start = 0
    while start < len(raw):
        end = raw.find(b"\n", start)
        end = len(raw) if end < 0 else end
        yield raw[start : end - 1] if end > start and raw[end - 1] == 13 and end < len(raw) else raw[start:end]
        start = end + 1


def _words(raw: bytes) -> Iterator[bytes]:
    spaces = bytes.maketrans(_WORD_SPACE, b" " * len(_WORD_SPACE))
    return (word for word in raw.translate(spaces).split(b" ") if word)


def encode_key(key: Any) -> bytes:
    """Encode a key so that encoded keys sort by type, then by value; raise TypeError for other types."""
    if isinstance(key, bytes):
        return b"b" + key
    if isinstance(key, str):
        return b"s" + key.encode()
    if isinstance(key, int) and not isinstance(key, bool) and -_INT_BIAS <= key < _INT_BIAS:
        return b"i" + (key + _INT_BIAS).to_bytes(8, "big")
    raise TypeError(f"a key is bytes, str or a 64-bit int, not {key!r}")


def decode_key(raw: bytes) -> bytes | str | int:
    """Decode what :func:`encode_key` made."""
    tag, rest = raw[:1], raw[1:]
    if tag == b"b":
        return rest
    return rest.decode() if tag == b"s" else int.from_bytes(rest, "big") - _INT_BIAS


def encode_value(value: Any) -> bytes:
    """Encode a value as msgpack with one NaN; raise TypeError for what msgpack has not, and for sets (they have no
    order).
    """
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order, so replicas would disagree: yield a sorted list")
    return _pack(_canonical(value))


def _canonical(value: Any) -> Any:
    if isinstance(value, float):
        return math.nan if value != value else value
    if isinstance(value, (list, tuple)):
        return [_canonical(item) for item in value]
    if isinstance(value, dict):
        return {key: _canonical(item) for key, item in sorted(value.items())}
    if isinstance(value, (set, frozenset)):
        raise TypeError("a set has no order, so replicas would disagree: yield a sorted list")
    return value


def format_line(key: Any, value: Any) -> bytes:
    """One line of text output: ``key<TAB>value``; bytes as they are, other values as JSON, strings without quotes."""
    return _text(key) + b"\t" + _text(value) + b"\n"


def _text(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    return value.encode() if isinstance(value, str) else msgspec.json.encode(value)


def _fixed(value: Any, width: int) -> bytes:
    if not isinstance(value, bytes) or len(value) != width:
        raise ValueError(f"reduce must yield values of {width} bytes for output fixed:{width}, not {value!r}")
    return value


def _fill(partitions: list[list[tuple[bytes, bytes]]], ctx: Any) -> list[Block]:
    sizes = [(len(rows), [sum(len(row[i]) for row in rows) for i in (0, 1)]) for rows in partitions]
    blocks: list[Block] = ctx.new_blocks(_SCHEMA, sizes)
    for block, rows in zip(blocks, partitions, strict=True):
        for column in (0, 1):
            offsets, data = block.binary(column)
            offsets[0] = 0
            np.cumsum([len(row[column]) for row in rows], out=offsets[1:])
            data[:] = np.frombuffer(b"".join(row[column] for row in rows), np.uint8)
    return blocks


def _pairs(block: Block) -> Iterable[tuple[bytes, bytes]]:
    columns = []
    for column in (0, 1):
        offsets, data = block.binary(column)
        raw, bounds = data.tobytes(), offsets.tolist()
        columns.append([raw[bounds[i] : bounds[i + 1]] for i in range(block.records)])
    return zip(columns[0], columns[1], strict=True)
