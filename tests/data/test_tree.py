"""The tree inside BLAKE3: our nodes lead to the library's digest, the way down to the first difference, and no way
astray.
"""

from __future__ import annotations

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import example, given
from hypothesis import strategies as st

from quoreduce.data import tree

SIZES = st.one_of(st.integers(0, 6 * tree.CHUNK_BYTES), st.integers(0, 300 * tree.CHUNK_BYTES))


def some_bytes(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, size).astype(np.uint8)


class Holder:
    """A copy in memory; ``asked`` has the questions for nodes, and ``shipped`` the bytes that went over the wire."""

    def __init__(self, data: np.ndarray, digest: bytes | None = None) -> None:
        self.data = data
        self.asked: list[tuple[int, int, int]] = []
        self.reads = self.shipped = 0
        claimed = digest or blake3(data.tobytes()).digest()
        self.copy = tree.Copy(data.size, claimed, self.nodes, self.read)

    def nodes(self, first: int, count: int, level: int) -> np.ndarray:
        start = first * tree.CHUNK_BYTES
        values = tree.nodes(self.data[start : start + count * tree.CHUNK_BYTES], first, level)
        self.asked.append((first, count, level))
        return tree.decode(tree.encode(values))

    def read(self, offset: int, nbytes: int) -> bytes:
        assert 0 <= nbytes <= max(0, self.data.size - offset), "nobody asks for what is not there"
        self.reads += 1
        self.shipped += nbytes
        return self.data[offset : offset + nbytes].tobytes()


@given(SIZES, st.integers(0, 8))
@example(0, 0)
@example(tree.CHUNK_BYTES, 0)
@example(tree.CHUNK_BYTES + 1, 0)
@example(tree.BATCH_CHUNKS * tree.CHUNK_BYTES + 65, 3)
def test_nodes_lead_to_the_digest_of_the_library(size: int, level: int) -> None:
    data = some_bytes(size)
    values = tree.nodes(data, 0, level)
    assert values.shape == (-(-tree.chunk_count(size) >> level), 8)
    if values.shape[0] > 1:
        assert tree.root(values) == blake3(data.tobytes()).digest()


@given(st.integers(1, 40), st.integers(0, 3), st.integers(1, 8))
def test_a_part_of_the_tree_is_the_same_by_itself(count: int, level: int, skipped: int) -> None:
    first = skipped << level
    data = some_bytes((first + count) * tree.CHUNK_BYTES - 7)
    own = tree.nodes(data[first * tree.CHUNK_BYTES :], first, level)
    assert np.array_equal(own, tree.nodes(data, 0, level)[skipped:])


@given(SIZES.filter(bool), st.data())
def test_a_flipped_bit_is_found(size: int, data: st.DataObject) -> None:
    right = some_bytes(size)
    wrong = right.copy()
    at = data.draw(st.integers(0, size - 1))
    wrong[at] ^= 1 << data.draw(st.integers(0, 7))
    later = data.draw(st.integers(at, size - 1))
    wrong[later] ^= 1 if later > at else 0
    found = tree.first_difference(Holder(wrong).copy, Holder(right).copy)
    assert found is not None
    assert found.offset == at
    assert found.start == at // tree.CHUNK_BYTES * tree.CHUNK_BYTES
    assert found.one == wrong[found.start : found.start + tree.CHUNK_BYTES].tobytes()
    assert found.two == right[found.start : found.start + tree.CHUNK_BYTES].tobytes()
    assert found.bits == 1 + (at < later < found.start + tree.CHUNK_BYTES)


@given(SIZES, SIZES, st.booleans())
@example(0, 1, False)
@example(8 * 1024, 9 * 1024, False)
@example(64 * 1024, 65 * 1024, False)
@example(1024, 200 * 1024, True)
@example(2048, 300 * 1024 + 5, False)
def test_copies_of_other_sizes_differ_where_the_shorter_one_ends(short: int, long: int, swapped: bool) -> None:
    data = some_bytes(max(short, long))
    pair = [Holder(data[:short]).copy, Holder(data[:long]).copy]
    found = tree.first_difference(*(reversed(pair) if swapped else pair))
    assert (None if found is None else found.offset) == (None if short == long else min(short, long))


@given(st.binary(max_size=3000), st.binary(max_size=3000), st.integers(0, 3000))
def test_what_is_in_memory_is_compared_as_what_is_not(one: bytes, two: bytes, common: int) -> None:
    raw = [one, one[:common] + two]
    there = [Holder(np.frombuffer(data, np.uint8)).copy for data in raw]
    assert tree.in_memory(*raw) == tree.first_difference(*there)


