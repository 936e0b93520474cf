"""A benchmark of a job, plain and voted, by pytest-benchmark: python -m pytest benchmarks --benchmark-only"""

from itertools import count

import pytest

from quoreduce import Job, Options, Place, Session


def words(line: bytes):
    for word in line.split():
        yield word, 1


def total(word: bytes, counts: list):
    yield word, sum(counts)


job = Job("count", map=words, reduce=total, combine=total)


@pytest.fixture(scope="module")
def session():
    with Session(Place(on="local", workers=2, domain="worker")) as session:
        yield session


@pytest.mark.parametrize("mode", ["original", "bft"])
def test_count(benchmark, session, tmp_path, mode):
    text = tmp_path / "text"
    text.write_bytes(b"to be or not to be\n" * 20_000)
    outputs = count()
    options = Options(mode=mode, split_mb=0.1)
    result = benchmark(lambda: session.run(job, [str(text)], str(tmp_path / f"out{next(outputs)}"), options))
    benchmark.extra_info["executions"] = sum(result.executions.values())
    assert result.records_out == 4
