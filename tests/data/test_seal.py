"""Sealed digests against those of the blocks that are not made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester, SealedBlock
from quoreduce.data.seal import CHUNK_BYTES, seal

DIGESTERS = [Digester("blake3"), Digester("fast", b"0123456789abcdef"), Digester("checksum")]
SCHEMA = ("binary", "u64", "fixed:20", "binary")


def block_of(n: int, sizes: tuple[int, int], seed: int) -> Block:
    rng = np.random.default_rng(seed)
    block = Block.create(SCHEMA, n, [sizes[0], 8 * n, 20 * n, sizes[1]])
    for column, size in ((0, sizes[0]), (3, sizes[1])):
        offsets, data = block.binary(column)
        offsets[:] = np.sort(np.concatenate(([0], rng.integers(0, size + 1, max(n - 1, 0)), [size])))[: n + 1]
        offsets[0], offsets[-1] = 0, size
        data[:] = rng.integers(0, 256, size, np.uint8)
    block.numbers(1)[:] = rng.integers(0, 1 << 60, n)
    block.fixed(2)[:] = rng.integers(0, 256, (n, 20), np.uint8)
    return Block.open(block.buffer)


def buffers(block: Block) -> Iterator[Iterator[np.ndarray]]:
    for column in range(len(SCHEMA)):
        parts = (
            block.binary(column)
            if SCHEMA[column] == "binary"
            else [block.numbers(1) if column == 1 else block.fixed(2)]
        )
        for part in parts:
            raw = part.reshape(-1).view(np.uint8)
            yield (raw[i : i + CHUNK_BYTES] for i in range(0, raw.size, CHUNK_BYTES))


@given(st.sampled_from(DIGESTERS), st.integers(0, 40), st.integers(0, 3000), st.integers(0, 999))
def test_a_seal_is_the_digest_of_the_block(digester: Digester, n: int, size: int, seed: int) -> None:
    block = block_of(n, (size * bool(n), 2 * size * bool(n)), seed)
    sealed = seal(digester, SCHEMA, n, block.layout.data_bytes, buffers(block))
    assert sealed == SealedBlock(digester.block(block), n, block.buffer.size)


@pytest.mark.parametrize("digester", DIGESTERS, ids=lambda d: d.algorithm)
def test_a_seal_of_many_chunks(digester: Digester) -> None:
    block = block_of(60_000, (3 * CHUNK_BYTES, 2 * CHUNK_BYTES + 77), 1)
    sealed = seal(digester, SCHEMA, block.records, block.layout.data_bytes, buffers(block))
    assert sealed.digest == digester.block(block)


def test_buffers_of_another_size_are_refused() -> None:
    for digester in DIGESTERS:
        with pytest.raises(ValueError, match="buffer"):
            seal(digester, ("u64",), 2, [16], [[np.zeros(8, np.uint8)]])
        with pytest.raises(ValueError, match="cannot be sealed"):
            seal(digester, ("fixed:100",), 0, [0], [[]])
