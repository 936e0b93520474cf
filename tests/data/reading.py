"""Inputs that tests of data/ read."""

from pathlib import Path

import numpy as np

from quoreduce.data.formats import RecordFormat, parse_format
from quoreduce.data.inputs import open_split
from quoreduce.data.splits import Split

LINES, WORDS = parse_format("lines"), parse_format("words")


def read(split: Split, fmt: RecordFormat, scratch: Path, **bounds: int) -> bytes:
    with open_split(split, fmt, scratch, **bounds) as array:
        assert array.dtype == np.uint8
        assert array.ndim == 1
        assert not array.flags.writeable
        return array.tobytes()
