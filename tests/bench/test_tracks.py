"""The asv suites: that asv finds them, that every figure has a unit, and what is made of the figures of GridMix."""

from __future__ import annotations

import inspect
import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asv.config
import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # whence `python -m bench.gridmix` imports it

from bench import (
    attest,
    attested,
    durable,
    gridmix,
    jobs,
    kernels,
    measure,
    ray_overhead,
    sweep,
    tracker,
    vm,
    vm_guests,
    vm_launch,
)

from quoreduce_gridmix import apps

ROOT = Path(__file__).parents[2]
NOISE = measure.Noise(1.0, 2, 0.0, 0.0, 0.0)
LESS_IS_BETTER = {
    "ms/GB", "ns/key", "seconds", "ms", "bytes", "tasks", "voted/plain", "pairs", "of wall time", "of core time",
    "of the job's CPU", "µs", "batched/unbatched", "attested/voted", "exponent", "faulty/clean", "durable/voted",
    "trusted/plain - 1",
}  # fmt: skip
SUITES = [
    suite
    for module in (
        attest,
        attested,
        durable,
        gridmix,
        jobs,
        kernels,
        ray_overhead,
        sweep,
        tracker,
        vm,
        vm_guests,
        vm_launch,
    )
    for name, suite in inspect.getmembers(module, inspect.isclass)
    if hasattr(suite, "setup_cache") and not name.startswith("_")
]
TRACKS = [(suite, name, getattr(suite, name)) for suite in SUITES for name in dir(suite) if name.startswith("track_")]


def a_cell(voted_s: float) -> measure.Cell:
    """Figures of three pairs, of a plain run of 1 s and a voted one, in which each of 4 tasks ran twice."""
    plain = measure.Run(1.0, 2.0, NOISE, detail=measure.Counts(4, 100, 50))
    voted = measure.Run(voted_s, 4.0, NOISE, detail=measure.Counts(8, 100, 100))
    cell = measure.costs(measure.Pairs.of([(plain, voted)] * 3, 3), [(10, 20), (30, 40)])
    return {**cell, "executions_ratio": 2.0}


@pytest.fixture
def cells() -> measure.Cells:
    found = {gridmix.name(app, f): a_cell(f + 1.0) for f in gridmix.WORKERS for app in gridmix.APPS}
    return found | {gridmix.mean(f): gridmix.means([a_cell(2.0), a_cell(8.0)]) for f in gridmix.WORKERS}


def test_asv_finds_every_suite(tmp_path: Path) -> None:
    """As asv does it in each environment: in a process of its own, into a file."""
    found = tmp_path / "benchmarks.json"
    command = [sys.executable, "-m", "asv.benchmark", "discover", str(ROOT / "bench"), str(found)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    listed = {entry["name"]: entry for entry in json.loads(found.read_text())}
    assert set(listed) == {
        f"{suite.__module__.removeprefix('bench.')}.{suite.__name__}.{name}" for suite, name, _ in TRACKS
    }
    keys = {entry["setup_cache_key"] for name, entry in listed.items() if name.startswith("gridmix.")}
    assert len(keys) == 1  # all are figures of the same runs


@pytest.mark.parametrize(("suite", "name", "track"), TRACKS, ids=lambda value: getattr(value, "__name__", value))
def test_every_figure_has_a_unit_of_which_less_is_better_for_asv_knows_no_other(
    suite: type, name: str, track: Callable[..., float]
) -> None:
    assert track.unit in LESS_IS_BETTER  # type: ignore[attr-defined]
    assert suite.__doc__


@pytest.mark.parametrize(("suite", "name"), [(suite, name) for suite, name, _ in TRACKS])
def test_no_track_is_of_what_is_better_when_there_is_more(suite: type, name: str) -> None:
    assert name == "track_clean_s" or "clean" not in name, f"{suite.__name__}.{name}"


def test_pairs_that_others_disturbed_are_tracked() -> None:
    run = measure.Run(1.0, 2.0, NOISE, detail=measure.Counts(4, 100, 50))
    cell = measure.costs(measure.Pairs([(run, run)] * 3, clean=3, tried=5), [(1, 2), (3, 4)])
    assert (cell["pairs_clean"], cell["pairs_tried"], cell["pairs_disturbed"]) == (3, 5, 2)
    suite: Any = gridmix.Applications()
    assert suite.track_pairs_disturbed({gridmix.name("javaSort", 1): cell}, "javaSort", 1) == 2


def test_the_pages_of_asv_link_to_the_project() -> None:
    config = asv.config.Config.load(str(ROOT / "asv.conf.json"))
    home = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Homepage"]
    assert (config.project_url, config.show_commit_url) == (home, f"{home}/commit/")


def test_the_applications_are_those_of_gridmix() -> None:
    assert apps.NAMES == gridmix.APPS


def test_a_track_looks_up_its_figure(cells: measure.Cells) -> None:
    suite: Any = gridmix.Applications()
    assert suite.track_time_ratio(cells, "javaSort", 2) == 3.0
    assert suite.track_peak_memory_voted(cells, "javaSort", 1) == 40
    means: Any = gridmix.Means()
    assert means.track_time_ratio(cells, 1) == 4.0  # the geometric mean of 2 and 8


def test_the_table_has_a_row_for_each_application_and_f_and_for_the_means(cells: measure.Cells) -> None:
    lines = gridmix.markdown(cells).splitlines()
    assert len(lines) == 2 + 2 * 6 + 2
    assert len({line.count("|") for line in lines}) == 1
    assert "| javaSort, f=1 | 1.000 | 2.000 | 2.00 (2.00; 0.00) | 2.00 | 4, 8 |" in gridmix.markdown(cells)


def test_the_entries_for_the_action_have_its_fields(cells: measure.Cells) -> None:
    entries = json.loads(json.dumps(gridmix.action(cells), allow_nan=False))
    assert len({entry["name"] for entry in entries}) == len(entries) == 2 * 6 * 5 + 2 * 2
    for entry in entries:
        assert {"name", "unit", "value"} <= set(entry) <= {"name", "unit", "value", "range", "extra"}
        assert isinstance(entry["value"], float)
        assert all(isinstance(value, str) for key, value in entry.items() if key != "value")
    assert entries[0] == {
        "name": "GridMix, streamSort, f=1: time ratio", "unit": "voted/plain", "value": 2.0, "range": "± 0.000",
        "extra": "plain 1.000 s, voted 2.000 s\n3 of 3 pairs clean",
    }  # fmt: skip


def test_a_run_with_more_executions_than_planned_is_no_benchmark() -> None:
    class Stage:
        reexecutions, faults_detected = 1, 0

    class Run:
        app, variant, stages = "javaSort", "plain", (Stage,)

    with pytest.raises(RuntimeError, match="not a benchmark"):
        gridmix._as_measured(Run)  # type: ignore[arg-type]
