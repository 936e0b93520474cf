"""Decompression of gz and zst members, piece by piece, so that a reader can stop early."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from typing import IO

_CHUNK = 1 << 20
_ZST_CHUNK = 1 << 12  # a 4-byte zstd block can stand for 128 KiB: small bites bound what one of them turns into


class Corrupt(Exception):
    """A zstd stream that is no whole number of frames."""


def gz_chunks(raw: IO[bytes]) -> Iterable[bytes]:
    """Yield the decompressed bytes of a gzip file; EOFError, gzip.BadGzipFile or zlib.error if it is corrupt."""
    with gzip.GzipFile(fileobj=raw, mode="rb") as stream:
        while chunk := stream.read(_CHUNK):
            yield chunk


def zst_chunks(raw: IO[bytes]) -> Iterable[bytes]:
    """Yield the decompressed bytes of a zstd file; Corrupt if it is.

    Frame by frame: the library's own stream reader takes a truncated frame for the end.
    """
    import zstandard

    decompressor, frame = zstandard.ZstdDecompressor(), None
    while block := raw.read(_CHUNK):
        data = memoryview(block)
        while data:
            bite, data = data[:_ZST_CHUNK], data[_ZST_CHUNK:]
            while bite:
                frame = decompressor.decompressobj() if frame is None or frame.eof else frame
                try:
                    yield frame.decompress(bite)
                except zstandard.ZstdError as error:
                    raise Corrupt(str(error)) from error
                bite = memoryview(frame.unused_data)
    if frame is not None and not frame.eof:
        raise Corrupt("the last frame has no end")
