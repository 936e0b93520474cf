"""The job ``sort``: 100-byte records by their 10-byte keys, in order over all partitions (TeraSort).

sample: keys at regular positions of some splits -> R - 1 split keys, agreed on by vote before any map starts
map:    partition by the split keys, scatter into R blocks of one column ``fixed:100``
reduce: sort the blocks' records by (key, map, record number), gather them a chunk at a time to the output

Part r of the output holds the keys from split key r - 1 up to, but not with, split key r, so that the parts in order
are sorted. A replica that stores nothing, under the digest ``fast``, moves no records: it puts their fingerprints in
the same order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from quoreduce.data.block import Block, Layout, parse_schema
from quoreduce.data.digest import SealedBlock, as_u8
from quoreduce.job import Job

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]

RECORD_BYTES = 100
KEY_BYTES = 10
SCHEMA = (f"fixed:{RECORD_BYTES}",)
SAMPLE_SPLITS_MAX = 8  # opening a split brings all of it in: 5 ms for 64 MB in the page cache
SAMPLE_KEYS_MIN = 10_000
SAMPLE_KEYS_PER_PARTITION = 128  # parts then differ by some 9 % (1 / sqrt(128)) in size
SAMPLE_KEYS_MAX = 1 << 20
CHUNK_RECORDS = 10_000  # 1 MB: hashed and written while it is in cache


def sample(splits: Sequence[Any], ctx: Any) -> bytes:
    """Choose R - 1 split keys; return their bytes, 10 each. ``splits`` open splits as u8 arrays (context managers)."""
    records = _scratch().records
    picked = min(len(splits), SAMPLE_SPLITS_MAX)
    wanted = min(max(SAMPLE_KEYS_MIN, SAMPLE_KEYS_PER_PARTITION * ctx.reducers), SAMPLE_KEYS_MAX)
    keys = [np.empty((0, KEY_BYTES), np.uint8)]
    for i in range(picked):
        with splits[(2 * i + 1) * len(splits) // (2 * picked)]() as data:
            keys.append(records.sample_keys(data, -(-wanted // picked)))
            del data
    return bytes(records.choose_splits(np.concatenate(keys), ctx.reducers).tobytes())


def map_records(data: U8, ctx: Any) -> list[Block] | list[SealedBlock]:
    """Partition the split's records u8[n * 100] by the agreed split keys."""
    splits = np.frombuffer(ctx.side, np.uint8).reshape(-1, KEY_BYTES)
    if splits.shape[0] != ctx.reducers - 1:
        raise ValueError(f"the sample has {splits.shape[0]} split keys for {ctx.reducers} partitions")
    records = _scratch().records
    ids, counts = records.plan_partition(data, splits)
    ctx.records_in = ids.size
    if not ctx.store and ctx.digester.algorithm == "fast":
        return _sealed(data, ids, counts, ctx.digester.key)
    blocks: list[Block] = ctx.new_blocks(SCHEMA, [(n, [n * RECORD_BYTES]) for n in counts.tolist()])
    records.scatter(data, ids, [block.fixed(0) for block in blocks])
    return blocks


def _sealed(data: U8, ids: NDArray[np.uint16], counts: NDArray[np.int64], key: bytes) -> list[SealedBlock]:
    """The digests that the blocks would have, from fingerprints alone (Digester.block is the definition)."""
    starts = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts)))
    values = _scratch().fingerprint.fingerprint_scatter(data, ids, starts, key)
    columns = parse_schema(SCHEMA)
    sealed = []
    for p, n in enumerate(counts.tolist()):
        layout = Layout.plan(columns, n, [n * RECORD_BYTES])
        digest = blake3(layout.header())
        digest.update(as_u8(values[starts[p] : starts[p + 1]]).data)
        sealed.append(SealedBlock(digest.digest(), n, layout.total))
    return sealed


class _SortScratch(threading.local):
    """Memory that one worker keeps from reduce to reduce, so that its pages are first touched only once."""

    def __init__(self) -> None:
        from quoreduce_kernels import (
            fingerprint,
            records,
        )  # here: the driver, which only declares the job, has no use for them

        self.fingerprint = fingerprint
        self.records = records
        self.sorter = records.RunSorter()
        self.chunk = np.empty(CHUNK_RECORDS * RECORD_BYTES, np.uint8)
        self._values = (np.empty((0, 2), np.uint64), np.empty((0, 2), np.uint64))

    def values(self, n: int) -> tuple[U64, U64]:
        """Return two arrays u64[n, 2]."""
        if self._values[0].shape[0] < n:
            self._values = (np.empty((n, 2), np.uint64), np.empty((n, 2), np.uint64))
        return self._values[0][:n], self._values[1][:n]


_scratch = lru_cache(maxsize=1)(_SortScratch)


def reduce_blocks(blocks: Sequence[Block], ctx: Any) -> None:
    """Sort the records of all blocks, which come in map order, and write them."""
    runs = [block.fixed(0) for block in blocks]
    sorter = _scratch().sorter
    try:
        n = sorter.sort(runs)
        if ctx.takes_fingerprints:
            _write_fingerprints(runs, n, ctx)
        else:
            _write_records(n, ctx)
    finally:
        sorter.release()


def _write_records(n: int, ctx: Any) -> None:
    for low in range(0, n, CHUNK_RECORDS):
        high = min(low + CHUNK_RECORDS, n)
        chunk = _scratch().chunk[: (high - low) * RECORD_BYTES]
        ctx.write(_scratch().sorter.gather(low, high, chunk), high - low)


def _write_fingerprints(runs: Sequence[U8], n: int, ctx: Any) -> None:
    values, ordered = _scratch().values(n)
    start = 0
    for run in runs:
        end = start + run.shape[0]
        _scratch().fingerprint.fingerprints(run, RECORD_BYTES, ctx.digester.key, values[start:end])
        start = end
    ctx.write_fingerprints(_scratch().sorter.permute(values, ordered), n)


JOB = Job.of_blocks("sort", map=map_records, reduce=reduce_blocks, sample=sample, input=SCHEMA[0], output=SCHEMA[0])
