"""GridMix's six applications: quoreduce, plain and voted, against Spark, on the same files and cores, in turn.

Both are warm: quoreduce is a session, Spark is one JVM that runs all jobs (SparkGridmix.java), each application first
``WARM_UP`` times for nothing. The times are those of jobs. Spark's jobs have the same logic and numbers of reduces and
run in its JVM alone: DataFrames that Spark compiles, RDDs where there is no expression (streamSort's pipes,
percentages, SequenceFiles).

Outputs are compared after every run. Of streamSort, javaSort, combiner and webdataSort: the same lines, each as often,
in any order, for partitions are by different hashes. Of monsterQuery and webdataScan only how many lines there are,
within one for each task: which records a task keeps depends on what else it sees. Plain and voted are compared in the
first way always.
"""

from __future__ import annotations

import os
import select
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from bench import data, measure
from bench.peers import java
from bench.peers.apart import PeerFailed
from bench.peers.rounds import delete, fingerprint, say
from bench.peers.spark_job import SETTINGS
from bench.peers.tables import clean_runs, run_as_json

if TYPE_CHECKING:
    from quoreduce import Options, Result, Session

NBYTES = {"quick": "64M", "full": "1G"}
WARM_UP = 2
TIMEOUT_S = 300.0
SPLIT_BYTES = 64_000_000
SPARK = "Spark"
LOADS = {  # the load generator's stages: percentages kept by maps and by reduces
    "javaSort": ((100.0, 100.0),),
    "monsterQuery": ((10.0, 40.0),) * 3,
    "webdataScan": ((0.2, 5.0),),
    "webdataSort": ((100.0, 100.0),),
}
SAMPLED = ("monsterQuery", "webdataScan")


class Done(NamedTuple):
    """A run, where its output is, and its number of tasks."""

    run: measure.Run
    output: Path
    tasks: int


@dataclass(slots=True)
class Cell:
    """The runs of an application by one engine."""

    runs: list[measure.Run] = field(default_factory=list)
    memory_bytes: int = 0

    @property
    def kept(self) -> list[float]:
        """Seconds of clean runs; of all, if fewer than half are clean."""
        clean = [run.job_s for run in self.runs if not run.noise.dirty]
        return clean if 2 * len(clean) >= len(self.runs) else [run.job_s for run in self.runs]


class Spark:
    """A JVM with a warm session of Spark."""

    def __init__(self, folder: Path, errors: IO[bytes]) -> None:
        classes = java.compile_class("SparkGridmix", folder)
        settings = {
            **SETTINGS, "spark.master": "local[2]", "spark.local.dir": str(folder),
            "spark.hadoop.fs.local.block.size": str(SPLIT_BYTES), "spark.sql.files.maxPartitionBytes": str(SPLIT_BYTES),
            "spark.serializer": "org.apache.spark.serializer.KryoSerializer", "spark.log.level": "ERROR",
        }  # fmt: skip
        home = java.spark_home()
        command = [str(home / "bin" / "spark-submit"), "--class", "SparkGridmix", "--driver-class-path", str(classes)]
        for name, value in settings.items():
            command += ["--conf", f"{name}={value}"]
        environment = {**os.environ, "SPARK_HOME": str(home), "LC_ALL": "C.UTF-8"}
        self._errors = errors
        self._process = subprocess.Popen(
            [*command, "spark-internal"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, env=environment
        )

    @property
    def pid(self) -> int:
        """Of the JVM: the scripts that start it become it."""
        return self._process.pid

    def ask(self, *words: object) -> float:
        """Run a job and return its seconds; raise PeerFailed if it fails or takes too long."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(("\t".join(map(str, words)) + "\n").encode())
            self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], TIMEOUT_S)[0]:
            raise PeerFailed(f"{SPARK}: {words[0]} did not end within {TIMEOUT_S:g} s")
        answer = self._process.stdout.readline().decode()
        kind, _, said = answer.strip().partition(" ")
        if kind != "ok":
            raise PeerFailed(f"{SPARK}: {said or self._last_words()}")
        return float(said)

    def cpu_s(self) -> float:
        """CPU seconds of the JVM and of those processes below it that have ended."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _last_words(self) -> str:
        self._errors.seek(0)
        return self._errors.read().decode(errors="replace")[-2000:]


def run_spark(spark: Spark, app: str, sources: Sequence[Path], folder: Path) -> Done:
    """Run an application on Spark once."""
    from quoreduce_gridmix.apps import KINDS, REDUCES

    reduces, seconds, output = REDUCES[app]["small"], 0.0, folder / "spark"
    inputs, form = ",".join(map(str, sources)), "lines" if KINDS[app] == "varinfltext" else "sequence"
    window, before = measure.Window(), spark.cpu_s()
    if app in LOADS:
        for number, kept in enumerate(LOADS[app]):
            output = folder / f"spark-{number}"
            seconds += spark.ask("load", form, inputs, output, reduces, *kept)
            inputs, form = str(output), "lines"
    else:
        seconds = spark.ask("cat" if app == "streamSort" else "count", inputs, output, reduces)
    cpu = spark.cpu_s() - before
    noise = window.close(cpu)
    return Done(measure.Run(noise.wall_s, cpu, noise, seconds), output, 0)


def run_ours(session: Session, options: Options, app: str, sources: Sequence[Path], folder: Path) -> Done:
    """Run an application on quoreduce once."""
    from quoreduce_gridmix.apps import jobs_of

    inputs, results, output = [str(path) for path in sources], list[Any](), folder
    window = measure.Window()
    for number, job in enumerate(jobs_of(app)):
        output = folder / f"ours-{number}"
        result: Result = session.run(job, inputs, str(output), options)
        results.append(result)
        inputs = [str(output)]
    cpu = sum(result.cpu_s for result in results)
    noise = window.close(cpu)
    tasks = sum(result.splits + result.parts for result in results)
    return Done(measure.Run(noise.wall_s, cpu, noise, noise.wall_s), output, tasks)


@dataclass(slots=True)
class Match:
    """Runs one application by all engines, and compares."""

    app: str
    sources: list[Path]
    folder: Path
    session: Session
    spark: Spark
    lines: dict[str, int] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=lambda: {name: Cell() for name in ("plain", "voted f=1", SPARK)})
    _wanted: tuple[str, int] = ("", 0)

    def play(self, rounds: int) -> None:
        """Warm up, then measure."""
        names = list(self.cells)
        for number in range(-WARM_UP, rounds):
            say(f"gridmix {self.app}, " + (f"round {number + 1} of {rounds}" if number >= 0 else "to warm up"))
            for name in names[number % 3 :] + names[: number % 3] if number >= 0 else names:
                if number == -1:
                    with measure.watch_memory(self._pids(name)) as peak:
                        self._once(name)
                    self.cells[name].memory_bytes = peak.nbytes
                else:
                    run = self._once(name)
                    if number >= 0:
                        self.cells[name].runs.append(run)

    def _pids(self, name: str) -> Any:
        pids = [self.spark.pid] if name == SPARK else [info.pid for info in self.session.workers]
        return lambda: pids

    def _once(self, name: str) -> measure.Run:
        from quoreduce import Options
        from quoreduce_gridmix.apps import REDUCES

        measure.wait_for_quiet()
        self.folder.mkdir()
        try:
            if name == SPARK:
                done = run_spark(self.spark, self.app, self.sources, self.folder)
            else:
                reducers = REDUCES[self.app]["small"]
                options = (
                    Options(mode="original", reducers=reducers) if name == "plain" else Options(f=1, reducers=reducers)
                )
                done = run_ours(self.session, options, self.app, self.sources, self.folder)
            self._check(name, done)
        finally:
            delete(self.folder)
        return done.run

    def _check(self, name: str, done: Done) -> None:
        found = fingerprint(done.output, "wordcount" if self.app == "combiner" else "lines")
        self.lines[name] = int(found.split()[0])
        if not self._wanted[0]:
            self._wanted = found, done.tasks
        wanted, tasks = self._wanted
        if name == SPARK and self.app in SAMPLED:
            right = abs(self.lines[SPARK] - int(wanted.split()[0])) <= tasks
        else:
            right = found == wanted
        if not right:
            raise RuntimeError(
                f"gridmix {self.app}: the output of {name} ({found}) is not that of quoreduce ({wanted})"
            )


