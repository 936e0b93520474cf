"""Sort, from records to validated output: published checksums, skewed keys, equal keys, both digests, with faults."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from runs import EXECUTORS, SORT, Runner, parts_of

from quoreduce.cli import main
from quoreduce_kernels.gensort import generate_records

# (kind, records, checksum) of gensort v1.5 without and with -a, and of Hadoop's TeraGen
PUBLISHED = [
    ("binary", 1, "9ea593a0"), ("binary", 10, "55fea8a1a"), ("binary", 1000, "1ea6370b955"),
    ("ascii", 1, "3fcaea0a"), ("ascii", 10, "469302dca"), ("ascii", 1000, "1f5dfb3631a"),
    ("teragen", 1, "97503e23"), ("teragen", 10, "5b2d1434d"), ("teragen", 1000, "1f9ffe645ec"),
]  # fmt: skip


def in_order(raw: bytes) -> bytes:
    """Records by key; those with equal keys stay in the order of the input."""
    return b"".join(sorted((raw[i : i + 100] for i in range(0, len(raw), 100)), key=lambda record: record[:10]))


@pytest.mark.parametrize(("kind", "count", "checksum"), PUBLISHED)
def test_validate_prints_success_and_the_published_checksum(
    kind: str, count: int, checksum: str, run: Runner, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "records"
    assert main(["generate", kind, str(count), str(path)]) == 0
    assert path.read_bytes() == generate_records(0, count, kind).tobytes()
    result, parts = run("inline", SORT, path, reducers=3, split_mb=0.01)
    assert b"".join(parts) == in_order(path.read_bytes())
    assert result.records_in == result.records_out == count
    capsys.readouterr()
    assert main(["validate", "sort", result.output]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"records: {count}"
    assert printed[1] == f"checksum: {checksum}"
    assert printed[2] == "duplicate keys: 0"
    assert printed[3] == "input: the same records"
    assert printed[-1] == "SUCCESS"


@pytest.mark.parametrize("digest", ["blake3", "fast"])
@pytest.mark.parametrize(("mode", "f"), [("original", 0), ("basic", 1), ("bft", 1)])
@pytest.mark.parametrize("on", EXECUTORS)
def test_sorted_and_stable_with_exact_executions(
    on: str, mode: str, f: int, digest: str, run: Runner, records: Path, records_sorted: bytes
) -> None:
    """R2: also the sample, whose split keys are agreed on before any map starts, is executed f+1 times."""
    result, parts = run(on, SORT, records, mode=mode, f=f, digest=digest, reducers=4, split_mb=0.04)
    assert b"".join(parts) == records_sorted
    replicas = {"original": 1, "basic": 2 * f + 1, "bft": f + 1}[mode]
    assert result.executions == {"sample": replicas, "map": 5 * replicas, "reduce": 4 * replicas}
    assert result.reexecutions == 0


def few_keys(n: int) -> list[bytes]:
    return [bytes([random.Random(i).choice(b"ab")]) * 10 for i in range(n)]


def one_key(n: int) -> list[bytes]:
    return [b"same key  "] * n


def mostly_small(n: int) -> list[bytes]:
    return [(int(random.Random(i).paretovariate(0.3)) % 2**64).to_bytes(10, "big") for i in range(n)]


def descending(n: int) -> list[bytes]:
    return [(n - i).to_bytes(10, "big") for i in range(n)]


@pytest.mark.parametrize("keys", [few_keys, one_key, mostly_small, descending])
def test_skewed_keys(keys: Callable[[int], list[bytes]], run: Runner, tmp_path: Path) -> None:
    raw = b"".join(key + b"%090d" % i for i, key in enumerate(keys(1500)))
    (tmp_path / "records").write_bytes(raw)
    _, parts = run("inline", SORT, tmp_path / "records", reducers=5, split_mb=0.02)
    assert b"".join(parts) == in_order(raw)


@pytest.mark.parametrize("digest", ["blake3", "fast"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_faults_are_masked(on: str, digest: str, run: Runner, records: Path, records_sorted: bytes) -> None:
    faults = ("flip:map:1", "wrong:reduce:1", "swap:map:1", "lie:reduce:1@first", "swap:reduce:1", "late:map:1")
    result, parts = run(
        on, SORT, records, workers=3, digest=digest, reducers=4, split_mb=0.02, faults=faults, fault_seed=4
    )
    assert b"".join(parts) == records_sorted
    assert result.faults.injected == 6
    assert main(["validate", "sort", result.output]) == 0
    assert main(["verify", result.output]) == 0


def test_several_files_are_sorted_together(run: Runner, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for i in range(3):
        (folder / f"part{i}").write_bytes(generate_records(100 * i, 100, "teragen").tobytes())
    _, parts = run("inline", SORT, [str(folder)], reducers=2, split_mb=0.005)
    assert b"".join(parts) == in_order(b"".join(path.read_bytes() for path in sorted(folder.iterdir())))


def test_validate_finds_a_flipped_bit_records_out_of_order_and_a_lost_record(
    run: Runner, records: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result, parts = run("inline", SORT, records, reducers=1)
    part = Path(result.output) / "part-r-00000"
    for broken in (
        parts[0][:150] + bytes([parts[0][150] ^ 4]) + parts[0][151:],  # in the payload: only the checksum tells
        parts[0][100:] + parts[0][:100],
        parts[0][:-100],
    ):
        part.write_bytes(broken)
        capsys.readouterr()
        assert main(["validate", "sort", result.output]) == 2
        assert capsys.readouterr().out.splitlines()[-1] == "FAILURE"
    assert parts_of(Path(result.output)) == [broken]
