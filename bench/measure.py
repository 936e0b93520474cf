"""How the benchmarks measure: interleaved pairs, what others did to the machine meanwhile, memory, and the figures made of it.

The rule for noise. A run is *dirty* if, on the cores it may use, other processes were busy for more than 5 % of the time, or
the hypervisor took more than 5 % (steal), each with 30 ms of tolerance, for the kernel counts in ticks of 10 ms. "Others" is
what /proc/stat counts less what the run itself used; the pressure of /proc/pressure/cpu is recorded beside it but decides
nothing, because a driver and workers on the same cores make pressure of their own. A pair with a dirty run is dropped and tried
again, at most as often as pairs are wanted. If fewer than half of the pairs wanted are clean in the end, all are used, and the
number of clean ones, which is always reported, tells.
"""

from __future__ import annotations

import os
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

DIRTY_SHARE = 0.05
DIRTY_TOLERANCE_S = 0.03
QUIET_SHARE = 0.15
QUIET_WAIT_S = 2.0
QUIET_LOOK_S = 0.1
SAMPLE_S = 0.02
KERNEL_SAMPLE_S = 0.05
KERNEL_SAMPLES = 7
_STEAL = 7
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq


# ---- what the machine did


@dataclass(frozen=True, slots=True)
class Noise:
    """What happened on our cores during a run, in core-seconds; pressure in seconds in which some task waited."""

    wall_s: float
    cores: int
    others_s: float
    steal_s: float
    pressure_s: float

    @property
    def dirty(self) -> bool:
        """Whether the run is to be dropped, see the module."""
        limit = DIRTY_SHARE * self.wall_s * self.cores + DIRTY_TOLERANCE_S
        return self.others_s > limit or self.steal_s > limit


@dataclass(slots=True)
class Run:
    """One execution; ``job_s``: what the engine itself says it took, without starting a process; ``detail``: whatever more."""

    wall_s: float
    cpu_s: float
    noise: Noise
    job_s: float = 0.0
    detail: Any = None


