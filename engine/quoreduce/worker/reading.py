"""What a task reads of stored outputs: checked against its digest, over the very bytes that are used (R6)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from quoreduce.data.block import Block, Buffer
from quoreduce.data.digest import Digester
from quoreduce.errors import BlockError, one_line
from quoreduce.protocol import wire
from quoreduce.worker.inspector import slip

FETCH_TRIES = 2
CHECKSUM = Digester("checksum")


class Refused(Exception):
    """The copies of these attempts cannot be used. ``why``: the reason for the last of them."""

    def __init__(self, bad: Sequence[int], why: str) -> None:
        super().__init__(bad)
        self.bad = tuple(bad)
        self.why = why


class Reader(Protocol):
    """Reads stored outputs, from its node or another; a worker does."""

    name: str
    node: str

    def read(self, stored: wire.StoredCopy) -> Buffer:
        """The bytes of a stored partition."""

    def digest(self, block: Block) -> bytes:
        """The digest of a block by the job's algorithm."""


class Inputs:
    """The partitions that a reduce reads. Digests are recomputed over the very bytes that will be used (R6)."""

    def __init__(self, reader: Reader, watch: bool, tampered: bool) -> None:
        self._reader = reader
        self._watch = watch
        self._tampered = tampered
        self._shared: list[tuple[Block, bytes, int]] = []
        self.bad: list[int] = []
        self.missing = False
        self.why = ""
        self.refetched = 0
        self.slips: list[wire.Slip] = []
        self.nbytes = 0
        self.shipped = 0

    def read(self, copies: Sequence[wire.StoredCopy]) -> Block | None:
        """Check all copies and return the first that is right; None if there is none."""
        good: Block | None = None
        for stored in copies:
            block = self._checked(stored)
            if block is None:
                self.bad.append(stored.attempt)
            elif good is None:
                good = block
        if good is None:
            self.missing = True
        return good

    def all(self, sources: Sequence[Sequence[wire.StoredCopy]]) -> list[Block]:
        """Read one copy of each map's output. Raises Refused if there is none of one."""
        blocks = [self.read(copies) for copies in sources]
        if self.missing:
            raise Refused(self.bad, self.why)
        return [block for block in blocks if block is not None]

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """At the end, refuse if a watched copy on this node has changed since it was checked (R6).

        Replicas on a node read the same memory. A bit that flips there after all of them have checked it gives all of
        them the same wrong bytes, and they would agree. Checksums find it, because it is an accident; they are taken
        before the digest.
        """
        try:
            yield
        finally:
            changed = [attempt for block, mark, attempt in self._shared if CHECKSUM.block(block) != mark]
            if changed:
                raise Refused([*self.bad, *changed], "it changed while it was read")

    def _checked(self, stored: wire.StoredCopy) -> Block | None:
        first: Buffer | None = None
        for attempt in range(FETCH_TRIES):
            try:
                raw = self._spoiled(self._reader.read(stored))
                self.nbytes += stored.nbytes
                self.shipped += stored.nbytes if stored.worker != self._reader.name else 0
                block = Block.open(raw)
                shared = self._watch and stored.node in ("", self._reader.node)
                mark = (
                    CHECKSUM.block(block) if shared else b""
                )  # before the digest: nothing flips unseen between the two
                if self._reader.digest(block) == stored.digest:
                    self.refetched += attempt
                    if shared:
                        self._shared.append((block, mark, stored.attempt))
                    if first is not None and len(self.slips) < wire.SLIPS_MAX:
                        self.slips.append(slip(stored.attempt, first, raw))
                    return block
                first, self.why = raw, "its digest is not the one that was agreed on"
            except BlockError as error:
                first, self.why = raw, one_line(error)
            except OSError as error:
                self.why = one_line(f"{error.strerror or error}: {stored.path}")
        return None

    def _spoiled(self, raw: Buffer) -> Buffer:
        if not self._tampered:
            return raw
        self._tampered = False
        copy = bytearray(raw)
        copy[len(copy) // 2] ^= 1
        return copy
