"""How long an execution takes, and how many bytes it makes, for one load, plan, cluster and calibration."""

from __future__ import annotations

from quoreduce.sim.calibration import Calibration
from quoreduce.sim.cluster import Shape
from quoreduce.sim.load import Load, execution_cpu_s
from quoreduce.tracker import Kind, Plan

DEADLINE_FACTOR, DEADLINE_LEAST_S = 20.0, 10.0


class Costs:
    """The figures that the simulation computes once for each kind of task.

    Attributes:
        shape, load, calibration: what it was computed from.
        made: bytes that an execution makes.
        reduce_in: bytes that a reduce reads of one copy of each map's output.
        work_s: CPU seconds of an execution, by kind and whether it stores.
        driver_s: the driver's, for one request.
    """

    def __init__(self, shape: Shape, load: Load, plan: Plan, calibration: Calibration) -> None:
        self.shape, self.load, self.calibration, self._plan = shape, load, calibration, plan
        self.made: dict[Kind, float] = {"sample": 0.0, "map": load.mapped_bytes, "reduce": load.out_bytes}
        self.reduce_in = load.reduce_bytes
        voted = plan.mode != "original"
        self.work_s = {
            (kind, store): execution_cpu_s(load, calibration, kind, voted, store)
            for kind in self.made for store in (False, True)
        }  # fmt: skip
        self.driver_s: dict[Kind, float] = {
            "sample": calibration.driver_s,
            "map": calibration.driver_s + calibration.driver_part_s * load.reduces,
            "reduce": calibration.driver_s + calibration.driver_part_s * load.maps,
        }

    @property
    def expected_s(self) -> float:
        """A guess of how long the job takes, used only to place the loss of nodes within it."""
        shape, load = self.shape, self.load
        executions_s = load.maps * self.service_s("map") + load.reduces * self.service_s("reduce")
        return self._plan.first * executions_s / (shape.nodes * shape.slots)

    def service_s(self, kind: Kind) -> float:
        """How long an execution should take."""
        read = {"sample": 0.0, "map": self.load.split_bytes, "reduce": self.reduce_in}[kind]
        return self.work_s[kind, True] + read / min(self.shape.net_bps, self.shape.disk_bps)

    def deadline_s(self, kind: Kind) -> float:
        """When the driver gives an execution up, counted from its request (R9)."""
        if self.shape.deadline_s is not None:
            return self.shape.deadline_s
        return max(DEADLINE_LEAST_S, DEADLINE_FACTOR * self.service_s(kind))
