"""Jobs, plain and voted (or checked) in turn in one process, on warm local workers: what that costs, as ratios and in
seconds.

Two rooms. ``saturated``: plain and voted on the same two workers, each on a core of its own, so that a vote doubles the
work of full cores. ``core to spare``: plain on one worker, voted (f=1) on two: each replica has a core of its own.
Plain is ``--mode original`` with its block checksums, as fast as we can make it. The outputs of both are compared, byte
by byte.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Options, Session

JOBS = {
    "wordcount": ("wordcount", "blake3", "strict"), "wordcount, checked": ("wordcount", "blake3", "checked"),
    "sort": ("sort", "blake3", "strict"), "sort, fast digest": ("sort", "fast", "strict"),
    "scan": ("scan", "blake3", "strict"),
}  # fmt: skip
"""Name -> job, digest, assurance."""
ROOMS = {"saturated": (2, 2), "core to spare": (1, 2)}
PAIRS = {"quick": 5, "full": 9}


class Bench:
    """Runs jobs in sessions of one and of two workers."""

    def __init__(self, inputs: dict[str, Path], folder: Path) -> None:
        self._inputs = inputs
        self._folder = folder

    def cell(self, job: str, digest: str, assurance: str, workers: tuple[int, int], pairs_wanted: int) -> measure.Cell:
        """Measure plain against voted: memory, each in a session of its own, then time, in turn, in sessions that are
        warm.
        """
        from quoreduce import Options, Place, Session

        options = (Options(mode="original"), Options(f=1, digest=digest, assurance=assurance))  # type: ignore[arg-type]
        memory = [
            self._memory(job, n, o, self._folder / str(i))
            for i, (n, o) in enumerate(zip(workers, options, strict=True))
        ]
        self._compare(self._folder / "0", self._folder / "1")
        with ExitStack() as stack:
            sessions = {n: stack.enter_context(Session(Place("local", n))) for n in set(workers)}
            plain, voted = (partial(self._run, job, sessions[n], o) for n, o in zip(workers, options, strict=True))
            plain()
            voted()
            return measure.costs(measure.interleave(plain, voted, pairs_wanted), memory)

    def _memory(self, job: str, workers: int, options: Options, output: Path) -> tuple[int, int]:
        """Bytes: the peak of the largest worker, and the peak of all memory of workers together; not timed."""
        from quoreduce import Place, Session

        with Session(Place("local", workers)) as session:
            pids = [info.pid for info in session.workers]
            with measure.watch_memory(lambda: pids) as peak:
                self._run(job, session, options, output)
            return measure.peak_rss(pids), peak.nbytes

    def _run(self, job: str, session: Session, options: Options, output: Path | None = None) -> measure.Run:
        """Run a job once, to the folder given, or to one that is deleted at once."""
        from quoreduce.jobs.find import find_job
        from quoreduce.jobs.scan import scan_job

        target = output or self._folder / "out"
        window = measure.Window()
        result = session.run(
            scan_job(b"~") if job == "scan" else find_job(job), [str(self._inputs[job])], str(target), options
        )
        noise = window.close(result.cpu_s)
        if result.reexecutions or result.faults.detected or result.spares:
            raise RuntimeError(
                f"{job}: a run without injected faults had {result.faults.detected}, and {result.spares} speculative "
                "attempts: not a benchmark"
            )
        if output is None:
            shutil.rmtree(target)
        counts = measure.Counts(sum(result.executions.values()), result.bytes_stored, result.bytes_shipped)
        return measure.Run(noise.wall_s, result.cpu_s, noise, result.wall_s, counts)

    def _compare(self, plain: Path, voted: Path) -> None:
        """Compare the parts of two outputs, and delete both."""
        names = {path.name for output in (plain, voted) for path in output.glob("part-*")}
        _, differ, missing = filecmp.cmpfiles(plain, voted, names, shallow=False)
        shutil.rmtree(plain)
        shutil.rmtree(voted)
        if differ or missing or not names:
            raise RuntimeError(f"plain and voted outputs differ in {differ or missing or 'everything'}")


def measure_all() -> measure.Cells:
    """All cells, kept to two cores."""
    data.prepare()
    inputs = {"wordcount": data.text(), "sort": data.records(), "scan": data.records()}
    if len(measure.two_cores()) < 2:
        raise RuntimeError("voting with f=1 needs two cores")
    with measure.outputs(data.folder()) as folder:
        bench = Bench(inputs, folder)
        return {
            _name(name, room): bench.cell(*how, workers, PAIRS[data.size()])
            for name, how in JOBS.items()
            for room, workers in ROOMS.items()
        }


def _name(job: str, room: str) -> str:
    return f"{job}, {room}"


class Voted:
    """Voted, or checked, (f=1) against plain."""

    params = (list(JOBS), list(ROOMS))
    param_names = ("job", "room")
    timeout = 600

    def setup_cache(self) -> measure.Cells:
        return measure_all()

    setup_cache.timeout = 3600  # type: ignore[attr-defined]


measure.add_tracks(Voted, lambda cells, job, room: cells[_name(job, room)], measure.COSTS)


def markdown(cells: measure.Cells) -> str:
    """A table with a row for each cell."""
    return "\n".join([measure.head("job, room"), *(measure.row(name, cell) for name, cell in cells.items())])


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.jobs",
        description="Measure jobs plain and voted; print one table. Sizes: quick is 256 MB each, "
        "full is 1 GiB and 1 GB.",
    )
    measure.print_cells(parser, measure_all, markdown)


if __name__ == "__main__":
    main()
