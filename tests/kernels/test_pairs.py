"""Pair kernels against their plain twins: every kind of key, and buffers that end where memory ends."""

from __future__ import annotations

import ctypes
import mmap
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce_kernels import pairs
from quoreduce_kernels import reference as ref

PAGE = mmap.PAGESIZE
Pairs = list[tuple[bytes, bytes]]

letters = st.sampled_from([b"a", b"b", b"\0", b"\xff", b"ab", b"word ", b"\0" * 8, b"longer than eight "])
keys = st.one_of(st.binary(max_size=12), st.lists(letters, max_size=6).map(b"".join))
records = st.lists(st.tuples(keys, st.binary(max_size=90)), max_size=80)
pieces = st.sampled_from([b"a", b"key", b"\t", b"\n", b"\r\n", b"\r", b"\0", b"x" * 63, b"y" * 200])
texts = st.lists(pieces, max_size=60).map(b"".join)


def u8(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def before_a_guard(data: bytes) -> np.ndarray:
    """A copy in the last bytes before a page that may not be touched. (The mapping lives as long as the process.)"""
    size = -(-max(len(data), 1) // PAGE) * PAGE
    view = np.frombuffer(mmap.mmap(-1, size + PAGE), np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(view.ctypes.data + size), PAGE, 0) == 0
    part = view[size - len(data) : size]
    part[:] = u8(data)
    return part


def columns_of(data: Pairs, place: object = u8) -> pairs.Columns:
    out = []
    for c in (0, 1):
        offsets = np.cumsum([0] + [len(pair[c]) for pair in data]).astype(np.int64)
        out += [offsets, place(b"".join(pair[c] for pair in data))]  # type: ignore[operator]
    return tuple(out)  # type: ignore[return-value]


def rows_of(data: Pairs) -> pairs.Rows:
    return pairs.columns([columns_of(data)])


def empty_columns(data: Pairs) -> pairs.Columns:
    full = columns_of(data)
    return tuple(np.full(column.size, 0x77, column.dtype) for column in full)  # type: ignore[return-value]


@given(texts)
def test_lines_are_split_as_the_twin_splits_them(text: bytes) -> None:
    assert pairs.lines(u8(text)).pairs() == ref.split_pairs(text)
    assert pairs.count_lines(u8(text)) == len(ref.split_pairs(text))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\n",
        b"\r\n",
        b"\r",
        b"\t",
        b"\t\n\t",
        b"a\tb\tc\n",
        b"a\r\n",
        b"a\r",
        b"no tab",
        b"k\tv",
        b"\n\n\t\r\n",
        b"a\t\r\n",
    ],
)
def test_lines_of_few_bytes(text: bytes) -> None:
    assert pairs.lines(before_a_guard(text)).pairs() == ref.split_pairs(text)


@pytest.mark.parametrize("size", [1, 62, 63, 64, 65, 127, 128, 129, 1000])
def test_lines_and_counts_read_nothing_behind_the_text(size: int) -> None:
    for text in (b"k" * size, b"k" * (size - 1) + b"\t", b"k" * (size - 1) + b"\n", b"k\t\n" * size):
        data = before_a_guard(text)
        assert pairs.lines(data).pairs() == ref.split_pairs(text)
        assert pairs.count_byte(data, 10) == text.count(b"\n")


def test_many_short_lines_after_long_ones() -> None:
    text = b"long\t" + b"x" * 100_000 + b"\n" + b"a\n" * 50_000 + b"\n" * 50_000
    assert pairs.lines(u8(text)).pairs() == ref.split_pairs(text)


@given(records, records)
def test_columns_of_blocks_follow_each_other(first: Pairs, second: Pairs) -> None:
    rows = pairs.columns([columns_of(first), columns_of([]), columns_of(second)])
    assert rows.pairs() == first + second
    assert rows.key_bytes == sum(len(key) for key, _ in first + second)
    assert rows.value_bytes == sum(len(value) for _, value in first + second)
    assert rows.take(np.arange(len(rows))[::-1]).pairs() == (first + second)[::-1]


