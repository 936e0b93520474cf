"""GridMix's sets: the documented words, the same bytes at any parallelism, complete or absent."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3

from quoreduce import files
from quoreduce.data.sequencefile import read_sequence
from quoreduce.errors import HostError, InputError, OutputError, UsageError
from quoreduce_gridmix import data as grid
from quoreduce_gridmix.words import QUOTAS, WORDS
from quoreduce_kernels import reference as ref

SMALL = 400_000
PARTS = 11


def blake3_of(folder: Path) -> str:
    """Digest of a whole directory: names and bytes."""
    digest = blake3()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def records_of(data: grid.DataSet) -> list[list[tuple[bytes, bytes]]]:
    """The records of each part."""
    parts = []
    for name in data.files():
        if data.format == "lines":
            rows = Path(name).read_bytes().split(b"\n")
            assert rows.pop() == b""
            parts.append([(row.partition(b"\t")[0], row.partition(b"\t")[2]) for row in rows])
            continue
        block = read_sequence(name)
        (keys, key_data), (values, value_data) = block.binary(0), block.binary(1)
        raw, more = key_data.tobytes(), value_data.tobytes()
        parts.append([(raw[keys[i] : keys[i + 1]], more[values[i] : values[i + 1]]) for i in range(block.records)])
    return parts


def test_the_words_are_the_most_frequent_of_their_lengths(kjv: Path) -> None:
    verses = "\n".join(line.partition(" ")[2] for line in kjv.read_text(encoding="utf-8").splitlines())
    counts = Counter(re.findall(r"\b[a-z]+\b", verses))
    chosen = []
    for letters, quota in QUOTAS.items():
        chosen += sorted((w for w in counts if len(w) == letters), key=lambda w: (-counts[w], w))[:quota]
    assert tuple(word.encode() for word in sorted(chosen)) == WORDS
    assert len(set(WORDS)) == 1000
    assert sum(map(len, WORDS)) == 9660


@pytest.mark.parametrize("kind", grid.KINDS)
def test_records_are_the_documented_ones(tmp_path: Path, kind: grid.Kind) -> None:
    """Against plain Python: the draws of the stream that the part's name gives, put into words."""
    made = grid.generate(kind, tmp_path / "set", SMALL, 3, seed=5, workers=1)
    share = [133_334, 133_333, 133_333]
    for number, records in enumerate(records_of(made)):
        name = f"gridmix 1 {kind} seed 5 part {number}"
        stream = int.from_bytes(blake3(name.encode()).digest(8), "little")
        drawn = ref.grid_chunk(WORDS, grid.RANGES[kind], share[number], stream)
        assert records == [(ref.grid_text(WORDS, key), ref.grid_text(WORDS, value)) for key, value in drawn]
        part = made.parts[number]
        assert part.records == len(records)
        assert part.text_bytes == sum(len(key) + len(value) for key, value in records)
        assert part.text_bytes - len(b"".join(records[-1])) < share[number] <= part.text_bytes


@pytest.mark.parametrize(
    ("kind", "keys", "values", "mean"),
    [
        ("varcompseq", (5, 9), (100, 9999), 5049.5),
        ("fixcompseq", (5, 5), (100, 100), 100),
        ("varinfltext", (1, 9), (0, 199), 99.5),
    ],
)
def test_keys_and_values_have_their_numbers_of_words(
    tmp_path: Path, kind: grid.Kind, keys: tuple[int, int], values: tuple[int, int], mean: float
) -> None:
    made = grid.generate(kind, tmp_path / "set", 20_000_000, 2, workers=1)
    records = [record for part in records_of(made) for record in part]
    assert all(text.endswith(b" ") and b"  " not in text for record in records for text in record if text)
    in_keys = [key.count(b" ") for key, _ in records]
    in_values = [value.count(b" ") for _, value in records]
    assert (min(in_keys), max(in_keys)) == keys
    assert values[0] <= min(in_values)
    assert max(in_values) <= values[1]
    assert sum(in_values) / len(in_values) == pytest.approx(mean, rel=0.15)
    assert set(b"".join(key for key, _ in records).split()) <= set(WORDS)


