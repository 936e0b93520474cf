"""Sums of pairs against their plain twins, at all levels of this CPU; and what is refused."""

from __future__ import annotations

import random

import numpy as np
import pytest
from guarded import before_guard_page
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import check_reference as slow
from quoreduce_kernels import pair_sums, pairs, reference
from quoreduce_kernels.check_hash import Refused, Sum
from quoreduce_kernels.check_intrinsics import LEVEL, LEVELS
from quoreduce_kernels.pair_sums import sum_pair_lines, sum_pairs, sum_pairs_text

HERE = LEVELS[: LEVELS.index(LEVEL) + 1]
KEY = bytes(range(7, 39))

_pieces = st.sampled_from(
    [b"a", b"b", b"\t", b"\n", b"\r\n", b"\r", b" ", b"\0", b"\xff", b"k" * 17, b"v" * 70, b"long" * 33]
)
texts = st.lists(_pieces, max_size=60).map(b"".join)
no_lines = st.binary(max_size=40).map(lambda raw: raw.replace(b"\n", b"").replace(b"\t", b""))
some_pairs = st.lists(st.tuples(no_lines | st.sampled_from([b"", b"a", b"same-key"]), no_lines), max_size=30)


def array(raw: bytes) -> np.ndarray:
    return np.frombuffer(raw, np.uint8)


def columns(rows: list[tuple[bytes, bytes]]) -> list[np.ndarray]:
    made = []
    for values in zip(*rows, strict=True) if rows else ([], []):
        made += [np.cumsum([0, *map(len, values)], dtype=np.int64), array(b"".join(values))]
    return made


def of_partition(rows: list[tuple[bytes, bytes]], r: int, partitions: int) -> list[tuple[bytes, bytes]]:
    return reference.partition_pairs(rows, partitions)[r]


@given(texts, st.booleans())
@settings(max_examples=120, deadline=None)
def test_the_sum_of_a_text_is_that_of_its_pairs(text: bytes, placed: bool) -> None:
    expected = slow.sum_pairs(reference.split_pairs(text), KEY, 0 if placed else None)
    for level in HERE:
        with before_guard_page(text) as data:
            assert sum_pairs_text(data, KEY, placed=placed, level=level) == expected


@given(some_pairs, st.integers(1, 3), st.none() | st.integers(0, 2**40))
@settings(max_examples=80, deadline=None)
def test_the_sum_of_a_block_is_the_documented_one(
    rows: list[tuple[bytes, bytes]], partitions: int, first: int | None
) -> None:
    for r in range(partitions):
        mine = of_partition(rows, r, partitions)
        for level in HERE:
            found = sum_pairs(*columns(mine), r, partitions, KEY, first=first, level=level)
            assert found == slow.sum_pairs(mine, KEY, first)


@given(some_pairs, st.integers(1, 3))
@settings(max_examples=80, deadline=None)
def test_the_sum_of_a_part_is_the_documented_one(rows: list[tuple[bytes, bytes]], partitions: int) -> None:
    for r in range(partitions):
        mine = sorted(of_partition(rows, r, partitions), key=lambda pair: pair[0])
        text = reference.format_pairs(mine)
        expected = slow.sum_pair_lines(text, r, partitions, KEY)
        assert expected is not None
        for level in HERE:
            with before_guard_page(text) as data:
                assert sum_pair_lines(data, r, partitions, KEY, level=level) == expected


@given(
    st.lists(st.sampled_from([b"a", b"b", b"\t", b"\n", b"a\tx\n", b"b\t\n", b"\r", b"k" * 20]), max_size=12), st.data()
)
@settings(max_examples=300, deadline=None)
def test_lines_are_refused_exactly_if_the_definition_says_so(pieces: list[bytes], data: st.DataObject) -> None:
    text = b"".join(pieces)
    lines = text.count(b"\n")
    size = data.draw(st.sampled_from([lines, lines, lines + 1]))
    order = data.draw(
        st.none() | st.lists(st.tuples(st.integers(0, 2), st.integers(0, 3)), min_size=size, max_size=size)
    )
    witness = order and (*(np.array([one[k] for one in order], np.uint32) for k in (0, 1)), 2)
    try:
        found: object = sum_pair_lines(array(text), 0, 1, KEY, witness=witness or None)  # type: ignore[arg-type]
    except Refused:
        found = None
    assert found == slow.sum_pair_lines(text, 0, 1, KEY, (order, 2) if order else None)


def a_job() -> tuple[list[bytes], list[tuple[bytes, list[tuple[int, int]]]]]:
    """(texts of three maps, (part, its witness) of two partitions), as the kernels of the job make them."""
    rng = random.Random(5)
    values = [rng.randbytes(rng.randrange(300)).replace(b"\n", b"") for _ in range(1600)]
    lines = [b"key%d\t%s\n" % (rng.randrange(300), value) for value in values]
    maps = [b"".join(lines[low:high]) for low, high in ((0, 900), (900, 900), (900, 1600))]
    rows = [pairs.lines(array(text)) for text in maps]
    parts = []
    for r in range(2):
        blocks, witness = [], []
        for m, some in enumerate(rows):
            ids, totals = pairs.partition(some, 2)
            order = pairs.by_partition(ids, totals)
            mine = order[len(order) - totals[1, 0] :] if r else order[: totals[0, 0]]
            blocks.append(tuple(columns(some.take(mine).pairs())))
            witness += [(m, int(i)) for i in mine]
        table = pairs.columns(blocks)  # type: ignore[arg-type]
        order, _ = pairs.sort(table)
        text = b"".join(chunk.tobytes() for chunk, _ in pairs.text_chunks(table, order, np.empty(1 << 20, np.uint8)))
        parts.append((text, [witness[int(i)] for i in order]))
    return maps, parts


