"""What voting costs each of GridMix's applications in things that can be counted. They are equal on every machine, and
gate.

Times are in ``extra_info`` beside the counts; they never decide.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from quoreduce import Place, Session
from quoreduce_gridmix import apps, data, runner
from quoreduce_gridmix.results import Run
from quoreduce_gridmix.runner import Study, Variant

NBYTES = 150_000
PARTS = 4
REDUCERS = 3
PLAIN = Variant("original")
VOTED = {f: Variant("bft", f) for f in (1, 2)}
FIGURES = ("executions", "bytes_stored", "bytes_shipped", "wall_s", "cpu_s")


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[data.Kind, data.DataSet]:
    folder = tmp_path_factory.mktemp("sets")
    return {kind: data.generate(kind, folder / kind, NBYTES, PARTS, seed=1, workers=1) for kind in data.KINDS}


@pytest.fixture(scope="module")
def session() -> Iterator[Session]:
    with Session(Place("inline", 3)) as opened:
        yield opened


def figures(run: Run) -> tuple[float, ...]:
    return sum(run.executions.values()), run.bytes.stored, run.bytes.shipped, run.wall_s, run.cpu_s


@pytest.mark.parametrize("app", apps.NAMES)
@pytest.mark.benchmark(group="GridMix")
def test_an_application_runs_every_task_once_more_for_each_f_and_stores_and_writes_the_same_bytes(
    benchmark: Any, session: Session, sets: dict[data.Kind, data.DataSet], tmp_path: Path, app: str
) -> None:
    study = Study(runner.applications([app]), ("large",), (PLAIN, *VOTED.values()), 1, 0, reducers=REDUCERS)
    results = benchmark.pedantic(runner.run_study, (study, sets, tmp_path / "out", session), rounds=1)
    runs = {run.variant: run for run in results.runs}
    plain = runs[PLAIN.name]
    for f, variant in VOTED.items():
        voted = runs[variant.name]
        assert voted.executions == {kind: (f + 1) * n for kind, n in plain.executions.items()}
        assert voted.bytes.stored == plain.bytes.stored > 0
        assert 0 < voted.bytes.shipped <= (f + 1) * voted.bytes.stored
        assert voted.digest == plain.digest
        assert voted.counters == plain.counters
        benchmark.extra_info |= {
            f"time_ratio_f{f}": voted.wall_s / plain.wall_s,
            f"cpu_ratio_f{f}": voted.cpu_s / plain.cpu_s,
        }
    for run in runs.values():
        benchmark.extra_info |= {f"{name}_{run.variant}": n for name, n in zip(FIGURES, figures(run), strict=True)}
    benchmark.extra_info["output"] = plain.digest
