"""Sums of records against their plain twins, at all levels of this CPU; what they are equal for, and what they find."""

from __future__ import annotations

import numpy as np
import pytest
from guarded import before_guard_page
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import check_reference as slow
from quoreduce_kernels import record_sums as rs
from quoreduce_kernels.check_hash import Sum
from quoreduce_kernels.check_intrinsics import LEVEL, LEVELS
from quoreduce_kernels.records import RunSorter, choose_splits, plan_partition, sample_keys, scatter

HERE = LEVELS[: LEVELS.index(LEVEL) + 1]
KEY = bytes(range(50, 82))
EDGES = (bytes(10), b"\xff" * 10, b"\0" * 8 + b"\xff\xff", b"\xff" * 8 + b"\0\0", b"A" * 10, b"A" * 8 + b"B\0")

sort_keys = st.sampled_from(EDGES) | st.binary(min_size=10, max_size=10)
few_records = st.lists(st.tuples(sort_keys, st.binary(min_size=90, max_size=90)).map(b"".join), max_size=30)


def rows(records: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(records), np.uint8).reshape(-1, 100)


def key_rows(keys: list[bytes]) -> np.ndarray:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, 10)


def random_records(n: int, letters: int, seed: int = 1) -> np.ndarray:
    """Records u8[n, 100] with keys of so many letters: few letters, many ties."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, 100), np.uint8)
    data[:, :10] = rng.integers(0, letters, (n, 10), np.uint8) * (255 // max(letters - 1, 1))
    return data


@given(few_records, st.lists(sort_keys, max_size=20), st.booleans())
@settings(max_examples=80, deadline=None)
def test_the_sums_of_a_split_are_the_documented_ones(records: list[bytes], keys: list[bytes], placed: bool) -> None:
    splits = sorted(keys)
    expected = slow.sum_split(records, splits, KEY, placed)
    for level in HERE:
        assert rs.sum_split(rows(records), key_rows(splits), KEY, placed=placed, level=level) == expected


@given(few_records, st.none() | st.integers(0, 2**60))
@settings(max_examples=60, deadline=None)
def test_the_sum_of_records_is_the_documented_one(records: list[bytes], first: int | None) -> None:
    for level in HERE:
        assert rs.sum_records(rows(records), KEY, first=first, level=level) == slow.sum_records(records, KEY, first)


@given(few_records, st.booleans(), st.just(b"") | sort_keys)
@settings(max_examples=80, deadline=None)
def test_the_sum_of_a_part_and_its_order_are_the_documented_ones(
    records: list[bytes], in_order: bool, previous: bytes
) -> None:
    records = sorted(records) if in_order else records
    for level in HERE:
        found = rs.sum_sorted(rows(records), KEY, previous=previous, level=level)
        assert tuple(found) == slow.sum_sorted(records, KEY, previous)


@given(few_records, st.lists(sort_keys, max_size=20, unique=True))
@settings(max_examples=60, deadline=None)
def test_tied_records_of_a_split_are_the_documented_ones(records: list[bytes], keys: list[bytes]) -> None:
    tied = sorted(keys)
    for level in HERE:
        assert rs.sum_tied(rows(records), key_rows(tied), KEY, level=level) == slow.sum_tied(records, tied, KEY)


@given(few_records, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_the_sums_of_witnessed_records_are_the_documented_ones(records: list[bytes], random: object) -> None:
    records = sorted(records, key=lambda record: record[:10])
    tied = slow.tied_keys(records)
    assert [bytes(key) for key in rs.tied_keys(rows(records))] == tied
    count = sum(record[:10] in tied for record in records)
    witness = [(random.randrange(3), random.randrange(50)) for _ in range(count)]  # type: ignore[attr-defined]
    maps, places = (np.array([one[k] for one in witness], np.uint32) for k in (0, 1))
    for level in HERE:
        found = rs.sum_witnessed(rows(records), maps, places, 3, KEY, level=level)
        assert found == slow.sum_witnessed(records, witness, 3, KEY)


@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, rs.BATCH - 1, rs.BATCH, rs.BATCH + 1, 2 * rs.BATCH + 7])
def test_numbers_of_records_about_those_of_batches(n: int) -> None:
    data = random_records(n, 3)
    records = [record.tobytes() for record in data[np.lexsort(data[:, 9::-1].T)]]
    with before_guard_page(b"".join(records)) as guarded:
        sums = {level: rs.sum_sorted(guarded, KEY, level=level) for level in HERE}
        assert len(set(sums.values())) == 1
        found = sums[LEVEL]
        assert found.sum.items == n
        assert (found.defects, found.ties) == (0, n - len({record[:10] for record in records}))
        pieces = [rs.sum_records(guarded[100 * low : 100 * low + 70_000], KEY) for low in range(0, n, 700)]
        total = Sum()
        for piece in pieces:
            total = total.plus(piece)
        assert total == found.sum == rs.sum_records(guarded, KEY)
        placed = rs.sum_records(guarded, KEY, first=0)
        assert rs.sum_split(guarded, np.empty((0, 10), np.uint8), KEY, placed=True) == [placed]
        if n <= 300:
            assert found.sum == slow.sum_records(records, KEY)
            assert placed == slow.sum_records(records, KEY, 0)


@pytest.mark.parametrize("partitions", [1, 2, 15, 16, 17, 255, 256, 257, 5000])
def test_partitions_are_those_of_the_sort(partitions: int) -> None:
    for letters in (256, 2):
        data = random_records(3000, letters)
        splits = choose_splits(sample_keys(data, 1000), partitions)
        ids, counts = plan_partition(data, splits)
        blocks = [np.empty(int(n) * 100, np.uint8) for n in counts]
        scatter(data, ids, blocks)
        loose, placed = (rs.sum_split(data, splits, KEY, placed=placed) for placed in (False, True))
        assert [one.items for one in loose] == counts.tolist()
        assert loose == [rs.sum_records(block, KEY) for block in blocks]
        assert placed == [rs.sum_records(block, KEY, first=0) for block in blocks]


def sorted_job(letters: int) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """(splits, part, maps, places) of a sort of three splits into one part, as the sort's kernel orders it."""
    splits = [random_records(n, letters, n) for n in (400, 0, 5000)]
    sorter = RunSorter()
    part = sorter.gather(0, sorter.sort(splits))
    numbers = sorter.order().astype(np.int64)
    starts = np.cumsum([0, *(len(split) for split in splits)])
    maps = np.searchsorted(starts[1:], numbers, "right")
    places = numbers - starts[maps]
    keys = {key.tobytes() for key in rs.tied_keys(part)}
    tied = np.array([record[:10].tobytes() in keys for record in part], bool)
    return splits, part, maps[tied].astype(np.uint32), places[tied].astype(np.uint32)


