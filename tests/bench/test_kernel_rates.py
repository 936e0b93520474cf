"""Kernels under pytest-benchmark, on small data. Times are recorded and never decide; what kernels return does, each
time.

``extra_info["bytes"]`` (or ``keys``) over a time is a rate. In an ordinary test run each kernel runs once.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from blake3 import blake3

from quoreduce.data.digest import Digester
from quoreduce_kernels import reference as ref
from quoreduce_kernels.fingerprint import fingerprints, multiset128
from quoreduce_kernels.gensort import generate_records
from quoreduce_kernels.prefix import select_lines, select_records
from quoreduce_kernels.records import RunMerger, RunSorter, choose_splits, plan_partition, sample_keys, scatter
from quoreduce_kernels.textgen import generate_text
from quoreduce_kernels.words import WordCounter, merge_counts

TEXT_BYTES = 1_000_000
RECORDS = 5_000
RUNS = 4
PARTITIONS = 5
KEY = bytes(range(16))
Columns = tuple[np.ndarray, np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def text() -> np.ndarray:
    return generate_text(0, TEXT_BYTES, 1)


@pytest.fixture(scope="module")
def records() -> np.ndarray:
    return generate_records(0, RECORDS, "ascii")


@pytest.fixture(scope="module")
def rows(records: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in records]


def columns_of(counter: WordCounter) -> Columns:
    entries, nbytes = counter.partition_sizes(1)
    columns = (np.empty(entries[0] + 1, np.int64), np.empty(nbytes[0], np.uint8), np.empty(entries[0], np.uint64))
    counter.fill(0, *columns)
    return columns


def pairs_of(columns: Columns) -> list[tuple[bytes, int]]:
    offsets, data, counts = columns[0].tolist(), columns[1].tobytes(), columns[2].tolist()
    return [(data[offsets[i] : offsets[i + 1]], count) for i, count in enumerate(counts)]


@pytest.mark.benchmark(group="kernels: words")
def test_word_count(benchmark: Any, text: np.ndarray) -> None:
    counter = WordCounter()
    benchmark.extra_info["bytes"] = text.size
    distinct = benchmark(counter.count, text)
    counted = pairs_of(columns_of(counter))
    assert sorted(counted) == sorted(ref.count_words(text.tobytes()))
    assert distinct == len(counted)


@pytest.mark.benchmark(group="kernels: words")
def test_merge_of_counted_runs(benchmark: Any, text: np.ndarray) -> None:
    runs = []
    for piece in np.split(text, RUNS):
        counter = WordCounter()
        counter.count(piece)
        runs.append(columns_of(counter))
    benchmark.extra_info["keys"] = sum(len(run[2]) for run in runs)
    merged = benchmark(merge_counts, runs)
    assert pairs_of(merged) == ref.merge_counts(pairs_of(run) for run in runs)


@pytest.mark.benchmark(group="kernels: records")
def test_sort_and_gather(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    sorter = RunSorter()
    benchmark.extra_info |= {"bytes": records.nbytes, "keys": RECORDS}

    def sort_and_gather() -> np.ndarray:
        sorter.sort([records])
        return sorter.gather(0, RECORDS)

    assert benchmark(sort_and_gather).tobytes() == b"".join(sorted(rows, key=ref.key_of))


@pytest.mark.benchmark(group="kernels: records")
def test_partition_and_scatter(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    splits = choose_splits(sample_keys(records, 500), PARTITIONS)
    _, counts = plan_partition(records, splits)
    targets = [np.zeros(n * 100, np.uint8) for n in counts.tolist()]
    benchmark.extra_info |= {"bytes": records.nbytes, "keys": RECORDS}

    def partition_and_scatter() -> np.ndarray:
        ids, _ = plan_partition(records, splits)
        scatter(records, ids, targets)
        return ids

    ids = benchmark(partition_and_scatter).tolist()
    assert ids == ref.partition_ids(rows, [split.tobytes() for split in splits])
    assert [target.tobytes() for target in targets] == ref.scatter(rows, ids, PARTITIONS)


@pytest.mark.benchmark(group="kernels: scans")
def test_scan_of_records(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    benchmark.extra_info["bytes"] = records.nbytes
    assert benchmark(select_records, records, b"~").tolist() == ref.select_records(rows, b"~")


@pytest.mark.benchmark(group="kernels: scans")
def test_scan_of_lines(benchmark: Any, text: np.ndarray) -> None:
    benchmark.extra_info["bytes"] = text.size
    found, lines = benchmark(select_lines, text, b"t")
    assert (len(found), lines) == (len(ref.select_lines(text.tobytes(), b"t")[0]), text.tobytes().count(b"\n"))


@pytest.mark.benchmark(group="kernels: records")
def test_merge_of_sorted_runs(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    runs = [np.array(sorted(piece, key=lambda row: bytes(row[:10]))) for piece in np.split(records, RUNS)]
    out = np.zeros(records.nbytes, np.uint8)
    benchmark.extra_info["bytes"] = records.nbytes
    assert benchmark(lambda: RunMerger(runs).next(out)) == RECORDS
    assert out.tobytes() == b"".join(sorted(rows, key=ref.key_of))


@pytest.mark.benchmark(group="kernels: fingerprints")
def test_fingerprints(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    benchmark.extra_info["bytes"] = records.nbytes
    values = benchmark(fingerprints, records, 100, KEY)
    assert [tuple(value) for value in values[:50].tolist()] == [ref.fingerprint(row, KEY) for row in rows[:50]]


@pytest.mark.benchmark(group="kernels: fingerprints")
def test_multiset_hash_and_order(benchmark: Any, records: np.ndarray, rows: list[bytes]) -> None:
    benchmark.extra_info["bytes"] = records.nbytes
    found, out_of_order = benchmark(multiset128, records, KEY)
    shuffled = records[np.random.default_rng(1).permutation(RECORDS)]
    assert found == multiset128(shuffled, KEY)[0]
    assert out_of_order == sum(ref.key_of(b) < ref.key_of(a) for a, b in pairwise(rows))


@pytest.mark.benchmark(group="kernels: digests")
@pytest.mark.parametrize("algorithm", ["blake3", "fast", "checksum"])
def test_digest_of_a_stream(benchmark: Any, text: np.ndarray, algorithm: Any) -> None:
    digester = Digester(algorithm, KEY if algorithm == "fast" else b"")
    benchmark.extra_info["bytes"] = text.size
    digest = benchmark(digester.of, text)
    in_pieces = digester.stream()
    for piece in np.array_split(text, 7):
        in_pieces.update(piece)
    assert digest == in_pieces.digest()
    if algorithm == "blake3":
        assert digest == blake3(text.tobytes()).digest()
