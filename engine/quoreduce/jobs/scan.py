"""The job ``scan``: the records, or lines, that begin with given bytes, in the order of the input (Hadoop's grep with
``^``).

map:    find the records of the split that begin with the prefix, and copy them to one block, in order
reduce: write the blocks, in the order of their maps

Of M maps, map m feeds the partition m * R // M alone, so that part r holds what was found in a stretch of the input,
and the parts in order hold everything in order, for any R. Records are of 100 bytes, as for ``sort``, or lines:
these keep their ends (``\\r`` too), and a last line without a line feed is given one, as ``grep`` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.errors import UsageError
from quoreduce.job import Job
from quoreduce.jobs.sort import RECORD_BYTES

U8 = NDArray[np.uint8]
PREFIX_BYTES_MAX = 64
PART_BYTES = 256_000_000  # of input, of which little is kept: 4 parts for 1 GB, not 16, each of which costs CPU time
CHUNK_BYTES = 1_000_000  # hashed and written while it is in cache


def scan_job(prefix: bytes, *, input: Literal["records", "lines"] = "records") -> Job:  # noqa: A002 - as in Job
    """Make a job that keeps the records that begin with ``prefix``.

    Args:
        prefix: 1 to 64 bytes.
        input: ``records``, of 100 bytes each, or ``lines``.

    Raises:
        UsageError: a prefix of another length, or one with a line feed for lines; another input.
    """
    if not isinstance(prefix, bytes):
        raise UsageError(f"a prefix is bytes, not {type(prefix).__name__}")
    if not 1 <= len(prefix) <= PREFIX_BYTES_MAX:
        raise UsageError(f"what records start with has 1 to {PREFIX_BYTES_MAX} bytes, not {len(prefix)}")
    if input == "records":
        records = f"fixed:{RECORD_BYTES}"
        scan = RecordScan(prefix)
        return Job.of_blocks(
            "scan", map=scan.map, reduce=write_records, input=records, output=records, part_bytes=PART_BYTES
        )
    if input != "lines":
        raise UsageError(f"a scan's input is 'records' or 'lines', not {input!r}")
    if b"\n" in prefix:
        raise UsageError("a line holds no line feed, so it cannot start with one")
    return Job.of_blocks("scan", map=LineScan(prefix).map, reduce=write_lines, input="lines", part_bytes=PART_BYTES)


def _kernels() -> ModuleType:
    """Loaded by the worker that uses them: the driver, which only declares the job, has no use for kernels."""
    from quoreduce_kernels import prefix

    return prefix


@dataclass(frozen=True, slots=True)
class RecordScan:
    """The map over records of 100 bytes."""

    prefix: bytes

    def map(self, data: U8, ctx: Any) -> list[Block]:
        """Keep the records of u8[n * 100] that begin with the prefix."""
        kernels = _kernels()
        picks = kernels.select_records(data, self.prefix)
        ctx.records_in = data.size // RECORD_BYTES
        blocks, block = _new_blocks(f"fixed:{RECORD_BYTES}", picks.size, picks.size * RECORD_BYTES, ctx)
        kernels.copy_records(data, picks, block.fixed(0))
        return blocks


@dataclass(frozen=True, slots=True)
class LineScan:
    """The map over lines."""

    prefix: bytes

    def map(self, data: U8, ctx: Any) -> list[Block]:
        """Keep the lines of u8[bytes] that begin with the prefix."""
        kernels = _kernels()
        rows, ctx.records_in = kernels.select_lines(data, self.prefix)
        blocks, block = _new_blocks("binary", rows.shape[0], int(rows[:, 1].sum()), ctx)
        for each in blocks:
            each.binary(0)[0][0] = 0  # all that there is of the empty ones
        kernels.copy_lines(rows, *block.binary(0))
        return blocks


def _new_blocks(column: str, records: int, nbytes: int, ctx: Any) -> tuple[list[Block], Block]:
    """Make a block for each partition; return them, and the only one that is not empty."""
    mine = ctx.index * ctx.reducers // ctx.maps
    blocks = ctx.new_blocks((column,), [(records, [nbytes]) if r == mine else (0, [0]) for r in range(ctx.reducers)])
    return blocks, blocks[mine]


def write_records(blocks: Sequence[Block], ctx: Any) -> None:
    """Write the records of all blocks, which come in map order."""
    for block in blocks:
        _write(block.fixed(0).reshape(-1), block.records, ctx)


def write_lines(blocks: Sequence[Block], ctx: Any) -> None:
    """Write the lines of all blocks, which come in map order."""
    for block in blocks:
        _write(block.binary(0)[1], block.records, ctx)


def _write(data: U8, records: int, ctx: Any) -> None:
    for start in range(0, data.size, CHUNK_BYTES):
        ctx.write(data[start : start + CHUNK_BYTES], records if start == 0 else 0)
