r"""Streaming, as Hadoop has it: the mapper and the reducer are commands that read lines and write lines.

map:    the split's lines go to the mapper; what it writes are lines ``key TAB value``, partitioned by hash of the key
reduce: the partition's lines, sorted by (key, map, line), go to the reducer; what it writes is the output

The key of a line is what stands before its first tab; a line without a tab is a key with an empty value, and reaches
the reducer as ``key TAB``. Lines end with ``\n`` (``\r\n`` is read as that); a last line without it is given one. Every
replica runs the commands, and their output is voted on like that of any job: they must be deterministic, and find their
files and programs wherever they run. A command that fails, is killed, takes too long or writes too much fails the job,
once f+1 domains say so.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block
from quoreduce.data.digest import SealedBlock
from quoreduce.errors import UsageError
from quoreduce.job import Job
from quoreduce.jobs.command import Command, run_command
from quoreduce.jobs.pairs import partitioned, rows_of, scratch, sorted_rows
from quoreduce.limits import NUMBERS

if TYPE_CHECKING:
    from quoreduce_kernels.pairs import Rows

U8 = NDArray[np.uint8]
TIMEOUT_S = 300.0
OUTPUT_BYTES_MAX = 8 << 30
FEED_BYTES = 1 << 20
ROOM_BYTES = 1 << 20
EMIT_BYTES = 3 << 18
KEPT_BYTES_MAX = 256 << 20
LINE_FEED = 10


def stream_job(
    mapper: str, reducer: str, *, shell: bool = False, name: str = "stream", timeout_s: float = TIMEOUT_S,
    output_bytes_max: int = OUTPUT_BYTES_MAX, input: Literal["lines", "sequence"] = "lines",  # noqa: A002 - as in Job
    folder: str | None = None,
) -> Job:  # fmt: skip
    """Make a job of two commands.

    Args:
        mapper: command that reads the lines of a split.
        reducer: command that reads sorted lines ``key TAB value``.
        shell: run them with ``sh -c``; else they are split into words as a shell would, and run without one.
        name: of the job.
        timeout_s: seconds that a command may take over one task.
        output_bytes_max: bytes that a command may write for one task; a map's output is held in memory.
        input: ``lines``, or ``sequence``: the records of SequenceFiles as lines ``key TAB value``.
        folder: where the commands run; default: the current one, which must exist on every machine.

    Raises:
        UsageError: a command that is empty or has open quotes; bounds that are not above 0.
    """
    NUMBERS["timeout_s"].checked("timeout_s", timeout_s)
    NUMBERS["output_bytes_max"].checked("output_bytes_max", output_bytes_max)
    place = os.getcwd() if folder is None else folder
    bounds = (shell, place, timeout_s, output_bytes_max)
    streaming = Streaming(Command("mapper", mapper, *bounds), Command("reducer", reducer, *bounds))
    for command in (streaming.mapper, streaming.reducer):
        _check(command)
    return Job.of_blocks(name, map=streaming.map, reduce=streaming.reduce, input=input)


def deadline_s(timeout_s: float) -> float:
    """Return the deadline of a worker whose command may take ``timeout_s``: the command fails before its worker is
    killed.
    """
    return 1.5 * timeout_s + 30.0


def _check(command: Command) -> None:
    try:
        empty = not command.text.strip() or not command.words[0]
    except ValueError as error:
        raise UsageError(f"{command.role} {command.text!r}: {error}") from error
    if empty or "\0" in command.text:
        raise UsageError(f"the {command.role} is no command: {command.text!r}; cat passes lines on as they are")


@dataclass(frozen=True, slots=True)
class Streaming:
    """The map and reduce of a streaming job."""

    mapper: Command
    reducer: Command

    def map(self, data: U8 | Block, ctx: Any) -> list[Block] | list[SealedBlock]:
        """Run the mapper over a split, and partition what it wrote."""
        if isinstance(data, Block):
            rows = rows_of(data)
            ctx.records_in = len(rows)
            lines = _texts(rows, np.arange(len(rows), dtype=np.uint64))
        else:
            ctx.records_in = scratch().pairs.count_lines(data)
            lines = _lines(data)
        output = _Growing(data.nbytes + ROOM_BYTES)
        run_command(self.mapper, (chunk.data for chunk in lines), output)
        return partitioned(rows_of(output.text()), ctx)

    def reduce(self, blocks: list[Block], ctx: Any) -> None:
        """Run the reducer over the sorted lines of a partition."""
        rows = sorted_rows(blocks, ctx)
        output = _Passing(ctx)
        run_command(self.reducer, (chunk.data for chunk in _texts(rows.rows, rows.order)), output)
        output.finish()


def _lines(data: U8) -> Iterator[U8]:
    for start in range(0, data.size, FEED_BYTES):
        yield data[start : start + FEED_BYTES]
    if data.size and data[-1] != LINE_FEED:
        yield np.frombuffer(b"\n", np.uint8)


def _texts(rows: Rows, order: NDArray[np.uint64]) -> Iterator[U8]:
    return (text for text, _ in scratch().pairs.text_chunks(rows, order, scratch().text))


class _Growing:
    """Holds all that a command writes, in memory that serves from map to map."""

    def __init__(self, nbytes: int) -> None:
        kept = scratch().written
        self._buffer = kept if kept.size >= nbytes else np.empty(nbytes, np.uint8)
        self._size = 0

    def room(self) -> memoryview:
        if self._size == self._buffer.size:
            larger = np.empty(2 * self._buffer.size, np.uint8)
            larger[: self._size] = self._buffer
            self._buffer = larger
        return self._buffer.data[self._size :]

    def advance(self, nbytes: int) -> None:
        self._size += nbytes

    def text(self) -> U8:
        """All of it, until the next map."""
        if self._buffer.size <= KEPT_BYTES_MAX:
            scratch().written = self._buffer
        return self._buffer[: self._size]


class _Passing:
    """Passes on what a command writes to the output, in large pieces; counts lines."""

    def __init__(self, ctx: Any) -> None:
        self._ctx = ctx
        self._buffer = np.empty(ROOM_BYTES, np.uint8)
        self._size = 0
        self._last = LINE_FEED

    def room(self) -> memoryview:
        return self._buffer.data[self._size :]

    def advance(self, nbytes: int) -> None:
        self._size += nbytes
        if self._size >= EMIT_BYTES:
            self._emit()

    def finish(self) -> None:
        """Write what is left; give a last line the end that it lacks."""
        self._emit()
        if self._last != LINE_FEED:
            self._ctx.write(b"\n", 1)

    def _emit(self) -> None:
        if self._size:
            text = self._buffer[: self._size]
            self._ctx.write(text, scratch().pairs.count_byte(text, LINE_FEED))
            self._last = int(text[-1])
            self._size = 0
