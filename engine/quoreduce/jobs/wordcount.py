"""The job ``wordcount``: how often each word of a text occurs, as ``word<TAB>count`` lines.

map:    count the split's words in one pass, with the combiner built in -> R blocks (word: binary, count: u64), by hash
reduce: add up the counts of each word over all blocks -> lines, words in the order of their bytes

Words are what is between the separators of Java's StringTokenizer (space, tab, line feed, carriage return, form feed):
bytes, not characters. A block holds its words in the order (hash, word), which depends on nothing but the words.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.job import Check, Job, Sums

SCHEMA = ("binary", "u64")


class _WordsScratch(threading.local):
    """Tables that one worker keeps from map to map, so that their pages are first touched only once."""

    def __init__(self) -> None:
        from quoreduce_kernels import words  # here: the driver, which only declares the job, has no use for kernels

        self.words = words
        self.counter = words.WordCounter()


_scratch = lru_cache(maxsize=1)(_WordsScratch)


def map_words(data: NDArray[np.uint8], ctx: Any) -> list[Block]:
    """Count the words of a split u8[bytes], which begins and ends between words."""
    counter = _scratch().counter
    counter.count(data)
    entries, nbytes = counter.partition_sizes(ctx.reducers)
    sizes = [(n, [size, 8 * n]) for n, size in zip(entries.tolist(), nbytes.tolist(), strict=True)]
    blocks: list[Block] = ctx.new_blocks(SCHEMA, sizes)
    ctx.records_in = 0
    for r, block in enumerate(blocks):
        counts = block.numbers(1)
        counter.fill(r, *block.binary(0), counts)
        ctx.records_in += int(counts.sum())
    ctx.count("MAP_OUTPUT_RECORDS", ctx.records_in)
    ctx.count("COMBINE_INPUT_RECORDS", ctx.records_in)
    ctx.count("COMBINE_OUTPUT_RECORDS", int(entries.sum()))
    return blocks


def reduce_counts(blocks: Sequence[Block], ctx: Any) -> None:
    """Add up the counts of the blocks of one partition, and write them as text."""
    words = _scratch().words
    merged = words.merge_counts([(*block.binary(0), block.numbers(1)) for block in blocks])
    ctx.count("REDUCE_INPUT_GROUPS", len(merged[2]))
    ctx.write(words.format_counts(*merged), len(merged[2]))


@lru_cache(maxsize=1)
def _keys(key: bytes) -> NDArray[np.uint64]:
    from quoreduce_kernels import prf

    return prf.expand(key)


def sum_words(data: NDArray[np.uint8], ctx: Any) -> NDArray[np.uint64]:
    """What the words of a split add up to, and how many they are (R13)."""
    from quoreduce_kernels import word_sums

    sums = word_sums.sum_text(data, _keys(ctx.key))
    ctx.records_in = int(sums[2])
    return sums


def sum_block(block: Block, r: int, ctx: Any) -> NDArray[np.uint64]:
    """What the counted words of partition ``r`` add up to. Raises ValueError if they are out of form."""
    from quoreduce_kernels import word_sums

    if block.schema != SCHEMA:
        raise ValueError(f"a block of word count has the columns {SCHEMA}, not {block.schema}")
    return word_sums.sum_counts(*block.binary(0), block.numbers(1), _keys(ctx.key), (r, ctx.reducers))


def sum_blocks(blocks: Sequence[Block], ctx: Any) -> NDArray[np.uint64]:
    """What the counted words of all blocks of a partition add up to."""
    from quoreduce_kernels import word_sums

    total = np.zeros(3, np.uint64)
    for block in blocks:
        total += word_sums.sum_counts(*block.binary(0), block.numbers(1), _keys(ctx.key))
    return total


def sum_part(data: NDArray[np.uint8], ctx: Any) -> NDArray[np.uint64]:
    """What the lines of a part add up to. Raises ValueError if they are out of form."""
    from quoreduce_kernels import word_sums

    sums, ctx.records = word_sums.sum_lines(data, _keys(ctx.key), (ctx.index, ctx.reducers))
    return sums


JOB = Job.of_blocks(
    "wordcount", map=map_words, reduce=reduce_counts, input="words",
    check=Check(map=Sums(sum_words, sum_block), reduce=Sums(sum_blocks, sum_part)),
)  # fmt: skip
