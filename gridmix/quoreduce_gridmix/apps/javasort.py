"""javaSort: identity map and reduce over lines ``key<TAB>value``: hash partitions, each sorted by (key, map,
record).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quoreduce import Job
from quoreduce.jobs.pairs import partitioned, rows_of, sorted_rows, write_rows


def map_lines(data: Any, ctx: Any) -> Sequence[Any]:
    """Partition the records of a split."""
    rows = rows_of(data)
    ctx.records_in = len(rows)
    return partitioned(rows, ctx)


def reduce_rows(blocks: Sequence[Any], ctx: Any) -> None:
    """Write the records of a partition in order."""
    write_rows(sorted_rows(blocks, ctx), ctx)


JOB = Job.of_blocks("javaSort", map=map_lines, reduce=reduce_rows)
