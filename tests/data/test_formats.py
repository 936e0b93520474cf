"""Record formats: their names, and which bytes a split reads."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.data.formats import RecordFormat, parse_format, record_range
from quoreduce.errors import UsageError

SEPARATORS = {"lines": b"\n", "words": b" \n\t\r\f", "fixed:1": b"", "sequence": b""}


@pytest.mark.parametrize("name", ["lines", "words", "sequence", "fixed:1", "fixed:100", "fixed:65536"])
def test_a_format_is_called_what_it_was_parsed_from(name: str) -> None:
    fmt = parse_format(name)
    assert str(fmt) == name
    assert fmt == RecordFormat(name.split(":")[0], int(name.partition(":")[2] or 0))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name",
    [
        "",
        "line",
        "fixed",
        "fixed:",
        "fixed:0",
        "fixed:65537",
        "fixed:000000001",
        "fixed:\u0663",
        "fixed:1:1",
        "wide:1",
        "Lines",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="unknown record format"):
        parse_format(name)


def test_separators_are_the_documented_bytes() -> None:
    for name, separators in SEPARATORS.items():
        assert parse_format(name).separators == tuple(separators[i : i + 1] for i in range(len(separators)))


def ranges(data: bytes, name: str, start: int, end: int) -> tuple[int, int, list[tuple[int, int]]]:
    """What a split reads, and what was asked for to know it: never past the end, never nothing."""
    asked = []

    def read_at(offset: int, n: int) -> bytes:
        assert n > 0
        assert 0 <= offset < offset + n <= len(data)
        asked.append((offset, n))
        return data[offset : offset + n]

    return *record_range(read_at, parse_format(name), start, end, len(data)), asked


def cut(data: bytes, separators: bytes, position: int) -> int:
    """The rule of the module's docstring."""
    return next(q for q in range(position, len(data) + 1) if q in (0, len(data)) or data[q - 1] in separators)


BYTES = st.lists(st.sampled_from([b"a", b"\n", b" ", b"\f"]), max_size=12)


@given(BYTES, st.sampled_from(["lines", "words"]), st.integers(0, 12), st.integers(0, 12))
def test_a_split_reads_from_cut_to_cut(pieces: list[bytes], name: str, start: int, length: int) -> None:
    data = b"".join(pieces)
    start = min(start, len(data))
    end = min(start + length, len(data))
    begin, stop, _ = ranges(data, name, start, end)
    first, last = cut(data, SEPARATORS[name], start), cut(data, SEPARATORS[name], end)
    if start == end or first >= end:
        assert begin == stop
    else:
        assert (begin, stop) == (first, last)


def test_windows_double_from_4_kib_to_1_mib_and_the_first_begins_at_the_byte_before() -> None:
    data = bytes(5 << 20) + b"\n" + bytes(10)
    begin, stop, asked = ranges(data, "lines", 10, len(data))
    assert (begin, stop) == ((5 << 20) + 1, len(data))
    assert asked[0] == (9, 1 << 12)
    assert [n for _, n in asked[:-1]] == [min(1 << 12 + i, 1 << 20) for i in range(len(asked) - 1)]
    assert [at for at, _ in asked[1:]] == [at + n for at, n in asked[:-1]]


def test_a_split_inside_one_long_record_looks_at_its_own_bytes_only() -> None:
    begin, stop, asked = ranges(bytes(100_000), "lines", 50_000, 50_010)
    assert (begin, stop, asked) == (50_010, 50_010, [(49_999, 10)])


def test_the_first_separator_of_any_kind_ends_a_word() -> None:
    assert ranges(b"aa\tb b\n", "words", 1, 4)[:2] == (3, 5)
    assert ranges(b"x" * 5000 + b" " + b"y", "words", 1, 5002)[:2] == (5001, 5002)