def measure_all(size: str, rounds: int, folder: Path, scratch: Path, apps: Sequence[str] = ()) -> dict[str, Any]:
    """Run the applications (default: all), print a table, and return all runs."""
    from quoreduce import Place, Session
    from quoreduce_gridmix.apps import KINDS, NAMES

    why = java.why_missing()
    if why:
        print(f"### GridMix\n\n{SPARK}: {why}\n")
        return {"missing": why}
    found = []
    with ExitStack() as stack:
        spark = Spark(scratch, stack.enter_context(tempfile.TemporaryFile()))
        stack.callback(spark.close)
        session = stack.enter_context(Session(Place("local", 2)))
        os.environ.setdefault("QUOREDUCE_BENCH_GRIDMIX", NBYTES[size])
        sets = data.gridmix()
        for app in apps or NAMES:
            match = Match(app, sorted((sets / KINDS[app]).glob("part-*")), folder / "gridmix", session, spark)
            started = time.monotonic()
            match.play(rounds)
            say(f"gridmix {app}: {time.monotonic() - started:.0f} s in all")
            found.append(match)
    print(
        markdown(f"GridMix, {data.gridmix_bytes() / 1e6:,.0f} MB of keys and values in each set", found) + "\n",
        flush=True,
    )
    return {
        match.app: {name: [run_as_json(run) for run in cell.runs] for name, cell in match.cells.items()}
        for match in found
    }


def markdown(title: str, found: Sequence[Match]) -> str:
    """One table: seconds of jobs, medians (fastest), and the ratio of the medians (of the fastest)."""
    lines = [
        f"### {title}", "",
        "| application | plain s (min) | voted f=1 s (min) | Spark s (min) | voted / Spark (min/min) | CPU s plain, "
        "voted, Spark | peak GB | clean runs | outputs compared |",
        "|---" * 9 + "|",
    ]  # fmt: skip
    for match in found:
        plain, voted, spark = match.cells.values()
        seconds = " | ".join(f"{median(cell.kept):.3f} ({min(cell.kept):.3f})" for cell in (plain, voted, spark))
        ratio = f"{median(voted.kept) / median(spark.kept):.3f} ({min(voted.kept) / min(spark.kept):.3f})"
        cpu = ", ".join(f"{median(run.cpu_s for run in cell.runs):.2f}" for cell in match.cells.values())
        memory = ", ".join(f"{cell.memory_bytes / 1e9:.2f}" for cell in match.cells.values())
        clean = "; ".join(clean_runs(cell.runs) for cell in match.cells.values())
        counts = match.lines["plain"], match.lines[SPARK]
        sampled = f"only their number, within one a task: {counts[0]:,}, Spark {counts[1]:,}"
        compared = sampled if match.app in SAMPLED else f"all {counts[0]:,} lines, in any order"
        lines.append(f"| {match.app} | {seconds} | {ratio} | {cpu} | {memory} | {clean} | {compared} |")
    return "\n".join(lines)
