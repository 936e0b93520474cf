"""The simulator: the unchanged JobTracker on nodes, disks and networks that are made up (docs/design/simulator.md).

PURE: a seed and a scenario in, an outcome out; virtual time only. The same seed and commit give the same transcript,
bit for bit. `calibration` says how long things take, `cluster` what there is, `faults` what goes wrong, `simulation`
what happens, `referee` what no tracker may do, `model` says it in closed form, and `slides` repeats published
experiments.
"""

from quoreduce.sim.calibration import USUAL, Calibration, Curve, JobCost, Rate, Work
from quoreduce.sim.cluster import Shape
from quoreduce.sim.faults import SimulatedFault, parse_fault
from quoreduce.sim.load import Load
from quoreduce.sim.outcome import Outcome
from quoreduce.sim.simulation import Simulation, simulate

__all__ = [
    "USUAL", "Calibration", "Curve", "JobCost", "Load", "Outcome", "Rate", "Shape", "SimulatedFault", "Simulation",
    "Work", "parse_fault", "simulate",
]  # fmt: skip
