"""The three digests: what is voted on, what a reader checks, what the manifest holds.

``blake3``    BLAKE3-256 of the bytes. The default; good against faults and, with attestation, against malice.
``fast``      BLAKE3 over keyed 128-bit fingerprints, one per record of a fixed width (else one per 128 bytes). For
              accidental faults only: the key is made anew for each job, but the fingerprint is no cryptographic hash.
``checksum``  BLAKE3 over unkeyed 128-bit checksums of 64 KiB pieces: the block checksum of the ``original`` mode,
which,
              like Hadoop's, finds stored data that changed and nothing else.

A stream is digested with :meth:`Digester.stream`, a block with :meth:`Digester.block`. For ``blake3`` the digest of a
block is that of its bytes. For the other two it is BLAKE3 over the header's bytes and then the pieces of each buffer in
order, so that a replica that stores nothing can compute it from fingerprints alone; padding is not in it, and
:meth:`Block.open` insists that padding is zero.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

from quoreduce.data.block import Block, Buffer
from quoreduce.errors import UsageError

Algorithm = Literal["blake3", "fast", "checksum"]
ALGORITHMS: tuple[Algorithm, ...] = ("blake3", "fast", "checksum")
STRIDE_DEFAULT = 128
CHECKSUM_PIECE = 1 << 16
FILE_CHUNK = 1 << 20
KERNEL_BYTES_MIN = 1 << 18
_TAIL = struct.Struct("<QQ")


@dataclass(frozen=True, slots=True)
class SealedBlock:
    """The result of a digest-only replica in place of a block: its digest, records, and size in bytes."""

    digest: bytes
    records: int
    nbytes: int


class DigestStream(Protocol):
    """A digest being computed over bytes that arrive in chunks of any size."""

    def update(self, chunk: Buffer, /) -> object:
        """Add ``chunk``."""

    def digest(self) -> bytes:
        """Return the 32-byte digest of all bytes so far."""


@dataclass(frozen=True, slots=True)
class Digester:
    """An algorithm with its key (16 bytes for ``fast``, empty otherwise)."""

    algorithm: Algorithm
    key: bytes = b""

    def __post_init__(self) -> None:
        if self.algorithm not in ALGORITHMS:
            raise UsageError(f"unknown digest {self.algorithm!r}: use one of {', '.join(ALGORITHMS)}")
        if len(self.key) != (16 if self.algorithm == "fast" else 0):
            raise UsageError(f"digest {self.algorithm} cannot use a key of {len(self.key)} bytes")

    def stream(self, stride: int = STRIDE_DEFAULT) -> DigestStream:
        """Start a digest of a stream of bytes; ``stride`` is the record width in bytes if there is one."""
        if self.algorithm == "blake3":
            return _Blake3()
        return _Pieces(self._piece_bytes(stride), self._piece_function(stride))

    def of(self, data: Buffer, stride: int = STRIDE_DEFAULT) -> bytes:
        """Digest ``data`` at once."""
        if self.algorithm == "blake3":
            return blake3_of(data)
        stream = self.stream(stride)
        stream.update(data)
        return stream.digest()

    def file(self, path: Path, stride: int = STRIDE_DEFAULT) -> bytes:
        """Digest the file at ``path``, read in chunks of 1 MiB."""
        stream = self.stream(stride)
        chunk = bytearray(FILE_CHUNK)
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(chunk):
                stream.update(memoryview(chunk)[:count])
        return stream.digest()

    def block(self, block: Block) -> bytes:
        """Digest a block."""
        if self.algorithm == "blake3":
            return self.of(block.buffer)
        head = block_head(block)
        for (offsets, data), size, column in zip(
            block.layout.starts, block.layout.data_bytes, block.layout.schema, strict=True
        ):
            if offsets >= 0:
                end = offsets + 8 * (block.records + 1)
                head.update(as_u8(self.pieces(block.buffer[offsets:end], STRIDE_DEFAULT)).data)
            head.update(as_u8(self.pieces(block.buffer[data : data + size], column_stride(column.width))).data)
        return head.digest()

    def pieces(self, data: NDArray[np.uint8], stride: int) -> NDArray[np.uint64]:
        """Return the u64[n, 2] fingerprints (or checksums) of the pieces of ``data``, the last one padded with
        zeros.
        """
        size = self._piece_bytes(stride)
        function = self._piece_function(stride)
        whole = data.size - data.size % size
        out = function(data[:whole])
        if whole == data.size:
            return out
        last = np.zeros(size, np.uint8)
        last[: data.size - whole] = data[whole:]
        return np.concatenate((out, function(last)))

    def _piece_bytes(self, stride: int) -> int:
        return stride if self.algorithm == "fast" else CHECKSUM_PIECE

    def _piece_function(self, stride: int) -> Callable[[NDArray[np.uint8]], NDArray[np.uint64]]:
        from quoreduce_kernels import fingerprint

        if self.algorithm == "fast":
            return lambda data: fingerprint.fingerprints(data, stride, self.key)
        return lambda data: fingerprint.checksums(data, CHECKSUM_PIECE)


def as_u8(values: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """View u64[n, 2] values as the bytes that are hashed (little-endian)."""
    return values.reshape(-1).view(np.uint8)


def column_stride(width: int) -> int:
    """Return the stride that fingerprints of a column of values of ``width`` bytes use (records from 32 bytes on)."""
    return width if width >= 32 else STRIDE_DEFAULT


def block_head(block: Block) -> blake3:
    """Start the digest of a block for ``fast`` and ``checksum``: BLAKE3 over its header as it stands in the buffer,
    padded.
    """
    return blake3(block.buffer[: len(block.layout.header())].data)


class _Blake3:
    """Stream of ``blake3``: the library, which is the faster one on chunks that are in cache, as those of a stream
    are.
    """

    def __init__(self) -> None:
        self._hash = blake3()

    def update(self, chunk: Buffer, /) -> None:
        self._hash.update(chunk.data if isinstance(chunk, np.ndarray) else chunk)

    def digest(self) -> bytes:
        return self._hash.digest()


def blake3_of(data: Buffer) -> bytes:
    """BLAKE3 of a buffer in memory: our kernel if the buffer is large and this CPU has the vectors for it."""
    if len(data) >= KERNEL_BYTES_MIN:
        from quoreduce_kernels import blake3 as kernel

        if kernel.VECTORS:
            stream = kernel.Blake3()
            stream.update(data)
            return stream.digest()
    return blake3(data.data if isinstance(data, np.ndarray) else data).digest()


class _Pieces:
    """Streams of ``fast`` and ``checksum``: BLAKE3 over the values of whole pieces, then length and piece size."""

    def __init__(self, piece: int, function: Callable[[NDArray[np.uint8]], NDArray[np.uint64]]) -> None:
        self._piece = piece
        self._function = function
        self._hash = blake3()
        self._rest = b""
        self._length = 0

    def update(self, chunk: Buffer, /) -> None:
        data = chunk if isinstance(chunk, np.ndarray) else np.frombuffer(chunk, np.uint8)
        self._length += data.size
        if self._rest:
            need = min(self._piece - len(self._rest), data.size)
            self._rest += data[:need].tobytes()
            data = data[need:]
            if len(self._rest) < self._piece:
                return
            self._hash.update(self._values(np.frombuffer(self._rest, np.uint8)))
        whole = data.size - data.size % self._piece
        if whole:
            self._hash.update(self._values(data[:whole]))
        self._rest = data[whole:].tobytes()

    def update_pieces(self, values: NDArray[np.uint64]) -> None:
        """Add whole pieces whose u64[n, 2] values the caller has computed; the stream must stand at a piece's start."""
        if self._rest:
            raise ValueError("pieces can only be added where a piece begins")
        self._length += values.shape[0] * self._piece
        self._hash.update(as_u8(values).data)

    def _values(self, data: NDArray[np.uint8]) -> memoryview:
        return as_u8(self._function(data)).data

    def digest(self) -> bytes:
        final = self._hash.copy()
        if self._rest:
            final.update(self._values(np.frombuffer(self._rest.ljust(self._piece, b"\0"), np.uint8)))
        final.update(_TAIL.pack(self._length, self._piece))
        return final.digest()


def output_digest(parts: list[tuple[bytes, int]]) -> bytes:
    """Digest a task's whole output (R4): BLAKE3 over its partitions' digests and record counts (u64), in order."""
    whole = blake3(b"quoreduce output 1")
    for digest, records in parts:
        whole.update(digest + struct.pack("<Q", records))
    return whole.digest()
