"""Comparison with other engines: ``python -m bench.peers --size quick|full [--json FILE]``.

Word count and sort by DuckDB, Polars and coreutils, and by quoreduce, plain and voted: the same files in the page cache, the same
two cores, outputs written and compared after each run. Engines take turns: every round runs each of them once, in an order that
rotates. A run that others disturbed (measure.py has the rule) is tried again, at most as often as there are rounds.

An engine is a process of its own, from its start to its end: ``wall``. ``job`` is what it says its own work took, without
start-up and imports; for quoreduce on a warm session (workers that have run jobs before) both are the same.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Session

ROUNDS = {"quick": 3, "full": 9}
CHUNK_BYTES = 1 << 20
DUCKDB_WORDCOUNT = """
import sys, time, duckdb
start = time.perf_counter()
c = duckdb.connect()
c.execute("SET threads=2; SET enable_progress_bar=false; SET preserve_insertion_order=false")
c.execute(f'''COPY (SELECT w, count(*) FROM (SELECT unnest(string_split(line, ' ')) w FROM read_csv('{sys.argv[1]}',
delim='\\x01', quote='', escape='', header=false, auto_detect=false, columns={{'line': 'VARCHAR'}})) WHERE w <> '' GROUP BY w)
TO '{sys.argv[2]}' (FORMAT csv, HEADER false, DELIMITER '\\t')''')
print(time.perf_counter() - start)
"""
DUCKDB_SORT = """
import sys, time, duckdb
start = time.perf_counter()
c = duckdb.connect()
c.execute("SET threads=2; SET enable_progress_bar=false")
c.execute(f'''COPY (SELECT line FROM read_csv('{sys.argv[1]}', delim='\\x01', quote='', escape='', header=false,
auto_detect=false, columns={{'line': 'VARCHAR'}}) ORDER BY line) TO '{sys.argv[2]}'
(FORMAT csv, HEADER false, DELIMITER '\\x01', QUOTE '', ESCAPE '')''')
print(time.perf_counter() - start)
"""
POLARS_WORDCOUNT = """
import sys, time, polars as pl
start = time.perf_counter()
lines = pl.scan_csv(sys.argv[1], separator='\\x01', quote_char=None, has_header=False, schema={'l': pl.String})
words = lines.select(pl.col('l').str.split(' ').explode().alias('w')).filter(pl.col('w') != '')
words.group_by('w').agg(pl.len().alias('c')).sink_csv(sys.argv[2], separator='\\t', include_header=False, engine='streaming')
print(time.perf_counter() - start)
"""
POLARS_SORT = """
import sys, time, polars as pl
start = time.perf_counter()
lines = pl.scan_csv(sys.argv[1], separator='\\x01', quote_char=None, has_header=False, schema={'l': pl.String})
lines.sort('l').sink_csv(sys.argv[2], separator='\\x01', include_header=False, quote_style='never', engine='streaming')
print(time.perf_counter() - start)
"""
COREUTILS = {
    "wordcount": r"""tr -s ' \t\n\r\f' '\n' < "$1" | sort --parallel=2 -S 50% | uniq -c > "$2" """,
    "sort": """sort --parallel=2 -S 50% -o "$2" "$1" """,
}
SCRIPTS = {
    "duckdb": {"wordcount": DUCKDB_WORDCOUNT, "sort": DUCKDB_SORT},
    "polars": {"wordcount": POLARS_WORDCOUNT, "sort": POLARS_SORT},
}
TITLES = {"duckdb": "DuckDB", "polars": "Polars", "coreutils": "coreutils"}
OURS = {"plain": ["--mode", "original"], "voted f=1": [], "voted f=1, fast digest": ["--digest", "fast"]}


@dataclass(slots=True)
class Engine:
    """One way to do a job. ``run(input, output, job)`` does it once; None: it is missing here."""

    name: str
    ours: bool
    run: Callable[[Path, Path, str], measure.Run] | None
    why_missing: str = ""
    runs: list[measure.Run] = field(default_factory=list)
    memory_bytes: int = 0
    retries: int = 0

    @property
    def kept(self) -> list[measure.Run]:
        """The clean runs; all, if fewer than half are clean."""
        clean = [run for run in self.runs if not run.noise.dirty]
        return clean if 2 * len(clean) >= len(self.runs) else self.runs


# ---- engines


def engines(job: str, session: Session, coreutils: bool) -> list[Engine]:
    """All engines for a job, those that are missing too."""
    found = [_ours_warm(name, flags, session) for name, flags in _flags(job)]
    found += [_ours_cold(name, flags) for name, flags in _flags(job)]
    found += [_script(name) for name in SCRIPTS]
    if shutil.which("sort") is None:
        return [*found, Engine(TITLES["coreutils"], False, None, "missing: no `sort` on PATH")]
    if coreutils:
        return [*found, Engine(TITLES["coreutils"], False, _coreutils)]
    return [*found, Engine(TITLES["coreutils"], False, None, "left out: 20 s for each 256 MB (--coreutils-wordcount)")]


def _flags(job: str) -> list[tuple[str, list[str]]]:
    return [(name, flags) for name, flags in OURS.items() if job == "sort" or "fast" not in name]


def _ours_cold(name: str, flags: Sequence[str]) -> Engine:
    script = Path(sys.executable).with_name("quoreduce")
    command = [str(script)] if script.exists() else [sys.executable, "-m", "quoreduce.cli"]

    def run(source: Path, output: Path, job: str) -> measure.Run:
        line = [*command, "run", job, str(source), str(output), "--on", "local", "--workers", "2", "--json", "--quiet", *flags]
        done, text = _process(line)
        done.job_s = json.loads(text)["wall_s"]
        return done

    return Engine(f"quoreduce {name}, command", True, run)


def _ours_warm(name: str, flags: Sequence[str], session: Session) -> Engine:
    def run(source: Path, output: Path, job: str) -> measure.Run:
        from quoreduce import Options
        from quoreduce.jobs.find import find_job

        options = Options(mode="original") if "original" in flags else Options(f=1, digest="fast" if "fast" in flags else None)
        window = measure.Window()
        result = session.run(find_job(job), [str(source)], str(output), options)
        noise = window.close(result.cpu_s)
        return measure.Run(noise.wall_s, result.cpu_s, noise, noise.wall_s)

    return Engine(f"quoreduce {name}, warm session", True, run)


def _script(name: str) -> Engine:
    if importlib.util.find_spec(name) is None:
        return Engine(TITLES[name], False, None, f"missing: the package {name} is not installed")

    def run(source: Path, output: Path, job: str) -> measure.Run:
        done, text = _process([sys.executable, "-c", SCRIPTS[name][job], str(source), str(output)])
        done.job_s = float(text.split()[-1])
        return done

    return Engine(TITLES[name], False, run)


def _coreutils(source: Path, output: Path, job: str) -> measure.Run:
    done, _ = _process(["sh", "-ec", COREUTILS[job], "sh", str(source), str(output)])
    done.job_s = done.wall_s
    return done


def _process(command: Sequence[str]) -> tuple[measure.Run, str]:
    """Run a command from its start to its end; return also what it wrote to stdout."""
    environment = {**os.environ, "POLARS_MAX_THREADS": "2", "LC_ALL": "C"}
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        window = measure.Window()
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=out, stderr=errors, stdin=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        noise = window.close(cpu)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"{command[0]} ended with {process.returncode}: {errors.read().decode(errors='replace')[-2000:]}")
        return measure.Run(wall, cpu, noise), out.read().decode()


# ---- outputs


def fingerprint(output: Path, job: str) -> str:
    """What outputs are compared by: sorted records as they are, counts in the order of the words."""
    files = sorted(output.glob("part-*")) if output.is_dir() else [output]
    if job == "sort":
        whole = hashlib.blake2b()
        for path in files:
            with open(path, "rb", buffering=0) as file:
                while chunk := file.read(CHUNK_BYTES):
                    whole.update(chunk)
        return whole.hexdigest()
    lines = [word_and_count(line) for path in files for line in path.read_bytes().splitlines()]
    return hashlib.blake2b(b"\n".join(sorted(lines))).hexdigest()


def word_and_count(line: bytes) -> bytes:
    """``word<TAB>count`` of a line, which may be one of ``uniq -c``."""
    if b"\t" in line:
        return line
    count, _, word = line.strip().partition(b" ")
    return word + b"\t" + count


def _delete(output: Path) -> None:
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


# ---- rounds


def compare(job: str, source: Path, found: Sequence[Engine], rounds: int, folder: Path, pids: Sequence[int]) -> None:
    """Run all engines, first once for memory and warmth, then in rounds; RuntimeError if outputs differ."""
    present = [engine for engine in found if engine.run is not None]
    wanted = ""
    warm = set(pids)
    for engine in present:
        watched = (lambda: warm) if "warm" in engine.name else (lambda: measure.processes_below(os.getpid()) - warm)
        with measure.watch_memory(watched) as peak:
            wanted = _once(engine, job, source, folder, wanted)[1]
        engine.memory_bytes = peak.nbytes
    for number in range(rounds):
        for engine in present[number % len(present) :] + present[: number % len(present)]:
            _say(f"{job}, round {number + 1} of {rounds}: {engine.name}")
            run, _ = _once(engine, job, source, folder, wanted)
            while run.noise.dirty and engine.retries <= number:
                engine.retries += 1
                run, _ = _once(engine, job, source, folder, wanted)
            engine.runs.append(run)


def _once(engine: Engine, job: str, source: Path, folder: Path, wanted: str) -> tuple[measure.Run, str]:
    assert engine.run is not None
    output = folder / "out"
    measure.wait_for_quiet()
    try:
        run = engine.run(source, output, job)
        found = fingerprint(output, job)
    finally:
        _delete(output)
    if wanted and found != wanted:
        raise RuntimeError(f"{job}: the output of {engine.name} differs from that of the engines before it")
    return run, found


# ---- what is reported


@dataclass(frozen=True, slots=True)
class Median:
    """Medians and extremes of an engine's runs, in seconds."""

    wall: float
    low: float
    high: float
    job: float
    cpu: float

    @classmethod
    def of(cls, engine: Engine) -> Median:
        walls = [run.wall_s for run in engine.kept]
        job, cpu = (statistics.median(values) for values in zip(*((r.job_s, r.cpu_s) for r in engine.kept), strict=True))
        return cls(statistics.median(walls), min(walls), max(walls), job, cpu)


