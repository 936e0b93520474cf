"""What Ray costs: start, tasks that do next to nothing, the driver's share of the CPU; and whole jobs on it.

All on one local Ray, started for this. The driver's CPU is that of this process; Ray's own processes (raylet, GCS)
count neither as the driver's nor as the job's: what they use comes on top, as ``track_ray_cpu_share`` says.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import data, measure

if TYPE_CHECKING:
    from quoreduce import Result, Session

SMALL_BYTES = 2_000_000
FEW_TASKS, MANY_TASKS = 50, 450
REPEATS = {"quick": 5, "full": 9}
TINY = b"to be or not to be\n"
Figures = dict[str, float]


def measure_all() -> Figures:
    """All figures, by the name of the track."""
    data.prepare()
    text = data.text()
    measure.two_cores()
    with measure.outputs(data.folder()) as folder:
        tiny, small = folder / "tiny.txt", folder / "small.txt"
        tiny.write_bytes(TINY)
        with open(text, "rb") as file:
            small.write_bytes(file.read(SMALL_BYTES))
        return {**_on_ray(text, tiny, small, folder), **_on_local(tiny, small, folder)}


def _on_ray(text: Path, tiny: Path, small: Path, folder: Path) -> Figures:
    from quoreduce import Options, Place, Session

    start = time.perf_counter()
    with Session(Place("ray", 2)) as session:
        started = time.perf_counter()
        _run(session, tiny, folder, Options(f=1))
        ready = time.perf_counter()
        figures = {
            "start_s": started - start,
            "ready_s": ready - start,
            "ray_task_ms": _task_ms(session, small, folder),
        }
        plain, voted = Options(mode="original"), Options(f=1)
        for options in (plain, voted):
            _run(session, text, folder, options)
        cpu, walls = [], []
        for _ in range(REPEATS[data.size()]):
            measure.wait_for_quiet()
            walls.append((_run(session, text, folder, plain).wall_s, _run(session, text, folder, voted).wall_s))
            cpu.append(_cpu(lambda: _run(session, text, folder, voted)))
        driver, ray, total = (sum(column) for column in zip(*cpu, strict=True))
        figures |= {
            "driver_cpu_share": driver / total,
            "ray_cpu_share": ray / total,
            "plain_s": statistics.median(a for a, _ in walls),
            "voted_s": statistics.median(b for _, b in walls),
            "time_ratio": statistics.median(b / a for a, b in walls),
        }
        before_close = time.perf_counter()
    return {**figures, "stop_s": time.perf_counter() - before_close}


def _on_local(tiny: Path, small: Path, folder: Path) -> Figures:
    from quoreduce import Options, Place, Session

    start = time.perf_counter()
    with Session(Place("local", 2)) as session:
        _run(session, tiny, folder, Options(f=1))
        return {"local_ready_s": time.perf_counter() - start, "local_task_ms": _task_ms(session, small, folder)}


def _run(session: Session, path: Path, folder: Path, options: Any) -> Result:
    from quoreduce.jobs.wordcount import JOB

    output = folder / "out"
    try:
        return session.run(JOB, [str(path)], str(output), options)
    finally:
        shutil.rmtree(output, ignore_errors=True)


def _task_ms(session: Session, path: Path, folder: Path) -> float:
    """Milliseconds for each further map task over the same text: the slope between few and many of them."""
    from quoreduce import Options

    def wall_and_tasks(tasks: int) -> tuple[float, int]:
        options = Options(mode="original", reducers=1, split_mb=SMALL_BYTES / tasks / 1e6)
        runs = [_run(session, path, folder, options) for _ in range(4)][1:]
        return statistics.median(run.wall_s for run in runs), runs[0].executions["map"]

    few, few_tasks = wall_and_tasks(FEW_TASKS)
    many, many_tasks = wall_and_tasks(MANY_TASKS)
    return 1e3 * (many - few) / (many_tasks - few_tasks)


def _cpu(run: Callable[[], Result]) -> tuple[float, float, float]:
    """CPU seconds of the driver, of Ray's own processes, and of the job (workers and driver) during ``run``."""
    daemons = _ray_daemons()
    ray = _process_cpu(daemons)
    driver = time.process_time()
    result = run()
    return time.process_time() - driver, _process_cpu(daemons) - ray, result.cpu_s


def _ray_daemons() -> list[int]:
    """Processes below this one, without our actors: raylet, GCS, agents."""
    return [pid for pid in measure.processes_below(os.getpid()) if "ray::RayWorker" not in _command(pid)]


def _command(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _process_cpu(pids: list[int]) -> float:
    ticks = 0
    for pid in pids:
        with suppress(OSError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Ray:
    """The figures of :func:`measure_all`."""

    timeout = 600

    def setup_cache(self) -> Figures:
        return measure_all()

    setup_cache.timeout = 1800  # type: ignore[attr-defined]


FIGURES = (
    ("start_s", "seconds", "Import of Ray, init, and actors that answer."),
    ("ready_s", "seconds", "The same, and a first voted job over one line: kernels are loaded."),
    ("stop_s", "seconds", "Shutdown."),
    ("ray_task_ms", "ms", "Each further map task, on two actors."),
    ("driver_cpu_share", "of the job's CPU", "Word count, voted f=1."),
    ("ray_cpu_share", "of the job's CPU", "Raylet, GCS and Ray's other processes meanwhile, on top of the job's."),
    ("plain_s", "seconds", "Word count on warm actors, median."),
    ("voted_s", "seconds", "The same, voted f=1."),
    ("time_ratio", "voted/plain", "Median of the ratios of pairs, both cores saturated."),
    ("local_ready_s", "seconds", "For comparison, the local executor: started, and a first voted job done."),
    ("local_task_ms", "ms", "For comparison, the local executor: each further map task."),
)
measure.add_tracks(Ray, lambda figures: figures, FIGURES)
