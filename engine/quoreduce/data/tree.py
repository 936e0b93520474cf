"""The tree inside BLAKE3: the values of its nodes, and the way down to the first 1 KiB chunk in which two copies
differ.

BLAKE3 cuts its input into chunks of 1024 bytes. The chaining values (CVs) of the chunks are the leaves of a binary
tree; a parent is the compression of its two children, and the root, compressed with a flag of its own, is the digest
(BLAKE3 specification, section 2). A *node of level L* stands for 2**L chunks from a multiple of 2**L on, or for as many
as there are. Nodes are u32[n, 8], in order; where an odd one is left over it is its own parent, which gives BLAKE3's
tree: the left half is a power of two.

:func:`first_difference` compares two copies that lie anywhere: it asks for some dozen nodes, takes the first that
differs, asks for the nodes under it, and so on down to a chunk. What it is told must lead to the digest that was
claimed for the copy, at every step, or :class:`TreeMismatch` is raised: whoever answers cannot send it to a place where
there is no difference.

In numpy, over all chunks of a batch at once: far slower than a kernel, and fast enough for what happens only after a
fault.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from quoreduce.data.block import Buffer
from quoreduce.errors import QuoreduceError

U8 = NDArray[np.uint8]
U32 = NDArray[np.uint32]

CHUNK_BYTES = 1024
FAN_LEVELS = 6
BATCH_CHUNKS = 1024
_IV = np.array(
    [0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19], np.uint32
)  # fmt: skip
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8


class TreeMismatch(QuoreduceError):
    """The nodes that a holder gives for its copy do not lead to the digest that was claimed for it."""


_TURNED = ([1, 2, 3, 0], [2, 3, 0, 1], [3, 0, 1, 2])
"""Rows b, c and d as diagonals see them; the same backwards turns them back."""


def _rotated(x: U32, bits: int) -> U32:
    return (x >> np.uint32(bits)) | (x << np.uint32(32 - bits))


def _mix(rows: list[U32], x: U32, y: U32) -> None:
    """The function G of the specification on four columns (or diagonals) at once: rows a, b, c, d of u32[4, n]."""
    a, b, c, d = rows
    a = a + b + x
    d = _rotated(d ^ a, 16)
    c = c + d
    b = _rotated(b ^ c, 12)
    a = a + b + y
    d = _rotated(d ^ a, 8)
    c = c + d
    b = _rotated(b ^ c, 7)
    rows[:] = a, b, c, d


def _compress(cv: U32, words: U32, counter: NDArray[np.uint64], length: int, flags: int) -> U32:
    """Compress n nodes at once: cv u32[8, n], words u32[16, n], counter u64[n] -> u32[8, n]."""
    n = words.shape[1]
    tail = np.empty((4, n), np.uint32)
    tail[0] = (counter & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    tail[1] = (counter >> np.uint64(32)).astype(np.uint32)
    tail[2], tail[3] = length, flags
    rows = [cv[:4], cv[4:], np.repeat(_IV[:4, None], n, axis=1), tail]
    order = np.arange(16)
    for _ in range(7):
        m = words[order]
        _mix(rows, m[0:8:2], m[1:8:2])
        rows[1:] = [row[turn] for turn, row in zip(_TURNED, rows[1:], strict=True)]
        _mix(rows, m[8:16:2], m[9:16:2])
        rows[1:] = [row[turn] for turn, row in zip(_TURNED[::-1], rows[1:], strict=True)]
        order = order[list(_PERMUTATION)]
    return np.concatenate((rows[0] ^ rows[2], rows[1] ^ rows[3]))


def chunk_count(nbytes: int) -> int:
    """Return how many chunks ``nbytes`` bytes have; nothing has one too."""
    return max(1, -(-nbytes // CHUNK_BYTES))


def _whole_chunks(data: U8, first: int) -> U32:
    words = data.view("<u4").reshape(-1, 16, 16).astype(np.uint32, copy=False)
    counter = np.arange(first, first + words.shape[0], dtype=np.uint64)
    cv = np.repeat(_IV[:, None], words.shape[0], axis=1)
    for i in range(16):
        flags = (_CHUNK_START if i == 0 else 0) | (_CHUNK_END if i == 15 else 0)
        cv = _compress(cv, np.ascontiguousarray(words[:, i].T), counter, 64, flags)
    return cv.T


def _short_chunk(data: U8, number: int) -> U32:
    """The CV, u32[1, 8], of a chunk of less than 1024 bytes."""
    cv, blocks = _IV[:, None], max(1, -(-data.size // 64))
    for i in range(blocks):
        block = data[64 * i : 64 * i + 64]
        words = np.zeros(64, np.uint8)
        words[: block.size] = block
        flags = (_CHUNK_START if i == 0 else 0) | (_CHUNK_END if i == blocks - 1 else 0)
        cv = _compress(
            cv, words.view("<u4").astype(np.uint32)[:, None], np.array([number], np.uint64), block.size, flags
        )
    return cv.T


def chunks(data: U8, first: int) -> U32:
    """Return the CVs, u32[n, 8], of the chunks of ``data``, which begins at chunk number ``first`` of the whole."""
    whole = data.size // CHUNK_BYTES
    found = [
        _whole_chunks(
            np.ascontiguousarray(data[i * CHUNK_BYTES : min(i + BATCH_CHUNKS, whole) * CHUNK_BYTES]), first + i
        )
        for i in range(0, whole, BATCH_CHUNKS)
    ]
    if data.size % CHUNK_BYTES or data.size == 0:
        found.append(_short_chunk(data[whole * CHUNK_BYTES :], first + whole))
    return np.concatenate(found)


def _parents(values: U32, flags: int = _PARENT) -> U32:
    pairs = values.reshape(-1, 16).T
    cv = np.repeat(_IV[:, None], pairs.shape[1], axis=1)
    return _compress(cv, np.ascontiguousarray(pairs), np.zeros(pairs.shape[1], np.uint64), 64, flags).T


def lift(values: U32, levels: int) -> U32:
    """Return the nodes that are ``levels`` levels above all the nodes of a level, u32[n, 8]; never the root's
    digest.
    """
    for _ in range(levels):
        if values.shape[0] < 2:
            break
        even = values.shape[0] & ~1
        values = np.concatenate((_parents(values[:even]), values[even:]))
    return values


def nodes(data: U8, first: int, level: int) -> U32:
    """Return the nodes of ``level`` of ``data``, which begins at chunk ``first``, a multiple of 2**level."""
    return lift(chunks(data, first), level)


def root(values: U32) -> bytes:
    """Return the digest of the whole from all nodes of one level, of which there are two or more."""
    while values.shape[0] > 2:
        values = lift(values, 1)
    return _parents(values, _PARENT | _ROOT).astype("<u4").tobytes()


def encode(values: U32) -> bytes:
    """Nodes as bytes, 32 for each."""
    return values.astype("<u4").tobytes()


def decode(raw: bytes) -> U32:
    """The nodes that :func:`encode` encoded. Raises TreeMismatch if malformed."""
    if len(raw) % 32:
        raise TreeMismatch(f"{len(raw)} bytes are no nodes of a tree")
    return np.frombuffer(raw, "<u4").astype(np.uint32).reshape(-1, 8)


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that lies elsewhere.

    Attributes:
        nbytes: its size.
        digest: BLAKE3 of its bytes, as it was claimed; None: nothing to hold the answers against.
        nodes: ``nodes(first, count, level)`` gives those of the chunks ``first`` to ``first + count``.
        read: ``read(offset, nbytes)``.
    """

    nbytes: int
    digest: bytes | None
    nodes: Callable[[int, int, int], U32]
    read: Callable[[int, int], bytes]

    @property
    def chunks(self) -> int:
        """How many chunks it has."""
        return chunk_count(self.nbytes)