def markdown(title: str, found: Sequence[Engine]) -> str:
    """Two tables: what each engine took, and ours over theirs."""
    head = "| engine | wall s (min-max) | job s | CPU s | peak GB | clean runs |"
    lines = [f"### {title}", "", head, "|---|---|---|---|---|---|"]
    for engine in found:
        if engine.run is None:
            lines.append(f"| {engine.name} | {engine.why_missing} | | | | |")
            continue
        m = Median.of(engine)
        clean = f"{sum(not run.noise.dirty for run in engine.runs)} of {len(engine.runs)}"
        wall = f"{m.wall:.3f} ({m.low:.3f}-{m.high:.3f})"
        lines.append(f"| {engine.name} | {wall} | {m.job:.3f} | {m.cpu:.2f} | {engine.memory_bytes / 1e9:.2f} | {clean} |")
    theirs = [engine for engine in found if not engine.ours and engine.run is not None]
    return "\n".join([*lines, "", *_ratios(found, theirs)] if theirs else lines)


def _ratios(found: Sequence[Engine], theirs: Sequence[Engine]) -> list[str]:
    names = " | ".join(engine.name for engine in theirs)
    lines = [f"| wall: ours / theirs (min/min; job/job) | {names} |", "|---" * (1 + len(theirs)) + "|"]
    for engine in (engine for engine in found if engine.ours):
        m = Median.of(engine)
        cells = [f"{m.wall / p.wall:.3f} ({m.low / p.low:.3f}; {m.job / p.job:.3f})" for p in map(Median.of, theirs)]
        lines.append(f"| {engine.name} | " + " | ".join(cells) + " |")
    return lines


