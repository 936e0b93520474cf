"""Answers questions about stored copies when a fault is diagnosed: digests, nodes of the tree inside BLAKE3, bytes,
records.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from quoreduce.data import locate, tree
from quoreduce.data.block import Block, Buffer
from quoreduce.data.digest import STRIDE_DEFAULT, Digester
from quoreduce.errors import BlockError
from quoreduce.protocol import wire

U8 = NDArray[np.uint8]
BYTES_MAX = 1 << 16


def inspect_copy(
    task: wire.InspectTask, read: Callable[[wire.StoredCopy], Buffer], digester: Digester, width: int
) -> wire.Inspected:
    """Answer a question about a copy. Raises FileNotFoundError if it is gone.

    ``read`` fetches a partition of a map's output. A part (any layout but ``block``) is a file, read at the size that
    it has now.
    """
    raw = _view(read(task.copy)) if task.layout == "block" else _file(task.copy.path)
    match task.what:
        case "digest":
            found = _digest(raw, task.layout, digester, width)
            return wire.Inspected(task.attempt, digest=found, bytes_in=raw.size)
        case "nodes":
            start = task.first * tree.CHUNK_BYTES
            values = tree.nodes(raw[start : start + task.count * tree.CHUNK_BYTES], task.first, task.level)
            data = tree.encode(values)
        case "bytes":
            data = raw[task.first : task.first + min(task.count, BYTES_MAX)].tobytes()
        case "spot":
            data = wire.encode(locate.find(raw, task.first, task.layout))
    return wire.Inspected(task.attempt, data, bytes_in=raw.size)


def _view(raw: Buffer) -> U8:
    return raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8)


def _file(path: str) -> U8:
    return np.memmap(path, np.uint8, "r") if os.path.getsize(path) else np.empty(0, np.uint8)


def _digest(raw: U8, layout: str, digester: Digester, width: int) -> bytes | None:
    """The digest as it is voted on; None if a block is needed and the bytes are malformed."""
    if layout != "block":
        return digester.of(raw, width or STRIDE_DEFAULT)
    if digester.algorithm == "blake3":
        return digester.of(raw)
    try:
        return digester.block(Block.open(raw))
    except BlockError:
        return None


def slip(attempt: int, wrong: Buffer, right: Buffer) -> wire.Slip:
    """Where the bytes that were fetched first differ from those that were fetched second, which are right."""
    found = tree.in_memory(wrong, right)
    if found is None:
        return wire.Slip(attempt, -1)
    there, here = (locate.find(_view(raw), found.offset, "block") for raw in (right, wrong))
    return wire.Slip(attempt, found.offset, found.bits, there, here)
