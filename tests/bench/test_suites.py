"""The benchmarks themselves: that importing them does nothing, and that they compute what they say."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))  # whence `python -m bench.peers` imports it

from bench import measure, peers, sweep

ROOT = Path(__file__).parents[2]
SUITES = sorted(path.stem for path in (ROOT / "bench").glob("*.py"))
CLEAN = measure.Noise(wall_s=1.0, cores=2, others_s=0.0, steal_s=0.0, pressure_s=1.0)
DIRTY = measure.Noise(wall_s=1.0, cores=2, others_s=0.5, steal_s=0.0, pressure_s=0.0)
STOLEN = measure.Noise(wall_s=1.0, cores=2, others_s=0.0, steal_s=0.5, pressure_s=0.0)


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "wait_for_quiet", lambda: None)


def runs(*noises: measure.Noise) -> Iterator[measure.Run]:
    return (measure.Run(wall_s=float(i + 1), cpu_s=1.0, noise=noise) for i, noise in enumerate(noises))


def test_importing_the_suites_loads_no_engine_no_kernels_and_no_peer() -> None:
    """asv imports every file in bench/ to find what there is to run."""
    heavy = ("ray", "numba", "quoreduce.runtime", "quoreduce.driver", "quoreduce.worker", "duckdb", "polars")
    code = (
        f"import sys, {', '.join(f'bench.{name}' for name in SUITES)}; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(("noise", "dirty"), [(CLEAN, False), (DIRTY, True), (STOLEN, True)])
def test_a_run_is_dirty_if_others_or_the_hypervisor_took_the_cores_but_not_for_pressure(
    noise: measure.Noise, dirty: bool
) -> None:
    assert noise.dirty is dirty


def test_dirty_pairs_are_dropped_and_tried_again() -> None:
    plain, voted = runs(CLEAN, DIRTY, CLEAN, CLEAN), runs(CLEAN, CLEAN, STOLEN, CLEAN)
    pairs = measure.interleave(lambda: next(plain), lambda: next(voted), wanted=2)
    assert [(a.wall_s, b.wall_s) for a, b in pairs.kept] == [(1.0, 1.0), (4.0, 4.0)]
    assert (pairs.clean, pairs.tried) == (2, 4)


def test_with_nothing_but_dirty_pairs_the_tries_are_bounded_and_all_pairs_are_used() -> None:
    plain, voted = runs(*[DIRTY] * 99), runs(*[CLEAN] * 99)
    pairs = measure.interleave(lambda: next(plain), lambda: next(voted), wanted=3)
    assert (pairs.clean, pairs.tried, len(pairs.kept)) == (0, 6, 6)


def test_who_goes_first_alternates() -> None:
    order: list[str] = []

    def run(name: str) -> measure.Run:
        order.append(name)
        return measure.Run(1.0, 1.0, CLEAN)

    measure.interleave(lambda: run("plain"), lambda: run("voted"), wanted=2)
    assert order == ["plain", "voted", "voted", "plain"]


def test_a_ratio_without_a_denominator_is_no_number() -> None:
    assert math.isnan(measure.divide(1.0, 0.0))


def test_counts_are_compared_whatever_their_order_and_form(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "uniq"
    ours.mkdir()
    (ours / "part-r-00000").write_bytes(b"b\t2\n")
    (ours / "part-r-00001").write_bytes(b"a\t10\n")
    theirs.write_bytes(b"     10 a\n      2 b\n")
    assert peers.fingerprint(ours, "wordcount") == peers.fingerprint(theirs, "wordcount")
    theirs.write_bytes(b"     10 a\n      3 b\n")
    assert peers.fingerprint(ours, "wordcount") != peers.fingerprint(theirs, "wordcount")


def test_sorted_outputs_are_compared_byte_by_byte(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "sorted"
    ours.mkdir()
    (ours / "part-r-00000").write_bytes(b"a\n")
    (ours / "part-r-00001").write_bytes(b"b\n")
    theirs.write_bytes(b"a\nb\n")
    assert peers.fingerprint(ours, "sort") == peers.fingerprint(theirs, "sort")
    theirs.write_bytes(b"b\na\n")
    assert peers.fingerprint(ours, "sort") != peers.fingerprint(theirs, "sort")


def test_a_missing_engine_is_reported_as_missing() -> None:
    engine = peers.Engine("DuckDB", False, None, "missing: the package duckdb is not installed")
    assert "| DuckDB | missing: the package duckdb is not installed |" in peers.markdown("sort", [engine])
    assert peers.as_json(engine)["missing"] == "missing: the package duckdb is not installed"


def test_the_figures_of_a_sweep_are_of_pairs_and_the_table_sets_the_published_ones_beside_them() -> None:
    def run(wall_s: float, executions: int) -> measure.Run:
        return measure.Run(wall_s, 2 * wall_s, CLEAN, wall_s, measure.Counts(executions, 0, 0))

    pairs = measure.Pairs.of(
        [(run(1.0, 20), run(1.2, 30)), (run(2.0, 20), run(3.0, 30)), (run(1.0, 20), run(1.1, 30))], 3
    )
    found = sweep.figures(pairs, 100)
    assert found["time_ratio"] == found["cpu_ratio"] == 1.2
    assert found["time_ratio_min"] == 1.1
    assert found["executions_ratio"] == 1.5
    last = sweep.markdown({sweep.name("sort", 100): found}).splitlines()[-1]
    assert last == "| sort, 100 % | 1.000 | 1.200 | 1.20 (1.10; 0.20) | 1.96 | 1.20 | 20, 30 | 3 of 3 |"
