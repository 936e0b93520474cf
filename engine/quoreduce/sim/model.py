"""The cost of a job in closed form: time, CPU, bytes by f, maps, reduces, nodes and faults. See
docs/design/simulator.md.

PURE. It is the simulator's model without its queues: each phase is waves of executions that are all alike. Where the
two differ much, something queues.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean

from quoreduce.sim.calibration import Calibration
from quoreduce.sim.cluster import Shape
from quoreduce.sim.load import Load, execution_cpu_s
from quoreduce.tracker import Kind, Plan


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds, CPU seconds of workers, expected executions, and bytes that workers store and that reduces are to
    read.
    """

    time_s: float
    cpu_s: float
    executions: float
    stored_bytes: float
    shipped_bytes: float


@dataclass(frozen=True, slots=True)
class _Phase:
    """Executions that are alike: how many; of each the CPU, and on average the seconds of its node's card and disk."""

    count: float
    cpu_s: float
    net_s: float
    disk_s: float
    driver_s: float

    def time_s(self, shape: Shape) -> float:
        """Waves over all slots; those of a node wait for each other at its card and its disk, and all of them for the
        driver.
        """
        alone_s = self.cpu_s + self.net_s + self.disk_s + self.driver_s + 2 * shape.latency_s
        line_s = max(self.net_s, self.disk_s)
        slots = shape.nodes * shape.slots
        waves = max(1, math.ceil(self.count / slots - 1e-9))
        last = self.count - (waves - 1) * slots
        at_once = min(shape.slots, math.ceil(last / shape.nodes))  # on a node, in the last wave
        late = 1 + shape.spread * (last - 1) / (last + 1)  # the last of so many, evenly spread
        time_s = (waves - 1) * max(alone_s, shape.slots * line_s) + (at_once - 1) * line_s + alone_s * late
        return max(time_s, self.count * self.driver_s)


def estimate(
    shape: Shape, load: Load, calibration: Calibration, f: int = 1, mode: str = "bft", wrong: float = 0.0
) -> Estimate:
    """Estimate a job of one stage.

    Args:
        shape, load, calibration, f, mode: as for :func:`quoreduce.sim.simulate`.
        wrong: share of the map tasks of which one execution is wrong, once; each costs one more, if f > 0.
    """
    plan = Plan(load.maps, load.reduces, f, mode)  # type: ignore[arg-type]
    replicas, voted = plan.first, mode != "original"
    stored = replicas if plan.stores_all else 1
    speed = fmean(shape.speeds)
    near = min(1.0, shape.copies / shape.nodes)
    maps = load.maps * (replicas + wrong * (plan.need > 1))
    c, split, part = calibration, load.split_bytes, load.out_bytes

    def cpu_s(kind: Kind) -> float:
        carriers, others = (execution_cpu_s(load, c, kind, voted, store) for store in (True, False))
        return (stored * carriers + (replicas - stored) * others) / replicas / speed

    mapping = _Phase(
        maps, cpu_s("map"), split * (1 - near) / shape.net_bps,
        (split * near + load.mapped_bytes * stored / replicas) / shape.disk_bps,
        c.driver_s + load.reduces * c.driver_part_s,
    )  # fmt: skip
    check_s = (c.check_s + part * c.digest_s_per_byte) / speed * voted
    fetched = load.reduce_bytes * stored
    count = load.reduces * replicas
    between = (
        max(0.0, 1 - shape.nodes * shape.slots / count) * voted / replicas
    )  # checks for each reduce before the last wave
    reducing = _Phase(
        count, cpu_s("reduce") + check_s * between, (fetched + part * between) / shape.net_bps,
        part * stored / replicas / shape.disk_bps, c.driver_s * (1 + 1 / replicas) + load.maps * c.driver_part_s,
    )  # fmt: skip
    time_s = c.startup_s + mapping.time_s(shape) + reducing.time_s(shape)
    time_s += (check_s + part / shape.net_bps + c.driver_s + 2 * shape.latency_s) * voted  # of the last part
    samples = replicas if load.cost.sample_s else 0
    if samples:
        time_s += c.driver_s * samples + 2 * shape.latency_s + load.cost.sample_s / speed
    return Estimate(
        time_s,
        maps * cpu_s("map") + count * cpu_s("reduce") + load.reduces * check_s + samples * load.cost.sample_s / speed,
        maps + count + samples, stored * (load.maps * load.mapped_bytes + load.reduces * part),
        count * fetched,
    )  # fmt: skip