@pytest.mark.parametrize("letters", [1, 2, 3, 256])
def test_a_sorted_part_with_a_witness_is_certified_by_its_splits(letters: int) -> None:
    splits, part, maps, places = sorted_job(letters)
    total = Sum()
    for split in splits:
        total = total.plus(rs.sum_split(split, np.empty((0, 10), np.uint8), KEY)[0])
    found = rs.sum_sorted(part, KEY)
    assert (found.sum, found.defects) == (total, 0)
    tied = rs.tied_keys(part)
    assert (found.ties > 0) == (len(tied) > 0) == (letters < 256)
    expected = [rs.sum_tied(split, tied, KEY) for split in splits]
    assert rs.sum_witnessed(part, maps, places, len(splits), KEY) == (expected, 0)


def test_equal_keys_in_another_order_are_seen_by_the_witness_only() -> None:
    splits, part, maps, places = sorted_job(1)
    expected = [rs.sum_tied(split, rs.tied_keys(part), KEY) for split in splits], 0
    i = 4321  # all records are tied
    swapped = part.copy()
    swapped[[i, i + 1]] = part[[i + 1, i]]
    assert rs.sum_sorted(swapped, KEY) == rs.sum_sorted(part, KEY)
    assert rs.sum_witnessed(swapped, maps, places, 3, KEY) != expected
    lie_maps, lie_places = maps.copy(), places.copy()
    lie_maps[[i, i + 1]], lie_places[[i, i + 1]] = maps[[i + 1, i]], places[[i + 1, i]]
    sums, defects = rs.sum_witnessed(swapped, lie_maps, lie_places, 3, KEY)
    assert (sums, defects) == (expected[0], 1)


