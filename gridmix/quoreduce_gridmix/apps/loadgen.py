"""GridMix's load generator: a job that keeps a percentage of the records in its maps, and another in its reduces.

Each task counts on its own, in float32: a record is counted as seen, and while kept / seen is below the percentage it
is kept once more. So a task's first record is always kept, and over 100 % some are kept twice. A reduce counts values,
across keys, in the total order (key, map, record): Hadoop leaves that order to the timing of its shuffle, but replicas
must agree on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quoreduce import Job
from quoreduce.jobs.pairs import partitioned, rows_of, sorted_rows, write_rows


@dataclass(frozen=True, slots=True)
class LoadGenerator:
    """The map and the reduce, with the percentages that they keep."""

    keep_map: float
    keep_reduce: float
    output: Literal["text", "sequence"] = "text"

    def map(self, data: Any, ctx: Any) -> Sequence[Any]:
        """Keep some of a split's records, and partition them."""
        from quoreduce_kernels.pairs import keep_positions  # here: to declare the job takes no kernels

        rows = rows_of(data)
        ctx.records_in = len(rows)
        return partitioned(rows.take(keep_positions(len(rows), self.keep_map)), ctx)

    def reduce(self, blocks: Sequence[Any], ctx: Any) -> None:
        """Keep some of a partition's records, and write them in order."""
        from quoreduce_kernels.pairs import keep_positions

        rows = sorted_rows(blocks, ctx)
        write_rows(rows.take(keep_positions(rows.order.size, self.keep_reduce)), ctx, self.output)


def load_job(
    name: str, keep_map: float, keep_reduce: float, input: Literal["sequence", "lines"] = "sequence",  # noqa: A002 - as in Job
    output: Literal["text", "sequence"] = "text",
) -> Job:  # fmt: skip
    """Make a job that keeps ``keep_map`` and ``keep_reduce`` percent; more than 100 keeps some records several
    times.
    """
    load = LoadGenerator(keep_map, keep_reduce, output)
    return Job.of_blocks(name, map=load.map, reduce=load.reduce, input=input, output=output)
