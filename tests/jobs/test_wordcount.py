"""The job wordcount, called as a worker calls it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester
from quoreduce.jobs.find import find_job
from quoreduce.jobs.wordcount import JOB, SCHEMA
from quoreduce.worker.context import MapContext, ReduceContext
from quoreduce_kernels import reference

DIGESTER = Digester("blake3")
SPLITS = [
    b"the quick brown fox jumps over the lazy dog\n" * 30,
    b"\0 a-word-of-more-than-sixteen-bytes the end",
    b"",
    b" \n",
]


def map_split(split: bytes, reducers: int) -> list[Block]:
    ctx = MapContext(0, reducers, b"", 0, True, DIGESTER, lambda nbytes: np.full(nbytes, 0xEE, np.uint8))
    blocks = JOB.map(np.frombuffer(split, np.uint8), ctx)
    assert ctx.records_in == len(reference.split_words(split))
    return [Block.open(block.buffer) for block in blocks]


def reduce_blocks(blocks: list[Block], path: Path) -> tuple[bytes, int]:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    ctx = ReduceContext(0, 1, b"", 0, DIGESTER, 1, [fd])
    JOB.reduce(blocks, ctx)
    ctx.finish()
    os.close(fd)
    return path.read_bytes(), ctx.records


@pytest.mark.parametrize("reducers", [1, 3, 16])
def test_job_gives_what_the_twins_give(tmp_path: Path, reducers: int) -> None:
    outputs = [map_split(split, reducers) for split in SPLITS]
    runs = [reference.partitions_of(reference.count_words(split), reducers) for split in SPLITS]
    for r in range(reducers):
        text, records = reduce_blocks([blocks[r] for blocks in outputs], tmp_path / "part")
        expected = reference.merge_counts(run[r] for run in runs)
        assert text == reference.format_counts(expected)
        assert records == len(expected)


def test_replicas_make_the_same_blocks_whatever_they_did_before() -> None:
    once = [block.buffer.tobytes() for block in map_split(SPLITS[0], 4)]
    map_split(b" ".join(b"%d" % i for i in range(20000)), 4)
    again = map_split(SPLITS[0], 4)
    assert [block.buffer.tobytes() for block in again] == once
    assert all(block.schema == SCHEMA for block in again)


def test_job_is_found_by_name() -> None:
    assert find_job("wordcount") is JOB
