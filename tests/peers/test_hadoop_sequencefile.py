"""Hadoop's own SequenceFiles: it reads what we write, we read what it writes, and both cut files into the same splits.

Needs PySpark, whose client jars of Hadoop are used (``pip install pyspark``), and a JDK; conftest.py says what happens
without.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from bench.peers import java

from quoreduce.data.block import Block
from quoreduce.data.formats import parse_format
from quoreduce.data.inputs import read_sequence_split
from quoreduce.data.sequencefile import file_header, read_sequence, sync_marker
from quoreduce.data.sequencewriter import SequenceWriter
from quoreduce.data.splits import plan_splits

Record = tuple[bytes, bytes]
Hadoop = Callable[[list[tuple[Any, ...]]], list[str]]
SIZES = (0, 1, 5, 127, 128, 255, 256, 1000, 70000)
RECORDS = 120
ZLIB, GZIP = "DefaultCodec", "GzipCodec"
WAYS = [("NONE", ZLIB), ("RECORD", ZLIB), ("BLOCK", ZLIB), ("RECORD", GZIP), ("BLOCK", GZIP)]
OURS = {ZLIB: "zlib", GZIP: "gzip"}
CLASSES = ("Text", "BytesWritable", "IntWritable", "LongWritable")
TIMEOUT_S = 120
pytestmark = pytest.mark.peers("hadoop")


def payload(i: int, side: int) -> bytes:
    return bytes(97 + (i + k * (side + 1)) % 26 for k in range(SIZES[(i * 7 + side * 4) % len(SIZES)]))


def records_of(kind: str) -> list[Record]:
    """The formula of the Java program."""
    if kind in ("Text", "BytesWritable"):
        return [(payload(i, 0), payload(i, 1)) for i in range(RECORDS)]
    step, width = (1000003, 4) if kind == "IntWritable" else (10000000000037, 8)
    return [
        ((i * step).to_bytes(width, "big", signed=True), (-i * step).to_bytes(width, "big", signed=True))
        for i in range(RECORDS)
    ]


def pairs_of(block: Block) -> list[Record]:
    (keys, key_data), (values, value_data) = block.binary(0), block.binary(1)
    raw, more = key_data.tobytes(), value_data.tobytes()
    return [(raw[keys[i] : keys[i + 1]], more[values[i] : values[i + 1]]) for i in range(block.records)]


def summary(records: Iterable[Record]) -> str:
    """What the Java program answers for a split with these records."""
    digest, count = hashlib.sha256(), 0
    for record in records:
        for item in record:
            digest.update(len(item).to_bytes(4, "big") + item)
        count += 1
    return f"{count} {digest.hexdigest()}"


@pytest.fixture(scope="module")
def hadoop(tmp_path_factory: pytest.TempPathFactory) -> Hadoop:
    """``hadoop(commands)`` -> answers, by one JVM."""
    jars = f"{java.spark_home()}/jars/*"
    folder = tmp_path_factory.mktemp("java")
    source = Path(__file__).with_name("SequenceFiles.java")
    subprocess.run(
        [str(java.program("javac")), "-cp", jars, "-d", str(folder), str(source)], check=True, timeout=TIMEOUT_S
    )

    def ask(commands: list[tuple[Any, ...]]) -> list[str]:
        text = "".join("\t".join(map(str, command)) + "\n" for command in commands)
        command = [str(java.program("java")), "-Xmx512m", "-cp", f"{folder}:{jars}", "SequenceFiles"]
        done = subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
        answers = done.stdout.splitlines()
        assert len(answers) == len(commands), done.stderr
        return answers

    return ask


def test_hadoop_reads_what_we_write(hadoop: Hadoop, tmp_path: Path) -> None:
    asked, expected = [], []
    for compression, codec in WAYS:
        for kind in CLASSES:
            path = tmp_path / f"{compression}-{codec}-{kind}"
            options: Any = {"compression": compression.lower(), "codec": OURS[codec], "block_bytes": 100_000}
            with path.open("wb") as file, SequenceWriter(file.write, 3, key=kind, value=kind, **options) as writer:
                for record in records_of(kind):
                    writer.write(*record)
            asked.append(("split", path, 0, path.stat().st_size))
            expected.append(summary(records_of(kind)))
    empty = tmp_path / "empty"
    empty.write_bytes(file_header(sync_marker(1, 2), metadata={"a": "b"}))
    asked.append(("split", empty, 0, empty.stat().st_size))
    expected.append(summary([]))
    assert hadoop(asked) == expected


def test_we_read_what_hadoop_writes(hadoop: Hadoop, tmp_path: Path) -> None:
    files = [(tmp_path / f"{c}-{d}-{kind}", c, d, kind) for c, d in WAYS for kind in CLASSES]
    answers = hadoop([("write", *file, RECORDS) for file in files])
    for (path, _, codec, kind), answer in zip(files, answers, strict=True):
        if codec == GZIP and answer.startswith("refused: SequenceFile doesn't work with GzipCodec without native"):
            continue  # Hadoop's own limit
        assert answer == "written"
        assert pairs_of(read_sequence(path)) == records_of(kind)
    assert answers.count("written") >= 3 * len(CLASSES)


@pytest.mark.nightly
def test_both_cut_at_the_same_places(hadoop: Hadoop, tmp_path: Path) -> None:
    """Splits that begin behind the header: within it, Hadoop reads the first records more than once."""
    asked, expected = [], []
    files = [(tmp_path / f"{c}-{d}", c, d) for c, d in WAYS[:3]]
    hadoop([("write", *file, "Text", RECORDS) for file in files])
    for path, _, _ in files:
        for split_bytes in (1000, 30_000, 102_420, 250_001):
            for split in plan_splits([str(path)], parse_format("sequence"), split_bytes):
                asked.append(("split", path, split.start, split.length))
                expected.append(summary(pairs_of(read_sequence_split(split, tmp_path))))
    assert hadoop(asked) == expected


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["varcompseq", "fixcompseq"])
def test_hadoop_reads_gridmix_data(hadoop: Hadoop, tmp_path: Path, kind: Any) -> None:
    """Among other things, that Java's inflater takes what our own compressor makes."""
    from quoreduce_gridmix.data import generate

    made = generate(kind, tmp_path / "set", 5_000_000, 3, seed=8, workers=1)
    asked, expected = [], []
    for path in made.files():
        for split in plan_splits([path], parse_format("sequence"), 150_000):
            asked.append(("split", path, split.start, split.length))
            expected.append(summary(pairs_of(read_sequence_split(split, tmp_path))))
    assert hadoop(asked) == expected
    assert sum(int(answer.split()[0]) for answer in expected) == sum(part.records for part in made.parts)
