"""SequenceFiles' columns: lengths, forms and records as their plain twins see them, and no crash on any bytes."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from quoreduce_kernels import reference as ref
from quoreduce_kernels import sequence as sq

EDGES = [0, 1, 127, 128, 255, 256, 65535, 65536, 2**24 - 1, 2**24, 2**31 - 1]
LENGTHS = st.one_of(st.sampled_from(EDGES), st.integers(0, 2**31 - 1))
PAYLOAD = st.one_of(st.binary(max_size=9), st.sampled_from([b"x" * n for n in (127, 128, 255, 256, 70000)]))
PAYLOADS = st.lists(PAYLOAD, max_size=8)
SYNC = bytes(range(16))


def offsets_of(payloads: list[bytes]) -> np.ndarray:
    return np.array([0, *accumulate(map(len, payloads))], np.int64)


def bytes_of(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns, or the BadItem that it raises."""
    try:
        return function(*arguments)
    except sq.BadItem as error:
        return error


@given(st.lists(LENGTHS, max_size=40))
@example(EDGES)
def test_lengths_round_trip(lengths: list[int]) -> None:
    coded = sq.encode_vints(np.array(lengths, np.int64))
    assert coded.tobytes() == b"".join(map(ref.vint, lengths))
    assert sq.decode_vints(coded, len(lengths)).tolist() == lengths


@given(st.binary(max_size=30), st.integers(0, 31))
def test_what_decodes_is_what_was_encoded(data: bytes, count: int) -> None:
    """Any bytes: either they are the one encoding of so many lengths, or they are refused."""
    result = attempt(sq.decode_vints, bytes_of(data), count)
    if isinstance(result, sq.BadItem):
        assert 0 <= result.index <= count
    else:
        assert sq.encode_vints(result).tobytes() == data


@pytest.mark.parametrize(
    "bad", ["8f", "8f7f", "8e00ff", "8c80000000", "88" + "00" * 7 + "01", "90", "ff", "80", "87" + "00" * 8]
)
def test_no_length_is_refused(bad: str) -> None:
    with pytest.raises(sq.BadItem, match=r"item 1 is not a length"):
        sq.decode_vints(bytes_of(b"\x05" + bytes.fromhex(bad)), 2)


@given(PAYLOADS, st.sampled_from([sq.TEXT, sq.BYTES]))
def test_payloads_round_trip(payloads: list[bytes], form: int) -> None:
    data, offsets = bytes_of(b"".join(payloads)), offsets_of(payloads)
    raw, lengths = sq.serialise(data, offsets, form)
    items = [ref.serialised(payload, form) for payload in payloads]
    assert raw.tobytes() == b"".join(items)
    assert lengths.tolist() == [len(item) for item in items]
    back, out = np.zeros(len(payloads) + 1, np.int64), np.empty(data.size, np.uint8)
    sq.payload_offsets(lengths, form, back)
    assert back.tolist() == offsets.tolist()
    sq.strip_run(raw, form, back, out)
    assert out.tobytes() == data.tobytes()
    shifted = np.concatenate([bytes_of(b"??"), raw])
    out[:] = 0
    sq.strip_at(shifted, 2 + np.cumsum(lengths) - lengths, form, back, out)
    assert out.tobytes() == data.tobytes()


@given(st.integers(0, 2**31 - 1), st.sampled_from([sq.TEXT, sq.BYTES, 0, 4, 8]))
@example(129, sq.TEXT)
@example(258, sq.TEXT)
@example(3, sq.BYTES)
def test_a_serialised_length_tells_the_payloads(length: int, form: int) -> None:
    prefix = {sq.TEXT: lambda n: len(ref.vint(n)), sq.BYTES: lambda n: 4}.get(form, lambda n: 0)
    fitting = [n for n in range(max(0, length - 5), length + 1) if n + prefix(n) == length and (form < 0 or n == form)]
    offsets = np.zeros(2, np.int64)
    try:
        sq.payload_offsets(np.array([length], np.int64), form, offsets)
    except sq.BadItem:
        assert fitting == []
    else:
        assert [offsets[1]] == fitting


