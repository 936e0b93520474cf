"""Files of figures that commands read: samples, and how each is read."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fuzzed_inputs import folder, stored


@cache
def calibrations() -> list[bytes]:
    from quoreduce.sim.calibration import USUAL, Calibration

    few = Calibration(
        "by hand", {"sort": USUAL.job("sort"), "monsterQuery": USUAL.job("monsterQuery")}, 1e-9, 1e-4, 0.1
    )
    return [USUAL.encode().encode(), few.encode().encode()]


def read_calibration(raw: bytes) -> None:
    """Read it as the command does, and simulate a small job of each kind with it."""
    from quoreduce.commands.simulate.command import _read, describe
    from quoreduce.sim import Calibration, Load, Shape, simulate

    calibration = _read(stored(raw, ".json"))
    assert Calibration.decode(calibration.encode()) == calibration
    for name in sorted(calibration.jobs)[:2]:
        cost = calibration.job(name)
        if cost.stages <= 3 and max(cost.mapped.made(1e6), cost.out.made(2e6)) <= 2e7:  # else it may be right, and long
            describe(simulate(Shape(nodes=3), Load(name, cost, 2, 1, 1e6), calibration)).encode()


@cache
def results() -> list[bytes]:
    from quoreduce_gridmix import results as r
    from quoreduce_gridmix.noise import Noise

    def run(app: str, size: str, variant: str, mode: str, repetition: int, wall_s: float) -> r.Run:
        amounts, executions = r.Amounts(100, 90, 100, 20), {"map": 6, "reduce": 4}
        stage = r.JobStage(
            job=app,
            wall_s=wall_s,
            cpu_s=wall_s,
            bytes=amounts,
            executions=executions,
            counters={"A": 1},
            splits=3,
            parts=2,
            reexecutions=0,
            faults_detected=0,
        )
        return r.Run(
            app=app,
            size=size,
            variant=variant,
            mode=mode,
            f=int(mode == "bft"),
            off=[],
            repetition=repetition,
            wall_s=wall_s,
            cpu_s=wall_s,
            bytes=amounts,
            executions=executions,
            counters={"A": 1},
            digest="0" * 64,
            splits=3,
            noise=Noise(0.0, 0.1, 0.0, repetition == 2),
            stages=[stage],
        )

    setting = r.StudySetting(
        on="local",
        workers=2,
        domains=2,
        machine={"cpu": "x", "cores": 2, "cores_used": 2, "memory_gb": 8.0, "kernel": "6", "architecture": "x"},
        split_mb=64.0,
        data={"varinfltext": {"nbytes": 1000, "seed": 1, "parts": 10}},
        digest="blake3",
    )
    runs = [
        run(app, size, variant, mode, k, 1.0 + k)
        for app in ("javaSort", "combiner")
        for size in ("small", "parts:3")
        for k in range(3)
        for variant, mode in (("plain", "original"), ("voted f=1", "bft"))
    ]
    made = [
        r.StudyResults(
            format=2, date="2026-01-02T03:04:05+00:00", versions={"numpy": "2"}, setting=setting, runs=runs[:n]
        )
        for n in (2, 4, 24)
    ]
    return [result.encode() for result in made]


def report_results(raw: bytes) -> None:
    """Read it as the command does, and make the page of it."""
    from quoreduce_gridmix.report import render
    from quoreduce_gridmix.results import StudyResults, read_results

    results = read_results(stored(raw, ".json"))
    assert isinstance(results, StudyResults)
    page, drawings = render([results])
    page.encode(), [drawing.svg.encode() for drawing in drawings]


@cache
def data_sets() -> list[bytes]:
    from quoreduce_gridmix.data import generate

    made = Path(folder().name) / "set"
    generate("varinfltext", made, 400, parts=2, workers=1)
    return [(made / "_gridmix.json").read_bytes()]


def load_data_set(raw: bytes) -> None:
    from quoreduce_gridmix.data import DESCRIPTION, load

    made = Path(folder().name) / "set"
    (made / DESCRIPTION).write_bytes(raw)
    found = load(made)
    assert [part.name for part in found.parts] == [f"part-{i:05d}" for i in range(len(found.parts))], "leads elsewhere"
    assert all(type(n) is int for n in (found.nbytes, found.seed)), "no numbers"
