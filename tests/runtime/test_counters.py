"""Counters: bounded, summed over one agreed attempt of each task, and what the engine knows from votes goes before
claims.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
from runs import WORDCOUNT, Runner

from quoreduce import Job
from quoreduce.data.digest import Digester
from quoreduce.errors import HostError, JobError
from quoreduce.protocol import wire
from quoreduce.worker.context import MapContext, ReduceContext


def contexts() -> list[MapContext | ReduceContext]:
    digester = Digester("blake3")
    return [
        MapContext(0, 1, b"", 0, True, digester, lambda n: np.empty(n, np.uint8)),
        ReduceContext(0, 1, b"", 0, digester, 1, []),
    ]


def test_counts_add_up_within_bounds() -> None:
    for ctx in contexts():
        for i in range(wire.COUNTERS_MAX):
            ctx.count(f"counter {i}")
        ctx.count("counter 0", 5)
        assert ctx.counters["counter 0"] == 6
        with pytest.raises(ValueError, match="at most 64"):
            ctx.count("one more")
        for name, n in (("", 1), ("x" * 65, 1), ("counter 0", -1)):
            with pytest.raises(ValueError, match="only goes up"):
                ctx.count(name, n)


def test_replies_with_too_much_to_count_are_no_replies() -> None:
    good = {f"counter {i}": i for i in range(wire.COUNTERS_MAX)}
    assert wire.decode_reply(wire.encode(wire.Done(0, counters=good))) == wire.Done(0, counters=good)
    for bad in (good | {"one more": 1}, {"x": -1}, {"": 1}, {"x" * 65: 1}, {"x": "many"}, {1: 1}):
        raw = msgspec.msgpack.encode({"type": "done", "attempt": 0, "counters": bad})
        with pytest.raises(HostError):
            wire.decode_reply(raw)


WAYS = ({"mode": "original"}, {"f": 1}, {"mode": "basic", "f": 1}, {"f": 1, "faults": ("wrong:all:2",)})


@pytest.mark.parametrize("options", WAYS)
def test_word_count_counts_as_hadoop_does(run: Runner, tmp_path: Path, options: dict[str, object]) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a b a\n" * 1000)
    result, parts = run("inline", WORDCOUNT, text, workers=3, split_mb=0.001, reducers=2, **options)
    stored = result.counters.pop("REDUCE_SHUFFLE_BYTES")
    assert 0 < stored <= result.bytes_stored
    assert result.counters == {
        "MAP_INPUT_RECORDS": 3000, "MAP_OUTPUT_RECORDS": 3000, "COMBINE_INPUT_RECORDS": 3000,
        "COMBINE_OUTPUT_RECORDS": 2 * result.splits, "REDUCE_INPUT_RECORDS": 2 * result.splits,
        "REDUCE_INPUT_GROUPS": 2, "REDUCE_OUTPUT_RECORDS": 2, "BYTES_READ": 6000, "BYTES_WRITTEN": sum(map(len, parts)),
    }  # fmt: skip


def test_a_python_style_job_is_counted(run: Runner, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"1\n2\n3\n4\n")

    def total(key: int, values: list[int]) -> list[tuple[int, int]]:
        return [(key, sum(values))]

    job = Job("sums", map=lambda line: [(int(line) % 2, int(line)), (7, 1)], reduce=total, combine=total)
    result, _ = run("inline", job, text, f=1)
    assert result.counters.items() >= {
        "MAP_INPUT_RECORDS": 4, "MAP_OUTPUT_RECORDS": 8, "COMBINE_INPUT_RECORDS": 8, "COMBINE_OUTPUT_RECORDS": 3,
        "REDUCE_INPUT_GROUPS": 3, "REDUCE_OUTPUT_RECORDS": 3,
    }.items()  # fmt: skip


def count_something(data: object, ctx: MapContext) -> list[object]:
    ctx.count("REDUCE_SHUFFLE_BYTES", 10**12)
    ctx.count("bad lines", 3)
    return WORDCOUNT.map(data, ctx)  # type: ignore[no-any-return]


def test_a_job_counts_what_it_likes_but_not_what_was_voted_on(run: Runner, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a\n")
    job = Job.of_blocks("counts", map=count_something, reduce=WORDCOUNT.reduce, input="words")
    result, _ = run("inline", job, text, f=1)
    assert result.counters["bad lines"] == 3
    assert result.counters["REDUCE_SHUFFLE_BYTES"] < 10**12


def count_down(data: object, ctx: MapContext) -> list[object]:
    ctx.count("less", -1)
    return []


def test_a_counter_that_goes_down_fails_the_job(run: Runner, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"a\n")
    job = Job.of_blocks("counts", map=count_down, reduce=WORDCOUNT.reduce, input="words")
    with pytest.raises(JobError, match="only goes up"):
        run("inline", job, text, f=1)
