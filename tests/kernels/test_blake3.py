"""Our BLAKE3 kernel against the library, the plain twin and the official vectors."""

import blake3
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import reference
from quoreduce_kernels.blake3 import CHUNK_BYTES, GROUP_BYTES, STEP_BYTES, Blake3

DATA = np.random.default_rng(5).integers(0, 256, 5 * GROUP_BYTES, np.uint8)
EDGES = [0, 64, CHUNK_BYTES, STEP_BYTES, 3 * STEP_BYTES, GROUP_BYTES, 2 * GROUP_BYTES, 3 * GROUP_BYTES, 4 * GROUP_BYTES]
# From the official test_vectors.json: length of the input 0, 1, 2, ... 250, 0, 1, ... and the first 32 bytes of its
# hash.
OFFICIAL = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    31744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
    102400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}


def ours(data: np.ndarray) -> bytes:
    stream = Blake3()
    stream.update(data)
    return stream.digest()


@pytest.mark.parametrize("length", OFFICIAL)
def test_official_vectors(length):
    data = np.resize(np.arange(251, dtype=np.uint8), length)
    assert ours(data).hex() == OFFICIAL[length]
    assert reference.blake3(data.tobytes()).hex() == OFFICIAL[length]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("around", [-1, 0, 1, 1000])
def test_lengths_around_every_edge_of_the_tree(edge, around):
    length = max(0, edge + around)
    assert ours(DATA[:length]) == blake3.blake3(DATA[:length].data).digest()


@settings(max_examples=40)
@given(st.lists(st.integers(0, GROUP_BYTES + 5000), min_size=1, max_size=8))
def test_streams_cut_anywhere_give_the_librarys_digest(cuts):
    stream, library, start = Blake3(), blake3.blake3(), 0
    for cut in cuts:
        chunk = DATA[start : start + cut]
        stream.update(chunk)
        library.update(chunk.data)
        start += chunk.size
        assert stream.digest() == library.digest()


@settings(max_examples=10)
@given(st.binary(max_size=9000))
def test_twin_agrees(data):
    assert reference.blake3(data) == ours(np.frombuffer(data, np.uint8))


@settings(max_examples=30)
@given(st.integers(0, 8 * 3 * GROUP_BYTES - 1))
def test_any_flipped_bit_of_whole_groups_changes_the_digest(bit):
    data = DATA[: 3 * GROUP_BYTES].copy()
    before = ours(data)
    data[bit // 8] ^= 1 << bit % 8
    assert ours(data) != before


def test_only_contiguous_bytes_are_taken():
    with pytest.raises(ValueError, match="contiguous bytes"):
        Blake3().update(DATA[::2])
