"""Does to a worker's own outputs what the driver has asked for (:mod:`quoreduce.protocol.faults`)."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from quoreduce.data.block import Block
from quoreduce.protocol.wire import Fault

SLOW_TIMES = 20
SLOW_LEAST_S = 8.0


def delay_s(took_s: float) -> float:
    """How many seconds later an execution answers that is struck by ``slow`` and took so many."""
    return max(SLOW_LEAST_S, (SLOW_TIMES - 1) * took_s)


def spoil_blocks(fault: Fault, blocks: Sequence[Block]) -> None:
    """Strike the blocks of a map output in place: one bit (``flip``, ``swap``) or one value (``wrong``, ``stuck``)."""
    rng = random.Random(fault.seed)
    filled = [block for block in blocks if block.records] or list(blocks)
    block = filled[rng.randrange(len(filled))]
    if fault.kind in ("wrong", "stuck") and block.records:
        _change_value(block, rng)
    else:
        _flip_bit(block.buffer, rng)


def _change_value(block: Block, rng: random.Random) -> None:
    """Alter one value of the last column that has bytes: the block stays well formed."""
    for column in reversed(range(len(block.schema))):
        kind = block.schema[column]
        if kind in ("u64", "i64"):
            block.numbers(column)[rng.randrange(block.records)] += 1
            return
        data = block.binary(column)[1] if kind == "binary" else block.fixed(column) if kind != "f64" else None
        if data is not None and data.size:
            flat = data.reshape(-1)
            flat[rng.randrange(flat.size)] ^= 1
            return
    _flip_bit(block.buffer, rng)


def _flip_bit(buffer: np.ndarray, rng: random.Random) -> None:
    buffer[rng.randrange(buffer.size)] ^= 1 << rng.randrange(8)


def spoil_bytes(fault: Fault, data: bytearray, width: int = 0) -> bytearray:
    """Strike a chunk of a reduce's output: one bit, or for ``wrong`` the chunk without its first record."""
    rng = random.Random(fault.seed)
    if fault.kind == "wrong":
        cut = width or data.find(b"\n") + 1
        if 0 < cut <= len(data):
            return data[cut:]
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def spoil_file(fault: Fault, path: str) -> None:
    """Flip one bit of a file, or append a byte to an empty one: stored data that changed after its digest was taken."""
    rng = random.Random(fault.seed)
    with open(path, "r+b") as file:
        size = file.seek(0, 2)
        position = rng.randrange(size) if size else 0
        file.seek(position)
        byte = file.read(1) or b"\0"
        file.seek(position)
        file.write(bytes([byte[0] ^ (1 << rng.randrange(8))]))
