"""Fingerprints against their plain twins, and what they promise: no flipped bit, no swap goes unseen."""

from __future__ import annotations

import mmap
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import fingerprint as fp
from quoreduce_kernels import reference as ref

KEY = b"0123456789abcdef"
strides = st.sampled_from([1, 7, 8, 32, 99, 100, 101, 127, 128, 129, 255, 256, 1000])


def pairs(values: np.ndarray) -> list[tuple[int, int]]:
    return [(int(low), int(high)) for low, high in values]


def random_records(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 100), np.uint8)


@given(st.binary(max_size=700), strides, st.binary(min_size=16, max_size=16))
@settings(max_examples=150, deadline=None)
def test_fingerprints_are_the_documented_ones(data: bytes, stride: int, key: bytes) -> None:
    assert pairs(fp.fingerprints(data, stride, key)) == ref.fingerprints(data, stride, key)


@pytest.mark.parametrize("size", [0, 1, 100, 127, 128, 129, 5000])
def test_checksum_is_the_documented_one(size: int) -> None:
    data = random_records(50).tobytes()[:size]
    assert fp.checksum128(data) == ref.checksum128(data)
    assert pairs(fp.checksums(data, 256)) == ref.fingerprints(data, 256, fp.CHECK_KEY)


@pytest.mark.parametrize("stride", [100, 128, 300])
def test_every_flipped_bit_changes_the_piece_and_no_other(stride: int) -> None:
    data = random_records(6)[:, :].reshape(-1)[: 2 * stride].copy()
    before = fp.fingerprints(data, stride, KEY)
    for bit in range(8 * stride):
        data[bit // 8] ^= 1 << (bit % 8)
        after = fp.fingerprints(data, stride, KEY)
        assert (after[0] != before[0]).any()
        assert (after[1] == before[1]).all()
        data[bit // 8] ^= 1 << (bit % 8)


def test_every_flipped_bit_changes_the_checksum() -> None:
    data = random_records(5).reshape(-1)
    seen = {fp.checksum128(data)}
    for bit in range(8 * data.size):
        data[bit // 8] ^= 1 << (bit % 8)
        seen.add(fp.checksum128(data))
        data[bit // 8] ^= 1 << (bit % 8)
    assert len(seen) == 1 + 8 * data.size


def test_zeros_of_different_length_have_different_checksums() -> None:
    assert len({fp.checksum128(bytes(n)) for n in range(1, 600)}) == 599


def test_swapping_pieces_changes_the_sequence_and_the_checksum() -> None:
    rows = random_records(8)
    swapped = rows[[0, 2, 1, 3, 4, 5, 6, 7]]
    assert (fp.fingerprints(swapped, 100, KEY) == fp.fingerprints(rows, 100, KEY)[[0, 2, 1, 3, 4, 5, 6, 7]]).all()
    assert fp.checksum128(swapped) != fp.checksum128(rows)
    blocks = random_records(64).reshape(-1, 128)
    assert fp.checksum128(blocks) != fp.checksum128(blocks[[1, 0, *range(2, blocks.shape[0])]])


def test_key_changes_every_fingerprint() -> None:
    rows = random_records(100)
    a, b = fp.fingerprints(rows, 100, KEY), fp.fingerprints(rows, 100, KEY[::-1])
    assert not (a == b).all(axis=1).any()


@given(st.integers(0, 40), st.integers(1, 6), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_scattered_fingerprints_are_those_of_the_moved_records(n: int, partitions: int, seed: int) -> None:
    rows = random_records(n, seed)
    ids = np.random.default_rng(seed).integers(0, partitions, n).astype(np.uint16)
    starts = np.concatenate(([0], np.cumsum(np.bincount(ids, minlength=partitions)))).astype(np.int64)
    moved = rows[np.argsort(ids, kind="stable")]
    assert (fp.fingerprint_scatter(rows, ids, starts, KEY) == fp.fingerprints(moved, 100, KEY)).all()


@pytest.mark.parametrize("n", [0, 1, 31, 32, 33, 500])
def test_permute_and_sum(n: int) -> None:
    rows = random_records(n)
    values = fp.fingerprints(rows, 100, KEY)
    order = np.random.default_rng(2).permutation(n).astype(np.uint64)
    tagged = order | np.uint64(0xABCD << 24)
    assert (fp.permute_fingerprints(values, tagged, 0xFFFFFF) == values[order.astype(np.int64)]).all()
    assert fp.sum128(values) == ref.sum128(pairs(values)) == fp.multiset128(rows, KEY)[0]


@pytest.mark.parametrize("n", [0, 1, 255, 256, 257, 600])
def test_multiset_hash_has_no_order_and_counts_what_is_out_of_order(n: int) -> None:
    rows = random_records(n)
    keys = [r[:10].tobytes() for r in rows]
    shuffled = rows[np.random.default_rng(3).permutation(n)]
    total, bad = fp.multiset128(rows, KEY)
    assert bad == sum(b < a for a, b in pairwise(keys))
    assert fp.multiset128(shuffled, KEY)[0] == total
    assert fp.multiset128(rows[sorted(range(n), key=lambda i: keys[i])], KEY) == (total, 0)
    half = n // 2
    previous = keys[half - 1] if half else b""
    a, b = fp.multiset128(rows[:half], KEY), fp.multiset128(rows[half:], KEY, previous)
    assert ((a[0] + b[0]) % 2**128, a[1] + b[1]) == (total, bad)


def test_multiset_hash_sees_words_that_two_records_exchange() -> None:
    rows = random_records(2)
    for start in range(0, 96, 16):
        exchanged = rows.copy()
        exchanged[:, start : start + 16] = rows[::-1, start : start + 16]
        assert fp.multiset128(exchanged, KEY)[0] != fp.multiset128(rows, KEY)[0]


def test_nothing_is_read_beyond_the_end_of_a_mapping() -> None:
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, page)  # the page after it belongs to nobody, or to another mapping of other content
    data = np.frombuffer(memory, np.uint8)
    data[:] = random_records(page // 100 + 1).reshape(-1)[:page]
    tail = data[page - 3700 :]
    assert pairs(fp.fingerprints(tail, 100, KEY)) == ref.fingerprints(tail.tobytes(), 100, KEY)
    assert pairs(fp.fingerprints(tail, 128, KEY)) == ref.fingerprints(tail.tobytes(), 128, KEY)


def test_bad_arguments_are_refused() -> None:
    rows = random_records(4)
    ids, starts = np.zeros(4, np.uint16), np.array([0, 4])
    calls = [
        lambda: fp.fingerprints(rows, 0, KEY),
        lambda: fp.fingerprints(rows, 100, KEY[:15]),
        lambda: fp.fingerprints(rows.astype(np.int16), 100, KEY),
        lambda: fp.fingerprints(rows[:, ::2], 100, KEY),
        lambda: fp.fingerprints(rows, 100, KEY, np.empty((3, 2), np.uint64)),
        lambda: fp.fingerprint_scatter(rows.reshape(-1)[:399], ids, starts, KEY),
        lambda: fp.fingerprint_scatter(rows, ids[:3], starts, KEY),
        lambda: fp.fingerprint_scatter(rows, ids, np.array([0, 3]), KEY),
        lambda: fp.fingerprint_scatter(rows, np.full(4, 9, np.uint16), starts, KEY),
        lambda: fp.permute_fingerprints(np.zeros((2, 2), np.uint64), np.array([2], np.uint64), 0xFF),
        lambda: fp.multiset128(rows, KEY, b"short"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