def test_a_large_part_has_many_blocks_and_compresses_about_four_times(tmp_path: Path) -> None:
    made = grid.generate("fixcompseq", tmp_path / "set", 5_000_000, 1, workers=1)
    (part,) = made.parts
    raw = Path(made.files()[0]).read_bytes()
    assert raw.count(b"\xff" * 4 + raw[105:121]) == 5
    assert 3.7 < part.text_bytes / part.nbytes < 4.4


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], grid.DataSet]:
    folder = tmp_path_factory.mktemp("sets")
    return {
        (kind, workers): grid.generate(kind, folder / f"{kind}-{workers}", SMALL, PARTS, 42, workers)
        for kind in grid.KINDS
        for workers in ((1, 3) if kind == "varcompseq" else (1, 2))
    }


@pytest.mark.parametrize("kind", grid.KINDS)
def test_any_number_of_workers_makes_the_same_bytes(sets: dict[tuple[str, int], grid.DataSet], kind: str) -> None:
    made = [data for (name, _), data in sets.items() if name == kind]
    assert len({blake3_of(data.path) for data in made}) == 1
    assert len({data.parts for data in made}) == 1


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("varcompseq", "310dcb31e1891941fafda5f9471c065b"),
        ("fixcompseq", "0d03d7e5462a2fe1da6536f8c29986fd"),
        ("varinfltext", "592d2a6eb52bb716961ef6abc70d6a03"),
    ],
)
def test_the_bytes_never_change(sets: dict[tuple[str, int], grid.DataSet], kind: str, digest: str) -> None:
    """On any machine and with any zlib; if they must change, so must VERSION."""
    assert blake3_of(sets[kind, 1].path)[:32] == digest


def test_seeds_and_parts_differ(tmp_path: Path) -> None:
    sets = [grid.generate("varinfltext", tmp_path / str(seed), 50_000, 5, seed, 1) for seed in (0, 1, -1, 2**70)]
    digests = [part.blake3 for data in sets for part in data.parts]
    assert len(set(digests)) == len(digests)


def test_a_part_does_not_depend_on_how_many_there_are(tmp_path: Path) -> None:
    few = grid.generate("fixcompseq", tmp_path / "few", 30_000, 3, 1, 1)
    many = grid.generate("fixcompseq", tmp_path / "many", 70_000, 7, 1, 1)
    assert few.parts == many.parts[:3]


def test_sizes_are_those_of_gridmix(tmp_path: Path) -> None:
    made = grid.generate("varinfltext", tmp_path / "set", 0, 24, workers=1)
    names = {size: [os.path.basename(path) for path in made.files(size)] for size in ("small", "medium", "large")}
    assert names["small"] == ["part-00000", "part-00001", "part-00002"]
    assert names["medium"] == [f"part-000{n:02d}" for n in (0, 1, 2, 10, 11, 12, 20, 21, 22)]
    assert names["large"] == [f"part-{n:05d}" for n in range(24)] == sorted(p.name for p in made.path.glob("part-*"))
    with pytest.raises(UsageError, match="small, medium, large, or parts:N"):
        made.files("tiny")


@pytest.mark.parametrize("kind", grid.KINDS)
def test_an_empty_set_has_empty_parts(tmp_path: Path, kind: grid.Kind) -> None:
    made = grid.generate(kind, tmp_path / "set", 0, 2, workers=1)
    assert records_of(made) == [[], []]


def test_what_was_made_is_loaded(tmp_path: Path) -> None:
    made = grid.generate("varcompseq", tmp_path / "a" / "set", 200_000, 2, 9, 1)
    assert grid.load(tmp_path / "a" / "set") == made
    assert made.format == "sequence"
    for part in made.parts:
        assert blake3((made.path / part.name).read_bytes()).hexdigest() == part.blake3


@pytest.mark.parametrize("change", ["gone", "shorter", "no json", "version", "field", "missing", "deep", "elsewhere"])
def test_what_is_no_set_is_not_loaded(tmp_path: Path, change: str) -> None:
    made = grid.generate("varinfltext", tmp_path / "set", 1000, 2, workers=1)
    described = made.path / grid.DESCRIPTION
    if change in ("gone", "missing"):
        (described if change == "gone" else made.path / "part-00001").unlink()
    elif change == "shorter":
        (made.path / "part-00000").write_bytes(b"")
    elif change == "no json":
        described.write_bytes(b"\xff{")
    elif change == "deep":
        described.write_bytes(b'{"a":' * 100_000)
    elif change == "elsewhere":
        described.write_text(described.read_text().replace("part-00001", "../set/part-00001"))
    else:
        said = json.loads(described.read_text())
        said = {**said, "version": 99} if change == "version" else {**said, "parts": [{"size": 1}]}
        described.write_text(json.dumps(said))
    with pytest.raises(InputError, match=rf"{re.escape(str(made.path))} is no set of GridMix's data: .*; generate it"):
        grid.load(made.path)