class Window:
    """A stretch of time that is watched, from its making to :meth:`close`."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._busy, self._steal = _ticks(self._cores)
        self._pressure = _pressure()
        self._start = time.perf_counter()

    def close(self, own_cpu_s: float) -> Noise:
        """End it; ``own_cpu_s`` is what the run itself used."""
        wall = time.perf_counter() - self._start
        busy, steal = _ticks(self._cores)
        others = max(0.0, busy - self._busy - own_cpu_s)
        return Noise(wall, len(self._cores), others, steal - self._steal, _pressure() - self._pressure)


def _ticks(cores: Sequence[int]) -> tuple[float, float]:
    """Seconds for which these cores were busy, and for which the hypervisor had them."""
    hz = os.sysconf("SC_CLK_TCK")
    names = {f"cpu{core}" for core in cores}
    busy = steal = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *values = line.split()
        if name in names:
            busy += sum(int(values[i]) for i in _BUSY)
            steal += int(values[_STEAL])
    return busy / hz, steal / hz


def _pressure() -> float:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    return 0.0


def two_cores() -> list[int]:
    """Keep this process, and those it starts, to two cores: what "saturated" means here does not depend on the machine."""
    chosen = sorted(os.sched_getaffinity(0))[:2]
    os.sched_setaffinity(0, chosen)
    return chosen


def wait_for_quiet(limit_s: float = QUIET_WAIT_S) -> None:
    """Wait until others leave our cores alone, but not for long."""
    cores = sorted(os.sched_getaffinity(0))
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        before, _ = _ticks(cores)
        time.sleep(QUIET_LOOK_S)
        if _ticks(cores)[0] - before <= QUIET_SHARE * QUIET_LOOK_S * len(cores) + 0.01:
            return


# ---- pairs


@dataclass(slots=True)
class Pairs:
    """Runs of two kinds, in turn; ``kept`` are those that figures are made of."""

    kept: list[tuple[Run, Run]] = field(default_factory=list)
    clean: int = 0
    tried: int = 0

    def ratios(self, figure: Callable[[Run], float]) -> list[float]:
        """Second over first, pair by pair."""
        return [divide(figure(b), figure(a)) for a, b in self.kept]


def interleave(first: Callable[[], Run], second: Callable[[], Run], wanted: int) -> Pairs:
    """Run ``first`` and ``second`` in turn (which goes first changes each time) until enough pairs are clean; bounded."""
    clean, dirty = [], []
    for number in range(2 * wanted):
        wait_for_quiet()
        if number % 2:
            b, a = second(), first()
        else:
            a, b = first(), second()
        (dirty if a.noise.dirty or b.noise.dirty else clean).append((a, b))
        if len(clean) == wanted:
            break
    kept = clean if 2 * len(clean) >= wanted else clean + dirty
    return Pairs(kept, len(clean), len(clean) + len(dirty))


def divide(a: float, b: float) -> float:
    """a / b; NaN if there is nothing to divide by."""
    return a / b if b else float("nan")


def spread(values: Sequence[float]) -> float:
    """Distance from the lower to the upper quartile."""
    if len(values) < 2:
        return 0.0
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return high - low


# ---- rates of kernels


def rate(function: Callable[[], object], amount: float, prepare: Callable[[], object] | None = None) -> float:
    """Billions of ``amount`` a second: the median of several samples of one thread.

    Short functions are called several times a sample, unless each call needs ``prepare`` (which is not timed).
    """
    calls = 1
    if prepare is None:
        function()
        first = _timed(function, 1)
        calls = max(1, int(KERNEL_SAMPLE_S / max(first, 1e-9)))
    samples = []
    for _ in range(KERNEL_SAMPLES + (prepare is not None)):
        if prepare is not None:
            prepare()
        samples.append(_timed(function, calls) / calls)
    if prepare is not None:
        samples = samples[1:]  # the first one warms up
    return rounded(amount / statistics.median(samples) / 1e9)


def millions(function: Callable[[], object], amount: float, prepare: Callable[[], object] | None = None) -> float:
    """Millions of ``amount`` a second, as :func:`rate` does it."""
    return rounded(1e3 * rate(function, amount, prepare))


def rounded(value: float) -> float:
    """Four digits: more than the noise leaves."""
    return float(f"{value:.4g}")


def _timed(function: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return time.perf_counter() - start


# ---- memory


def peak_rss(pids: Sequence[int]) -> int:
    """Peak of resident memory of the largest of these processes, in bytes; mapped files count."""
    return max((_status(pid, "VmHWM:") for pid in pids), default=0)


def _status(pid: int, name: str) -> int:
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


class MemoryPeak:
    """Peak, in bytes, of the memory of processes together: anonymous and shared, shared pages once."""

    def __init__(self) -> None:
        self.nbytes = 0

    def look(self, pids: Iterable[int]) -> None:
        """Take one sample."""
        self.nbytes = max(self.nbytes, sum(_memory(pid) for pid in pids))


@contextmanager
def watch_memory(pids: Callable[[], Iterable[int]]) -> Iterator[MemoryPeak]:
    """Sample the memory of processes meanwhile. It disturbs what is measured: not for runs that are timed."""
    peak, stop = MemoryPeak(), threading.Event()

    def sample() -> None:
        while not stop.wait(SAMPLE_S):
            peak.look(pids())

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


def processes_below(pid: int) -> set[int]:
    """Processes that ``pid`` started, and that those started."""
    found: set[int] = set()
    todo = [pid]
    while todo:
        with suppress(OSError):
            for task in Path(f"/proc/{todo.pop()}/task").iterdir():
                children = {int(child) for child in (task / "children").read_text().split()} - found
                found |= children
                todo += children
    return found


def _memory(pid: int) -> int:
    kilobytes = 0
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(("Pss_Anon:", "Pss_Shmem:")):
                kilobytes += int(line.split()[1])
    return kilobytes * 1024


# ---- the machine


def about() -> dict[str, Any]:
    """Date, machine and versions: what figures depend on, for reports."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    machine = {
        "cpu": cpu, "cores": os.cpu_count(), "cores_used": len(os.sched_getaffinity(0)), "memory_gb": round(memory / 1e9, 1),
        "kernel": os.uname().release, "architecture": os.uname().machine,
    }  # fmt: skip
    versions = {"python": platform.python_version()}
    for name in ("quoreduce", "numba", "ray", "duckdb", "polars"):
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine, "versions": versions}


def headline(about: dict[str, Any]) -> str:
    """The same in one line."""
    machine = about["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    return f"{about['date']}; {machine['cpu']}, {machine['cores_used']} of {machine['cores']} cores; {versions}"
