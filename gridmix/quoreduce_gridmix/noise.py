"""What others did to our cores during a run: so that figures are not made of runs that were disturbed.

A run is *dirty* if, on the cores it may use, other processes were busy for more than 5 % of the time, or the hypervisor took
more than 5 % (steal), each with 30 ms of tolerance, for the kernel counts in ticks of 10 ms. Pressure (/proc/pressure/cpu) is
recorded but decides nothing: a driver and its workers on the same cores make pressure of their own. Where the kernel does not
tell, nothing is dirty.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

import msgspec

DIRTY_SHARE = 0.05
DIRTY_TOLERANCE_S = 0.03
_BUSY = (0, 1, 2, 5, 6)  # user, nice, system, irq, softirq
_STEAL = 7


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In core-seconds: what other processes used of our cores, what the hypervisor took; and seconds in which a task waited."""

    others_s: float
    steal_s: float
    pressure_s: float
    dirty: bool


class Watch:
    """Watches from its making to :meth:`close`."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._start = time.perf_counter()
        self._busy, self._steal = _ticks(self._cores)
        self._pressure = _pressure()

    def close(self, own_cpu_s: float) -> Noise:
        """End it; ``own_cpu_s`` is what the run itself used."""
        core_s = (time.perf_counter() - self._start) * len(self._cores)
        busy, steal = _ticks(self._cores)
        others, stolen = max(0.0, busy - self._busy - own_cpu_s), max(0.0, steal - self._steal)
        dirty = max(others, stolen) > DIRTY_SHARE * core_s + DIRTY_TOLERANCE_S
        return Noise(others, stolen, max(0.0, _pressure() - self._pressure), dirty)


def _ticks(cores: list[int]) -> tuple[float, float]:
    """Seconds for which these cores were busy, and for which the hypervisor had them."""
    names = {f"cpu{core}" for core in cores}
    busy = steal = 0
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/stat").read_text().splitlines():
            name, *values = line.split()
            if name in names:
                busy += sum(int(values[i]) for i in _BUSY)
                steal += int(values[_STEAL])
    hz = os.sysconf("SC_CLK_TCK")
    return busy / hz, steal / hz


def _pressure() -> float:
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/pressure/cpu").read_text().split("total=")[1].split()[0]) / 1e6
    return 0.0
