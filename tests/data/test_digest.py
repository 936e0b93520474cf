"""Digests: streaming equals at once, every bit counts, and BLAKE3 is the published one."""

import struct

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester, blake3_of, output_digest
from quoreduce.errors import UsageError
from quoreduce_kernels import fingerprint
from quoreduce_kernels import reference as ref

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
            block = Block.create(
                ("binary", "u64"), 3 if change == "records" else 2, (4, 24 if change == "records" else 16)
            )
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


def documented(algorithm: str, data: bytes, stride: int) -> list[int]:
    """The fingerprints or checksums of the pieces of `data`, as the module's docstring says, by the slow twins."""
    size = stride if algorithm == "fast" else 1 << 16
    pieces = [data[i : i + size].ljust(size, b"\0") for i in range(0, len(data), size)]
    key = KEY if algorithm == "fast" else b"quoreduce check1"
    return [word for piece in pieces for word in ref.fingerprint(piece, key)]


@pytest.mark.parametrize("size", [0, 1, 31, 300, (1 << 16) - 1, 1 << 16, (1 << 16) + 5])
@pytest.mark.parametrize("digester", DIGESTERS[1:], ids=lambda d: d.algorithm)
def test_a_stream_is_digested_as_documented(digester: Digester, size: int) -> None:
    data = bytes(i * 7 % 251 for i in range(size))
    values = documented(digester.algorithm, data, 100)
    tail = struct.pack("<QQ", size, 100 if digester.algorithm == "fast" else 1 << 16)
    assert digester.of(data, 100) == blake3(struct.pack(f"<{len(values)}Q", *values) + tail).digest()


@pytest.mark.parametrize("digester", DIGESTERS[1:], ids=lambda d: d.algorithm)
@pytest.mark.parametrize("width", [31, 32, 100])
def test_a_block_is_digested_as_documented(digester: Digester, width: int) -> None:
    block = Block.create((f"fixed:{width}", "binary"), 40, (40 * width, 9))
    block.fixed(0)[:] = np.arange(40 * width, dtype=np.uint8).reshape(40, width)
    offsets, data = block.binary(1)
    offsets[:] = [0] * 40 + [9]
    data[:] = 3
    stride = width if width >= 32 else 128  # values from 32 bytes on have fingerprints of their own
    values = [word for raw, step in ((block.fixed(0), stride), (offsets, 128), (data, 128))
              for word in documented(digester.algorithm, raw.tobytes(), step)]  # fmt: skip
    header = block.layout.header()
    assert len(header) == 128
    assert digester.block(block) == blake3(header + struct.pack(f"<{len(values)}Q", *values)).digest()


def test_large_buffers_have_the_digest_of_the_library() -> None:
    for size in (0, 1000, (1 << 18) - 1, 1 << 18, (1 << 18) + 1):
        data = np.arange(size, dtype=np.uint32).view(np.uint8)[:size]
        for given_as in (data, data.tobytes(), bytearray(data), memoryview(data.tobytes())):
            assert blake3_of(given_as) == blake3(data.tobytes()).digest()


def test_pieces_that_the_caller_computed_are_digested_as_if_they_were_bytes() -> None:
    digester = Digester("fast", KEY)
    data = np.arange(1000, dtype=np.uint32).view(np.uint8)[:1000]
    stream = digester.stream(100)
    for start in range(0, 600, 300):
        stream.update_pieces(fingerprint.fingerprints(data[start : start + 300], 100, KEY))
    stream.update(data[600:850])
    with pytest.raises(ValueError, match="where a piece begins"):
        stream.update_pieces(fingerprint.fingerprints(data[850:950], 100, KEY))
    stream.update(data[850:])
    assert stream.digest() == digester.of(data, 100)


def test_output_digest_is_the_documented_one() -> None:
    parts = [(b"a" * 32, 1), (b"b" * 32, 1 << 40)]
    framed = b"".join(digest + struct.pack("<Q", records) for digest, records in parts)
    assert output_digest(parts) == blake3(b"quoreduce output 1" + framed).digest()