def test_progress_ends_with_all(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        calls.append((done, total))

    for workers in (1, 2):
        calls.clear()
        grid.generate("varcompseq", tmp_path / str(workers), 3_000_000, 2, workers=workers, progress=progress)
        assert calls == sorted(calls)
        assert calls[-1] == (3_000_000, 3_000_000)
        assert len(calls) >= 4


def test_an_existing_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    (tmp_path / "text").write_text("mine")
    for name in ("mine", "text"):
        with pytest.raises(OutputError, match="exists: use --overwrite"):
            grid.generate("varinfltext", tmp_path / name, 1000, 1)
        with pytest.raises(OutputError, match="no set of GridMix's data: it is not replaced"):
            grid.generate("varinfltext", tmp_path / name, 1000, 1, overwrite=True)
    assert (tmp_path / "mine" / "file").read_text() == (tmp_path / "text").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["mine", "text"]


def test_a_set_is_replaced_as_a_whole(tmp_path: Path) -> None:
    grid.generate("varinfltext", tmp_path / "set", 1000, 5, workers=1)
    (tmp_path / "set" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputError, match=r"holds 'thesis\.tex', which is no part of a set"):
        grid.generate("fixcompseq", tmp_path / "set", 1000, 2, workers=1, overwrite=True)
    (tmp_path / "set" / "thesis.tex").unlink()
    made = grid.generate("fixcompseq", tmp_path / "set", 1000, 2, workers=1, overwrite=True)
    assert sorted(os.listdir(tmp_path / "set")) == ["_gridmix.json", "part-00000", "part-00001"]
    assert grid.load(tmp_path / "set") == made
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_full_disk_leaves_nothing(tmp_path: Path, workers: int) -> None:
    """A limit on the size of a file fails in the same place as a full disk, and is inherited by workers."""
    code = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))\n"
        "from quoreduce.errors import OutputError\n"
        "from quoreduce_gridmix.data import generate\n"
        "try:\n"
        f"    generate('varinfltext', {str(tmp_path / 'set')!r}, 10_000_000, 3, workers={workers})\n"
        "except OutputError as error:\n"
        "    sys.exit(f'refused: {error}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert re.search(r"refused: cannot write .*part-0000\d: File too large", done.stderr), done.stderr
    assert done.returncode == 1
    assert os.listdir(tmp_path) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2_000_000


def test_no_space_is_said_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def update(self, piece: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("blake3.blake3", lambda data=b"": blake3(data) if data else Full())
    with pytest.raises(OutputError, match=r"no space left on device: .*; free some"):
        grid.generate("varinfltext", tmp_path / "set", 1000, 1, workers=1)
    assert os.listdir(tmp_path) == []


def test_a_worker_that_dies_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for code, message in (
        ("import os; os.kill(os.getpid(), 9)", "died with exit code -9"),
        ("print('hm')", "said b'hm'"),
    ):
        real = subprocess.Popen

        def instead(command: list[str], code: str = code, real: Any = real, **rest: Any) -> Any:
            return real([command[0], "-c", code], **rest)

        monkeypatch.setattr(grid.subprocess, "Popen", instead)
        with pytest.raises(HostError, match=message):
            grid.generate("varinfltext", tmp_path / "set", 1000, 2, workers=2)
        monkeypatch.undo()
        assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "text"},
        {"nbytes": -1},
        {"nbytes": 1 << 60},
        {"parts": 0},
        {"parts": 10**6},
        {"workers": 0},
        {"workers": -1},
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "kind": "varinfltext",
        "directory": tmp_path / "set",
        "nbytes": 10,
        "parts": 1,
        **change,
    }
    with pytest.raises(UsageError, match="sets are varcompseq, fixcompseq, varinfltext"):
        grid.generate(**arguments)
    assert os.listdir(tmp_path) == []


def test_what_a_killed_generator_left_goes_and_what_only_looks_so_stays(tmp_path: Path) -> None:
    for name in ("dead", "mine"):
        (tmp_path / f".set.{name}.staging" / "set").mkdir(parents=True)
    files.Hold(tmp_path / ".set.dead.staging").release()
    grid.generate("fixcompseq", tmp_path / "set", 1000, 1, workers=1)
    assert sorted(os.listdir(tmp_path)) == [".set.mine.staging", "set"]
