"""Generated records: the benchmark's published checksums, skip-ahead, and the validator."""

from __future__ import annotations

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quoreduce_kernels import reference as ref
from quoreduce_kernels.gensort import KINDS, crc_sum, generate_records, random_before, validate_sorted

PUBLISHED = {
    "ascii": {1: 0x3FCAEA0A, 10: 0x469302DCA, 1000: 0x1F5DFB3631A},
    "binary": {1: 0x9EA593A0, 10: 0x55FEA8A1A, 1000: 0x1EA6370B955},
    "teragen": {1: 0x97503E23, 10: 0x5B2D1434D, 1000: 0x1F9FFE645EC},
}
some_keys = [b"\0" * 10, b"a" * 10, b"a" * 9 + b"b", b"\x7f" * 10, b"\x80" + b"\0" * 9, b"\xff" * 10]
keys = st.lists(st.sampled_from(some_keys), max_size=9)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [1, 10, 1000])
def test_checksums_are_those_of_gensort_and_teragen(kind: str, n: int) -> None:
    assert crc_sum(generate_records(0, n, kind)) == PUBLISHED[kind][n]


def test_first_key() -> None:
    assert generate_records(0, 1)[0, :10].tobytes() == b"JimGrayRIP"


@pytest.mark.parametrize("kind", KINDS)
def test_records_are_the_documented_ones(kind: str) -> None:
    made = generate_records(0, 300, kind)
    assert [row.tobytes() for row in made] == [ref.generate_record(i, kind) for i in range(300)]


@given(st.sampled_from(KINDS), st.integers(0, 2**70), st.lists(st.integers(0, 20), max_size=5))
@settings(max_examples=60, deadline=None)
def test_the_same_bytes_however_the_range_is_cut(kind: str, first: int, sizes: list[int]) -> None:
    whole = generate_records(first, sum(sizes), kind)
    pieces = [generate_records(first + sum(sizes[:i]), n, kind) for i, n in enumerate(sizes)]
    assert (np.concatenate([np.empty((0, 100), np.uint8), *pieces]) == whole).all()


@pytest.mark.parametrize("first", [2**64 - 3, 2**128 - 6])
def test_numbers_carry_into_the_high_half(first: int) -> None:
    names = [row[12:44].tobytes() for row in generate_records(first, 6, "teragen")]
    assert names == [b"%032X" % (first + i) for i in range(6)]


@given(st.integers(0, 2000), st.integers(0, 50))
def test_skip_ahead_is_as_many_steps(start: int, steps: int) -> None:
    value = random_before(start)
    for _ in range(steps):
        value = (value * 0x2360ED051FC65DA44385DF649FCCF645 + 0x4A696D47726179524950202020202001) % 2**128
    assert random_before(start + steps) == value


@given(st.integers(0, 30), st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_crc_sum(n: int, seed: int) -> None:
    rows = np.random.default_rng(seed).integers(0, 256, (n, 100), np.uint8)
    assert crc_sum(rows) == crc_sum(rows.tobytes()) == sum(zlib.crc32(row.tobytes()) for row in rows)


@given(keys, st.sampled_from([b"", b"\0" * 10, b"a" * 10, b"\xff" * 10]))
@settings(deadline=None)
def test_validator(key_list: list[bytes], previous: bytes) -> None:
    records = [key + bytes(90) for key in key_list]
    expected = ref.validate_sorted(records, previous)
    assert validate_sorted(b"".join(records), previous) == expected


def test_validator_in_pieces_agrees_with_the_whole() -> None:
    rows = generate_records(0, 500)
    rows = rows[np.argsort(rows[:, :10].copy().view("S10").reshape(-1), kind="stable")]
    rows[250] = rows[249]
    assert validate_sorted(rows) == (-1, 1, rows[-1, :10].tobytes())
    bad, duplicates, previous = validate_sorted(rows[:250])
    assert (bad, duplicates) == (-1, 0)
    assert validate_sorted(rows[250:], previous) == (-1, 1, rows[-1, :10].tobytes())


def test_bad_arguments_are_refused() -> None:
    calls = [
        lambda: generate_records(0, 1, "skewed"),
        lambda: generate_records(-1, 1),
        lambda: generate_records(0, -1),
        lambda: generate_records(2**128, 1),
        lambda: generate_records(0, 2, out=np.empty((1, 100), np.uint8)),
        lambda: crc_sum(bytes(101)),
        lambda: validate_sorted(bytes(99)),
        lambda: validate_sorted(bytes(100), b"short"),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
