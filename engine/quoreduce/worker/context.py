"""What a job's map and reduce get from the engine: where to put blocks, where to write output, the agreed side data."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.block import Block, Buffer, parse_schema
from quoreduce.data.block import Layout as BlockLayout
from quoreduce.data.digest import Digester, DigestStream
from quoreduce.errors import host_errors
from quoreduce.protocol.wire import COUNTER_CHARS_MAX, COUNTERS_MAX

U8 = NDArray[np.uint8]
Size = tuple[int, Sequence[int]]
CHUNK_BYTES = 1 << 20


class Counting:
    """What a task counts, by name: figures for the user, which are not voted on."""

    def __init__(self) -> None:
        self.counters: dict[str, int] = {}

    def count(self, name: str, n: int = 1) -> None:
        """Add ``n`` >= 0 to a counter; a job has at most 64 of them, with names of up to 64 characters."""
        if n < 0 or not 1 <= len(name) <= COUNTER_CHARS_MAX:
            raise ValueError(
                f"a counter has a name of 1 to {COUNTER_CHARS_MAX} characters and only goes up, not {name!r}: {n}"
            )
        if name not in self.counters and len(self.counters) >= COUNTERS_MAX:
            raise ValueError(f"a job has at most {COUNTERS_MAX} counters; there is no place for {name!r}")
        self.counters[name] = self.counters.get(name, 0) + int(n)


class MapContext(Counting):
    """Given to a map.

    Attributes:
        index: number of the map task, of ``maps`` in all.
        reducers: number of partitions to make.
        side: the agreed sample, or b"".
        seed: the same for every replica of this task: seed any randomness with it.
        store: False if this replica only computes digests; a job may then return :class:`Sealed` instead of blocks.
        digester: what digests blocks here.
    """

    def __init__(
        self, index: int, reducers: int, side: bytes, seed: int, store: bool, digester: Digester,
        allocate: Callable[[int], U8], maps: int = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.index = index
        self.reducers = reducers
        self.side = side
        self.seed = seed
        self.store = store
        self.digester = digester
        self.maps = maps
        self._allocate = allocate
        self.placed: list[Block] | None = None
        self.offsets: list[int] = []

    def new_blocks(self, schema: Sequence[str], sizes: Sequence[Size]) -> list[Block]:
        """Make one block for each partition where readers will find it, to be filled by the job. Call it once.

        ``schema``: column types (:mod:`quoreduce.data.block`); ``sizes[r]`` = (records, data bytes of each column).
        """
        if self.placed is not None or len(sizes) != self.reducers:
            raise ValueError(f"new_blocks is called once, with sizes for {self.reducers} partitions")
        columns = parse_schema(schema)
        layouts = [BlockLayout.plan(columns, records, data) for records, data in sizes]
        ends = np.cumsum([0] + [-(-layout.total // 64) * 64 for layout in layouts])
        memory = self._allocate(int(ends[-1]))
        self.offsets = [int(end) for end in ends[:-1]]
        self.placed = [
            Block.create(schema, records, data, _slice(memory, start))
            for (records, data), start in zip(sizes, self.offsets, strict=True)
        ]
        return self.placed


def _slice(memory: U8, start: int) -> Callable[[int], U8]:
    return lambda nbytes: memory[start : start + nbytes]


class ReduceContext(Counting):
    """Given to a reduce.

    Attributes:
        index: the partition.
        reducers, side, seed, digester: as for a map.
        store: False if this replica only computes the digest of its output.
    """

    def __init__(
        self, index: int, reducers: int, side: bytes, seed: int, digester: Digester, stride: int,
        files: Sequence[int], spoil: Callable[[bytearray], bytearray] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.index = index
        self.reducers = reducers
        self.side = side
        self.seed = seed
        self.digester = digester
        self.store = bool(files)
        self.records = 0
        self.nbytes = 0
        self._files = files
        self._stride = stride
        self._stream: DigestStream = digester.stream(stride)
        self._pending = bytearray()
        self._spoil = spoil

    def write(self, data: Buffer, records: int) -> None:
        """Append ``data`` (bytes or a u8 array that holds ``records`` records) to the output and to its digest."""
        view = memoryview(data).cast("B") if not isinstance(data, np.ndarray) else data.data
        self.records += records
        self.nbytes += len(view)
        if self._spoil is None and not self._pending and len(view) >= CHUNK_BYTES // 2:
            self._emit(view)
            return
        self._pending += view
        if len(self._pending) >= CHUNK_BYTES:
            self._flush()

    def write_fingerprints(self, values: NDArray[np.uint64], records: int) -> None:
        """For a digest-only replica under ``fast``: append records of fixed width by their u64[n, 2] fingerprints."""
        if self.store or self._spoil is not None or not hasattr(self._stream, "update_pieces"):
            raise ValueError("fingerprints replace records only in a digest-only replica with the fast digest")
        self._flush()
        self.records += records
        self.nbytes += records * self._stride
        self._stream.update_pieces(values)

    @property
    def takes_fingerprints(self) -> bool:
        """Whether :meth:`write_fingerprints` may be used here."""
        return not self.store and self._spoil is None and self.digester.algorithm == "fast"

    def finish(self) -> bytes:
        """Flush, and return the digest of the output."""
        if self._spoil is not None and not self._pending:
            self._pending = bytearray(b"\0")
        self._flush()
        return self._stream.digest()

    def _flush(self) -> None:
        if self._pending:
            if self._spoil is not None:
                self._pending = self._spoil(self._pending)
                self._spoil = None
            self._emit(memoryview(self._pending))
            self._pending = bytearray()

    def _emit(self, view: memoryview) -> None:
        self._stream.update(view)
        for fd in self._files:
            with host_errors("cannot write a part"):
                _write(fd, view)


def _write(fd: int, view: memoryview) -> None:
    """Write all of ``view``, or raise an OSError that names the file."""
    done = 0
    try:
        while done < len(view):
            done += os.write(fd, view[done:])
    except OSError as error:
        with suppress(OSError):
            error.filename = os.readlink(f"/proc/self/fd/{fd}")
        raise
