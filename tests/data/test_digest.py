"""Digests: streaming equals at once, every bit counts, and BLAKE3 is the published one."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester, output_digest
from quoreduce.errors import UsageError

KEY = bytes(range(16))
DIGESTERS = [Digester("blake3"), Digester("fast", KEY), Digester("checksum")]


def test_blake3_is_the_published_function():
    # First of the official test vectors: input of 0 and of 1 byte (0x00).
    assert Digester("blake3").of(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"
    assert Digester("blake3").of(b"\0").hex() == "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"


@settings(max_examples=60)
@given(st.binary(max_size=3000), st.lists(st.integers(1, 999), max_size=6), st.sampled_from([1, 7, 100, 128]))
def test_digest_does_not_depend_on_how_the_stream_is_cut(data, cuts, stride):
    for digester in DIGESTERS:
        stream = digester.stream(stride)
        rest = data
        for cut in cuts:
            stream.update(rest[:cut])
            rest = rest[cut:]
        stream.update(np.frombuffer(rest, np.uint8))
        assert stream.digest() == digester.of(data, stride)


@settings(max_examples=60)
@given(st.binary(min_size=1, max_size=1000), st.integers(0, 7999), st.sampled_from([100, 128]))
def test_any_flipped_bit_changes_the_digest(data, bit, stride):
    bit %= 8 * len(data)
    flipped = bytearray(data)
    flipped[bit // 8] ^= 1 << bit % 8
    for digester in DIGESTERS:
        assert digester.of(data, stride) != digester.of(bytes(flipped), stride)


@given(st.binary(max_size=300), st.integers(1, 300))
def test_zero_padding_changes_the_digest(data, zeros):
    for digester in DIGESTERS:
        assert digester.of(data) != digester.of(data + bytes(zeros))


def test_block_digest_covers_header_and_every_column():
    for digester in DIGESTERS:
        seen = set()
        for change in ("none", "offset", "data", "number", "records"):
            block = Block.create(("binary", "u64"), 3 if change == "records" else 2, (4, 24 if change == "records" else 16))
            offsets, data = block.binary(0)
            offsets[:] = [0, 1, 4, 4][: block.records + 1]
            data[:] = 1
            block.numbers(1)[:] = 5
            if change == "offset":
                offsets[1] = 2
            if change == "data":
                data[3] = 2
            if change == "number":
                block.numbers(1)[1] = 6
            seen.add(digester.block(block))
        assert len(seen) == 5


def test_blake3_of_a_block_is_that_of_its_bytes():
    block = Block.create(("fixed:100",), 7, (700,))
    block.fixed(0)[:] = 9
    assert Digester("blake3").block(block) == Digester("blake3").of(block.buffer)


def test_fast_digest_depends_on_its_key():
    assert Digester("fast", KEY).of(b"abc") != Digester("fast", KEY[::-1]).of(b"abc")


def test_output_digest_covers_order_and_counts():
    a, b = (b"a" * 32, 1), (b"b" * 32, 2)
    assert len({output_digest([a, b]), output_digest([b, a]), output_digest([(a[0], 2), b]), output_digest([a])}) == 4


@pytest.mark.parametrize(("name", "key"), [("md5", b""), ("fast", b""), ("blake3", b"k")])
def test_unknown_algorithms_and_wrong_keys_are_refused(name, key):
    with pytest.raises(UsageError):
        Digester(name, key)


def test_file_is_digested_like_its_bytes(tmp_path):
    data = bytes(range(256)) * 9000
    (tmp_path / "f").write_bytes(data)
    for digester in DIGESTERS:
        assert digester.file(tmp_path / "f", 100) == digester.of(data, 100)
