"""Streaming, and an application of GridMix, on Ray's actors; everything else about them is tested on cheaper
executors.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from runs import Runner

from quoreduce import stream_job
from quoreduce_gridmix import apps

ON = pytest.param("ray", marks=pytest.mark.ray)


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """2,000 lines ``key<TAB>value``, with keys that come again."""
    path = tmp_path_factory.mktemp("lines") / "lines"
    path.write_bytes(b"".join(b"key %d\tvalue %d\n" % (i * i % 97, i) for i in range(2000)))
    return path


def in_order(lines: Path) -> list[bytes]:
    """The lines by key; those of one key in the order of the input."""
    return sorted(lines.read_bytes().splitlines(), key=lambda line: line.partition(b"\t")[0])


@pytest.mark.parametrize("on", [ON])
def test_streaming_masks_a_fault_on_ray(run: Runner, on: str, lines: Path) -> None:
    job = stream_job("cat", "cat", folder="/")
    result, parts = run(on, job, lines, workers=3, f=1, reducers=1, split_mb=0.01, faults=("flip:map:1",), fault_seed=1)
    assert b"".join(parts).splitlines() == in_order(lines)
    assert result.splits > 2
    assert result.faults.injected == result.faults.masked == 1
    assert result.executions["map"] > 2 * result.splits


@pytest.mark.parametrize("on", [ON])
def test_java_sort_is_voted_on_on_ray(run: Runner, on: str, lines: Path) -> None:
    (job,) = apps.jobs_of("javaSort")
    result, parts = run(on, job, lines, workers=3, f=1, reducers=3, split_mb=0.01)
    assert sorted(line for part in parts for line in part.splitlines()) == sorted(lines.read_bytes().splitlines())
    keys = [[line.partition(b"\t")[0] for line in part.splitlines()] for part in parts]
    assert keys == [sorted(part) for part in keys]
    assert result.executions == {"map": 2 * result.splits, "reduce": 6}
    assert result.counters["MAP_INPUT_RECORDS"] == result.counters["REDUCE_OUTPUT_RECORDS"] == 2000
