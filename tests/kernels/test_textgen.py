"""Text: a function of (chunk, size, seed), words by Zipf's law."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import reference as ref
from quoreduce_kernels.fingerprint import checksum128
from quoreduce_kernels.textgen import Vocabulary, generate_text, make_vocabulary, splitmix64


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    return make_vocabulary(300, 7)


@given(st.integers(0, 2**64 - 1), st.integers(0, 1000))
def test_splitmix64(stream: int, k: int) -> None:
    assert int(splitmix64(stream, k, 1)[0]) == ref.splitmix64(stream, k)


@given(st.integers(0, 5), st.integers(1, 700), st.integers(0, 2**64 - 1))
@settings(max_examples=60, deadline=None)
def test_text_is_the_documented_one(chunk: int, nbytes: int, seed: int) -> None:
    vocabulary = make_vocabulary(300, 7)
    text = generate_text(chunk, nbytes, seed, vocabulary).tobytes()
    assert text == ref.generate_text(chunk, nbytes, seed, vocabulary.words(), [int(x) for x in vocabulary.law])
    assert len(text) == nbytes
    assert text.endswith(b"\n")


def test_nothing_is_written_beyond_a_chunk(small: Vocabulary) -> None:
    for nbytes in range(1, 200):
        guarded = np.full(nbytes + 64, 0xEE, np.uint8)
        generate_text(0, nbytes, 1, small, guarded[32 : 32 + nbytes])
        assert (guarded[:32] == 0xEE).all()
        assert (guarded[32 + nbytes :] == 0xEE).all()


def test_chunks_and_seeds_differ(small: Vocabulary) -> None:
    texts = {generate_text(chunk, 500, seed, small).tobytes() for chunk in range(5) for seed in range(5)}
    assert len(texts) == 25


def test_words_are_single_spaced_in_lines(small: Vocabulary) -> None:
    text = generate_text(3, 100_000, 1, small).tobytes()
    known = set(small.words())
    lines = text.split(b"\n")
    assert all(word in known for line in lines[:-2] for word in line.split(b" "))
    assert all(90 <= len(line) <= 90 + 24 for line in lines[:-2])


def test_frequencies_follow_the_law(small: Vocabulary) -> None:
    counts = Counter(generate_text(0, 2_000_000, 1, small).tobytes().split())
    total = sum(counts.values())
    law = np.diff(small.law.astype(np.float64), prepend=0) / 2**53
    for rank in (0, 1, 5, 50, 200):
        assert counts[small.words()[rank]] / total == pytest.approx(law[rank], rel=0.1)
    assert law[0] / law[99] == pytest.approx((100 + 2.7) / (1 + 2.7), rel=1e-6)


@pytest.mark.parametrize("words", [1, 2, 26, 100_000])
def test_vocabulary_is_of_distinct_words(words: int) -> None:
    made = make_vocabulary(words).words()
    assert len(set(made)) == len(made) == words
    assert all(1 <= len(word) <= 24 and word.isalpha() and word.islower() for word in made)


def test_frequent_words_are_shorter() -> None:
    lengths = [len(word) for word in make_vocabulary(10_000).words()]
    assert np.mean(lengths[:100]) < np.mean(lengths[1000:2000]) < np.mean(lengths[-1000:])


def test_default_text_never_changes() -> None:
    assert checksum128(generate_text(0, 1_000_000)) == 0x2CDA7BA4AA662A89E78CE117D1F259C8


def test_bad_arguments_are_refused() -> None:
    calls = [
        lambda: make_vocabulary(0),
        lambda: make_vocabulary(1 << 21),
        lambda: generate_text(-1, 10),
        lambda: generate_text(0, 0),
        lambda: generate_text(0, 10, out=np.empty(9, np.uint8)),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
