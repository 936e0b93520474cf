"""The simulated job: its number of tasks, its bytes and their cost."""

from __future__ import annotations

from dataclasses import dataclass

from quoreduce.errors import UsageError
from quoreduce.sim.calibration import Calibration, JobCost
from quoreduce.tracker import Kind


@dataclass(frozen=True, slots=True)
class Load:
    """A job: its name, what it costs, how many tasks, and the size of a split in bytes."""

    name: str
    cost: JobCost
    maps: int
    reduces: int
    split_bytes: float = 64e6

    def __post_init__(self) -> None:
        if self.maps < 1 or self.reduces < 1 or self.split_bytes <= 0:
            raise UsageError("a simulated job has at least one map and one reduce, and splits are not empty")

    @property
    def mapped_bytes(self) -> float:
        """Bytes of a map's output."""
        return self.cost.mapped.made(self.split_bytes)

    @property
    def reduce_bytes(self) -> float:
        """Bytes that a reduce reads of one copy of each map's output."""
        return self.mapped_bytes * self.maps / self.reduces

    @property
    def out_bytes(self) -> float:
        """Bytes of a reduce's output."""
        return self.cost.out.made(self.split_bytes * self.maps) / self.reduces


def execution_cpu_s(load: Load, calibration: Calibration, kind: Kind, voted: bool, store: bool) -> float:
    """CPU seconds of one execution at speed 1, without the spread."""
    cost = load.cost
    if kind == "sample":
        return cost.sample_s
    if kind == "map":
        parts_s = load.reduces * calibration.map_part_s
        return parts_s + cost.map.rate(voted, store).cpu_s(load.split_bytes, load.mapped_bytes)
    parts_s = load.maps * calibration.reduce_part_s
    return parts_s + cost.reduce.rate(voted, store).cpu_s(load.reduce_bytes, load.out_bytes)
