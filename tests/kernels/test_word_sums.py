"""What words add up to: kernels against the plain twin, forms that are refused, and memory that is not read."""

from __future__ import annotations

import ctypes
import itertools
import mmap
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from quoreduce_kernels import check_reference, prf, word_sums
from quoreduce_kernels.words import WordCounter, format_counts, merge_counts

KEY = bytes(range(32))
KEYS = prf.expand(KEY)
R = 3
LENGTHS = (*range(1, 19), 31, 32, 33, 63, 64, 65, 127, 128, 129, 255, 256, 257, 4095, 4096, 4097)
WORDS = st.lists(st.sampled_from(LENGTHS).flatmap(lambda n: st.binary(min_size=n, max_size=n)), max_size=40)
TEXTS = st.lists(
    st.sampled_from([b" ", b"\n", b"\t", b"a", b"bc", b"the", b"x" * 15, b"y" * 16, b"z" * 70]), max_size=300
)


def as_array(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text, np.uint8)


def as_tuple(sums: NDArray[np.uint64]) -> tuple[int, ...]:
    return tuple(int(one) for one in sums)


def twin(text: bytes) -> tuple[int, ...]:
    return check_reference.sum_text(text, KEY, prf.function())


def counted(text: bytes) -> list[tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]]:
    """The blocks that word count makes of a text."""
    counter = WordCounter()
    counter.count(as_array(text))
    blocks = []
    for r, (n, nbytes) in enumerate(zip(*(one.tolist() for one in counter.partition_sizes(R)), strict=True)):
        block = np.zeros(n + 1, np.int64), np.zeros(nbytes, np.uint8), np.zeros(n, np.uint64)
        counter.fill(r, *block)
        blocks.append(block)
    return blocks


def part(block: tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.uint64]]) -> bytes:
    return format_counts(*merge_counts([block])).tobytes()


def padded(text: bytes) -> NDArray[np.uint8]:
    return np.frombuffer(text + bytes(word_sums.PADDING), np.uint8)[: len(text)]


@given(TEXTS)
def test_a_text_adds_up_as_the_twin_says(pieces: list[bytes]) -> None:
    text = b"".join(pieces)
    assert as_tuple(word_sums.sum_text(as_array(text), KEYS)) == twin(text)


@pytest.mark.parametrize("length", [*LENGTHS, 32_767, 32_768, 32_769, 40_000, 100_000])
@pytest.mark.parametrize("before", [0, 1, 63])
def test_words_of_any_length_wherever_they_begin(length: int, before: int) -> None:
    text = b"a " * before + b"q" * length + b" b" * 200
    assert as_tuple(word_sums.sum_text(as_array(text), KEYS)) == twin(text)


def test_a_text_of_separators_or_of_nothing_adds_up_to_nothing() -> None:
    for text in (b"", b" ", b"\n" * 5000):
        assert as_tuple(word_sums.sum_text(as_array(text), KEYS)) == (0, 0, 0)


@given(WORDS)
def test_blocks_and_parts_add_up_to_what_their_text_does(words: list[bytes]) -> None:
    text = b" ".join(words)
    total, lines = np.zeros(3, np.uint64), np.zeros(3, np.uint64)
    for r, block in enumerate(counted(text)):
        total += word_sums.sum_counts(*block, KEYS, (r, R))
        sums, count = word_sums.sum_lines(padded(part(block)), KEYS, (r, R))
        assert count == len(block[2])
        lines += sums
    assert as_tuple(total) == as_tuple(lines) == twin(text)


def test_a_large_text_adds_up(kjv: Path) -> None:
    text = kjv.read_bytes()
    total = sum(word_sums.sum_counts(*block, KEYS, (r, R)) for r, block in enumerate(counted(text)))
    assert as_tuple(word_sums.sum_text(as_array(text), KEYS)) == as_tuple(total)


def test_another_key_gives_another_sum() -> None:
    text = as_array(b"the cat sat on the mat")
    assert as_tuple(word_sums.sum_text(text, KEYS)) != as_tuple(word_sums.sum_text(text, prf.expand(bytes(32))))


@pytest.mark.parametrize("count", [0, 1 << 32, 1 << 63])
def test_a_count_out_of_range_is_refused(count: int) -> None:
    block = np.array([0, 1], np.int64), as_array(b"a"), np.array([count], np.uint64)
    with pytest.raises(ValueError, match="entry 0"):
        word_sums.sum_counts(*block, KEYS)
    with pytest.raises(ValueError, match="byte 0"):
        word_sums.sum_lines(padded(b"a\t%d\n" % count), KEYS, (0, 1))


@pytest.mark.parametrize("count", [1, (1 << 32) - 1])
def test_the_largest_counts_add_up(count: int) -> None:
    block = np.array([0, 1], np.int64), as_array(b"a"), np.array([count], np.uint64)
    want = check_reference.sum_counted([(b"a", count)], KEY, prf.function())
    assert as_tuple(word_sums.sum_counts(*block, KEYS)) == want
    assert as_tuple(word_sums.sum_lines(padded(b"a\t%d\n" % count), KEYS, (0, 1))[0]) == want


