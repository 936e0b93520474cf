"""The engines: quoreduce as a command and on a warm session, and the peers, each a process of its own.

Every peer may use both cores and most of the memory, and is set up as its manual advises for one machine of two cores.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bench import measure
from bench.peers import java
from bench.peers.apart import run_apart
from bench.peers.rounds import Engine

if TYPE_CHECKING:
    from quoreduce import Job, Session

JOBS = ("wordcount", "sort", "scan")
START = "~"
COREUTILS = {
    "wordcount": r"""tr -s ' \t\n\r\f' '\n' < "$1" | sort --parallel=2 -S 50% -T "$3" | uniq -c > "$2" """,
    "sort": """sort --parallel=2 -S 50% -T "$3" -o "$2" "$1" """,
    "scan": f"""grep '^{START}' "$1" > "$2" """,
}
HADOOP = {
    "mapreduce.framework.name": "local",
    "mapreduce.local.map.tasks.maximum": "2",
    "mapreduce.local.reduce.tasks.maximum": "2",
    "mapreduce.task.io.sort.mb": "512",  # all of a map's output, sorted once
    "mapreduce.input.fileinputformat.split.minsize": "64000000",
    "mapreduce.client.completion.pollinterval": "10",  # ms; usual: looks every 5 s whether the job is done
    "fs.local.block.size": "64000000",
}
MODULES = {  # of Python peers: the script beside this file, and the packages that it needs
    "duckdb": ("duckdb_job", ["duckdb"]),
    "polars": ("polars_job", ["polars"]),
    "spark": ("spark_job", ["pyspark"]),
    "ray-data": ("ray_data_job", ["ray", "pandas"]),
    "dask": ("dask_job", ["dask", "distributed", "pandas"]),
}
TITLES = {
    "spark": "Spark", "hadoop": "Hadoop MapReduce", "ray-data": "Ray Data", "dask": "Dask", "duckdb": "DuckDB",
    "polars": "Polars", "coreutils": "coreutils",
}  # fmt: skip
SLOW = {("coreutils", "wordcount"): "20 s for each 256 MB"}
OURS = {"plain": ["--mode", "original"], "voted f=1": [], "voted f=1, fast digest": ["--digest", "fast"]}
Runner = Callable[[Path, Path, str], measure.Run]


@dataclass(frozen=True, slots=True)
class Setup:
    """What engines need: a warm session, a folder for their temporary files and for classes, how long a run may take.

    Attributes:
        slow: include peers that are known to be slow at a job.
        chosen: peers by name; empty: all.
    """

    session: Session
    scratch: Path
    timeout_s: float
    slow: bool = False
    chosen: Sequence[str] = ()


def engines(job: str, setup: Setup) -> list[Engine]:
    """All engines for a job, those that are missing too."""
    found = [_ours_warm(name, flags, setup) for name, flags in _flags(job)]
    found += [_ours_cold(name, flags, setup) for name, flags in _flags(job)]
    return found + [_peer(name, job, setup) for name in TITLES if name in setup.chosen or not setup.chosen]


def _flags(job: str) -> list[tuple[str, list[str]]]:
    return [(name, flags) for name, flags in OURS.items() if job == "sort" or "fast" not in name]


def _job(name: str) -> Job:
    if name == "scan":
        from quoreduce import scan_job

        return scan_job(START.encode())
    from quoreduce.jobs.find import find_job

    return find_job(name)


def _ours_cold(name: str, flags: Sequence[str], setup: Setup) -> Engine:
    script = Path(sys.executable).with_name("quoreduce")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "quoreduce.cli"]

    def run(source: Path, output: Path, job: str) -> measure.Run:
        what = [job, str(source), str(output), *(["--starts-with", START] if job == "scan" else [])]
        done, text = _process(
            [*command, "run", *what, "--on", "local", "--workers", "2", "--json", "--quiet", *flags], setup
        )
        done.job_s = json.loads(text)["wall_s"]
        return done

    return Engine(f"quoreduce {name}, command", True, run)


def _ours_warm(name: str, flags: Sequence[str], setup: Setup) -> Engine:
    def run(source: Path, output: Path, job: str) -> measure.Run:
        from quoreduce import Options

        options = (
            Options(mode="original")
            if "original" in flags
            else Options(f=1, digest="fast" if "fast" in flags else None)
        )
        window = measure.Window()
        result = setup.session.run(_job(job), [str(source)], str(output), options)
        noise = window.close(result.cpu_s)
        return measure.Run(noise.wall_s, result.cpu_s, noise, noise.wall_s)

    return Engine(f"quoreduce {name}, warm session", True, run)


def _peer(name: str, job: str, setup: Setup) -> Engine:
    why = why_missing(name)
    if not why and (name, job) in SLOW and not setup.slow and name not in setup.chosen:
        why = f"left out: {SLOW[name, job]} (--slow)"
    if why:
        return Engine(TITLES[name], False, None, why)
    if name == "coreutils":
        return Engine(TITLES[name], False, _coreutils(setup))
    return Engine(TITLES[name], False, _script(name, setup))


def why_missing(name: str) -> str:
    """What is to be installed before this peer can run; empty if nothing is."""
    if name == "coreutils":
        return "" if shutil.which("sort") and shutil.which("grep") else "missing: no `sort` or `grep` on PATH"
    if name in ("spark", "hadoop"):
        return java.why_missing()
    absent = [package for package in MODULES[name][1] if importlib.util.find_spec(package) is None]
    return f"missing: pip install {' '.join(absent)}" if absent else ""


def _script(name: str, setup: Setup) -> Runner:
    def run(source: Path, output: Path, job: str) -> measure.Run:
        done, text = run_peer(name, [(job, source, output)], setup)
        done.job_s = float(text.split()[-1])
        return done

    return run


def run_peer(name: str, tasks: Sequence[tuple[str, Path, Path]], setup: Setup) -> tuple[measure.Run, str]:
    """Run a peer, which does (job, input, output) one after another and prints the seconds of each."""
    words = [str(word) for task in tasks for word in task]
    scratch = setup.scratch / "temporary"
    scratch.mkdir()
    try:
        if name == "hadoop":
            return _process([*_hadoop(setup.scratch), *words], setup)
        return _process([sys.executable, "-m", f"bench.peers.{MODULES[name][0]}", str(scratch), *words], setup)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _hadoop(scratch: Path) -> list[str]:
    classes = java.compile_class("HadoopJobs", scratch)
    settings = [f"-D{name}={value}" for name, value in {**HADOOP, "hadoop.tmp.dir": str(scratch / "temporary")}.items()]
    path = f"{classes}:{java.spark_home()}/jars/*"
    return [java.program("java") or "java", "-Xmx6g", "-XX:+UseParallelGC", "-cp", path, "HadoopJobs", *settings]


def _coreutils(setup: Setup) -> Runner:
    def run(source: Path, output: Path, job: str) -> measure.Run:
        done, _ = _process(["sh", "-ec", COREUTILS[job], "sh", str(source), str(output), str(setup.scratch)], setup)
        done.job_s = done.wall_s
        return done

    return run


def _process(command: Sequence[str], setup: Setup) -> tuple[measure.Run, str]:
    window = measure.Window()
    ended = run_apart(command, setup.timeout_s, environment())
    noise = window.close(ended.cpu_s + ended.own_cpu_s)
    return measure.Run(ended.wall_s, ended.cpu_s, noise), ended.stdout


def environment() -> Mapping[str, str]:
    """What peers find in their environment: the repository's root, two threads for Polars, bytes as letters."""
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(entry for entry in (root, os.environ.get("PYTHONPATH")) if entry)
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "SPARK_HOME")}
    return {**kept, "PYTHONPATH": path, "POLARS_MAX_THREADS": "2", "LC_ALL": "C"}
