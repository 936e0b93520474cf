"""Sums up the input and the stored output of a task, for the driver to compare (R13). It is not told what to find."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from msgspec import structs
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.data.digest import Digester
from quoreduce.data.formats import RecordFormat
from quoreduce.data.inputs import open_records
from quoreduce.errors import BlockError, HostError, host_errors
from quoreduce.job import Sums
from quoreduce.protocol import wire
from quoreduce.worker.reading import Inputs, Reader, Refused

if TYPE_CHECKING:
    from pathlib import Path

PADDING_BYTES = 64
SUMS_MAX = wire.SUMS_BYTES_MAX // 8
U8 = NDArray[np.uint8]


@dataclass(slots=True)
class CheckContext:
    """Given to the functions of a check (:class:`quoreduce.job.Sums`).

    Attributes:
        index: of the task.
        reducers, side: as for a map.
        key: 32 bytes, drawn after the output was made.
        padding: bytes that can be read after the end of a part.
        records_in: records of the input, as the map says them; set by ``of_input``.
        records: records of a part; set by ``of_output``.
    """

    index: int
    reducers: int
    side: bytes
    key: bytes
    padding: int = PADDING_BYTES
    records_in: int = 0
    records: int = 0


class Checker:
    """Executes the checks of one job. ``read`` and ``digester`` are the worker's."""

    def __init__(self, reader: Reader, digester: Digester, stride: int, records: RecordFormat, folder: Path) -> None:
        self._reader = reader
        self._digester = digester
        self._stride = stride
        self._format = records
        self._folder = folder

    def map(self, task: wire.CheckTask, sums: Sums, ctx: CheckContext) -> wire.Summed:
        """Sum up a split, and the blocks that a map made of it."""
        assert task.split is not None
        parts, blocks = [], [self._block(stored) for stored in task.stored]
        for block in blocks:
            parts.append(wire.PartReply(self._digester.block(block), block.records, block.buffer.size, 0))
        found = _found(lambda: [sums.of_output(block, r, ctx) for r, block in enumerate(blocks)])
        with open_records(task.split, self._format, self._folder) as data:
            bytes_in = int(data.nbytes)
            given = as_sums(sums.of_input(_rotten(task.fault, data), ctx))
            del data
        shipped = sum(one.nbytes for one in task.stored if one.worker != self._reader.name)
        return _summed(task, parts, given, found, ctx.records_in, bytes_in, shipped)

    def reduce(self, task: wire.CheckTask, sums: Sums, ctx: CheckContext) -> wire.Summed:
        """Sum up the blocks of a partition, and the part that a reduce made of them."""
        (stored,) = task.stored
        inputs = Inputs(self._reader, watch=False, tampered=_is(task.fault, "rot"))
        blocks = inputs.all(task.sources)
        data = self._part(stored)
        found = _found(lambda: [sums.of_output(data, ctx)])
        stream = self._digester.stream(self._stride)
        stream.update(data.data)
        part = wire.PartReply(stream.digest(), ctx.records, data.size, 0)
        given = as_sums(sums.of_input(blocks, ctx))
        done = _summed(task, [part], given, found, 0, inputs.nbytes, inputs.shipped)
        return structs.replace(done, refetched=inputs.refetched)

    def _block(self, stored: wire.StoredCopy) -> Block:
        try:
            return Block.open(self._reader.read(stored))
        except (BlockError, OSError) as error:
            raise Refused([stored.attempt], str(error)) from error

    def _part(self, stored: wire.StoredCopy) -> U8:
        """A part as it is on disk, in private memory."""
        try:
            with open(stored.path, "rb", buffering=0) as file, host_errors("cannot read a part"):
                size = os.fstat(file.fileno()).st_size
                buffer = np.zeros(size + PADDING_BYTES, np.uint8)
                done = 0
                while done < size:
                    count = file.readinto(buffer.data[done:size])
                    if not count:
                        raise HostError(f"{stored.path} became shorter while it was read")
                    done += count
        except FileNotFoundError as error:
            raise Refused([stored.attempt], f"{error.strerror}: {stored.path}") from error
        return buffer[:size]


def as_sums(value: Any) -> NDArray[np.uint64]:
    """What a function of a check returned, as an array u64[n], 1 to SUMS_MAX numbers. Raises ValueError."""
    sums = np.asarray(value, np.uint64).ravel()
    if not 1 <= sums.size <= SUMS_MAX:
        raise ValueError(f"a check returned {sums.size} sums; 1 to {SUMS_MAX} are compared")
    return sums


def _found(of_output: Callable[[], list[Any]]) -> NDArray[np.uint64]:
    """The sums of an output, u64[n]; none of one that is out of form."""
    try:
        total: NDArray[np.uint64] = np.stack([as_sums(one) for one in of_output()]).sum(axis=0, dtype=np.uint64)
        return total
    except ValueError:
        return np.zeros(0, np.uint64)


def _is(fault: wire.Fault | None, kind: str) -> bool:
    return fault is not None and fault.kind == kind


def _rotten(fault: wire.Fault | None, data: Any) -> Any:
    """The input, with one bit flipped if that is the fault."""
    if not _is(fault, "rot") or isinstance(data, Block) or not data.size:
        return data
    assert fault is not None
    copy = np.array(data)
    copy[fault.seed % copy.size] ^= np.uint8(1 << (fault.seed % 7))
    return copy


def _summed(
    task: wire.CheckTask, parts: Sequence[wire.PartReply], given: NDArray[np.uint64], found: NDArray[np.uint64],
    records_in: int, bytes_in: int, shipped: int,
) -> wire.Summed:  # fmt: skip
    if _is(task.fault, "reject"):
        found = given + np.uint64(1)
    if _is(task.fault, "approve"):
        found = given
    return wire.Summed(
        task.attempt, tuple(parts), given.tobytes(), found.tobytes(), records_in, bytes_in, shipped
    )  # fmt: skip
