"""What silent faults cost: voted jobs (f=1) of whose map tasks a share is wrong once, against the same without faults,
in turn.

One of the two replicas of each struck map task gives a wrong but well-formed output (``--fault wrong:map:N%``), so that
a third one has to be asked. The digest of every output is compared with that of the first run. Local workers of a warm
session, kept to two cores; a third failure domain is needed to outvote, so each worker is a domain of its own
(``--domain worker``), and there are four, two a core. (Of three, each would have to execute all maps when all are
disputed, and the core that two of them share would do two thirds of the work: that is a price of three workers on two
cores, not of faults.) Nobody is overtaken (``--no-speculation``). The published figures beside it are FTMR's: 1.96
times the time without faults at 100 %.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Session

JOBS = ("wordcount", "sort")
SHARES = (0, 6, 12, 25, 50, 100)
ENDS = (0, 100)
PAIRS = {"quick": 5, "full": 9}
WORKERS = 4
MAPS = 64  # or so, so that 6 % of them is a whole number of tasks


class Bench:
    """Runs jobs in one session."""

    def __init__(self, session: Session, inputs: dict[str, Path], folder: Path) -> None:
        self._session = session
        self._inputs = inputs
        self._output = folder / "out"
        self._digests: dict[str, str] = {}
        self._seed = 0

    def cell(self, job: str, percent: int, pairs_wanted: int) -> measure.Cell:
        """Measure a share of wrong maps against none; both are run once before, for nothing."""
        clean, faulty = partial(self._run, job, 0), partial(self._run, job, percent)
        clean()
        faulty()
        return figures(measure.interleave(clean, faulty, pairs_wanted), percent)

    def _run(self, job: str, percent: int) -> measure.Run:
        """Run a job once; which tasks are wrong is another draw every time."""
        from quoreduce import Options
        from quoreduce.jobs.find import find_job

        source = self._inputs[job]
        self._seed += 1
        faults = (f"wrong:map:{percent}%",)
        split_mb = source.stat().st_size / 1e6 / MAPS
        options = Options(f=1, split_mb=split_mb, speculation=False, faults=faults, fault_seed=self._seed)
        window = measure.Window()
        result = self._session.run(find_job(job), [str(source)], str(self._output), options)
        noise = window.close(result.cpu_s)
        shutil.rmtree(self._output)
        if result.digest != self._digests.setdefault(job, result.digest):
            raise RuntimeError(f"{job} at {percent} %: another output than before")
        if percent == 0 and result.reexecutions:
            raise RuntimeError(f"{job}: a run without injected faults had {result.faults.detected}: not a benchmark")
        counts = measure.Counts(sum(result.executions.values()), result.bytes_stored, result.bytes_shipped)
        return measure.Run(noise.wall_s, result.cpu_s, noise, result.wall_s, counts)


def figures(pairs: measure.Pairs, percent: int) -> measure.Cell:
    """Figures of runs without and with faults, whose ``detail`` are :class:`measure.Counts`."""
    clean, faulty = ([pair[i] for pair in pairs.kept] for i in (0, 1))
    times = pairs.ratios(lambda run: run.wall_s)
    return {
        "percent": percent,
        "time_ratio": statistics.median(times),
        "time_ratio_spread": measure.spread(times),
        "time_ratio_min": measure.divide(min(r.wall_s for r in faulty), min(r.wall_s for r in clean)),
        "cpu_ratio": statistics.median(pairs.ratios(lambda run: run.cpu_s)),
        "executions_ratio": statistics.median(pairs.ratios(lambda run: run.detail.executions)),
        "executions_clean": statistics.median(r.detail.executions for r in clean),
        "executions_faulty": statistics.median(r.detail.executions for r in faulty),
        "clean_s": statistics.median(r.wall_s for r in clean),
        "faulty_s": statistics.median(r.wall_s for r in faulty),
        "pairs_clean": pairs.clean,
        "pairs_tried": pairs.tried,
        "pairs_disturbed": pairs.tried - pairs.clean,
    }


def measure_all(shares: Sequence[int] = SHARES) -> measure.Cells:
    """All cells, kept to two cores, by :func:`name`."""
    from quoreduce import Place, Session

    data.prepare()
    measure.two_cores()
    inputs = {"wordcount": data.text(), "sort": data.records()}
    with measure.outputs(data.folder()) as folder, Session(Place("local", WORKERS, "worker")) as session:
        bench = Bench(session, inputs, folder)
        return {name(job, share): bench.cell(job, share, PAIRS[data.size()]) for job in JOBS for share in shares}


def name(job: str, percent: int) -> str:
    """Of a cell."""
    return f"{job}, {percent} %"


class Sweep:
    """No map wrong (what chance does to two equal runs), and all of them wrong once, against none; f=1."""

    params = (list(JOBS), list(ENDS))
    param_names = ("job", "percent")
    timeout = 600

    def setup_cache(self) -> measure.Cells:
        return measure_all(ENDS)

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


measure.add_tracks(Sweep, lambda cells, job, percent: cells[name(job, percent)], [
    ("time_ratio", "faulty/clean", "Median of the ratios of pairs."),
    ("time_ratio_spread", "faulty/clean", "Lower to upper quartile of the ratios of pairs."),
    ("time_ratio_min", "faulty/clean", "Fastest run with faults over the fastest without."),
    ("cpu_ratio", "faulty/clean", "CPU time of driver and workers: median of the ratios of pairs."),
    ("executions_ratio", "faulty/clean", "Executions of tasks: median of the ratios of pairs."),
    ("clean_s", "seconds", "Voted, without faults: median."),
    ("faulty_s", "seconds", "Voted, with faults: median."),
    ("pairs_disturbed", "pairs", "Pairs that others disturbed; "
     "with fewer clean than half of those wanted, figures are of all."),
    ("pairs_tried", "pairs", "Pairs run."),
])  # fmt: skip


def markdown(cells: measure.Cells) -> str:
    """A table with a row for each cell, and what was measured."""
    from quoreduce.sim.slides import FTMR_S

    lines = [
        f"{WORKERS} local workers, each a failure domain (--domain worker), on two cores; f=1; about {MAPS} maps.",
        "",
        "| job, wrong maps | without s | with s | time ratio (min/min; quartiles) | FTMR's, "
        "published | CPU ratio | executions | clean pairs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, c in cells.items():
        ratio = f"{c['time_ratio']:.2f} ({c['time_ratio_min']:.2f}; {c['time_ratio_spread']:.2f})"
        published = f"{FTMR_S[int(c['percent'])] / FTMR_S[0]:.2f}"
        lines.append(
            f"| {title} | {c['clean_s']:.3f} | {c['faulty_s']:.3f} | {ratio} | {published} "
            f"| {c['cpu_ratio']:.2f} | {c['executions_clean']:.0f}, {c['executions_faulty']:.0f} "
            f"| {c['pairs_clean']:.0f} of {c['pairs_tried']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.sweep",
        description="Measure voted jobs (f=1) with a share of wrong map tasks against the same without faults; print a "
        "table. Sizes: quick is 256 MB each, full is 1 GiB and 1 GB.",
    )
    measure.print_cells(parser, measure_all, markdown)


if __name__ == "__main__":
    main()