@given(st.binary(max_size=12), st.lists(st.integers(0, 6), max_size=4), st.sampled_from([sq.TEXT, sq.BYTES, 0, 4]))
def test_any_bytes_are_stripped_or_refused(data: bytes, sizes: list[int], form: int) -> None:
    offsets = np.array([0, *accumulate(sizes)], np.int64)
    guarded = np.full(int(offsets[-1]) + 32, 0xEE, np.uint8)
    result = attempt(sq.strip_run, bytes_of(data), form, offsets, guarded[16 : 16 + offsets[-1]])
    assert result is None or 0 <= result.index < len(sizes)
    assert (guarded[:16] == 0xEE).all()
    assert (guarded[16 + offsets[-1] :] == 0xEE).all()


def record(key: bytes, value: bytes) -> bytes:
    return (len(key) + len(value)).to_bytes(4, "big") + len(key).to_bytes(4, "big") + key + value


PIECES = st.lists(
    st.one_of(st.builds(record, st.binary(max_size=5), st.binary(max_size=5)), st.just(b"\xff" * 4 + SYNC)), max_size=8
).map(b"".join)


@given(PIECES)
def test_records_are_walked(data: bytes) -> None:
    rows, position, reason = sq.walk_records(bytes_of(data), bytes_of(SYNC))
    assert (position, reason) == (len(data), 0)
    found = [(data[k : k + kn], data[v : v + vn]) for k, kn, v, vn in rows.tolist()]
    assert found == ref.walk_records(data, SYNC)


@given(PIECES, st.integers(0, 200), st.binary(max_size=6))
def test_a_walk_over_any_bytes_stays_inside(data: bytes, at: int, junk: bytes) -> None:
    data = data[:at] + junk + data[at + len(junk) :]
    rows, position, reason = sq.walk_records(bytes_of(data), bytes_of(SYNC))
    assert (rows >= 0).all()
    assert (rows[:, 2] + rows[:, 3] <= position).all()
    assert position <= len(data)
    try:
        expected: list[tuple[bytes, bytes]] | None = ref.walk_records(data, SYNC)
    except AssertionError:
        expected = None
    assert (reason == 0) == (expected is not None)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0\0", sq.TORN),
        (b"\xff\xff\xff\xff" + SYNC[:15], sq.TORN),
        (b"\xff\xff\xff\xff" + SYNC[::-1], sq.BAD_SYNC),
        (b"\0\0\0\1\0\0\0\1", sq.TORN),
        (b"\0\0\0\1\0\0\0\2xxxx", sq.BAD_LENGTH),
        (b"\x80\0\0\0\0\0\0\2xxxx", sq.BAD_LENGTH),
        (b"\0\0\0\1\xff\xff\xff\xffx", sq.BAD_LENGTH),
        (b"\x7f\xff\xff\xff\0\0\0\1x", sq.TORN),
    ],
)
def test_why_a_walk_ends(data: bytes, reason: int) -> None:
    good = record(b"k", b"v")
    rows, position, why = sq.walk_records(bytes_of(good + data), bytes_of(SYNC))
    assert (rows.tolist(), position, why) == ([[8, 1, 9, 1]], len(good), reason)


def test_bad_arguments_are_refused() -> None:
    two = np.array([0, 2], np.int64)
    calls = [
        lambda: sq.encode_vints(np.array([-1], np.int64)),
        lambda: sq.encode_vints(np.array([2**31], np.int64)),
        lambda: sq.payload_offsets(two, sq.TEXT, two.copy()),
        lambda: sq.strip_run(bytes_of(b"abc"), 2, two, np.empty(1, np.uint8)),
        lambda: sq.serialise(bytes_of(b"a"), two, sq.TEXT),
        lambda: sq.serialise(bytes_of(b"ab"), two[::-1].copy(), sq.TEXT),
        lambda: sq.serialise(bytes_of(b"ab"), two, 4),
        lambda: sq.walk_records(bytes_of(b""), bytes_of(b"short")),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r".+"):
            call()
