"""The CPU time that other processes took during a run, so that figures are not made of disturbed runs.

A run is *dirty* by the rule of :func:`quoreduce.machine.is_dirty`: other processes were busy on the cores that it may
use, or the hypervisor took them (steal). Pressure (/proc/pressure/cpu) is recorded but decides nothing: a driver and
its workers on the same cores make pressure of their own. Where the kernel does not tell, nothing is dirty.
"""

from __future__ import annotations

import os
import time

import msgspec

from quoreduce.machine import core_times, is_dirty, waited_s


class Noise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """In core-seconds: what other processes used of our cores, what the hypervisor took; and seconds in which a task
    waited.
    """

    others_s: float
    steal_s: float
    pressure_s: float
    dirty: bool


class NoiseWatch:
    """Watches from its making to :meth:`close`."""

    def __init__(self) -> None:
        self._cores = sorted(os.sched_getaffinity(0))
        self._start = time.perf_counter()
        self._busy, self._steal = core_times(self._cores)
        self._pressure = waited_s()

    def close(self, own_cpu_s: float) -> Noise:
        """End it; ``own_cpu_s`` is what the run itself used."""
        core_s = (time.perf_counter() - self._start) * len(self._cores)
        busy, steal = core_times(self._cores)
        others, stolen = max(0.0, busy - self._busy - own_cpu_s), max(0.0, steal - self._steal)
        return Noise(others, stolen, max(0.0, waited_s() - self._pressure), is_dirty(core_s, others, stolen))