def test_columns_that_lie_are_refused() -> None:
    offsets, data = np.array([0, 2, 4], np.int64), u8(b"abcd")
    for bad in ([0, 5, 4], [0, 2, 5], [-1, 2, 4], [3, 2, 4]):
        with pytest.raises(ValueError, match="offsets"):
            pairs.columns([(np.array(bad, np.int64), data, offsets, data)])
    with pytest.raises(ValueError, match="2 keys and 1 values"):
        pairs.columns([(offsets, data, offsets[:2], data)])
    with pytest.raises(ValueError, match="contiguous"):
        pairs.columns([(offsets, data[::2], offsets, data)])


@given(records, st.sampled_from([1, 2, 3, 7, 64]))
def test_rows_go_to_the_partition_of_their_key_in_order(data: Pairs, partitions: int) -> None:
    rows = rows_of(data)
    expected = ref.partition_pairs(data, partitions)
    ids, totals = pairs.partition(rows, partitions)
    assert totals.tolist() == [[len(p), sum(len(k) for k, _ in p), sum(len(v) for _, v in p)] for p in expected]
    targets = [empty_columns(p) for p in expected]
    pairs.scatter(rows, ids, targets)
    assert [pairs.columns([target]).pairs() for target in targets] == expected
    order = pairs.by_partition(ids, totals)
    assert [data[i] for i in order] == [pair for p in expected for pair in p]


@given(records, st.integers(1, 100))
def test_column_chunks_are_the_columns(data: Pairs, size: int) -> None:
    rows = rows_of(data)
    order = np.arange(len(data), dtype=np.uint64)[::-1].copy()
    for c, column in enumerate(("keys", "values")):
        chunks = [bytes(chunk) for chunk in pairs.column_chunks(rows, order, column, np.empty(size, np.uint8))]
        assert b"".join(chunks) == b"".join(data[i][c] for i in order)
        assert all(len(chunk) == size for chunk in chunks[:-1])


def test_scatter_refuses_targets_of_another_size() -> None:
    rows = rows_of([(b"a", b"1"), (b"bb", b"22")])
    right = empty_columns([(b"a", b"1"), (b"bb", b"22")])
    with pytest.raises(ValueError, match="beyond"):
        pairs.scatter(rows, np.array([0, 1], np.uint16), [right])
    for wrong in range(4):
        with pytest.raises(ValueError, match="target 0"):
            pairs.scatter(
                rows, np.zeros(2, np.uint16), [tuple(c[:-1] if i == wrong else c for i, c in enumerate(right))]
            )
    with pytest.raises(ValueError, match="partitions"):
        pairs.partition(rows, 0)


@given(records)
def test_sort_is_that_of_the_twin(data: Pairs) -> None:
    order, groups = pairs.sort(rows_of(data))
    assert (order.tolist(), groups) == ref.sort_pairs(data)


def skewed(kind: str, n: int) -> list[bytes]:
    rng = np.random.default_rng(n)
    draw = rng.integers(0, 1 << 30, n).tolist()
    words = [b"%s " % bytes(rng.integers(97, 123, 9).tolist()) for _ in range(50)]
    match kind:
        case "words":
            return [b"".join(words[(x >> 6 * i) % 50] for i in range(1 + x % 5)) for x in draw]
        case "one key":
            return [b"the same key, which is long enough to matter"] * n
        case "few":
            return [b"key %d" % (x % 3) for x in draw]
        case "prefixes":
            return [b"a" * (x % 60) for x in draw]
        case "zeros":
            return [b"\0" * (x % 30) for x in draw]
        case "long prefix":
            return [b"p" * 300 + b"%d" % x for x in draw]
        case "differ at one place each":
            return [b"x" * (x % 90) + b"y" * 90 for x in draw]
        case "outlier":
            return [b"\xff" * 9 if x % 97 == 0 else b"a\0\0\0\0\0\0\0%d" % (x % 50) for x in draw]
        case "bits":
            return [bytes((x >> i) & 1 for i in range(20)) for x in draw]
        case "down":
            return [b"%030d" % (n - i) for i in range(n)]
        case _:
            return [bytes(rng.integers(0, 256, x % 24, np.uint8)) for x in draw]


