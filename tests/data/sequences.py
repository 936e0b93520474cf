"""SequenceFiles that tests of data/ write, and a plain reader of them."""

from __future__ import annotations

import re
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from quoreduce.data import sequencefile as sf
from quoreduce.data import sequencewriter as sw
from quoreduce.data.block import Block
from quoreduce.data.sequencewriter import SequenceWriter

SHARED_TMP = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

Record = tuple[bytes, bytes]

WAYS = [("block", "zlib"), ("block", "gzip"), ("record", "zlib"), ("record", "gzip"), ("none", "zlib")]

WAY = st.sampled_from(WAYS)


def written(records: list[Record], **options: Any) -> bytes:
    out = bytearray()
    with SequenceWriter(out.extend, 1, **options) as writer:
        for key, value in records:
            writer.write(key, value)
    assert (writer.records, writer.nbytes) == (len(records), len(out))
    return bytes(out)


def pairs_of(block: Block) -> list[Record]:
    assert block.schema == ("binary", "binary")
    Block.open(block.buffer)
    (keys, key_data), (values, value_data) = block.binary(0), block.binary(1)
    raw_keys, raw_values = key_data.tobytes(), value_data.tobytes()
    return [(raw_keys[keys[i] : keys[i + 1]], raw_values[values[i] : values[i + 1]]) for i in range(block.records)]


def groups_of(data: bytes) -> list[int]:
    """Positions of all sync points: the end of the header, and each escape after it."""
    header = sf.read_header(lambda at, n: data[at : at + n], len(data), "x")
    escapes = [found.start() for found in re.finditer(re.escape(b"\xff" * 4 + header.sync), data)]
    return sorted({header.end, *escapes})


def with_header(**changes: bytes) -> bytes:
    fields = {
        "magic": b"SEQ\x06", "key": b"\x19org.apache.hadoop.io.Text", "value": b"\x19org.apache.hadoop.io.Text",
        "flags": b"\1\1", "codec": b"\x2aorg.apache.hadoop.io.compress.DefaultCodec", "metadata": bytes(4),
        "sync": bytes(16),
    }  # fmt: skip
    return b"".join({**fields, **changes}.values())


def block(records: int, *buffers: bytes) -> bytes:
    return with_header() + sw.block_frame(bytes(16), records, buffers)
