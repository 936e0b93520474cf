"""Jobs of plain functions: keys, values, combine, partition, and the total order (key, map, record) of values."""

from __future__ import annotations

import math
import random
import struct
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from runs import EXECUTORS, Runner, parts_of

from quoreduce import Job, Options, Session
from quoreduce.errors import JobError, UsageError
from quoreduce.protocol.options import Place

FAULTS = ("flip:map:1@any", "wrong:reduce:1", "swap:map:1", "lie:map:1")


def write_lines(folder: Path, lines: list[bytes]) -> Path:
    path = folder / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def gather(key: Any, values: list[Any]) -> Iterator[tuple[Any, Any]]:
    yield key, values


@pytest.mark.parametrize("on", EXECUTORS)
def test_values_come_in_the_order_of_maps_and_records(on: str, run: Runner, tmp_path: Path) -> None:
    """Whoever finished first, and whatever was executed again: replicas that saw another order would disagree."""

    def numbered(line: bytes) -> Iterator[tuple[str, int]]:
        yield f"k{int(line) % 3}", int(line)

    lines = [b"%d" % i for i in range(900)]
    result, parts = run(
        on, Job("order", numbered, gather), write_lines(tmp_path, lines), workers=3, reducers=2, split_mb=0.0004,
        faults=FAULTS,
    )  # fmt: skip
    assert result.splits > 5
    rows = dict(line.split(b"\t") for part in parts for line in part.splitlines())
    assert rows == {f"k{k}".encode(): str(list(range(k, 900, 3))).replace(" ", "").encode() for k in range(3)}


def test_keys_of_three_types_sort_by_type_and_value(run: Runner, tmp_path: Path) -> None:
    keys: list[Any] = [3, -5, 0, 2**63 - 1, -(2**63), "b", "ä", "a", "", b"b", b"\xff", b"", b"a\0"]

    def scattered(line: bytes) -> Iterator[tuple[Any, int]]:
        shuffled = keys[:]
        random.Random(int(line)).shuffle(shuffled)
        for key in shuffled:
            yield key, 1

    def total(key: Any, values: list[int]) -> Iterator[tuple[bytes, int]]:
        yield repr(key).encode(), sum(values)

    _, parts = run("inline", Job("keys", scattered, total), write_lines(tmp_path, [b"1", b"2", b"3"]), reducers=1)
    expected = [*sorted(k for k in keys if isinstance(k, bytes)), *sorted(k for k in keys if isinstance(k, int))]
    expected += sorted(k for k in keys if isinstance(k, str))
    assert parts == [b"".join(repr(key).encode() + b"\t3\n" for key in expected)]


@pytest.mark.parametrize("key", [1.5, None, True, (1, 2), 2**63, -(2**63) - 1])
def test_a_key_of_another_type_is_the_jobs_error(key: Any, run: Runner, tmp_path: Path) -> None:
    def bad(line: bytes) -> Iterator[tuple[Any, int]]:
        yield key, 1

    with pytest.raises(JobError, match=r"map failed at record 0 of split 0: TypeError: a key is bytes, str or"):
        run("inline", Job("bad-key", bad, gather), write_lines(tmp_path, [b"x"]))


def test_values_are_what_msgpack_holds(run: Runner, tmp_path: Path) -> None:
    value = [None, True, False, -7, 2**63, 1.5, "ä", [1, [2]], {"b": 1, "a": {"z": None}}]

    def constant(line: bytes) -> Iterator[tuple[str, Any]]:
        yield "k", value

    def same(key: str, values: list[Any]) -> Iterator[tuple[str, bool]]:
        yield key, values == [value, value]

    _, parts = run("inline", Job("values", constant, same), write_lines(tmp_path, [b"x", b"y"]), reducers=1)
    assert parts == [b"k\ttrue\n"]


def test_dictionaries_are_written_in_the_order_of_their_keys(run: Runner, tmp_path: Path) -> None:
    """Else two replicas whose dictionaries were filled in another order would disagree."""

    def filled(line: bytes) -> Iterator[tuple[str, Any]]:
        names = sorted("abcdef", key=lambda name: random.random())
        yield "k", {name: dict.fromkeys(names, 1) for name in names}

    result, parts = run("inline", Job("dictionaries", filled, gather), write_lines(tmp_path, [b"x"]), reducers=1)
    assert result.reexecutions == 0
    assert parts[0].startswith(b'k\t[{"a":{"a":1,"b":1')


def test_every_nan_is_the_same_nan(run: Runner, tmp_path: Path) -> None:
    """NaNs differ in bits that no program means: replicas that make them differently must agree."""

    def nans(line: bytes) -> Iterator[tuple[str, Any]]:
        bits = 0x7FF8000000000000 | random.getrandbits(40) | random.getrandbits(1) << 63
        (nan,) = struct.unpack("<d", struct.pack("<Q", bits))
        assert math.isnan(nan)
        yield "k", [nan, {"deep": nan}]

    def are_nan(key: str, values: list[Any]) -> Iterator[tuple[str, bool]]:
        yield key, all(math.isnan(one) and math.isnan(two["deep"]) for one, two in values)

    result, parts = run("inline", Job("nans", nans, are_nan), write_lines(tmp_path, [b"x"] * 9), reducers=1)
    assert result.reexecutions == 0
    assert parts == [b"k\ttrue\n"]


