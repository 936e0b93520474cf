"""Results go to stdout and nothing else does; what a script reads is one JSON object; help is light."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zstandard

JOBS = Path(__file__).parent / "user_jobs.py"
HEAVY = ("numba", "ray", "pyarrow", "numpy", "llvmlite", "blake3", "rich", "quoreduce_kernels")
Command = Callable[..., Any]

KEYS = {
    "job", "mode", "f", "records_in", "records_out", "bytes_in", "bytes_out", "parts", "digest", "wall_s", "cpu_s",
    "executions", "reexecutions", "faults", "domains",
}  # fmt: skip


@pytest.mark.parametrize("where", [(), ("--on", "local", "--workers", "2", "--domain", "worker")])
def test_json_is_exactly_one_object_with_these_keys(
    where: tuple[str, ...], quoreduce: Command, text: Path, out: Path
) -> None:
    ended = quoreduce("run", "wordcount", text, out, "--json", "--split-mb", "0.001", "--reducers", "2", *where)
    assert (ended.code, ended.stderr) == (0, "")
    assert ended.stdout.count("\n") == 1
    found = json.loads(ended.stdout)
    assert found.keys() >= KEYS
    manifest = json.loads((out / "_SUCCESS").read_text())
    assert found["digest"] == manifest["digest"]
    assert found["executions"] == {"map": 8, "reduce": 4}
    assert found["faults"] == {"injected": 0, "detected": 0, "masked": 0}
    size = text.stat().st_size
    expected = {"job": "wordcount", "mode": "bft", "f": 1, "parts": 2, "records_in": 1200, "records_out": 4}
    assert {key: found[key] for key in expected} == expected
    assert found["bytes_in"] == size
    assert found["bytes_out"] == sum(path.stat().st_size for path in out.glob("part-*"))
    assert found["wall_s"] > 0
    assert found["cpu_s"] > 0
    assert len(found["domains"]) >= 2


def test_without_json_a_person_reads_it(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text, out, "--fault", "flip:map:1")
    assert ended.code == 0
    first, second, third, fourth = ended.stdout.splitlines()
    assert first.startswith(f"{out}: 1 parts, 4 records, ")
    assert "wordcount, bft, f=1 on inline" in second
    assert "map 3 reduce 2 (1 more than planned)" in second
    assert third == "faults: 1 injected, 1 detected, 1 masked"
    assert fourth.startswith("  compute, does not repeat: map 0 on worker")
    assert ended.stderr == ""


def test_diagnoses_are_shown_up_to_ten(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce(
        "run", "wordcount", text, out, "--split-mb", "0.0003", "--fault", "late:map:12", "--reducers", "1"
    )
    assert ended.code == 0
    *_, told, last = ended.stdout.splitlines()
    assert told.startswith("  network: map ")
    assert last == "  2 more (--json has the first 12)"
    assert len(ended.stdout.splitlines()) == 3 + 10 + 1


def test_diagnoses_can_be_done_without(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", "wordcount", text, out, "--fault", "flip:map:1", "--no-diagnose")
    assert ended.stdout.splitlines()[2:] == ["faults: 1 injected, 1 detected, 1 masked"]


def test_a_users_job_by_file(quoreduce: Command, text: Path, out: Path) -> None:
    ended = quoreduce("run", f"{JOBS}:good", text, out, "--reducers", "2")
    assert ended.code == 0
    lines = b"".join(path.read_bytes() for path in sorted(out.glob("part-*"))).splitlines()
    assert sorted(lines) == [b"be\t400", b"not\t200", b"or\t200", b"to\t400"]


def test_a_users_job_by_module(text: Path, out: Path, cli: Command) -> None:
    environment = {"PYTHONPATH": str(JOBS.parent)}
    ended = cli("run", "user_jobs:good", text, out, "--domain", "worker", "--workers", "2", env=environment)
    assert ended.code == 0, ended.stderr
    assert (out / "part-r-00000").read_bytes() == b"be\t400\nnot\t200\nor\t200\nto\t400\n"


def test_inputs_of_all_kinds_count_the_same(quoreduce: Command, tmp_path: Path, text: Path) -> None:
    """Files, directories, globs, gz and zst members."""
    data = text.read_bytes()
    folder = tmp_path / "many"
    folder.mkdir()
    (folder / "a.txt").write_bytes(data)
    (folder / "b.gz").write_bytes(gzip.compress(data))
    (folder / "c.zst").write_bytes(zstandard.compress(data))
    (folder / "_not").write_bytes(b"read")
    (folder / "below").mkdir()
    members = [folder / "a.txt", folder / "b.gz", folder / "c.zst"]
    for i, inputs in enumerate([[folder], [folder / "*.*"], members, [text, text, text]]):
        out = tmp_path / f"out{i}"
        ended = quoreduce("run", "wordcount", *inputs, out, "--split-mb", "0.0005", "--reducers", "1")
        assert ended.code == 0, ended.stderr
        assert (out / "part-r-00000").read_bytes() == b"be\t1200\nnot\t600\nor\t600\nto\t1200\n"


def test_an_empty_input_gives_empty_parts(quoreduce: Command, tmp_path: Path, out: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    ended = quoreduce("run", "wordcount", tmp_path / "empty", out, "--reducers", "2", "--json")
    assert ended.code == 0
    assert sorted(os.listdir(out)) == ["_SUCCESS", "part-r-00000", "part-r-00001"]
    assert json.loads(ended.stdout)["executions"] == {"map": 0, "reduce": 4}
    assert quoreduce("verify", out).code == 0


@pytest.fixture
def counted(quoreduce: Command, text: Path, out: Path) -> Path:
    assert quoreduce("run", "wordcount", text, out, "--reducers", "2").code == 0
    return out


def test_verify_of_a_good_output(quoreduce: Command, counted: Path) -> None:
    assert quoreduce("verify", counted) == (0, f"{counted}: 2 parts, blake3: ok\n", "")
    assert json.loads(quoreduce("verify", counted, "--json").stdout) == {
        "output": str(counted), "ok": True, "parts": 2, "problems": []
    }  # fmt: skip


@pytest.mark.parametrize("digest", ["blake3", "fast", "checksum"])
@pytest.mark.parametrize(("job", "flags"), [("wordcount", ()), ("sort", ()), ("scan", ("--starts-with", " "))])
def test_verify_finds_one_flipped_bit(
    job: str, flags: tuple[str, ...], digest: str, quoreduce: Command, tmp_path: Path, text: Path, out: Path
) -> None:
    source = text
    if job != "wordcount":
        source = tmp_path / "records"
        assert quoreduce("generate", "ascii", "500", source).code == 0
    mode = ("--mode", "original") if digest == "checksum" else ()
    assert quoreduce("run", job, source, out, "--reducers", "2", "--digest", digest, *mode, *flags).code == 0
    assert quoreduce("verify", out).code == 0
    part = max(out.glob("part-*"), key=lambda path: path.stat().st_size)
    raw = bytearray(part.read_bytes())
    raw[len(raw) // 2] ^= 1
    part.write_bytes(raw)
    ended = quoreduce("verify", out)
    assert ended.code == 2
    assert ended.stdout.splitlines()[-1] == f"{out}: 2 parts, {digest}: 1 problems"
    assert part.name in ended.stdout.splitlines()[0]


@pytest.mark.parametrize("damage", ["missing", "cut", "longer", "foreign"])
def test_verify_finds_other_damage(damage: str, quoreduce: Command, counted: Path) -> None:
    part = counted / "part-r-00001"
    {
        "missing": part.unlink,
        "cut": lambda: part.write_bytes(part.read_bytes()[:-1]),
        "longer": lambda: part.write_bytes(part.read_bytes() + b"\n"),
        "foreign": lambda: (counted / "part-r-00002").write_bytes(b"more\t1\n"),
    }[damage]()
    assert quoreduce("verify", counted).code == 2


@pytest.mark.parametrize("manifest", [None, b"", b"{}", b"[1]", b"\xff", b'{"version": 1}'])
def test_verify_of_a_broken_manifest(manifest: bytes | None, quoreduce: Command, counted: Path) -> None:
    (counted / "_SUCCESS").unlink()
    if manifest is not None:
        (counted / "_SUCCESS").write_bytes(manifest)
    ended = quoreduce("verify", counted)
    assert ended.code == 2
    assert str(counted) in ended.error


def test_verify_of_nothing(quoreduce: Command, out: Path) -> None:
    ended = quoreduce("verify", out)
    assert ended.code == 2
    assert str(out) in ended.error


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    """It answers at once because of what it does not import; times are for the benchmarks."""
    script = (
        "import sys\nfrom quoreduce.cli import main\n"
        f"try:\n    main({words!r})\nexcept SystemExit as leave:\n    assert not leave.code\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert "quoreduce" in done.stdout
    assert done.stderr.strip() == "[]"


def test_import_quoreduce_is_light() -> None:
    script = f"import sys, quoreduce; quoreduce.Job; print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"


def test_help_names_every_flag_and_exit_code(quoreduce: Command) -> None:
    said = quoreduce("run", "--help").stdout
    for flag in (
        "--faults-tolerated", "--mode", "--on", "--digest", "--reducers", "--split-mb", "--workers", "--address",
        "--inline",
        "--overwrite", "--json", "--fault", "--fault-seed", "--strict", "--domain", "--no-deferred", "--no-tentative",
        "--no-digest-outputs", "--no-tight-storage", "--starts-with", "--lines", "130  interrupted",
    ):  # fmt: skip
        assert flag in said
