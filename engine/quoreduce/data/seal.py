"""The digest of a block that is never made: what a replica that stores nothing returns instead of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from blake3 import blake3

from quoreduce.data.block import U8, Layout, parse_schema
from quoreduce.data.digest import (
    CHECKSUM_PIECE,
    STRIDE_DEFAULT,
    Digester,
    DigestStream,
    SealedBlock,
    as_u8,
    column_stride,
)

CHUNK_BYTES = 1 << 20  # stays in a core's second cache between being written and being digested
assert CHUNK_BYTES % CHECKSUM_PIECE == 0


def seal(
    digester: Digester, schema: Sequence[str], records: int, data_bytes: Sequence[int], buffers: Iterable[Iterable[U8]]
) -> SealedBlock:  # fmt: skip
    """Digest a block by its buffers, chunk by chunk: the digest is that of :meth:`Digester.block`.

    Args:
        digester: the job's.
        schema, records, data_bytes: as for :meth:`Block.create`; columns of binary values and numbers.
        buffers: for each column in order its buffers (of a binary column its offsets, then its data), each as chunks of
            u8[CHUNK_BYTES], of which the last may be shorter. A chunk is used before the next is asked for.

    Raises:
        ValueError: a buffer of another size than the layout says, or a column of wide fixed values.
    """
    layout = Layout.plan(parse_schema(schema), records, data_bytes)
    if any(column_stride(column.width) != STRIDE_DEFAULT for column in layout.schema):
        raise ValueError(
            f"columns of {', '.join(schema)} cannot be sealed: their fingerprints are not of {STRIDE_DEFAULT} bytes"
        )
    if digester.algorithm == "blake3":
        return SealedBlock(_of_bytes(digester.stream(), layout, buffers), records, layout.total)
    return SealedBlock(_of_pieces(digester, layout, buffers), records, layout.total)


def _places(layout: Layout) -> list[tuple[int, int]]:
    """(start, bytes) of each buffer."""
    places = []
    for (offsets, data), size in zip(layout.starts, layout.data_bytes, strict=True):
        if offsets >= 0:
            places.append((offsets, 8 * (layout.records + 1)))
        places.append((data, size))
    return places


def _of_bytes(stream: DigestStream, layout: Layout, buffers: Iterable[Iterable[U8]]) -> bytes:
    header = layout.header()
    stream.update(header)
    position = len(header)
    for (start, size), chunks in zip(_places(layout), buffers, strict=True):
        stream.update(bytes(start - position))
        position = start
        for chunk in chunks:
            stream.update(chunk)
            position += chunk.size
        _check(position - start, size)
    stream.update(bytes(layout.total - position))
    return stream.digest()


def _of_pieces(digester: Digester, layout: Layout, buffers: Iterable[Iterable[U8]]) -> bytes:
    whole = blake3(layout.header())
    for (_, size), chunks in zip(_places(layout), buffers, strict=True):
        done = 0
        for chunk in chunks:
            whole.update(as_u8(digester.pieces(chunk, STRIDE_DEFAULT)).data)
            done += chunk.size
        _check(done, size)
    return whole.digest()


def _check(found: int, wanted: int) -> None:
    if found != wanted:
        raise ValueError(f"a buffer of {found} bytes where the block's layout has {wanted}")
