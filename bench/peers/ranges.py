"""What the jobs of Dask and Ray Data share: ranges of one file, read as Arrow arrays, counted and written a block at a
time.

Both read a file with one task unless told otherwise; ranges let both cores read. Words are split and counted by Arrow
within each range before anything is shuffled.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_BYTES = 100
RANGE_BYTES = 64_000_000  # of whole records
LONGEST_LINE = 1 << 20


def ranges(path: str) -> list[int]:
    """Where ranges start."""
    return list(range(0, os.path.getsize(path), RANGE_BYTES))


def read_records(path: str, start: int) -> pa.Array:
    """The records of a range, with their line feeds, as strings that share one buffer."""
    import numpy as np
    import pyarrow as pa

    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        raw = file.read(RANGE_BYTES)
    offsets = np.arange(0, len(raw) + 1, RECORD_BYTES, dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(raw)])


def count_words(path: str, start: int) -> pa.Table:
    """The words ``w`` of the lines that start in a range, and how often each occurs there, ``c``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    words = pc.ascii_split_whitespace(pa.array([read_lines(path, start)], pa.string())).flatten()
    counted = pc.value_counts(words.filter(pc.not_equal(words, "")))
    return pa.table({"w": counted.field("values"), "c": counted.field("counts")})


def read_lines(path: str, start: int) -> bytes:
    """The lines that start in a range: to the end of the last one, from the first line feed unless it is the file's
    start.
    """
    with open(path, "rb", buffering=0) as file:
        file.seek(max(0, start - 1))
        raw = file.read(RANGE_BYTES + (start > 0))
        more = file.read(LONGEST_LINE)
    low = raw.index(b"\n") + 1 if start else 0
    end = b"" if raw.endswith(b"\n") else more[: more.index(b"\n") + 1] if b"\n" in more else more
    return raw[low:] + end


def write_words(words: pa.Array, counts: pa.Array, path: str) -> None:
    """Write lines ``word<TAB>count``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = words.type
    write_strings(pc.binary_join_element_wise(words, counts.cast(kind), pa.scalar("\t", kind)), path, "\n")


def write_strings(strings: pa.Array | pa.ChunkedArray, path: str, end: str = "") -> None:
    """Write strings one after another."""
    import pyarrow as pa
    import pyarrow.compute as pc

    with open(path, "wb", buffering=0) as file:
        for chunk in strings.chunks if isinstance(strings, pa.ChunkedArray) else [strings]:
            whole = (
                pc.binary_join_element_wise(chunk, pa.scalar("", chunk.type), pa.scalar(end, chunk.type))
                if end
                else chunk
            )
            file.write(_bytes(whole))


def _bytes(strings: pa.Array) -> memoryview:
    """The bytes of an array of strings, which lie side by side."""
    import numpy as np
    import pyarrow as pa

    wide = np.int64 if pa.types.is_large_string(strings.type) else np.int32
    _, offsets, data = strings.buffers()
    if not len(strings) or data is None:
        return memoryview(b"")
    limits = np.frombuffer(offsets, wide)[[strings.offset, strings.offset + len(strings)]]
    return memoryview(data)[limits[0] : limits[1]]
