"""How long things take: CPU seconds for each byte, measured (``quoreduce simulate calibrate``) or assumed; as JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Any

from quoreduce.errors import InputError, UsageError, one_line

FORMAT = "quoreduce-calibration-2"
POINTS_MAX = 64
RATE_MAX = 1e6
SIZE_MAX = 1e18
STAGES_MAX = 100
SLOPE_MAX = 4


@dataclass(frozen=True, slots=True)
class Rate:
    """CPU seconds of an execution: a fixed cost, and for each byte that it reads and that it makes."""

    task_s: float
    read_s: float
    made_s: float = 0.0

    def cpu_s(self, read: float, made: float) -> float:
        """Of an execution that reads and makes so many bytes."""
        return self.task_s + read * self.read_s + made * self.made_s


@dataclass(frozen=True, slots=True)
class Work:
    """Executions of one kind: as `original` runs them; in a vote, of the replica that stores and of those that only
    digest.
    """

    plain: Rate
    carrier: Rate
    digest: Rate

    def rate(self, voted: bool, store: bool) -> Rate:
        """Of an execution."""
        return self.plain if not voted else self.carrier if store else self.digest


@dataclass(frozen=True, slots=True)
class Curve:
    """Bytes made by bytes read, through measured points (both more than 0, bytes read ascending).

    Between points a power law; beyond them that of the nearest two. Of one point, and below the first one, in
    proportion.
    """

    points: tuple[tuple[float, float], ...]

    def made(self, read: float) -> float:
        """Of what is read, in bytes."""
        x0, y0 = self.points[0]
        if read <= x0 or len(self.points) == 1:
            return y0 * read / x0
        n = next((n for n, (x, _) in enumerate(self.points) if read <= x), len(self.points) - 1)
        (x0, y0), (x1, y1) = self.points[n - 1 : n + 1]
        return float(y0 * (read / x0) ** (math.log(y1 / y0) / math.log(x1 / x0)))


@dataclass(frozen=True, slots=True)
class JobCost:
    """The costs of one kind of job.

    Attributes:
        map, reduce: CPU seconds.
        mapped: bytes that a map makes of its split.
        out: bytes that the job makes of its input.
        stages: how many such jobs are run, each on the output of the one before.
        sample_s: CPU seconds of the sample; 0 if the job has none.
    """

    map: Work
    reduce: Work
    mapped: Curve
    out: Curve
    stages: int = 1
    sample_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Calibration:
    """A machine's rates.

    Attributes:
        source: where they are from, for people.
        jobs: name -> cost.
        digest_s_per_byte: of BLAKE3, by which an output is checked before it is published.
        check_s: of a check besides.
        map_part_s, reduce_part_s: of an execution, for each partition that a map makes, and that a reduce reads.
        driver_s: the driver's for one execution; it handles one at a time.
        driver_part_s: for each partition besides.
        startup_s: from the start of a job to its first launch, and from the last answer to the end.
        latency_s: of a message between driver and worker on this machine.
        spread: of executions that are alike, see `Shape`.
    """

    source: str
    jobs: dict[str, JobCost]
    digest_s_per_byte: float
    driver_s: float
    startup_s: float
    check_s: float = 0.0
    map_part_s: float = 0.0
    reduce_part_s: float = 0.0
    driver_part_s: float = 0.0
    latency_s: float = 0.0005
    spread: float = 0.1

    def job(self, name: str) -> JobCost:
        """Return the cost of a kind of job; raise UsageError if it is not calibrated."""
        if name not in self.jobs:
            raise UsageError(f"no job {name!r} in this calibration: there are {', '.join(sorted(self.jobs))}")
        return self.jobs[name]

    def encode(self) -> str:
        """As JSON, for a file."""
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def decode(cls, text: str) -> Calibration:
        """Read what :meth:`encode` wrote; raise InputError for anything else."""
        try:
            raw = json.loads(text)
            if not isinstance(raw, dict) or raw.pop("format", None) != FORMAT:
                raise InputError(
                    f"a calibration is a JSON object of format {FORMAT}: make one with quoreduce simulate calibrate"
                )
            jobs = {str(name): _job(dict(cost)) for name, cost in raw.pop("jobs").items()}
            source = str(raw.pop("source"))
            found = cls(source, jobs, **{name: _number(name, value) for name, value in raw.items()})
            if found.spread >= 1:
                raise ValueError(f"spread is {found.spread}")
            return found
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise InputError(f"this is no calibration: {one_line(error)}") from error


def _job(raw: dict[str, Any]) -> JobCost:
    map_, reduce_ = (_work(raw[kind]) for kind in ("map", "reduce"))
    stages = int(_number("stages", raw["stages"]))
    if not 1 <= stages <= STAGES_MAX:
        raise ValueError(f"a job has 1 to {STAGES_MAX} stages, not {stages}")
    mapped, out = (_curve(raw[name]["points"]) for name in ("mapped", "out"))
    return JobCost(map_, reduce_, mapped, out, stages, _number("sample_s", raw["sample_s"]))


def _work(raw: dict[str, dict[str, Any]]) -> Work:
    rates = {f.name: Rate(**{n: _number(n, v) for n, v in raw[f.name].items()}) for f in fields(Work)}
    return Work(**rates)


def _curve(raw: Iterable[Any]) -> Curve:
    points = tuple((_number("a size", x, SIZE_MAX), _number("a size", y, SIZE_MAX)) for x, y in raw)
    sizes = [x for x, _ in points]
    if not 1 <= len(points) <= POINTS_MAX or min(min(point) for point in points) <= 0 or sizes != sorted(set(sizes)):
        raise ValueError("sizes are more than 0, and ascend")
    if any(abs(math.log(y1 / y0)) > SLOPE_MAX * math.log(x1 / x0) for (x0, y0), (x1, y1) in pairwise(points)):
        raise ValueError(f"what is made grows with a power of what is read that is at most {SLOPE_MAX}")
    return Curve(points)


def _number(name: str, value: Any, most: float = RATE_MAX) -> float:
    if not isinstance(value, int | float) or not 0 <= value <= most:  # False of a NaN
        raise ValueError(f"{name} is {one_line(repr(value))}, not a number of 0 to {most:g}")
    return float(value)


def _usual(  # CPU seconds and bytes for each byte: a map's plain and voted, what it makes; the same of a reduce
    map_s: float, map_voted_s: float, mapped: float, reduce_s: float, reduce_voted_s: float, reduced: float,
    stages: int = 1,
) -> JobCost:  # fmt: skip
    map_, reduce_ = (
        Work(Rate(1e-3, plain), Rate(1e-3, voted), Rate(1e-3, voted))
        for plain, voted in ((map_s, map_voted_s), (reduce_s, reduce_voted_s))
    )
    return JobCost(map_, reduce_, Curve(((1.0, mapped),)), Curve(((1.0, mapped * reduced),)), stages)


# Round figures of the order of what one core does; only so that there is something to simulate with before anything is
# measured.
USUAL = Calibration(
    source="assumed",
    jobs={
        "wordcount": _usual(3e-9, 3.1e-9, 0.6, 3e-9, 3.3e-9, 0.2),
        "sort": _usual(0.35e-9, 0.4e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
        "scan": _usual(0.1e-9, 0.1e-9, 0.01, 20e-9, 20e-9, 1.0),
        "streamSort": _usual(4e-9, 4.2e-9, 1.0, 3e-9, 3.3e-9, 1.0),
        "javaSort": _usual(0.35e-9, 0.4e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
        "combiner": _usual(0.8e-9, 0.8e-9, 0.02, 20e-9, 20e-9, 0.15),
        "monsterQuery": _usual(2.4e-9, 2.5e-9, 0.1, 3e-9, 3.3e-9, 0.4, stages=3),
        "webdataScan": _usual(2.3e-9, 2.3e-9, 0.03, 6e-9, 6.3e-9, 0.4),
        "webdataSort": _usual(1.8e-9, 1.85e-9, 1.0, 0.7e-9, 0.75e-9, 1.0),
    },
    digest_s_per_byte=0.2e-9, driver_s=0.3e-3, startup_s=0.05,
)  # fmt: skip
