"""Word count against coreutils, on any bytes, in every mode, on every executor; and what it costs to the execution."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from runs import EXECUTORS, WORDCOUNT, Runner, coreutils, counted

from quoreduce import Options, Session
from quoreduce.protocol.options import Place

MODES = [("original", 0), ("basic", 0), ("basic", 1), ("basic", 2), ("bft", 0), ("bft", 1), ("bft", 2)]

words = st.one_of(
    st.sampled_from([b"the", b"of", b"\0", b"\0\0", b"a\0b", b"\x0b", b"\x1c", b"\x85", b"\xa0", b"\xff"]),
    st.binary(min_size=1, max_size=40),
    st.integers(100, 700).map(lambda n: b"w" * n),
)
gaps = st.sampled_from([b" ", b"\n", b"\t", b"\r\n", b"\f", b" \n\n", b"\r", b"", b"                    "])
texts = st.lists(st.tuples(words, gaps), max_size=60).map(lambda pairs: b"".join(word + gap for word, gap in pairs))


@pytest.fixture(scope="module")
def inline() -> Session:
    with Session(Place("inline", 3, "worker")) as session:
        yield session


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(
    text=texts, split=st.integers(64, 600), reducers=st.integers(1, 9), mode=st.sampled_from(MODES), fast=st.booleans()
)
@example(text=b"", split=64, reducers=9, mode=("bft", 1), fast=False)
@example(text=b" \n\r\f\t", split=64, reducers=2, mode=("bft", 1), fast=True)
@example(text=b"x" * 1000, split=64, reducers=3, mode=("bft", 2), fast=False)
@example(text=b"\0" * 200 + b"\r\n" + b"\0" * 200, split=64, reducers=3, mode=("basic", 1), fast=False)
@example(text=b"a " * 500, split=64, reducers=1, mode=("bft", 1), fast=True)
def test_any_bytes_any_split_any_number_of_parts(
    inline: Session, tmp_path_factory: pytest.TempPathFactory,
    text: bytes, split: int, reducers: int, mode: tuple[str, int], fast: bool,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any")
    (folder / "in").write_bytes(text)
    options = Options(
        f=mode[1], mode=mode[0], reducers=reducers, split_mb=split / 1e6, digest="fast" if fast else None  # type: ignore[arg-type]
    )  # fmt: skip
    result = inline.run(WORDCOUNT, [str(folder / "in")], str(folder / "out"), options)
    expected = coreutils(text)
    parts = [(folder / "out" / f"part-r-{i:05d}").read_bytes() for i in range(reducers)]
    assert counted(parts) == expected
    for part in parts:  # each part is in the order of its words' bytes
        of_part = [line.split(b"\t")[0] for line in part.split(b"\n")[:-1]]
        assert of_part == sorted(of_part)
    assert result.records_in == sum(count for _, count in expected)
    assert result.records_out == len(expected)
    assert result.splits == -(-len(text) // split)
    assert result.reexecutions == 0


@pytest.mark.parametrize("on", EXECUTORS)
def test_king_james_version(on: str, run: Runner, kjv: Path) -> None:
    result, parts = run(on, WORDCOUNT, kjv, reducers=3, split_mb=0.7)
    assert counted(parts) == coreutils(kjv.read_bytes())
    assert (result.splits, result.parts, result.bytes_in) == (7, 3, kjv.stat().st_size)


@pytest.mark.parametrize(("mode", "f"), MODES)
@pytest.mark.parametrize("on", EXECUTORS)
def test_executions_without_faults_are_exact_and_the_output_is_the_same_bytes(
    on: str, mode: str, f: int, run: Runner, verses: Path, same_bytes: list[bytes]
) -> None:
    """R2: exactly (f+1)(M+R) executions; `basic` 2f+1 of each task; `original` one (slides 18 and 19)."""
    result, parts = run(on, WORDCOUNT, verses, workers=max(2, f + 1), mode=mode, f=f, reducers=3, split_mb=0.008)
    assert parts == same_bytes
    replicas = {"original": 1, "basic": 2 * f + 1, "bft": f + 1}[mode]
    assert result.executions == {"map": replicas * result.splits, "reduce": replicas * 3}
    assert result.reexecutions == 0
    assert (result.faults.injected, result.faults.detected, result.faults.masked) == (0, 0, 0)


@pytest.fixture(scope="module")
def same_bytes(
    processes: object, verses: Path, verses_counted: list[tuple[bytes, int]], tmp_path_factory: pytest.TempPathFactory
) -> list[bytes]:
    """The three parts of the small text's count, executed once, inline; checked against coreutils."""
    _, parts = Runner(processes, tmp_path_factory.mktemp("same"))(  # type: ignore[arg-type]
        "inline", WORDCOUNT, verses, mode="original", reducers=3
    )
    assert counted(parts) == verses_counted
    return parts


@pytest.mark.parametrize("workers", [1, 2, 3, 4])
@pytest.mark.parametrize("on", ["inline", "local"])
def test_output_does_not_depend_on_the_number_of_workers(
    on: str, workers: int, verses: Path, same_bytes: list[bytes], run: Runner
) -> None:
    _, parts = run(on, WORDCOUNT, verses, workers=workers, f=min(1, workers - 1), reducers=3, split_mb=0.005)
    assert parts == same_bytes


@pytest.mark.parametrize("on", EXECUTORS)
def test_output_does_not_depend_on_masked_faults(on: str, run: Runner, verses: Path, same_bytes: list[bytes]) -> None:
    faults = ("flip:map:2@any", "lie:map:1", "wrong:reduce:1", "swap:map:1", "lose:map:1", "late:all:3")
    result, parts = run(on, WORDCOUNT, verses, workers=3, reducers=3, split_mb=0.005, faults=faults)
    assert parts == same_bytes
    assert result.faults.injected >= 6
    assert result.faults.masked == result.faults.detected


@pytest.mark.parametrize("split", [64, 65, 127, 1000, 10_000_000])
def test_output_does_not_depend_on_the_splits(split: int, run: Runner, verses: Path, same_bytes: list[bytes]) -> None:
    _, parts = run("inline", WORDCOUNT, verses, reducers=3, split_mb=split / 1e6)
    assert parts == same_bytes
