"""Word kernels against their plain twins, on random and boundary inputs."""

from __future__ import annotations

import random

import numpy as np
import pytest
from guarded import before_guard_page
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import intrinsics, reference, words
from quoreduce_kernels.words import WordCounter, format_counts, hash64, merge_counts

# Texts rich in what matters: separators, NULs, lengths about 8 and 15 and 16, words that are prefixes of others.
_bytes = st.sampled_from(
    [b"a", b"b", b"\0", b"\0\0", b" ", b"\n", b"\t\r\f", b"\x0b", b"\xff", b"x" * 7, b"y" * 14, b"z" * 33]
)
texts = st.lists(_bytes, max_size=120).map(b"".join)
keys = st.binary(max_size=40) | st.integers(0, 30).map(lambda n: b"\0" * n) | st.integers(0, 40).map(lambda n: b"p" * n)
runs_of_keys = st.lists(st.lists(st.tuples(keys, st.integers(0, 2**64 - 1)), max_size=60), max_size=4)


@pytest.fixture(scope="module")
def counter() -> WordCounter:
    return WordCounter()


def columns(run: reference.Run) -> words.Columns:
    offsets = np.cumsum([0, *(len(word) for word, _ in run)], dtype=np.int64)
    data = np.frombuffer(b"".join(word for word, _ in run), np.uint8)
    return offsets, data, np.array([count for _, count in run], np.uint64)


def entries(run: words.Columns) -> reference.Run:
    offsets, data, counts = run
    raw = data.tobytes()
    return [(raw[offsets[i] : offsets[i + 1]], int(counts[i])) for i in range(len(counts))]


def filled(counter: WordCounter, partitions: int) -> list[reference.Run]:
    """All partitions, through buffers with guards on both sides."""
    result = []
    n, nbytes = counter.partition_sizes(partitions)
    for r in range(partitions):
        guarded = np.full(nbytes[r] + 32, 0xEE, np.uint8)
        run = np.full(n[r] + 1, -1, np.int64), guarded[16 : 16 + nbytes[r]], np.zeros(n[r], np.uint64)
        counter.fill(r, *run)
        assert (guarded[:16] == 0xEE).all()
        assert (guarded[16 + nbytes[r] :] == 0xEE).all()
        result.append(entries(run))
    return result


def check_count(counter: WordCounter, text: bytes, partitions: int = 3) -> None:
    expected = reference.count_words(text)
    assert counter.count(np.frombuffer(text, np.uint8)) == len(expected)
    assert filled(counter, 1) == [expected]
    assert filled(counter, partitions) == reference.partitions_of(expected, partitions)


@given(st.binary(max_size=80))
def test_hash_is_the_documented_one(word: bytes) -> None:
    assert hash64(word) == reference.hash64(word)


@pytest.mark.parametrize("length", range(70))
def test_hash_takes_the_length_in(length: int) -> None:
    hashes = {hash64(b"\0" * n) for n in range(length + 1)}
    assert len(hashes) == length + 1
    assert hash64(b"a" * length) == reference.hash64(b"a" * length)


def test_hash_values_never_change() -> None:
    """They order what is voted on: a change breaks agreement between versions."""
    assert [
        hash64(word) for word in (b"", b"a", b"a\0", b"quorum", b"fifteen bytes!!", b"sixteen bytes!!!", b"q" * 1000)
    ] == [
        0xFF6C188A20D5B759,
        0x73619FCA27A87CAA,
        0x50C609A8BB11A1CA,
        0x0F5541B80268429E,
        0x8255ABCA48C82126,
        0x4C0C1189F50B9987,
        0xCC9B372F29CEBEFA,
    ]


def test_constants_of_the_twin_are_those_of_the_kernels() -> None:
    assert reference.SEPARATORS == intrinsics.SEPARATORS
    assert (reference.SALT_LOW, reference.SALT_HIGH) == (intrinsics.SALT_LOW, intrinsics.SALT_HIGH)
    assert reference.GOLDEN == words.GOLDEN


