"""The simulated cluster: nodes with slots, a disk and a network card, in racks, some of them slow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from quoreduce.errors import UsageError
from quoreduce.sim.calibration import Calibration

NODES_MAX = 100_000
SLOTS_MAX = 1024


@dataclass(frozen=True, slots=True)
class Shape:
    """A cluster.

    Attributes:
        nodes: how many.
        slots: executions that each runs at a time, each in a worker and on a core of its own.
        rack: nodes in a rack.
        domain: what fails together: ``core``, ``node`` or ``rack``.
        disk_bps, net_bps: bytes a second of each node's disk, and of its network card inwards.
        latency_s: of a message between driver and worker.
        copies: of each split in the file system; a map finds one on its own node with probability copies/nodes.
        spread: executions take 1 +- spread of their time, evenly distributed.
        speeds: relative speeds of CPU types; node n is of type n mod their number.
        restart_s: until a worker that died is there again.
        deadline_s: an execution is given up after this long; None: 20 times what it should take, at least 10 s.
    """

    nodes: int = 10
    slots: int = 2
    rack: int = 20
    domain: Literal["core", "node", "rack"] = "node"
    disk_bps: float = 100e6
    net_bps: float = 125e6
    latency_s: float = 0.0005
    copies: int = 3
    spread: float = 0.1
    speeds: tuple[float, ...] = (1.0,)
    restart_s: float = 1.0
    deadline_s: float | None = None

    @classmethod
    def machine(cls, cores: int, calibration: Calibration) -> Shape:
        """One machine whose cores vote on each other, as `local` workers do; everything is in its page cache."""
        return cls(
            nodes=1, slots=cores, domain="core", disk_bps=math.inf, net_bps=math.inf, latency_s=calibration.latency_s,
            spread=calibration.spread,
        )  # fmt: skip

    def __post_init__(self) -> None:
        if not 1 <= self.nodes <= NODES_MAX or not 1 <= self.slots <= SLOTS_MAX or self.rack < 1:
            raise UsageError(
                f"a cluster has 1 to {NODES_MAX:,} nodes of 1 to {SLOTS_MAX:,} slots, in racks of at least 1 node"
            )
        if self.domain not in ("core", "node", "rack"):
            raise UsageError(f"what fails together is a core, a node or a rack, not {self.domain!r}")
        if min(self.disk_bps, self.net_bps, *self.speeds) <= 0 or min(self.latency_s, self.restart_s) < 0:
            raise UsageError("bandwidths and speeds are more than 0, and times are not negative")
        if not 0 <= self.spread < 1:
            raise UsageError(f"the spread of times is from 0 to less than 1, not {self.spread}")


@dataclass(slots=True)
class FifoDevice:
    """A disk or a network card: it serves one request after the other, so that its bandwidth is never exceeded."""

    bps: float
    free_s: float = 0.0

    def serve(self, now_s: float, nbytes: float) -> float:
        """Queue a request and return when it is served."""
        self.free_s = max(self.free_s, now_s) + nbytes / self.bps
        return self.free_s


@dataclass(slots=True)
class SimulatedNode:
    """A node; ``speed`` 1.0 is that of the calibration. ``domain`` is of all of it, if its cores are none of their
    own.
    """

    number: int
    domain: str
    rack: int
    disk: FifoDevice
    net: FifoDevice
    speed: float
    alive: bool = True


def build(shape: Shape, slow: dict[int, float]) -> list[SimulatedNode]:
    """Make the nodes; ``slow``: node -> how many times slower it is."""
    nodes = []
    for n in range(shape.nodes):
        rack, factor = n // shape.rack, slow.get(n, 1.0)
        domain = f"rack{rack}" if shape.domain == "rack" else f"n{n}"
        speed = shape.speeds[n % len(shape.speeds)] / factor
        nodes.append(
            SimulatedNode(
                n, domain, rack, FifoDevice(shape.disk_bps / factor), FifoDevice(shape.net_bps / factor), speed
            )
        )
    return nodes
