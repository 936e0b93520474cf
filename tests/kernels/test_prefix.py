"""Selection by prefix against its plain twins: any lengths and bytes, buffers that end where memory ends, wrong
arguments.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce_kernels import reference as ref
from quoreduce_kernels.prefix import copy_lines, copy_records, select_lines, select_records

PAGE = mmap.PAGESIZE


def before_a_guard(raw: bytes) -> tuple[mmap.mmap, np.ndarray]:
    """A copy of the bytes right before a page that may not be touched."""
    size = -(-max(len(raw), 1) // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    view = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(view.ctypes.data + size), ctypes.c_size_t(PAGE), 0) == 0
    target = view[size - len(raw) : size]
    target[:] = np.frombuffer(raw, np.uint8)
    return memory, target


def kept_records(raw: bytes, prefix: bytes) -> bytes:
    """What the kernels keep, which must be what their twin keeps."""
    _memory, data = before_a_guard(raw)
    picks = select_records(data, prefix)
    records = [raw[i : i + 100] for i in range(0, len(raw), 100)]
    assert picks.tolist() == ref.select_records(records, prefix)
    out = np.full((picks.size, 100), 0xEE, np.uint8)
    copy_records(data, picks, out)
    return out.tobytes()


def kept_lines(raw: bytes, prefix: bytes) -> list[bytes]:
    """What the kernels keep, which must be what their twin keeps."""
    _memory, data = before_a_guard(raw)
    rows, lines = select_lines(data, prefix)
    offsets = np.full(len(rows) + 1, -1, np.int64)
    out = np.full(int(rows[:, 1].sum()), 0xEE, np.uint8)
    copy_lines(rows, offsets, out)
    kept = [out[a:b].tobytes() for a, b in pairwise(offsets)]
    assert b"".join(kept) == out.tobytes()
    assert (kept, lines) == ref.select_lines(raw, prefix)
    return kept


@pytest.mark.parametrize("length", range(1, 65))
def test_records_by_prefixes_of_every_length(length: int) -> None:
    """Records that agree with the prefix in all bytes, in all but the last, and in all but the first."""
    rows = np.random.default_rng(length).integers(0, 256, (300, 100), np.uint8)
    prefix = bytes(range(100, 100 + length))
    rows[:200, :length] = np.frombuffer(prefix, np.uint8)
    rows[50:100, length - 1] ^= 1
    rows[100:150, 0] ^= 1
    kept = kept_records(rows.tobytes(), prefix)
    assert kept == rows[:50].tobytes() + rows[150:200].tobytes()


@given(st.binary(min_size=1, max_size=12), st.integers(0, 80), st.integers(0, 2**32), st.integers(1, 3))
def test_records_of_few_byte_values(prefix: bytes, n: int, seed: int, values: int) -> None:
    rows = np.random.default_rng(seed).integers(0, values, (n, 100), np.uint8)
    kept_records(rows.tobytes(), bytes(byte % values for byte in prefix))


@given(st.binary(max_size=400), st.binary(min_size=1, max_size=3), st.sampled_from([b"ab\n", b"a\n", b"ab\r\n\0"]))
def test_lines_of_few_byte_values(raw: bytes, prefix: bytes, alphabet: bytes) -> None:
    text = bytes(alphabet[byte % len(alphabet)] for byte in raw)
    kept_lines(text, bytes(b"ab\r\0"[byte % 4] for byte in prefix))


@pytest.mark.parametrize("length", [1, 2, 7, 8, 9, 16, 63, 64])
@pytest.mark.parametrize("shift", [0, 1, 31, 62, 63, 64, 65])
def test_lines_that_begin_anywhere_in_a_block(length: int, shift: int) -> None:
    prefix = bytes(range(40, 40 + length))
    other = prefix[:-1] + b"~"
    text = b"x" * shift + b"\n" + prefix + b"\n" + other + b"tail\n\n" + prefix + b"tail" * 50 + b"\r\n" + prefix
    assert kept_lines(text, prefix) == [prefix + b"\n", prefix + b"tail" * 50 + b"\r\n", prefix + b"\n"]


def test_more_lines_than_there_was_room_for() -> None:
    """Room is made in steps; where it ends, the search goes on."""
    assert len(kept_lines(b"a\n" * 10_000 + b"b\n" * 500 + b"ab\n" * 5_000, b"a")) == 15_000


@pytest.mark.parametrize("raw", [b"", b"\n", b"\n\n\n", b"a", b"a\n", b"\na", b"ab"])
def test_small_texts(raw: bytes) -> None:
    kept_lines(raw, b"a")
    kept_lines(raw, b"abc")


def test_no_records() -> None:
    assert kept_records(b"", b"a") == b""


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: select_records(bytes(100), b""), "1 to 64 bytes, not 0"),
        (lambda: select_records(bytes(100), bytes(65)), "1 to 64 bytes, not 65"),
        (lambda: select_records(bytes(99), b"a"), "not a multiple of 100"),
        (lambda: select_lines(b"a", b""), "1 to 64 bytes, not 0"),
        (lambda: select_lines(b"a", b"a\n"), "no line feed"),
        (lambda: copy_records(bytes(100), np.array([1], np.uint32), np.empty(100, np.uint8)), "no record 1"),
        (lambda: copy_records(bytes(100), np.array([0], np.uint32), np.empty(99, np.uint8)), "must hold 1 records"),
        (lambda: copy_lines(select_lines(b"a", b"a")[0], np.empty(2, np.int64), np.empty(1, np.uint8)), "do not fit"),
        (lambda: copy_lines(select_lines(b"a", b"a")[0], np.empty(1, np.int64), np.empty(2, np.uint8)), "do not fit"),
    ],
)
def test_wrong_arguments(call: Callable[[], object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        call()
