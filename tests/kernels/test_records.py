"""Record kernels against their plain twins: skew, ties, empty runs, pieces, and buffers that end where memory ends."""

from __future__ import annotations

import ctypes
import mmap
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import fingerprint as fp
from quoreduce_kernels import reference as ref
from quoreduce_kernels.records import RunMerger, RunSorter, choose_splits, plan_partition, sample_keys, scatter

PAGE = mmap.PAGESIZE
KINDS = ("random", "prefix5", "prefix8", "prefix9", "equal", "few", "outlier", "bits", "sorted", "reversed", "extremes")


def records_of_kind(kind: str, n: int, seed: int) -> np.ndarray:
    """n records whose keys are skewed in one way; payloads are random, so that stability shows."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, 256, (n, 100), np.uint8)
    match kind:
        case "prefix5":
            rows[:, :5] = 7
        case "prefix8":
            rows[:, :8] = 200
        case "prefix9":
            rows[:, :9] = 3
            rows[:, 9] &= 3
        case "equal":
            rows[:, :10] = 9
        case "few":
            rows[:, :10] = rng.integers(0, 3, (n, 1), np.uint8) * 100
        case "outlier":
            rows[:, :6] = 1
            rows[n // 2 : n // 2 + 1, :10] = 255
        case "bits":
            rows[:, :10] &= 1
        case "sorted" | "reversed":
            keys = sorted(row[:10].tobytes() for row in rows)
            keys = keys[::-1] if kind == "reversed" else keys
            rows[:, :10] = np.frombuffer(b"".join(keys), np.uint8).reshape(n, 10)
        case "extremes":
            rows[:, :10] = rng.integers(0, 2, (n, 1), np.uint8) * 255
    return rows


def lists(runs: list[np.ndarray]) -> list[list[bytes]]:
    return [[row.tobytes() for row in run] for run in runs]


def before_a_guard(rows: np.ndarray) -> tuple[mmap.mmap, np.ndarray]:
    """A copy of the records in the last bytes before a page that may not be touched."""
    size = -(-max(rows.size, 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    view = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(view.ctypes.data + size), PAGE, 0) == 0
    data = view[size - rows.size : size]
    data[:] = rows.reshape(-1)
    return memory, data.reshape(-1, 100)


runs_of_a_kind = st.builds(
    lambda kind, sizes, seed: [records_of_kind(kind, n, seed + i) for i, n in enumerate(sizes)],
    st.sampled_from(KINDS), st.lists(st.sampled_from([0, 1, 2, 3, 65, 300]), max_size=5), st.integers(0, 2**32),
)  # fmt: skip


@given(
    st.sampled_from(KINDS), st.sampled_from(KINDS), st.sampled_from([0, 1, 2, 50, 300]),
    st.integers(1, 40), st.integers(0, 2**32),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_partition_is_the_number_of_splits_at_or_below_the_key(
    kind: str, split_kind: str, n: int, partitions: int, seed: int
) -> None:
    rows = records_of_kind(kind, n, seed)
    others = np.concatenate((rows, records_of_kind(split_kind, 20, seed + 1)))
    splits = choose_splits(others[:, :10].copy(), partitions)
    ids, counts = plan_partition(rows, splits)
    expected = ref.partition_ids([r.tobytes() for r in rows], [s.tobytes() for s in splits])
    assert ids.tolist() == expected
    assert counts.tolist() == np.bincount(expected, minlength=partitions).tolist()


@pytest.mark.parametrize("partitions", [2, 3, 257, 20_000, 65_536])
def test_keys_at_the_splits_themselves(partitions: int) -> None:
    rng = np.random.default_rng(5)
    sample = rng.integers(0, 256, (partitions * 2, 10), np.uint8)
    sample[: partitions // 2, :7] = 0
    sample[partitions // 2 : partitions, :8] = 255
    splits = choose_splits(sample, partitions)
    rows = np.zeros((min(splits.shape[0], 3000), 100), np.uint8)
    rows[:, :10] = splits[np.linspace(0, splits.shape[0] - 1, rows.shape[0]).astype(int)]
    ids, _ = plan_partition(rows, splits)
    names = np.array([s.tobytes().hex() for s in splits])
    keys = [r[:10].tobytes().hex() for r in rows]
    assert ids.tolist() == np.searchsorted(names, keys, "right").tolist()


@given(st.sampled_from(KINDS), st.integers(0, 200), st.integers(1, 9), st.integers(0, 2**32))
@settings(max_examples=60, deadline=None)
def test_scatter_is_stable_and_writes_nothing_else(kind: str, n: int, partitions: int, seed: int) -> None:
    rows = records_of_kind(kind, n, seed)
    ids, counts = plan_partition(rows, choose_splits(sample_keys(rows, 50), partitions))
    guarded = [np.full(int(c) * 100 + 64, 0xEE, np.uint8) for c in counts]
    scatter(rows, ids, [buffer[32:-32] for buffer in guarded])
    expected = ref.scatter([r.tobytes() for r in rows], ids.tolist(), partitions)
    assert [buffer[32:-32].tobytes() for buffer in guarded] == expected
    assert all((buffer[:32] == 0xEE).all() and (buffer[-32:] == 0xEE).all() for buffer in guarded)


@pytest.mark.parametrize("n", [0, 1, 2, 10, 1000])
@pytest.mark.parametrize("count", [0, 1, 7, 1000])
def test_sample_and_splits(n: int, count: int) -> None:
    rows = records_of_kind("random", n, 1)
    sample = sample_keys(rows, count)
    assert [k.tobytes() for k in sample] == ref.sample_keys([r.tobytes() for r in rows], count)
    for partitions in (1, 2, 9):
        splits = choose_splits(sample, partitions)
        assert [s.tobytes() for s in splits] == ref.choose_splits([k.tobytes() for k in sample], partitions)


def test_partitions_of_random_keys_are_about_equal() -> None:
    rows = records_of_kind("random", 20_000, 1)
    _, counts = plan_partition(rows, choose_splits(sample_keys(rows, 4000), 8))
    assert counts.min() > 2500 * 0.8
    assert counts.max() < 2500 * 1.2


@given(runs_of_a_kind, st.sampled_from([1 << 24, 1 << 24, 100, 7, 1]))
@settings(max_examples=150, deadline=None)
def test_sort_is_stable_over_runs(runs: list[np.ndarray], piece: int) -> None:
    sorter = RunSorter(piece if sum(map(len, runs)) < 400 or piece >= 100 else 100)
    n = sorter.sort(runs)
    order = ref.sort_runs(lists(runs))
    assert n == len(order)
    assert sorter.order().tolist() == order
    rows = np.concatenate([np.empty((0, 100), np.uint8), *runs])
    assert (sorter.gather(0, n) == rows[order]).all()
    assert (sorter.gather(n // 3, n // 2) == rows[order[n // 3 : n // 2]]).all()
    values = fp.fingerprints(rows, 100, b"0123456789abcdef")
    assert (sorter.permute(values) == values[order]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [63, 64, 65, 4095, 4096, 4097, 150_000])
def test_sort_at_sizes_where_the_algorithm_changes(kind: str, n: int) -> None:
    rows = records_of_kind(kind, n, 3)
    keys = rows[:, :10].astype(np.uint64)
    high = sum(keys[:, i] << np.uint64(8 * (7 - i)) for i in range(8))
    low = keys[:, 8] << np.uint64(8) | keys[:, 9]
    sorter = RunSorter()
    sorter.sort([rows[: n // 3], rows[n // 3 :]])
    assert (sorter.order() == np.lexsort((low, high))).all()


def test_sorter_can_be_used_again_with_more_and_fewer_records() -> None:
    sorter = RunSorter()
    for n in (10, 500, 0, 3):
        rows = records_of_kind("random", n, n)
        assert sorter.sort([rows]) == n
        assert sorter.order().tolist() == ref.sort_runs(lists([rows]))


@pytest.mark.parametrize("kind", ["few", "outlier", "bits", "prefix9", "prefix8", "equal"])
def test_skew_is_not_quadratic(kind: str) -> None:
    """A quadratic step over 300,000 records would take minutes; all of this takes a fraction of a second."""
    rows = records_of_kind(kind, 300_000, 4)
    sorter = RunSorter()
    start = time.perf_counter()
    sorter.sort([rows])
    assert time.perf_counter() - start < 5


def test_many_tiny_runs_beside_a_large_one() -> None:
    runs = [records_of_kind("random", n, i) for i, n in enumerate([1] * 200 + [30_000] + [0, 1] * 200)]
    sorter = RunSorter()
    n = sorter.sort(runs)
    rows = np.concatenate(runs)
    order = sorter.order().astype(np.int64)
    assert (sorter.gather(0, n) == rows[order]).all()
    keys = [r[:10].tobytes() for r in rows[order]]
    assert keys == sorted(keys)


def test_gather_writes_nothing_else() -> None:
    rows = records_of_kind("random", 100, 1)
    sorter = RunSorter()
    sorter.sort([rows])
    for low, high in [(0, 0), (0, 1), (99, 100), (5, 90)]:
        guarded = np.full((high - low) * 100 + 64, 0xEE, np.uint8)
        sorter.gather(low, high, guarded[32:-32])
        assert (guarded[:32] == 0xEE).all()
        assert (guarded[-32:] == 0xEE).all()


@given(runs_of_a_kind, st.sampled_from([1, 2, 7, 1000]))
@settings(max_examples=80, deadline=None)
def test_merge_is_stable_over_runs(runs: list[np.ndarray], chunk: int) -> None:
    ordered = [run[sorted(range(len(run)), key=lambda i: run[i, :10].tobytes())] for run in runs]
    merger = RunMerger(ordered)
    out = np.empty(chunk * 100, np.uint8)
    pieces = []
    while count := merger.next(out):
        pieces.append(out[: count * 100].tobytes())
    assert b"".join(pieces) == b"".join(ref.merge_runs(lists(ordered)))
    assert merger.next(out) == 0
    assert merger.records == sum(map(len, runs))


def test_nothing_is_read_or_written_beyond_the_end_of_a_mapping() -> None:
    rows = records_of_kind("random", 333, 8)
    _memory, data = before_a_guard(rows)
    ids, counts = plan_partition(data, choose_splits(sample_keys(data, 100), 2))
    targets = [before_a_guard(np.zeros((int(c), 100), np.uint8)) for c in counts]
    scatter(data, ids, [target for _, target in targets])
    assert (targets[1][1] == rows[ids == 1]).all()
    sorter = RunSorter()
    sorter.sort([target for _, target in targets])
    _out_memory, out = before_a_guard(np.zeros_like(rows))
    sorter.gather(0, 333, out)
    keys = [row[:10].tobytes() for row in out]
    assert keys == sorted(row[:10].tobytes() for row in rows)
    merger = RunMerger([out[:100], out[100:]])
    assert merger.next(targets[0][1]) == int(counts[0])
    fp.fingerprints(data, 100, bytes(16))
    fp.multiset128(data, bytes(16))
    assert fp.checksum128(data) == fp.checksum128(rows)


def test_bad_arguments_are_refused() -> None:
    rows = records_of_kind("random", 4, 1)
    splits = np.array([[1] * 10, [2] * 10], np.uint8)
    ids = np.zeros(4, np.uint16)
    sorter = RunSorter()
    sorter.sort([rows])
    calls = [
        lambda: plan_partition(rows.reshape(-1)[:-1], splits),
        lambda: plan_partition(rows.astype(np.int8), splits),
        lambda: plan_partition(rows[::2], splits),
        lambda: plan_partition(rows, splits[::-1]),
        lambda: plan_partition(rows, splits[:, :9]),
        lambda: plan_partition(rows, np.zeros((65_536, 10), np.uint8)),
        lambda: choose_splits(splits, 0),
        lambda: choose_splits(splits[0], 2),
        lambda: scatter(rows, ids, [np.empty(399, np.uint8)]),
        lambda: scatter(rows, ids, []),
        lambda: scatter(rows, ids[:3], [np.empty(400, np.uint8)]),
        lambda: scatter(rows, ids.astype(np.int64), [np.empty(400, np.uint8)]),
        lambda: scatter(rows, ids, [np.frombuffer(bytes(400), np.uint8)]),
        lambda: RunSorter(0),
        lambda: RunSorter((1 << 24) + 1),
        lambda: sorter.sort([rows[:, :50]]),
        lambda: sorter.gather(0, 5),
        lambda: sorter.gather(-1, 2),
        lambda: sorter.gather(0, 4, np.empty(399, np.uint8)),
        lambda: sorter.permute(np.zeros((5, 2), np.uint64)),
        lambda: RunMerger([rows[:, :99]]),
        lambda: RunMerger([rows]).next(np.empty(150, np.uint8)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
