"""From one block of a map's output to one block for each partition."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block

I64 = NDArray[np.int64]
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Context(Protocol):
    """The part of a map's context that is used here."""

    reducers: int

    def new_blocks(self, schema: Sequence[str], sizes: Sequence[tuple[int, Sequence[int]]]) -> list[Block]:
        """Make the blocks of all partitions."""


def spread(block: Block, partition: Callable[..., Any] | None, ctx: Context) -> list[Block]:
    """Distribute the records of ``block`` to ``ctx.reducers`` new blocks, in order; ``partition(block, ctx)`` gives
    i64[n].
    """
    ids = np.asarray(partition(block, ctx) if partition is not None else hash_partition(block, ctx.reducers), np.int64)
    if ids.shape != (block.records,) or (ids.size and (ids.min() < 0 or ids.max() >= ctx.reducers)):
        raise ValueError(f"partition must give {block.records} numbers in 0..{ctx.reducers - 1}")
    order = np.argsort(ids, kind="stable")
    ends = np.cumsum(np.bincount(ids, minlength=ctx.reducers))
    rows = np.split(order, ends[:-1])
    blocks = ctx.new_blocks(
        block.schema, [(r.size, [_data_bytes(block, c, r) for c in range(len(block.schema))]) for r in rows]
    )
    for target, picked in zip(blocks, rows, strict=True):
        for column in range(len(block.schema)):
            _copy_rows(block, target, column, picked)
    return blocks


def place(blocks: Sequence[Block], ctx: Context) -> list[Block]:
    """Copy finished blocks to where readers find them."""
    if len({block.schema for block in blocks}) != 1:
        raise ValueError("all partitions of a map have the same schema")
    placed = ctx.new_blocks(blocks[0].schema, [(b.records, b.layout.data_bytes) for b in blocks])
    for source, target in zip(blocks, placed, strict=True):
        target.buffer[:] = source.buffer
    return placed


def hash_partition(block: Block, reducers: int) -> I64:
    """Partition by a hash of the first column (a fixed multiply-and-fold over its bytes; the same on every machine)."""
    kind = block.schema[0]
    if kind == "binary":
        offsets, data = block.binary(0)
        mixed = _hash_binary(offsets, data)
    elif kind.startswith("fixed"):
        mixed = _hash_rows(block.fixed(0))
    else:
        mixed = block.numbers(0).view("<u8") * _MULTIPLIER
    mixed = (mixed ^ (mixed >> np.uint64(29))) * _MULTIPLIER
    return ((mixed >> np.uint64(32)) % np.uint64(reducers)).astype(np.int64)


def _hash_rows(rows: NDArray[np.uint8]) -> NDArray[np.uint64]:
    mixed = np.zeros(rows.shape[0], np.uint64)
    for column in range(rows.shape[1]):
        mixed = (mixed ^ rows[:, column]) * _MULTIPLIER
    return mixed


def _hash_binary(offsets: I64, data: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Hash values of differing lengths: byte k of all values that have one, for k = 0, 1, ..., then the lengths."""
    lengths = np.diff(offsets)
    mixed = lengths.astype(np.uint64) * _MULTIPLIER
    rows = np.arange(lengths.size)
    for k in range(int(lengths.max(initial=0))):
        rows = rows[lengths[rows] > k]
        mixed[rows] = (mixed[rows] ^ data[offsets[rows] + k]) * _MULTIPLIER
    return mixed


def _data_bytes(block: Block, column: int, rows: I64) -> int:
    if block.schema[column] != "binary":
        return int(rows.size) * block.layout.schema[column].width
    offsets, _ = block.binary(column)
    return int((offsets[rows + 1] - offsets[rows]).sum())


def _copy_rows(source: Block, target: Block, column: int, rows: I64) -> None:
    kind = source.schema[column]
    if kind == "binary":
        offsets, data = source.binary(column)
        new_offsets, new_data = target.binary(column)
        lengths = offsets[rows + 1] - offsets[rows]
        new_offsets[0] = 0
        np.cumsum(lengths, out=new_offsets[1:])
        positions = np.arange(new_data.size) + np.repeat(offsets[rows] - new_offsets[:-1], lengths)
        new_data[:] = data[positions]
    elif kind.startswith("fixed"):
        target.fixed(column)[:] = source.fixed(column)[rows]
    else:
        target.numbers(column)[:] = source.numbers(column)[rows]