@dataclass(frozen=True, slots=True)
class Differing:
    """The first byte that differs: its ``offset``, and the bytes that both copies have in its chunk, from ``start``
    on.
    """

    offset: int
    start: int
    one: bytes
    two: bytes

    @property
    def bits(self) -> int:
        """How many bits of the chunk differ, as far as both copies have it."""
        return sum((a ^ b).bit_count() for a, b in zip(self.one, self.two, strict=False))


def first_difference(one: Copy, two: Copy) -> Differing | None:
    """Return where two copies first differ, or None if they are equal; raise TreeMismatch if their holders' answers do
    not add up.
    """
    tops = [_top(copy) for copy in (one, two)]
    level = max(own for own, _ in tops)
    pair = [lift(values, level - own) for own, values in tops]
    first = 0
    while (at := _first_unequal(*pair)) is not None:
        parents = [values[at] if at < values.shape[0] else None for values in pair]
        first += at << level
        if level == 0:
            return _in_chunk(first, (one, two), parents)
        below = max(0, level - FAN_LEVELS)
        pair = [_under(copy, parent, first, level, below) for copy, parent in zip((one, two), parents, strict=True)]
        level = below
    return None


def _top(copy: Copy) -> tuple[int, U32]:
    """The lowest level with 2**FAN_LEVELS nodes or fewer, and these: they lead to the digest, or one chunk's bytes
    do.
    """
    level = max(0, (copy.chunks - 1).bit_length() - FAN_LEVELS)
    values = _asked(copy, 0, copy.chunks, level)
    if copy.digest is not None and copy.chunks > 1 and root(values) != copy.digest:
        raise TreeMismatch("the top of a tree does not lead to its digest")
    return level, values


