"""What voting costs in things that can be counted: executions and bytes. They are equal on every machine, and gate.

The counts are in ``extra_info``, too: ``pytest tests/bench --benchmark-only --benchmark-json=FILE`` keeps them over
time.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quoreduce import Job, Options, Place, Result, Session, scan_job
from quoreduce.jobs.sort import JOB as SORT
from quoreduce.jobs.wordcount import JOB as WORDCOUNT
from quoreduce_kernels.gensort import generate_records
from quoreduce_kernels.textgen import generate_text

TEXT_BYTES = 400_000
RECORDS = 4_000
SPLIT_MB = 0.1
MAPS = 4
REDUCERS = 3
JOBS = pytest.mark.parametrize("job", [WORDCOUNT, SORT, scan_job(b"~")], ids=lambda job: job.name)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("inputs")
    paths = {"wordcount": folder / "text", "sort": folder / "records", "scan": folder / "records"}
    paths["wordcount"].write_bytes(generate_text(0, TEXT_BYTES, 1).tobytes())
    paths["sort"].write_bytes(generate_records(0, RECORDS, "ascii").tobytes())
    return paths


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(Place("local", 3, "worker")) as opened:
        yield opened


class Runner:
    """Runs jobs, timed by pytest-benchmark if that is on; their counts go to its report."""

    def __init__(self, benchmark: Any, session: Session, inputs: dict[str, Path], folder: Path) -> None:
        self._benchmark = benchmark
        self._session = session
        self._inputs = inputs
        self._folder = folder
        self._runs = 0

    def timed(self, job: Job, **options: Any) -> Result:
        self._benchmark.group = f"jobs: {job.name}"
        result: Result = self._benchmark.pedantic(self.untimed, (job,), options, rounds=3, warmup_rounds=1)
        counts = {f"executions_{kind}": n for kind, n in result.executions.items()}
        self._benchmark.extra_info |= {
            **counts,
            "bytes_stored": result.bytes_stored,
            "bytes_shipped": result.bytes_shipped,
        }
        return result

    def untimed(self, job: Job, **options: Any) -> Result:
        self._runs += 1
        output = self._folder / f"out{self._runs}"
        chosen = Options(reducers=REDUCERS, split_mb=SPLIT_MB, **options)
        return self._session.run(job, [str(self._inputs[job.name])], str(output), chosen)

    def parts(self) -> list[bytes]:
        """The parts of the last output."""
        return [path.read_bytes() for path in sorted((self._folder / f"out{self._runs}").glob("part-*"))]


@pytest.fixture
def runner(benchmark: Any, session: Session, inputs: dict[str, Path], tmp_path: Path) -> Runner:
    return Runner(benchmark, session, inputs, tmp_path)


@JOBS
@pytest.mark.parametrize(
    ("options", "replicas"),
    [
        ({"mode": "original"}, 1),
        ({"f": 0}, 1),
        ({"f": 1}, 2),
        ({"f": 1, "digest": "fast"}, 2),
        ({"f": 2}, 3),
        ({"f": 1, "mode": "basic"}, 3),
    ],
    ids=["original", "f0", "f1", "f1-fast", "f2", "basic-f1"],
)
def test_without_faults_each_task_runs_exactly_as_often_as_its_mode_says(
    runner: Runner, job: Job, options: dict[str, Any], replicas: int
) -> None:
    result = runner.timed(job, **options)
    samples = {"sample": replicas} if job is SORT else {}
    assert result.executions == {**samples, "map": replicas * MAPS, "reduce": replicas * REDUCERS}
    assert (result.reexecutions, result.faults.detected) == (0, 0)


@JOBS
@pytest.mark.parametrize("f", [1, 2])
@pytest.mark.parametrize("digest", ["blake3", "fast"])
def test_voted_stores_exactly_the_bytes_that_plain_stores(runner: Runner, job: Job, f: int, digest: str) -> None:
    """R6: one replica stores, the others only digest."""
    plain = runner.untimed(job, mode="original")
    parts = runner.parts()
    voted = runner.timed(job, f=f, digest=digest)
    assert voted.bytes_stored == plain.bytes_stored
    assert runner.parts() == parts


@JOBS
def test_without_digest_outputs_every_replica_stores(runner: Runner, job: Job) -> None:
    plain = runner.untimed(job, mode="original")
    assert runner.timed(job, digest_outputs=False).bytes_stored == 2 * plain.bytes_stored


@JOBS
@pytest.mark.parametrize("f", [0, 1, 2])
def test_a_replica_of_a_reduce_reads_each_stored_byte_of_its_partition_once(runner: Runner, job: Job, f: int) -> None:
    """What is shipped depends on who runs what; never more than all that is stored to each of the f+1 replicas."""
    result = runner.timed(job, f=f)
    assert 0 < result.bytes_shipped <= (f + 1) * result.bytes_stored


@JOBS
def test_with_one_domain_nothing_is_shipped(benchmark: Any, inputs: dict[str, Path], tmp_path: Path, job: Job) -> None:
    """All blocks are read where they were made."""
    with Session(Place("inline", 1)) as alone:
        result = Runner(benchmark, alone, inputs, tmp_path).timed(job, mode="original")
    assert result.bytes_stored > 0
    assert result.bytes_shipped == 0


@pytest.mark.parametrize("job", [WORDCOUNT, SORT], ids=lambda job: job.name)
@pytest.mark.parametrize("percent", [0, 100])
def test_each_wrong_map_costs_exactly_one_more_execution(runner: Runner, job: Job, percent: int) -> None:
    """The ends of ``python -m bench.sweep``: f=1, one of the two replicas of a map is wrong, a third one decides."""
    plain = runner.untimed(job)
    result = runner.timed(job, faults=(f"wrong:map:{percent}%",))
    wrong = MAPS * percent // 100
    assert result.executions == plain.executions | {"map": 2 * MAPS + wrong}
    assert result.faults.injected == result.faults.detected == result.reexecutions == wrong
    assert result.digest == plain.digest
