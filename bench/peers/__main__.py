"""The command line of the comparison."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench import data, measure
from bench.peers import gridmix
from bench.peers.engines import JOBS, TITLES, Setup, engines
from bench.peers.rounds import Engine, compare
from bench.peers.tables import as_json, markdown

ROUNDS = {"quick": 3, "full": 9}
TIMEOUT_S = {"quick": 120.0, "full": 300.0}
SHARED_MEMORY = Path("/dev/shm")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench.peers", description="Compare quoreduce with other engines.")
    sizes = "quick: 256 MB each; full: 1 GiB and 1 GB (of GridMix: 64 MB and 1 GB)"
    top.add_argument("--size", choices=list(data.SIZES), default=data.size(), help=sizes)
    top.add_argument(
        "--rounds", type=int, metavar="N", help="default 3 (quick), 9 (full); engines that are slow make fewer"
    )
    jobs = f"again for more; default: {', '.join(JOBS)}"
    top.add_argument("--job", choices=[*JOBS, "gridmix"], action="append", default=[], help=jobs)
    top.add_argument(
        "--gridmix", action="store_true", help="as --job gridmix: GridMix's applications against a warm Spark"
    )
    chosen = f"peer to compare with, again for more: {', '.join(TITLES)}; default: all"
    top.add_argument("--engine", choices=list(TITLES), action="append", default=[], metavar="NAME", help=chosen)
    slow = "include peers known to be slow at a job; default: at quick size only (one named by --engine is included)"
    top.add_argument("--slow", action=argparse.BooleanOptionalAction, help=slow)
    top.add_argument(
        "--timeout", type=float, metavar="S", help="seconds for a run of a peer; default 120 (quick), 300 (full)"
    )
    top.add_argument("--json", metavar="FILE", help="write all runs, too")
    return top


def main(argv: Sequence[str] | None = None) -> None:
    a = parser().parse_args(argv)
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    data.prepare()
    if len(measure.two_cores()) < 2:
        raise SystemExit("voting with f=1 needs two cores")
    rounds = a.rounds or ROUNDS[a.size]
    report: dict[str, Any] = {**measure.about(), "size": a.size, "jobs": {}}
    print(measure.headline(report) + "\n")
    for job in dict.fromkeys([*a.job, *(["gridmix"] if a.gridmix else [])] or JOBS):
        with ExitStack() as stack:
            if job == "gridmix":
                report["jobs"][job] = gridmix.measure_all(a.size, rounds, *_folders(stack))
            else:
                report["jobs"][job] = _measure(job, a, rounds, stack)
    if a.json:
        Path(a.json).write_text(json.dumps(report, indent=1) + "\n")


def _measure(job: str, a: argparse.Namespace, rounds: int, stack: ExitStack) -> dict[str, Any]:
    from quoreduce import Place, Session

    source = data.text() if job == "wordcount" else data.records()
    folder, scratch = _folders(stack)
    session = stack.enter_context(Session(Place("local", 2)))
    slow = a.size == "quick" if a.slow is None else a.slow
    setup = Setup(session, scratch, a.timeout or TIMEOUT_S[a.size], slow, a.engine)
    found: list[Engine] = engines(job, setup)
    compare(job, source, found, rounds, folder, [info.pid for info in session.workers])
    print(markdown(f"{job}, {source.stat().st_size / 1e6:,.0f} MB", found) + "\n", flush=True)
    return {"bytes": source.stat().st_size, "engines": [as_json(engine) for engine in found]}


def _folders(stack: ExitStack) -> tuple[Path, Path]:
    """A folder for outputs and one for what engines keep meanwhile, which lies in shared memory, as quoreduce's blocks
    do.
    """
    near = os.environ.get("QUOREDUCE_BENCH_OUT") or data.folder()
    shared = SHARED_MEMORY if os.access(SHARED_MEMORY, os.W_OK) else None
    found = []
    for prefix, place in (("out-", near), ("peers-", shared)):
        found.append(Path(tempfile.mkdtemp(prefix=prefix, dir=place)))
        stack.callback(shutil.rmtree, found[-1], ignore_errors=True)
    return found[0], found[1]


if __name__ == "__main__":
    main()