def test_a_witness_of_other_records_or_maps_is_a_defect() -> None:
    _, part, maps, places = sorted_job(2)
    assert rs.sum_witnessed(part, maps[:-1], places[:-1], 3, KEY)[1] > 0
    assert rs.sum_witnessed(part, maps[:0], places[:0], 3, KEY)[1] > 0
    assert rs.sum_witnessed(part, np.append(maps, maps[-1:]), np.append(places, places[-1:]), 3, KEY)[1] > 0
    assert rs.sum_witnessed(part, maps, places, 2, KEY)[1] > 0
    assert rs.sum_witnessed(part, maps, places, 0, KEY) == ([], 1)
    twice = places.copy()
    twice[1] = twice[0]
    same = maps.copy()
    same[1] = same[0]
    assert rs.sum_witnessed(part, same, twice, 3, KEY)[1] > 0


def test_a_place_a_map_or_a_byte_that_changes_changes_the_sum() -> None:
    data = random_records(40, 256)
    before = rs.sum_records(data, KEY), rs.sum_records(data, KEY, first=0)
    for bit in range(0, 8 * data.size, 7):
        flipped = data.copy().reshape(-1)
        flipped[bit // 8] ^= 1 << (bit % 8)
        assert rs.sum_records(flipped, KEY) != before[0]
        assert rs.sum_records(flipped, KEY, first=0) != before[1]
    assert rs.sum_records(data[::-1].copy(), KEY) == before[0]
    assert rs.sum_records(data[::-1].copy(), KEY, first=0) != before[1]
    assert rs.sum_records(data, KEY, first=1) != before[1]
    assert rs.sum_records(data, bytes(32)) != before[0]


def test_arrays_of_another_kind_are_not_taken() -> None:
    data, splits = random_records(4, 256), np.zeros((1, 10), np.uint8)
    none = np.empty(0, np.uint32)
    with pytest.raises(ValueError, match="multiple of 100"):
        rs.sum_records(data.reshape(-1)[:150], KEY)
    with pytest.raises(ValueError, match="contiguous"):
        rs.sum_records(data[:, ::2], KEY)
    with pytest.raises(ValueError, match="32 bytes"):
        rs.sum_records(data, b"")
    with pytest.raises(ValueError, match="10 bytes"):
        rs.sum_sorted(data, KEY, previous=b"short")
    with pytest.raises(ValueError, match="not decrease"):
        rs.sum_split(data, key_rows([b"b" * 10, b"a" * 10]), KEY)
    with pytest.raises(ValueError, match="splits must be"):
        rs.sum_split(data, splits[:, :9], KEY)
    with pytest.raises(ValueError, match="more than 65536"):
        rs.sum_split(data, np.zeros((65536, 10), np.uint8), KEY)
    with pytest.raises(ValueError, match="must ascend"):
        rs.sum_tied(data, np.zeros((2, 10), np.uint8), KEY)
    with pytest.raises(ValueError, match="places must be"):
        rs.sum_witnessed(data, none, np.empty(1, np.uint32), 1, KEY)
    with pytest.raises(ValueError, match="maps must be"):
        rs.sum_witnessed(data, none.astype(np.int64), none, 1, KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most"):
        rs.sum_witnessed(data, none, none, 2**21, KEY)
