"""The job scan, called as a worker calls it: which partition gets what, digests of all kinds, what it refuses."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from quoreduce import scan_job
from quoreduce.data.block import Block
from quoreduce.data.digest import Digester
from quoreduce.errors import UsageError
from quoreduce.job import Job, record_width
from quoreduce.jobs.find import find_job
from quoreduce.worker.context import MapContext, ReduceContext
from quoreduce_kernels.gensort import generate_records

DIGESTERS = [Digester("blake3"), Digester("fast", b"0123456789abcdef"), Digester("checksum")]
INPUTS = pytest.mark.parametrize("kind", ["records", "lines"])


def dirty(nbytes: int) -> np.ndarray:
    return np.full(nbytes, 0xEE, np.uint8)


def map_blocks(job: Job, splits: list[bytes], reducers: int, digester: Digester = DIGESTERS[0]) -> list[list[Block]]:
    """Blocks by map and partition, as readers see them."""
    outputs = []
    for m, split in enumerate(splits):
        ctx = MapContext(m, reducers, b"", 0, True, digester, dirty, len(splits))
        outputs.append([Block.open(block.buffer.tobytes()) for block in job.map(np.frombuffer(split, np.uint8), ctx)])
        assert ctx.records_in == (len(split) // 100 if record_width(job.input) else len(split.splitlines()))
    return outputs


def reduce_part(job: Job, blocks: list[Block], digester: Digester, path: Path) -> bytes:
    stride = record_width(job.output) or 128
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    with os.fdopen(fd):
        ctx = ReduceContext(0, 1, b"", 0, digester, stride, [fd])
        job.reduce(blocks, ctx)
        digest = ctx.finish()
    only_digests = ReduceContext(0, 1, b"", 0, digester, stride, [])
    job.reduce(blocks, only_digests)
    raw = path.read_bytes()
    assert digest == only_digests.finish() == digester.file(path, stride)
    assert ctx.records == sum(block.records for block in blocks) == raw.count(b"\n")
    assert ctx.nbytes == len(raw)
    return raw


@INPUTS
@pytest.mark.parametrize("digester", DIGESTERS, ids=lambda d: d.algorithm)
@pytest.mark.parametrize("reducers", [1, 2, 3, 5, 9])
def test_parts_in_order_hold_what_was_found_in_order(
    kind: str, digester: Digester, reducers: int, tmp_path: Path
) -> None:
    raw = generate_records(0, 20_000, "ascii").tobytes()
    splits = [raw[:700_000], b"", raw[700_000:700_100], raw[700_100:1_500_000], raw[1_500_000:]]
    job = scan_job(b"!", input=kind)  # type: ignore[arg-type]
    outputs = map_blocks(job, splits, reducers, digester)
    parts = [reduce_part(job, [blocks[r] for blocks in outputs], digester, tmp_path / str(r)) for r in range(reducers)]
    expected = [line + b"\r\n" for line in raw.split(b"\r\n") if line.startswith(b"!")]
    assert len(expected) > 100
    assert b"".join(parts) == b"".join(expected)
    assert sum(bool(part) for part in parts) >= min(reducers, 2)


@INPUTS
def test_an_output_larger_than_a_chunk(kind: str, tmp_path: Path) -> None:
    raw = generate_records(0, 25_000, "ascii")
    raw[:, 0] = 65
    job = scan_job(b"A", input=kind)  # type: ignore[arg-type]
    outputs = map_blocks(job, [raw.tobytes()], 1)
    assert reduce_part(job, [outputs[0][0]], DIGESTERS[0], tmp_path / "part") == raw.tobytes()


def test_a_last_line_gets_the_line_feed_that_it_lacks(tmp_path: Path) -> None:
    job = scan_job(b"b", input="lines")
    outputs = map_blocks(job, [b"a\nbc\r\nb", b"b"], 1)
    assert reduce_part(job, [blocks[0] for blocks in outputs], DIGESTERS[0], tmp_path / "part") == b"bc\r\nb\nb\n"


@pytest.mark.parametrize(
    ("prefix", "kind", "says"),
    [
        (b"", "records", "1 to 64 bytes, not 0"),
        (bytes(65), "records", "1 to 64 bytes, not 65"),
        ("~", "records", "a prefix is bytes, not str"),
        (b"a\n", "lines", "no line feed"),
        (b"a", "words", "'records' or 'lines', not 'words'"),
    ],
)
def test_what_it_refuses(prefix: bytes, kind: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        scan_job(prefix, input=kind)  # type: ignore[arg-type]


def test_by_name_alone_it_is_not_found() -> None:
    with pytest.raises(UsageError, match="--starts-with"):
        find_job("scan")


def test_a_record_may_begin_with_a_line_feed() -> None:
    blocks = map_blocks(scan_job(b"\n"), [b"\n" * 100 + b"a" * 100], 1)
    assert blocks[0][0].records == 1
