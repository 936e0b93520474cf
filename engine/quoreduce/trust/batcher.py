"""Batches of measurements: one extend and one quote of the µTPM for many leaves. Pure: time comes in as an argument.

**The commit rule.** A leaf counts (a task's vote is counted) only when the batch that holds it is extended *and* quoted
and the quote was checked. Until then the leaf is not measured at all, and the batcher could still leave it
out.

Three ways to bind the leaves of a batch:

``none``       a batch is one leaf; its root is the leaf's hash.
``aggregate``  the root is one hash over all leaves; a check of one leaf needs all of them.
``merkle``     the root of a tree; each leaf has an inclusion proof of its own.

SHA-256 of the batch event is extended, not the root alone, so that number and count are measured, too::

    b"quoreduce batch event 1" || number u64 || mode u8 (0 none, 1 aggregate, 2 merkle) || leaves u64 || root 32 bytes

Integers are big-endian. Numbers count the batches of one µTPM from 0: none can be left out, repeated or moved.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from typing import Final, Literal, get_args

from quoreduce.errors import UsageError
from quoreduce.trust import merkle

Mode = Literal["none", "aggregate", "merkle"]
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
BATCH_PCR: Final = 16
LEAVES_MAX: Final = 1 << 20
_EVENT: Final = struct.Struct(">23sQBQ32s")


@dataclass(frozen=True)
class Batch:
    """Leaves that are measured together, in order."""

    number: int
    mode: Mode
    leaves: tuple[bytes, ...]

    @cached_property
    def tree(self) -> merkle.Tree:
        """The tree over the leaves: its root is the batch's in mode ``merkle``, and it has the inclusion proofs."""
        return merkle.Tree(self.leaves)

    @cached_property
    def root(self) -> bytes:
        """The root over all leaves, 32 bytes; raises as :func:`batch_root`."""
        return self.tree.root if self.mode == "merkle" else batch_root(self.mode, self.leaves)

    @property
    def digest(self) -> bytes:
        """What is extended into µPCR 16, 32 bytes."""
        return sha256(batch_event(self.number, self.mode, len(self.leaves), self.root)).digest()


def batch_root(mode: Mode, leaves: Sequence[bytes]) -> bytes:
    """Return the root of a batch. Raises ValueError for no leaves, or more than one in mode ``none``."""
    if mode == "none" and len(leaves) != 1:
        raise ValueError(f"without batching a batch is one leaf, not {len(leaves)}")
    if not leaves:
        raise ValueError("a batch has at least one leaf")
    return merkle.aggregate(leaves) if mode == "aggregate" else merkle.root(leaves)


def batch_event(number: int, mode: Mode, count: int, root: bytes) -> bytes:
    """Return the event that stands for a batch: the layout is given above."""
    return _EVENT.pack(b"quoreduce batch event 1", number, MODES.index(mode), count, root)


class Batcher:
    """Collects leaves until there are ``size`` of them or the first has waited for ``age_ms``.

    The caller adds leaves, closes the batch when it is due, and starts a timer for :attr:`deadline_ms` if it is not.
    """

    def __init__(self, mode: Mode = "merkle", size: int = 64, age_ms: int = 100) -> None:
        """Start with no leaf and batch number 0.

        Raises:
            UsageError: unknown mode, a size that is not 1..LEAVES_MAX, a negative age.
        """
        if mode not in MODES:
            raise UsageError(f"unknown batch mode {mode!r}: use one of {', '.join(MODES)}")
        if not 1 <= size <= LEAVES_MAX:
            raise UsageError(f"a batch has 1 to {LEAVES_MAX} leaves, not {size}")
        if age_ms < 0:
            raise UsageError(f"a batch cannot wait for {age_ms} ms")
        self.mode, self.size, self.age_ms = mode, 1 if mode == "none" else size, age_ms
        self._number = 0
        self._leaves: list[bytes] = []
        self._first_ms = 0

    @property
    def deadline_ms(self) -> int | None:
        """When the batch is due at the latest, on the caller's clock; None while it is empty."""
        return self._first_ms + self.age_ms if self._leaves else None

    def add(self, leaf: bytes, now_ms: int) -> bool:
        """Take a leaf; return whether the batch is due. Raises ValueError for a full batch."""
        if len(self._leaves) >= self.size:
            raise ValueError(f"the batch is full ({self.size}): close it first")
        if not self._leaves:
            self._first_ms = now_ms
        self._leaves.append(leaf)
        return self.due(now_ms)

    def due(self, now_ms: int) -> bool:
        """Return whether the batch is to be closed now: full, or old enough."""
        return len(self._leaves) >= self.size or (bool(self._leaves) and now_ms - self._first_ms >= self.age_ms)

    def close(self) -> Batch | None:
        """Return the batch, due or not, and begin the next one; None if there is no leaf.

        Its leaves count once it is extended, quoted and checked (the commit rule).
        """
        if not self._leaves:
            return None
        batch = Batch(self._number, self.mode, tuple(self._leaves))
        self._number += 1
        self._leaves = []
        return batch
