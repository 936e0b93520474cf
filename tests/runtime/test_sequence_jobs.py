"""Jobs over SequenceFiles, in both styles, voted on like any other; and SequenceFiles as output."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import Runner

from quoreduce import Block, Job, SequenceWriter, read_sequence
from quoreduce.data.splits import Split
from quoreduce.errors import InputError, JobError, UsageError
from quoreduce.runtime.session import usual_reducers

Record = tuple[bytes, bytes]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three files, one of each kind of compression: 300 records."""
    folder = tmp_path / "in"
    folder.mkdir()
    for number, compression in enumerate(("block", "record", "none")):
        with (folder / f"part-{number}").open("wb") as file:
            options: Any = {"compression": compression, "block_bytes": 200}
            with SequenceWriter(file.write, 7, number, **options) as writer:
                for i in range(100):
                    writer.write(b"key %d " % (i % 10), b"word%d " % (i % 7) * (i % 5))
    return folder


def expected() -> Counter[bytes]:
    return Counter(word for i in range(100) for word in [b"word%d" % (i % 7)] * (i % 5) for _ in range(3))


def words(record: Record) -> Iterator[tuple[bytes, int]]:
    key, value = record
    assert key.startswith(b"key ")
    for word in value.split():
        yield word, 1


def total(key: bytes, values: list[int]) -> Iterator[tuple[bytes, int]]:
    yield key, sum(values)


@pytest.mark.parametrize("split_bytes", [150, 1000, 10**6])
def test_a_python_style_job_gets_pairs(run: Runner, folder: Path, split_bytes: int) -> None:
    result, parts = run(
        "inline", Job("words", words, total, input="sequence"), folder, f=1, reducers=2, split_mb=split_bytes / 1e6
    )
    rows = dict(line.split(b"\t") for part in parts for line in part.splitlines())
    assert {key: int(value) for key, value in rows.items()} == expected()
    assert result.records_in == 300


def test_a_block_style_job_gets_a_block(run: Runner, folder: Path) -> None:
    def swapped(data: Block, ctx: Any) -> Block:
        (keys, key_data), (values, value_data) = data.binary(0), data.binary(1)
        ctx.records_in = data.records
        out = Block.create(("binary", "binary"), data.records, [value_data.size, key_data.size])
        for column, (offsets, raw) in enumerate([(values, value_data), (keys, key_data)]):
            target, payload = out.binary(column)
            target[:] = offsets
            payload[:] = raw
        return out

    def lengths(blocks: Sequence[Block], ctx: Any) -> None:
        for block in blocks:
            for size in np.diff(block.binary(0)[0]).tolist():
                ctx.write(b"%d\n" % size, 1)

    result, parts = run(
        "inline", Job.of_blocks("swap", map=swapped, reduce=lengths, input="sequence"), folder, f=1, reducers=2,
        split_mb=2e-3, faults=("flip:map:30%",),
    )  # fmt: skip
    sizes = sorted(int(line) for part in parts for line in part.splitlines())
    assert sizes == sorted(6 * (i % 5) for i in range(100) for _ in range(3))
    assert result.records_in == 300


def test_a_sequence_file_may_be_the_output(run: Runner, folder: Path, tmp_path: Path) -> None:
    job = Job("words", words, total, input="sequence", output="sequence")
    runs = [run("inline", job, folder, f=f, reducers=2, split_mb=1e-3) for f in (0, 1)]
    assert runs[0][1] == runs[1][1]
    found = {}
    for number, part in enumerate(runs[0][1]):
        path = tmp_path / f"part{number}"
        path.write_bytes(part)
        block = read_sequence(path)
        (keys, key_data), (values, value_data) = block.binary(0), block.binary(1)
        for i in range(block.records):
            key = key_data[keys[i] : keys[i + 1]].tobytes()
            found[key] = int(value_data[values[i] : values[i + 1]].tobytes())
    assert found == expected()
    assert runs[0][0].records_out == len(found)


def test_a_broken_file_is_refused_before_or_in_the_job(run: Runner, folder: Path) -> None:
    job = Job("words", words, total, input="sequence")
    broken = bytearray((folder / "part-0").read_bytes())
    broken[-30] ^= 1
    (folder / "part-0").write_bytes(broken)
    with pytest.raises(JobError, match=r"InputError: .*part-0: bad SequenceFile at byte \d+"):
        run("inline", job, folder, f=1)
    (folder / "part-0").write_bytes(b"SEQ\x05")
    with pytest.raises(InputError, match=r"part-0: bad SequenceFile at byte 3: version 5"):
        run("inline", job, folder, f=1)


def test_what_is_compressed_has_more_reducers_than_its_size_on_disk_asks_for() -> None:
    def reducers(compression: Any, input_format: str) -> int:
        splits = [Split("part", 64_000_000 * i, 64_000_000, 6_400_000_000, compression, False, i) for i in range(100)]
        return usual_reducers(splits, Job("words", words, total, input=input_format))

    assert reducers("none", "lines") == reducers("none", "fixed:100") == 25  # of 256 MB each
    assert reducers("gz", "lines") == reducers("zst", "lines") == reducers("none", "sequence") == 100
    assert usual_reducers([], Job("words", words, total)) == 1


def test_other_outputs_are_refused() -> None:
    with pytest.raises(UsageError, match="'sequence'"):
        Job("words", words, total, output="avro")
