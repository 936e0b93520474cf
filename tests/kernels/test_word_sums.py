"""Sums of words, counts and count lines against their plain twins, at all levels of this CPU; and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from guarded import before_guard_page
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import check_reference as slow
from quoreduce_kernels import reference, word_sums
from quoreduce_kernels.check_hash import Refused, Sum
from quoreduce_kernels.check_intrinsics import LEVEL, LEVELS
from quoreduce_kernels.word_sums import COUNT_MAX, sum_counts, sum_lines, sum_text
from quoreduce_kernels.words import WordCounter, format_counts, merge_counts

HERE = LEVELS[: LEVELS.index(LEVEL) + 1]
KEY = bytes(range(100, 132))
LENGTHS = (*range(1, 18), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097, 32768, 70001)

_pieces = st.sampled_from(
    [b"a", b"b", b"\0", b" ", b"\n", b"\t\r\f", b"\x0b", b"\xff", b"\x1f!", b"x" * 7, b"y" * 14, b"z" * 33, b"w" * 130]
)
texts = st.lists(_pieces, max_size=150).map(b"".join)
words = st.binary(min_size=1, max_size=40).map(lambda raw: bytes(b + 33 if b < 33 else b for b in raw))
counts = st.integers(1, 40) | st.sampled_from([2**31, COUNT_MAX - 1, COUNT_MAX])
runs = st.dictionaries(words, counts, max_size=60)


def array(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


def columns(run: reference.Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    offsets = np.cumsum([0, *(len(word) for word, _ in run)], dtype=np.int64)
    return offsets, array(b"".join(word for word, _ in run)), np.array([n for _, n in run], np.uint64)


def of_partition(run: dict[bytes, int], r: int, partitions: int) -> reference.Run:
    mine = [entry for entry in run.items() if reference.partition_of(entry[0], partitions) == r]
    return sorted(mine, key=lambda entry: (reference.hash64(entry[0]), entry[0]))


def check_text(text: bytes, levels: tuple[str, ...] = HERE) -> None:
    expected = Sum(*slow.sum_text(text, KEY))
    for level in levels:
        with before_guard_page(text) as data:
            assert sum_text(data, KEY, level=level) == expected


@given(texts)
@settings(max_examples=150, deadline=None)
def test_the_sum_of_a_text_is_the_documented_one(text: bytes) -> None:
    check_text(text)


@pytest.mark.parametrize("text", [b"", b" ", b"a", b"\n" * 300, b" \t\n\r\f" * 50, b"no end", b"an end\n", b" a " * 99])
def test_texts_of_nearly_nothing(text: bytes) -> None:
    check_text(text)


@pytest.mark.parametrize("length", LENGTHS)
def test_words_of_any_length_anywhere(length: int) -> None:
    """At the begin, in the middle, and at the end of what may be read, with and without a separator after it."""
    word = random.Random(length).randbytes(length).translate(bytes(b + 33 if b < 33 else b for b in range(256)))
    for text in (word, b" " + word + b"\n", b"x" * (length % 70) + b" " + word, word + b" a bc " + word + b" d"):
        check_text(text)


def test_a_word_across_every_place_of_blocks_and_batches() -> None:
    for start in (*range(50, 70), *range(4080, 4100), *range(8180, 8200)):
        check_text(b"a " * (start // 2) + b"b" * (start % 2) + b"x" * 20 + b" y" * 40, (LEVEL,))


def test_texts_at_random_have_the_same_sum_at_all_levels() -> None:
    rng = np.random.default_rng(3)
    alphabet = np.frombuffer(b"abcdefghijklmnop\0\xff       \n", np.uint8)
    for weight in (1, 4, 30):
        shares = np.where(np.isin(alphabet, [32, 10]), 1.0, weight)
        text = rng.choice(alphabet, 300_000, p=shares / shares.sum())
        assert len({sum_text(text, KEY, level=level) for level in HERE}) == 1
    check_text(text[:20_000].tobytes(), (LEVEL,))


def test_the_sum_of_a_text_is_that_of_its_pieces_in_any_order() -> None:
    text = b"the quick brown fox jumps over the lazy dog and an uncommonly-long-word-of-any-kind\n"
    shuffled = b" ".join(reversed(text.split()))
    assert sum_text(array(text), KEY) == sum_text(array(shuffled), KEY)
    parts = sum_text(array(text[:20]), KEY), sum_text(array(text[20:]), KEY)
    assert parts[0].plus(parts[1]) == sum_text(array(text), KEY)
    assert sum_text(array(text), KEY)[:2] != sum_text(array(text), bytes(32))[:2]


@given(runs, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_sum_of_counts_is_the_documented_one(run: dict[bytes, int], partitions: int) -> None:
    for r in range(partitions):
        mine = of_partition(run, r, partitions)
        expected = slow.sum_counts(mine, r, partitions, KEY)
        assert expected is not None
        offsets, data, numbers = columns(mine)
        for level in HERE:
            with before_guard_page(data.tobytes()) as guarded:
                assert sum_counts(offsets, guarded, numbers, r, partitions, KEY, level=level) == expected


@given(runs, st.integers(1, 5))
@settings(max_examples=60, deadline=None)
def test_the_sum_of_count_lines_is_the_documented_one(run: dict[bytes, int], partitions: int) -> None:
    for r in range(partitions):
        text = reference.format_counts(sorted(of_partition(run, r, partitions)))
        expected = slow.sum_lines(text, r, partitions, KEY)
        assert expected is not None
        for level in HERE:
            with before_guard_page(text) as guarded:
                assert sum_lines(guarded, r, partitions, KEY, level=level) == expected


def test_blocks_and_parts_of_a_word_count_add_up_to_its_text() -> None:
    rng = np.random.default_rng(1)
    vocabulary = [b"%x" % n for n in rng.integers(0, 2**62, 9000)] + [b"w%d" % n for n in range(5000)]
    vocabulary += [word * 3 for word in vocabulary[::9]]
    picks = np.minimum(rng.zipf(1.2, 60_000), len(vocabulary)) - 1
    text = array(b" ".join([*vocabulary, *(vocabulary[i] for i in picks)]))
    counter, partitions = WordCounter(), 3
    counter.count(text)
    found, lines = Sum(), Sum()
    for r, (n, size) in enumerate(zip(*counter.partition_sizes(partitions), strict=True)):
        run = np.empty(n + 1, np.int64), np.empty(size, np.uint8), np.empty(n, np.uint64)
        counter.fill(r, *run)
        one = sum_counts(*run, r, partitions, KEY)
        part, number = sum_lines(format_counts(*merge_counts([run])), r, partitions, KEY)
        assert (part, number) == (one, n)
        found, lines = found.plus(one), lines.plus(part)
        assert n > word_sums.ENTRIES  # more than one batch
    assert found == lines == sum_text(text, KEY)


def refused_counts(run: reference.Run, r: int = 0, partitions: int = 1) -> tuple[int, str]:
    with pytest.raises(Refused) as caught:
        sum_counts(*columns(run), r, partitions, KEY)
    assert slow.sum_counts(run, r, partitions, KEY) is None or "offsets" in caught.value.why
    return caught.value.at, caught.value.why


def in_order(*names: bytes) -> reference.Run:
    return of_partition(dict.fromkeys(names, 3), 0, 1)


LONG = b"a word of more than fifteen bytes".replace(b" ", b"-")


@pytest.mark.parametrize(
    "word", [b"b c", b" b", b"b\t", b"\n", b"b\rc", b"b\f", LONG + b" ", b" " + LONG, LONG * 3 + b"\n"]
)
def test_a_separator_in_a_word_of_a_block_is_refused(word: bytes) -> None:
    at, why = refused_counts(run := of_partition({b"a": 1, word: 1, b"z": 9}, 0, 1))
    assert (run[at][0], "separator" in why) == (word, True)


@pytest.mark.parametrize("count", [0, 2**32, 2**32 + 5, 2**63, 2**64 - 1])
def test_a_count_out_of_bounds_is_refused(count: int) -> None:
    run = in_order(b"a", b"b", LONG)
    for i, (word, _) in enumerate(run):
        assert refused_counts([*run[:i], (word, count), *run[i + 1 :]]) == (i, word_sums.WHY[4])
        lines = sorted([*run[:i], (word, count), *run[i + 1 :]])
        with pytest.raises(Refused, match="count"):
            sum_lines(array(reference.format_counts(lines)), 0, 1, KEY)


def test_the_largest_count_is_taken() -> None:
    run = [(word, COUNT_MAX) for word, _ in in_order(b"a", LONG)]
    assert sum_counts(*columns(run), 0, 1, KEY) == slow.sum_counts(run, 0, 1, KEY)


def test_entries_out_of_order_or_twice_are_refused() -> None:
    run = in_order(b"a", b"b", b"c", LONG, LONG + b"x")
    for i in range(len(run) - 1):
        swapped = [*run[:i], run[i + 1], run[i], *run[i + 2 :]]
        assert refused_counts(swapped) == (i + 1, word_sums.WHY[3])
        assert refused_counts([*run[: i + 1], *run[i:]]) == (i + 1, word_sums.WHY[3])


def test_words_of_equal_hash_are_in_the_order_of_their_bytes() -> None:
    """The first half of a word of 16 bytes makes a factor 0, so that the hash is 0, whatever the second half."""
    zero = (16 * reference.GOLDEN % 2**64).to_bytes(8, "little")
    run = [(zero + end, 1) for end in (b"10000000", b"1000000z", b"20000000")]
    assert {reference.hash64(word) for word, _ in run} == {0}
    assert sum_counts(*columns(run), 0, 1, KEY) == slow.sum_counts(run, 0, 1, KEY)
    assert refused_counts(run[::-1]) == (1, word_sums.WHY[3])


def test_an_entry_of_another_partition_is_refused() -> None:
    run = in_order(b"a", b"b", b"c", b"d", b"e", LONG)
    for r in range(3):
        mine = of_partition(dict(run), r, 3)
        assert sum_counts(*columns(mine), r, 3, KEY).items == 3 * len(mine)
        if mine:
            assert refused_counts(mine, (r + 1) % 3, 3) == (0, word_sums.WHY[2])
            with pytest.raises(Refused, match="partition"):
                sum_lines(array(reference.format_counts(sorted(mine))), (r + 1) % 3, 3, KEY)


@pytest.mark.parametrize(
    "offsets",
    [
        [0, 1, 1, 3],
        [1, 1, 2, 3],
        [0, 2, 1, 3],
        [0, 1, 2, 2],
        [0, 1, 2, 4],
        [0, -1, 2, 3],
        [0, 4, 2, 3],
        [0, 2**62, 2, 3],
    ],
)
def test_offsets_that_are_not_in_order_are_refused(offsets: list[int]) -> None:
    with pytest.raises(Refused, match="offsets"):
        sum_counts(np.array(offsets), array(b"abc"), np.ones(3, np.uint64), 0, 1, KEY)


@pytest.mark.parametrize(
    "text",
    [b"a\t1", b"a\t1\n\n", b"\n", b"a\n", b"a 1\n", b"\t1\n", b"a\t\n", b"a\t-1\n", b"a\t+1\n", b"a\t01\n", b"a\t1 \n",
     b"a\t1\r\n", b"a\t 1\n", b"a\t1.0\n", b"a\t1\nb", b"a\t1\nb\t", b"a\t1\tb\n", b"a b\t1\n",
     b"a\t18446744073709551617\n",
     b"a\t1\na\t1\n", b"b\t1\na\t1\n", b"ab\t1\na\t1\n", b"a\t99999999999999999999999999999\n", b"a\x0c\t1\n"],
)  # fmt: skip
def test_lines_out_of_form_or_order_are_refused(text: bytes) -> None:
    assert slow.sum_lines(text, 0, 1, KEY) is None
    for level in HERE:
        with before_guard_page(text) as guarded, pytest.raises(Refused):
            sum_lines(guarded, 0, 1, KEY, level=level)


@given(
    st.lists(st.sampled_from([b"a", b"b", b"ab", b"\t", b"\n", b"1", b"07", b"4294967295", b" ", LONG]), max_size=14)
)
@settings(max_examples=400, deadline=None)
def test_lines_are_refused_exactly_if_the_definition_says_so(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    try:
        found: object = sum_lines(array(text), 0, 1, KEY)
    except Refused:
        found = None
    assert found == slow.sum_lines(text, 0, 1, KEY)


def test_a_wrong_line_is_named_by_its_number() -> None:
    lines = [b"%06d\t1\n" % i for i in range(10_000)]
    lines[9000] = b"009000\t0\n"
    with pytest.raises(Refused, match="entry 9000 has a count") as caught:
        sum_lines(array(b"".join(lines)), 0, 1, KEY)
    assert caught.value.at == 9000


def test_arrays_of_another_kind_are_not_taken() -> None:
    good = columns(in_order(b"a", b"b"))
    with pytest.raises(ValueError, match="data must be"):
        sum_text(np.zeros(4, np.int8), KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="contiguous"):
        sum_text(np.zeros(4, np.uint8)[::2], KEY)
    with pytest.raises(ValueError, match="32 bytes"):
        sum_text(good[1], b"short")
    with pytest.raises(ValueError, match="offsets must have 3"):
        sum_counts(good[0][:-1], *good[1:], 0, 1, KEY)
    with pytest.raises(ValueError, match="counts must be"):
        sum_counts(*good[:2], good[2].astype(np.int64), 0, 1, KEY)  # type: ignore[arg-type]
    for r, partitions in ((1, 1), (-1, 2), (0, 0), (0, 65537)):
        with pytest.raises(ValueError, match="there is no partition"):
            sum_counts(*good, r, partitions, KEY)
        with pytest.raises(ValueError, match="there is no partition"):
            sum_lines(good[1], r, partitions, KEY)
