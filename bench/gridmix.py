"""GridMix's six applications, plain and voted in turn, on warm local workers: what voting costs, for each of them and
for each f.

The runner is that of ``quoreduce gridmix run``: it repeats what others disturbed, compares the outputs of all runs, and
ends the benchmark if they differ. The plain run of a pair goes first. Plain and voted use the same workers: for f=1
two, each on a core of its own; for f=2 three, each a failure domain, on the same two cores. Three replicas on two cores
that are full: the figures of f=2 are right for CPU, bytes and executions, and for the time of a machine that has
nothing to spare; they say nothing of three cores.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce_gridmix.results import Run
    from quoreduce_gridmix.runner import Study, Variant

APPS = ("streamSort", "javaSort", "combiner", "monsterQuery", "webdataScan", "webdataSort")
WORKERS = {1: 2, 2: 3}
"""Workers by f."""
REPEAT = {"quick": 3, "full": 7}
REDUCERS = 8
SPLIT_MB = 16.0
MEANS = ("time_ratio", "cpu_ratio")
RATIOS = (*MEANS, "executions_ratio", "bytes_stored_ratio", "bytes_shipped_ratio")

TRACKED = {
    "time_ratio", "time_ratio_spread", "cpu_ratio", "plain_s", "voted_s", "plain_cpu_s", "voted_cpu_s",
    "executions_plain",
    "executions_voted", "bytes_stored_plain", "bytes_stored_voted", "bytes_shipped_plain", "bytes_shipped_voted",
    "peak_memory_plain", "peak_memory_voted", "pairs_disturbed",
}  # fmt: skip
"""Figures that asv keeps: it starts a process for each of them, application and f. ``--json`` has all."""


class Bench:
    """Runs applications; each time on workers of its own, if memory is measured."""

    def __init__(self, sets: Path, folder: Path) -> None:
        from quoreduce_gridmix import runner

        self._sets = runner.find_sets(sets, ("varinfltext", "fixcompseq", "varcompseq"))
        self._folder = folder

    def cells(self, f: int, repeat: int) -> measure.Cells:
        """Measure all applications: first time, in one session, then memory."""
        from quoreduce import Place, Session
        from quoreduce_gridmix.runner import Study, Variant, applications, run_study

        variants = Variant("original"), Variant("bft", f)
        study = Study(applications(APPS), ("large",), variants, repeat, split_mb=SPLIT_MB, reducers=REDUCERS)
        with Session(Place("local", WORKERS[f], "worker")) as session:
            runs = run_study(study, self._sets, self._folder, session).runs
        cells = {}
        for app in study.apps:
            memory = [
                self._memory(Study((app,), ("large",), (v,), 1, 0, SPLIT_MB, reducers=REDUCERS), f) for v in variants
            ]
            cells[name(app.name, f)] = _costs([run for run in runs if run.app == app.name], variants, repeat, memory)
        return cells

    def _memory(self, study: Study, f: int) -> tuple[int, int]:
        """Bytes: the peak of the largest worker, and the peak of all memory of workers together; not timed."""
        from quoreduce import Place, Session
        from quoreduce_gridmix.runner import run_study

        with Session(Place("local", WORKERS[f], "worker")) as session:
            pids = [info.pid for info in session.workers]
            with measure.watch_memory(lambda: set(pids).union(*map(measure.processes_below, pids))) as peak:
                run_study(study, self._sets, self._folder, session)
            return measure.peak_rss(pids), peak.nbytes


def _costs(runs: list[Run], variants: tuple[Variant, ...], repeat: int, memory: list[tuple[int, int]]) -> measure.Cell:
    plain, voted = ([_as_measured(run) for run in runs if run.variant == variant.name] for variant in variants)
    cell = measure.costs(measure.Pairs.of(zip(plain, voted, strict=True), repeat), memory)
    return {**cell, "executions_ratio": measure.divide(cell["executions_voted"], cell["executions_plain"])}


def _as_measured(run: Run) -> measure.Run:
    if any(stage.reexecutions or stage.faults_detected for stage in run.stages):
        raise RuntimeError(f"{run.app}, {run.variant}: a run without injected faults had some: not a benchmark")
    cores = len(os.sched_getaffinity(0))
    noise = measure.Noise(run.wall_s, cores, run.noise.others_s, run.noise.steal_s, run.noise.pressure_s)
    counts = measure.Counts(sum(run.executions.values()), run.bytes.stored, run.bytes.shipped)
    return measure.Run(run.wall_s, run.cpu_s, noise, run.wall_s, counts)


def measure_all() -> measure.Cells:
    """All cells, kept to two cores, and for each f the geometric means of the ratios of all applications."""
    data.prepare()
    sets = data.gridmix()
    if len(measure.two_cores()) < 2:
        raise RuntimeError("these figures are of two cores")
    cells: measure.Cells = {}
    with measure.outputs(data.folder()) as folder:
        bench = Bench(sets, folder)
        for f in WORKERS:
            cells |= bench.cells(f, REPEAT[data.size()])
            cells[mean(f)] = means([cells[name(app, f)] for app in APPS])
    return cells


def means(cells: list[measure.Cell]) -> measure.Cell:
    """Geometric means of the ratios of time and CPU."""
    return {figure: statistics.geometric_mean(cell[figure] for cell in cells) for figure in MEANS}


def name(app: str, f: int) -> str:
    """What the cell of an application is called."""
    return f"{app}, f={f}"


def mean(f: int) -> str:
    """What the cell of means is called."""
    return name("geometric mean", f)


class _Suite:
    """What the suites share, above all the one run that all figures are of."""

    timeout = 600

    def setup_cache(self) -> measure.Cells:
        return measure_all()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


class Applications(_Suite):
    """Each application, voted against plain."""

    params = (list(APPS), list(WORKERS))
    param_names = ("application", "f")


class Means(_Suite):
    """All applications together, voted against plain."""

    params = (list(WORKERS),)
    param_names = ("f",)


measure.add_tracks(
    Applications, lambda cells, app, f: cells[name(app, f)], [cost for cost in measure.COSTS if cost[0] in TRACKED]
)
measure.add_tracks(Means, lambda cells, f: cells[mean(f)], [
    ("time_ratio", "voted/plain", "Geometric mean of the applications' ratios of time."),
    ("cpu_ratio", "voted/plain", "Geometric mean of the applications' ratios of CPU time."),
])  # fmt: skip


def markdown(cells: measure.Cells) -> str:
    """A table with a row for each application and f, and rows for the means."""
    lines = [measure.head("application, f", ("executions", "MB stored", "MB shipped"))]
    for cell_name, c in cells.items():
        if "plain_s" in c:
            amounts = [
                f"{c[f'bytes_{way}_{kind}'] / 1e6:.1f}" for way in ("stored", "shipped") for kind in ("plain", "voted")
            ]
            executions = f"{c['executions_plain']:.0f}, {c['executions_voted']:.0f}"
            lines.append(measure.row(cell_name, c, (executions, ", ".join(amounts[:2]), ", ".join(amounts[2:]))))
        else:
            lines.append(f"| **{cell_name}** | | | {c['time_ratio']:.2f} | {c['cpu_ratio']:.2f} | | | | | |")
    return "\n".join(lines)


def action(cells: measure.Cells) -> list[dict[str, Any]]:
    """The ratios as github-action-benchmark takes them for its tool ``customSmallerIsBetter``."""
    return [_entry(cell_name, figure, cell) for cell_name, cell in cells.items() for figure in RATIOS if figure in cell]


def _entry(cell_name: str, figure: str, cell: measure.Cell) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": f"GridMix, {cell_name}: {figure.replace('_', ' ')}",
        "unit": "voted/plain",
        "value": measure.rounded(cell[figure]),
    }
    if f"{figure}_spread" in cell:
        entry["range"] = f"± {cell[f'{figure}_spread'] / 2:.3f}"
    if "plain_s" in cell:
        entry["extra"] = (
            f"plain {cell['plain_s']:.3f} s, voted {cell['voted_s']:.3f} s\n"
            f"{cell['pairs_clean']:.0f} of {cell['pairs_tried']:.0f} pairs clean"
        )
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gridmix",
        description="Measure GridMix's applications plain and voted; print one table. Sizes: each set has 50 MB, "
        "or 400 MB.",
    )
    parser.add_argument("--action-json", metavar="FILE", help="write the ratios for github-action-benchmark")
    cells, arguments = measure.print_cells(parser, measure_all, markdown)
    if arguments.action_json:
        Path(arguments.action_json).write_text(json.dumps(action(cells), indent=1) + "\n")


if __name__ == "__main__":
    main()
