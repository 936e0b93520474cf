"""Blocks: the layout byte by byte, views without a copy, and a decoder that nothing can crash."""

import struct

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quoreduce.data.block import COLUMNS_MAX, WIDTH_MAX, Block, parse_schema
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


WIDE = ("binary", "fixed:3", "i64", "binary")  # buffers of all kinds, with padding after each


def wide(allocate=None) -> Block:
    block = Block.create(WIDE, 7, (1, 21, 56, 5), allocate)
    for column, size in ((0, 1), (3, 5)):
        offsets, data = block.binary(column)
        offsets[:] = [0] * 7 + [size]
        data[:] = 255
    block.fixed(1)[:] = 255
    block.numbers(2)[:] = -1
    return block


def test_buffers_follow_each_other_at_multiples_of_64():
    layout = wide().layout
    assert layout.starts == ((128, 192), (-1, 256), (-1, 320), (384, 448))  # 8 offsets of 8 bytes fill 64 to the last
    assert (layout.total, layout.records, layout.data_bytes) == (456, 7, (1, 21, 56, 5))
    more = Block.create(("binary",), 8, (0,)).layout
    assert (more.starts, more.total) == (((64, 192),), 192)


def test_column_types_stand_in_the_header_as_documented():
    codes = {"fixed:9": (1, 9), "binary": (2, 0), "u64": (3, 8), "i64": (4, 8), "f64": (5, 8)}
    for name, code in codes.items():
        raw = Block.create((name,), 0, (0,)).buffer.tobytes()
        assert struct.unpack_from("<B7xQQ", raw, 24) == (*code, 0)
    for name, dtype in (("u64", "<u8"), ("i64", "<i8"), ("f64", "<f8")):
        assert Block.create((name,), 1, (8,)).numbers(0).dtype == np.dtype(dtype)


def test_a_block_has_1_to_64_columns_of_at_most_65536_bytes():
    assert len(Block.open(Block.create(["u64"] * COLUMNS_MAX, 0, [0] * COLUMNS_MAX).buffer).schema) == COLUMNS_MAX == 64
    for count in (0, 65):
        with pytest.raises(BlockError, match=f"not {count}"):
            parse_schema(["u64"] * count)
    assert Block.open(Block.create(("fixed:65536",), 1, (65536,)).buffer).fixed(0).shape == (1, WIDTH_MAX)
    for name in ("fixed:65537", "fixed:0", "fixed:", "fixed", "wide:3", "fixed:3:3", "3"):
        with pytest.raises(BlockError, match="unknown column type"):
            parse_schema((name,))


@pytest.mark.parametrize(("code", "width"), [(1, 0), (1, 65537), (2, 8), (3, 0), (4, 9), (6, 8), (0, 0)])
def test_columns_that_cannot_be_are_refused_in_a_header(code, width):
    raw = Block.create(("u64",), 0, (0,)).buffer.copy()
    raw[24:40] = np.frombuffer(struct.pack("<B7xQ", code, width), np.uint8)
    with pytest.raises(BlockError, match=f"type {code}, width {width}"):
        Block.open(raw)


def test_every_byte_that_is_no_data_is_zero_and_must_be():
    clean = wide().buffer
    assert wide(lambda n: np.full(n, 170, np.uint8)).buffer.tobytes() == clean.tobytes()
    padding = [*range(120, 128), *range(193, 256), *range(277, 320), *range(376, 384), *range(453, 456)]
    gap = [position for position in range(24, 120) if 1 <= (position - 24) % 24 < 8]
    for position in padding + gap:
        raw = clean.copy()
        raw[position] ^= 1
        with pytest.raises(BlockError, match="not zero" if position in padding else "descriptor"):
            Block.open(raw)
    after = Block.create(("binary", "u64"), 3, (0, 24)).buffer  # zeros between offsets and data that are not there
    after[160] = 1
    with pytest.raises(BlockError, match=r"bytes 160\.\.192"):
        Block.open(after)


def test_a_block_is_filled_where_the_allocator_says():
    given = []
    block = Block.create(("u64",), 1, (8,), lambda n: given.append(np.empty(n, np.uint8)) or given[0])
    assert block.buffer is given[0]
    assert block.nbytes == given[0].size == 72
    for wrong in (
        np.empty(72, np.int8),
        np.empty(73, np.uint8),
        np.empty((72, 1), np.uint8),
        np.empty(144, np.uint8)[::2],
    ):
        with pytest.raises(BlockError, match=r"not u8\[72\]"):
            Block.create(("u64",), 1, (8,), lambda n, wrong=wrong: wrong)


def test_only_a_contiguous_run_of_bytes_is_opened():
    raw = sample().buffer
    for wrong in (raw.view(np.int8), raw.reshape(-1, 8), np.repeat(raw, 2)[::2]):
        with pytest.raises(BlockError, match="contiguous run"):
            Block.open(wrong)
    opened = Block.open(raw)
    assert opened.buffer is raw


def test_opened_block_is_viewed_by_numpy_and_arrow_without_a_copy():
    raw = sample().buffer.copy()
    block = Block.open(raw)
    assert np.shares_memory(block.binary(0)[1], raw)
    assert np.shares_memory(block.numbers(1), raw)
    batch = block.to_arrow()
    assert batch.to_pydict() == {"c0": [b"a", b"bb", b"ccc"], "c1": [1, 2, 3]}
    assert batch.column(1).buffers()[1].address == raw.ctypes.data + block.layout.starts[1][1]
    assert [[buffer and buffer.size for buffer in column.buffers()] for column in batch.columns] == [
        [None, 32, 6],
        [None, 24],
    ]
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


HEADERS = {
    "not a block of version 1": [(b"QRB2", 1, 1, 0, 4096), (b"QRB1", 2, 1, 0, 4096)],
    "cannot have": [
        (b"QRB1", 1, 0, 0, 4096),
        (b"QRB1", 1, 65, 0, 4096),
        (b"QRB1", 1, 4, 0, 119),
        (b"QRB1", 1, 1, 0, 24),
    ],
    "header says": [(b"QRB1", 1, 1, 4097, 4096), (b"QRB1", 1, 64, 1 << 63, 4096)],
    "too few": [(b"QRB1", 1, 1, 0, 23)],
}


@pytest.mark.parametrize("complaint", HEADERS)
def test_a_header_is_refused_before_its_sizes_are_used(complaint):
    for magic, version, columns, records, total in HEADERS[complaint]:
        raw = struct.pack("<4sHHQQ", magic, version, columns, records, total).ljust(total, b"\0")[:total]
        with pytest.raises(BlockError, match=complaint):
            Block.open(raw)
    for total in (64, 80):
        with pytest.raises(BlockError, match="there are 72 bytes"):
            Block.open(struct.pack("<4sHHQQ", b"QRB1", 1, 1, 0, total).ljust(72, b"\0"))


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
@example([0, 1, 3, 6])
@example([0, 5, 3, 6])
@example([0, 7, 3, 6])
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
