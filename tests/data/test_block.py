"""Blocks: the layout byte by byte, views without a copy, and a decoder that nothing can crash."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.data.block import Block
from quoreduce.errors import BlockError


def sample() -> Block:
    block = Block.create(("binary", "u64"), 3, (6, 24))
    offsets, data = block.binary(0)
    offsets[:] = [0, 1, 3, 6]
    data[:] = np.frombuffer(b"abbccc", np.uint8)
    block.numbers(1)[:] = [1, 2, 3]
    return block


def test_layout_is_the_documented_one_byte_by_byte():
    raw = sample().buffer.tobytes()
    head = struct.pack("<4sHHQQ", b"QRB1", 1, 2, 3, len(raw))
    columns = struct.pack("<B7xQQ", 2, 0, 6) + struct.pack("<B7xQQ", 3, 8, 24)
    expected = (head + columns).ljust(128, b"\0")
    expected += struct.pack("<4q", 0, 1, 3, 6).ljust(64, b"\0")
    expected += b"abbccc".ljust(64, b"\0")
    expected += struct.pack("<3Q", 1, 2, 3)
    assert raw == expected


def test_opened_block_is_viewed_by_numpy_and_arrow_without_a_copy():
    raw = sample().buffer.copy()
    block = Block.open(raw)
    assert np.shares_memory(block.binary(0)[1], raw)
    assert np.shares_memory(block.numbers(1), raw)
    batch = block.to_arrow()
    assert batch.to_pydict() == {"c0": [b"a", b"bb", b"ccc"], "c1": [1, 2, 3]}
    assert batch.column(1).buffers()[1].address == raw.ctypes.data + block.layout.starts[1][1]
    batch.validate(full=True)


@pytest.mark.parametrize("schema", [("fixed:100",), ("i64", "f64", "binary"), ("fixed:1",)])
def test_block_without_records_is_a_block(schema):
    empty = Block.create(schema, 0, [0] * len(schema))
    for column, kind in enumerate(schema):
        if kind == "binary":
            empty.binary(column)[0][:] = 0
    opened = Block.open(empty.buffer.tobytes())
    assert opened.records == 0
    assert opened.schema == schema
    opened.to_arrow().validate(full=True)


def test_allocator_with_old_bytes_gives_the_same_block():
    dirty = Block.create(("fixed:3",), 2, (6,), lambda n: np.full(n, 255, np.uint8))
    clean = Block.create(("fixed:3",), 2, (6,))
    for block in (dirty, clean):
        block.fixed(0)[:] = 7
    assert dirty.buffer.tobytes() == clean.buffer.tobytes()


@given(st.integers(0, 400))
def test_every_truncation_is_refused(cut):
    raw = sample().buffer.tobytes()
    if cut < len(raw):
        with pytest.raises(BlockError):
            Block.open(raw[:cut])


@given(st.binary(min_size=1, max_size=64))
def test_every_extension_is_refused(tail):
    with pytest.raises(BlockError):
        Block.open(sample().buffer.tobytes() + tail)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=4, max_size=4))
def test_offsets_that_overlap_or_leave_the_data_are_refused(offsets):
    raw = sample().buffer.copy()
    raw[128:160] = np.array(offsets, "<i8").view(np.uint8)
    honest = offsets[0] == 0 and offsets[3] == 6 and sorted(offsets) == offsets
    if honest:
        Block.open(raw)
    else:
        with pytest.raises(BlockError):
            Block.open(raw)


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=8))
def test_damaged_blocks_are_refused_or_stay_within_bounds(changes):
    raw = sample().buffer.copy()
    for position, value in changes:
        raw[position % raw.size] = value
    read_all_or_refuse(raw)


@settings(max_examples=300)
@given(st.binary(max_size=400))
def test_arbitrary_bytes_are_refused_or_stay_within_bounds(raw):
    read_all_or_refuse(np.frombuffer(b"QRB1\1\0\1\0" + raw, np.uint8))


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 255))
def test_absurd_sizes_in_the_header_are_refused(records, total, size, code):
    raw = struct.pack("<4sHHQQB7xQQ", b"QRB1", 1, 1, records, total, code, 8, size).ljust(128, b"\0")
    read_all_or_refuse(np.frombuffer(raw, np.uint8))


def read_all_or_refuse(raw):
    try:
        block = Block.open(raw)
    except BlockError:
        return
    for column, kind in enumerate(block.schema):
        if kind == "binary":
            offsets, data = block.binary(column)
            assert offsets[0] == 0
            assert offsets[-1] == data.size
        elif kind.startswith("fixed"):
            assert block.fixed(column).shape[0] == block.records
        else:
            assert block.numbers(column).shape == (block.records,)
    block.to_arrow().validate(full=True)


def test_unknown_column_types_and_wrong_accessors_are_refused():
    with pytest.raises(BlockError, match="unknown column type"):
        Block.create(("text",), 1, (1,))
    with pytest.raises(BlockError, match="is of type"):
        sample().numbers(0)
    with pytest.raises(BlockError, match="no column"):
        sample().numbers(2)
    assert isinstance(sample().to_arrow(), pa.RecordBatch)
