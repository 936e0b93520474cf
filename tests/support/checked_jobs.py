"""A job with a check, in plain numpy: how often each of 64 numbers occurs in a file of u64."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from quoreduce import Block, Check, Job, Sums

NUMBERS = 64
SCHEMA = ("u64", "u64")
U64 = NDArray[np.uint64]


def map_numbers(data: NDArray[np.uint8], ctx: Any) -> list[Block]:
    counts = np.bincount(data.view(np.int64), minlength=NUMBERS)
    numbers = [np.flatnonzero(counts[r :: ctx.reducers]) * ctx.reducers + r for r in range(ctx.reducers)]
    blocks: list[Block] = ctx.new_blocks(SCHEMA, [(len(one), [8 * len(one), 8 * len(one)]) for one in numbers])
    for block, one in zip(blocks, numbers, strict=True):
        block.numbers(0)[:], block.numbers(1)[:] = one, counts[one]
    ctx.records_in = data.size // 8
    return blocks


def reduce_numbers(blocks: Sequence[Block], ctx: Any) -> None:
    total = np.zeros(NUMBERS, np.int64)
    for block in blocks:
        np.add.at(total, block.numbers(0).astype(np.int64), block.numbers(1).astype(np.int64))
    lines = [b"%d\t%d\n" % (n, total[n]) for n in np.flatnonzero(total)]
    ctx.write(b"".join(lines), len(lines))


def weights(key: bytes) -> U64:
    """Of each number, two secret ones."""
    return np.frombuffer(blake3(b"weights", key=key).digest(16 * NUMBERS), np.uint64).reshape(NUMBERS, 2)


def weighed(numbers: Any, counts: Any, key: bytes) -> U64:
    numbers, counts = np.asarray(numbers, np.int64), np.asarray(counts, np.uint64)
    if numbers.size and (numbers.min() < 0 or numbers.max() >= NUMBERS):
        raise ValueError("no such number")
    if np.any(counts == 0) or np.any(counts >> np.uint64(32)) or np.any(np.diff(numbers) <= 0):
        raise ValueError("a count out of range, or numbers out of order")
    return (weights(key)[numbers] * counts[:, None]).sum(axis=0, dtype=np.uint64)


def sum_input(data: NDArray[np.uint8], ctx: Any) -> U64:
    ctx.records_in = data.size // 8
    numbers = data.view(np.uint64)
    if numbers.max(initial=0) >= NUMBERS:
        raise ValueError("no such number")
    return weights(ctx.key)[numbers.astype(np.int64)].sum(axis=0, dtype=np.uint64)


def sum_block(block: Block, r: int, ctx: Any) -> U64:
    if block.schema != SCHEMA or np.any(block.numbers(0) % np.uint64(ctx.reducers) != r):
        raise ValueError("a number of another partition")
    return weighed(block.numbers(0), block.numbers(1), ctx.key)


def sum_blocks(blocks: Sequence[Block], ctx: Any) -> U64:
    return sum((weighed(b.numbers(0), b.numbers(1), ctx.key) for b in blocks), np.zeros(2, np.uint64))


def sum_part(data: NDArray[np.uint8], ctx: Any) -> U64:
    rows = [line.split(b"\t") for line in bytes(data).splitlines(keepends=True)]
    ctx.records = len(rows)
    for number, count in rows:
        if not count.endswith(b"\n") or b"%d\t%d\n" % (int(number), int(count)) != number + b"\t" + count:
            raise ValueError("not in the only form")
    return weighed([int(number) for number, _ in rows], [int(count) for _, count in rows], ctx.key)


JOB = Job.of_blocks(
    "tally", map=map_numbers, reduce=reduce_numbers, input="fixed:8",
    check=Check(map=Sums(sum_input, sum_block), reduce=Sums(sum_blocks, sum_part)),
)  # fmt: skip