def as_witness(order: list[tuple[int, int]], map_count: int = 3) -> tuple[np.ndarray, np.ndarray, int]:
    return np.array([m for m, _ in order], np.uint32), np.array([place for _, place in order], np.uint32), map_count


def test_parts_of_a_job_are_certified_by_the_texts_of_its_maps() -> None:
    maps, parts = a_job()
    loose, by_map = Sum(), [Sum()] * 3
    for r, (text, order) in enumerate(parts):
        found = sum_pair_lines(array(text), r, 2, KEY)
        assert found.ties > 500
        loose = loose.plus(found.sums[0])
        witnessed = sum_pair_lines(array(text), r, 2, KEY, witness=as_witness(order))
        by_map = [a.plus(b) for a, b in zip(by_map, witnessed.sums, strict=True)]
    total = Sum()
    for text in maps:
        total = total.plus(sum_pairs_text(array(text), KEY))
    assert loose == total
    assert by_map == [sum_pairs_text(array(text), KEY, placed=True) for text in maps]


def test_equal_keys_in_another_order_are_seen_by_the_witness_only() -> None:
    _, parts = a_job()
    text, order = parts[0]
    lines = [line + b"\n" for line in text.split(b"\n")[:-1]]
    i = next(i for i in range(1, len(lines)) if lines[i].split(b"\t")[0] == lines[i - 1].split(b"\t")[0])
    swapped = [*lines[: i - 1], lines[i], lines[i - 1], *lines[i + 1 :]]
    lie = [*order[: i - 1], order[i], order[i - 1], *order[i + 1 :]]
    right = sum_pair_lines(array(text), 0, 2, KEY, witness=as_witness(order))
    assert sum_pair_lines(array(b"".join(swapped)), 0, 2, KEY) == sum_pair_lines(array(text), 0, 2, KEY)
    assert sum_pair_lines(array(b"".join(swapped)), 0, 2, KEY, witness=as_witness(order)) != right
    with pytest.raises(Refused, match=rf"entry {i} does not come after") as caught:
        sum_pair_lines(array(b"".join(swapped)), 0, 2, KEY, witness=as_witness(lie))
    assert caught.value.at == i


@pytest.mark.parametrize("change", ["shorter", "longer", "another map"])
def test_a_witness_of_other_lines_is_refused(change: str) -> None:
    _, parts = a_job()
    text, order = parts[1]
    order = {"shorter": order[:-1], "longer": [*order, (2, 10**6)], "another map": [*order[:-1], (3, 0)]}[change]
    with pytest.raises(Refused, match="does not come after"):
        sum_pair_lines(array(text), 1, 2, KEY, witness=as_witness(order))


def test_what_is_wrong_in_a_block_is_named() -> None:
    rows = [(b"key%d" % i, b"value") for i in range(2000)]
    mine = of_partition(rows, 1, 2)
    good = columns(mine)
    stranger = next(pair for pair in rows if pair not in mine)
    with pytest.raises(Refused, match="entry 700 is of another partition"):
        sum_pairs(*columns([*mine[:700], stranger, *mine[700:]]), 1, 2, KEY)
    for column in (0, 2):
        bad = list(good)
        bad[column] = good[column].copy()
        bad[column][800] = good[column][802]
        with pytest.raises(Refused, match="entry 800 has offsets"):
            sum_pairs(*bad, 1, 2, KEY)
        bad[column] = good[column] + 1
        with pytest.raises(Refused, match="entry 0 has offsets"):
            sum_pairs(*bad, 1, 2, KEY)


def test_arrays_of_another_kind_are_not_taken() -> None:
    good = columns([(b"a", b"b")])
    with pytest.raises(ValueError, match="data must be"):
        sum_pairs_text(np.zeros(3, np.int64), KEY)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="value_offsets must have 2"):
        sum_pairs(*good[:2], good[2][:1], good[3], 0, 1, KEY)
    with pytest.raises(ValueError, match="one element more"):
        sum_pairs(good[0][:0], good[1], good[2][:0], good[3], 0, 1, KEY)
    with pytest.raises(ValueError, match="there is no partition"):
        sum_pair_lines(good[1], 1, 1, KEY)
    with pytest.raises(ValueError, match="maps must be"):
        sum_pair_lines(good[1], 0, 1, KEY, witness=(np.zeros(1), np.zeros(1, np.uint32), 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at most"):
        sum_pair_lines(good[1], 0, 1, KEY, witness=(np.zeros(1, np.uint32), np.zeros(1, np.uint32), 1 << 21))
    assert pair_sums.sum_pairs_text(array(b""), KEY) == Sum()
