"""How long things take: seconds for each byte, measured (``quoreduce simulate calibrate``) or assumed; as JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from quoreduce.errors import InputError, UsageError, one_line

FORMAT = "quoreduce-calibration-1"
RATE_MAX = 1e6
STAGES_MAX = 100


@dataclass(frozen=True, slots=True)
class JobCost:
    """What one kind of job does with a byte.

    Attributes:
        map_s_per_byte: CPU seconds of a map for each byte of its split, as `original` runs it, with its checksums.
        map_voted_s_per_byte: the same when outputs are voted on, with digests; the mean of replicas that store and that do not.
        map_out: bytes of map output for each byte of the split.
        reduce_s_per_byte, reduce_voted_s_per_byte: the same of a reduce, for each byte that it reads.
        reduce_out: bytes of output for each byte that a reduce reads.
        stages: how many such jobs are run, each on the output of the one before.
    """

    map_s_per_byte: float
    map_voted_s_per_byte: float
    map_out: float
    reduce_s_per_byte: float
    reduce_voted_s_per_byte: float
    reduce_out: float
    stages: int = 1


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine's rates.

    Attributes:
        source: where they are from, for people.
        jobs: name -> cost.
        digest_s_per_byte: of BLAKE3, by which an output is checked before it is published.
        task_s: fixed cost of an execution in its worker. driver_s: the driver's for one execution; it handles one at a time.
        startup_s: from the start of a job to its first launch.
    """

    source: str
    jobs: dict[str, JobCost]
    digest_s_per_byte: float
    task_s: float
    driver_s: float
    startup_s: float

    def job(self, name: str) -> JobCost:
        """Return the cost of a kind of job; raise UsageError if it is not calibrated."""
        if name not in self.jobs:
            raise UsageError(f"no job {name!r} in this calibration: there are {', '.join(sorted(self.jobs))}")
        return self.jobs[name]

    def encode(self) -> str:
        """As JSON, for a file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2) + "\n"

    @classmethod
    def decode(cls, text: str) -> Calibration:
        """Read what :meth:`encode` wrote; raise InputError for anything else."""
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
                raise InputError(f"a calibration is a JSON object of format {FORMAT}")
            jobs = {str(name): _numbers(JobCost, dict(cost)) for name, cost in raw.pop("jobs").items()}
            source = str(raw.pop("source"))
            rates = {name: _positive(name, value) for name, value in raw.items()}
            return cls(source, jobs, **rates)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"this is no calibration: {one_line(error)}") from error


def _numbers(kind: type[JobCost], raw: dict[str, Any]) -> JobCost:
    values: dict[str, Any] = {field.name: _positive(field.name, raw[field.name]) for field in fields(kind)}
    values["stages"] = int(values["stages"])
    if not 1 <= values["stages"] <= STAGES_MAX:
        raise ValueError(f"a job has 1 to {STAGES_MAX} stages, not {values['stages']}")
    return kind(**values)


def _positive(name: str, value: Any) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= RATE_MAX:  # False of a NaN
        raise ValueError(f"{name} is {one_line(repr(value))}, not a number of 0 to {RATE_MAX:g}")
    return float(value)


# Round figures of the order of what one core does; only so that there is something to simulate with before anything is measured.
USUAL = Calibration(
    source="assumed",
    jobs={
        "wordcount": JobCost(3e-9, 3.1e-9, 0.6, 3e-9, 3.3e-9, 0.2),
        "sort": JobCost(0.35e-9, 0.4e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
        "scan": JobCost(0.1e-9, 0.1e-9, 0.01, 20e-9, 20e-9, 1.0),
        "streamSort": JobCost(4e-9, 4.2e-9, 1.0, 3e-9, 3.3e-9, 1.0),
        "javaSort": JobCost(0.35e-9, 0.4e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
        "combiner": JobCost(0.8e-9, 0.8e-9, 0.02, 20e-9, 20e-9, 0.15),
        "monsterQuery": JobCost(2.4e-9, 2.5e-9, 0.1, 3e-9, 3.3e-9, 0.4, stages=3),
        "webdataScan": JobCost(2.3e-9, 2.3e-9, 0.03, 6e-9, 6.3e-9, 0.4),
        "webdataSort": JobCost(1.8e-9, 1.85e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
    },
    digest_s_per_byte=0.2e-9, task_s=1e-3, driver_s=0.3e-3, startup_s=0.05,
)  # fmt: skip