def _asked(copy: Copy, first: int, count: int, level: int) -> U32:
    values = copy.nodes(first, count, level)
    if values.shape[0] != -(-count >> level):
        raise TreeMismatch(f"{values.shape[0]} nodes came for {count} chunks at level {level}")
    return values


def _first_unequal(one: U32, two: U32) -> int | None:
    both = min(one.shape[0], two.shape[0])
    unequal = np.flatnonzero((one[:both] != two[:both]).any(axis=1))
    if unequal.size:
        return int(unequal[0])
    return both if one.shape[0] != two.shape[0] else None


def _under(copy: Copy, parent: U32 | None, first: int, level: int, below: int) -> U32:
    """The nodes under one, which must lead to it; none where the copy has ended before."""
    if parent is None:
        return np.empty((0, 8), np.uint32)
    values = _asked(copy, first, min(1 << level, copy.chunks - first), below)
    if not np.array_equal(lift(values, level - below)[0], parent):
        raise TreeMismatch("nodes do not lead to their parent")
    return values


def _in_chunk(number: int, copies: tuple[Copy, Copy], leaves: list[U32 | None]) -> Differing | None:
    """Compare the bytes of one chunk, which must be those of the leaves."""
    start = number * CHUNK_BYTES
    found = []
    for copy, leaf in zip(copies, leaves, strict=True):
        raw = copy.read(start, max(0, min(CHUNK_BYTES, copy.nbytes - start)))
        if leaf is not None and not np.array_equal(chunks(np.frombuffer(raw, np.uint8), number)[0], leaf):
            raise TreeMismatch("the bytes of a chunk are not those of its leaf")
        if copy.digest is not None and copy.chunks == 1 and leaf is not None and blake3(raw).digest() != copy.digest:
            raise TreeMismatch("the bytes of a copy are not those of its digest")
        found.append(raw)
    return _differing(start, *found)


def _differing(start: int, one: bytes, two: bytes) -> Differing | None:
    same = next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))
    return Differing(start + same, start, one, two) if one != two else None


def in_memory(one: Buffer, two: Buffer) -> Differing | None:
    """Return where two buffers that are here first differ, or None."""
    first, second = (raw if isinstance(raw, np.ndarray) else np.frombuffer(raw, np.uint8) for raw in (one, two))
    both = min(first.size, second.size)
    unequal = np.flatnonzero(first[:both] != second[:both])
    at = int(unequal[0]) if unequal.size else both
    start = at - at % CHUNK_BYTES
    return _differing(start, *(raw[start : start + CHUNK_BYTES].tobytes() for raw in (first, second)))
