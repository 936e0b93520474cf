"""``quoreduce generate``: reproducible data, written in chunks; the bytes do not depend on the size of a chunk."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from quoreduce.data.commit import output_errors
from quoreduce.errors import OutputError
from quoreduce.printable import printable_name
from quoreduce.protocol.compile import use_kernels

RECORDS_PER_CHUNK = 100_000


def generate(kind: str, count: int, file: str, seed: int, first: int, overwrite: bool) -> int:
    """Write ``count`` bytes of text or records of ``kind`` to ``file``; print what was written; return 0."""
    use_kernels(lambda text: print(text, file=sys.stderr))
    path = Path(file)
    if path.exists() and not overwrite:
        raise OutputError(f"{file} exists: use --overwrite to replace it")
    chunks = text_chunks(count, seed) if kind == "text" else record_chunks(kind, first, count)
    nbytes = write_file(path, chunks)
    print(f"{printable_name(file)}: {nbytes:,} bytes" + ("" if kind == "text" else f", {count:,} records"))
    return 0


def write_file(path: Path, chunks: Iterator[NDArray[np.uint8]]) -> int:
    """Write chunks to a new file beside ``path`` and rename it when it is whole; return its size in bytes."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    nbytes, made = 0, False
    try:
        with output_errors(path):
            fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            made = True
            with open(fd, "wb", buffering=0) as target:
                for chunk in chunks:
                    view = chunk.data.cast("B")
                    while view:
                        view = view[target.write(view) :]
                    nbytes += chunk.nbytes
            part.rename(path)
    finally:
        if made:
            part.unlink(missing_ok=True)
    return nbytes


def record_chunks(kind: str, first: int, count: int) -> Iterator[NDArray[np.uint8]]:
    """Yield records ``first`` to ``first + count`` as u8[n, 100]."""
    from quoreduce_kernels.gensort import generate_records

    for start in range(first, first + count, RECORDS_PER_CHUNK):
        yield generate_records(start, min(RECORDS_PER_CHUNK, first + count - start), kind)


def text_chunks(nbytes: int, seed: int) -> Iterator[NDArray[np.uint8]]:
    """Yield ``nbytes`` of text: Zipf-distributed words, lines of about 90 characters."""
    from quoreduce_kernels.textgen import CHUNK_BYTES, generate_text

    for index in range(-(-nbytes // CHUNK_BYTES)):
        chunk = generate_text(index, CHUNK_BYTES, seed)
        yield chunk[: nbytes - index * CHUNK_BYTES]
