"""What a journal costs: jobs voted (f=1) without and with ``--durable``, in turn: ``python -m bench.durable``.

On a warm session of two local workers, each pair in one process. A durable job stores its map outputs beside the
output, in files that are not used again, and forces its journal to disk; the other one stores in shared memory that it
has touched before. So what is measured depends on the disk, whose file system is named. Outputs are compared.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Session

JOBS = ("wordcount", "sort")
SPLITS_MB = {"64 MB splits": 64.0, "4 MB splits": 4.0}
PAIRS = {"quick": 5, "full": 9}


class Bench:
    """Runs the pairs, into ``folder``."""

    def __init__(self, inputs: dict[str, Path], folder: Path) -> None:
        self._inputs, self._output = inputs, folder / "out"
        self._digests: dict[tuple[str, float], str] = {}

    def pairs(self, session: Session, job: str, split_mb: float, wanted: int) -> measure.Pairs:
        """Pairs of a voted and a durable run; the first ones are not counted."""
        voted, durable = (partial(self._run, session, job, split_mb, on) for on in (False, True))
        voted()
        durable()
        return measure.interleave(voted, durable, wanted)

    def _run(self, session: Session, job: str, split_mb: float, durable: bool) -> measure.Run:
        from quoreduce import Options
        from quoreduce.jobs.find import find_job

        options = Options(f=1, split_mb=split_mb, durable=durable)
        window = measure.Window()
        result = session.run(find_job(job), [str(self._inputs[job])], str(self._output), options)
        noise = window.close(result.cpu_s)
        shutil.rmtree(self._output)
        if self._digests.setdefault((job, split_mb), result.digest) != result.digest:
            raise RuntimeError(f"{job}: outputs differ")
        if result.reexecutions or result.faults.detected:
            raise RuntimeError(f"{job}: a run without injected faults had {result.faults.detected}: not a benchmark")
        return measure.Run(noise.wall_s, result.cpu_s, noise, result.wall_s)


def measure_all() -> dict[str, Any]:
    """Figures of all jobs, kept to two cores: ratios durable / voted, seconds."""
    from quoreduce import Place, Session

    data.prepare()
    if len(measure.two_cores()) < 2:
        raise RuntimeError("voting with f=1 needs two cores")
    inputs = {"wordcount": data.text(), "sort": data.records()}
    figures: dict[str, Any] = {}
    with measure.outputs(data.folder()) as folder, Session(Place("local", 2)) as session:
        bench = Bench(inputs, folder)
        for job in JOBS:
            for splits, split_mb in SPLITS_MB.items():
                figures[f"{job}, {splits}"] = _figures(bench.pairs(session, job, split_mb, PAIRS[data.size()]))
        figures["file system"] = file_system(folder)
    return figures


def _figures(pairs: measure.Pairs) -> dict[str, float]:
    ratios = pairs.ratios(lambda run: run.wall_s)
    return {
        "time_ratio": statistics.median(ratios), "spread": measure.spread(ratios),
        "cpu_ratio": statistics.median(pairs.ratios(lambda run: run.cpu_s)),
        "voted_s": statistics.median(a.wall_s for a, _ in pairs.kept),
        "durable_s": statistics.median(b.wall_s for _, b in pairs.kept), "clean": pairs.clean, "tried": pairs.tried,
    }  # fmt: skip


def file_system(folder: Path) -> str:
    """Type of the file system that ``folder`` is on: the last mount above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    real = os.path.realpath(folder)
    above = [(len(point), kind) for point, kind in mounts if os.path.commonpath([real, point]) == point]
    return max(above)[1]


class Durable:
    """Jobs, durable against voted."""

    params = [f"{job}, {splits}" for job in JOBS for splits in SPLITS_MB]  # noqa: RUF012 - asv's way
    param_names = ("job",)
    timeout = 600

    def setup_cache(self) -> dict[str, Any]:
        return measure_all()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]

    def track_time_ratio(self, figures: dict[str, Any], job: str) -> float:
        """Median of the ratios of pairs."""
        return measure.rounded(figures[job]["time_ratio"])

    track_time_ratio.unit = "durable/voted"  # type: ignore[attr-defined]

    def track_cpu_ratio(self, figures: dict[str, Any], job: str) -> float:
        return measure.rounded(figures[job]["cpu_ratio"])

    track_cpu_ratio.unit = "durable/voted"  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.durable", description="Measure what --durable costs a voted job."
    )
    parser.add_argument(
        "--size", choices=list(data.SIZES), default=data.size(), help="quick: 256 MB; full: 1 GiB and 1 GB"
    )
    a = parser.parse_args()
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    figures = measure_all()
    print(measure.headline(measure.about()) + f"\n\noutputs on {figures.pop('file system')}\n")
    print(
        "| job, f=1 | voted s | durable s | time ratio (quartiles) | CPU ratio | "
        "clean pairs |\n|---|---|---|---|---|---|"
    )
    for name, f in figures.items():
        seconds = f"{f['voted_s']:.3f} | {f['durable_s']:.3f}"
        ratios = f"{f['time_ratio']:.3f} ({f['spread']:.3f}) | {f['cpu_ratio']:.3f}"
        print(f"| {name} | {seconds} | {ratios} | {f['clean']} of {f['tried']} |")


if __name__ == "__main__":
    main()
