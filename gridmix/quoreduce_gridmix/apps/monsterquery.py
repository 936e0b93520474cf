"""monsterQuery: three load generators, each of which reads what the one before wrote.

Percentages kept by map and reduce: the code of GridMix 2 runs 10 and 40 three times; its README says 10/40, 100/77,
116/91. Between stages records are lines ``key<TAB>value``, which holds for GridMix's words: they have neither tabs nor
line ends.
"""

from __future__ import annotations

from typing import Literal

from quoreduce import Job
from quoreduce_gridmix.apps.loadgen import load_job

STAGES = {"code": ((10, 40), (10, 40), (10, 40)), "readme": ((10, 40), (100, 77), (116, 91))}


def jobs(
    stages: Literal["code", "readme"] = "code", input: Literal["sequence", "lines"] = "sequence",  # noqa: A002 - as in Job
) -> tuple[Job, ...]:  # fmt: skip
    """Return the jobs of the three stages; ``input`` is the first one's."""
    kept = STAGES[stages]
    formats = [input] + ["lines"] * (len(kept) - 1)
    return tuple(load_job(f"monsterQuery-{i}", *kept[i - 1], formats[i - 1]) for i in range(1, len(kept) + 1))