def test_partitions_of_a_text_are_even(counter: WordCounter) -> None:
    text = b" ".join(b"%d" % i for i in range(16000))
    counter.count(np.frombuffer(text, np.uint8))
    n, _ = counter.partition_sizes(16)
    assert 800 < n.min() <= n.max() < 1200


@settings(max_examples=300)
@given(texts, st.integers(1, 9))
def test_count_agrees_with_twin(text: bytes, partitions: int) -> None:
    check_count(WordCounter(), text, partitions)


@given(st.binary(max_size=600))
def test_count_of_any_bytes(text: bytes) -> None:
    check_count(WordCounter(), text)


@given(st.lists(texts, min_size=2, max_size=4))
def test_reuse_leaves_no_trace(some: list[bytes]) -> None:
    counter = WordCounter()
    for text in some:
        check_count(counter, text)


@pytest.mark.parametrize(
    "size", [0, 1, 2, 15, 16, 17, 63, 64, 65, 79, 80, 81, 143, 144, 511, 512, 513, 527, 528, 529, 1055, 1056]
)
@pytest.mark.parametrize("fill", [b"a", b" ", b"a ", b" a", b"\0", b"ab cd", b"fifteen bytes!! ".replace(b" ", b"_")])
def test_sizes_about_blocks_and_batches(counter: WordCounter, size: int, fill: bytes) -> None:
    check_count(counter, (fill * (size // len(fill) + 1))[:size])


@pytest.mark.parametrize("length", [1, 7, 8, 14, 15, 16, 17, 31, 32, 33, 63, 64, 65, 500, 512, 513, 5000])
@pytest.mark.parametrize("before", [0, 1, 48, 63, 64, 500])
def test_word_lengths_and_positions(counter: WordCounter, length: int, before: int) -> None:
    for after in (b"", b" ", b" b" * 40):
        check_count(counter, b" " * before + b"w" * length + after)


@pytest.mark.parametrize("separator", range(256))
def test_which_bytes_separate(counter: WordCounter, separator: int) -> None:
    check_count(counter, b"ab" + bytes([separator]) + b"cd" * 50 + bytes([separator]) * 3)


def test_nul_is_a_byte_like_any_other(counter: WordCounter) -> None:
    text = b" ".join(b"a" + b"\0" * n for n in range(40)) + b" " + b" ".join(b"\0" * n for n in range(1, 40))
    check_count(counter, text)
    assert counter.count(np.frombuffer(text, np.uint8)) == 79


def test_words_of_many_megabytes(counter: WordCounter) -> None:
    big = b"m" * (5 << 20)
    text = b"a " + big + b" b " + big + b"! " + big + b" " + big
    assert counter.count(np.frombuffer(text, np.uint8)) == 4
    assert dict(filled(counter, 1)[0]) == {b"a": 1, b"b": 1, big: 3, big + b"!": 1}


@pytest.mark.parametrize("start", [1 << 10, 1 << 14])
def test_growth_of_both_tables(start: int) -> None:
    generator = random.Random(start)
    vocabulary = [b"%x" % generator.getrandbits(generator.choice([8, 16, 40, 64, 90, 200])) for _ in range(30000)]
    text = b" ".join(generator.choices(vocabulary, k=60000))
    check_count(WordCounter(start), text, 7)


def test_size_hint_and_history_never_show() -> None:
    text = b" ".join(b"%d" % (i * i) for i in range(5000))
    used = WordCounter()
    used.count(np.frombuffer(b" ".join(b"x%d" % i for i in range(40000)), np.uint8))
    outputs = []
    for counter in (used, WordCounter(), WordCounter(1 << 20)):
        counter.count(np.frombuffer(text, np.uint8))
        outputs.append(filled(counter, 5))
    assert outputs[0] == outputs[1] == outputs[2]


@given(texts)
def test_reads_nothing_after_the_text(text: bytes) -> None:
    counter = WordCounter()
    with before_guard_page(text) as data:
        counter.count(data)
    assert filled(counter, 1) == [reference.count_words(text)]


@pytest.mark.parametrize("shift", range(1, 8))
def test_unaligned_read_only_input(counter: WordCounter, shift: int) -> None:
    text = b"the quick brown fox, " * 100
    data = np.frombuffer(b"z" * shift + text, np.uint8)[shift:]
    assert not data.flags.writeable
    counter.count(data)
    assert filled(counter, 1) == [reference.count_words(text)]


def test_counts_beyond_32_bits_are_carried() -> None:
    """What four billion words would do to a value, without reading them."""
    counter = WordCounter()
    text = b" ".join(b"%d" % i for i in range(5000)) + b" many"
    counter.count(np.frombuffer(text, np.uint8))
    table = counter._table
    values = table._buckets.view(np.uint32).reshape(-1, 16)
    values[:, 12:15][values[:, 12:15] == 1] = 2**32 - 1
    words.fold_counts(table.state)
    assert values[:, 12:15].max() == 2**31 - 1
    for _ in range(3):
        values[:, 12:15][values[:, 12:15] > 0] |= 2**31
        words.fold_counts(table.state)
    table.make_room(int(table.state["short_words_max"]), 0)  # growth keeps carries
    assert len(table._buckets) > values.nbytes
    counter._ranks, counter._references = table.order(by_hash=True)
    assert {count for _, count in filled(counter, 1)[0]} == {2**32 - 1 + 3 * 2**31}


def test_folding_between_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(words, "FOLD_BYTES", 1024)
    check_count(WordCounter(), b"fold these words, and a-rather-long-one " * 500)


def test_ties_of_hashes_are_ordered_by_word() -> None:
    """Words whose hash is the same by construction: the second factor cancels what came before."""
    cancel = intrinsics.SALT_HIGH.to_bytes(8, "little")
    keys = [b"%08d" % (7 * i % 100) + cancel + b"tail of sixteen." for i in range(100)]
    run = [(key, i) for i, key in enumerate(keys)]
    assert len({hash64(key) for key in keys}) == 1
    assert entries(merge_counts([columns(run), columns(run)])) == reference.merge_counts([run, run])
    table = words._Table(sums=True)
    offsets, data, counts = columns(run)
    table.state["stop"] = len(run)
    begin = data.ctypes.data
    words.merge_run(table.state, offsets.ctypes.data, begin, counts.ctypes.data, begin + len(data))
    ranks, references = table.order(by_hash=True)
    assert set(ranks) == {hash64(keys[0])}
    out = np.empty(101, np.int64), np.empty(len(data), np.uint8), np.empty(100, np.uint64)
    words.fill_columns(table.state, references, *out)
    assert entries(out) == sorted(run)


@settings(max_examples=200)
@given(runs_of_keys)
def test_merge_and_text_agree_with_twins(runs: list[reference.Run]) -> None:
    expected = reference.merge_counts(runs)
    merged = merge_counts([columns(run) for run in runs])
    assert entries(merged) == expected
    assert format_counts(*merged).tobytes() == reference.format_counts(expected)


@pytest.mark.parametrize("prefix", [b"", b"p", b"user0000", b"http://www.example.org/", b"\0" * 20])
def test_order_of_words_with_a_common_prefix(prefix: bytes) -> None:
    generator = random.Random(1)
    runs = [
        [
            (
                prefix + generator.choice([b"%d", b"%x\0", b"\0%d"]) % generator.getrandbits(14),
                generator.getrandbits(40),
            )
            for _ in range(4000)
        ]
        for _ in range(3)
    ]
    assert entries(merge_counts([columns(run) for run in runs])) == reference.merge_counts(runs)


def test_order_of_words_of_nuls() -> None:
    run = [(b"\0" * n, n) for n in range(400)]
    random.Random(2).shuffle(run)
    assert entries(merge_counts([columns(run)])) == sorted(run)


def test_merge_of_partitions_gives_the_count_of_the_whole() -> None:
    generator = random.Random(3)
    splits = [b" ".join(b"%x" % int(generator.expovariate(0.001)) for _ in range(20000)) for _ in range(4)]
    total: reference.Run = []
    counters = [WordCounter() for _ in splits]
    for counter, split in zip(counters, splits, strict=True):
        counter.count(np.frombuffer(split, np.uint8))
    parts = [filled(counter, 5) for counter in counters]
    for r in range(5):
        total += entries(merge_counts([columns(part[r]) for part in parts]))
    assert sorted(total) == sorted(reference.count_words(b" ".join(splits)))


def test_merge_reads_nothing_after_the_data() -> None:
    run = [(b"%d" % i, i) for i in range(300)] + [(b"last one of many bytes", 1), (b"z", 2)]
    offsets, data, counts = columns(run)
    with before_guard_page(data.tobytes()) as mapped:
        merged = merge_counts([(offsets, mapped, counts)])
        assert entries(merged) == sorted(run)
        assert format_counts(offsets, mapped, counts).tobytes() == reference.format_counts(run)


def test_merge_takes_slices_of_unaligned_buffers() -> None:
    run = [(b"one", 1), (b"two", 2), (b"three", 3)]
    offsets, data, counts = columns(run)
    raw = b"?" + offsets.tobytes() + counts.tobytes()
    view = np.frombuffer(raw, np.int64, 4, offset=1), data, np.frombuffer(raw, np.uint64, 3, offset=33)
    assert entries(merge_counts([view])) == sorted(run)
    part = (view[0][1:], data, view[2][1:])
    assert entries(merge_counts([part])) == sorted(run[1:])
    assert format_counts(*part).tobytes() == b"two\t2\nthree\t3\n"


@pytest.mark.parametrize(
    "count", [0, 1, 9, 10, 99, 100, 999, 1000, 9999, 10**4, 10**5 - 1, 10**5, 10**8, 2**32, 10**19, 2**64 - 1]
)
def test_digits(count: int) -> None:
    run = [(b"k", count), (b"", count)]
    assert format_counts(*columns(run)).tobytes() == reference.format_counts(run)


def test_nothing_in_nothing_out() -> None:
    for runs in ([], [columns([])]):
        merged = merge_counts(runs)
        assert entries(merged) == []
        assert list(merged[0]) == [0]
        assert format_counts(*merged).tobytes() == b""


def test_fill_refuses_buffers_of_other_sizes() -> None:
    counter = WordCounter()
    counter.count(np.frombuffer(b"a b cc", np.uint8))
    with pytest.raises(ValueError, match="call partition_sizes first"):
        counter.fill(0, np.empty(4, np.int64), np.empty(4, np.uint8), np.empty(3, np.uint64))
    counter.partition_sizes(1)
    for bad in (
        (np.empty(3, np.int64), np.empty(4, np.uint8), np.empty(3, np.uint64)),
        (np.empty(4, np.int64), np.empty(5, np.uint8), np.empty(3, np.uint64)),
        (np.empty(4, np.int64), np.empty(4, np.uint8), np.empty(3, np.int64)),
        (np.empty(4, np.int64), np.frombuffer(b"1234", np.uint8), np.empty(3, np.uint64)),
        (np.empty(8, np.int64)[::2], np.empty(4, np.uint8), np.empty(3, np.uint64)),
    ):
        with pytest.raises(ValueError, match=r"offsets|data|counts"):
            counter.fill(0, *bad)


@pytest.mark.parametrize("partitions", [0, -1, 65537])
def test_bounds_of_partitions(counter: WordCounter, partitions: int) -> None:
    with pytest.raises(ValueError, match="1 to 65536"):
        counter.partition_sizes(partitions)


@pytest.mark.parametrize("offsets", [[0, 2, 1], [-1, 0, 1], [0, 1, 4], [0, 1], [], [2**62, 2**62, 2**62]])
def test_merge_refuses_offsets_out_of_order(offsets: list[int]) -> None:
    run = np.array(offsets, np.int64), np.zeros(3, np.uint8), np.ones(2, np.uint64)
    for use in (lambda: merge_counts([run]), lambda: format_counts(*run)):
        with pytest.raises(ValueError, match=r"offsets|counts"):
            use()


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="uint8"):
        WordCounter().count(np.zeros(3, np.int8))
    with pytest.raises(ValueError, match="contiguous"):
        WordCounter().count(np.zeros(6, np.uint8)[::2])
    with pytest.raises(ValueError, match="negative"):
        WordCounter(-1)
