"""The common part of jobs over keys and values of any length: rows in, partitions between, sorted rows out.

map:    rows_of(data) -> rows, of which a job may take some
        -> partitioned(rows, ctx): R blocks (key: binary, value: binary), by hash of the key, in the order of the rows
reduce: sorted_rows(blocks) -> rows in the total order (key, map, record) -> write_rows(rows, ctx)

Rows stand for records where these lie (``quoreduce_kernels.pairs``): records are copied twice in all, to their
partition and to the output. A replica that stores nothing never makes its blocks: it digests them a chunk at a time.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.data.digest import SealedBlock
from quoreduce.data.seal import CHUNK_BYTES, seal

if TYPE_CHECKING:
    from quoreduce_kernels.pairs import Rows

U8 = NDArray[np.uint8]
U64 = NDArray[np.uint64]
SCHEMA = ("binary", "binary")
TEXT_BYTES = 1 << 20
BATCH_BYTES = 4 << 20


class _PairsScratch(threading.local):
    """Memory that one worker keeps from task to task, so that its pages are first touched only once."""

    def __init__(self) -> None:
        from quoreduce_kernels import pairs  # here: the driver, which only declares the job, has no use for kernels

        self.pairs = pairs
        self.chunk = np.empty(CHUNK_BYTES, np.uint8)
        self.text = np.empty(TEXT_BYTES, np.uint8)
        self.written = np.empty(0, np.uint8)  # by a command


scratch = lru_cache(maxsize=1)(_PairsScratch)


@dataclass(frozen=True, slots=True)
class SortedRows:
    """Records in order: ``rows``, the numbers u64[n] of those to be written, and how many distinct keys were sorted."""

    rows: Rows
    order: U64
    groups: int

    def take(self, positions: NDArray[np.int64]) -> SortedRows:
        """Return those at these positions of the order."""
        return SortedRows(self.rows, self.order[positions], self.groups)


def rows_of(data: U8 | Block) -> Rows:
    """Return a split's records as rows: lines (``key TAB value``), or the block that the format ``sequence`` gives."""
    kernels = scratch().pairs
    rows: Rows = (
        kernels.columns([(*data.binary(0), *data.binary(1))]) if isinstance(data, Block) else kernels.lines(data)
    )
    return rows


def partitioned(rows: Rows, ctx: Any) -> list[Block] | list[SealedBlock]:
    """Return what a map returns for these rows: one block for each partition, or its digest if ``ctx`` stores
    nothing.
    """
    kernels = scratch().pairs
    ids, totals = kernels.partition(rows, ctx.reducers)
    if not ctx.store:
        return _sealed(rows, ids, totals, ctx)
    blocks: list[Block] = ctx.new_blocks(SCHEMA, [(n, sizes) for n, *sizes in totals.tolist()])
    kernels.scatter(rows, ids, [(*block.binary(0), *block.binary(1)) for block in blocks])
    return blocks


def _sealed(rows: Rows, ids: NDArray[np.uint16], totals: NDArray[np.int64], ctx: Any) -> list[SealedBlock]:
    order = scratch().pairs.by_partition(ids, totals)
    sealed, low = [], 0
    for n, *sizes in totals.tolist():
        sealed.append(seal(ctx.digester, SCHEMA, n, sizes, _buffers(rows, order[low : low + n])))
        low += n
    return sealed


def _buffers(rows: Rows, order: U64) -> Iterator[Iterator[U8]]:
    """The buffers of the block of some rows, in chunks."""
    for column, name in ((1, "keys"), (3, "values")):
        offsets = np.zeros(order.size + 1, np.int64)
        np.cumsum(rows.table[order, column], out=offsets[1:])
        raw = offsets.view(np.uint8)
        yield (raw[i : i + CHUNK_BYTES] for i in range(0, raw.size, CHUNK_BYTES))
        yield scratch().pairs.column_chunks(rows, order, name, scratch().chunk)


def sorted_rows(blocks: Sequence[Block], ctx: Any) -> SortedRows:
    """Return the records of all blocks, which come in map order, sorted by (key, map, record); count the distinct
    keys.
    """
    kernels = scratch().pairs
    rows = kernels.columns([(*block.binary(0), *block.binary(1)) for block in blocks])
    order, groups = kernels.sort(rows)
    ctx.count("REDUCE_INPUT_GROUPS", groups)
    return SortedRows(rows, order, groups)


def write_rows(rows: SortedRows, ctx: Any, output: Literal["text", "sequence"] = "text") -> None:
    """Write records as lines ``key TAB value``, or as a SequenceFile of Text."""
    if output == "text":
        for text, records in scratch().pairs.text_chunks(rows.rows, rows.order, scratch().text):
            ctx.write(text, records)
        return
    from quoreduce.data.sequencewriter import SequenceWriter

    with SequenceWriter(lambda data: ctx.write(data, 0), ctx.seed) as writer:
        for columns in _batches(rows):
            writer.write_columns(*columns)
    ctx.write(b"", rows.order.size)


def _batches(rows: SortedRows) -> Iterator[tuple[Any, ...]]:
    """The rows as columns, some megabytes at a time."""
    kernels = scratch().pairs
    ends = np.cumsum(rows.rows.table[rows.order, 1] + rows.rows.table[rows.order, 3])
    low = 0
    while low < ends.size:
        before = ends[low - 1] if low else np.uint64(0)
        high = max(low + 1, int(np.searchsorted(ends, before + np.uint64(BATCH_BYTES))))
        order = rows.order[low:high]
        columns: list[Any] = []
        for column, name in ((1, "keys"), (3, "values")):
            offsets = np.zeros(order.size + 1, np.int64)
            np.cumsum(rows.rows.table[order, column], out=offsets[1:])
            data = np.empty(int(offsets[-1]), np.uint8)
            list(kernels.column_chunks(rows.rows, order, name, data))
            columns += [offsets, data]
        yield tuple(columns)
        low = high