TEXT = b"in the beginning god created the heaven and the earth " + b"w" * 16 + b" " + b"v" * 40
ODD_LINES = (
    b"a 1\n", b"\t1\n", b"a\t\n", b"a\t01\n", b"a\t1", b"a\t1\n\n", b"a\t1 \n", b"a\tx\n", b"b\t1\na\t1\n",
    b"a\t1\na\t1\n", b"a\t1\r\n", b"\na\t1\n", b"a\t-1\n", b"a\t+1\n", b"a\t4294967296\n",
    b"a\t99999999999999999999\n",
)  # fmt: skip


@pytest.mark.parametrize("text", ODD_LINES)
def test_lines_in_any_other_form_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match="line at byte"):
        word_sums.sum_lines(padded(text), KEYS, (0, 1))


def test_entries_out_of_form_order_or_partition_are_refused() -> None:
    (offsets, data, counts) = counted(TEXT)[0]
    n = len(counts)
    assert n > 2
    spoilt = []
    for i in range(n):
        broken = data.copy()
        broken[offsets[i]] = 32
        spoilt.append((offsets, broken, counts))
    spoilt.append((np.delete(offsets, 1), data, counts[1:]))  # two words in one: another partition, or order
    spoilt.append((np.insert(offsets, 1, 0), data, np.insert(counts, 0, 1)))  # an empty word
    for block in spoilt:
        with pytest.raises(ValueError, match="out of form"):
            word_sums.sum_counts(*block, KEYS, (0, R))
    with pytest.raises(ValueError, match="out of form"):
        word_sums.sum_counts(offsets, data, counts, KEYS, (1, R))
    for wrong in (offsets[:-1], offsets + 1):
        with pytest.raises(ValueError, match="do not fit"):
            word_sums.sum_counts(wrong, data, counts, KEYS)


def test_two_words_in_the_other_order_are_refused() -> None:
    text = b" ".join(b"%d" % n for n in range(60))
    offsets, data, counts = counted(text)[0]
    words = [data[a:b].tobytes() for a, b in itertools.pairwise(offsets)]
    words[3], words[4] = words[4], words[3]
    ends = np.cumsum([0, *map(len, words)])
    with pytest.raises(ValueError, match="entry 4"):
        word_sums.sum_counts(ends, as_array(b"".join(words)), counts, KEYS, (0, R))


@pytest.fixture
def edge() -> NDArray[np.uint8]:
    """A page after which nothing can be read."""
    size = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * size)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(address + size), size, 0) == 0
    return np.frombuffer(memory, np.uint8)[:size]


@pytest.mark.parametrize("tail", [b"a", b"the end", b"x" * 15, b"y" * 16, b"z" * 200, b" ", b"a b c d e f g"])
def test_nothing_behind_a_text_or_a_block_is_read(edge: NDArray[np.uint8], tail: bytes) -> None:
    text = (b"lorem ipsum " * 400)[: edge.size - len(tail)] + tail
    edge[:] = as_array(text)
    assert as_tuple(word_sums.sum_text(edge, KEYS)) == twin(text)
    word = tail.strip() and tail.split()[-1]
    if word:
        block = edge[edge.size - len(word) :]
        sums = word_sums.sum_counts(np.array([0, len(word)]), block, np.ones(1, np.uint64), KEYS)
        assert as_tuple(sums) == check_reference.sum_counted([(word, 1)], KEY, prf.function())


PORTABLE = """
import sys; import numpy as np
from quoreduce_kernels import check_reference, prf, word_sums
text, key = sys.stdin.buffer.read(), bytes(range(32))
assert prf.function() == sys.argv[1], prf.function()
sums = word_sums.sum_text(np.frombuffer(text, np.uint8), prf.expand(key))
assert tuple(map(int, sums)) == check_reference.sum_text(text, key, prf.function())
"""


@pytest.mark.nightly
@pytest.mark.parametrize(("cpu", "known", "function"), [("x86-64", "", "siphash"), ("haswell", "+aes", "aes")])
def test_other_cpus_add_up_right_too(kjv: Path, tmp_path: Path, cpu: str, known: str, function: str) -> None:
    """Kernels compiled for less than this CPU: its instructions for whole vectors of blocks are not used."""
    environment = {**os.environ, "NUMBA_CPU_NAME": cpu, "NUMBA_CPU_FEATURES": known, "XDG_CACHE_HOME": str(tmp_path)}
    text = kjv.read_bytes()[:20_000]
    subprocess.run([sys.executable, "-c", PORTABLE, function], input=text, env=environment, check=True, timeout=300)


def test_sums_are_not_luckily_strong(kjv: Path) -> None:
    """Of wrong counts, as many as chance allows have the right high 8 bits, and none have the right sum."""
    block = counted(kjv.read_bytes()[:100_000])[0]
    right = word_sums.sum_counts(*block, KEYS)
    rng, passed = np.random.default_rng(5), Counter[str]()
    trials = 20_000
    for _ in range(trials):
        counts = block[2].copy()
        counts[rng.integers(counts.size)] += np.uint64(rng.integers(1, 1000))
        wrong = word_sums.sum_counts(*block[:2], counts, KEYS)
        passed["8 bits"] += int(wrong[0]) >> 56 == int(right[0]) >> 56
        passed["all"] += as_tuple(wrong[:2]) == as_tuple(right[:2])
    assert passed["all"] == 0
    assert 0.75 < passed["8 bits"] / (trials / 256) < 1.25
