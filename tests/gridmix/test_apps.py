"""The six applications against their slow twins: every mode and f, random data, splits, reducers and faults."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import pytest
import slow
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quoreduce import Options, Result, Session
from quoreduce.data.sequencefile import ESCAPE, sync_marker, vint
from quoreduce.data.sequencewriter import SequenceWriter
from quoreduce.job import Job
from quoreduce.protocol.options import Place
from quoreduce_gridmix import apps
from quoreduce_gridmix.apps import combiner
from quoreduce_gridmix.apps.loadgen import load_job

Sessions = Callable[[str, int], Session]
SEQUENCE_SEED = 5
KEEPS = {"webdataScan": (0.2, 5), "webdataSort": (100, 100), "javaSort": (100, 100)}

words = st.sampled_from([b"a ", b"b ", b"ab ", b"word ", b"caecilian ", b"\xff\x00 ", b"unaccountability "])
keys = st.lists(words, max_size=4).map(b"".join)
values = st.lists(words, max_size=8).map(b"".join)
records = st.lists(st.tuples(keys, values), min_size=1, max_size=60)
endings = st.sampled_from([b"\n", b"\n", b"\n", b"\r\n"])
odd_lines = st.lists(
    st.tuples(st.one_of(keys, st.binary(max_size=20).map(lambda b: b.replace(b"\n", b"\t"))), endings).map(b"".join),
    min_size=1, max_size=40,
)  # fmt: skip
MASKED = ("flip", "wrong", "lie", "swap", "crash", "lose", "late")


@st.composite
def options_of(draw: st.DrawFn) -> dict[str, object]:
    """Any mode and f; with f >= 1 one task of each kind may be struck."""
    mode = draw(st.sampled_from(["original", "basic", "bft", "bft"]))
    f = 0 if mode == "original" else draw(st.integers(0, 2))
    faults: tuple[str, ...] = ()
    if f:
        struck = draw(st.sampled_from(["", "map", "reduce"]))
        faults = (f"{draw(st.sampled_from(MASKED))}:{struck}:1",) if struck else ()
    elif draw(st.booleans()):
        faults = ("crash:map:1",)
    digest = None if mode == "original" else draw(st.sampled_from(["blake3", "fast"]))
    return {
        "mode": mode, "f": f, "faults": faults, "fault_seed": draw(st.integers(0, 9)), "digest": digest,
        "reducers": draw(st.integers(1, 5)), "split_mb": draw(st.integers(20, 3000)) / 1e6,
        "digest_outputs": draw(st.booleans()), "tentative": draw(st.booleans()),
    }  # fmt: skip


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    with ExitStack() as stack:
        opened: dict[tuple[str, int], Session] = {}

        def get(on: str, workers: int) -> Session:
            if (on, workers) not in opened:
                opened[on, workers] = stack.enter_context(Session(Place(on, workers, "worker")))  # type: ignore[arg-type]
            return opened[on, workers]

        yield get


@pytest.fixture
def inline(sessions: Sessions) -> Session:
    return sessions("inline", 5)


def run(
    session: Session, jobs: tuple[Job, ...], files: list[Path], **options: object
) -> list[tuple[Result, list[bytes]]]:
    """Run jobs one after the other, each over the output of the one before; return results and parts."""
    done = []
    inputs = [str(path) for path in files]
    with tempfile.TemporaryDirectory() as folder:
        for number, job in enumerate(jobs):
            output = Path(folder) / f"out{number}"
            result = session.run(job, inputs, str(output), Options(**options))  # type: ignore[arg-type]
            done.append((result, [path.read_bytes() for path in sorted(output.glob("part-*"))]))
            inputs = [str(output)]
    return done


def check(got: tuple[Result, list[bytes]], expected: slow.Output) -> None:
    result, parts = got
    assert parts == expected.parts
    assert expected.counters.items() <= result.counters.items()
    assert result.counters["BYTES_WRITTEN"] == sum(map(len, parts))
    assert result.records_in == expected.counters["MAP_INPUT_RECORDS"]


def written(folder: Path, *texts: bytes) -> list[Path]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    paths = [folder / f"part-{i:05d}" for i in range(len(texts))]
    for path, text in zip(paths, texts, strict=True):
        path.write_bytes(text)
    return paths


def sequence(folder: Path, data: slow.Split, block_bytes: int, split_bytes: int) -> tuple[list[Path], list[slow.Split]]:
    """Write a SequenceFile of Text; return it, and the records of each of its splits: those of the blocks that begin
    there.
    """
    out = bytearray()
    with SequenceWriter(out.extend, SEQUENCE_SEED, block_bytes=block_bytes) as writer:
        for key, value in data:
            writer.write(key, value)
    blocks: list[slow.Split] = [[]]
    size = 0
    for key, value in data:
        blocks[-1].append((key, value))
        size += len(vint(len(key)) + key) + len(vint(len(value)) + value)
        if size >= block_bytes:
            blocks.append([])
            size = 0
    blocks = [block for block in blocks if block]
    escape = ESCAPE + sync_marker(SEQUENCE_SEED, 0)
    starts = [i for i in range(len(out)) if out.startswith(escape, i)]
    assert len(starts) == len(blocks)
    splits: list[slow.Split] = [[] for _ in range(0, len(out), split_bytes)]
    for start, block in zip(starts, blocks, strict=True):
        splits[start // split_bytes] += block
    return written(folder, bytes(out)), splits


def split_bytes(options: dict[str, object]) -> int:
    return round(float(options["split_mb"]) * 1e6)  # type: ignore[arg-type]


many = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@many
@given(odd_lines, records, options_of())
@example(
    [b"no tab", b"\t\n", b"\n", b"k\tv\r\n"], [(b"", b"")], {"mode": "bft", "f": 1, "reducers": 2, "split_mb": 3e-6}
)
def test_java_sort(
    inline: Session, tmp_path: Path, lines: list[bytes], data: slow.Split, options: dict[str, object]
) -> None:
    files = written(tmp_path / "in", b"".join(lines).rstrip(b"\n"), slow.text_of(data))
    expected = slow.load(slow.pairs_of(files, split_bytes(options)), 100, 100, int(options["reducers"]))  # type: ignore[call-overload]
    (got,) = run(inline, apps.jobs_of("javaSort"), files, **options)
    check(got, expected)


@many
@given(odd_lines, records, options_of())
def test_combiner(
    inline: Session, tmp_path: Path, lines: list[bytes], data: slow.Split, options: dict[str, object]
) -> None:
    files = written(tmp_path / "in", b"".join(lines), slow.text_of(data))
    expected = slow.combiner(slow.pairs_of(files, split_bytes(options)), int(options["reducers"]))  # type: ignore[call-overload]
    (got,) = run(inline, apps.jobs_of("combiner"), files, **options)
    check(got, expected)


@many
@given(records, st.integers(1, 400), options_of())
def test_combiner_of_sequence_files(
    inline: Session, tmp_path: Path, data: slow.Split, block: int, options: dict[str, object]
) -> None:  # fmt: skip
    files, splits = sequence(tmp_path / "in", data, block, split_bytes(options))
    (got,) = run(inline, (combiner.SEQUENCE_JOB,), files, **options)
    check(got, slow.combiner(splits, int(options["reducers"])))  # type: ignore[call-overload]


@many
@given(st.sampled_from(["webdataScan", "webdataSort"]), records, st.integers(1, 400), options_of())
def test_webdata(
    inline: Session, tmp_path: Path, name: str, data: slow.Split, block: int, options: dict[str, object]
) -> None:
    files, splits = sequence(tmp_path / "in", data, block, split_bytes(options))
    (got,) = run(inline, apps.jobs_of(name), files, **options)
    check(got, slow.load(splits, *KEEPS[name], int(options["reducers"])))  # type: ignore[call-overload]


@many
@given(st.sampled_from(["code", "readme"]), records, st.integers(1, 400), options_of())
def test_monster_query(
    inline: Session, tmp_path: Path, stages: str, data: slow.Split, block: int, options: dict[str, object]
) -> None:  # fmt: skip
    """Each stage equals its twin over what the stage before wrote; faults strike the first, which always has tasks to
    strike.
    """
    files, splits = sequence(tmp_path / "in", data, block, split_bytes(options))
    keeps = {"code": [(10, 40)] * 3, "readme": [(10, 40), (100, 77), (116, 91)]}[stages]
    for job, (keep_map, keep_reduce) in zip(apps.jobs_of("monsterQuery", stages), keeps, strict=True):  # type: ignore[arg-type]
        expected = slow.load(splits, keep_map, keep_reduce, int(options["reducers"]))  # type: ignore[call-overload]
        (got,) = run(inline, (job,), files, **options)
        check(got, expected)
        files = written(tmp_path / "between", *got[1])
        splits = slow.pairs_of(files, split_bytes(options))
        if not splits:
            break
    else:
        assert job.name == "monsterQuery-3"


@many
@given(records, st.integers(20, 2000), st.sampled_from([0.2, 5, 10, 40, 77, 91, 100, 116, 250]), st.integers(1, 4))
def test_any_percentage(
    inline: Session, tmp_path: Path, data: slow.Split, size: int, percent: float, reducers: int
) -> None:
    files = written(tmp_path / "in", slow.text_of(data * 5))
    job = load_job("any", percent, percent, "lines")
    (got,) = run(inline, (job,), files, split_mb=size / 1e6, reducers=reducers)
    check(got, slow.load(slow.pairs_of(files, size), percent, percent, reducers))


def test_positions_kept_are_those_of_gridmix(inline: Session, tmp_path: Path) -> None:
    """FACTS: 40 % keeps records 1, 3, 6, 8 of each map; a reduce counts values across keys."""
    files = written(tmp_path / "in", b"".join(b"key %d\t%d\n" % (i % 7, i) for i in range(1, 1001)))
    ((_, (part,)),) = run(inline, (load_job("forty", 40, 100, "lines"),), files, reducers=1)
    kept = sorted(int(line.split(b"\t")[1]) for line in part.splitlines())
    assert kept[:4] == [1, 3, 6, 8]
    assert len(kept) == 400
    ((_, (part,)),) = run(inline, (load_job("ten", 100, 10, "lines"),), files, reducers=1)
    everything = sorted((b"key %d" % (i % 7), i) for i in range(1, 1001))
    assert [line.split(b"\t")[1] for line in part.splitlines()] == [b"%d" % i for _, i in everything[::10]]


def test_a_load_generator_can_write_sequence_files(inline: Session, tmp_path: Path) -> None:
    from quoreduce.data.sequencefile import read_sequence

    data = [(b"key %d " % (i % 50), b"value %d " % i) for i in range(3000)]
    files = written(tmp_path / "in", slow.text_of(data))
    job = load_job("sequences", 100, 50, "lines", "sequence")
    result = inline.run(job, [str(files[0])], str(tmp_path / "out"), Options(f=2, reducers=3, split_mb=0.01))
    expected = slow.load(slow.pairs_of(files, 10_000), 100, 50, 3)
    texts = []
    for path in sorted((tmp_path / "out").glob("part-*")):
        block = read_sequence(path)
        columns = [[bytes(d[a:b]) for a, b in pairwise(o)] for o, d in (block.binary(0), block.binary(1))]
        texts.append(slow.text_of(list(zip(*columns, strict=True))))
    assert texts == expected.parts
    assert result.records_out == expected.counters["REDUCE_OUTPUT_RECORDS"]


def test_an_input_without_records(inline: Session, tmp_path: Path) -> None:
    files = written(tmp_path / "in", b"", b"\n")
    ((result, parts),) = run(inline, apps.jobs_of("javaSort"), files, reducers=2)
    assert sorted(parts) == [b"", b"\t\n"]
    assert result.counters["REDUCE_INPUT_GROUPS"] == 1


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[list[Path], list[slow.Split]]]:
    """Small sets of some splits of 20 kB: text of two files, and a SequenceFile."""
    folder = tmp_path_factory.mktemp("sets")
    names = [b"%d " % (i * i) for i in range(1000)]
    keys = [b"".join(names[i * j % 1000] for j in range(1, 2 + i % 6)) for i in range(900)]
    data = [(key, b"".join(names[i * j % 997] for j in range(i % 40))) for i, key in enumerate(keys)]
    half = len(data) // 2
    texts = written(folder / "text", slow.text_of(data[:half]), slow.text_of(data[half:]))
    return {
        "text": (texts, slow.pairs_of(texts, 20_000)),
        "sequence": sequence(folder / "sequence", data, 5000, 20_000),
    }


def expected_of(name: str, splits: list[slow.Split], reducers: int) -> slow.Output:
    if name == "combiner":
        return slow.combiner(splits, reducers)
    return slow.load(splits, *KEEPS.get(name, (10, 40)), reducers)


@pytest.mark.parametrize("name", ["javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort"])
@pytest.mark.parametrize(
    ("options", "workers"),
    [
        ({"mode": "original"}, 2), ({"f": 0}, 2), ({"f": 1, "digest": "fast"}, 2), ({"mode": "basic", "f": 1}, 3),
        ({"f": 2}, 3),
        ({"f": 1, "faults": ("flip:map:2", "swap:reduce:1", "crash:map:1")}, 3),
    ],
)  # fmt: skip
def test_on_processes(
    sessions: Sessions, sets: dict[str, tuple[list[Path], list[slow.Split]]], name: str, options: dict[str, object],
    workers: int
) -> None:  # fmt: skip
    text = apps.KINDS[name] == "varinfltext"
    files, splits = sets["text" if text else "sequence"]
    job = apps.jobs_of(name)[0]
    (got,) = run(sessions("local", workers), (job,), files, reducers=3, split_mb=0.02, **options)
    check(got, expected_of(name, splits, 3))
    assert got[0].counters["BYTES_READ"] == sum(path.stat().st_size for path in files)


def test_counters_do_not_depend_on_replicas(
    inline: Session, sets: dict[str, tuple[list[Path], list[slow.Split]]]
) -> None:
    """Counters are summed over one agreed attempt of each task."""
    files, _ = sets["text"]
    counted = []
    for options in (
        {"mode": "original"},
        {"f": 0},
        {"f": 2},
        {"f": 1, "mode": "basic"},
        {"f": 1, "faults": ("wrong:all:3",)},
    ):
        ((result, _),) = run(inline, apps.jobs_of("combiner"), files, reducers=4, split_mb=0.02, **options)
        counted.append(result.counters)
    assert all(counters == counted[0] for counters in counted)


def test_the_three_stages_follow_each_other(
    inline: Session, sets: dict[str, tuple[list[Path], list[slow.Split]]]
) -> None:
    files, splits = sets["sequence"]
    done = run(inline, apps.jobs_of("monsterQuery", "readme"), files, reducers=2, split_mb=0.02)
    assert [result.job for result, _ in done] == ["monsterQuery-1", "monsterQuery-2", "monsterQuery-3"]
    kept = [result.counters[name] for result, _ in done for name in ("MAP_OUTPUT_RECORDS", "REDUCE_OUTPUT_RECORDS")]
    assert kept[0] == sum(len(slow.kept(split, 10)) for split in splits)
    assert done[1][0].counters["MAP_INPUT_RECORDS"] == kept[1]
    assert done[2][0].counters["MAP_INPUT_RECORDS"] == kept[3]


def test_the_sets_and_reduces_are_those_of_gridmix() -> None:
    assert set(apps.NAMES) == set(apps.KINDS) == set(apps.REDUCES)
    assert apps.REDUCES["webdataSort"] == {"small": 15, "medium": 170, "large": 800}
    assert [len(apps.jobs_of(name)) for name in apps.NAMES] == [1, 1, 1, 3, 1, 1]
    with pytest.raises(KeyError):
        apps.jobs_of("sleep")
