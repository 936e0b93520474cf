"""Merkle trees over byte strings (RFC 9162, 2.1), and the plain digest over all leaves that needs no tree.

    leaf hash   SHA-256( 0x00 || leaf )
    node        SHA-256( 0x01 || left || right )
    tree        of n leaves: the left one holds the greatest power of two below n

A root says nothing about how many leaves there are: proofs of the first leaves of 3 and of 4 are alike. So the count
is signed together with the root (:func:`quoreduce.trust.batcher.batch_event`).

One quote serves many challengers: the quote's nonce (``extraData``) is the root over their nonces, and each gets
the proof of its own nonce (:func:`verify`).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256


def leaf_hash(leaf: bytes) -> bytes:
    """Return the hash of a leaf, 32 bytes."""
    return sha256(b"\x00" + leaf).digest()


class Tree:
    """All nodes of a tree, each hashed once: its root, and the inclusion proofs of its leaves. Raises ValueError if
    there are none.
    """

    __slots__ = ("_levels",)

    def __init__(self, leaves: Sequence[bytes]) -> None:
        self._levels = _levels(leaves)

    @property
    def root(self) -> bytes:
        """The root, 32 bytes."""
        return self._levels[-1][0]

    def proof(self, index: int) -> tuple[bytes, ...]:
        """Return the inclusion proof of the leaf at ``index``: sibling hashes, bottom up (RFC 9162, 2.1.3.1);
        IndexError.
        """
        if not 0 <= index < len(self._levels[0]):
            raise IndexError(f"no leaf {index} among {len(self._levels[0])}")
        return tuple(
            level[(index >> up) ^ 1] for up, level in enumerate(self._levels) if (index >> up) ^ 1 < len(level)
        )

    def proofs(self) -> list[tuple[bytes, ...]]:
        """Return the inclusion proofs of all leaves: from the root down, each is its parent's with one hash before
        it.
        """
        paths: list[tuple[bytes, ...]] = [()]
        for level in self._levels[-2::-1]:
            pairs = zip(level[::2], level[1::2], paths, strict=False)
            longer = [(sibling, *path) for left, right, path in pairs for sibling in (right, left)]
            paths = longer + paths[-1:] if len(level) & 1 else longer
        return paths


def root(leaves: Sequence[bytes]) -> bytes:
    """Return the root over ``leaves``, 32 bytes. Raises ValueError if there are none."""
    return Tree(leaves).root


def proof(leaves: Sequence[bytes], index: int) -> tuple[bytes, ...]:
    """Return the inclusion proof of the leaf at ``index`` (:meth:`Tree.proof`)."""
    return Tree(leaves).proof(index)


def proofs(leaves: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Return the inclusion proofs of all leaves (:meth:`Tree.proofs`)."""
    return Tree(leaves).proofs()


def verify(leaf: bytes, index: int, count: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether ``path`` proves a leaf (RFC 9162, 2.1.3.2).

    Args:
        leaf: the leaf's hash (:func:`leaf_hash`), not the leaf.
        index: its place, from 0.
        count: number of leaves, which the caller knows from elsewhere than this root.
        path: the proof, from :func:`proof`.
        root: of the tree.
    """
    if not 0 <= index < count:
        return False
    below = (index ^ (count - 1)).bit_length()  # levels at which something stands to the right of the leaf's node
    if len(path) != below + (index >> below).bit_count():
        return False
    node = leaf
    for sibling in path[:below]:
        node = sha256(b"\x01" + sibling + node if index & 1 else b"\x01" + node + sibling).digest()
        index >>= 1
    for sibling in path[below:]:
        node = sha256(b"\x01" + sibling + node).digest()
    return node == root


def aggregate(leaves: Sequence[bytes]) -> bytes:
    """Return SHA-256 over the count (u64, big-endian) and all leaf hashes: to check one leaf, all are needed."""
    whole = sha256(b"quoreduce aggregate 1" + len(leaves).to_bytes(8, "big"))
    whole.update(b"".join(map(leaf_hash, leaves)))
    return whole.digest()


def _levels(leaves: Sequence[bytes]) -> list[list[bytes]]:
    """All levels of the tree, bottom up. A node without a sibling moves up as it is, which gives the shape of RFC
    9162.
    """
    if not leaves:
        raise ValueError("a tree has at least one leaf")
    levels = [[sha256(b"\x00" + leaf).digest() for leaf in leaves]]
    while len(below := levels[-1]) > 1:
        level = [sha256(b"\x01" + a + b).digest() for a, b in zip(below[::2], below[1::2], strict=False)]
        levels.append(level + below[-1:] if len(below) & 1 else level)
    return levels
