"""Scan, from inputs to output, against ``grep``: any prefix, splits and reducers; every mode and f; with faults."""

from __future__ import annotations

import os
import random
import subprocess
from pathlib import Path

import pytest
from runs import EXECUTORS, Runner

from quoreduce import scan_job
from quoreduce.cli import main


def grep(path: Path, prefix: bytes) -> bytes:
    """The lines that begin with the prefix, which has no character that is special to grep."""
    command = [b"grep", b"-a", b"^" + prefix, os.fsencode(path)]
    done = subprocess.run(command, capture_output=True, check=False, env={**os.environ, "LC_ALL": "C"})
    assert done.returncode in (0, 1)
    return done.stdout


def random_records(seed: int, n: int) -> bytes:
    """Records that are lines: runs of one letter, of random lengths, so that prefixes of every length are found."""
    rng = random.Random(seed)
    return b"".join((b"ab"[k : k + 1] * rng.randint(0, 70)).ljust(99, b".") + b"\n" for k in rng.choices((0, 1), k=n))


def random_lines(seed: int, n: int) -> bytes:
    rng = random.Random(seed)
    lines = [bytes(rng.choices(b"aab \r\t\xff", k=rng.choice((0, 1, 3, 80, 400)))) for _ in range(n)]
    return b"\n".join(lines)


@pytest.mark.parametrize("seed", range(16))
def test_records_with_random_prefixes_splits_and_reducers(seed: int, run: Runner, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "records"
    path.write_bytes(random_records(seed, 2000))
    prefix = rng.choice((b"a", b"b")) * rng.choice((1, 2, 7, 8, 9, 16, 31, 63, 64))
    result, parts = run(
        "inline", scan_job(prefix), path, reducers=rng.randint(1, 12), split_mb=rng.choice((0.0003, 0.007, 0.05, 64))
    )
    expected = grep(path, prefix)
    assert b"".join(parts) == expected
    assert (result.records_in, result.records_out) == (2000, len(expected) // 100)


@pytest.mark.parametrize("seed", range(16))
def test_lines_with_random_prefixes_splits_and_reducers(seed: int, run: Runner, tmp_path: Path) -> None:
    rng = random.Random(seed)
    path = tmp_path / "lines"
    raw = random_lines(seed, 1000)
    path.write_bytes(raw)
    prefix = bytes(rng.choices(b"aab ", k=rng.choice((1, 1, 2, 3))))
    result, parts = run(
        "inline",
        scan_job(prefix, input="lines"),
        path,
        reducers=rng.randint(1, 12),
        split_mb=rng.choice((0.0003, 0.007, 64)),
    )
    assert b"".join(parts) == grep(path, prefix)
    assert result.records_in == len(raw.split(b"\n")) - (raw[-1:] == b"\n" or not raw)
    assert result.counters["MAP_OUTPUT_RECORDS"] == result.records_out


@pytest.mark.parametrize(("prefix", "kept"), [(b"zz", 0), (b"a", 500)])
@pytest.mark.parametrize("kind", ["records", "lines"])
def test_nothing_and_everything(prefix: bytes, kept: int, kind: str, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes((b"a" * 99 + b"\n") * 500)
    result, parts = run("inline", scan_job(prefix, input=kind), path, reducers=3, split_mb=0.01)  # type: ignore[arg-type]
    assert b"".join(parts) == grep(path, prefix)
    assert result.records_out == kept


@pytest.mark.parametrize("kind", ["records", "lines"])
def test_an_empty_input(kind: str, run: Runner, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    result, parts = run("inline", scan_job(b"a", input=kind), tmp_path / "empty", reducers=2)  # type: ignore[arg-type]
    assert parts == [b"", b""]
    assert result.records_in == result.records_out == 0


def test_little_output_makes_one_part_unless_more_are_wanted(run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(random_records(1, 500))
    assert len(run("inline", scan_job(b"a"), path, split_mb=0.01)[1]) == 1
    assert len(run("inline", scan_job(b"a"), path, split_mb=0.01, reducers=4)[1]) == 4


@pytest.mark.parametrize("digest", ["blake3", "fast"])
@pytest.mark.parametrize(("mode", "f"), [("original", 0), ("basic", 1), ("bft", 0), ("bft", 1), ("bft", 2)])
@pytest.mark.parametrize("on", EXECUTORS)
def test_every_mode_gives_what_grep_gives_with_exact_executions(
    on: str, mode: str, f: int, digest: str, run: Runner, tmp_path: Path
) -> None:
    path = tmp_path / "records"
    path.write_bytes(random_records(2, 1000))
    result, parts = run(
        on, scan_job(b"aaa"), path, workers=max(2, f + 1), mode=mode, f=f, digest=digest, reducers=3, split_mb=0.02
    )
    assert b"".join(parts) == grep(path, b"aaa")
    replicas = {"original": 1, "basic": 2 * f + 1, "bft": f + 1}[mode]
    assert result.executions == {"map": 5 * replicas, "reduce": 3 * replicas}
    assert main(["verify", result.output]) == 0


@pytest.mark.parametrize("digest", ["blake3", "fast"])
@pytest.mark.parametrize("kind", ["records", "lines"])
@pytest.mark.parametrize("on", EXECUTORS)
def test_faults_are_masked(on: str, kind: str, digest: str, run: Runner, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_bytes(random_records(3, 1000))
    faults = ("flip:map:1", "wrong:reduce:1", "swap:map:1", "lie:reduce:1@first", "swap:reduce:1", "late:map:1")
    job = scan_job(b"bb", input=kind)  # type: ignore[arg-type]
    result, parts = run(on, job, path, workers=3, digest=digest, reducers=4, split_mb=0.02, faults=faults, fault_seed=4)
    assert b"".join(parts) == grep(path, b"bb")
    assert result.faults.injected == 6
    assert main(["verify", result.output]) == 0


def test_the_command_line_gives_what_grep_gives(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_bytes("är ein\nÄrger\närgerlich\n".encode() * 50 + b"\xc3\xa4")
    assert (
        main(["run", "scan", str(path), str(tmp_path / "out"), "--inline", "--lines", "--starts-with", "är", "--quiet"])
        == 0
    )
    assert (tmp_path / "out" / "part-r-00000").read_bytes() == grep(path, "är".encode())