KINDS = (
    "random", "words", "one key", "few", "prefixes", "zeros", "long prefix", "differ at one place each", "outlier",
    "bits", "down",
)  # fmt: skip


@pytest.mark.parametrize("n", [1, 16, 17, 100, 5_000])
@pytest.mark.parametrize("kind", KINDS)
def test_sort_of_skewed_keys(kind: str, n: int) -> None:
    data = [(key, b"%d" % i) for i, key in enumerate(skewed(kind, n))]
    columns = columns_of(data, before_a_guard)
    order, groups = pairs.sort(pairs.columns([columns]))
    assert (order.tolist(), groups) == ref.sort_pairs(data)


@pytest.mark.parametrize("kind", KINDS)
def test_no_kind_of_key_makes_sorting_slow(kind: str) -> None:
    """A sort that is quadratic in the number or the length of keys would take minutes over these."""
    n = 200_000
    some = skewed(kind, 20_000)
    rows = rows_of([(key, b"") for key in some]).take(np.arange(n) % len(some))
    start = time.process_time()
    order, _ = pairs.sort(rows)
    assert time.process_time() - start < 5
    assert np.array_equal(np.sort(order), np.arange(n, dtype=np.uint64))


def test_long_equal_keys_are_read_once_or_so() -> None:
    key = np.full(4_000_000, 97, np.uint8)
    rows = pairs.columns([(np.array([0, key.size], np.int64), key, np.zeros(2, np.int64), key[:0])]).take(
        np.zeros(100, np.int64)
    )
    start = time.process_time()
    order, groups = pairs.sort(rows)
    assert time.process_time() - start < 5
    assert groups == 1
    assert order.tolist() == list(range(100))


@given(records, st.integers(1, 300))
def test_text_is_that_of_the_twin(data: Pairs, size: int) -> None:
    rows = rows_of(data)
    order, _ = pairs.sort(rows)
    chunks = [(bytes(text), n) for text, n in pairs.text_chunks(rows, order, np.empty(size, np.uint8))]
    assert b"".join(text for text, _ in chunks) == ref.format_pairs(data[i] for i in order)
    assert sum(n for _, n in chunks) == len(data)
    assert all(len(text) <= size or n == 1 for text, n in chunks)


def test_an_order_that_names_no_row_is_refused() -> None:
    rows = rows_of([(b"a", b"1")])
    with pytest.raises(ValueError, match="beyond"):
        next(pairs.text_chunks(rows, np.array([1], np.uint64), np.empty(9, np.uint8)))
    with pytest.raises(ValueError, match="order"):
        next(pairs.column_chunks(rows, np.array([0]), "keys", np.empty(9, np.uint8)))


@pytest.mark.parametrize(
    ("percent", "first"),
    [(10, [1, 11, 21, 31]), (0.2, [1, 501, 1001]), (40, [1, 3, 6, 8]), (116, [1, 1, 2, 3])],
)
def test_positions_kept_are_those_of_gridmix(percent: float, first: list[int]) -> None:
    assert (pairs.keep_positions(1100, percent)[: len(first)] + 1).tolist() == first


@pytest.mark.parametrize(
    ("percent", "kept"), [(0.2, 2), (5, 50), (10, 100), (40, 400), (77, 770), (91, 910), (100, 1000), (116, 1160)]
)
def test_how_many_of_a_thousand_are_kept(percent: float, kept: int) -> None:
    assert pairs.keep_positions(1000, percent).size == kept


@given(st.integers(0, 2000), st.one_of(st.floats(0, 300), st.sampled_from([0.2, 5, 10, 40, 77, 91, 100, 116])))
def test_the_rule_is_that_of_the_twin(seen: int, percent: float) -> None:
    assert pairs.keep_positions(seen, percent).tolist() == ref.keep_positions(seen, percent)


def test_a_percentage_that_is_none_is_refused() -> None:
    for percent in (-1, float("nan"), 10_001):
        with pytest.raises(ValueError, match="percentage"):
            pairs.keep_positions(10, percent)
