"""Record formats: where a record starts, and so to which split it belongs.

A file is cut into splits at arbitrary bytes; a record belongs to the split in which it starts. Both ``lines`` and
``words`` have separators, and one rule moves a cut to where it does no harm::

    cut(p) = the smallest q >= p with q = 0, or q = size, or byte q-1 a separator

The split [start, end) reads [cut(start), cut(end)). A record that starts at s follows a separator (or s = 0), so
start <= s < end gives cut(start) <= s < cut(end): nothing is lost; neighbours share their cut: nothing is doubled;
and the bytes before cut(end) end with a separator or the file: no record is torn.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import msgspec

from quoreduce.errors import UsageError
from quoreduce.job import WIDTH_MAX, record_width

ReadAt = Callable[[int, int], "bytes | bytearray"]
"""``read_at(offset, n)`` gives 1 to n bytes at ``offset``, or raises; it is never asked for bytes past the end."""

_WINDOW_MIN = 1 << 12
_WINDOW_MAX = 1 << 20  # stays in the cache, since each window is looked through once per separator
_SEPARATORS = {
    "lines": (b"\n",),
    "words": (b" ", b"\n", b"\t", b"\r", b"\f"),  # those of Java's StringTokenizer
    "fixed": (),
    "sequence": (),
}


class RecordFormat(msgspec.Struct, frozen=True):
    """The records of an input: their ``kind``, and for ``fixed`` their ``width`` in bytes (else 0)."""

    kind: Literal["lines", "words", "fixed", "sequence"]
    width: int = 0

    @property
    def separators(self) -> tuple[bytes, ...]:
        """The single bytes that end a record; none for ``fixed`` and ``sequence``."""
        return _SEPARATORS[self.kind]

    def __str__(self) -> str:
        return f"fixed:{self.width}" if self.kind == "fixed" else self.kind


def parse_format(text: str) -> RecordFormat:
    r"""Parse the name of a record format.

    Args:
        text: ``lines`` (a record ends with ``\n``; the last may lack it), ``words`` (maximal runs of bytes other than
            space, ``\t``, ``\n``, ``\r``, ``\f``), ``fixed:N`` (records of N bytes, 1..65536) or ``sequence`` (Hadoop's
            SequenceFiles, :mod:`quoreduce.data.sequencefile`).

    Raises:
        UsageError: any other text.
    """
    if text == "lines":
        return RecordFormat("lines")
    if text == "words":
        return RecordFormat("words")
    if text == "sequence":
        return RecordFormat("sequence")
    if width := record_width(text):
        return RecordFormat("fixed", width)
    raise UsageError(
        f"unknown record format {text!r}: use lines, words or fixed:N with N in 1..{WIDTH_MAX}, or sequence"
    )


def record_range(read_at: ReadAt, fmt: RecordFormat, start: int, end: int, size: int) -> tuple[int, int]:
    """Return [begin, stop): the bytes of exactly the records that start in [start, end) of a file of ``size`` bytes.

    For ``words``, separators may stand at either end. Costs O(length of the record that crosses an edge), and a split
    that lies wholly inside one long record looks at its own bytes only.
    """
    if fmt.kind == "fixed":
        return start, end
    begin = _cut(read_at, fmt.separators, start, end)
    if begin >= end:
        return end, end
    return begin, _cut(read_at, fmt.separators, end, size)


def _cut(read_at: ReadAt, separators: tuple[bytes, ...], position: int, limit: int) -> int:
    """Return cut(position) of the module's docstring, or ``limit`` if it is not below ``limit``."""
    if position == 0:
        return 0
    at, window = position - 1, _WINDOW_MIN
    while at < limit - 1:
        chunk = read_at(at, min(window, limit - 1 - at))
        # Each find is a memchr: five passes over a bounded window beat one pass over a table.
        hits = [hit for separator in separators if (hit := chunk.find(separator)) >= 0]
        if hits:
            return at + min(hits) + 1
        at += len(chunk)
        window = min(2 * window, _WINDOW_MAX)
    return limit
