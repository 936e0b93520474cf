"""What is measured on this machine, as far as it can be said beforehand; and what is made of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quoreduce.cli import main
from quoreduce.commands.simulate import calibrate, rig, validate
from quoreduce.sim import Calibration, Curve

POSITIVE = st.floats(1e-3, 1e3)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few jobs, and once."""
    monkeypatch.setattr(calibrate, "ROUNDS", 1)
    monkeypatch.setattr(calibrate, "WARM", 1)
    monkeypatch.setattr(validate, "WARM", 1)
    monkeypatch.setattr(calibrate, "TINY", ((8, 1), (24, 1), (8, 6)))
    monkeypatch.setattr(calibrate, "TINY_TIMES", 1)
    monkeypatch.setattr(calibrate, "ONE_TIMES", 1)
    monkeypatch.setattr(validate, "REPEATS", 1)
    monkeypatch.setattr(validate, "TRIES_MAX", 2)
    monkeypatch.setattr(validate, "JOBS", (("sort", validate.VOTED, 5, 2), ("wordcount", validate.PLAIN, 3, 3)))
    real = rig.Rig.subjects

    def two(self: rig.Rig, name: str, mb: float, seed: int, names: Sequence[str] = ()) -> list[rig.Subject]:
        return real(self, name, mb, seed, ("sort", "wordcount"))

    monkeypatch.setattr(rig.Rig, "subjects", two)


@pytest.mark.usefixtures("quick")
def test_this_machine_is_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "here.json"
    assert main(["simulate", "calibrate", "--mb", "2", "--out", str(out)]) == 0
    found = Calibration.decode(out.read_text())
    assert "with 2 MB" in found.source
    assert set(found.jobs) == {"sort", "wordcount"}
    sort, wordcount = found.job("sort"), found.job("wordcount")
    for read in (200_000, 1_000_000, 3_000_000):
        assert sort.mapped.made(read) == pytest.approx(read, rel=0.01)
        assert sort.out.made(read) == pytest.approx(read, rel=0.01)
    assert wordcount.mapped.made(1_000_000) < 1.9 * wordcount.mapped.made(500_000)  # words come again
    assert (sort.sample_s > 0, wordcount.sample_s) == (True, 0)
    read = 1_000_000
    assert wordcount.map.plain.cpu_s(read, wordcount.mapped.made(read)) > sort.map.plain.cpu_s(read, read) > 1e-4
    assert 1e-11 < found.digest_s_per_byte < 1e-8
    assert min(found.driver_s, found.check_s, found.latency_s) > 0
    capsys.readouterr()
    assert main(["simulate", "run", "--calibration", str(out), "--job", "sort", "--maps", "10"]) == 0


@pytest.mark.usefixtures("quick")
def test_validate_sets_simulated_beside_measured_times(capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["simulate", "validate", "--mb", "2"])
    text = capsys.readouterr().out
    rows = [line.split() for line in text.splitlines() if line.startswith(("sort", "wordcount"))]
    assert [(row[0], row[1], *map(int, row[2:5])) for row in rows] == [
        ("sort", "bft", 1, 5, 2),
        ("wordcount", "original", 0, 3, 3),
    ]
    within = sum(not row[9].endswith("*") for row in rows)
    assert f"{within} of 2 jobs" in text
    assert code == (within != 2)


@given(st.tuples(POSITIVE, POSITIVE, POSITIVE))
def test_a_fit_finds_the_costs_that_values_are_made_of(costs: tuple[float, float, float]) -> None:
    rows = [(1.0, 1.0, 2.0), (1.0, 3.0, 1.0), (1.0, 10.0, 1.0), (1.0, 2.0, 7.0), (1.0, 20.0, 30.0)]
    values = [sum(a * b for a, b in zip(costs, row, strict=True)) for row in rows]
    found = calibrate.fit(rows, values)
    again = [sum(a * b for a, b in zip(found, row, strict=True)) for row in rows]
    assert again == pytest.approx(values, rel=0.15)
    assert min(found) >= 0


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=2, max_size=6),
    st.lists(POSITIVE, min_size=6, max_size=6),
)
def test_no_cost_is_negative(sizes: list[tuple[float, float]], values: list[float]) -> None:
    assert min(calibrate.fit([(1.0, *size) for size in sizes], values[: len(sizes)])) >= 0


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(1, 1e9)), min_size=1, max_size=8))
def test_a_curve_goes_through_its_points(points: list[tuple[float, float]]) -> None:
    found = calibrate.curve(points)
    assert all(found.made(x) == pytest.approx(y) for x, y in found.points)
    assert all(b[0] > 1.1 * a[0] for a, b in pairwise(found.points))


def test_a_curve_between_and_beyond_its_points() -> None:
    words = Curve(((1.0, 100.0), (4.0, 200.0)))
    assert words.made(2.0) == pytest.approx(100 * 2**0.5)
    assert words.made(16.0) == pytest.approx(400.0)
    assert words.made(0.5) == 50.0


def a_run(wall_s: float, disturbed: bool) -> Any:
    return SimpleNamespace(result=SimpleNamespace(wall_s=wall_s, cpu_s=2.0), driver_s=0.5, disturbed=disturbed)


def test_jobs_run_in_rounds_and_those_that_were_disturbed_again() -> None:
    order: list[str] = []

    def job(name: str, disturbed: Iterator[bool]) -> Any:
        def run() -> Any:
            order.append(name)
            return a_run(1.0, next(disturbed))

        return run

    def others() -> list[Any]:
        return [lambda: order.append("other")]

    calm, restless = (False for _ in range(99)), (n % 2 == 0 for n in range(99))
    found = validate.in_turn([job("calm", calm), job("restless", restless)], lambda text: None, others)
    rounds = [order[n : n + 3] for n in range(0, 3 * (validate.WARM + validate.REPEATS), 3)]
    assert all(sorted(one) == ["calm", "other", "restless"] for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # in any order
    assert len(found[0]) == validate.REPEATS
    assert sum(not run.disturbed for run in found[1]) == validate.REPEATS
    assert set(order[3 * len(rounds) :]) == {"restless"}
    never = validate.in_turn([job("never", iter(lambda: True, None))], lambda text: None, list)  # type: ignore[arg-type]
    assert len(never[0]) == validate.TRIES_MAX


def test_the_bar_is_fifteen_per_cent_of_the_median_of_runs_that_nobody_disturbed() -> None:
    from quoreduce.sim import USUAL

    subject = rig.Subject("sort", rig.SORT, Path(), 64_000_000)

    def against(*walls_s: float) -> validate.Compared:
        runs = [a_run(wall_s, False) for wall_s in walls_s] + [a_run(99.0, True)]
        return validate.compared(subject, validate.VOTED, 8, USUAL, 2, runs)

    simulated_s = against(1.0, 1.0).simulated_s
    assert against(simulated_s * 1.1, simulated_s * 1.1, 50.0).holds
    assert not against(simulated_s * 1.2, simulated_s * 1.2).holds
    assert not against(simulated_s * 0.8, simulated_s * 0.8).holds
    good, bad = against(simulated_s, simulated_s), against(1000.0, 1000.0)
    assert (good.clean, good.runs, good.measured_cpu_s) == (2, 3, 1.5)
    text = validate.table(validate.Validation(USUAL, (good, bad)))
    assert "1 of 2 jobs: simulated and measured time agree within 15%" in text
    assert validate.Validation(USUAL, (good,)).as_dict()["holds"] is True