@pytest.mark.parametrize("on", EXECUTORS)
def test_float_sums_agree_to_the_bit(on: str, run: Runner, tmp_path: Path) -> None:
    """A fixed order of addition: the same sum for any number of workers and after any fault."""
    generator = random.Random(3)
    numbers = [generator.uniform(-1e9, 1e9) * 10 ** generator.randint(-12, 12) for _ in range(2000)]

    def parse(line: bytes) -> Iterator[tuple[int, float]]:
        yield hash(float(line)) % 5, float(line)

    def add(key: int, values: list[float]) -> Iterator[tuple[int, str]]:
        total = 0.0
        for value in values:
            total += value
        yield key, total.hex()

    expected: dict[int, float] = defaultdict(float)
    for number in numbers:
        expected[hash(number) % 5] += number
    _, parts = run(
        on, Job("floats", parse, add), write_lines(tmp_path, [repr(n).encode() for n in numbers]), workers=3,
        reducers=2, split_mb=0.004, faults=FAULTS,
    )  # fmt: skip
    rows = dict(line.decode().split("\t") for part in parts for line in part.splitlines())
    assert rows == {str(key): total.hex() for key, total in expected.items()}


@pytest.mark.parametrize("on", EXECUTORS)
def test_combine_does_not_change_the_result_and_ships_less(on: str, run: Runner, tmp_path: Path) -> None:
    def words(line: bytes) -> Iterator[tuple[bytes, int]]:
        for word in line.split():
            yield word, 1

    def add(word: bytes, counts: list[int]) -> Iterator[tuple[bytes, int]]:
        yield word, sum(counts)

    path = write_lines(tmp_path, [b"the lord and the people of the land"] * 200)
    plain, parts = run(on, Job("plain", words, add), path, reducers=2, split_mb=0.001)
    combined, same_parts = run(on, Job("combined", words, add, combine=add), path, reducers=2, split_mb=0.001)
    assert same_parts == parts
    assert combined.bytes_shipped < plain.bytes_shipped / 5
    assert plain.records_in == combined.records_in == 200


def test_partition_decides_which_part_a_key_is_in(run: Runner, tmp_path: Path) -> None:
    def number(line: bytes) -> Iterator[tuple[int, int]]:
        yield int(line), 1

    def by_range(key: int, reducers: int) -> int:
        return key * reducers // 100

    job = Job("ranges", number, gather, partition=by_range)
    _, parts = run("inline", job, write_lines(tmp_path, [b"%d" % (i * 37 % 100) for i in range(100)]), reducers=4)
    assert b"".join(parts) == b"".join(b"%d\t[1]\n" % i for i in range(100))
    assert [part.count(b"\n") for part in parts] == [25] * 4


@pytest.mark.parametrize("number", [-1, 3, "0", None])
def test_a_partition_out_of_range_is_the_jobs_error(number: Any, run: Runner, tmp_path: Path) -> None:
    job = Job("out-of-range", lambda line: [("k", 1)], gather, partition=lambda key, reducers: number)
    with pytest.raises(JobError, match=r"partition gave .* for key 'k': it must be in 0\.\.2"):
        run("inline", job, write_lines(tmp_path, [b"x"]), reducers=3)


def test_records_in_and_out_may_be_of_fixed_width(run: Runner, tmp_path: Path) -> None:
    job = Job(
        "fixed", lambda record: [(record[:1], record)], lambda key, values: [(key, value) for value in values],
        input="fixed:4", output="fixed:4",
    )  # fmt: skip
    path = tmp_path / "records"
    path.write_bytes(b"b111a222b333a444\0\0\0\0\n\n\n\n")
    result, parts = run("inline", job, path, reducers=1, split_mb=8e-6)
    assert parts == [b"\0\0\0\0\n\n\n\na222a444b111b333"]
    assert (result.splits, result.records_in, result.records_out) == (3, 6, 6)


def test_words_are_records_too(run: Runner, tmp_path: Path) -> None:
    job = Job("words", lambda word: [(word, 1)], lambda key, values: [(key, sum(values))], input="words")
    _, parts = run("inline", job, write_lines(tmp_path, [b"a b\r", b"\ta  c"]), reducers=1, split_mb=3e-6)
    assert parts == [b"a\t2\nb\t1\nc\t1\n"]


@pytest.fixture(scope="module")
def inline() -> Iterator[Session]:
    with Session(Place("inline", 2, "worker")) as session:
        yield session


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    lines=st.lists(
        st.binary(max_size=30).filter(lambda line: b"\n" not in line and not line.endswith(b"\r")), max_size=30
    ),
    ends=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans(), split=st.integers(1, 100),
    reducers=st.integers(1, 4),
)  # fmt: skip
def test_lines_are_neither_lost_nor_doubled(
    inline: Session, tmp_path_factory: pytest.TempPathFactory,
    lines: list[bytes], ends: bytes, last: bool, split: int, reducers: int,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("lines")
    if not last and lines and not lines[-1]:
        last = True  # an empty last line without an end is no line
    text = ends.join(lines) + (ends if last and lines else b"")
    (folder / "in").write_bytes(text)
    job = Job("lines", lambda line: [(line, 1)], lambda key, values: [(key.hex(), sum(values))])
    inline.run(job, [str(folder / "in")], str(folder / "out"), Options(reducers=reducers, split_mb=split / 1e6))
    rows = sorted(line for part in parts_of(folder / "out") for line in part.splitlines())
    assert rows == sorted(b"%s\t%d" % (line.hex().encode(), lines.count(line)) for line in set(lines))


def test_what_a_job_must_have() -> None:
    with pytest.raises(UsageError, match="name"):
        Job("no spaces", lambda line: [], gather)
    with pytest.raises(UsageError, match="map is not callable"):
        Job("m", None, gather)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="combine is not callable"):
        Job("m", lambda line: [], gather, combine=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="output"):
        Job("m", lambda line: [], gather, output="csv")