def as_json(engine: Engine) -> dict[str, Any]:
    """An engine and all its runs."""
    runs = [
        {
            "wall_s": r.wall_s, "job_s": r.job_s, "cpu_s": r.cpu_s, "dirty": r.noise.dirty, "others_s": r.noise.others_s,
            "steal_s": r.noise.steal_s, "pressure_s": r.noise.pressure_s,
        }
        for r in engine.runs
    ]  # fmt: skip
    return {
        "engine": engine.name, "ours": engine.ours, "missing": engine.why_missing or None, "memory_bytes": engine.memory_bytes,
        "retries": engine.retries, "runs": runs,
    }  # fmt: skip


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m bench.peers", description="Compare quoreduce with other engines.")
    top.add_argument("--size", choices=list(data.SIZES), default=data.size(), help="quick: 256 MB each; full: 1 GiB and 1 GB")
    top.add_argument("--rounds", type=int, metavar="N", help="default 3 (quick), 9 (full)")
    top.add_argument("--job", choices=["wordcount", "sort"], action="append", help="default: both")
    slow = "count words by sort and uniq, which is slow; default: at quick size only"
    top.add_argument("--coreutils-wordcount", action=argparse.BooleanOptionalAction, help=slow)
    top.add_argument("--json", metavar="FILE", help="write all runs, too")
    return top


def main(argv: Sequence[str] | None = None) -> None:
    a = parser().parse_args(argv)
    os.environ["QUOREDUCE_BENCH_SIZE"] = a.size
    data.prepare()
    if len(measure.two_cores()) < 2:
        raise SystemExit("voting with f=1 needs two cores")
    sources = {"wordcount": data.text, "sort": data.records}
    report: dict[str, Any] = {**measure.about(), "size": a.size, "jobs": {}}
    print(measure.headline(report) + "\n")
    for job in a.job or list(sources):
        source = sources[job]()
        slow = a.size == "quick" if a.coreutils_wordcount is None else a.coreutils_wordcount
        found = _measure(job, source, slow or job == "sort", a.rounds or ROUNDS[a.size])
        print(markdown(f"{job}, {source.stat().st_size / 1e6:,.0f} MB", found) + "\n", flush=True)
        report["jobs"][job] = {"bytes": source.stat().st_size, "engines": [as_json(engine) for engine in found]}
    if a.json:
        Path(a.json).write_text(json.dumps(report, indent=1) + "\n")


def _measure(job: str, source: Path, coreutils: bool, rounds: int) -> list[Engine]:
    from quoreduce import Place, Session

    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix="out-", dir=os.environ.get("QUOREDUCE_BENCH_OUT") or data.folder()))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        session = stack.enter_context(Session(Place("local", 2)))
        found = engines(job, session, coreutils)
        compare(job, source, found, rounds, folder, [info.pid for info in session.workers])
    return found


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
