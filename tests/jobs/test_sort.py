"""The job sort, called as a worker calls it: blocks, digests and output of storing and digest-only replicas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester, SealedBlock
from quoreduce.job import Job
from quoreduce.jobs.find import find_job
from quoreduce.jobs.sort import JOB
from quoreduce.worker.context import MapContext, ReduceContext
from quoreduce_kernels import reference as ref
from quoreduce_kernels.gensort import crc_sum, generate_records, validate_sorted

DIGESTERS = [Digester("blake3"), Digester("fast", b"0123456789abcdef"), Digester("checksum")]


def allocate(nbytes: int) -> np.ndarray:
    return np.full(nbytes, 0xEE, np.uint8)


@contextmanager
def opened(rows: np.ndarray) -> Iterator[np.ndarray]:
    yield rows.reshape(-1)


def sample(splits: list[np.ndarray], reducers: int) -> bytes:
    ctx = MapContext(0, reducers, b"", 0, False, DIGESTERS[0], allocate)
    return JOB.sample([lambda s=s: opened(s) for s in splits], ctx)


def map_parts(
    split: np.ndarray, reducers: int, side: bytes, digester: Digester, store: bool
) -> tuple[list[Block | SealedBlock], list[tuple[bytes, int, int]]]:
    ctx = MapContext(0, reducers, side, 0, store, digester, allocate)
    outputs = JOB.map(split.reshape(-1), ctx)
    assert ctx.records_in == split.shape[0]
    parts = [
        (o.digest, o.records, o.nbytes) if isinstance(o, SealedBlock) else (digester.block(o), o.records, o.buffer.size)
        for o in outputs
    ]
    return outputs, parts


def reduce_part(blocks: list[Block], reducers: int, digester: Digester, path: Path | None) -> tuple[bytes, int, int]:
    files = [os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)] if path else []
    ctx = ReduceContext(0, reducers, b"", 0, digester, 100, files)
    JOB.reduce(blocks, ctx)
    digest = ctx.finish()
    for fd in files:
        os.close(fd)
    return digest, ctx.records, ctx.nbytes


def splits_of(kind: str) -> list[np.ndarray]:
    rows = generate_records(0, 30_000, "ascii" if kind == "ascii" else "teragen")
    if kind == "few keys":
        rows[:, :10] = rows[:, :1] % 3
    if kind == "one key":
        rows[:, :10] = 7
    return [rows[:11_000], rows[11_000:11_000], rows[11_000:12_345], rows[12_345:]]


@pytest.mark.parametrize("kind", ["binary", "ascii", "few keys", "one key"])
@pytest.mark.parametrize("digester", DIGESTERS, ids=lambda d: d.algorithm)
@pytest.mark.parametrize("reducers", [1, 5])
def test_replicas_agree_and_the_output_is_sorted(kind: str, digester: Digester, reducers: int, tmp_path: Path) -> None:
    splits = splits_of(kind)
    side = sample(splits, reducers)
    assert len(side) == 10 * (reducers - 1)
    stored, reported = zip(*(map_parts(split, reducers, side, digester, True) for split in splits), strict=True)
    assert list(reported) == [map_parts(split, reducers, side, digester, False)[1] for split in splits]
    output = []
    for r in range(reducers):
        blocks = [Block.open(outputs[r].buffer.tobytes()) for outputs in stored]
        part = reduce_part(blocks, reducers, digester, tmp_path / str(r))
        assert part == reduce_part(blocks, reducers, digester, None)
        assert part[0] == digester.file(tmp_path / str(r), 100)
        output.append((tmp_path / str(r)).read_bytes())
    everything = np.concatenate(splits)
    expected = ref.merge_runs([[row.tobytes() for row in everything]])
    assert b"".join(output) == b"".join(expected)
    assert validate_sorted(b"".join(output))[0] == -1
    assert crc_sum(b"".join(output)) == crc_sum(everything)


def test_parts_are_of_similar_size() -> None:
    splits = [generate_records(i * 5_000, 5_000) for i in range(20)]
    side = sample(splits, 8)
    records = sum(np.array([n for _, n, _ in map_parts(s, 8, side, DIGESTERS[0], True)[1]]) for s in splits)
    assert records.sum() == 100_000
    assert records.max() < 1.2 * records.mean()


def test_no_records_at_all(tmp_path: Path) -> None:
    empty = np.empty((0, 100), np.uint8)
    side = sample([empty], 3)
    for digester in DIGESTERS:
        outputs, parts = map_parts(empty, 3, side, digester, True)
        assert parts == map_parts(empty, 3, side, digester, False)[1]
        assert reduce_part([outputs[0]], 3, digester, tmp_path / "0")[1:] == (0, 0)
    assert sample([], 2) == bytes(10)


def test_a_sample_of_another_number_of_partitions_is_refused() -> None:
    with pytest.raises(ValueError, match="split keys"):
        map_parts(generate_records(0, 10), 3, bytes(10), DIGESTERS[0], True)


def test_the_job_is_found_by_name() -> None:
    assert find_job("sort") is JOB
    assert isinstance(JOB, Job)
