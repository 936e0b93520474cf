"""GridMix's words: the documented draws, and a DEFLATE that any zlib reads."""

from __future__ import annotations

import heapq
import zlib
from itertools import count
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from quoreduce_gridmix.words import WORDS
from quoreduce_kernels import gridgen as gg
from quoreduce_kernels import reference as ref

FEW = [b"abc", b"defg", b"fifteen-letters", b"longer-words-15", b"x" * 10, b"y" * 9]
LISTS = {"few": FEW, "all": list(WORDS), "two": [b"one", b"two"]}
RANGES = st.tuples(st.integers(0, 3), st.integers(1, 5), st.integers(0, 300), st.integers(1, 300))


@pytest.fixture(scope="module")
def lists() -> dict[str, gg.WordList]:
    return {name: gg.WordList.of(words) for name, words in LISTS.items()}


def one_chunk(words: gg.WordList, ranges: Any, nbytes: int, stream: int) -> gg.TextChunk:
    (chunk,) = gg.draw_chunks(words, gg.Ranges(*ranges), nbytes, stream)
    return chunk


@settings(max_examples=80)
@given(st.sampled_from(sorted(LISTS)), RANGES, st.integers(1, 5000), st.integers(-1, 2**64))
@example("few", (1, 1, 0, 1), 1, 0)
@example("all", (5, 5, 100, 9900), 100_000, 7)
def test_the_twin_draws_renders_and_compresses_the_same(
    lists: dict[str, gg.WordList], name: str, ranges: Any, nbytes: int, stream: int
) -> None:
    if ranges[0] + ranges[2] == 0:
        ranges = (1, *ranges[1:])
    words, made = LISTS[name], lists[name]
    chunk = one_chunk(made, ranges, nbytes, stream)
    records = ref.grid_chunk(words, ranges, nbytes, stream % 2**64)
    texts = [(ref.grid_text(words, key), ref.grid_text(words, value)) for key, value in records]
    assert chunk.records.tolist() == [
        [len(key), len(value), len(k), len(v)] for (key, value), (k, v) in zip(records, texts, strict=True)
    ]
    assert gg.render_text(made, chunk).tobytes() == b"".join(k + b"\t" + v + b"\n" for k, v in texts)
    lengths = gg.code_lengths([word + b" " for word in words])
    for column in (gg.KEY, gg.VALUE):
        items = [ref.serialised(pair[column], -1) for pair in texts]
        assert gg.render(made, chunk, column).tobytes() == b"".join(items)
        assert gg.render_lengths(chunk, column).tobytes() == b"".join(ref.vint(len(item)) for item in items)
        packed = gg.deflate(made, chunk, column)
        assert zlib.decompress(packed) == b"".join(items)
        assert packed == ref.grid_deflate(words, [record[column] for record in records], lengths)


def test_chunks_end_with_the_record_that_fills_them(lists: dict[str, gg.WordList]) -> None:
    sizes, last = [], []
    for chunk in gg.draw_chunks(lists["all"], gg.Ranges(5, 1, 100, 1), 2_500_000, 1):
        sizes.append(chunk.nbytes)
        last.append(int(chunk.records[-1, 2:].sum()))
    assert len(sizes) == 3
    assert all(size - end < 1_000_000 <= size for size, end in zip(sizes[:2], last[:2], strict=True))
    assert sum(sizes) - last[-1] < 2_500_000 <= sum(sizes)


def test_matches_reach_back_as_far_as_deflate_allows(lists: dict[str, gg.WordList]) -> None:
    """Words that come back after 32,768 bytes or just more; random text alone never meets the edge."""
    size = len(FEW[0]) + 1
    for gap in range(32_768 - 20, 32_768 + 20):
        between = [1] * (gap // 5 - 3)
        for filler in ([2], [3, 1], [4, 1, 1], [5]):
            tokens = np.array([0, *between, *filler, 0], np.uint16)
            nbytes = sum(len(FEW[t]) + 1 for t in tokens)
            chunk = gg.TextChunk(tokens, np.array([[0, tokens.size, 0, nbytes]], np.int64))
            raw = gg.render(lists["few"], chunk, gg.VALUE).tobytes()
            assert zlib.decompress(gg.deflate(lists["few"], chunk, gg.VALUE)) == raw
    assert size == 4


def huffman_cost(weights: list[int]) -> int:
    number = count()
    heap = [(weight, next(number)) for weight in weights if weight]
    heapq.heapify(heap)
    cost = 0
    while len(heap) > 1:
        total = heapq.heappop(heap)[0] + heapq.heappop(heap)[0]
        cost += total
        heapq.heappush(heap, (total, next(number)))
    return cost


@given(st.lists(st.integers(0, 2**40), min_size=2, max_size=286).filter(lambda weights: sum(map(bool, weights)) > 1))
def test_codes_are_complete_and_nearly_as_short_as_huffmans(weights: list[int]) -> None:
    bits = gg._limited_lengths(weights)
    assert [bool(n) for n in bits] == [bool(weight) for weight in weights]
    assert sum(2.0**-n for n in bits if n) == 1
    assert max(bits) <= 15
    cost = sum(weight * n for weight, n in zip(weights, bits, strict=True))
    best = huffman_cost(weights)
    assert best <= cost <= 1.1 * best


def test_compression_is_like_zlibs(lists: dict[str, gg.WordList]) -> None:
    chunk = next(gg.draw_chunks(lists["all"], gg.Ranges(5, 5, 100, 9900), 1_000_000, 3))
    raw = gg.render(lists["all"], chunk, gg.VALUE).tobytes()
    size = len(gg.deflate(lists["all"], chunk, gg.VALUE))
    assert 4.0 < len(raw) / size < 4.4
    assert len(zlib.compress(raw, 5)) < size < len(zlib.compress(raw, 3))


def test_words_and_lengths_are_drawn_evenly(lists: dict[str, gg.WordList]) -> None:
    tokens = np.zeros(1000, np.int64)
    keys, values = np.zeros(10, np.int64), np.zeros(200, np.int64)
    for chunk in gg.draw_chunks(lists["all"], gg.Ranges(1, 9, 0, 200), 10_000_000, 11):
        tokens += np.bincount(chunk.tokens, minlength=1000)
        keys += np.bincount(chunk.records[:, 0], minlength=10)
        values += np.bincount(chunk.records[:, 1], minlength=200)
    for counts in (tokens, keys[1:], values):
        expected = counts.sum() / counts.size
        chi2 = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi2 - (counts.size - 1)) < 5 * (2 * counts.size) ** 0.5
    assert keys[0] == 0


def test_bad_arguments_are_refused(lists: dict[str, gg.WordList]) -> None:
    calls = [
        lambda: gg.WordList.of([b"one"]),
        lambda: gg.WordList.of([b"one", b"one"]),
        lambda: gg.WordList.of([b"one", b"ab"]),
        lambda: gg.WordList.of([b"one", b"x" * 16]),
        lambda: gg.WordList.of([b"one", b"t wo"]),
        lambda: next(gg.draw_chunks(lists["few"], gg.Ranges(0, 1, 0, 1), 1, 0)),
        lambda: next(gg.draw_chunks(lists["few"], gg.Ranges(-1, 5, 3, 1), 1, 0)),
        lambda: next(gg.draw_chunks(lists["few"], gg.Ranges(1, 0, 3, 1), 1, 0)),
        lambda: next(gg.draw_chunks(lists["few"], gg.Ranges(1, 1, 32_768, 1), 1, 0)),
        lambda: next(gg.draw_chunks(lists["few"], gg.Ranges(1, 1, 1, 1), -1, 0)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