@pytest.mark.parametrize("at", [0, 1023, 1024, 3000, 5126])
def test_in_memory_the_first_of_several_differences_is_found_in_its_chunk(at: int) -> None:
    right = some_bytes(5 * 1024 + 7)
    wrong = right.copy()
    wrong[[at, 5126]] ^= 3
    found = tree.in_memory(wrong, right)
    start = at // 1024 * 1024
    assert found == tree.Differing(
        at, start, wrong[start : start + 1024].tobytes(), right[start : start + 1024].tobytes()
    )


def test_equal_copies_do_not_differ_and_their_bytes_are_not_read() -> None:
    for size in (8 * 1024, 99_999):
        one, two = Holder(some_bytes(size)), Holder(some_bytes(size))
        assert tree.first_difference(one.copy, two.copy) is None
        assert (len(one.asked), one.reads) == (len(two.asked), two.reads) == (1, 0)


@pytest.mark.parametrize(
    ("count", "level"), [(1, 0), (2, 0), (64, 0), (65, 1), (127, 1), (128, 1), (129, 2), (256, 2), (257, 3)]
)
def test_first_of_all_the_lowest_level_with_64_nodes_or_fewer_is_asked_for(count: int, level: int) -> None:
    holder = Holder(some_bytes(count * tree.CHUNK_BYTES))
    assert tree.first_difference(holder.copy, holder.copy) is None
    assert holder.asked == [(0, count, level)] * 2


def test_a_lone_node_is_its_own_parent_however_far_up() -> None:
    """And that is known at once: a level that makes no sense costs nothing."""
    lone = tree.chunks(some_bytes(100), 0)
    assert np.array_equal(tree.lift(lone, 1_000_000), lone)


def test_little_is_shipped() -> None:
    """Of 8 MiB: at most 64 nodes a step, and one chunk."""
    right = some_bytes(8 << 20)
    wrong = right.copy()
    wrong[5_000_000] ^= 4
    one, two = Holder(wrong), Holder(right)
    assert tree.first_difference(one.copy, two.copy) is not None
    for holder in (one, two):
        assert holder.asked == [(0, 8192, 7), (4864, 128, 1), (4882, 2, 0)]  # 64, 64 and 2 nodes
        assert holder.shipped == tree.CHUNK_BYTES


@given(st.integers(1, 200 * 1024), st.data())
def test_a_holder_whose_bytes_are_not_those_of_its_digest_is_caught(size: int, data: st.DataObject) -> None:
    """It answers consistently, but of other bytes than those it claimed the digest of."""
    right, wrong = some_bytes(size), some_bytes(size, 1)
    liar = Holder(wrong, digest=blake3(data.draw(st.binary(max_size=9))).digest())
    with pytest.raises(tree.TreeMismatch):
        tree.first_difference(liar.copy, Holder(right).copy)


@pytest.mark.parametrize("step", range(4))
def test_a_holder_that_lies_on_the_way_is_caught(step: int) -> None:
    """Nodes of other bytes at any step, or other bytes in the end."""
    right = some_bytes(5000 * 1024)
    wrong = right.copy()
    wrong[4_000_000] ^= 1
    honest, decoy = Holder(wrong), Holder(some_bytes(right.size, 1))
    calls = iter(range(100))

    def nodes(first: int, count: int, level: int) -> np.ndarray:
        return (decoy if next(calls) == step else honest).nodes(first, count, level)

    def read(offset: int, nbytes: int) -> bytes:
        return (decoy if step == 3 else honest).read(offset, nbytes)

    with pytest.raises(tree.TreeMismatch):
        tree.first_difference(tree.Copy(wrong.size, honest.copy.digest, nodes, read), Holder(right).copy)


@pytest.mark.parametrize("answer", [lambda values: values[:-1], lambda values: np.concatenate((values, values[:1]))])
def test_a_wrong_number_of_nodes_is_caught(answer: object) -> None:
    right = Holder(some_bytes(9000))
    other = tree.Copy(9000, None, lambda *asked: answer(right.nodes(*asked)), right.read)  # type: ignore[operator]
    with pytest.raises(tree.TreeMismatch, match="nodes came"):
        tree.first_difference(other, Holder(some_bytes(9000, 1)).copy)


def test_bytes_that_are_no_nodes_are_caught() -> None:
    with pytest.raises(tree.TreeMismatch, match="33 bytes"):
        tree.decode(bytes(33))
